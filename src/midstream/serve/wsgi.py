"""The WSGI server of one worker: connections, app threads, the heads' common part, counts, drain.

What must not live here: HTTP (`http1.py`, `response.py`), forking, signals (`worker.py`). Runs in the workers; all
methods belong to the event loop's thread, except those that say otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any

from midstream.serve.answer_fields import DATE, RELEASE, SERVER
from midstream.serve.app_threads import AppThreads
from midstream.serve.body import Memory
from midstream.serve.connections import Doors, Ending, Sweep
from midstream.serve.contract import AccessLog, Answered, Cuts, Identity, Listener, Seat, Traffic
from midstream.serve.environ import Environ, of_peer, template
from midstream.serve.hosts import host_check
from midstream.serve.http1 import BROKEN, Connection, Fields
from midstream.serve.latch import Latch
from midstream.serve.output import Writables
from midstream.serve.proxies import Proxies
from midstream.serve.response import FileWrapper, Names, Response
from midstream.serve.settings import Settings
from midstream.serve.wire import Readables

log = logging.getLogger("midstream.serve")

_CLIENT_GONE = 499  # counted where the client left before the app had a status; nginx's number
_CROWDED_S = 0.005  # inline: an app this slow gives a connection up when others wait at the door
_STOP_S = 1.0
_FOR_EVER_S = 1e8  # a wait that threads can be given; infinity they cannot

# (status, seconds, bytes of the body, began_s, private, and for the log:) peer, method, target, HTTP/1.1, environ
_Finished = tuple[int, float, int, float, bool, str, str, str, bool, Environ]


class WsgiServer:
    """A contract.Server. app: the WSGI callable. tls_context: for listeners with tls."""

    def __init__(
        self,
        app: Callable[..., Any],
        settings: Settings,
        identity: Identity,
        seat: Seat,
        access_log: AccessLog,
        tls_context: ssl.SSLContext | None = None,
    ) -> None:
        self.app = app
        self.settings = settings
        self.identity = identity
        self._seat = seat
        self._access_log = access_log
        self._tls = tls_context
        self.inline = settings.threads == 1
        self._take_over(settings)
        self.host_ok = host_check(settings.hosts)
        self.fields = Fields()
        self.names = Names(settings.release_header)
        self.proxies = Proxies(settings.forwarded_allow_ips)
        self.connections: set[Connection] = set()
        self.finished: deque[_Finished] = deque()  # filled by app threads, emptied by `settle`
        self.begun = 0  # requests given to the app, ever
        self._settled = 0  # of these, ended and counted
        self.closed: deque[Connection] = deque()  # by app threads, emptied by `settle`
        self.crowded = False  # the doors are shut until a connection is closed
        self._woken: deque[Connection] = deque()
        self._waking = False
        self.draining = False
        self._ending: Ending | None = None
        self._accepting = False
        self._threads = AppThreads(0 if self.inline else settings.threads, self._run)
        self.give: Callable[[Connection], None] = self._run_inline if self.inline else self._threads.give
        self._bases: dict[Listener, Environ] = {}
        self.make_heads()

    def _take_over(self, settings: Settings) -> None:
        """What each request looks at, without a second attribute on the way. 0 switches a time-out off."""
        self.limit_request_line = settings.limit_request_line
        self.limit_request_fields = settings.limit_request_fields
        self.limit_request_field_size = settings.limit_request_field_size
        self.limit_header_bytes = settings.limit_header_bytes
        self.limit_body_bytes = settings.limit_body_bytes
        self.body_memory_bytes = settings.body_memory_bytes
        self.body_memory = Memory(settings.body_memory_bytes)
        self.header_timeout_s = settings.header_timeout_s or float("inf")
        self.body_timeout_s = settings.body_timeout_s or float("inf")
        self.write_timeout_s = settings.write_timeout_s or _FOR_EVER_S
        self.keep_alive_s = settings.keep_alive_s or float("inf")

    # ---- contract.Server

    async def start(self, listeners: Sequence[Listener]) -> None:
        self._loop = asyncio.get_running_loop()
        self._bases = {each: template(each, self.settings, FileWrapper) for each in listeners}
        self.readables = Readables(None if self.inline else self._threads)
        self.writables = Writables()
        self._latch = None if self.inline else Latch(self._threads)
        self._threads.start(self._latch)
        self._doors = Doors(
            listeners,
            self._encrypted,
            take=self._take,
            tls=self._tls,
            seat=self._seat,
            count=self._count,
            full=self._full,
            busy=self._busy,
            latch=self._latch,
        )
        self._sweep = Sweep(self.connections, self._tick)
        self._sweep.start()
        self._doors.open(public=False)

    def resume(self) -> None:
        self._doors.open(public=True)

    def pause(self) -> None:
        self._doors.open(public=False)

    async def drain(self, graceful_s: float, linger_s: float, *, last: bool = False) -> Cuts:
        self._doors.shut()
        self.draining = True
        if last:
            self._doors.accept_rest()
        self._doors.close()
        self._ending = Ending(self.connections, self._in_hand, graceful_s, linger_s)
        cuts = await self._ending.wait()
        self.settle()
        return cuts

    def linger_less(self, linger_s: float) -> None:
        if self._ending is not None:
            self._ending.linger_less(linger_s)

    async def stop(self) -> None:
        self._doors.shut()
        self._sweep.stop()
        self.draining = True
        for connection in list(self.connections):
            connection.cut()
        await asyncio.get_running_loop().run_in_executor(None, self._threads.stop, _STOP_S)
        self.settle()
        self._access_log.flush()
        self.readables.close()
        self.writables.close()
        if self._latch is not None:
            self._latch.close()

    def traffic(self) -> Traffic:
        self.settle()
        now_s = time.monotonic()
        in_flight = idle = 0
        oldest_s = 0.0
        for connection in self.connections:
            if connection.private:
                continue
            if connection.in_hand:
                in_flight += 1
                oldest_s = max(oldest_s, now_s - connection.began_s)
            else:
                idle += 1
        return Traffic(in_flight=in_flight, idle=idle, oldest_s=oldest_s)

    # ---- what connections call

    def settle(self) -> None:
        """Counts and logs what app threads have finished. Cheap when there is nothing."""
        finished, seat, access_log = self.finished, self._seat, self._access_log
        while finished:
            request = finished.popleft()
            self._settled += 1
            if not request[4]:
                seat.count(request[0], request[1], request[2])
            if access_log.enabled:
                access_log.write(self._answered(request))
        if self.closed:
            while self.closed:
                self.connections.discard(self.closed.popleft())
            self._doors.tell()

    def refused(self, connection: Connection, status: int) -> None:
        """A request that the app does not see."""
        if not connection.private:
            self._seat.refused(status)
        if self._access_log.enabled:
            seconds = time.monotonic() - connection.began_s
            self._access_log.write(
                self._answered(
                    (
                        status,
                        seconds,
                        0,
                        connection.began_s,
                        connection.private,
                        connection.peer,
                        connection.method or "-",
                        connection.target or "-",
                        connection.http11,
                        connection.environ,
                    )
                )
            )

    def left(self) -> None:
        """A connection is closed, or in a drain a request ended."""
        self._doors.tell()
        if self._ending is not None:
            self._ending.look()
        elif self._doors.held:
            self._doors.ease()

    def others_wait(self, connection: Connection) -> bool:
        """Inline: whether this connection should make room. Fast answers need not: the next turn of the loop is soon."""
        return time.monotonic() - connection.began_s > _CROWDED_S and self._doors.waiting()

    def wake(self, connection: Connection) -> None:
        """From any thread: go_on() of the connection, in the loop. Several are woken at once."""
        self._woken.append(connection)
        if not self._waking:
            self._waking = True
            self.call(self._go_on)

    def call(self, act: Callable[..., Any], *arguments: Any) -> None:
        """From any thread: in the loop. Nothing happens when the loop has ended, and with it the connection."""
        try:
            self._loop.call_soon_threadsafe(act, *arguments)
        except RuntimeError:
            log.debug("the loop has ended")

    def make_heads(self) -> None:
        """What the heads of answers end with; holds for a second. From any thread: each is replaced at once."""
        now = time.time()
        self.heads_until_s = time.monotonic() + 1.0 - now % 1.0
        self._date = f"Date: {formatdate(now, usegmt=True)}\r\n"
        self.head_keep = self.head_without(True, True, 0)
        self.head_keep10 = self.head_without(True, False, 0)
        self.head_close = self.head_without(False, True, 0)

    def head_without(self, keep: bool, http11: bool, own: int) -> bytes:
        """The same for an app that sets some of it itself. own: bits of `answer_fields`."""
        settings = self.settings
        lines = "" if own & DATE else self._date
        if settings.server_header and not own & SERVER:
            lines += f"Server: {settings.server_header}\r\n"
        if settings.release_header and self.identity.release and not own & RELEASE:
            lines += f"{settings.release_header}: {self.identity.release}\r\n"
        if not keep:
            lines += "Connection: close\r\n"
        elif not http11:
            lines += "Connection: keep-alive\r\n"
        return (lines + "\r\n").encode("latin-1", "replace")

    # ---- inside

    def _connection(self, address: Any, listener: Listener) -> Connection:
        base, peer = of_peer(self._bases[listener], address)
        # Who knows the private listener is above us, and says how the health check is asked.
        connection = Connection(self, base, peer, listener.private or self.proxies.trusts(peer))
        connection.private = listener.private
        return connection

    def _take(self, fd: int, address: Any, listener: Listener) -> bool:
        self._connection(address, listener).opened(fd)
        return True

    def _encrypted(self, _: Any, address: Any, listener: Listener) -> Connection:
        connection = self._connection(address, listener)
        connection.tls = True
        return connection

    def _run(self, connection: Connection, _: float) -> None:
        """In an app thread, or inline. Raises nothing: a bug of ours costs its connection, not the thread."""
        try:
            self._answer(connection)
        except BaseException:
            log.exception("a bug of the server's own, not of the app: the connection is reset")
            connection.state = BROKEN
            self.wake(connection)

    def _answer(self, connection: Connection) -> None:
        environ = connection.environ
        taken = environ["wsgi.input"]
        method, target = connection.method, connection.target
        response = Response(connection, environ)
        try:
            response.serve(self.app)
            taken.close()
        finally:
            connection.environ = {}  # what the app put into it goes as soon as it is logged
            began_s = connection.began_s
            self.finished.append(
                (
                    response.code or _CLIENT_GONE,
                    time.monotonic() - began_s,
                    response.body_bytes,
                    began_s,
                    connection.private,
                    connection.peer,
                    method,
                    target,
                    connection.http11,
                    environ,
                )
            )
        connection.ended(response.broken, response.keep)

    def _run_inline(self, connection: Connection) -> None:
        self._run(connection, 0.0)

    def _go_on(self) -> None:
        self._waking = False
        woken = self._woken
        while woken:
            woken.popleft().go_on()
        if self.draining:
            self.left()

    def _answered(self, request: _Finished) -> Answered:
        status, seconds, body_bytes, began_s, _, peer, method, target, http11, environ = request
        look = environ.get
        return Answered(
            look("REMOTE_ADDR", peer),
            method,
            target,
            "1.1" if http11 else "1.0",
            status,
            body_bytes,
            time.time() - (time.monotonic() - began_s),
            seconds,
            look("HTTP_REFERER", ""),
            look("HTTP_USER_AGENT", ""),
            look("HTTP_HOST", ""),
            look("HTTP_X_REQUEST_ID", ""),
        )

    def _running(self) -> int:
        """Requests that the app has in hand, their clients gone or not."""
        self.settle()
        return self.begun - self._settled

    def _in_hand(self) -> int:
        return self._running() + self._doors.entering

    def _count(self) -> int:
        return len(self.connections) - len(self.closed)

    def _full(self) -> bool:
        if len(self.connections) < self.settings.worker_connections:
            self.crowded = False
        else:
            self.settle()
            self.crowded = len(self.connections) >= self.settings.worker_connections
        return self.crowded

    def _busy(self) -> bool:
        """Whether a new connection would have to wait for a thread."""
        return not self.inline and self._running() >= self.settings.threads

    def _tick(self, now_s: float) -> None:
        """Once a second."""
        self._seat.beat(now_s)
        self._seat.show(self.traffic())
        self._seat.stuck(self._threads.all_busy_since_s())
        self._access_log.flush()
        if self._doors.held:
            self._doors.ease()
        if self._ending is not None:
            self._ending.look()
