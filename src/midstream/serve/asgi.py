"""The ASGI server of one worker: accepts, starts and ends the app's life, drains. See `contract.Server`.

What lives here: what concerns all connections together. What must not: one connection (`asgi_http.py`,
`websockets.py`), forks, signals. Runs in a worker, on its event loop; uvicorn is used as a library, none of its server.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.middleware.asgi2 import ASGI2Middleware

from midstream.serve.application import is_asgi2
from midstream.serve.asgi_answer import Exchange
from midstream.serve.asgi_http import HttpConnection
from midstream.serve.asgi_premises import Drain, Premises
from midstream.serve.asgi_wire import PlainTransport, bare, closes, peek
from midstream.serve.connections import NEVER, Doors, Sweep
from midstream.serve.contract import AccessLog, Cuts, Identity, Listener, Seat, Traffic
from midstream.serve.lifespan import Lifespan
from midstream.serve.output import Writables
from midstream.serve.settings import Settings
from midstream.serve.websockets import WebSocketConnection
from midstream.serve.wire import Readables

log = logging.getLogger("midstream.serve")

_ENTERING_TURNS = 3  # of the loop, until what was just accepted has its protocol
_ANY = ("0.0.0.0", "::")
CANCELLED_S = 1.0  # for the app's tasks to see that they are cancelled


class AsgiServer:
    """app: ASGI 3, or ASGI 2 (a callable of one argument, the scope). Made on the running loop."""

    def __init__(
        self,
        app: Any,
        settings: Settings,
        identity: Identity,
        seat: Seat,
        access_log: AccessLog,
        tls_context: ssl.SSLContext | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._tls = tls_context
        self._premises = Premises(settings, identity, seat, access_log, self._loop)
        self._config = uvicorn_config(app, settings)
        self._lifespan = Lifespan(self._config, settings.lifespan)
        self._doors: Doors | None = None
        self._sweep = Sweep(self._premises.http, self._tick)
        self._has_stopped = False
        self._was_full = False
        self._premises.changed = self._ease

    async def start(self, listeners: Sequence[Listener]) -> None:
        """Runs the app's start-up, then accepts on the private listeners. Raises AppError when the start-up fails."""
        await self._lifespan.begin()
        self._readables = Readables()
        self._writables = Writables()
        self._local = {each: _local(each.sock) for each in listeners}
        self._doors = Doors(
            listeners,
            self._make,
            take=self._take,
            tls=self._tls,
            seat=self._premises.seat,
            count=lambda: len(self._premises.connections),
            full=self._is_full,
        )
        self._doors.open(public=False)
        self._sweep.start()

    def resume(self) -> None:
        if self._doors is not None and self._premises.drain is None:
            self._doors.open(public=True)

    def pause(self) -> None:
        if self._doors is not None and self._premises.drain is None:
            self._doors.open(public=False)

    async def drain(self, graceful_s: float, linger_s: float, *, last: bool = False) -> Cuts:
        """See `contract.Server`. WebSockets and event streams are ended at random within the graceful time."""
        premises = self._premises
        drain = premises.drain = Drain(time.monotonic(), graceful_s, linger_s)
        if self._doors is not None:
            self._doors.shut()
            if last:
                self._doors.accept_rest()
            self._doors.close()
        for _ in range(_ENTERING_TURNS):
            await asyncio.sleep(0)
        for exchange in premises.unanswered():
            exchange.end_soon(drain.jitter_s())
        for websocket in list(premises.websockets):
            websocket.leave_soon(drain.jitter_s())
        return await _Ending(premises, drain, self._entering).wait()

    def linger_less(self, linger_s: float) -> None:
        if self._premises.drain is not None:
            self._premises.drain.linger_less(linger_s)

    async def stop(self) -> None:
        """See `contract.Server`. Idempotent."""
        if self._has_stopped:
            return
        self._has_stopped = True
        if self._doors is not None:
            self._doors.shut()
        self._sweep.stop()
        for connection in self._premises.all():
            connection.transport.abort()
        await self._cancel_tasks()
        await self._lifespan.end(max(1.0, self._settings.graceful_timeout_s))
        self._premises.access_log.flush()
        self._readables.close()
        self._writables.close()

    def traffic(self) -> Traffic:
        return self._premises.traffic()

    def _entering(self) -> int:
        return self._doors.entering if self._doors is not None else 0

    async def _cancel_tasks(self) -> None:
        tasks = dict(self._premises.owners)
        for task, owner in tasks.items():
            owner.is_cut = True
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=CANCELLED_S)
            if stubborn:
                log.warning("%d tasks of the app go on although they were cancelled", len(stubborn))

    def _make(self, sock: socket.SocketType, address: Any, listener: Listener) -> HttpConnection:
        is_tcp = isinstance(address, tuple)
        client = (str(address[0]), int(address[1])) if is_tcp else None
        server = self._local[listener] or _address(sock.getsockname())
        return HttpConnection(self._config, self._premises, self._lifespan.state, listener, client, server)

    def _take(self, fd: int, address: Any, listener: Listener) -> bool:
        """A plain connection. Whether it has a transport of ours: where its only request has come, or nothing yet."""
        sock = bare(fd)
        try:
            data = peek(sock)
            if data is not None and not closes(data):
                return False
            connection = self._make(sock, address, listener)
        except OSError:
            return False  # it is gone: the loop's will find out
        finally:
            sock.detach()
        transport = PlainTransport(fd, connection, self._readables, self._writables)
        if data is not None:
            transport.begin()
        else:
            transport.wait(functools.partial(self._decide, listener))
        return True

    def _decide(self, listener: Listener, transport: PlainTransport) -> bool:
        """Now the first bytes are there. Whether it gets a transport of the loop's."""
        try:
            data = transport.peek()
        except OSError:
            return False  # it is gone: that is read next
        if not data or closes(data):
            return False
        fd, connection = transport.give()
        assert self._doors is not None
        self._doors.enter(fd, connection, listener)
        return True

    def _is_full(self) -> bool:
        self._was_full = len(self._premises.connections) >= self._settings.worker_connections
        return self._was_full

    def _ease(self) -> None:
        """A connection has closed: there is room for one that waits."""
        if self._doors is not None:
            self._doors.tell()
        if self._was_full and self._doors is not None and not self._is_full():
            self._doors.ease()

    def _tick(self, now_s: float) -> None:
        premises = self._premises
        premises.set_head_lines()
        premises.seat.show(premises.traffic())
        premises.access_log.flush()
        for connection in premises.all():
            connection.watch_output(now_s)
        if self._doors is not None and self._doors.held and not self._is_full():
            self._doors.ease()  # descriptors were short


def _address(name: Any) -> tuple[str, int | None] | None:
    """As a scope has it. name: as getsockname(2) gives it."""
    if isinstance(name, tuple):
        return str(name[0]), int(name[1])
    return (name, None) if isinstance(name, str) else None


def _local(listener: socket.socket) -> tuple[str, int | None] | None:
    """What all connections by it have as their local address; None: each has its own."""
    try:
        found = _address(listener.getsockname())
    except OSError:
        return None
    return None if found is None or found[0] in _ANY else found


class _Ending:
    """The end of all connections and of the app's tasks, as the drain wants it. entering: TLS handshakes under way."""

    def __init__(self, premises: Premises, drain: Drain, entering: Callable[[], int]) -> None:
        self._premises = premises
        self._drain = drain
        self._entering = entering
        self._news = asyncio.Event()
        self._last_cancel_s = NEVER
        self._requests = self._websockets = self._idle_closed = 0
        premises.changed = self._news.set

    async def wait(self) -> Cuts:
        """Until the last connection is closed and the app's last task has ended, or does not end when cancelled."""
        while (due_s := self._look(time.monotonic())) is not None:
            try:
                async with asyncio.timeout(max(0.001, due_s - time.monotonic())):
                    await self._news.wait()
            except TimeoutError:
                continue
            self._news.clear()
        return Cuts(self._requests, self._websockets, self._idle_closed)

    def _look(self, now_s: float) -> float | None:
        """Does what is due; the time of what is due next, None when all has ended."""
        premises = self._premises
        due_s = [now_s + 1.0]
        due_s += [self._look_at_requests(each, now_s) for each in list(premises.http)]
        due_s += [self._look_at_websocket(each, now_s) for each in list(premises.websockets)]
        due_s += [self._look_at_idle(each, now_s) for each in list(premises.http) if each.is_idle]
        due_s += [self._look_at_task(*each, now_s) for each in list(premises.owners.items()) if each[1].is_over]
        if premises.connections or (self._entering() and now_s < self._drain.began_s + self._drain.graceful_s):
            return min(due_s)
        if not premises.owners or now_s > self._last_cancel_s + CANCELLED_S:
            return None
        return min(due_s)

    def _look_at_requests(self, connection: HttpConnection, now_s: float) -> float:
        unanswered = connection.unanswered()
        if not unanswered:
            return NEVER
        cut_s = self._drain.cuts_at_s(unanswered[0].began_s)
        if now_s < cut_s:
            return cut_s
        self._requests += sum(not exchange.private for exchange in unanswered)
        connection.cut()
        self._last_cancel_s = now_s
        return NEVER

    def _look_at_websocket(self, websocket: WebSocketConnection, now_s: float) -> float:
        cut_s = self._drain.cuts_at_s(websocket.began_s)
        if now_s < cut_s:
            return cut_s
        if websocket.close_sent:  # its goodbye was said, only the client's is missing
            websocket.transport.close()
            return NEVER
        self._websockets += not websocket.private
        websocket.cut()
        self._last_cancel_s = now_s
        return NEVER

    def _look_at_idle(self, connection: HttpConnection, now_s: float) -> float:
        end_s = self._drain.lingers_until_s(connection.idle_since_s)
        if now_s >= end_s:
            if connection.has_more():
                return now_s
            self._idle_closed += not connection.private
            connection.end()
            return NEVER
        return end_s

    def _look_at_task(self, task: asyncio.Task[None], owner: Exchange | WebSocketConnection, now_s: float) -> float:
        """What the app does behind its answer (background tasks) has the same time; so has one whose client is gone."""
        cut_s = self._drain.cuts_at_s(owner.began_s)
        if now_s < cut_s:
            return cut_s
        if not owner.is_cut:
            owner.is_cut = True
            self._requests += isinstance(owner, Exchange) and owner.goes_on_behind_answer and not owner.private
            self._premises.cancel(task)
            self._last_cancel_s = now_s
        return now_s + CANCELLED_S


def uvicorn_config(app: Any, settings: Settings) -> Config:
    """What uvicorn's classes read, loaded. Its logging is left alone but for the level: what it says goes up to ours."""

    def call(scope: Any, receive: Any, send: Any) -> Any:
        return app3(scope, receive, send)

    app3: Callable[..., Any] = ASGI2Middleware(app) if is_asgi2(app) else app
    config = Config(
        call,  # not the app itself: uvicorn would call that without arguments, to see whether it is a factory
        interface="asgi3",
        http=HttpConnection,
        ws=WebSocketConnection,
        loop="none",
        log_config=None,
        log_level="debug" if settings.log_level == "debug" else "warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        root_path=settings.script_name,
        ws_max_size=settings.ws_max_size_bytes,
        ws_ping_interval=settings.ws_ping_interval_s or None,
        ws_ping_timeout=settings.ws_ping_timeout_s or None,
        lifespan=cast(Any, settings.lifespan),
    )
    config.load()
    return config
