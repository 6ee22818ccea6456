"""What tests need from the package index, fetched and made once in a run, whichever worker of pytest-xdist asks first."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from midstream.cli.demo import own_wheel

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


class NoIndexError(Exception):
    """The package index did not give what was asked for."""


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder of this run that `make` has filled. Skips the test where the index gives nothing, but in CI."""
    base = factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            try:
                make(folder)
            except NoIndexError as error:
                if os.environ.get("CI"):
                    raise
                pytest.skip(f"the package index gives nothing for {name}: {error}")
            (folder / "made").touch()
    return folder


def download(wheels: Path, *packages: str) -> None:
    """Wheels of them, of `midstream[serve]` as it is here, and of all that these need."""
    ours = own_wheel.build(wheels / "own")
    argv = [*PIP, "download", "-q", "--only-binary", ":all:", "-d", str(wheels), *packages, f"{ours}[serve]"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise NoIndexError(done.stdout[-300:])


def virtualenv(home: Path, wheels: Path, *packages: str) -> Path:
    """A new one with them and `midstream[serve]` in it; its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", str(home))
    offline = ("--no-compile", "--no-index", "--find-links", str(wheels))
    run(*PIP, "--python", str(home), "install", "-q", *offline, *packages, own_wheel.REQUIREMENT)
    return home / "bin" / "python"


def run(*argv: str, **more: str) -> None:
    """`more`: for its environment. What is imported leaves its byte code, which releases share."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | more
    done = subprocess.run(
        argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}"
