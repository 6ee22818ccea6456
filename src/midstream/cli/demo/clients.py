"""Starts the traffic program, reads what it tells, and has it stop. Runs in the demo."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midstream.cli.demo.board import Board
from midstream.cli.demo.traffic import TELL_EVERY_S, Group, Orders
from midstream.cli.programs import program_argv
from midstream.core.wire import to_wire
from midstream.errors import BugError

STOP_TIMEOUT_S = 45.0  # longer than a client waits for an answer


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. start: CLOCK_MONOTONIC."""

    start: float
    seconds: float
    ok: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """All that one kind of client saw. kind: for people."""

    kind: str
    clients: int
    samples: tuple[Sample, ...]
    failures: tuple[str, ...]
    idle_closes: int

    @property
    def failed(self) -> int:
        return sum(not sample.ok for sample in self.samples)


class Clients:
    def __init__(self, address: str, host: str, groups: tuple[Group, ...], folder: Path, board: Board) -> None:
        self._samples_file = folder / "samples.json"
        self._orders = Orders(address, host, groups, str(self._samples_file))
        self._board = board
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *program_argv("demo", "--traffic", json.dumps(to_wire(self._orders))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._reader = asyncio.create_task(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            row = json.loads(line)
            board = self._board
            board.requests, board.failed = row["requests"], row["failed"]
            board.rate = (
                0.7 * board.rate + 0.3 * row["recent"] / TELL_EVERY_S if board.rate else row["recent"] / TELL_EVERY_S
            )
            board.p50_ms, board.max_ms = row["p50_ms"], row["max_ms"]
            board.history.append(row["max_ms"])
            for failure in row["failures"]:
                board.say(f"a request failed: {failure}", "red")

    async def stop(self) -> list[Seen]:
        """Has every request in hand end; all that was seen. Raises BugError when the program did not end well."""
        process, reader = self._process, self._reader
        assert process is not None and process.stdin is not None and reader is not None
        process.stdin.close()
        try:
            code = await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            code = -1
        await self.end()
        if code:
            raise BugError(f"the demo's clients ended with {code}")
        return seen_from(json.loads(self._samples_file.read_text(encoding="utf-8")))

    async def end(self) -> None:
        """At once, whatever they do. May be called twice."""
        process, reader = self._process, self._reader
        self._process = self._reader = None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
        if reader is not None:
            await asyncio.wait([reader], timeout=5.0)
            reader.cancel()


def seen_from(rows: list[dict[str, Any]]) -> list[Seen]:
    """From the traffic program's file; a group with both kinds of clients becomes two."""
    found = []
    for row in rows:
        for keep_alive, clients in ((True, row["keep_alive_clients"]), (False, row["closing_clients"])):
            if not clients:
                continue
            word = "keep-alive" if keep_alive else "closing"
            samples = tuple(Sample(s[0], s[1], s[2]) for s in row["samples"] if s[3] is keep_alive)
            failures = tuple(text for text in row["failures"] if f" {word}: " in text)
            idle = row["idle_closes"] if keep_alive else 0
            found.append(Seen(f"{row['group']}, {word}", clients, samples, failures, idle))
    return found
