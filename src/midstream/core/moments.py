"""Rows with times of a wall clock, in the order in which they were written: clocks are set, and differ between hosts.

Pure. Used by the agent for its log files, and by the commands that show rows of several hosts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T", float, str)
R = TypeVar("R")


def unjumped(times: Sequence[T]) -> list[T]:
    """The times of rows in the order in which these were written, none later than one that follows it: what a clock said
    before it was set back cannot be compared with what others say, what it says since can."""
    found = list(times)
    for index in range(len(found) - 2, -1, -1):
        found[index] = min(found[index], found[index + 1])
    return found


def by_age(hosts: Iterable[tuple[float, Sequence[tuple[float, R]]]]) -> list[R]:
    """Rows of several hosts, the oldest first. hosts: of each what its clock says now, and its rows in the order in which
    they were written, each with its time by that clock; seconds. Compared is how long ago a row was, so that clocks may
    be days apart. The rows of one host keep their order."""
    keyed: list[tuple[float, R]] = []
    for now_s, rows in hosts:
        ages = unjumped([time_s - now_s for time_s, _ in rows])
        keyed += [(age, row) for age, (_, row) in zip(ages, rows, strict=True)]
    return [row for _, row in sorted(keyed, key=lambda pair: pair[0])]
