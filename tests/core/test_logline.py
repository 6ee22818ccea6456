"""Cutting a stream into lines, writing them down, reading them back, and when to rotate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core import logline
from midstream.core.logline import ChannelName, LogLine, Piece, Rest, Rotation
from midstream.core.spec import LogSpec

AT = "2026-11-21T19:05:01.123Z"
streams = st.lists(st.sampled_from([b"\n", b"a", b"bc", "é".encode(), "€".encode(), b"\xff", b"\x00"])).map(b"".join)


def joined(pieces: list[Piece]) -> bytes:
    return b"".join(piece.text + (b"" if piece.cut else b"\n") for piece in pieces)


@given(streams, st.integers(4, 9), st.lists(st.integers(1, 12)))
def test_pieces_joined_again_are_the_stream_however_it_arrives(data: bytes, limit: int, arrivals: list[int]) -> None:
    pieces: list[Piece] = []
    waiting = b""
    for size in [*arrivals, len(data)]:
        waiting, data = waiting + data[:size], data[size:]
        found, consumed = logline.split(waiting, limit=limit)
        assert joined(found) == waiting[:consumed]
        assert b"\n" not in waiting[consumed:] and len(waiting) - consumed <= limit
        pieces += found
        waiting = waiting[consumed:]
    assert all(len(piece.text) <= limit and b"\n" not in piece.text for piece in pieces)


@given(streams, st.integers(4, 9))
def test_the_end_of_a_stream_leaves_nothing_behind(data: bytes, limit: int) -> None:
    for rest in (Rest.CUT, Rest.END):
        pieces, consumed = logline.split(data, rest, limit)
        assert consumed == len(data)
        ended = data if not data or data.endswith(b"\n") else data + b"\n"
        assert joined(pieces) in (data, ended)
        assert rest is Rest.CUT or not pieces or not pieces[-1].cut


@given(st.text(min_size=1), st.integers(4, 9))
def test_a_cut_does_not_tear_a_character(text: str, limit: int) -> None:
    pieces, _ = logline.split(text.replace("\n", "").encode(), Rest.END, limit)
    assert "".join(piece.text.decode() for piece in pieces) == text.replace("\n", "")


def test_a_line_as_it_is_stored() -> None:
    stored = logline.render([Piece(b"GET /"), Piece(b"long", cut=True)], AT, 42, 0)
    assert stored == f"{AT} 42.0 GET /\n{AT} 42.0+ long\n".encode()
    assert logline.render([Piece(b"GET /")], AT, 42, 0, timestamps=False) == b"GET /\n"
    assert logline.stamp(1795287901.1234) == AT
    assert logline.stamp(logline.stamp_time_s(AT)) == AT


lines = st.binary().map(lambda data: data.replace(b"\n", b""))


@given(lines, st.booleans(), st.integers(0, 10**9), st.integers(0, 10**6))
def test_what_is_stored_reads_back(text: bytes, cut: bool, generation: int, slot: int) -> None:
    stored = logline.render([Piece(text, cut)], AT, generation, slot)
    line = logline.parse(stored[:-1], "web", raw=True)
    assert line == LogLine(AT, "web", generation, slot, text.decode("utf-8", "backslashreplace"), cut)


@given(lines)
def test_no_output_can_pass_for_a_note_of_ours(text: bytes) -> None:
    stored = logline.render([Piece(text)], AT, 1, 0)
    assert logline.parse(stored[:-1], "web").generation == 1
    note = logline.parse(logline.render_note("disk full", AT)[:-1], "web")
    assert note == LogLine(AT, "web", None, None, "midstream: disk full")


def test_a_line_that_is_not_ours_is_taken_whole() -> None:
    assert logline.parse(b'{"level":"info"}', "web", time=AT) == LogLine(AT, "web", None, None, '{"level":"info"}')


@given(st.binary())
def test_nothing_shown_can_steer_a_terminal(text: bytes) -> None:
    shown = logline.readable(text)
    assert all(char == "\t" or (char >= " " and not "\x7f" <= char <= "\x9f") for char in shown)
    assert not set(shown) & set("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def test_control_characters_are_shown_as_escapes_and_text_as_it_is() -> None:
    assert logline.readable(b"\x1b[31mred\x07 \xff ok\tend") == "\\x1b[31mred\\x07 \\xff ok\tend"
    assert logline.readable(b"\x1b[31mred", raw=True) == "\x1b[31mred"
    assert logline.readable("größe \u202eevil".encode()) == "größe \\u202eevil"


@pytest.mark.parametrize(
    ("size", "started", "incoming", "due"),
    [
        (0, None, 10**9, False),
        (900, None, 100, False),
        (900, None, 101, True),
        (1, 500.0, 1, False),
        (1, 400.0, 1, True),
        (1, None, 1, False),
        (1, 2000.0, 1, False),  # the clock went back
        (0, 400.0, 1, False),
    ],
)
def test_when_a_file_is_rotated(size: int, started: float | None, incoming: int, due: bool) -> None:
    spec = LogSpec(max_size_bytes=1000, max_age_s=600.0)
    assert logline.must_rotate(spec, size, started, 1000.0, incoming) is due


def test_a_limit_of_nought_is_none() -> None:
    assert not logline.must_rotate(LogSpec(max_size_bytes=0, max_age_s=0.0), 10**12, 0.0, 10**9, 1)


@given(st.frozensets(st.integers(1, 14)), st.integers(0, 12))
def test_rotation_keeps_the_newest_and_never_overwrites(existing: frozenset[int], keep: int) -> None:
    """Files are worth their age: 0 the youngest. Carry the moves out on a table of number -> age."""
    table = {number: number for number in existing | {0}}
    moves = logline.rotation(existing, keep)
    for number in moves.remove:
        del table[number]
    for source, target in moves.rename:
        assert target not in table
        table[target] = table.pop(source)
    assert 0 not in table
    ages = [table[number] for number in sorted(table)]
    assert ages == sorted(existing | {0})[: len(ages)], "a younger file went before an older one"
    assert all(number <= keep for number in table)
    assert len(table) >= min(keep, len(existing) + 1) or any(number > keep for number in existing)


def test_a_gap_left_by_a_killed_rotation_is_closed() -> None:
    assert logline.rotation(frozenset({2, 3}), 3) == Rotation((), ((0, 1),))
    assert logline.rotation(frozenset({1, 2, 3}), 3) == Rotation((3,), ((2, 3), (1, 2), (0, 1)))


def test_channel_names_read_back() -> None:
    name = ChannelName("shop", "web", 42, 0)
    assert logline.parse_channel(str(name)) == name
    for wrong in ("shop/web/42", "shop/web/42/x", "//1/1", "shop/web/42/0/1", "shop/web/-1/0"):
        with pytest.raises(ValueError, match="not a channel name"):
            logline.parse_channel(wrong)
