"""Clients of several kinds at once, from a process of their own, and the figures of what they saw.

What lives here: the plan of the clients, the program that runs them (`python traffic.py PLAN RESULT`, until its stdin
ends), and the arithmetic on their samples. What counts as a failure is said in `midstream.testing.load`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midstream.testing.load import Load, percentile


@dataclass(frozen=True)
class Clients:
    """Some clients that all ask the same. `timed`: their latency counts; false where the page is slow by itself."""

    name: str
    address: str
    keep_alive: int = 0
    closing: int = 0
    path: str = "/"
    host: str = "localhost"
    method: str = "GET"
    body_bytes: int = 0
    upload_s: float = 0.0
    pause_s: float = 0.01
    timed: bool = True

    def load(self) -> Load:
        known = {field.name for field in dataclasses.fields(self)} - {"name", "address", "timed"}
        return Load(self.address, **{name: getattr(self, name) for name in known})


@dataclass(frozen=True)
class Seen:
    """What the clients of one name saw. samples: (start, seconds, ok, keep_alive), start on CLOCK_MONOTONIC."""

    requests: int
    failed: int
    failed_keep_alive: int
    failures: list[str]
    releases: dict[str, int]
    idle_closes: int
    samples: list[tuple[float, float, bool, bool]]


@dataclass
class Traffic:
    """Running clients, and the windows of the handovers that happened meanwhile."""

    clients: tuple[Clients, ...]
    process: subprocess.Popen[str]
    result: Path
    windows: list[tuple[float, float]] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)

    @contextlib.contextmanager
    def handover(self) -> Iterator[None]:
        """What happens inside counts as within a handover: from asking for it until the old generation is gone."""
        begun = time.monotonic()
        yield
        self.windows.append((begun, time.monotonic()))

    def stop(self) -> dict[str, Seen]:
        """Lets every request in hand end, and waits for one more of each kind: what serves now was seen by all."""
        if not self.seen:
            assert self.process.stdin is not None
            self.process.stdin.close()
            assert self.process.wait(90.0) == 0, "the load generator failed"
            self.seen = {name: Seen(**data) for name, data in json.loads(self.result.read_text()).items()}
        return self.seen

    @property
    def failed(self) -> int:
        return sum(seen.failed for seen in self.stop().values())

    @property
    def failures(self) -> dict[str, list[str]]:
        return {name: seen.failures for name, seen in self.stop().items() if seen.failures}

    def figures(self) -> dict[str, Any]:
        """Counts, and milliseconds of the timed clients: p99 while left alone, p99 and slowest within handovers."""
        everyone = self.stop()
        timed = [
            (start, seconds * 1000)
            for clients in self.clients
            if clients.timed
            for start, seconds, ok, _ in everyone[clients.name].samples
            if ok
        ]
        within = [ms for start, ms in timed if self._in_a_window(start, ms / 1000)]
        steady = [ms for start, ms in timed if not self._in_a_window(start, ms / 1000)]
        lasted = sorted(end - begun for begun, end in self.windows)
        return {
            "handovers": len(self.windows),
            "requests": sum(seen.requests for seen in everyone.values()),
            "failed": {name: seen.failed for name, seen in everyone.items()},
            "failed keep-alive": sum(seen.failed_keep_alive for seen in everyone.values()),
            "idle closes": sum(seen.idle_closes for seen in everyone.values()),
            "steady p99 ms": round(percentile(steady, 0.99), 1),
            "within p99 ms": round(percentile(within, 0.99), 1),
            "slowest ms": round(max(within, default=0.0), 1),
            "handover s, median": round(percentile(lasted, 0.5), 2),
            "handover s, longest": round(max(lasted, default=0.0), 2),
        }

    def _in_a_window(self, start: float, seconds: float) -> bool:
        return any(begun <= start + seconds and start <= end for begun, end in self.windows)


@contextlib.contextmanager
def begun(program: str, kind: str, folder: Path, plans: Sequence[Any]) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A program of clients that has begun, and where its result will be; it is stopped in any case. plans: dataclasses.
    `folder`: for plan and result, as `kind`-plan.json and `kind`-result.json."""
    plan, result = folder / f"{kind}-plan.json", folder / f"{kind}-result.json"
    plan.write_text(json.dumps([dataclasses.asdict(one) for one in plans]))
    process = subprocess.Popen(
        [sys.executable, program, str(plan), str(result)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "started\n"
        yield process, result
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(90.0)


@contextlib.contextmanager
def traffic(folder: Path, *clients: Clients) -> Iterator[Traffic]:
    """Clients that have begun; they are stopped in any case. `folder`: for their plan and their result."""
    with begun(__file__, "traffic", folder, clients) as (process, result):
        yield Traffic(clients, process, result)


def record(name: str, figures: dict[str, Any]) -> None:
    """Prints the figures (pytest shows them with -rP) and adds them to the file $MIDSTREAM_FIGURES, one JSON a line."""
    line = json.dumps({"run": name, **figures})
    print(line)
    if path := os.environ.get("MIDSTREAM_FIGURES"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


async def _one_more(clients: Clients, load: Load) -> None:
    """Until a request has ended that begins from now on: one more than there can be in hand."""
    enough = load.tally.requests + clients.keep_alive + clients.closing + 1
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(40.0):
            while load.tally.requests < enough:
                await asyncio.sleep(0.02)


async def _run(clients: list[Clients]) -> dict[str, Any]:
    loads = {one.name: one.load() for one in clients}
    for load in loads.values():
        load.start()
    print("started", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.gather(*(_one_more(one, loads[one.name]) for one in clients))
    tallies = {name: await load.stop() for name, load in loads.items()}
    return {
        name: {
            "requests": tally.requests,
            "failed": tally.failed,
            "failed_keep_alive": sum(not ok and keep_alive for _, _, ok, keep_alive in tally.samples),
            "failures": tally.failures,
            "releases": tally.seen,
            "idle_closes": tally.stray_idle_closes,
            "samples": tally.samples,
        }
        for name, tally in tallies.items()
    }


if __name__ == "__main__":
    planned = [Clients(**one) for one in json.loads(Path(sys.argv[1]).read_text())]
    Path(sys.argv[2]).write_text(json.dumps(asyncio.run(_run(planned))))
