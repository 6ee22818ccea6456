"""The threads that run the app: each takes a request and keeps it until the app's close() has returned.

Waking a thread costs more than a short request does, and several that are awake fight for the interpreter's lock. So one
that is awake and has just begun something is expected to come for the next request too, and no other is woken: most
requests take less than that. When it does not come within a moment, its request is a long one, and another is woken: at
once if a request arrives then, at the latest by a timer.

For the same reason a thread is woken once for all that the loop reads in a turn (`gather`, `ring`), and the loop is told
of new connections only when no request is in hand that has just begun (`latch.py`): the thread that is through with
everything lifts the latch, or the timer, which notices long requests. After one of these the latch stays up for a while.

What must not live here: HTTP, what becomes of the answer. Runs in the workers; made after the fork.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from midstream.serve.latch import Latch

_SHORT_S = 0.0001  # a request that has run no longer than this is expected to end soon
_LOOK_S = 0.001  # how long a request waits at most before another thread is woken; timers of uvloop have no finer grain
_DOUBT_S = 0.1  # how long after a long request the next is not expected to be short


class AppThreads:
    """count: threads. run(request, began_s): calls the app; must not raise."""

    __slots__ = (
        "_began_s",
        "_doubt_until_s",
        "_down",
        "_ending",
        "_gathering",
        "_idle",
        "_latest_s",
        "_lift",
        "_lift_by_s",
        "_looking",
        "_loop",
        "_run",
        "_threads",
        "_waiting",
    )

    def __init__(self, count: int, run: Callable[[Any, float], None]) -> None:
        self._run = run
        self._waiting: deque[Any] = deque()
        self._idle: list[threading.Lock] = []  # of threads that sleep; the last one's memory is the warmest
        self._latest_s = 0.0  # when a thread last began a request, or was woken to do so
        self._looking = False
        self._gathering = False
        self._down: list[int] = []  # the latch's
        self._lift: Callable[[], None] = lambda: None
        self._lift_by_s = 0.0
        self._doubt_until_s = 0.0
        self._ending = False
        self._began_s = [0.0] * count  # of what each thread does, CLOCK_MONOTONIC; 0.0: it waits
        self._threads = [
            threading.Thread(target=self._work, args=(slot,), name=f"app-{slot}", daemon=True) for slot in range(count)
        ]

    def start(self, latch: Latch | None) -> None:
        """On the running loop. latch: to be lifted by a thread that has nothing to do."""
        self._loop = asyncio.get_running_loop()
        if latch is not None:
            self._down, self._lift = latch.down, latch.lift
        for thread in self._threads:
            thread.start()

    def give(self, request: Any) -> None:
        """From the loop's thread."""
        self._waiting.append(request)
        if not self._gathering:
            self._call_one()

    def gather(self) -> None:
        """The loop may give several requests now, and calls ring() after them. It must not take long."""
        self._gathering = True

    def ring(self) -> None:
        self._gathering = False
        if self._waiting:
            self._call_one()

    def will_lift(self) -> bool:
        """Whether the latch may be left down at the next ring(): threads have more to do than one request, and one of them
        will look soon. From the loop's thread, after the latch went down: who is among the idle now did not see it, and who
        goes there later does."""
        now_s, idle, waiting = time.monotonic(), len(self._idle), len(self._waiting)
        several = waiting > 1 and idle > 0
        begun = idle < len(self._threads) and now_s - self._latest_s <= _SHORT_S
        if not (several or begun) or now_s < self._doubt_until_s:
            return False
        self._lift_by_s = now_s + _LOOK_S
        self._look_later()
        return True

    def _call_one(self) -> None:
        """A thread comes for what waits."""
        idle = self._idle
        if not idle:
            return
        now_s = time.monotonic()
        if len(idle) == len(self._threads) or now_s - self._latest_s > _SHORT_S:
            self._latest_s = now_s  # it is on its way, if it waits for the interpreter now
            self._wake()
        else:
            self._look_later()

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

    def _look_later(self) -> None:
        if not self._looking:
            self._looking = True
            self._loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = False
        wanted = bool(self._waiting and self._idle)
        if not wanted and not self._down:
            return
        now_s = time.monotonic()
        late = now_s - self._latest_s > _SHORT_S
        if wanted and late:
            self._wake()
        if self._down and now_s >= self._lift_by_s:
            if late:
                self._doubt_until_s = now_s + _DOUBT_S
            self._lift()
        if wanted or self._down:
            self._look_later()

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
        if self._down:
            self._lift()
        bell.acquire()
