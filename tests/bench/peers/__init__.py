"""The programs measured, ours among them; each driver sets one up in a sandbox as its manual says, and no better."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sandbox import Sandbox
from starts import Service


class Supervisor(Protocol):
    """Keeps services alive. `name` is that of the subject, `program` what has the version. `prepare` writes the
    configuration (not timed), `launch` starts the program (timed)."""

    name: str
    program: str

    def missing(self) -> str:
        """Why it cannot be measured here, or ""."""

    def version(self) -> str: ...

    def prepare(self, box: Sandbox, services: Sequence[Service]) -> None: ...

    def launch(self, box: Sandbox) -> None: ...


class Server(Protocol):
    """Serves the small app of `app.py` or `config.ru` and replaces its code without stopping."""

    name: str
    program: str

    def missing(self) -> str: ...

    def version(self) -> str: ...

    def launch(self, box: Sandbox, port: int) -> None:
        """Start it with version 0 of the code."""

    def handover(self, box: Sandbox, version: int) -> float:
        """Give it another version of the code; when, by CLOCK_MONOTONIC, that was asked for."""


def program(name: str) -> str:
    """Path of a program: beside this Python first (a virtualenv), then on PATH; "" if there is none."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or ""


def first_line(argv: Sequence[str]) -> str:
    """What a program prints first."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    return ((done.stdout or done.stderr).strip().splitlines() or [""])[0]


def said_version(path: str) -> str:
    """The version that a program tells with --version, the words around it left out."""
    words = first_line([path, "--version"]).split()
    return words[-1].strip("v()") if words else ""


def debian_version(package: str) -> str:
    """The version that dpkg has of a package whose program does not tell."""
    if not shutil.which("dpkg-query"):
        return ""
    return first_line(["dpkg-query", "-W", "-f", "${Version}", package])
