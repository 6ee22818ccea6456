"""Frozen dataclasses to JSON values and back, strictly, by their type hints.

Pure and dependency-free, because keeper and agent use it. What comes from another process is never trusted:
an unknown key, a missing one or a wrong type raises `WireError` with the path of the place.
Supported: str, int, float, bool, None, enums, dataclasses, tuple[X, ...], dict[str, X], unions with None.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


class WireError(ValueError):
    """The value does not fit its type; the text names the path (`services.web.listen[0]`)."""


def to_wire(value: Any) -> Any:
    """`value` as plain JSON types. Fields that equal their default are left out, so that records stay short."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if field.default is not dataclasses.MISSING and item == field.default:
                continue
            if field.default_factory is not dataclasses.MISSING and item == field.default_factory():
                continue
            out[field.name] = to_wire(item)
        return out
    if isinstance(value, tuple | list):
        return [to_wire(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_wire(item) for key, item in value.items()}
    return value


def from_wire(kind: type[T], data: Any, path: str = "") -> T:
    """`data` as a `kind`. Raises WireError with the path of the first place that does not fit."""
    result: T = _decode(kind, data, path)
    return result


@cache
def _fields_of(kind: type) -> tuple[dict[str, Any], frozenset[str]]:
    hints = typing.get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    required = frozenset(
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )
    return fields, required


def _decode(kind: Any, data: Any, path: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return data
    if origin is Union or origin is types.UnionType:
        return _decode_union(kind, data, path)
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise WireError(f"{path or 'value'}: expected a list, got {_called(data)}")
        args = get_args(kind)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_decode(args[0], item, f"{path}[{index}]") for index, item in enumerate(data))
        if len(args) != len(data):
            raise WireError(f"{path or 'value'}: expected {len(args)} items, got {len(data)}")
        return tuple(
            _decode(arg, item, f"{path}[{index}]") for index, (arg, item) in enumerate(zip(args, data, strict=True))
        )
    if origin is dict:
        if not isinstance(data, dict):
            raise WireError(f"{path or 'value'}: expected a table, got {_called(data)}")
        value_kind = get_args(kind)[1]
        return {str(key): _decode(value_kind, item, _join(path, str(key))) for key, item in data.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(data)
        except ValueError:
            known = ", ".join(str(member.value) for member in kind)
            raise WireError(f"{path or 'value'}: expected one of {known}, got {data!r}") from None
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, path)
    return _decode_plain(kind, data, path)


def _decode_union(kind: Any, data: Any, path: str) -> Any:
    options = get_args(kind)
    if data is None and type(None) in options:
        return None
    problem: WireError | None = None
    for option in options:
        if option is type(None):
            continue
        try:
            return _decode(option, data, path)
        except WireError as error:
            problem = problem or error
    raise problem or WireError(f"{path or 'value'}: expected nothing, got {_called(data)}")


def _decode_dataclass(kind: Any, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise WireError(f"{path or 'value'}: expected a table, got {_called(data)}")
    fields, required = _fields_of(kind)
    for key in data:
        if key not in fields:
            raise WireError(f"{_join(path, str(key))}: unknown key")
    missing = required - data.keys()
    if missing:
        raise WireError(f"{_join(path, sorted(missing)[0])}: missing")
    return kind(**{key: _decode(fields[key], item, _join(path, key)) for key, item in data.items()})


def _decode_plain(kind: Any, data: Any, path: str) -> Any:
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is int and isinstance(data, bool):
        raise WireError(f"{path or 'value'}: expected a whole number, got {data!r}")
    if isinstance(kind, type) and isinstance(data, kind):
        return data
    raise WireError(f"{path or 'value'}: expected {getattr(kind, '__name__', kind)}, got {_called(data)}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _called(data: Any) -> str:
    return f"{type(data).__name__} {data!r}"[:80]
