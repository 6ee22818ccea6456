"""Pipes: reading what is in one without taking it out (tee(2)).

Used by the agent for the output of services. Nothing here blocks.
"""

from __future__ import annotations

import ctypes
import errno
import os

SPLICE_F_NONBLOCK = 2
_PEEK_MAX_BYTES = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
_libc.tee.restype = ctypes.c_ssize_t


def tee(source: int, target: int, size_bytes: int = _PEEK_MAX_BYTES) -> int:
    """Duplicate up to `size_bytes` of the pipe `source` into the pipe `target`, consuming nothing. Returns how many;
    0 when every writer is gone. Raises BlockingIOError when there is nothing to read or no room, OSError otherwise."""
    while True:
        done: int = _libc.tee(source, target, size_bytes, SPLICE_F_NONBLOCK)
        if done >= 0:
            return done
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


class PipePeek:
    """A scratch pipe through which the content of other pipes is read and left where it is. Owns two descriptors."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def peek(self, pipe: int) -> bytes:
        """The bytes at the front of `pipe`, as far as they fit the scratch pipe (64 KiB); b"" when there are none."""
        try:
            size_bytes = tee(pipe, self._write)
        except BlockingIOError:
            return b""
        data = b""
        while len(data) < size_bytes:
            data += os.read(self._read, size_bytes - len(data))
        return data

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


def reopen_pipe(pipe: int) -> int:
    """The same pipe as a new open file: read-write, so that no end of file comes when the last writer goes, and
    non-blocking, which must not be set on a descriptor that a service shares."""
    return os.open(f"/proc/self/fd/{pipe}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
