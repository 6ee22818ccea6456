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

from cases import FAILURES, Scale

LOAD = Path(__file__).resolve().parents[1] / "paced_load.py"
UPGRADE_TIMEOUT_S = 60.0
BETWEEN_S = 0.3
METRICS = {
    "upgrade_count": "count",
    "upgrade_vain": "count",
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
                    yield from _judged(way.name, _upgraded(way, box, scale))
                continue
            except FAILURES as error:
                why = f"failed: {error}"
        for metric, unit in METRICS.items():
            yield absent(metric, way.name, unit, why)


@dataclass(frozen=True, slots=True)
class Answer:
    """Of `paced_load.py`. `what`: the version, or of a failure its reason; `late_s`: since it was due."""

    due: float
    late_s: float
    ok: bool
    kept: bool
    what: str

    @property
    def came(self) -> float:
        return self.due + self.late_s


@dataclass(slots=True)
class Story:
    """What the clients saw, when each upgrade was asked for and when only new code answered. `vain`: why the one after
    them did not come to an end, "" where there was none."""

    asked: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    vain: str = ""
    answers: list[Answer] = field(default_factory=list)


def _upgraded(way: Way, box: Sandbox, scale: Scale) -> Story:
    port = free_port()
    server, story = Upgraded(way, box, port), Story()
    file = box.folder / "samples.json"
    clients = Clients(port, file)
    clients.await_line("only 0")
    began = time.monotonic()
    for version in range(1, scale.upgrades + 1):
        if version > 1 and time.monotonic() - began > scale.upgrades_s:
            break
        time.sleep(BETWEEN_S)
        old = server.master()
        asked = server.ask(version)
        try:
            clients.await_line(f"saw {version}")
            server.retire(old)
            clients.await_line(f"only {version}")
        except TimeoutError as error:
            story.vain = f"upgrade {version}: {error}; {server.said()}"
            break
        story.asked.append(asked)
        story.done.append(time.monotonic())
    clients.stop()
    story.answers = [Answer(*item) for item in json.loads(file.read_text())]
    return story


def _judged(name: str, story: Story) -> list[Measurement]:
    if story.vain and not story.done:
        raise TimeoutError(story.vain)
    if story.vain:
        print(f"    {name}: {' '.join(story.vain.split())[:600]}", file=sys.stderr)
    failed = [answer.what for answer in story.answers if not answer.ok]
    for reason in sorted(set(failed)):
        print(f"    {name}: {failed.count(reason)} times {reason}", file=sys.stderr)
    lasted = [done - asked for asked, done in zip(story.asked, story.done, strict=True)]
    return [
        Measurement("upgrade_failed", name, len(failed), "count"),
        Measurement("upgrade_requests", name, len(story.answers), "count"),
        Measurement("upgrade_count", name, len(story.done), "count"),
        Measurement("upgrade_vain", name, float(bool(story.vain)), "count"),
        Measurement("upgrade_gap_ms", name, longest_gap_s(story) * 1000, "ms"),
        Measurement("upgrade_worst_ms", name, max(answer.late_s for answer in story.answers if answer.ok) * 1000, "ms"),
        Measurement("upgrade_s", name, statistics.median(lasted) - ONLY_S, "s"),
    ]


def longest_gap_s(story: Story) -> float:
    """The longest time between two answers on new connections, or on kept ones, whichever is longer: a server that stops
    listening may go on answering where it was connected. From the first upgrade to the end of the last."""
    first, last = story.asked[0], story.done[-1]
    gaps = [0.0]
    for kept in (True, False):
        came = sorted(answer.came for answer in story.answers if answer.ok and answer.kept == kept)
        within = [moment for moment in came if first <= moment <= last]
        gaps += [later - former for former, later in pairwise([first, *within, last])]
    return max(gaps)


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
