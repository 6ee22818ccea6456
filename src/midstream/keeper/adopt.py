"""What a new keeper finds of the one before it. (Processes: next commit.)"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midstream.keeper.keeper import Keeper


def adopt(keeper: Keeper) -> None:
    keeper.children.orders.load()
