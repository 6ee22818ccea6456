"""Pipes: reading what is in one without taking it out (tee(2)), and asking how full it is.

Used by the agent for the output of services. Nothing here blocks.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
import termios

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


def unread_bytes(pipe: int) -> int:
    """How many bytes wait in `pipe` (FIONREAD)."""
    size: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"))[0]
    return size


def is_full(pipe: int) -> bool:
    """Whether a writer of `pipe` would block now. `pipe` must be open for writing as well. A pipe is full by the number
    of its pages, not by its bytes."""
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    return not poll.poll(0)


def reopen_pipe(pipe: int) -> int:
    """The same pipe as a new open file: read-write, so that no end of file comes when the last writer goes, and
    non-blocking, which must not be set on a descriptor that a service shares."""
    return os.open(f"/proc/self/fd/{pipe}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def wakes_on_each_write() -> bool:
    """Whether an edge-triggered epoll wakes for a write to a pipe that was not empty. Linux 5.5 to 5.13 did not always
    (fixed by 3a34b13a88ca); there, nothing may be left in a pipe to wait for the rest of its line."""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    epoll = select.epoll()
    try:
        epoll.register(read, select.EPOLLIN | select.EPOLLET)
        os.write(write, b"1")
        epoll.poll(0)
        os.write(write, b"2")
        return bool(epoll.poll(0))
    finally:
        epoll.close()
        os.close(read)
        os.close(write)
