"""`Timers`: one-shot deadlines of a loop that waits in epoll. Keeper, and master and zygote of `midstream serve`."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterator

_WAIT_MAX_S = 3600.0


class Timer:
    """One deadline; `cancel` makes it do nothing."""

    __slots__ = ("callback", "deadline_s")

    def __init__(self, deadline_s: float, callback: Callable[[], None]) -> None:
        self.deadline_s = deadline_s  # monotonic
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Timers:
    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()  # of two for one moment the earlier comes first

    def after(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._heap, (timer.deadline_s, next(self._numbers), timer))
        return timer

    def due(self) -> Iterator[Callable[[], None]]:
        """What is to be done now; one that an earlier one cancels meanwhile is left out."""
        now_s = time.monotonic()
        while self._heap and self._heap[0][0] <= now_s:
            callback = heapq.heappop(self._heap)[2].callback
            if callback is not None:
                yield callback

    def wait_s(self) -> float:
        """How long the loop may wait for other things; an hour at the most."""
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)
        if not self._heap:
            return _WAIT_MAX_S
        return min(_WAIT_MAX_S, max(0.0, self._heap[0][0] - time.monotonic()))
