"""Durations, sizes, modes and placeholders."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core.durations import format_duration, format_size, parse_duration, parse_mode, parse_size
from midstream.core.placeholders import Placeholder, escape, fill, find
from midstream.core.points import PHASES, POINTS, point_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("2m", 120), ("1h30m", 5400), ("250ms", 0.25), ("1.5h", 5400), (" 5s ", 5), (0.5, 0.5)],
)  # fmt: skip
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "s", "1x", "-1s", "1m1m", "1h 30m", "\u0661s", True, None, [], -1, 1e300, 10**400]
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)


@given(st.integers(0, 10**8) | st.integers(0, 999).map(lambda ms: ms / 1000))
def test_a_duration_is_read_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("10MB", 10 * 1024**2), ("10m", 10 * 1024**2), ("1.5G", 3 * 2**29), ("1KiB", 1024), ("5 KB", 5120), (8, 8)],
)  # fmt: skip
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "1XB", "-1", -1, True, 1.5, None, "9" * 30, 2**63])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_size(text)


@given(st.integers(0, 2**62))
def test_a_size_is_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_a_mode_is_octal_and_in_quotes() -> None:
    assert (parse_mode("0660"), parse_mode("755")) == (0o660, 0o755)
    for value in (660, 0o660, "0o660", "888", "4755", "", None):
        with pytest.raises(ValueError, match='expected a mode in quotes such as "0660"'):
            parse_mode(value)


def test_placeholders_are_lower_case_words_in_braces() -> None:
    text = "{shared} {fd:web} ${home} {{print}} {A} {} {a:1} {'x'} {ready_fd}"
    assert find(text) == (Placeholder("shared"), Placeholder("fd", "web"), Placeholder("ready_fd"))
    values = {"shared": "/s", "fd:web": "3", "ready_fd": "4"}
    assert fill(text, values) == "/s 3 ${home} {print} {A} {} {a:1} {'x'} 4"


@given(st.text("{}$ab: ", max_size=16))
def test_escaped_text_comes_through_as_it_is(text: str) -> None:
    assert fill(escape(text), {}) == text


def test_what_is_filled_in_is_not_looked_at_again() -> None:
    assert fill("{run}", {"run": "{shared}", "shared": "x"}) == "{shared}"


def test_a_placeholder_without_a_value_is_named() -> None:
    with pytest.raises(KeyError, match=r"\{fd:x\}"):
        fill("{fd:x}", {"fd": "3"})


def test_points_are_known_with_and_without_their_prefix() -> None:
    assert [point_of(f"deploy:{phase}") for phase in PHASES] == list(PHASES)
    assert [point_of(point) for point in POINTS] == list(POINTS)
    assert point_of("deploy:nothing") is None
    assert point_of("deploy:handover") is None
