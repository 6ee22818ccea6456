"""What became of the orders that clients placed: read from the demo shop's own database when all is over."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

DELIVERY_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class OrderBook:
    """placed, delivered: counts."""

    placed: int
    delivered: int

    @property
    def lost(self) -> int:
        return self.placed - self.delivered


async def read_orders(database: Path) -> OrderBook:
    """Waits until the worker has delivered all, for a while; what is open then counts as lost."""
    deadline = time.monotonic() + DELIVERY_TIMEOUT_S
    while True:
        book = _read(database)
        if not book.lost or time.monotonic() > deadline:
            return book
        await asyncio.sleep(0.2)


def _read(database: Path) -> OrderBook:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)
    try:
        row = connection.execute("SELECT count(*), count(delivered) FROM shop_order").fetchone()
    finally:
        connection.close()
    return OrderBook(*row)
