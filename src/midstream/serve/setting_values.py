"""Values of settings as people write them, and back: one reader and one writer for each Kind.

A value comes as text (command line, environment) or with TOML's types; both are read alike. What must not live here:
where it came from (`options.py`). Pure but for the number of CPUs; standard library only. Raises ValueError with what
was expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from midstream.core.durations import format_duration, format_size, parse_duration, parse_size
from midstream.linux import listen
from midstream.serve.settings import Kind, Setting

_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,9})?\Z", re.ASCII)
_YES = frozenset(("1", "true", "yes", "on"))
_NO = frozenset(("0", "false", "no", "off", ""))
_COMMAS = frozenset(("forwarded_allow_ips", "hosts", "pythonpath"))  # one text may hold several


def read(setting: Setting, value: object, folder: str) -> Any:
    """The value for Settings. folder: what relative paths are of, absolute. Raises ValueError."""
    if setting.repeats:
        return _many(setting, value, folder)
    return _READERS[setting.kind](setting, value, folder)


def show(setting: Setting, value: Any) -> str:
    """The text that reads back as `value`; several are joined by a blank. "" where it is not set."""
    match setting.kind:
        case Kind.SECONDS:
            return format_duration(value) if value else "0"
        case Kind.SIZE:
            return format_size(value) if value else "0"
        case Kind.FLAG:
            return "true" if value else "false"
        case Kind.MODE:
            return "" if value is None else f"{value:04o}"
    return " ".join(str(item) for item in value) if isinstance(value, tuple) else str(value)


def read_bind(text: str, folder: str) -> str:
    """`HOST:PORT`, `:PORT`, `PORT`, `[V6]:PORT`, `tcp://…`, `unix:PATH`, `unix:///PATH`, `fd://N` in the one form that
    `linux.listen.parse` reads. Raises ValueError."""
    if text.startswith("fd://"):
        if not re.fullmatch(r"fd://[0-9]{1,7}", text, re.ASCII):
            raise ValueError(f"{text}: a descriptor is fd://NUMBER")
        return text
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = path[2:] if path.startswith("//") else path
        if not path:
            raise ValueError("unix: needs a path behind it")
        address = "unix://" + os.path.join(folder, path)
    else:
        host, _, port = text.removeprefix("tcp://").rpartition(":")
        if ":" in host and not host.startswith("["):
            raise ValueError(f"{text}: an IPv6 address stands in brackets, as in [::1]:8000")
        address = f"tcp://{host or '0.0.0.0'}:{port or '8000'}"
        if not port.isdecimal() and not host:
            address = f"tcp://{port}:8000"  # a host alone, as gunicorn takes it
    try:
        listen.parse(address)
    except ValueError as error:
        raise ValueError(f"{error} (HOST:PORT, [IPV6]:PORT, unix:/PATH or fd://N)") from None
    return address


def _text(setting: Setting, value: object, folder: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, not {value!r}")
    if "\0" in value or "\n" in value or "\r" in value:
        raise ValueError("a line break or a NUL byte has no place here")
    return value


def _choice(setting: Setting, value: object, folder: str) -> str:
    text = _text(setting, value, folder).lower()
    if text not in setting.choices:
        raise ValueError(
            f"expected one of {', '.join(choice or 'nothing' for choice in setting.choices)}, not {value!r}"
        )
    return text


def _whole(setting: Setting, value: object, folder: str) -> int:
    if setting.name == "workers" and value == "auto":
        return max(1, len(os.sched_getaffinity(0)))
    if isinstance(value, str) and value.isascii() and value.strip().isdecimal() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"expected a whole number, not {value!r}")
    return int(_within_bounds(setting, value))


def _within_bounds(setting: Setting, number: float) -> float:
    if not setting.least <= number <= setting.most:
        reach = f"at least {setting.least:g}" if setting.most >= 2**53 else f"{setting.least:g} to {setting.most:g}"
        raise ValueError(f"expected {reach}, not {number:g}")
    return number


def _seconds(setting: Setting, value: object, folder: str) -> float:
    if isinstance(value, str) and _NUMBER.match(value.strip()):
        value = float(value)
    return _within_bounds(setting, parse_duration(value))


def _size(setting: Setting, value: object, folder: str) -> int:
    return int(_within_bounds(setting, parse_size(value)))


def _flag(setting: Setting, value: object, folder: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _YES | _NO:
        return value.strip().lower() in _YES
    raise ValueError(f"expected true or false, not {value!r}")


def _mode(setting: Setting, value: object, folder: str) -> int | None:
    text = value.strip().removeprefix("0o") if isinstance(value, str) else ""
    if value == 0 and not isinstance(value, bool):
        return 0  # octal and decimal alike; in TOML any other bare number would be read as decimal
    if value == "":
        return None
    if not re.fullmatch(r"0?[0-7]{1,3}", text, re.ASCII):
        raise ValueError(f'expected an octal mode such as "022", in quotes in TOML, not {value!r}')
    return int(text, 8)


def _path(setting: Setting, value: object, folder: str) -> str:
    text = os.path.expanduser(_text(setting, value, folder))
    return os.path.join(folder, text) if text else ""


def _output(setting: Setting, value: object, folder: str) -> str:
    text = _text(setting, value, folder)
    return text if text in ("", "-") else _path(setting, text, folder)


def _bind(setting: Setting, value: object, folder: str) -> str:
    text = _text(setting, value, folder)
    return read_bind(text, folder) if text else ""


_READERS: dict[Kind, Callable[[Setting, object, str], Any]] = {
    Kind.TEXT: _text,
    Kind.CHOICE: _choice,
    Kind.WHOLE: _whole,
    Kind.SECONDS: _seconds,
    Kind.SIZE: _size,
    Kind.FLAG: _flag,
    Kind.MODE: _mode,
    Kind.PATH: _path,
    Kind.WITHIN: _text,
    Kind.OUTPUT: _output,
    Kind.BIND: _bind,
}
_ONE: dict[Kind, Callable[[Setting, object, str], Any]] = {
    Kind.MANY: _text,
    Kind.MANY_PATHS: _path,
    Kind.MANY_WITHIN: _text,
    Kind.BINDS: _bind,
    Kind.STATUSES: _whole,
}


def _many(setting: Setting, value: object, folder: str) -> tuple[Any, ...]:
    """A list, or one text: with commas between where no comma can be part of a value."""
    if isinstance(value, dict) and setting.kind is Kind.MANY:
        sign = ": " if setting.name == "health_headers" else "="
        value = [f"{name}{sign}{item}" for name, item in value.items()]
    items = list(value) if isinstance(value, list | tuple) else [value]
    if setting.name in _COMMAS or setting.kind in (Kind.BINDS, Kind.STATUSES):
        items = [part for item in items for part in (item.split(",") if isinstance(item, str) else [item])]
        items = [item.strip() if isinstance(item, str) else item for item in items]
    read_one = _ONE[setting.kind]
    return tuple(read_one(setting, item, folder) for item in items if item != "")
