"""The order of tests in a run with several workers (tests/longest_first.py)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longest_first import LONG, dealt


@dataclass(frozen=True)
class Item:
    nodeid: str


def items_of(*counts: int) -> list[Item]:
    """So many tests of each long file in turn, and short ones before and after them."""
    long = [f"tests/e2e/{name}.py::{n}" for name, count in zip(LONG, counts, strict=False) for n in range(count)]
    short = [f"tests/process/test_short.py::{n}" for n in range(40)]
    return [Item(name) for name in (*short[:20], *long, *short[20:])]


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=len(LONG)), st.integers(1, 9))
def test_each_is_there_once(counts: list[int], workers: int) -> None:
    items = items_of(*counts)
    assert sorted(item.nodeid for item in dealt(items, workers)) == sorted(item.nodeid for item in items)


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_each_worker_begins_with_a_long_file(workers: int) -> None:
    order = dealt(items_of(3, 2, 4, 1), workers)
    begins, left = [], len(order)
    for number in range(workers):  # as pytest-xdist cuts its list
        begins.append(order[len(order) - left].nodeid)
        left -= left // (workers - number)
    assert begins == [f"tests/e2e/{name}.py::0" for name in LONG[:workers]]


def test_one_worker_keeps_the_order() -> None:
    items = items_of(3, 2)
    assert dealt(items, 1) == items
