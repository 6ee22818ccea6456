"""The line of every key that `tomllib` finds."""

from __future__ import annotations

import tomllib
from typing import Any

from config_samples import DESIGN, FULL
from hypothesis import given
from hypothesis import strategies as st

from midstream.core.config_lines import Path, line_of, locate

TEXT = '''\
# a comment with [brackets] and "quotes
a = 1   # one
"quoted \\u00e9 key" = 2
b.c = """
[not.a.table]
x = 1
"""
d = [ 1,  # first
  "]", { e = 1, f = [2, 3] },
]
g = 1979-05-27 07:32:00

[t]
x = 'a # b'
  [t.u]
  y = """x""""
[[list]]
k = 1
[[list]]
k = 2
[list.sub]
z = {}
[[list.sub2]]
w = """""
"quote"
"""
v = []
'''


def paths_of(value: Any, path: Path = ()) -> set[Path]:
    found = {path} if path else set()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found |= paths_of(item, (*path, key))
    return found


def test_each_key_stands_where_it_was_written() -> None:
    lines = locate(TEXT)
    assert {path: lines[path] for path in lines if path[-1] not in ("sub", "list")} == {
        ("a",): 2,
        ("quoted é key",): 3,
        ("b",): 4,
        ("b", "c"): 4,
        ("d",): 8,
        ("d", 0): 8,
        ("d", 1): 9,
        ("d", 2): 9,
        ("d", 2, "e"): 9,
        ("d", 2, "f"): 9,
        ("d", 2, "f", 0): 9,
        ("d", 2, "f", 1): 9,
        ("g",): 11,
        ("t",): 13,
        ("t", "x"): 14,
        ("t", "u"): 15,
        ("t", "u", "y"): 16,
        ("list", 0): 17,
        ("list", 0, "k"): 18,
        ("list", 1): 19,
        ("list", 1, "k"): 20,
        ("list", 1, "sub", "z"): 22,
        ("list", 1, "sub2"): 23,
        ("list", 1, "sub2", 0): 23,
        ("list", 1, "sub2", 0, "w"): 24,
        ("list", 1, "sub2", 0, "v"): 27,
    }
    assert (lines[("list",)], lines[("list", 1, "sub")]) == (17, 21)


def test_every_path_that_tomllib_reads_is_found() -> None:
    for text in (TEXT, DESIGN, FULL, FULL.replace("\n", "\r\n")):
        assert set(locate(text)) == paths_of(tomllib.loads(text))


def test_the_line_of_what_is_not_there_is_that_of_its_table() -> None:
    lines = locate("a = 1\n[t.u]\nx = 1\n")
    assert line_of(lines, ("t", "u", "missing", 0)) == 2
    assert line_of(lines, ("z",)) is None


KEYS = st.text("abé \\\"'.#[]=", min_size=1, max_size=4)
STRINGS = st.text("ab\"'\\#[]{}=,\n", max_size=8)
VALUES = st.recursive(
    st.integers() | st.booleans() | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}'" if not set(value) & set("'\n") else quoted(value)
    if isinstance(value, list):
        return "[ " + ",\n  ".join(written(item) for item in value) + " ] # ]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {inline(item)}" for key, item in value.items()) + "}"
    return str(value)


def inline(value: Any) -> str:
    return written(value).replace(" # ]", "").replace(",\n  ", ", ") if isinstance(value, list) else written(value)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_whatever_is_written_is_found(table: dict[str, Any]) -> None:
    text = "".join(f"{quoted(key)} = {written(value)}\n" for key, value in table.items())
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # a comment within a nested list; not what is tested here
    assert set(locate(text)) == paths_of(parsed)
