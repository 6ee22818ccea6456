"""`midstream serve` by itself: a release folder, the symlink `current`, and USR2. Under the agent: `midstream_server.py`."""

from __future__ import annotations

import importlib.util
import os
import signal
import time

from sandbox import Sandbox

from peers.apps import write_app
from peers.midstream import COMMAND, Midstream, environment

# The app says itself which version it is.
OPTIONS = ("serve", "app:app", "--workers", "2", "--release-header", "")


def missing_serve() -> str:
    """Why this Python cannot serve, or ""."""
    found = importlib.util.find_spec("uvloop") and importlib.util.find_spec("httptools")
    return "" if found else "uvloop or httptools is not installed (pip install 'midstream[serve]')"


class MidstreamServe:
    name = "midstream serve"
    program = "midstream"

    def __init__(self) -> None:
        self._pid = 0

    def missing(self) -> str:
        return missing_serve()

    def version(self) -> str:
        return Midstream().version()

    def launch(self, box: Sandbox, port: int) -> None:
        self._release(box, 0)
        argv = [*COMMAND, *OPTIONS, "--bind", f"127.0.0.1:{port}", "--chdir", str(box.folder / "current")]
        self._pid = box.launch("serve", argv, environment=environment(box)).pid

    def handover(self, box: Sandbox, version: int) -> float:
        self._release(box, version)
        began = time.monotonic()
        os.kill(self._pid, signal.SIGUSR2)
        return began

    def _release(self, box: Sandbox, version: int) -> None:
        folder = box.folder / "releases" / str(version)
        folder.parent.mkdir(exist_ok=True)
        write_app(folder, version)
        beside = box.folder / "next"
        beside.symlink_to(folder)
        beside.rename(box.folder / "current")
