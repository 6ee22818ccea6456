"""What a worker and its server promise each other: the shapes that `worker.py`, `wsgi.py` and `asgi.py` share.

What lives here: protocols and small frozen values. What must not: I/O, any import of httptools, uvloop or uvicorn.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# Of a release whose virtualenv lacks midstream, or what its server needs.
REMEDY = "put 'midstream[serve]' of the server's own version into the app's requirements and make its virtualenv anew"


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket that the worker inherited. private: the one that only the health check knows; it stays open
    while the worker is parked, and what comes in by it is not counted as traffic. tls: connections on it are encrypted."""

    sock: socket.socket
    name: str  # as in LISTEN_FDNAMES, or the bind as the operator wrote it
    private: bool = False
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this worker is, for logs, headers and titles. release and generation: "" and 0 when nobody said."""

    worker: int  # the slot, from 0; a worker that takes the place of a dead one has its slot
    pid: int
    release: str
    generation: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a worker has in hand now."""

    in_flight: int = 0  # requests begun and not answered to their end
    idle: int = 0  # connections without a request
    websockets: int = 0
    oldest_s: float = 0.0  # the age of the oldest request in hand; 0.0: none


@dataclass(frozen=True, slots=True)
class Cuts:
    """What a drain had to cut when its time was over."""

    requests: int = 0
    websockets: int = 0
    idle_closed: int = 0  # not cuts: closed in peace, at the end of the linger


NO_RIVAL = 1 << 32


class Seat(Protocol):
    """The worker's own row of the board (`board.py`), which the zygote and the metrics read. Only this worker writes
    it; every method is cheap enough for each request and never blocks."""

    def beat(self, now_s: float) -> None:
        """The loop turns. now_s: CLOCK_MONOTONIC."""

    def show(self, traffic: Traffic) -> None: ...

    def stuck(self, since_s: float) -> None:
        """Since when all app threads have been busy with no request ending; 0.0: they are not."""

    def hold(self, connections: int) -> None:
        """How many connections this worker has, for the others to see. -1: it takes no more."""

    def fewest(self) -> int:
        """The smallest such number of the other workers that take connections; NO_RIVAL: there is none."""

    def count(self, status: int, seconds: float, bytes_sent: int) -> None:
        """One request is answered."""

    def refused(self, status: int) -> None:
        """One request was refused before the app saw it."""


class AccessLog(Protocol):
    """Where finished requests are told; batched by the log itself."""

    enabled: bool

    def write(self, request: Answered) -> None: ...

    def flush(self) -> None: ...


@dataclass(slots=True)
class Answered:
    """One request, as the access log sees it. Texts are as they came (latin-1), not yet escaped."""

    client: str  # the peer's address, or what a trusted proxy said; "" for a unix socket
    method: str
    target: str  # path and query as sent
    version: str  # "1.1"
    status: int
    bytes_sent: int  # of the body
    began_unix_s: float
    seconds: float
    referer: str = ""
    user_agent: str = ""
    host: str = ""
    request_id: str = ""


class Server(Protocol):
    """One server in one worker: WSGI or ASGI. Made after the fork, on the worker's running event loop."""

    async def start(self, listeners: Sequence[Listener]) -> None:
        """Begins to accept on the private listeners only; raises when the app's start-up (lifespan) fails."""

    def resume(self) -> None:
        """Accepts on all listeners. Idempotent; also the way back from pause()."""

    def pause(self) -> None:
        """Accepts on the private listeners only; goes on answering what it has, keep-alive included (park)."""

    async def drain(self, graceful_s: float, linger_s: float, *, last: bool = False) -> Cuts:
        """Accepts nothing more, closes its listeners, and returns when the last connection is closed (DESIGN 7). Called
        once. last: nobody takes over: what waits to be accepted is accepted before."""

    def linger_less(self, linger_s: float) -> None:
        """In a drain: idle connections stay open for so long from now, unless that is longer than they would."""

    async def stop(self) -> None:
        """Closes everything at once, and ends the app's life (lifespan). After drain(), or instead of it."""

    def traffic(self) -> Traffic: ...
