"""The pid file: for other programs. The server itself reads none, and nothing depends on it. The master, standalone only."""

from __future__ import annotations

import os


def write(path: str) -> None:
    """Whole or not at all. Raises OSError."""
    beside = f"{path}.{os.getpid()}"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        try:
            os.write(fd, f"{os.getpid()}\n".encode())
        finally:
            os.close(fd)
        os.rename(beside, path)
    except OSError:
        os.unlink(beside)
        raise


def remove(path: str) -> None:
    """If it still names us."""
    try:
        with open(path, "rb") as file:
            ours = file.read(32).strip() == str(os.getpid()).encode()
        if ours:
            os.unlink(path)
    except OSError:
        pass  # gone, or not ours to remove: it is no protocol
