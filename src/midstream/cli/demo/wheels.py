"""What the Django project needs from the package index: fetched once, into a folder that each build installs from.

Runs pip. Finds one that can install into a virtualenv from outside (pip 22.3), or makes one. Django's wheel is made
smaller: two thirds of its files are translations into languages that the demo does not speak, and they would be written
and removed five times.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from midstream.cli.demo import own_wheel
from midstream.errors import HostError

_TRANSLATION = re.compile(r"/locale/(?!en/)[A-Za-z_]+/")
_ENOUGH = (22, 3)  # the first pip that knows --python


async def installer(folder: Path, tell: Callable[[str], None]) -> list[str]:
    """argv of a pip that is new enough: this Python's own, else one in a virtualenv made in `folder`."""
    own = [sys.executable, "-m", "pip"]
    if await _version(own) >= _ENOUGH:
        return own
    tell("this Python has no pip, or an old one: making one in the temporary folder")
    await _run(sys.executable, "-m", "venv", str(folder), remedy="install Python's venv module (python3-venv)")
    made = [str(folder / "bin" / "python"), "-m", "pip"]
    if await _version(made) < _ENOUGH:
        await _run(*made, "install", "-q", "--upgrade", "pip", remedy="the demo needs the package index")
    return made


async def fetch(pip: list[str], requirements: str, folder: Path) -> list[str]:
    """Downloads wheels of `requirements` and all they need; returns their file names. Midstream itself is this very copy,
    whatever the index has under its name. Raises HostError."""
    folder.mkdir(parents=True, exist_ok=True)
    own = await asyncio.to_thread(own_wheel.build, folder / "own")
    wanted = folder / "requirements.txt"
    wanted.write_text(requirements.replace(own_wheel.REQUIREMENT, f"{own}[serve]"), encoding="utf-8")
    await _run(
        *(*pip, "download", "-q", "--disable-pip-version-check", "--only-binary", ":all:", "-d", str(folder)),
        *("-r", str(wanted)),
        remedy="the demo needs the package index (PyPI) once; `midstream demo --quick` needs nothing",
    )
    for wheel in folder.glob("[Dd]jango-*.whl"):
        await asyncio.to_thread(drop_translations, wheel)
    return sorted(path.name for path in folder.glob("*.whl"))


def drop_translations(wheel: Path) -> None:
    """Rewrites the wheel without the folders `locale/XX` but for English, and without their lines in its RECORD."""
    slim = wheel.with_suffix(".slim")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as kept:
        for item in whole.infolist():
            if _TRANSLATION.search(item.filename):
                continue
            data = whole.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                lines = data.decode().splitlines(keepends=True)
                data = "".join(line for line in lines if not _TRANSLATION.search(line)).encode()
            kept.writestr(item, data, zipfile.ZIP_DEFLATED, 1)
    slim.replace(wheel)


async def _version(pip: list[str]) -> tuple[int, ...]:
    code, out, _ = await _output(*pip, "--version")
    words = out.split()
    if code or len(words) < 2:
        return (0,)
    return tuple(int(part) for part in words[1].split(".")[:2] if part.isdigit())


async def _run(*argv: str, remedy: str) -> None:
    code, out, err = await _output(*argv)
    if code:
        raise HostError(
            f"`{' '.join(argv[:4])} …` failed with exit code {code}",
            detail="\n".join((out + err).splitlines()[-12:]),
            remedy=remedy,
        )


async def _output(*argv: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *argv,
        env={**os.environ, "PIP_NO_INPUT": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")
