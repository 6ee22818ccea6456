"""A plain connection's way in: read when the kernel says so, and closed.

What must not live here: HTTP, writing (`http1.py` and `output.py` do that on the descriptor). Runs in the workers, in the
thread of the event loop.

A transport of uvloop costs more than a short request does, to make and to end, and whoever connects for one request pays
that each time. So plain connections have none: their descriptors are in an epoll of ours, which the loop watches. TLS has
transports.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from midstream.serve.body import Body
    from midstream.serve.http1 import Connection

_READ_BYTES = 65536
_RESET = b"\x01\0\0\0\0\0\0\0"  # struct linger: on, 0 s
_EVENTS = 64  # looked at before the loop goes on with other things
_TOGETHER = 16  # and before threads are woken for what was read


class Readable(Protocol):
    def read(self) -> None:
        """When there is something to read; ends the watching where there will be nothing more."""


class Threads(Protocol):
    """Who works off what comes in."""

    def gather(self) -> None: ...

    def ring(self) -> None: ...


class Readables:
    """The descriptors that are read from, level-triggered. threads: to be woken once for all that is read in a turn."""

    def __init__(self, threads: Threads | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self._threads = threads
        self._epoll = select.epoll()
        self._wires: dict[int, Readable] = {}
        self.loop.add_reader(self._epoll.fileno(), self._ready)

    def watch(self, fd: int, wire: Readable) -> None:
        self._wires[fd] = wire
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Before fd is closed: where a fork has a copy of it, the kernel would tell of it for ever."""
        del self._wires[fd]
        self._epoll.unregister(fd)

    def close(self) -> None:
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ready(self) -> None:
        threads = self._threads
        events = self._epoll.poll(0, _EVENTS if threads is None else _TOGETHER)
        if threads is None or len(events) < 2:
            self._read(events)
            return
        threads.gather()
        try:
            self._read(events)
        finally:
            threads.ring()

    def _read(self, events: list[tuple[int, int]]) -> None:
        for fd, _ in events:
            wire = self._wires.get(fd)  # what came before it in this list may have closed it
            if wire is not None:
                wire.read()


class Wire:
    """What a transport is to an asyncio.Protocol, as far as `Connection` needs one: it never writes. Owns the
    descriptor until `take` gives it away."""

    __slots__ = ("_connection", "_fd", "_readables", "closing", "watched")

    def __init__(self, readables: Readables, connection: Connection, fd: int) -> None:
        self._readables = readables
        self._connection = connection
        self._fd = fd
        self.watched = False
        self.closing = False

    def read(self) -> None:
        """What there is, if there is anything."""
        body = self._connection.body
        if body is not None and body.room is not None:
            self._read_into(body)
            return
        try:
            data = os.read(self._fd, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._close(error)
            return
        if data:
            self._connection.data_received(data)
        else:
            self._ended()

    def _read_into(self, body: Body) -> None:
        """A body whose size is known, to its place: without a piece for each read, and without joining them. No reference
        to that place may be left when the app has the body: it could not be closed."""
        assert body.room is not None
        try:
            count = os.readv(self._fd, (body.room,))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._close(error)
            return
        if count:
            self._connection.body_read(count)
        else:
            self._ended()

    def _ended(self) -> None:
        self.pause_reading()  # there is nothing more to wait for, and the kernel would tell it again and again
        if not self._connection.eof_received():
            self.close()

    def resume_reading(self) -> None:
        if not self.watched and not self.closing:
            self.watched = True
            self._readables.watch(self._fd, self)

    def pause_reading(self) -> None:
        if self.watched:
            self.watched = False
            self._readables.unwatch(self._fd)

    def close(self) -> None:
        """In the loop's next turn: the caller may be in the middle of something."""
        self._close(None)

    abort = close

    def _close(self, error: OSError | None) -> None:
        if not self.closing:
            self.closing = True
            self.pause_reading()
            self._readables.loop.call_soon(self._lost, error)

    def _lost(self, error: OSError | None) -> None:
        with self._connection.lock:
            fd = self.take()
        self._connection.connection_lost(error)
        if fd >= 0:
            os.close(fd)

    def take(self) -> int:
        """The descriptor, to be closed by the caller, who has the connection's lock; -1: it was taken already."""
        fd, self._fd = self._fd, -1
        return fd


def shut(fd: int) -> None:
    """Says that nothing more comes. Raises OSError."""
    with _borrowed(fd) as sock:
        sock.shutdown(socket.SHUT_WR)


def reset_at_close(fd: int) -> None:
    """Closing it will be a reset: the peer must not take what it has for a whole answer. Raises OSError."""
    with _borrowed(fd) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def has_sent(fd: int) -> bool:
    """Whether something waits to be read: bytes, the end, or an error."""
    with _borrowed(fd) as sock:
        try:
            sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """As a socket object. These calls do not care for the family."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
    try:
        yield sock
    finally:
        sock.detach()
