"""`core.values.dataclass` makes what the standard one makes, but for who compiled it."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import field

import pytest

from midstream.core import values


def made_by(dataclass):
    @dataclass(frozen=True, slots=True)
    class Point:
        x: int
        words: tuple[str, ...] = ()
        note: str = field(default="", compare=False)
        secret: str = field(default="", repr=False)

    @dataclass(frozen=True, slots=True)
    class Empty:
        pass

    @dataclass(frozen=True, slots=True)
    class Longer(Point):
        y: int = 0

    @dataclass(frozen=True, slots=True)
    class Shown:
        x: int = 0

        def __repr__(self):
            return "shown"

    return Point, Empty, Longer, Shown


OURS = made_by(values.dataclass)
THEIRS = made_by(dataclasses.dataclass)


@values.dataclass(frozen=True, slots=True)
class Kept:
    x: int


def some(kinds):
    Point, Empty, Longer, Shown = kinds
    return [
        Point(1), Point(1, note="n"), Point(1, secret="s"), Point(2, ("a",)), Empty(), Empty(), Longer(1), Longer(1, y=2),
        Shown(), Shown(1), Point(1, (Empty(),)), Point(1, (Empty(),)),
    ]  # fmt: skip


def test_what_is_equal_and_what_is_shown_is_what_the_standard_one_says():
    ours, theirs = some(OURS), some(THEIRS)
    assert [[a == b for a in ours] for b in ours] == [[a == b for a in theirs] for b in theirs]
    assert [repr(item) for item in ours] == [repr(item) for item in theirs]
    assert [len({a, b}) for a in ours for b in ours] == [len({a, b}) for a in theirs for b in theirs]
    assert ours[0] != theirs[0] and (ours[0] == 1) is False
    assert all(hash(a) == hash(b) for a in ours for b in ours if a == b)


def test_fields_slots_replace_and_matching_are_the_standard_ones():
    for ours, theirs in zip(OURS, THEIRS, strict=True):
        assert [f.name for f in dataclasses.fields(ours)] == [f.name for f in dataclasses.fields(theirs)]
        assert ours.__slots__ == theirs.__slots__ and ours.__match_args__ == theirs.__match_args__
        assert ours.__dataclass_params__.frozen
    point = OURS[0](1)
    assert dataclasses.replace(point, x=3) == OURS[0](3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        point.x = 2
    with pytest.raises((AttributeError, TypeError)):
        point.other = 2
    assert pickle.loads(pickle.dumps(Kept(3))) == Kept(3)


def test_what_cannot_be_hashed_cannot_be():
    with pytest.raises(TypeError):
        hash(OURS[0]([]))


def test_all_other_classes_are_the_standard_ones():
    @values.dataclass
    class Open:
        x: int

    @values.dataclass(slots=True, eq=False)
    class ByIdentity:
        x: int

    @values.dataclass(frozen=True, slots=True)
    class Own:
        x: int

        def __eq__(self, other):
            return True

    open_one = Open(1)
    open_one.x = 2
    assert open_one == Open(2) and Open.__hash__ is None and repr(open_one).endswith("Open(x=2)")
    assert ByIdentity(1) != ByIdentity(1)
    assert Own(1) == Own(2)
