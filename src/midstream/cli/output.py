"""Text for people: tables, times, sizes, colours. Pure but for `echo` and asking whether stdout is a terminal.

No rich here: commands that answer at once must start at once.
"""

from __future__ import annotations

import datetime
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import click

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def echo_json(value: Any) -> None:
    """One value as one line."""
    click.echo(json.dumps(value, ensure_ascii=False))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns wide enough for their cells, two blanks between; no trailing blanks. Escapes count nothing."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _width(text: str) -> int:
    plain = click.unstyle(text)
    if plain.isascii():
        return len(plain)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in plain)


def span(seconds: float | None) -> str:
    """A duration in at most two units: `2h 5m`, `45s`, `0.3s`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f}s"
    rest = round(seconds)
    parts: list[str] = []
    for length, unit in _UNITS:
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if part)


def size(count_bytes: int | None) -> str:
    """`31M`, `1.2G`; `-` for None."""
    if count_bytes is None:
        return "-"
    value = float(count_bytes)
    for unit in ("", "K", "M", "G"):
        if value < 1024:
            return f"{value:.0f}{unit}" if value >= 10 or not unit else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}T"


def moment(epoch_s: float | None) -> str:
    """Local date and time of a stored moment; `-` for None."""
    if not epoch_s:
        return "-"
    return datetime.datetime.fromtimestamp(epoch_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clean(text: str) -> str:
    """Text from elsewhere, safe on a terminal: control bytes are shown, not sent."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def short(revision: str) -> str:
    """A revision as people write it."""
    return revision[:10]


_COLOURS = {
    "running": "green",
    "committed": "green",
    "good": "green",
    "starting": "yellow",
    "handover": "yellow",
    "soaking": "yellow",
    "proven": "yellow",
    "draining": "cyan",
    "held": "yellow",
    "degraded": "yellow",
    "backoff": "red",
    "failed": "red",
    "bad": "red",
    "stopped": "bright_black",
}


def coloured(word: str) -> str:
    """A state in its colour; click drops colours when stdout is no terminal."""
    colour = _COLOURS.get(word)
    return click.style(word, fg=colour) if colour else word
