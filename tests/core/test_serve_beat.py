"""When the master calls a zygote hung: after four looks without an answer, whatever the clock says."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from midstream.linux.timers import Timer
from midstream.serve.loop import Loop
from midstream.serve.master.beat import Beat


class Looks:
    """A loop whose timers come due when told to. Notes what the beat does."""

    def __init__(self, limit_s: float = 8.0) -> None:
        self.timers: list[tuple[float, Timer]] = []
        self.asked = 0
        self.hung: list[float] = []
        self.beat = Beat(cast(Loop, self), limit_s, self.ask, self.hung.append)

    def ask(self) -> None:
        self.asked += 1

    def after(self, delay_s: float, act: Callable[[], None]) -> Timer:
        self.timers.append((delay_s, Timer(0.0, act)))
        return self.timers[-1][1]

    def pass_by(self, count: int = 1) -> None:
        for _ in range(count):
            act = self.timers.pop()[1].callback
            if act is not None:
                act()


def test_one_that_answers_is_asked_on_and_on() -> None:
    looks = Looks()
    for _ in range(20):
        looks.beat.heard()
        looks.pass_by()
    assert looks.asked == 21
    assert not looks.hung


def test_one_question_is_asked_and_four_looks_are_waited() -> None:
    looks = Looks()
    assert [delay_s for delay_s, _ in looks.timers] == [2.0]
    looks.pass_by(3)
    assert (looks.asked, looks.hung) == (1, [])
    looks.pass_by()
    assert (looks.asked, looks.hung) == (1, [8.0])
    assert looks.timers == []


def test_a_look_that_comes_late_counts_as_one() -> None:
    """The master was stopped as well: its clock has gone on, its looks have not."""
    looks = Looks()
    looks.pass_by(1)
    looks.beat.heard()
    looks.pass_by(3)
    assert not looks.hung


def test_without_a_limit_it_is_asked_when_hurried_alone() -> None:
    looks = Looks(0.0)
    assert (looks.asked, looks.timers) == (0, [])
    looks.beat.hurry(4.0)
    assert looks.asked == 1
    looks.pass_by(4)
    assert looks.hung == [4.0]


def test_a_hurried_question_is_a_new_one() -> None:
    looks = Looks()
    looks.pass_by(3)
    looks.beat.hurry(4.0)
    assert looks.asked == 2
    looks.pass_by(3)
    assert not looks.hung


def test_nothing_is_asked_behind_the_end() -> None:
    looks = Looks()
    looks.beat.close()
    looks.pass_by()
    looks.beat.hurry(1.0)
    assert (looks.asked, looks.timers, looks.hung) == (1, [], [])
