"""Reading the parameters of a call of the control socket: whatever another program sends is refused by name, with a reason.

Pure. What the values mean, and who may ask, is the methods' business. All raise OperatorError.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeVar

from midstream.core.wire import WireError, from_wire
from midstream.errors import OperatorError

SECONDS_MAX = 1e7
OF_THE_CLIENT = (
    "that is a mistake of the program that asked: docs/control-protocol.md says what is expected; where it was "
    "`midstream`, bring it and the agent to one version (midstream agent upgrade)"
)

T = TypeVar("T")


def refused(what: str, where: str = "") -> OperatorError:
    """What no command of ours would send, unless it is of another version."""
    return OperatorError(what, where=where, remedy=OF_THE_CLIENT)


def text(params: dict[str, Any], name: str) -> str:
    """Not empty."""
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise refused(f"{name} is missing, or no text", name)
    return value


def whole(params: dict[str, Any], name: str, low: int, high: int, default: int | None = None) -> int:
    """default: where it is not given; without one it has to be."""
    value = params.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise OperatorError(
            f"{name} must be a whole number between {low} and {high}", where=name, remedy="give one between them"
        )
    return value


def seconds(params: dict[str, Any], name: str, default: float) -> float:
    """A number of seconds; 0 and nothing are the default. NaN and infinity would spoil every other deadline."""
    value = default if params.get(name) in (None, 0) else params[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= SECONDS_MAX:
        raise OperatorError(
            f"{name} must be a number of seconds, at most {SECONDS_MAX:g}", where=name, remedy="give a shorter time"
        )
    return float(value)


def data(params: dict[str, Any], most_bytes: int) -> bytes:
    """`data`, which is base64; nothing is no bytes."""
    try:
        raw = base64.b64decode(params.get("data") or "", validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise refused("data is not base64", "data") from error
    if len(raw) > most_bytes:
        raise refused(f"data has {len(raw)} bytes; a piece has at most {most_bytes}", "data")
    return raw


def shaped(kind: type[T], value: Any, method: str, name: str = "") -> T:
    """`value` as a `kind` (see core/wire.py). method, name: whose parameter it is, for the message."""
    try:
        return from_wire(kind, value, name) if name else from_wire(kind, value)
    except WireError as error:
        raise refused(f"{method}: {error}", name) from error
