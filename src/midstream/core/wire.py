"""Frozen dataclasses to JSON values and back, strictly, by their type hints.

Pure and dependency-free, because keeper and agent use it. What comes from another process is never trusted:
an unknown key, a missing one or a wrong type raises `WireError` with the path of the place.
What fits is decoded by functions made once for each dataclass; what does not is gone through again, to say where.
Supported: str, int, float, bool, None, enums, dataclasses, tuple[X, ...], dict[str, X], unions with None.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


class WireError(ValueError):
    """The value does not fit its type; the text names the path (`services.web.listen[0]`)."""


_PLAIN = frozenset({str, int, float, bool, type(None)})


def to_wire(value: Any) -> Any:
    """`value` as plain JSON types. Fields that equal their default are left out, so that records stay short."""
    kind: Any = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Any] = {}
        for name, default, made in _defaults_of(kind):
            item = getattr(value, name)
            if default is not dataclasses.MISSING and item == default:
                continue
            if made is not dataclasses.MISSING and item == made():
                continue
            out[name] = to_wire(item)
        return out
    if isinstance(value, tuple | list):
        return [to_wire(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_wire(item) for key, item in value.items()}
    return value


@cache
def _defaults_of(kind: Any) -> tuple[tuple[str, Any, Any], ...]:
    return tuple((field.name, field.default, field.default_factory) for field in dataclasses.fields(kind))


def from_wire(kind: type[T], data: Any, path: str = "") -> T:
    """`data` as a `kind`. Raises WireError with the path of the first place that does not fit."""
    result: T
    known: Any = kind
    if dataclasses.is_dataclass(kind):
        try:
            result = _dataclass_decoder(known)(data)
            return result
        except _Misfit:
            pass  # below it is said where
    result = _decode(kind, data, path)
    return result


# Decoding what fits


class _Misfit(Exception):
    """Somewhere below something does not fit."""


_Decoder = Callable[[Any], Any]


def _decoder(kind: Any) -> _Decoder:
    """Does what `_decode` does. Not cached: `int | str` and `str | int` are equal, and not the same."""
    origin = get_origin(kind)
    if kind is Any:
        return lambda data: data
    if origin is Union or origin is types.UnionType:
        return _union_decoder(get_args(kind))
    if origin is tuple:
        return _tuple_decoder(get_args(kind))
    if origin is dict:
        return _table_decoder(_decoder(get_args(kind)[1]))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enum_decoder(kind)
    if dataclasses.is_dataclass(kind):
        known: Any = kind
        return lambda data: _dataclass_decoder(known)(data)  # looked up when it is used: they may be recursive
    return _plain_decoder(kind)


def _plain_decoder(kind: Any) -> _Decoder:
    def decode(data: Any) -> Any:
        if type(data) is kind:
            return data
        try:
            return _decode_plain(kind, data, "")
        except WireError:
            raise _Misfit from None

    return decode


def _enum_decoder(kind: Any) -> _Decoder:
    def decode(data: Any) -> Any:
        try:
            return kind(data)
        except ValueError:
            raise _Misfit from None

    return decode


def _union_decoder(options: tuple[Any, ...]) -> _Decoder:
    may_be_none = type(None) in options
    decoders = [_decoder(option) for option in options if option is not type(None)]

    def decode(data: Any) -> Any:
        if data is None and may_be_none:
            return None
        for one in decoders:
            try:
                return one(data)
            except _Misfit:
                continue
        raise _Misfit

    return decode


def _tuple_decoder(args: tuple[Any, ...]) -> _Decoder:
    if len(args) == 2 and args[1] is Ellipsis:
        one = _decoder(args[0])

        def decode_all(data: Any) -> Any:
            if not isinstance(data, list | tuple):
                raise _Misfit
            return tuple([one(item) for item in data])

        return decode_all
    each = [_decoder(arg) for arg in args]

    def decode_each(data: Any) -> Any:
        if not isinstance(data, list | tuple) or len(data) != len(each):
            raise _Misfit
        return tuple([one(item) for one, item in zip(each, data, strict=True)])

    return decode_each


def _table_decoder(one: _Decoder) -> _Decoder:
    def decode(data: Any) -> Any:
        if not isinstance(data, dict):
            raise _Misfit
        return {str(key): one(item) for key, item in data.items()}

    return decode


@cache
def _dataclass_decoder(kind: Any) -> _Decoder:
    fields, required = _fields_of(kind)
    decoders = {name: _decoder(hint) for name, hint in fields.items()}

    def decode(data: Any) -> Any:
        if not isinstance(data, dict) or not required <= data.keys():
            raise _Misfit
        found = {}
        for key, item in data.items():
            one = decoders.get(key)
            if one is None:
                raise _Misfit
            found[key] = one(item)
        return kind(**found)

    return decode


# Saying what does not fit


@cache
def _fields_of(kind: type) -> tuple[dict[str, Any], frozenset[str]]:
    fields = {field.name: _hint(kind, field) for field in dataclasses.fields(kind)}
    required = frozenset(
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )
    return fields, required


def _hint(kind: type, field: dataclasses.Field[Any]) -> Any:
    """The type of a field. typing.get_type_hints would compile the text to a code object, and the first such loads a class
    for each node of Python's grammar: 200 kB, for good, of keeper and of agent."""
    if not isinstance(field.type, str):
        return field.type
    owner = next(one for one in reversed(kind.__mro__) if _declares(one, field))
    return eval(field.type, vars(sys.modules[owner.__module__]))


def _declares(kind: type, field: dataclasses.Field[Any]) -> bool:
    return getattr(kind, "__dataclass_fields__", {}).get(field.name) is field


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
