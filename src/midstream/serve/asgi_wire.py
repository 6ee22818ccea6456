"""A transport in Python for connections that are used once: to make and end one of uvloop's costs as much as a request.

What lives here: reading, writing and closing of one plain connection, as asyncio.Transport has it; and `closes`, which
tells from a head whether it is one. What must not: HTTP beyond that. Kept-alive connections are better off with
uvloop's, which reads and writes in C. Runs in a worker, on its event loop.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from midstream.serve.output import TURN_BYTES
from midstream.serve.wire import shut

if TYPE_CHECKING:
    from midstream.serve.output import Writables
    from midstream.serve.wire import Readables

PEEKED_BYTES = 8192  # of what has come, to judge it by
READ_BYTES = 65536
HIGH_BYTES = 65536  # unsent: the app is to wait
LOW_BYTES = 16384  # and may go on


def closes(data: bytes) -> bool:
    """Whether it begins with a whole head behind which the client wants no further answer. One that says so in another
    way than nearly all do is not found: that costs time only."""
    end = data.find(b"\r\n\r\n") + 2
    if end < 2:
        return False
    head = data[:end].lower()
    if b"\r\nupgrade:" in head:
        return False
    return b"\r\nconnection: close\r\n" in head or (
        b"\r\nconnection:" not in head and head.find(b" http/1.0\r\n") + 9 == head.find(b"\r\n")
    )


def bare(fd: int) -> socket.SocketType:
    """For calls that ask for no family; to be detached."""
    return socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)


def peek(sock: socket.SocketType) -> bytes | None:
    """What has come, without taking it; b"": the end; None: nothing yet. Raises OSError."""
    try:
        return sock.recv(PEEKED_BYTES, socket.MSG_PEEK)
    except BlockingIOError:
        return None


class PlainTransport:
    """Owns the descriptor, which is non-blocking. `begin` or `wait` tells the protocol of it."""

    __slots__ = (
        "_at_end",
        "_closing",
        "_decide",
        "_fd",
        "_high",
        "_parts",
        "_paused",
        "_protocol",
        "_readables",
        "_shut",
        "_unsent",
        "_watched",
        "_writables",
    )

    def __init__(self, fd: int, protocol: Any, readables: Readables, writables: Writables) -> None:
        self._fd = fd
        self._protocol = protocol
        self._readables = readables
        self._writables = writables
        self._decide: Callable[[PlainTransport], bool] | None = None
        self._parts: deque[memoryview] = deque()
        self._unsent = 0  # bytes of them
        self._high = False  # the protocol was told to wait
        self._at_end = False  # nothing more comes
        self._paused = False
        self._watched = False
        self._closing = False
        self._shut = False  # our end, or it will be when all is sent

    def begin(self) -> None:
        """The first bytes are there. For more it listens from the next turn of the loop on: most apps have answered by
        then, and it is closed."""
        self._protocol.connection_made(self)
        self.read()
        if not self._closing:
            self._readables.loop.call_soon(self._watch)

    def wait(self, decide: Callable[[PlainTransport], bool]) -> None:
        """For the first bytes. decide: called when they are there; True: the connection was given to another transport."""
        self._decide = decide
        self._protocol.connection_made(self)
        self._watch()

    def peek(self) -> bytes | None:
        """See `peek`."""
        sock = bare(self._fd)
        try:
            return peek(sock)
        finally:
            sock.detach()

    def give(self) -> tuple[int, Any]:
        """The descriptor and the protocol, for another transport. This one does nothing any more."""
        self._unwatch()
        self._closing = True
        fd, self._fd = self._fd, -1
        protocol, self._protocol = self._protocol, None
        return fd, protocol

    # ---- as asyncio.Transport has it

    def get_extra_info(self, _: str, default: Any = None) -> Any:
        return default

    def fileno(self) -> int:
        return self._fd

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._paused = True
        self._unwatch()

    def resume_reading(self) -> None:
        self._paused = False
        self._watch()

    def get_write_buffer_size(self) -> int:
        return self._unsent

    def write(self, data: bytes) -> None:
        if self._closing or self._shut:
            return
        if self._parts:
            self._keep(data)
            return
        try:
            sent = os.write(self._fd, data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._end(error)
            return
        if sent < len(data):
            self._keep(data[sent:])

    def writelines(self, parts: list[bytes]) -> None:
        if self._closing or self._shut:
            return
        sent = 0
        if not self._parts:
            try:
                sent = os.writev(self._fd, parts)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self._end(error)
                return
        for part in parts:
            if sent < len(part):
                self._keep(memoryview(part)[sent:])
            sent = max(0, sent - len(part))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """When all is sent."""
        self._shut = True
        if not self._unsent:
            self._shut_now()

    def close(self) -> None:
        """When all is sent, in a later turn of the loop."""
        if self._closing:
            return
        if self._unsent:
            self._closing = True
            self._unwatch()
        else:
            self._end(None)

    def abort(self) -> None:
        self._end(None)

    # ---- what it has beyond that

    def close_if_silent(self) -> bool:
        """At once, if all is sent and nothing has come: closing would answer what lies unread by a reset, which can destroy
        what is on its way (RFC 9112 9.6). Not to be called from within connection_made() or data_received()."""
        if self._unsent or self._closing:
            return False
        if not self._at_end:
            try:
                if os.read(self._fd, READ_BYTES):
                    return False
            except OSError:
                pass  # nothing, as nearly always; or an error, with which it is closed
        self._closing = True
        self._unwatch()
        self._lost(None)
        return True

    def read(self) -> None:
        """What there is, if there is anything."""
        decide, self._decide = self._decide, None
        if decide is not None and decide(self):
            return
        try:
            data = os.read(self._fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        if data:
            self._protocol.data_received(data)
            return
        self._at_end = True
        self._unwatch()  # the kernel would tell of it again and again
        if not self._protocol.eof_received():
            self.close()

    # ---- inside

    def _watch(self) -> None:
        if not (self._watched or self._paused or self._at_end or self._closing):
            self._watched = True
            self._readables.watch(self._fd, self)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._readables.unwatch(self._fd)

    def _keep(self, data: bytes | memoryview) -> None:
        self._parts.append(memoryview(data if isinstance(data, bytes) else bytes(data)))
        self._unsent += len(data)
        self._writables.watch(self._fd, self._send_on)
        if self._unsent > HIGH_BYTES and not self._high:
            self._high = True
            self._protocol.pause_writing()

    def _send_on(self) -> None:
        parts, sent = self._parts, 0
        try:
            while parts and sent < TURN_BYTES:
                count = os.write(self._fd, parts[0])
                sent += count
                if count < len(parts[0]):
                    parts[0] = parts[0][count:]
                else:
                    parts.popleft()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._end(error)
            return
        self._unsent -= sent
        if not parts:
            self._writables.unwatch(self._fd)
            if self._closing:
                self._readables.loop.call_soon(self._lost, None)
                return
            if self._shut:
                self._shut_now()
        if self._high and self._unsent <= LOW_BYTES:
            self._high = False
            self._protocol.resume_writing()

    def _shut_now(self) -> None:
        try:
            shut(self._fd)
        except OSError:
            pass  # the peer has closed

    def _end(self, error: OSError | None) -> None:
        """In the loop's next turn: the caller may be in the middle of something. What is unsent is not sent."""
        if self._closing and not self._unsent:
            return  # it ends already
        self._closing = True
        self._unwatch()
        if self._unsent:
            self._parts.clear()
            self._unsent = 0
            self._writables.unwatch(self._fd)
        self._readables.loop.call_soon(self._lost, error)

    def _lost(self, error: OSError | None) -> None:
        fd, self._fd = self._fd, -1
        protocol, self._protocol = self._protocol, None
        protocol.connection_lost(error)
        os.close(fd)
