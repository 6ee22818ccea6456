"""The listeners of a worker with app threads: told of once, then not again until somebody lifts the latch.

Where the loop watches a listener, it wakes for each connection, also while a thread runs the app, and both fight for the
interpreter's lock: that costs as much as a short request. So what waits is taken in one go, and the loop sleeps until the
threads are through with it. The one that finds nothing more to do lifts the latch, without waking the loop.

What must not live here: accepting (`connections.py`), how long the latch may be down (`app_threads.py`). Runs in the
workers; `lift` in any thread, all else in the loop's.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Protocol

from midstream.serve.wire import Threads

_ONCE = select.EPOLLIN | select.EPOLLONESHOT
_EVENTS = 16


class Lifting(Threads, Protocol):
    def will_lift(self) -> bool:
        """Before ring(): whether the latch can be left down, as it will be lifted soon, whatever the app does."""


class Latch:
    """Watches as the loop's add_reader does, but that an act is called once, and again after `lift`."""

    def __init__(self, threads: Lifting) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._acts: dict[int, Callable[[], None]] = {}
        self._threads = threads
        self.down: list[int] = []  # told of, and not watched since
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def watch(self, fd: int, act: Callable[[], None]) -> None:
        self._acts[fd] = act
        self._epoll.register(fd, _ONCE)

    def unwatch(self, fd: int) -> None:
        """Before it is closed."""
        del self._acts[fd]
        self._epoll.unregister(fd)

    def lift(self) -> None:
        """Act is called again where something waits now, or from now on. From any thread."""
        while self.down:
            try:
                self._epoll.modify(self.down.pop(), _ONCE)
            except (IndexError, OSError, ValueError):
                continue  # another thread was faster; it is not watched any more; the worker ends

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ready(self) -> None:
        threads = self._threads
        threads.gather()
        try:
            for fd, _ in self._epoll.poll(0, _EVENTS):
                act = self._acts.get(fd)  # what came before it in this list may have ended its watching
                if act is not None:
                    self.down.append(fd)  # first: a thread that sees it from now on may lift it
                    act()
        finally:
            if self.down and not threads.will_lift():
                self.lift()
            threads.ring()
