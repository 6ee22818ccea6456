"""What master, zygote and workers say: one line on standard error for each event, `TIME [PID] LEVEL TEXT`.

What lives here: the form of a line, and the file behind descriptor 2 when it is one of ours. All three processes.
"""

from __future__ import annotations

import os
import sys
import time

LEVELS = ("debug", "info", "warning", "error", "critical")


class Voice:
    """Lines of one process. A full disk loses lines and stops nothing."""

    def __init__(self, level: str = "info") -> None:
        self._least = LEVELS.index(level) if level in LEVELS else 1

    def debug(self, text: str) -> None:
        self._say(0, text)

    def info(self, text: str) -> None:
        self._say(1, text)

    def warning(self, text: str) -> None:
        self._say(2, text)

    def error(self, text: str) -> None:
        self._say(3, text)

    def _say(self, level: int, text: str) -> None:
        if level < self._least:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + time.strftime("%z", time.localtime(now))
        lines = text.rstrip("\n").replace("\n", "\n    ")
        data = f"{stamp} [{os.getpid()}] {LEVELS[level]} {lines}\n".encode("utf-8", "backslashreplace")
        try:
            os.write(2, data)
        except OSError:
            pass


def open_error_log(path: str) -> None:
    """Makes `path` standard error, from its end on; "" and "-": leaves that alone. Also to open it anew after something else
    has rotated it. Raises OSError, and standard error is what it was."""
    if path in ("", "-"):
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        sys.stderr.flush()
        os.dup2(fd, 2, inheritable=True)
    finally:
        os.close(fd)
