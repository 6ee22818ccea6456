"""Becoming a newer keeper in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from midstream.core.messages import Refusal
from midstream.keeper.door import Connection
from midstream.keeper.refusal import Refused

if TYPE_CHECKING:
    from midstream.keeper.keeper import Keeper


def begin(keeper: Keeper, connection: Connection, number: int, path: str) -> None:
    raise Refused(Refusal.IMAGE, f"{path}: this keeper cannot upgrade itself yet")
