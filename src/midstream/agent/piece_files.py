"""A file that arrives in pieces, at their offsets, in any order and more than once. Blocks; runs in a thread of the agent."""

from __future__ import annotations

import os


def write_piece(path: str, data: bytes, offset: int, last: bool) -> None:
    """last: the file ends with it. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        write_all(fd, data, offset)
        if last:
            os.ftruncate(fd, offset + len(data))
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """pwrite(2) may take less than it is given."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
