"""Rows of several clocks, in one order."""

from __future__ import annotations

from midstream.core.moments import by_age, unjumped


def test_times_of_a_clock_that_was_set() -> None:
    assert unjumped([]) == []
    assert unjumped([1.0, 2.0, 5.0]) == [1.0, 2.0, 5.0]
    assert unjumped([1.0, 90.0, 91.0, 5.0, 6.0]) == [1.0, 5.0, 5.0, 5.0, 6.0], "set back"
    assert unjumped(["a", "c", "b"]) == ["a", "b", "b"]


def test_hosts_whose_clocks_are_days_apart_are_compared_by_how_long_ago() -> None:
    ahead = [(900_010.0, "b"), (900_030.0, "d")]
    behind = [(5.0, "a"), (20.0, "c")]
    assert by_age([(900_040.0, ahead), (40.0, behind)]) == ["a", "b", "c", "d"]


def test_a_host_keeps_its_order_whatever_its_clock_did() -> None:
    set_back = [(900_010.0, "a1"), (900_020.0, "a2"), (25.0, "a3")]
    assert by_age([(40.0, set_back), (40.0, [(30.0, "b1"), (10.0, "b2")])]) == ["b1", "b2", "a1", "a2", "a3"]
