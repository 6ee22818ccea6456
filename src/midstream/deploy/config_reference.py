"""The reference of keys in docs/configuration.md, drawn from the tables that read them.

`python -m midstream.deploy.config_reference` prints it; `--write FILE` puts it between the two marks in FILE. A
developer runs it after a key was added; no other program does.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from midstream.core.config_schema import TABLES
from midstream.core.config_tables import NAME_KEY, Key, Table
from midstream.core.durations import format_duration, format_size
from midstream.core.placeholders import IN_ADDRESS, IN_ENV, IN_SERVICE, IN_STEP, MEANINGS
from midstream.core.points import HANDOVER, PHASES, TASKS

BEGIN = "<!-- drawn from the code by `python -m midstream.deploy.config_reference --write FILE` -->"
END = "<!-- until here -->"


def reference() -> str:
    """Markdown: a section for each table, then placeholders and points."""
    parts = [section(table) for table in TABLES]
    return "\n".join([*parts, _placeholders(), _points()])


def section(table: Table) -> str:
    """Heading, what the table is for, its keys."""
    place = table.place if not table.place.startswith("[") else f"`{table.place}`"
    lines = [f"### {place[0].upper()}{place[1:]}", "", table.doc, "", "| key | takes | default | meaning |"]
    lines.append("|---|---|---|---|")
    lines += [
        f"| `{key.name}` | {_cell(key.reader.shortly)} | {_cell(_default(table, key))} | {_cell(key.doc)} |"
        for key in table.keys
        if key.name != NAME_KEY
    ]
    if table.free:
        lines += ["", table.free]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _default(table: Table, key: Key) -> str:
    if key.default is not None:
        return key.default
    field = next(one for one in dataclasses.fields(table.kind) if one.name == key.field)
    if field.default_factory is not dataclasses.MISSING:
        return "none"
    if field.default is dataclasses.MISSING:
        return "must be given"
    return _shown(field.default, key.field)


def _shown(value: Any, field: str) -> str:
    if value is None or value == "" or value == () or dataclasses.is_dataclass(value):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, enum.Enum):
        return f'`"{value.value}"`'
    if field.endswith("_s"):
        return f'`"{format_duration(value)}"`' if value else "`0`"
    if field.endswith("_bytes"):
        return f'`"{format_size(value)}"`'
    if isinstance(value, tuple):
        return f"`[{', '.join(str(item) for item in value)}]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _placeholders() -> str:
    lines = ["### Placeholders", "", "A lower-case word in braces. `{{word}}` stands for `{word}`; `${word}` is left"]
    lines += ["to the shell.", "", "| | means | in |", "|---|---|---|"]
    lines += [f"| `{{{word}}}` | {meaning} | {', '.join(_where(word))} |" for word, meaning in MEANINGS.items()]
    return "\n".join(lines) + "\n"


def _where(word: str) -> Iterator[str]:
    places = (
        (IN_SERVICE, "`command`"),
        (IN_ENV, "`env`, health commands"),
        (IN_STEP, "`run`, `undo`"),
        (IN_ADDRESS, "`listen`, `log.path`"),
    )
    return (name for words, name in places if word in words)


def _points() -> str:
    lines = ["### Points", "", "For `before`, `after`, `from` and `to`. Phases, also as `deploy:PHASE`:"]
    lines += [", ".join(f"`{name}`" for name in PHASES) + ".", "", "Built-in tasks:"]
    lines += [", ".join(f"`{name}`" for name in TASKS) + ".", ""]
    lines += [f"And `{HANDOVER}`: on each host, around the change from the old generation to the new."]
    return "\n".join(lines) + "\n"


def updated(page: str) -> str:
    """`page` with a fresh reference between its marks. Raises ValueError when it has no marks."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no marks for the reference")
    return f"{head}{BEGIN}\n\n{reference()}\n{END}{tail}"


def main(argv: list[str]) -> int:
    if argv[:1] == ["--write"] and len(argv) == 2:
        path = Path(argv[1])
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(reference())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
