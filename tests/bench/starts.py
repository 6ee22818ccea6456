"""The service that supervisors are measured with, and how it says that it has started.

It is a shell that writes `PID NAME` into a FIFO and becomes `sleep`: the same work under each supervisor, and the
moment of its start is seen without looking for it.
"""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    script: Path  # executable, no arguments


@dataclass(slots=True)
class Starts:
    """The FIFO and what came out of it. Times are CLOCK_MONOTONIC seconds, taken on arrival."""

    folder: Path
    pids: dict[str, int] = field(default_factory=dict)
    fd: int = -1
    _rest: bytes = b""

    def open(self) -> None:
        os.mkfifo(self.folder / "starts")
        self.fd = os.open(self.folder / "starts", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.fd)

    def services(self, count: int) -> list[Service]:
        """`count` services, their scripts written."""
        scripts = self.folder / "scripts"
        scripts.mkdir()
        return [self._service(scripts, f"s{index}") for index in range(count)]

    def _service(self, scripts: Path, name: str) -> Service:
        path = scripts / name
        path.write_text(f"#!/bin/sh\necho $$ {name} > {self.folder}/starts\nexec sleep 1000000\n")
        path.chmod(0o755)
        return Service(name, path)

    def wait(self, count: int, timeout_s: float) -> float:
        """Until `count` more starts have come; the time of the last. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        seen = 0
        now = time.monotonic()
        while seen < count:
            if not poll.poll(max(0.0, deadline - now) * 1000):
                raise TimeoutError(f"{seen} of {count} services started within {timeout_s:g} s")
            data = self._rest + os.read(self.fd, 65536)
            now = time.monotonic()
            *lines, self._rest = data.split(b"\n")
            for line in lines:
                pid, name = line.split()
                self.pids[name.decode()] = int(pid)
                seen += 1
        return now

    def forget(self) -> None:
        """Drop what has come so far: it belongs to the preparation."""
        self.pids.clear()
        self._rest = b""
        try:
            while os.read(self.fd, 65536):
                pass
        except BlockingIOError:
            pass
