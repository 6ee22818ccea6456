"""Replacing the code of a server under load: what fails, how late answers are, how long it takes."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from measurement import Measurement, absent, percentile
from peers import Server
from peers.gunicorn import GTHREAD, SYNC, Gunicorn
from peers.midstream_serve import MidstreamServe
from peers.midstream_server import MidstreamServer
from peers.unicorn import Unicorn
from sandbox import Sandbox, sandbox

from cases import Scale

LOAD = Path(__file__).resolve().parents[1] / "paced_load.py"
BOOT_TIMEOUT_S = 60.0
AFTER_S = 3.0  # how long after the first answer of new code the next thing may happen
METRICS = {
    "handover_failed": "count",
    "handover_p99_ratio": "ratio",
    "handover_worst_ms": "ms",
    "steady_p99_ms": "ms",
    "handover_s": "s",
}


def subjects() -> list[Server]:
    return [
        MidstreamServer("midstream", "gunicorn"),
        MidstreamServer("midstream with unicorn", "unicorn"),
        MidstreamServer("midstream with midstream serve", "serve"),
        MidstreamServe(),
        Unicorn(),
        Gunicorn("gthread", GTHREAD),
        Gunicorn("sync", SYNC),
    ]


def measure(scale: Scale, only: frozenset[str]) -> Iterator[Measurement]:
    for server in subjects():
        if only and server.name not in only:
            continue
        why = server.missing()
        if not why:
            try:
                with sandbox() as box:
                    yield from _measured(server, box, scale)
                continue
            except (TimeoutError, RuntimeError, OSError) as error:
                why = f"failed: {error}"
        for metric, unit in METRICS.items():
            yield absent(metric, server.name, unit, why)


@dataclass(slots=True)
class Sample:
    due: float
    seconds: float
    ok: bool
    keep_alive: bool
    version: str


@dataclass(slots=True)
class Timeline:
    """When the server was left alone, and when each handover was asked for."""

    steady: list[tuple[float, float]] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)


def _measured(server: Server, box: Sandbox, scale: Scale) -> list[Measurement]:
    port = _free_port()
    server.launch(box, port)
    _await_answer(port)
    file = box.folder / "samples.json"
    load = subprocess.Popen(
        [sys.executable, str(LOAD), "127.0.0.1", str(port), str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    timeline = Timeline()
    _saw(load, 0)
    for version in range(1, scale.handovers + 1):
        began = time.monotonic()
        time.sleep(scale.steady_s)
        timeline.steady.append((began, time.monotonic()))
        timeline.asked.append(server.handover(box, version))
        _saw(load, version)
        time.sleep(AFTER_S)
    load.communicate(timeout=BOOT_TIMEOUT_S)
    return _judged(server.name, timeline, [Sample(*item) for item in json.loads(file.read_text())])


def _judged(name: str, timeline: Timeline, samples: list[Sample]) -> list[Measurement]:
    lasted = [_lasted(samples, number, asked) for number, asked in enumerate(timeline.asked)]
    windows = [(asked, asked + seconds + 0.1) for asked, seconds in zip(timeline.asked, lasted, strict=True)]
    within = _latencies_ms(samples, windows)
    steady_ms = percentile(_latencies_ms(samples, timeline.steady), 0.99)
    failed = [sample for sample in samples if not sample.ok]
    for reason in sorted({sample.version for sample in failed}):
        print(f"    {name}: {sum(sample.version == reason for sample in failed)} times {reason}", file=sys.stderr)
    return [
        Measurement("handover_failed", name, len(failed), "count"),
        Measurement("handover_p99_ratio", name, percentile(within, 0.99) / steady_ms, "ratio"),
        Measurement("handover_worst_ms", name, max(within), "ms"),
        Measurement("steady_p99_ms", name, steady_ms, "ms"),
        Measurement("handover_s", name, statistics.median(lasted), "s"),
    ]


def _lasted(samples: list[Sample], old: int, asked: float) -> float:
    """Seconds until the old code gave its last answer and the new its first: some programs overlap, others pause."""
    last_old = max((sample.due + sample.seconds for sample in samples if sample.version == str(old)), default=asked)
    first_new = min(sample.due + sample.seconds for sample in samples if sample.version == str(old + 1))
    return max(last_old, first_new) - asked


def _latencies_ms(samples: list[Sample], windows: list[tuple[float, float]]) -> list[float]:
    return [
        sample.seconds * 1000
        for sample in samples
        if sample.ok and any(start <= sample.due < end for start, end in windows)
    ]


def _saw(load: subprocess.Popen[str], version: int) -> None:
    """Until the client had an answer of that version."""
    for line in load.stdout or ():
        if line.split() == ["saw", str(version)]:
            return
    raise RuntimeError("the load generator ended")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_answer(port: int) -> None:
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
            return
        time.sleep(0.05)
    raise TimeoutError(f"no answer on port {port} within {BOOT_TIMEOUT_S:g} s")
