"""A master and the zygote of a release with another version of Midstream: they talk when the versions are neighbours."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.process.serving import make_release, point, running

import midstream
from midstream.serve.channel import VERSION

PACKAGE = Path(midstream.__file__).parent


def speaks(package: Path, version: int) -> None:
    """Messages of the package are of that version. Its length changes too: what was compiled before must not be taken."""
    text = (PACKAGE / "serve/channel.py").read_text()
    assert f"\nVERSION = {VERSION}\n" in text
    said = f"\nVERSION = {version}\n" + "#\n" * (10 + version)
    (package / "serve/channel.py").write_text(text.replace(f"\nVERSION = {VERSION}\n", said))


def test_neighbours_serve_and_others_are_refused_with_a_remedy(tmp_path: Path) -> None:
    point(tmp_path, make_release(tmp_path, "one"))
    other = make_release(tmp_path, "other")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(other / ".venv")], check=True)
    package = other / "lib/midstream"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    [packages] = (other / ".venv").glob("lib/python3.*/site-packages")
    paths = [str(package.parent), sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
    (packages / "other.pth").write_text("\n".join(paths) + "\n")
    (other / "app.py").write_text("import midstream\n" + (other / "app.py").read_text())
    program = (sys.executable, "-I", str(PACKAGE))
    with running(tmp_path, environment={"PYTHONPATH": ""}, program=program) as server:
        for version in (VERSION - 1, VERSION + 1):
            speaks(package, version)
            point(tmp_path, other)
            answer = server.reload()
            assert answer.ok, answer.text
            assert server.get().release == "other"
        before = server.workers()
        for version in (VERSION - 2, VERSION + 2):
            speaks(package, version)
            answer = server.reload()
            assert not answer.ok
            assert f"whose zygote speaks version {version} and we speak {VERSION}" in answer.text
            assert "put a version of midstream[serve] next to the server's own" in answer.text
            assert server.workers() == before
