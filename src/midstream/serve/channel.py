"""Messages between master, zygote and workers: one JSON object a packet, descriptors beside it.

What lives here: the packets (SOCK_SEQPACKET) and the version of what they say. What must not: what a message means. All
three processes. Nothing here blocks: what the peer does not take yet waits in the channel and `flush` sends it.

The first message of each side says `{"hello": VERSION}`. N and N - 1 understand each other: a side that is newer by one
leaves out what the other cannot know; unknown keys and unknown kinds of messages are passed over.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from midstream.linux import fds as descriptors

VERSION = 1
PACKET_MAX_BYTES = 192 * 1024  # below the kernel's default for one packet (net.core.wmem_default, 212,992)
_TEXT_MAX = 16 * 1024
_WAITING_MAX = 1000


def understands(version: object) -> bool:
    """Whether we and a peer of that version can talk."""
    return isinstance(version, int) and abs(version - VERSION) <= 1


@dataclass(frozen=True, slots=True)
class Message:
    """kind: what it says; body: the rest. fds: descriptors that came with it, ours to close."""

    kind: str
    body: dict[str, Any] = field(default_factory=dict)
    fds: tuple[int, ...] = ()

    def text(self, name: str, default: str = "") -> str:
        value = self.body.get(name, default)
        return value if isinstance(value, str) else default

    def number(self, name: str, default: int = 0) -> int:
        value = self.body.get(name, default)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def seconds(self, name: str, default: float) -> float:
        value = self.body.get(name, default)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default

    def numbers(self, name: str) -> list[int]:
        value = self.body.get(name)
        return [item for item in value if isinstance(item, int)] if isinstance(value, list) else []


def pair() -> tuple[Channel, socket.socket]:
    """Our end as a channel, and the other end, close-on-exec, for a child."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), theirs


class Channel:
    """One end. `ended`: the peer has closed, or is gone; nothing more will come."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.ended = False
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._buffer = bytearray(PACKET_MAX_BYTES)

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def has_waiting(self) -> bool:
        """Whether `flush` has something to do once the socket is writable."""
        return bool(self._waiting)

    def send(self, kind: str, fds: Sequence[int] = (), **body: Any) -> None:
        """Sends at once, or later by `flush`; in order. To a peer that is gone: nothing happens, `receive` will tell.
        fds must stay open until they are sent. Texts are cut at 16 kB."""
        if self.ended:
            return
        cut = {name: value[-_TEXT_MAX:] if isinstance(value, str) else value for name, value in body.items()}
        self._waiting.append((json.dumps({kind: cut}).encode(), tuple(fds)))
        if len(self._waiting) > _WAITING_MAX:  # a peer that has not read for that long is as good as gone
            self.ended = True
            self._waiting.clear()
            return
        self.flush()

    def flush(self) -> None:
        while self._waiting and not self.ended:
            data, fds = self._waiting[0]
            try:
                if not descriptors.send(self.sock, data, fds):
                    return
            except OSError:
                self._waiting.clear()  # what it sent before it went can still be read
                return
            self._waiting.popleft()

    def receive(self) -> list[Message]:
        """All that has come. At the end of the channel `ended` is set."""
        found: list[Message] = []
        while not self.ended:
            try:
                packet = descriptors.receive(self.sock, self._buffer)
            except OSError:
                self.ended = True
                break
            if packet is None:
                break
            if not packet.data and not packet.fds:
                self.ended = True
                break
            message = _read(packet.data, packet.fds)
            if message is None or packet.truncated:
                descriptors.close_all(packet.fds)
            else:
                found.append(message)
        return found

    def close(self) -> None:
        self.ended = True
        self.sock.close()


def _read(data: bytes, fds: Sequence[int]) -> Message | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or len(value) != 1:
        return None
    kind, body = next(iter(value.items()))
    return Message(kind, body, tuple(fds)) if isinstance(body, dict) else None
