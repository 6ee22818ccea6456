"""The socket: who may come in, packets in and out. What is asked is answered in `operations`.

Nothing here blocks: a reply that cannot be sent at once ends the connection, a `changed` that cannot is remembered.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from midstream.core.messages import FDS_MAX, MESSAGE_MAX_BYTES, Refusal
from midstream.keeper.loop import READABLE, Loop, print_traceback
from midstream.keeper.refusal import Refused
from midstream.linux import fds
from midstream.linux.accepting import REST_S, accept

_PEER = struct.Struct("=iII")
_CONNECTIONS_MAX = 16
_WHAT_MAX = 4000
_BUFFER_BYTES = 4 * MESSAGE_MAX_BYTES


class Connection:
    """One peer. `epoch` 0: it has not said hello."""

    __slots__ = ("epoch", "pid", "sock", "told", "uid", "unsent_seq")

    def __init__(self, sock: socket.socket, pid: int, uid: int) -> None:
        self.sock = sock
        self.pid = pid
        self.uid = uid
        self.epoch = 0
        self.told = False  # a `changed` was sent and nothing pulled since
        self.unsent_seq = 0  # of a `changed` that found the socket full


Answer = Callable[[Connection, dict[str, Any], list[int]], tuple[Any, Sequence[int]] | None]


class Door:
    """Listens on `path`. `answer` returns (what, fds) for a request, raises Refused, or None: it will answer later."""

    def __init__(
        self, loop: Loop, sock: socket.socket, answer: Answer, on_closed: Callable[[Connection], None]
    ) -> None:
        self._loop = loop
        self.sock = sock
        self._answer = answer
        self._on_closed = on_closed
        self._buffer = bytearray(MESSAGE_MAX_BYTES)
        self._spare_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.connections: set[Connection] = set()
        loop.add(sock.fileno(), self._accept)

    def _accept(self, _events: int) -> None:
        sock = accept(self.sock, self._turn_away)
        if sock is None:
            return
        sock.setblocking(False)
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid, uid, _ = _PEER.unpack(credentials)
        if uid not in (0, os.geteuid()) or len(self.connections) >= _CONNECTIONS_MAX:
            sock.close()
            return
        self.adopt(Connection(sock, pid, uid))

    def _turn_away(self) -> None:
        """No descriptor is left: a peer that stayed in the queue would wake the loop for ever. Where the spare one is of no
        use either (memory is short, or somebody took it at once), it has to wait there."""
        spare_fd, self._spare_fd = self._spare_fd, -1
        if spare_fd >= 0:
            os.close(spare_fd)
            turned_away = accept(self.sock, self._rest)
            if turned_away is not None:
                turned_away.close()
        else:
            self._rest()
        with contextlib.suppress(OSError):
            self._spare_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _rest(self) -> None:
        self._loop.remove(self.sock.fileno())
        self._loop.after(REST_S, lambda: self._loop.add(self.sock.fileno(), self._accept))

    def adopt(self, connection: Connection) -> None:
        """Serve a connection, also one that the former image of this process had accepted."""
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self.connections.add(connection)
        self._loop.add(connection.sock.fileno(), lambda events: self._serve(connection, events))

    def _serve(self, connection: Connection, events: int) -> None:
        if events & select.EPOLLOUT and connection.unsent_seq:
            self._loop.add(connection.sock.fileno(), lambda later: self._serve(connection, later))
            self._tell(connection, connection.unsent_seq)
        if not events & (READABLE | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            packet = fds.receive(connection.sock, self._buffer)
        except OSError:
            self.close(connection)
            return
        if packet is None:
            return
        if not packet.data:  # the end of the connection; an empty packet is no request either
            fds.close_all(packet.fds)
            self.close(connection)
            return
        try:
            self._request(connection, packet)
        finally:
            fds.close_all(packet.fds)  # those that an operation kept were taken out of the list

    def _request(self, connection: Connection, packet: fds.Packet) -> None:
        number: Any = None
        try:
            message = _decoded(packet)
            number = message.get("id")
            if not isinstance(number, int):
                number = None
                raise Refused(Refusal.BAD_REQUEST, "a request has a whole number as id")
            answer = self._answer(connection, message, packet.fds)
        except Refused as error:
            refusal = {"code": error.code.value, "what": error.what[:_WHAT_MAX], **error.extra}
            self.reply(connection, {"id": number, "error": refusal})
            return
        except Exception as error:
            print_traceback(error)
            bug = {"code": Refusal.BUG.value, "what": "the keeper failed at this request; its log says where"}
            self.reply(connection, {"id": number, "error": bug})
            return
        if answer is not None:
            self.reply(connection, {"id": number, "ok": answer[0]}, answer[1])

    def reply(self, connection: Connection, message: dict[str, Any], passed: Sequence[int] = ()) -> None:
        """Send now, or give the connection up: the agent then attaches again and pulls."""
        data = json.dumps(message, separators=(",", ":")).encode()
        try:
            if len(data) <= MESSAGE_MAX_BYTES and fds.send(connection.sock, data, passed):
                return
        except OSError:
            pass
        self.close(connection)

    def tell_changed(self, connection: Connection, seq: int) -> None:
        """Say `changed` once; not again before the peer has pulled."""
        if not connection.told:
            connection.told = True
            self._tell(connection, seq)

    def tell_stopping(self, connection: Connection) -> None:
        """Say that the ordered stop has begun: no next keeper is wanted. Best effort."""
        try:
            fds.send(connection.sock, b'{"stopping":true}')
        except OSError:
            self.close(connection)

    def _tell(self, connection: Connection, seq: int) -> None:
        connection.unsent_seq = 0
        try:
            if fds.send(connection.sock, json.dumps({"changed": seq}).encode()):
                return
        except OSError:
            self.close(connection)
            return
        connection.unsent_seq = seq
        self._loop.add(
            connection.sock.fileno(),
            lambda events: self._serve(connection, events),
            READABLE | select.EPOLLOUT,
        )

    def close(self, connection: Connection) -> None:
        if connection in self.connections:
            self.connections.discard(connection)
            self._loop.remove(connection.sock.fileno())
            connection.sock.close()
            self._on_closed(connection)


def _decoded(packet: fds.Packet) -> dict[str, Any]:
    if packet.truncated:
        raise Refused(Refusal.BAD_REQUEST, f"a message has at most {MESSAGE_MAX_BYTES} bytes")
    if len(packet.fds) > FDS_MAX:
        raise Refused(Refusal.BAD_REQUEST, f"a message has at most {FDS_MAX} descriptors")
    try:
        message = json.loads(packet.data)
    except (ValueError, RecursionError):
        raise Refused(Refusal.BAD_REQUEST, "not JSON") from None
    if not isinstance(message, dict):
        raise Refused(Refusal.BAD_REQUEST, "not a JSON object")
    return message


def bind_door(path: str) -> socket.socket:
    """The listening SOCK_SEQPACKET socket, 0600. The lock says that nobody else serves this path. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
        sock.listen(16)
    except OSError:
        sock.close()
        raise
    return sock
