"""Each setting is declared once: the tables of keys cover the specs, and the reference page is drawn from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from midstream.core import spec
from midstream.core.config_schema import LIKELY, TABLES
from midstream.core.config_tables import NAME_KEY, Table
from midstream.deploy.config_reference import reference, section, updated

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

# set from where a table stands, or computed, not by a key
NO_KEYS = {(spec.AppSpec, "stage"), (spec.AppSpec, "roles"), (spec.EnvSpec, "variables"), (spec.EnvSpec, "secrets")} | {
    (spec.HookSpec, "number"),
    (spec.CommandStep, "number"),
}
# the file has another shape; the fields are set by these keys of the tables they are read from
ELSEWHERE = {spec.CommandStep: "[[build]]", spec.MigrateSpec: "[migrate]", spec.HookSpec: "[[hooks]]"}
SHAPED = {"when": "before", "point": "before", "step": "run"}


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(spec).values() if dataclasses.is_dataclass(kind)], ids=lambda kind: kind.__name__
)
def test_every_field_of_every_spec_has_a_key(kind: type) -> None:
    place = ELSEWHERE.get(kind)
    table = next(one for one in TABLES if one.place == place or (place is None and one.kind is kind))
    keys = {key.field for key in table.keys}
    for field in dataclasses.fields(kind):
        if (kind, field.name) not in NO_KEYS:
            assert SHAPED.get(field.name, field.name) in keys, f"{kind.__name__}.{field.name} has no key"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.place)
def test_every_key_sets_a_field_and_says_what_it_means(table: Table) -> None:
    fields = {field.name for field in dataclasses.fields(table.kind)}
    for key in table.keys:
        assert key.field in fields
        assert key.reader.expected
        assert key.name == NAME_KEY or key.doc.endswith((".", ".'", '."')), f"{key.name}: say what it means"
    assert len({key.name for key in table.keys}) == len(table.keys)


def test_defaults_are_the_same_where_the_file_has_a_shape_of_its_own() -> None:
    step = {field.name: field.default for field in dataclasses.fields(spec.CommandStep)}
    for table in TABLES:
        if table.place in ("[[build]]", "[migrate]", "[[hooks]]"):
            for field in dataclasses.fields(table.kind):
                if field.name in step and field.default is not dataclasses.MISSING:
                    assert field.default == step[field.name]


def test_words_of_other_programs_lead_to_keys_that_exist() -> None:
    for (kind, word), meant in LIKELY.items():
        table = next(one for one in TABLES if one.kind is kind)
        names = {key.name for key in table.keys} | set(table.also)
        assert meant in names
        assert word not in names


def test_the_reference_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert updated(page) == page, "run python -m midstream.deploy.config_reference --write docs/configuration.md"


def test_every_key_is_in_the_reference() -> None:
    for table in TABLES:
        for key in table.keys:
            assert key.name == NAME_KEY or f"| `{key.name}` |" in section(table)
        assert section(table) in reference()
