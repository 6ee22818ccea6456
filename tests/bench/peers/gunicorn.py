"""gunicorn: HUP, with its threaded workers, which keep connections alive, and with its default ones."""

from __future__ import annotations

import os
import signal
import time

from sandbox import Sandbox

from peers import program, said_version
from peers.apps import write_app

GTHREAD = ("-k", "gthread", "--threads", "4", "-w", "2")
SYNC = ("-k", "sync", "-w", "2")


class Gunicorn:
    program = "gunicorn"

    def __init__(self, worker_class: str, options: tuple[str, ...]) -> None:
        self.name = f"gunicorn {worker_class} HUP"
        self._options = options

    def missing(self) -> str:
        return "" if program("gunicorn") else "gunicorn is not installed (pip install gunicorn)"

    def version(self) -> str:
        return said_version(program("gunicorn"))

    def launch(self, box: Sandbox, port: int) -> None:
        write_app(box.folder / "app", 0)
        where = ["-b", f"127.0.0.1:{port}", "-p", str(box.folder / "gunicorn.pid")]
        box.launch("gunicorn", [program("gunicorn"), *self._options, *where, "app:app"], box.folder / "app")

    def handover(self, box: Sandbox, version: int) -> float:
        write_app(box.folder / "app", version)
        pid = int((box.folder / "gunicorn.pid").read_text())
        began = time.monotonic()
        os.kill(pid, signal.SIGHUP)
        return began
