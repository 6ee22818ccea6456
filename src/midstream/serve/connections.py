"""Accepting, the sweep once a second, and how connections are brought to their end. Shared by WSGI and ASGI.

What must not live here: HTTP. Runs in the workers, in the thread of the event loop.

One listening socket is shared by all workers. It is watched level-triggered, and one connection is taken at a time, or
with a latch as many as the others have, so that a burst spreads over the workers: whoever is busy comes later.
EPOLLEXCLUSIVE is of no use below libuv, whose own epoll cannot be given it; an epoll nested in it wakes everybody all the
same (ep_poll_callback counts only who waits in the inner one). Instead each worker tells on the board how many connections
it has, and one that has more than another lets that one go first for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

from midstream.linux.accepting import NONE_LEFT
from midstream.serve.contract import Cuts, Listener, Seat
from midstream.serve.latch import Latch

log = logging.getLogger("midstream.serve")

SWEEP_S = 1.0
_YIELD_S = 0.001  # what a worker gives another that would come sooner
_AHEAD = 3  # connections more than another has, before that one is let go first
_AT_ONCE = 8  # connections taken in one turn of the loop, where there is a latch
_REST_MOST = 4096  # connections of a listener that are accepted at the end; its queue may be that long
_POLL_S = 0.001  # a timer of this runs in a later turn of the loop: in between everything readable has been read

NEVER = math.inf

Make = Callable[[socket.socket, Any, Listener], asyncio.Protocol]


def _kind_of(listener: socket.socket) -> Callable[[int], socket.socket]:
    """Makes a socket object of a descriptor accepted from the listener. Its family and type are plain attributes of a
    class: asyncio asks for them several times a connection, and socket's properties make an enum each time."""
    family, kind, protocol = listener.family, listener.type, listener.proto
    accepted = type("AcceptedSocket", (socket.socket,), {"__slots__": (), "family": family, "type": kind})

    def make(fd: int) -> socket.socket:
        return cast(socket.socket, accepted(family, kind, protocol, fd))

    return make


def _send_at_once(listener: socket.socket) -> None:
    """What it accepts inherits TCP_NODELAY: a part of an answer must not wait for the client to have seen the last."""
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # a kind of socket that knows no such thing
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Doors:
    """Takes connections from the listeners and gives each to a protocol. make: from the accepted socket, the peer's address
    as accept(2) gives it, and the listener. take: the same for a plain connection, with its bare descriptor, which is
    non-blocking; False: it is to be made one with a transport of the loop's. seat: where this worker tells the others how
    many connections it has (`count`), and sees theirs. full: asked before each connection; True shuts the public doors until
    `ease` is called. busy: whether a new one would have to wait here. latch: what watches the listeners in place of the
    loop; several connections are taken in one turn then, as far as no other worker has fewer."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        make: Make,
        *,
        take: Callable[[int, Any, Listener], bool],
        tls: ssl.SSLContext | None = None,
        seat: Seat,
        count: Callable[[], int],
        full: Callable[[], bool] = lambda: False,
        busy: Callable[[], bool] = lambda: False,
        latch: Latch | None = None,
    ) -> None:
        self._latch = latch
        self._loop = asyncio.get_running_loop()
        self._listeners = list(listeners)
        for listener in self._listeners:
            _send_at_once(listener.sock)
        self._kinds = {listener: _kind_of(listener.sock) for listener in self._listeners}
        self._make = make
        self._take = take
        self._tls = tls
        self._seat = seat
        self._count = count
        self._full = full
        self._busy = busy
        self._yielded = False
        self._wanted: set[Listener] = set()
        self._public = False
        self._watched: set[Listener] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._rest: deque[tuple[int, Any, Listener]] = deque()
        self._opening: deque[tuple[asyncio.Future[Any], Any]] = deque()

    def open(self, *, public: bool) -> None:
        """Accepts on the private listeners, and on the public ones if so. Idempotent; also shuts what is not wanted."""
        self._wanted = {listener for listener in self._listeners if public or listener.private}
        self._public = public
        self.tell()
        for listener in self._watched - self._wanted:
            self._unwatch(listener)
        self.ease()

    def close(self) -> None:
        """Accepts nothing more, ever. The sockets are closed here; whoever else has them goes on."""
        self.shut()
        for listener in self._listeners:
            listener.sock.close()

    def accept_rest(self) -> None:
        """What waits on the public listeners now: when the last process that has them closes them, the kernel resets it.
        As long as more comes it goes on, up to a bound. Each is taken in a turn of its own: inline that may call the app."""
        for listener in self._listeners:
            listener.sock.setblocking(False)  # as in `ease`
            while not listener.private and len(self._rest) < _REST_MOST:
                try:
                    fd, address = listener.sock._accept()  # type: ignore[attr-defined]  # what accept() calls
                except (ConnectionAbortedError, InterruptedError):
                    continue
                except OSError as error:
                    if not isinstance(error, BlockingIOError):
                        log.error("cannot accept what waits on %s: %s", listener.name, error)
                    break
                self._rest.append((fd, address, listener))
        self._take_rest()

    def _take_rest(self) -> None:
        if self._rest:
            self._admit(*self._rest.popleft())
            self._loop.call_soon(self._take_rest)

    def shut(self) -> None:
        """Accepts nothing more. The sockets stay open: they are shared with others."""
        self._wanted = set()
        self._public = False
        self.tell()
        for listener in list(self._watched):
            self._unwatch(listener)

    def ease(self) -> None:
        """Goes on with what is wanted, after the doors were full or descriptors were short. Cheap."""
        for listener in self._wanted - self._watched:
            listener.sock.setblocking(False)  # shared by all holders of the socket, and any of them may have changed it
            self._watched.add(listener)
            if self._latch is None:
                self._loop.add_reader(listener.sock.fileno(), self._ready, listener)
            else:
                self._latch.watch(listener.sock.fileno(), partial(self._ready_for_more, listener))

    @property
    def held(self) -> bool:
        """Whether a wanted listener is not watched now."""
        return len(self._watched) < len(self._wanted)

    @property
    def entering(self) -> int:
        """Connections that were accepted and have not had their turn, or are still in their TLS handshake: no connection of
        the server's yet, but a drain has them to answer all the same."""
        return len(self._tasks) + len(self._rest)

    def waiting(self) -> bool:
        """Whether a connection waits on a public listener, as far as the kernel says now."""
        poll = select.poll()
        for listener in self._watched:
            if not listener.private:
                poll.register(listener.sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _unwatch(self, listener: Listener) -> None:
        self._watched.discard(listener)
        if self._latch is None:
            self._loop.remove_reader(listener.sock.fileno())
        else:
            self._latch.unwatch(listener.sock.fileno())

    def _ready(self, listener: Listener) -> bool:
        """Whether one was taken."""
        if not listener.private:
            if self._full():
                self._unwatch(listener)
                return False
            if self._yields(listener):
                return False
        try:
            fd, address = listener.sock._accept()  # type: ignore[attr-defined]  # what accept() calls
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            self._refused(listener, error)
            return False
        self._admit(fd, address, listener)
        return True

    def _ready_for_more(self, listener: Listener) -> None:
        for _ in range(_AT_ONCE):
            if not self._ready(listener) or self._count() > self._seat.fewest():
                return

    def _admit(self, fd: int, address: Any, listener: Listener) -> None:
        os.set_blocking(fd, False)
        if (listener.tls and self._tls is not None) or not self._take(fd, address, listener):
            sock = self._kinds[listener](fd)
            self._enter(sock, lambda: self._make(sock, address, listener), self._tls if listener.tls else None)
        self.tell()

    def tell(self) -> None:
        """The other workers how many connections there are here. Whenever that has changed; cheap."""
        self._seat.hold(self._count() if self._public else -1)

    def _yields(self, listener: Listener) -> bool:
        """Whether another worker is to go first: one that has fewer connections, or is not as busy. Once for each connection
        at most: nobody waits for ever because of one that does not come."""
        ahead = self._count() - self._seat.fewest()
        self._yielded = not self._yielded and (ahead > _AHEAD or (ahead > 0 and self._busy()))
        if self._yielded:
            self._unwatch(listener)
            self._loop.call_later(_YIELD_S, self.ease)
        return self._yielded

    def _refused(self, listener: Listener, error: OSError) -> None:
        """Short of descriptors or memory: the sweep tries again."""
        self._unwatch(listener)
        if error.errno in NONE_LEFT:
            log.error("accepts no connections on %s for a second: %s", listener.name, error.strerror)
        else:
            log.error("cannot accept on %s: %s", listener.name, error)

    def enter(self, fd: int, protocol: asyncio.Protocol, listener: Listener) -> None:
        """Gives a plain connection that was taken a transport of the loop's after all."""
        if not self._enter(self._kinds[listener](fd), lambda: protocol, None):
            protocol.connection_lost(None)

    def _enter(self, sock: socket.socket, make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None) -> bool:
        """Without a task for each plain connection: the coroutine is driven by hand to its one wait. False: it is gone."""
        coming = self._loop.connect_accepted_socket(make, sock, ssl=tls)
        if tls is not None:
            task = self._loop.create_task(_handshake(coming))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return True
        try:
            waiter = coming.send(None)
        except StopIteration:
            return True
        except OSError:
            sock.close()  # it was reset before we came to it
            return False
        waiter._asyncio_future_blocking = False  # as a Task does when a coroutine yields a future
        self._finish_opened()
        self._opening.append((waiter, coming))
        return True

    def _finish_opened(self) -> None:
        """Lets the coroutines of earlier connections end, now that these are open: a callback for each would be a turn of
        the loop for each."""
        opening = self._opening
        for _ in range(len(opening)):
            waiter, coming = opening.popleft()
            if not waiter.done():
                opening.append((waiter, coming))
                continue
            try:
                coming.send(None)
            except (StopIteration, OSError, asyncio.CancelledError):
                continue


async def _handshake(coming: Any) -> None:
    try:
        await coming
    except (OSError, ssl.SSLError, asyncio.CancelledError, ConnectionError) as error:
        log.debug("TLS handshake failed: %s", error)


class Swept(Protocol):
    """A connection, as the sweep and the drain see it."""

    deadline_s: float  # CLOCK_MONOTONIC; NEVER: none

    @property
    def in_hand(self) -> bool:
        """Whether a request was begun and is not answered to its end."""

    @property
    def began_s(self) -> float:
        """When the request in hand began, CLOCK_MONOTONIC."""

    def expired(self, now_s: float) -> None:
        """The deadline is over, and a further poll found nothing to read."""

    def retire(self) -> bool:
        """Idle, at the end of the linger: shuts its end, discards what comes, closes. False: it was closing already."""

    def cut(self) -> None:
        """Closes at once, whatever is in hand."""


class Sweep:
    """Calls tick(now_s) once a second, and expired() of the connections whose deadline is over and stayed so through a
    further poll: a loop that was held up by the app must not take its own slowness for the client's."""

    def __init__(self, connections: set[Any], tick: Callable[[float], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections = connections
        self._tick = tick
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = self._loop.call_later(SWEEP_S, self._turn)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        self._timer = self._loop.call_later(SWEEP_S, self._turn)
        now_s = time.monotonic()
        self._tick(now_s)
        over = [(each, each.deadline_s) for each in self._connections if each.deadline_s <= now_s]
        if over:
            self._loop.call_later(_POLL_S, self._after_a_poll, over)

    def _after_a_poll(self, over: list[tuple[Swept, float]]) -> None:
        now_s = time.monotonic()
        for connection, deadline_s in over:
            if connection in self._connections and connection.deadline_s == deadline_s:
                connection.expired(now_s)


class Ending:
    """How a worker's connections come to their end (DESIGN 7): requests in hand have graceful_s, counted from the
    drain's beginning or, for late ones, from their own; idle connections are kept for linger_s, then retired.

    running(): what is in hand without a connection: requests of the app's whose client is gone, TLS handshakes. The
    server calls `look` whenever a connection closed or a request ended, and the sweep's tick calls it once a second."""

    def __init__(self, connections: set[Any], running: Callable[[], int], graceful_s: float, linger_s: float) -> None:
        self._connections = connections
        self._running = running
        self._graceful_s = graceful_s
        self._began_s = time.monotonic()
        self._linger_until_s = self._began_s + linger_s
        self._over = asyncio.Event()
        self._cut: set[Any] = set()
        self._idle_closed = 0

    def linger_less(self, linger_s: float) -> None:
        self._linger_until_s = min(self._linger_until_s, time.monotonic() + linger_s)

    async def wait(self) -> Cuts:
        """Until the last connection is closed."""
        while True:
            next_s = self.look()
            try:
                await asyncio.wait_for(self._over.wait(), max(0.0, next_s - time.monotonic()) + _POLL_S)
                break
            except TimeoutError:
                continue
        return Cuts(requests=len(self._cut), idle_closed=self._idle_closed)

    def look(self) -> float:
        """Retires and cuts what is due; the time of the next deadline."""
        now_s = time.monotonic()
        lingers = now_s < self._linger_until_s
        next_s = self._linger_until_s if lingers else now_s + SWEEP_S
        for connection in list(self._connections):
            if connection.in_hand:
                due_s = max(self._began_s, connection.began_s) + self._graceful_s
                if connection in self._cut:
                    continue  # it goes in the loop's next turn
                if due_s <= now_s:
                    self._cut.add(connection)
                    connection.cut()
                else:
                    next_s = min(next_s, due_s)
            elif not lingers:
                self._idle_closed += connection.retire()
        graceful_over = now_s >= self._began_s + self._graceful_s
        if not self._connections and (graceful_over or not self._running()):
            self._over.set()
        return next_s
