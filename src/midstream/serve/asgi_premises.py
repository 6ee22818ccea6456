"""What the ASGI connections of one worker share: settings, the requests in hand, the drain, the lines of every answer.

What must not live here: reading or writing of a socket, decisions about one connection (`asgi_http.py`,
`websockets.py`). Runs in a worker, on its event loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING

from uvicorn.server import ServerState

from midstream.serve.answer_fields import DATE, RELEASE, SERVER, kinds
from midstream.serve.contract import AccessLog, Answered, Identity, Seat, Traffic
from midstream.serve.hosts import host_check
from midstream.serve.proxies import Proxies
from midstream.serve.proxies import scheme as forwarded_scheme

if TYPE_CHECKING:
    from midstream.serve.asgi_answer import Exchange
    from midstream.serve.asgi_http import HttpConnection
    from midstream.serve.settings import Settings
    from midstream.serve.websockets import WebSocketConnection

TYPE, CODING = 32, 64  # kinds of fields beyond those of `answer_fields`: whether an answer is an event stream
CLIENT_GONE = 499  # as nginx logs a request whose client left before the answer began
JITTER_SHARE = (
    0.6  # of the graceful time: within it WebSockets and event streams are ended; the rest is for their goodbyes
)


@dataclass(slots=True)
class Drain:
    """A drain that has begun. CLOCK_MONOTONIC."""

    began_s: float
    graceful_s: float
    linger_s: float
    lingers_from_s: float = 0.0

    def linger_less(self, linger_s: float) -> None:
        if linger_s < self.linger_s:
            self.linger_s, self.lingers_from_s = linger_s, time.monotonic()

    def cuts_at_s(self, begun_s: float) -> float:
        """When a request that was begun then is cut: late ones have the whole time as well."""
        return max(self.began_s, begun_s) + self.graceful_s

    def lingers_until_s(self, idle_since_s: float) -> float:
        """Until when an idle connection stays open. One that fell idle within the drain could not be told to close."""
        return max(self.began_s, self.lingers_from_s, idle_since_s) + self.linger_s

    def jitter_s(self) -> float:
        """From now, at random, so that not all clients come back at the same moment."""
        return random.uniform(0.0, self.graceful_s * JITTER_SHARE)


class Premises(ServerState):
    """uvicorn's state of a server, and ours. `connections` has every open one, HTTP and WebSocket."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        seat: Seat,
        access_log: AccessLog,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.identity = identity
        self.seat = seat
        self.access_log = access_log
        self.loop = loop
        self.proxies = Proxies(settings.forwarded_allow_ips)
        self.host_allowed = host_check(settings.hosts)
        self.http: set[HttpConnection] = set()
        self.websockets: set[WebSocketConnection] = set()
        self.requests: dict[Exchange, float] = {}  # not answered, with when they began; in that order; not private ones
        self.owners: dict[asyncio.Task[None], Exchange | WebSocketConnection] = {}  # what each task of the app is for
        self.drain: Drain | None = None
        self.changed: Callable[[], None] = _nothing  # to be called when a connection or a task of the app has ended
        self.head_lines = b""  # of every answer, each with its end
        self.set_head_lines()
        self.field_kinds = {name.encode(): kind for name, kind in kinds(settings.release_header).items()}
        self.field_kinds |= {b"content-type": TYPE, b"content-encoding": CODING}

    def set_head_lines(self) -> None:
        """Writes the lines that every answer has, anew: Date has seconds. To be called once a second."""
        lines = {DATE: (b"date", formatdate(time.time(), usegmt=True).encode())}
        if self.settings.server_header:
            lines[SERVER] = (b"server", self.settings.server_header.encode("latin-1"))
        if self.settings.release_header and self.identity.release:
            name = self.settings.release_header.lower().encode("latin-1")
            lines[RELEASE] = (name, self.identity.release.encode("latin-1"))
        self._lines = lines
        self.default_headers = list(lines.values())
        self.head_lines = self.head_lines_without(0)

    def head_lines_without(self, own: int) -> bytes:
        """The same for an app that has some of its own. own: bits of `answer_fields`."""
        return b"".join(b"%b: %b\r\n" % line for kind, line in self._lines.items() if not kind & own)

    def default_headers_beside(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The same for uvicorn's classes. headers: the app's."""
        theirs = {name.lower() for name, _ in headers}
        return [line for line in self._lines.values() if line[0] not in theirs]

    def forwarded(
        self, headers: list[tuple[bytes, bytes]], client: tuple[str, int] | None, scheme: str
    ) -> tuple[tuple[str, int] | None, str]:
        """Client and scheme as the headers of a trusted peer say, or as they were."""
        hops = protos = b""
        for name, value in headers:
            if name == b"x-forwarded-for":
                hops += b"," + value if hops else value
            elif name == b"x-forwarded-proto":
                protos += b"," + value if protos else value
        if not (hops or protos):
            return client, scheme
        address = self.proxies.client(hops.decode("latin-1")) if hops else ""
        return (address, 0) if address else client, forwarded_scheme(protos.decode("latin-1")) or scheme

    # ---- what is counted and told

    def begun(self, exchange: Exchange) -> None:
        """A request's head is read."""
        if not exchange.private:
            self.requests[exchange] = exchange.began_s

    def answered(self, exchange: Exchange) -> None:
        """A request has got its whole answer, or its client is gone. Tells seat and log."""
        if self.requests.pop(exchange, None) is None:
            return
        seconds = time.monotonic() - exchange.began_s
        self.seat.count(exchange.status or CLIENT_GONE, seconds, exchange.bytes_sent)
        if self.access_log.enabled:
            self.access_log.write(exchange.told(seconds))

    def dropped(self, exchange: Exchange, *, answered: bool) -> None:
        """A request in hand comes to another end than the app's; one without an answer is refused, and told as that."""
        if answered:
            self.answered(exchange)
        else:
            self.requests.pop(exchange, None)

    def refused(self, told: Answered) -> None:
        """A request was answered without the app."""
        self.seat.refused(told.status)
        if self.access_log.enabled:
            self.access_log.write(told)

    def accepted(self, connection: WebSocketConnection) -> None:
        """A handshake is done: it counts as a request that was answered."""
        if not connection.private:
            self.seat.count(connection.status, time.monotonic() - connection.began_s, 0)

    def websocket_ended(self, connection: WebSocketConnection) -> None:
        if not connection.private:
            if connection.status != 101:
                self.seat.count(connection.status or CLIENT_GONE, time.monotonic() - connection.began_s, 0)
            if self.access_log.enabled:
                self.access_log.write(connection.told())
        self.changed()

    def task_began(self, task: asyncio.Task[None], owner: Exchange | WebSocketConnection) -> None:
        self.tasks.add(task)
        self.owners[task] = owner
        task.add_done_callback(self._task_ended)

    def task_is_over(self, task: asyncio.Task[None] | None) -> None:
        """Its last step is running. Requests tell it so themselves: a callback is a turn of the loop for each."""
        self.owners.pop(task, None)  # type: ignore[arg-type]
        if self.drain is not None:
            self.changed()

    def cancel(self, task: asyncio.Task[None]) -> None:
        """One that has not begun yet never tells that it is over."""
        task.cancel()
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.owners.pop(task, None)
        self.changed()

    def unanswered(self) -> list[Exchange]:
        """Requests in hand, private ones too, and those that wait behind another."""
        return [exchange for connection in self.http for exchange in connection.unanswered()]

    def all(self) -> list[HttpConnection | WebSocketConnection]:
        return [*self.http, *self.websockets]

    def unix_s(self, monotonic_s: float) -> float:
        return time.time() - (time.monotonic() - monotonic_s)

    def traffic(self) -> Traffic:
        """What is in hand, without what came by a private listener. Looks at each connection: for once a second."""
        oldest_s = next(iter(self.requests.values()), None)
        return Traffic(
            in_flight=len(self.requests),
            idle=sum(1 for connection in self.http if connection.is_idle and not connection.private),
            websockets=sum(1 for connection in self.websockets if not connection.private),
            oldest_s=0.0 if oldest_s is None else time.monotonic() - oldest_s,
        )


def _nothing() -> None:
    return
