"""Any mutation of a valid file is either valid too or a `ConfigError` that names the place; never another exception."""

from __future__ import annotations

import copy
import datetime
import json
import tomllib
from typing import Any

import pytest
from config_samples import AROUND, FULL
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.core.config import destination, load
from midstream.core.config_lines import Path
from midstream.core.config_mistakes import ConfigError, show_path

VALID: dict[str, Any] = tomllib.loads(FULL)
A_DATE = datetime.date(1979, 5, 27)  # a TOML type that no key takes
FREE = {"env", "headers", "services", "stages", "secrets", "rlimits"}  # tables with keys of the user's own


def written(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(written(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else str(value)


def document(table: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(key)} = {written(value)}\n" for key, value in table.items())


def paths_of(value: Any, path: Path = ()) -> list[Path]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in [(*path, key), *paths_of(item, (*path, key))]]


def at(value: Any, path: Path) -> Any:
    for part in path:
        value = value[part]
    return value


def changed(path: Path, value: Any) -> dict[str, Any]:
    table = copy.deepcopy(VALID)
    at(table, path[:-1])[path[-1]] = value
    return table


PATHS = paths_of(VALID)
TABLES = [path for path in [(), *PATHS] if isinstance(at(VALID, path), dict) and (not path or path[-1] not in FREE)]


def mistakes_of(table: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(document(table), around=AROUND)
    return [mistake.path for mistake in caught.value.mistakes]


def test_the_file_is_valid_before_it_is_mutated() -> None:
    load(document(VALID), around=AROUND)


@pytest.mark.parametrize("path", TABLES, ids=show_path)
def test_an_unknown_key_is_found_in_every_table(path: Path) -> None:
    assert show_path((*path, "qqq")) in mistakes_of(changed((*path, "qqq"), 1))


@pytest.mark.parametrize("path", PATHS, ids=show_path)
def test_a_wrong_type_is_found_at_every_place(path: Path) -> None:
    named = mistakes_of(changed(path, A_DATE))
    assert any(show_path(path).startswith(place) and place for place in named), named


JUNK = st.recursive(
    st.none().map(lambda _: True)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=True).map(lambda number: float(f"{number:.3e}"))
    | st.text(max_size=8).filter(lambda text: text.isprintable())
    | st.sampled_from(["{fd}", "{qq}", "-x", "..", "/", "~", "tcp://", "unix:///x", "a b", "'", "SIGTERM", "0777"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["run", "x", "address", "A"]), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(PATHS), value=JUNK)
def test_junk_anywhere_is_a_configuration_error_or_valid(path: Path, value: Any) -> None:
    text = document(changed(path, value))
    tomllib.loads(text)  # the mutation itself is good TOML
    for read in (
        lambda: load(text, around=AROUND),
        lambda: load(FULL, text, around=AROUND),
        lambda: load(text, FULL, around=AROUND),
        lambda: destination(text, "production", around=AROUND),
    ):
        try:
            read()
        except ConfigError as error:
            assert error.mistakes
            assert all(mistake.path and mistake.what for mistake in error.mistakes)
        except Exception as error:
            if "there is no stage" not in str(error):
                raise


@settings(max_examples=100, deadline=None)
@given(path=st.sampled_from(PATHS))
def test_without_any_one_key_it_is_valid_or_names_what_is_missing(path: Path) -> None:
    table = copy.deepcopy(VALID)
    holder = at(table, path[:-1])
    del holder[path[-1]]
    try:
        load(document(table), around=AROUND)
    except ConfigError as error:
        assert all(mistake.path for mistake in error.mistakes)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_a_configuration_or_a_configuration_error(text: str) -> None:
    try:
        load(text, around=AROUND)
    except ConfigError as error:
        assert error.mistakes
