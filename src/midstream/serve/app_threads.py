"""The threads that run the app: each takes a request and keeps it until the app's close() has returned.

What must not live here: HTTP, what becomes of the answer. Runs in the workers; made after the fork.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class AppThreads:
    """count: threads. run(request, began_s): calls the app; must not raise."""

    __slots__ = ("_queue", "_run", "_threads", "began_s", "give")

    def __init__(self, count: int, run: Callable[[Any, float], None]) -> None:
        self._run = run
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self.give: Callable[[Any], None] = (
            self._queue.put
        )  # one lock and no Python frame: this is in each request's way
        self.began_s = [0.0] * count  # of what each thread does, CLOCK_MONOTONIC; 0.0: it waits
        self._threads = [
            threading.Thread(target=self._work, args=(slot,), name=f"app-{slot}", daemon=True) for slot in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def all_busy_since_s(self) -> float:
        """Since when all threads are busy with no request ending; 0.0: they are not."""
        began = list(self.began_s)
        return max(began) if began and all(began) else 0.0

    def stop(self, wait_s: float) -> bool:
        """Ends the threads that wait; the others end after their request, if the process lets them. Blocks for wait_s at
        most; whether all ended."""
        for _ in self._threads:
            self._queue.put(None)
        until_s = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, slot: int) -> None:
        take, run, began, clock = self._queue.get, self._run, self.began_s, time.monotonic
        while True:
            request = take()
            if request is None:
                return
            began[slot] = now_s = clock()
            run(request, now_s)
            request = None  # its body and answer must not live until the next one
            began[slot] = 0.0
