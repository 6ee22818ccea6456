"""The threads that run the app: each takes a request and keeps it until the app's close() has returned.

Waking a thread costs more than a short request does, and several that are awake fight for the interpreter's lock. So one
that is awake and has just begun something is expected to come for the next request too, and no other is woken: most
requests take less than that. When it does not come within a moment, its request is a long one, and another is woken: at
once if a request arrives then, at the latest by a timer.

What must not live here: HTTP, what becomes of the answer. Runs in the workers; made after the fork.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

_SHORT_S = 0.0001  # a request that has run no longer than this is expected to end soon
_LOOK_S = 0.001  # how long a request waits at most before another thread is woken; timers of uvloop have no finer grain


class AppThreads:
    """count: threads. run(request, began_s): calls the app; must not raise."""

    __slots__ = ("_began_s", "_ending", "_idle", "_latest_s", "_looking", "_loop", "_run", "_threads", "_waiting")

    def __init__(self, count: int, run: Callable[[Any, float], None]) -> None:
        self._run = run
        self._waiting: deque[Any] = deque()
        self._idle: list[threading.Lock] = []  # of threads that sleep; the last one's memory is the warmest
        self._latest_s = 0.0  # when a thread last began a request, or was woken to do so
        self._looking = False
        self._ending = False
        self._began_s = [0.0] * count  # of what each thread does, CLOCK_MONOTONIC; 0.0: it waits
        self._threads = [
            threading.Thread(target=self._work, args=(slot,), name=f"app-{slot}", daemon=True) for slot in range(count)
        ]

    def start(self) -> None:
        """On the running loop."""
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()

    def give(self, request: Any) -> None:
        """From the loop's thread."""
        self._waiting.append(request)
        idle = self._idle
        if not idle:
            return
        now_s = time.monotonic()
        if len(idle) == len(self._threads) or now_s - self._latest_s > _SHORT_S:
            self._latest_s = now_s  # it is on its way, if it waits for the interpreter now
            self._wake()
        elif not self._looking:
            self._looking = True
            self._loop.call_later(_LOOK_S, self._look)

    def all_busy_since_s(self) -> float:
        """Since when all threads are busy with no request ending; 0.0: they are not."""
        began = list(self._began_s)
        return max(began) if began and all(began) else 0.0

    def stop(self, wait_s: float) -> bool:
        """Ends the threads that wait; the others end after their request, if the process lets them. Blocks for wait_s at
        most; whether all ended."""
        self._ending = True
        for _ in self._threads:
            self._wake()
        until_s = time.monotonic() + wait_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _wake(self) -> None:
        try:
            self._idle.pop().release()
        except IndexError:
            return  # it has just woken by itself

    def _look(self) -> None:
        self._looking = False
        if not self._waiting or not self._idle:
            return
        if time.monotonic() - self._latest_s > _SHORT_S:
            self._wake()
        self._looking = True
        self._loop.call_later(_LOOK_S, self._look)

    def _work(self, slot: int) -> None:
        bell = threading.Lock()
        bell.acquire()
        take, run, began, clock = self._waiting.popleft, self._run, self._began_s, time.monotonic
        while not self._ending:
            try:
                request = take()
            except IndexError:
                self._sleep(bell)
                continue
            began[slot] = self._latest_s = now_s = clock()
            run(request, now_s)
            request = None  # its body and answer must not live until the next one
            began[slot] = 0.0

    def _sleep(self, bell: threading.Lock) -> None:
        """Until woken. What comes between the last look and the sleep is not missed: who gives a request sees this thread
        among the idle, or this thread sees the request."""
        self._idle.append(bell)
        if self._waiting or self._ending:
            try:
                self._idle.remove(bell)
                return
            except ValueError:
                pass  # somebody is waking it already
        bell.acquire()
