"""What of an answer the socket does not take at once: kept in memory, then in a file, sent when the peer reads on.

What must not live here: HTTP. Runs in the workers; `Tail` is filled by whoever runs the app and emptied by the event
loop, never by both at a time.
"""

from __future__ import annotations

import asyncio
import os
import select
import tempfile
from collections import deque
from collections.abc import Callable
from typing import IO

PIECE_BYTES = 65536  # read from a file at a time where sendfile cannot be used
TURN_BYTES = 1 << 20  # sent to one connection before others have their turn


class ClientGone(ConnectionError):
    """The client has closed, or reads nothing. Not the app's fault."""


class FilePart:
    """A stretch of a file. Owns the descriptor."""

    __slots__ = ("at", "end", "fd", "owner")

    def __init__(self, fd: int, at: int, end: int, owner: IO[bytes] | None = None) -> None:
        self.fd = fd
        self.at = at
        self.end = end
        self.owner = owner  # of the descriptor, where it is not ours alone

    def close(self) -> None:
        if self.owner is not None:
            self.owner.close()
        elif self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


class Tail:
    """memory_bytes: beyond it what is added goes to a file."""

    __slots__ = ("_in_memory", "_memory_bytes", "_parts", "_spool")

    def __init__(self, memory_bytes: float) -> None:
        self._memory_bytes = memory_bytes
        self._in_memory = 0
        self._parts: deque[memoryview | FilePart] = deque()
        self._spool: FilePart | None = None

    def add(self, data: bytes | memoryview) -> None:
        """Raises OSError when the disk is full."""
        if self._spool is None:
            if self._in_memory + len(data) <= self._memory_bytes:
                self._in_memory += len(data)
                self._parts.append(memoryview(data))
                return
            file = tempfile.TemporaryFile(buffering=0)
            self._spool = FilePart(file.fileno(), 0, 0, file)
            self._parts.append(self._spool)
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._spool.fd, rest, self._spool.end)
            self._spool.end += written
            rest = rest[written:]

    def add_file(self, fd: int, at: int, end: int) -> None:
        """Takes over the descriptor."""
        self._parts.append(FilePart(fd, at, end))

    @property
    def empty(self) -> bool:
        return not self._parts

    def send(self, fd: int) -> int:
        """As much as the socket takes, TURN_BYTES at most; how much that was. Raises OSError, ClientGone when a file is
        shorter than it was."""
        sent = 0
        while self._parts and sent < TURN_BYTES:
            part = self._parts[0]
            try:
                count = self._send_file(fd, part) if isinstance(part, FilePart) else os.write(fd, part)
            except (BlockingIOError, InterruptedError):
                break
            sent += count
            self._sent(part, count)
        return sent

    def _send_file(self, fd: int, part: FilePart) -> int:
        count = os.sendfile(fd, part.fd, part.at, min(part.end - part.at, TURN_BYTES))
        if not count:
            raise ClientGone("the file became shorter while it was sent")
        return count

    def take(self) -> bytes:
        """The next piece, for a transport that encrypts. b"": there is none. Raises OSError."""
        if not self._parts:
            return b""
        part = self._parts[0]
        if isinstance(part, FilePart):
            piece = os.pread(part.fd, min(PIECE_BYTES, part.end - part.at), part.at)
            if not piece:
                raise ClientGone("the file became shorter while it was sent")
        else:
            piece = bytes(part[:PIECE_BYTES])
        self._sent(part, len(piece))
        return piece

    def _sent(self, part: memoryview | FilePart, count: int) -> None:
        if isinstance(part, FilePart):
            part.at += count
            if part.at < part.end:
                return
            part.close()
            if part is self._spool:
                self._spool = None
        else:
            self._in_memory -= count
            if count < len(part):
                self._parts[0] = part[count:]
                return
        self._parts.popleft()

    def close(self) -> None:
        for part in self._parts:
            if isinstance(part, FilePart):
                part.close()
        self._parts.clear()
        self._spool = None


class Writables:
    """Tells when sockets take more. An epoll of its own, watched by the loop: uvloop refuses add_writer for the
    descriptors of its transports, and has no sendfile."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._acts: dict[int, Callable[[], None]] = {}
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def watch(self, fd: int, act: Callable[[], None]) -> None:
        """act: whenever fd takes more, until unwatch()."""
        if fd not in self._acts:
            self._epoll.register(fd, select.EPOLLOUT)
        self._acts[fd] = act

    def unwatch(self, fd: int) -> None:
        if self._acts.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ready(self) -> None:
        for fd, _ in self._epoll.poll(0, 64):
            act = self._acts.get(fd)
            if act is not None:
                act()
