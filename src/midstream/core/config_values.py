"""Readers: one TOML value in, one value of a spec out, or a `Misfit` that says what was expected.

Pure. A reader is called with the value alone or, by cattrs, with the value and its type. Readers know nothing of keys:
which key is read by which is the table of `core/config_schema.py`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from midstream.core import durations
from midstream.core.config_mistakes import Misfit, Misfits, nearest, shown
from midstream.core.names import is_name
from midstream.core.points import PHASES, POINTS, point_of

SIGNALS = frozenset(
    [
        "HUP",
        "INT",
        "QUIT",
        "ILL",
        "TRAP",
        "ABRT",
        "BUS",
        "FPE",
        "KILL",
        "USR1",
        "SEGV",
        "USR2",
        "PIPE",
        "ALRM",
        "TERM",
        "STKFLT",
        "CHLD",
        "CONT",
        "STOP",
        "TSTP",
        "TTIN",
        "TTOU",
        "URG",
        "XCPU",
        "XFSZ",
        "VTALRM",
        "PROF",
        "WINCH",
        "IO",
        "PWR",
        "SYS",
    ]
)
SUPERVISORS = frozenset({"monit", "runit", "supervisord", "systemd"})

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z", re.ASCII)
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}\$?\Z|[0-9]{1,9}\Z", re.ASCII)
_ADDRESS = re.compile(r"(?:ssh://)?(?:[A-Za-z0-9._][A-Za-z0-9._+%-]*@)?[A-Za-z0-9_\[][A-Za-z0-9._:%\[\]-]*\Z", re.ASCII)
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Reader:
    """`read` returns the value or raises ValueError; `expected` completes "expected …". `label` is a shorter text for
    the reference page."""

    read: Callable[[Any], Any]
    expected: str
    label: str = ""

    @property
    def shortly(self) -> str:
        return self.label or self.expected

    def __call__(self, value: Any, _type: Any = None) -> Any:
        try:
            return self.read(value)
        except (Misfit, Misfits):
            raise
        except ValueError as error:
            raise Misfit(f"{error}, got {shown(value)}") from None


def refuse(expected: str, value: object) -> Misfit:
    return Misfit(f"expected {expected}, got {shown(value)}")


# plain values


def plain_text(value: Any) -> str:
    if not isinstance(value, str):
        raise refuse("a string", value)
    if "\0" in value:
        raise Misfit("expected a string without a NUL byte")
    return value


def one_line(value: Any) -> str:
    text = plain_text(value)
    if CONTROL.search(text):
        raise Misfit("expected one line without control characters")
    return text


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise refuse("true or false", value)
    return value


def whole(least: int = 0, most: int = 2**31 - 1) -> Reader:
    bounds = f"from {least} to {most}" if most < 2**31 - 1 else f"not below {least}"

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise refuse(f"a whole number {bounds}", value)
        return value

    return Reader(read, f"a whole number {bounds}")


def number(least: float, most: float) -> Reader:
    expected = f"a number from {least:g} to {most:g}"

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise refuse(expected, value)
        return float(value)

    return Reader(read, expected)


def choice(options: type[enum.Enum] | Iterable[str]) -> Reader:
    """One of the values of an enum (read as the member), or one of some strings."""
    if isinstance(options, type):
        known: dict[str, Any] = {str(member.value): member for member in options}
    else:
        known = {option: option for option in options}
    expected = "one of " + ", ".join(f'"{word}"' for word in known)

    def read(value: Any) -> Any:
        if not isinstance(value, str) or value not in known:
            raise refuse(expected, value)
        return known[value]

    return Reader(read, expected)


text = Reader(plain_text, "a string")
line = Reader(one_line, "a string of one line")
flag = Reader(_flag, "true or false")
duration = Reader(durations.parse_duration, durations.DURATION, "a duration")
size = Reader(durations.parse_size, durations.SIZE, "a size")
mode = Reader(durations.parse_mode, durations.MODE, "a mode")


def _some_duration(value: Any) -> float:
    seconds = durations.parse_duration(value)
    if seconds == 0:
        raise Misfit("expected a duration above 0: with 0 it would fail at once")
    return seconds


some_duration = Reader(_some_duration, durations.DURATION + ", above 0", "a duration above 0")


# names


def _name(value: Any) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise refuse("a name (lower-case letters, digits, - and _, a letter first, at most 48)", value)
    return value


def _variable(value: Any) -> str:
    if not isinstance(value, str) or not _VARIABLE.match(value):
        raise refuse("the name of a variable (letters, digits and _, no digit first)", value)
    return value


def _user(value: Any) -> str:
    if not isinstance(value, str) or not _USER.match(value):
        raise refuse("the name of a user or group", value)
    return value


def _owner(value: Any) -> str:
    parts = value.split(":") if isinstance(value, str) else []
    if len(parts) not in (1, 2) or not all(_USER.match(part) for part in parts):
        raise refuse('"user" or "user:group"', value)
    return ":".join(parts)


def _signal(value: Any) -> str:
    word = value.upper().removeprefix("SIG") if isinstance(value, str) else ""
    if word not in SIGNALS:
        near = nearest(word, (name.lower() for name in SIGNALS)) if word else None
        hint = f'; did you mean "{near.upper()}"?' if near else ""
        raise Misfit(f'expected a signal such as "TERM" or "USR2", got {shown(value)}{hint}')
    return word


def _address(value: Any) -> str:
    if isinstance(value, str) and value in ("", "localhost"):
        return ""
    if not isinstance(value, str) or not _ADDRESS.match(value):
        raise refuse('what ssh takes, such as "deploy@web1", or "localhost" for this machine', value)
    return value


def _branch(value: Any) -> str:
    if not isinstance(value, str) or not value or value.startswith("-") or re.search(r"[\s\x00-\x1f\x7f]", value):
        raise refuse("a branch, tag or commit", value)
    return value


def _repository(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or CONTROL.search(value):
        raise refuse("a URL or a path", value)
    if value.startswith(("-", "ext::")):
        raise Misfit(f"expected a URL or a path, got {shown(value)}, which git would take for a command")
    return value


def _point(value: Any) -> str:
    point = point_of(value) if isinstance(value, str) else None
    if point is None:
        candidates = (*POINTS, *(f"deploy:{phase}" for phase in PHASES))
        near = nearest(value, candidates) if isinstance(value, str) else None
        hint = f'did you mean "{near}"?' if near else f"known are {', '.join(POINTS)}"
        raise Misfit(f"expected a phase, a task or handover, got {shown(value)}; {hint}")
    return point


def _moment(value: Any) -> str:
    words = value.split() if isinstance(value, str) else []
    if len(words) != 2 or words[0] not in ("before", "after"):
        raise refuse('"before POINT" or "after POINT"', value)
    return f"{words[0]} {_point(words[1])}"


name = Reader(_name, "a name (lower-case letters, digits, `-` and `_`, a letter first)", "a name")
variable = Reader(_variable, "the name of a variable")
user = Reader(_user, "the name of a user or group")
owner = Reader(_owner, '"user" or "user:group"')
signal = Reader(_signal, 'a signal such as "TERM"')
address = Reader(_address, 'what ssh takes, or "localhost"')
branch = Reader(_branch, "a branch, tag or commit")
repository = Reader(_repository, "a URL or a path")
point = Reader(_point, "a phase, a task or `handover`")
moment = Reader(_moment, '"before POINT" or "after POINT"')


# collections


def list_of(item: Reader) -> Reader:
    """Each item read; all that do not fit are reported."""
    return Reader(
        lambda value: tuple(_each(item, value)),
        f"a list, each item {item.expected}",
        f"a list, each item {item.shortly}",
    )


def one_or_list_of(item: Reader) -> Reader:
    """As `list_of`, and a single value stands for a list of one."""
    several = list_of(item)
    return Reader(
        lambda value: several(value) if isinstance(value, list) else (item(value),),
        f"{item.expected}, or a list of such",
        f"{item.shortly}, or a list of such",
    )


def _each(item: Reader, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise refuse("a list", value)
    return gather((((index,), item, entry)) for index, entry in enumerate(value))


def table_of(key: Reader, item: Reader, reserved: Iterable[str] = ()) -> Reader:
    """A table with free keys: each key and each value read."""
    skipped = frozenset(reserved)

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise refuse("a table", value)
        keys = [one for one in value if one not in skipped]
        gather(((one,), key, one) for one in keys)
        return dict(zip(keys, gather(((one,), item, value[one]) for one in keys), strict=True))

    return Reader(read, f"a table, each value {item.expected}", f"a table, each value {item.shortly}")


def gather(todo: Iterable[tuple[tuple[str | int, ...], Reader, Any]]) -> list[Any]:
    """All values read, or one `Misfits` with all that did not fit."""
    out: list[Any] = []
    problems: list[Misfit] = []
    for path, reader, value in todo:
        try:
            out.append(reader(value))
        except Misfits as many:
            problems.extend(problem.below(path) for problem in many.problems)
        except Misfit as problem:
            problems.append(problem.below(path))
    if problems:
        raise Misfits(problems)
    return out


def _variable_value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        raise Misfit("expected a string; a value that is read elsewhere belongs in `secrets`")
    if isinstance(value, bool | float):
        raise Misfit(f'expected a string; put it in quotes as the program wants it, such as "{shown(value)}"')
    return plain_text(value)


variable_value = Reader(_variable_value, "a string or a whole number")
variables = table_of(variable, variable_value)
