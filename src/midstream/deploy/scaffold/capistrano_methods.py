"""What a value may be, and the methods that Ruby has for it. Pure.

What cannot be known is a value, too: `Unread` with the reason, `FromEnv`, `Question`, `Lazy`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from midstream.deploy.scaffold.capistrano_nodes import Function


class Symbol(str):
    """A Ruby symbol; a string wherever the difference does not matter."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Unread:
    """A value that cannot be known. why: completes "it is not carried over: …"."""

    why: str


@dataclass(frozen=True, slots=True)
class FromEnv:
    """`ENV["name"]`: known only when a deploy runs."""

    name: str


@dataclass(frozen=True, slots=True)
class Question:
    """`ask :key, default`."""

    default: Any


@dataclass(frozen=True, slots=True)
class Lazy:
    """A lambda, called when somebody fetches the setting."""

    function: Function


def truth(value: Any) -> bool | None:
    """As Ruby sees it: all but nil and false. None: not known."""
    if isinstance(value, Unread | FromEnv | Question):
        return None
    return value is not None and value is not False


def known(value: Any) -> bool:
    """Whether nothing in `value` is unknown."""
    if isinstance(value, list):
        return all(known(item) for item in value)
    if isinstance(value, dict):
        return all(known(item) for item in value.values())
    return not isinstance(value, Unread | FromEnv | Question | Lazy)


def first_unknown(*values: Any) -> Unread | None:
    """The first reason why something made of `values` is not known."""
    for value in values:
        if isinstance(value, Unread):
            return value
        if isinstance(value, FromEnv):
            return Unread(f"the variable {value.name} decides it when a deploy runs")
        if isinstance(value, Question | Lazy):
            return Unread("it is asked for when a deploy runs")
    return None


def joined(parts: list[Any]) -> Any:
    unknown = first_unknown(*parts)
    return unknown or "".join(text_of(part) for part in parts)


def text_of(value: Any) -> str:
    """`value.to_s`."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def uniq(items: list[Any]) -> list[Any]:
    out: list[Any] = []
    for item in items:
        if item not in out:
            out.append(item)
    return out


def to_i(value: Any) -> int:
    text = text_of(value).strip()
    digits = text[: len(text) - len(text.lstrip("-0123456789"))]
    return int(digits) if digits.lstrip("-").isdecimal() and len(digits) < 18 else 0


def _index(receiver: Any, *keys: Any) -> Any:
    if isinstance(receiver, dict) and len(keys) == 1:
        return receiver.get(keys[0])
    if isinstance(receiver, list) and len(keys) == 1 and type(keys[0]) is int:
        return receiver[keys[0]] if -len(receiver) <= keys[0] < len(receiver) else None
    raise TypeError


def _text_only(change: Callable[[str], Any]) -> Callable[[Any], Any]:
    def method(receiver: Any) -> Any:
        if not isinstance(receiver, str):
            raise TypeError
        return change(str(receiver))

    return method


def _join(receiver: Any, *args: Any) -> Any:
    if isinstance(receiver, list):
        return joined([part for item in receiver for part in (text_of(args[0]) if args else "", item)][1:])
    if isinstance(receiver, str):  # Pathname
        return posixpath.join(receiver, *map(text_of, args))
    raise TypeError


def _push(receiver: Any, *args: Any) -> Any:
    if not isinstance(receiver, list):
        raise TypeError
    return [*receiver, *args]


def _concat(receiver: Any, *args: Any) -> Any:
    out = receiver
    for arg in args:
        if type(arg) is not type(out) or not isinstance(out, list | str):
            raise TypeError
        out = out + arg
    return out


def _merge(receiver: Any, other: Any) -> Any:
    if not isinstance(receiver, dict) or not isinstance(other, dict):
        raise TypeError
    return {**receiver, **other}


def _split(text: str, by: Any) -> list[str]:
    pieces = text.split(None if by is None or by == " " else str(by))
    while pieces and not pieces[-1]:
        pieces.pop()
    return pieces


def _gsub(receiver: Any, old: Any, new: Any) -> Any:
    if not isinstance(receiver, str):
        raise TypeError
    return receiver.replace(old, new)


def _refuse() -> Any:
    raise TypeError


def _as_is(receiver: Any) -> Any:
    return receiver


METHODS: Mapping[str, Callable[..., Any]] = {
    "[]": _index,
    "fetch": lambda receiver, key, default=None: (
        receiver.get(key, default) if isinstance(receiver, dict) else _refuse()
    ),
    "to_s": text_of,
    "to_sym": lambda value: Symbol(text_of(value)),
    "intern": lambda value: Symbol(text_of(value)),
    "to_i": to_i,
    "to_a": lambda value: value if isinstance(value, list) else [] if value is None else _refuse(),
    "freeze": _as_is,
    "dup": _as_is,
    "clone": _as_is,
    "chomp": _text_only(lambda text: text.removesuffix("\n")),
    "strip": _text_only(str.strip),
    "downcase": _text_only(str.lower),
    "upcase": _text_only(str.upper),
    "split": lambda receiver, by=None: _split(receiver, by) if isinstance(receiver, str) else _refuse(),
    "gsub": _gsub,
    "join": _join,
    "push": _push,
    "append": _push,
    "concat": _concat,
    "merge": _merge,
    "uniq": lambda receiver: uniq(receiver) if isinstance(receiver, list) else _refuse(),
    "compact": lambda receiver: [item for item in receiver if item is not None],
    "first": lambda receiver: (receiver[0] if receiver else None) if isinstance(receiver, list) else _refuse(),
    "last": lambda receiver: (receiver[-1] if receiver else None) if isinstance(receiver, list) else _refuse(),
    "nil?": lambda receiver: receiver is None,
    "empty?": lambda receiver: len(receiver) == 0,
}
