"""The timer behind WATCHDOG=1: who stands still together with its agent is not blamed for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from midstream.agent.processes import Live, Processes
from midstream.core.events import Unhealthy

NAME, PLACE = ("shop", "web"), (1, 0, 1)


class Clock:
    """An event loop of one timer."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.due_s = 0.0
        self.act: Callable[[], None] = lambda: None

    def time(self) -> float:
        return self.now_s

    def call_at(self, due_s: float, act: Callable[[], None]) -> SimpleNamespace:
        self.due_s, self.act = due_s, act
        return SimpleNamespace(cancel=lambda: None)

    def goes_on(self, late_s: float) -> None:
        """The timer's moment comes, so much later."""
        self.now_s = self.due_s + late_s
        self.act()


def test_a_timer_that_comes_late_begins_anew_and_one_in_time_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = Clock(), list[Any]()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
    processes = Processes(cast(Any, SimpleNamespace(post=lambda name, event: told.append(event))))
    processes._live[(*NAME, *PLACE)] = Live(cast(Any, None))
    processes._arm_watchdog(NAME, PLACE, 30.0)
    clock.goes_on(late_s=60.0)
    assert not told
    assert clock.due_s == clock.now_s + 30.0
    clock.goes_on(late_s=0.1)
    assert told == [Unhealthy(*PLACE, "WATCHDOG=1 did not come within 30 s")]
