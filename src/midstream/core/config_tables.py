"""What tables of `midstream.toml` are made of: keys, tables, the shapes that the file has and the specs have not.

Pure. The machinery only; which keys there are is `core/config_schema.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Any

from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, override

from midstream.core.config_mistakes import Misfit, Misfits, shown
from midstream.core.config_values import Reader
from midstream.core.config_walk import problems_of
from midstream.core.spec import HostSpec
from midstream.core.values import dataclass

# shapes that the file has and the spec has not


@dataclass(frozen=True, slots=True)
class SecretSource:
    """Where the deployer reads one secret; exactly one is given. The value is no part of any spec."""

    file: str = ""
    env: str = ""
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BuildTable:
    run: tuple[tuple[str, ...], ...]
    shell: bool = False
    timeout_s: float = 1800.0
    env: dict[str, str] = field(default_factory=dict)
    on: str = "each"
    roles: tuple[str, ...] = ()
    name: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MigrateTable:
    run: tuple[tuple[str, ...], ...]
    shell: bool = False
    timeout_s: float = 1800.0
    env: dict[str, str] = field(default_factory=dict)
    role: str = "db"
    reversible: bool = True
    rerun: bool = False


@dataclass(frozen=True, slots=True)
class HookTable:
    run: tuple[tuple[str, ...], ...]
    before: str = ""
    after: str = ""
    undo: tuple[str, ...] = ()
    shell: bool = False
    timeout_s: float = 1800.0
    env: dict[str, str] = field(default_factory=dict)
    on: str = "each"
    roles: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class NotifyTable:
    """Who is told of deploys. urls: as apprise takes them, or where the deployer reads one. on: see `NOTIFY_ON`."""

    urls: tuple[str | SecretSource, ...] = ()
    on: tuple[str, ...] = ("finished", "failed")


NOTIFY_ON = ("started", "finished", "failed", "attention", "interrupted")


@dataclass(frozen=True, slots=True)
class StageTable:
    hosts: tuple[HostSpec, ...] = ()
    secrets: dict[str, SecretSource] = field(default_factory=dict)
    notify: NotifyTable = NotifyTable()


# the tables


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `default`: how the default is described where the field's own value would not tell."""

    name: str
    field: str
    reader: Reader
    doc: str
    default: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """One kind of table. `place`: how it is headed in the file. `prepare`: changes the raw table before it is read."""

    kind: type
    place: str
    doc: str
    keys: tuple[Key, ...]
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    free: str = ""  # what other keys are, where any may stand
    also: tuple[str, ...] = ()  # keys that stand here and are read elsewhere


NAME_KEY = "<name>"  # carries the name of a service table into its spec; no file can mean it

_CONVERTER = Converter(detailed_validation=True, forbid_extra_keys=True)


def reader_of(table: Table, *, advice: Callable[[Table, str], str]) -> Reader:
    """The reader of a whole table, by cattrs: unknown keys forbidden, every problem collected.

    advice: what to say of a key that the table has not.
    """
    settings: dict[str, Any] = {key.field: override(rename=key.name, struct_hook=key.reader) for key in table.keys}
    for spec_field in dataclasses.fields(table.kind):
        settings.setdefault(spec_field.name, override(omit=True))
    structure: Any = make_dict_structure_fn(table.kind, _CONVERTER, **settings)
    names = {key.field: key.name for key in table.keys}
    expectations = {key.name: key.reader.expected for key in table.keys}

    def convert(value: Any) -> Any:
        if not isinstance(value, dict):
            raise Misfit(f"expected a table, got {shown(value)}")
        raw = table.prepare(value) if table.prepare else value
        try:
            return structure(raw, table.kind)
        except Exception as error:
            raise Misfits(problems_of(error, names, expectations, partial(advice, table))) from None

    return Reader(convert, "a table")


def short_or_table(short: Callable[[Any], Any], whole_table: Reader, expected: str) -> Reader:
    """A table read by `whole_table`; any other value by `short`."""
    return Reader(
        lambda value: whole_table(value) if isinstance(value, dict) else short(value), f"{expected}, or a table"
    )


def shell_lines(*keys: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """With `shell = true` a command line is kept as it is: one word, which the shell gets."""

    def keep(line: Any, path: tuple[str | int, ...]) -> Any:
        if not isinstance(line, str) or not line.strip():
            raise Misfit(f"with shell = true a command is one string, got {shown(line)}", path)
        return [line]

    def prepare(table: dict[str, Any]) -> dict[str, Any]:
        if table.get("shell") is not True:
            return table
        changed = dict(table)
        for key in keys:
            value = table.get(key)
            if key == "run" and isinstance(value, list):
                changed[key] = [keep(line, (key, index)) for index, line in enumerate(value)]
            elif key == "run" and value is not None:
                changed[key] = [keep(value, (key,))]
            elif value is not None:
                changed[key] = keep(value, (key,))
        return changed

    return prepare
