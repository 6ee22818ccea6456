"""Whether a zygote's loop turns: it is asked from time to time, and one that does not answer hangs. The master.

What lives here: when to ask and when to give up. What must not: what follows from it (`master.py`). Looks are counted, not
seconds: a master that was stopped together with its zygote (a frozen container, a suspended machine) must not blame it.
"""

from __future__ import annotations

from collections.abc import Callable

from midstream.linux.timers import Timer
from midstream.serve.loop import Loop

_LOOKS = 4  # with the same question unanswered


class Beat:
    """Asks from its making on, every quarter of limit_s, until close(); limit_s 0: only when hurried. hangs(seconds): once,
    when there was no answer for so long. ask: sends the question."""

    def __init__(self, loop: Loop, limit_s: float, ask: Callable[[], None], hangs: Callable[[float], None]) -> None:
        self._loop = loop
        self._limit_s = limit_s
        self._ask = ask
        self._hangs: Callable[[float], None] | None = hangs
        self._unanswered = 0
        self._timer: Timer | None = None
        if limit_s:
            self._look()

    def heard(self) -> None:
        """It has answered."""
        self._unanswered = 0

    def hurry(self, limit_s: float) -> None:
        """Asks at once: whoever does not answer within limit_s hangs. What is asked for regularly is so from then on."""
        if self._hangs is None:
            return
        self._limit_s, self._unanswered = limit_s, 0
        if self._timer is not None:
            self._timer.cancel()
        self._look()

    def close(self) -> None:
        self._hangs = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        hangs = self._hangs
        if hangs is None:
            return
        if self._unanswered >= _LOOKS:
            self.close()
            hangs(self._limit_s)
            return
        if not self._unanswered:
            self._ask()
        self._unanswered += 1
        self._timer = self._loop.after(self._limit_s / _LOOKS, self._look)
