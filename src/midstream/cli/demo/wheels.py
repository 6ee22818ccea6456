"""What the Django project needs from the package index: fetched once, into a folder that each build installs from.

Runs pip. Finds one that can install into a virtualenv from outside (pip 22.3), or makes one.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

from midstream.errors import HostError

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
    """Downloads wheels of `requirements` and all they need; returns their file names. Raises HostError."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / "requirements.txt"
    wanted.write_text(requirements, encoding="ascii")
    await _run(
        *(*pip, "download", "-q", "--disable-pip-version-check", "--only-binary", ":all:", "-d", str(folder)),
        *("-r", str(wanted)),
        remedy="the demo needs the package index (PyPI) once; `midstream demo --quick` needs nothing",
    )
    return sorted(path.name for path in folder.glob("*.whl"))


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
