"""Values cross as JSON and come back the same; what does not fit is refused with the path of the place."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core import messages, wire
from midstream.core.messages import (
    REPLIES,
    REQUESTS,
    FdPlacement,
    Held,
    ListenerSpec,
    ProcessEntry,
    ProcessKind,
    ProcessState,
    SpawnSpec,
    StandingOrder,
)
from midstream.core.wire import WireError, from_wire, to_wire

texts = st.text(max_size=20)
numbers = st.integers(min_value=-(2**53), max_value=2**53)
some_number = st.none() | numbers
placements = st.builds(FdPlacement, numbers, texts)
specs = st.builds(
    SpawnSpec,
    key=texts,
    argv=st.lists(texts, max_size=3).map(tuple),
    env=st.dictionaries(texts, texts, max_size=3),
    cwd=texts,
    kind=st.sampled_from(ProcessKind),
    uid=some_number,
    groups=st.lists(numbers, max_size=3).map(tuple),
    rlimits=st.dictionaries(texts, st.tuples(numbers, numbers), max_size=2),
    no_new_privileges=st.booleans(),
    cgroup=st.none() | texts,
    fds=st.lists(placements, max_size=3).map(tuple),
)
entries = st.builds(
    ProcessEntry,
    key=texts,
    kind=st.sampled_from(ProcessKind),
    state=st.sampled_from(ProcessState),
    seq=numbers,
    code=some_number,
    started_s=st.floats(allow_nan=False, allow_infinity=False),
)
values = specs | entries | st.builds(StandingOrder, texts, specs) | st.builds(ListenerSpec, texts, texts)


FULL = StandingOrder(
    "app/web/0",
    SpawnSpec(
        "app/web/1/0/1",
        ("sleep", "1"),
        {"A": "b"},
        "/",
        uid=0,
        groups=(1,),
        rlimits={"nofile": (1, 2)},
        fds=(FdPlacement(1, "null"),),
    ),
)
ENDED = ProcessEntry("app/web/1/0/1", ProcessKind.INSTANCE, ProcessState.EXITED, 7, code=1, started_s=1.5)
OTHERS = (None, True, 0, 1.5, "x", [], [1], ["x"], {}, {"x": "y"}, [{}], "instance")


def misshapen(data):
    """`data`, then with one thing anywhere in it dropped, added or replaced."""
    yield data
    yield from OTHERS
    if isinstance(data, dict):
        yield data | {"more": 1}
    for place in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        kept = dict(data) if isinstance(data, dict) else list(data)
        del kept[place]
        yield kept
        for inner in misshapen(data[place]):
            changed = dict(data) if isinstance(data, dict) else list(data)
            changed[place] = inner
            yield changed


@pytest.mark.parametrize("value", [FULL, ENDED])
def test_what_fits_is_decoded_as_it_would_be_step_by_step(value):
    """The decoder made for a class takes what the one that names the place takes, and nothing else."""
    for data in misshapen(to_wire(value)):
        try:
            expected = wire._decode(type(value), data, "")
        except WireError as error:
            with pytest.raises(WireError) as refused:
                from_wire(type(value), data)
            assert str(refused.value) == str(error)
        else:
            assert repr(from_wire(type(value), data)) == repr(expected)


@given(values)
def test_a_value_comes_back_from_json_as_it_was(value):
    assert from_wire(type(value), json.loads(json.dumps(to_wire(value)))) == value


@given(values)
def test_what_equals_its_default_is_not_written(value):
    written = to_wire(value)
    for item in fields(value):
        if item.name in written and item.default is not None and not isinstance(item.default, type(fields)):
            assert getattr(value, item.name) != item.default


json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*REQUESTS.values(), *REPLIES.values()]), json_values)
def test_whatever_json_comes_it_is_read_or_refused_and_never_anything_else(kind, value):
    try:
        found = from_wire(kind, value)
    except WireError:
        return
    assert isinstance(found, kind) and from_wire(kind, to_wire(found)) == found


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    colours: tuple[Colour, ...]
    size: int = 1


@dataclass(frozen=True)
class Outer:
    name: str
    inner: dict[str, Inner] = field(default_factory=dict)
    maybe: Inner | None = None
    pair: tuple[int, str] | None = None
    share: float = 0.5
    flag: bool = False


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({}, "name: missing"),
        ({"name": 1}, "name: expected str"),
        ({"name": "x", "nmae": 1}, "nmae: unknown key"),
        ({"name": "x", "inner": {"a": {"colours": ["red", "blue"]}}}, "inner.a.colours[1]: expected one of red"),
        ({"name": "x", "inner": {"a": {"colours": "red"}}}, "inner.a.colours: expected a list"),
        ({"name": "x", "inner": []}, "inner: expected a table"),
        ({"name": "x", "inner": {"a": {"colours": [], "size": True}}}, "inner.a.size: expected a whole number"),
        ({"name": "x", "inner": {"a": {"colours": [], "size": 1.0}}}, "inner.a.size: expected int"),
        ({"name": "x", "maybe": {"colours": [], "size": None}}, "maybe.size: expected int"),
        ({"name": "x", "pair": [1]}, "pair: expected 2 items"),
        ({"name": "x", "pair": [1, 2]}, "pair[1]: expected str"),
        ({"name": "x", "share": "half"}, "share: expected float"),
        ({"name": "x", "share": True}, "share: expected float"),
        ({"name": "x", "flag": 1}, "flag: expected bool"),
        ([], "value: expected a table"),
        (None, "value: expected a table"),
    ],
)
def test_a_refusal_names_the_place(data, path):
    with pytest.raises(WireError) as refused:
        from_wire(Outer, data)
    assert path in str(refused.value)


def test_a_whole_number_may_stand_for_a_float():
    assert from_wire(Outer, {"name": "x", "share": 1}).share == 1.0


def test_defaults_fill_what_an_older_program_did_not_send():
    """Version N reads what N-1 wrote: fields are only added, with a default."""
    spec = from_wire(SpawnSpec, {"key": "a/b/1/0/1", "argv": ["true"], "env": {}, "cwd": "/"})
    assert spec.kind is ProcessKind.INSTANCE and spec.fds == ()


def test_every_message_type_is_frozen_and_slotted():
    for name in dir(messages):
        kind = getattr(messages, name)
        if isinstance(kind, type) and kind.__module__ == messages.__name__ and not issubclass(kind, enum.Enum):
            assert "__slots__" in vars(kind) and kind.__dataclass_params__.frozen, name


def test_held_kinds_are_what_fd_sources_are_called():
    assert {kind.value for kind in Held} == {"listener", "channel", "notify", "order"}
