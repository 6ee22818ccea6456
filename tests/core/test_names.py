"""Names have one textual form each, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core.names import SlotName, SpawnKey, is_name, is_release, parse_key

names = st.from_regex(r"[a-z][a-z0-9_-]{0,47}", fullmatch=True)
one_shots = st.from_regex(r"\+[a-z][a-z0-9_.-]{0,47}", fullmatch=True)
numbers = st.integers(min_value=0, max_value=10**9)
keys = st.builds(SpawnKey, names, names | one_shots, numbers, numbers, numbers)


@given(keys)
def test_a_key_reads_back_as_it_was_written(key):
    assert parse_key(str(key)) == key


@given(keys)
def test_the_next_attempt_differs_in_the_attempt_alone(key):
    later = key.next_attempt()
    assert later.attempt == key.attempt + 1
    assert (later.slot_name, later.generation) == (key.slot_name, key.generation)
    assert str(key).rpartition("/")[0] == str(later).rpartition("/")[0]


@given(keys)
def test_a_key_is_one_path_component_of_at_most_255_bytes_when_slashes_are_exchanged(key):
    text = str(key).replace("/", ":")
    assert "/" not in text and len(text) <= 255 and not text.startswith(".") and text.count(":") == 4


@given(st.text(max_size=60))
def test_text_is_a_key_only_when_it_is_what_a_key_writes(text):
    try:
        key = parse_key(text)
    except ValueError:
        return
    assert is_name(key.app) and (is_name(key.service) or key.is_one_shot)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a/b/1/2",
        "a/b/1/2/3/4",
        "A/b/1/2/3",
        "a/b/x/2/3",
        "a/b/-1/2/3",
        "a/b/1/2/3 ",
        "a/../1/2/3",
        "+a/b/1/2/3",
        "a/+/1/2/3",
        "a//1/2/3",
        "a/b/1.0/2/3",
        "a/b/1/2/3\n",
    ],
)
def test_what_is_no_key(text):
    with pytest.raises(ValueError, match="not a spawn key"):
        parse_key(text)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("web", True),
        ("a-b_c9", True),
        ("", False),
        ("9a", False),
        ("A", False),
        ("a b", False),
        ("a" * 48, True),
        ("a" * 49, False),
        ("+a", False),
        ("a/b", False),
        ("a\n", False),
        ("é", False),
    ],
)
def test_what_may_name_an_app_or_a_service(text, good):
    assert is_name(text) is good


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("20261121190501", True),
        ("2026112119050", False),
        ("202611211905011", False),
        ("2026112119050x", False),
        ("20261121190501\n", False),
        ("current", False),
        ("", False),
    ],
)
def test_what_is_a_release(text, good):
    assert is_release(text) is good


def test_the_slot_of_a_key():
    assert str(parse_key("shop/web/41/2/7").slot_name) == "shop/web/2" == str(SlotName("shop", "web", 2))
    assert parse_key("shop/+migrate/41/0/1").is_one_shot
