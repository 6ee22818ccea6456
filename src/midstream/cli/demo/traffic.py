"""The clients of the demo as a program of their own, so that drawing the screen does not slow them: many small `Load`s.

The demo starts it as `midstream demo --traffic JSON`. A line of JSON comes out each quarter of a second with what was
seen since the last one; when stdin ends, every request in hand is finished, the samples are written to the file that
the orders name, and the program ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from midstream.core.wire import from_wire
from midstream.testing.load import Load, Tally, percentile

TELL_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Group:
    """Clients that do the same. Counts of connections; pause_s between two requests of one client; slow: by intention,
    so that its latency would hide that of the others on the screen."""

    name: str
    path: str
    keep_alive: int
    closing: int
    pause_s: float
    method: str = "GET"
    slow: bool = False


@dataclass(frozen=True, slots=True)
class Orders:
    """What to send where: `address` as in midstream.toml; samples_file is written at the end."""

    address: str
    host: str
    groups: tuple[Group, ...]
    samples_file: str


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What was seen so far (requests, failed), and since the last one: recent answers, latencies of all but slow pages."""

    requests: int
    failed: int
    recent: int
    p50_ms: float
    max_ms: float
    failures: list[str]


class _Teller:
    def __init__(self, loads: list[Load], groups: tuple[Group, ...]) -> None:
        self._loads = loads
        self._groups = groups
        self._told = [0] * len(loads)
        self._told_failures = [0] * len(loads)

    def glimpse(self) -> Glimpse:
        seconds: list[float] = []
        recent = 0
        failures: list[str] = []
        for index, load in enumerate(self._loads):
            tally = load.tally
            fresh = tally.samples[self._told[index] :]
            recent += len(fresh)
            if not self._groups[index].slow:
                seconds += [sample[1] for sample in fresh]
            failures += tally.failures[self._told_failures[index] :]
            self._told[index] = len(tally.samples)
            self._told_failures[index] = len(tally.failures)
        return Glimpse(
            sum(load.tally.requests for load in self._loads),
            sum(load.tally.failed for load in self._loads),
            recent,
            percentile(seconds, 0.5) * 1000,
            max(seconds, default=0.0) * 1000,
            failures,
        )


async def send(orders: Orders) -> None:
    """Until stdin ends."""
    loads = [
        Load(
            orders.address,
            keep_alive=group.keep_alive,
            closing=group.closing,
            path=group.path,
            host=orders.host,
            pause_s=group.pause_s,
            method=group.method,
        )
        for group in orders.groups
    ]
    teller = _Teller(loads, orders.groups)
    over = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for load in loads:
        load.start()
    while not over.done():
        await asyncio.wait([over], timeout=TELL_EVERY_S)
        _tell(asdict(teller.glimpse()))
    tallies = await asyncio.gather(*(load.stop() for load in loads))
    with open(orders.samples_file, "w", encoding="utf-8") as file:
        json.dump([_kept(group, tally) for group, tally in zip(orders.groups, tallies, strict=True)], file)
    _tell(asdict(teller.glimpse()))


def _kept(group: Group, tally: Tally) -> dict[str, Any]:
    return {
        "group": group.name,
        "keep_alive_clients": group.keep_alive,
        "closing_clients": group.closing,
        "samples": tally.samples,
        "failures": tally.failures,
        "seen": tally.seen,
        "idle_closes": tally.stray_idle_closes,
        "ended": time.monotonic(),
    }


def _tell(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def main(argv: list[str]) -> int:
    """argv: the orders as JSON."""
    try:
        asyncio.run(send(from_wire(Orders, json.loads(argv[0]))))
    except (BrokenPipeError, KeyboardInterrupt):  # the demo is gone
        return 1
    return 0
