"""Web servers whose code is replaced under load, each by its own means: what fails, and how long nobody is answered."""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from measurement import Measurement, absent
from paced_load import ONLY_S
from peers.upgraded import WAYS, Upgraded, Way
from peers.web import free_port
from sandbox import Sandbox, sandbox

from cases import Scale

LOAD = Path(__file__).resolve().parents[1] / "paced_load.py"
UPGRADE_TIMEOUT_S = 60.0
BETWEEN_S = 0.3
METRICS = {
    "upgrade_failed": "count",
    "upgrade_requests": "count",
    "upgrade_gap_ms": "ms",
    "upgrade_worst_ms": "ms",
    "upgrade_s": "s",
}


def measure(scale: Scale, only: frozenset[str]) -> Iterator[Measurement]:
    for way in WAYS:
        if only and not only & {way.name, way.server.name, way.server.program}:
            continue
        why = way.server.missing()
        if not why:
            try:
                with sandbox() as box:
                    yield from _judged(way.name, _upgraded(way, box, scale.upgrades))
                continue
            except (TimeoutError, RuntimeError, OSError) as error:
                why = f"failed: {error}"
        for metric, unit in METRICS.items():
            yield absent(metric, way.name, unit, why)


@dataclass(slots=True)
class Story:
    """What the clients saw, when each upgrade was asked for and when only new code answered. `answers`: (when, seconds
    since it was due, whether it was an answer, or what else)."""

    asked: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    answers: list[tuple[float, float, bool, str]] = field(default_factory=list)


def _upgraded(way: Way, box: Sandbox, count: int) -> Story:
    port = free_port()
    server, story = Upgraded(way, box, port), Story()
    file = box.folder / "samples.json"
    clients = Clients(port, file)
    clients.await_line("only 0")
    for version in range(1, count + 1):
        time.sleep(BETWEEN_S)
        old = server.master()
        story.asked.append(server.ask(version))
        try:
            clients.await_line(f"saw {version}")
            server.retire(old)
            clients.await_line(f"only {version}")
        except TimeoutError as error:
            raise TimeoutError(f"upgrade {version} of {count}: {error}; {server.said()}") from error
        story.done.append(time.monotonic())
    clients.stop()
    story.answers = [(due + late, late, ok, what) for due, late, ok, _, what in json.loads(file.read_text())]
    return story


def _judged(name: str, story: Story) -> list[Measurement]:
    failed = [what for _, _, ok, what in story.answers if not ok]
    for reason in sorted(set(failed)):
        print(f"    {name}: {failed.count(reason)} times {reason}", file=sys.stderr)
    first, last = story.asked[0], story.done[-1]  # behind it the clients stop
    gap_s = longest_gap_s([when for when, _, ok, _ in story.answers if ok and first <= when <= last])
    lasted = [done - asked for asked, done in zip(story.asked, story.done, strict=True)]
    return [
        Measurement("upgrade_failed", name, len(failed), "count"),
        Measurement("upgrade_requests", name, len(story.answers), "count"),
        Measurement("upgrade_gap_ms", name, gap_s * 1000, "ms"),
        Measurement("upgrade_worst_ms", name, max(late for _, late, _, _ in story.answers) * 1000, "ms"),
        Measurement("upgrade_s", name, statistics.median(lasted) - ONLY_S, "s"),
    ]


def longest_gap_s(moments: list[float]) -> float:
    """The longest time between two answers, whosoever's."""
    ordered = sorted(moments)
    return max((later - former for former, later in pairwise(ordered)), default=0.0)


class Clients:
    """`paced_load.py mixed`, and what it says."""

    def __init__(self, port: int, file: Path) -> None:
        self._rest = b""
        self._lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, str(LOAD), "127.0.0.1", str(port), str(file), "mixed"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def await_line(self, wanted: str) -> None:
        """Raises TimeoutError when it does not come, RuntimeError when the clients have ended."""
        deadline = time.monotonic() + UPGRADE_TIMEOUT_S
        assert self._process.stdout is not None
        while wanted not in self._lines:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise TimeoutError(f"the clients did not see {wanted!r} within {UPGRADE_TIMEOUT_S:g} s")
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise RuntimeError("the load generator ended")
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._lines += [line.decode() for line in lines]

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate(timeout=UPGRADE_TIMEOUT_S)
