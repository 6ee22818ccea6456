"""Releases on different versions of Python follow each other under one master, and no request fails.

The other Python: MIDSTREAM_SECOND_PYTHON, or one on the PATH, or one installed beside ours (as pyenv and uv do). What its
virtualenv needs comes from the package index. Skipped where either is missing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.process.serving import make_release, point, running
from tests.process.test_serve_master import Load

import midstream

SOURCE = str(Path(midstream.__file__).parents[1])
PACKAGES = ("httptools", "uvloop")
INSTALL_S = 120.0

pytestmark = pytest.mark.timeout(300)

APP = """
import os, sys

def app(environ, start_response):
    body = "{name} %d %d.%d" % (os.getpid(), *sys.version_info[:2])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body.encode()]
"""


def version_of(python: str) -> tuple[int, int]:
    """Of an interpreter that can make virtualenvs; (0, 0): it is none, or does not run."""
    words = [python, "-c", "import sys, venv; print(*sys.version_info[:2])"]
    try:
        major, minor = subprocess.run(words, capture_output=True, check=True, timeout=60).stdout.split()
    except (OSError, ValueError, subprocess.SubprocessError):
        return (0, 0)
    return (int(major), int(minor))


def pythons() -> Iterator[str]:
    if named := os.environ.get("MIDSTREAM_SECOND_PYTHON"):
        yield named
    for minor in range(11, 20):
        if found := shutil.which(f"python3.{minor}"):
            yield found
    yield from sorted(map(str, Path(sys.base_prefix).parent.glob("*/bin/python3.[0-9][0-9]")))


@pytest.fixture
def other(tmp_path: Path) -> tuple[Path, str]:
    """A virtualenv of another version of Python, with what `serve` needs; and that version."""
    versions = ((python, version_of(python)) for python in pythons())
    found = next(((python, it) for python, it in versions if it >= (3, 11) and it != sys.version_info[:2]), None)
    if found is None:
        pytest.skip("there is no second Python from 3.11 on; MIDSTREAM_SECOND_PYTHON names one")
    home = tmp_path / "other.venv"
    subprocess.run([found[0], "-m", "venv", "--without-pip", home], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin/python"), "install", "--quiet", "--no-input"]
    try:
        subprocess.run(
            [*pip, "--only-binary", ":all:", "--retries", "1", *PACKAGES],
            capture_output=True,
            text=True,
            check=True,
            timeout=INSTALL_S,
        )
    except subprocess.SubprocessError as error:
        pytest.skip(f"{' and '.join(PACKAGES)} cannot be installed for {found[0]}: {error}")
    [packages] = home.glob("lib/python3.*/site-packages")
    (packages / "midstream.pth").write_text(SOURCE + "\n")
    return home, "{}.{}".format(*found[1])


def test_releases_on_two_versions_of_python_follow_each_other(tmp_path: Path, other: tuple[Path, str]) -> None:
    home, version = other
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    point(tmp_path, make_release(tmp_path, "one", app=APP.format(name="one")))
    (make_release(tmp_path, "two", app=APP.format(name="two")) / ".venv").symlink_to(home)
    (tmp_path / "releases/one/.venv").symlink_to(sys.prefix)  # to a release without one there is no way back
    with running(tmp_path) as server, Load(server.port) as load:
        pid = server.pid
        for name, python in (("two", version), ("one", ours), ("two", version)):
            point(tmp_path, tmp_path / "releases" / name)
            mark = server.mark()
            server.signal(signal.SIGUSR2)
            server.line(rf"generation \d+ \({name}\): serves", mark)
            assert server.get().body.split()[::2] == [name, python]
            load.more_answers(20)
        assert server.pid == pid and server.process.poll() is None
    assert load.failed == []
