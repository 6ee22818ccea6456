"""Supervisors with 1, 100, 1,000 services: time to start them, memory and idle CPU, and a crash to its restart."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Iterator

from footprint import idle_percent, pss_mb
from measurement import Measurement, absent
from peers import Supervisor
from peers.circus import Circus
from peers.midstream import Midstream
from peers.runit import Runit
from peers.s6 import S6
from peers.supervisord import Supervisord
from sandbox import Sandbox, descendants, sandbox
from starts import Starts

from cases import Scale

START_TIMEOUT_S = 120.0
RAN_S = 1.3  # a service that ran over a second: some supervisors restart one that did not with a delay


def subjects() -> list[Supervisor]:
    return [Midstream(), Runit(), S6(), Supervisord(), Circus()]


def measure(scale: Scale, only: frozenset[str]) -> Iterator[Measurement]:
    for supervisor in subjects():
        if only and supervisor.name not in only:
            continue
        for count in scale.counts:
            metrics = {f"start_{count}_s": "s", f"memory_{count}_mb": "MB", f"idle_{count}_percent": "%"}
            if count == 1:
                metrics = {"restart_ms": "ms"} | metrics
            why = supervisor.missing()
            if not why:
                try:
                    yield from _with(supervisor, count, scale)
                    continue
                except (TimeoutError, RuntimeError, OSError) as error:
                    why = f"failed: {error}"
            for metric, unit in metrics.items():
                yield absent(metric, supervisor.name, unit, why)


def _with(supervisor: Supervisor, count: int, scale: Scale) -> list[Measurement]:
    with sandbox() as box:
        starts = Starts(box.folder)
        starts.open()
        try:
            return _measured(supervisor, box, starts, count, scale)
        except TimeoutError as error:
            outputs = " ".join(box.output(path.stem) for path in sorted(box.folder.glob("*.out")))
            raise TimeoutError(f"{error}; {outputs}") from error
        finally:
            box.kill_all(frozenset(starts.pids.values()))
            starts.close()


def _measured(supervisor: Supervisor, box: Sandbox, starts: Starts, count: int, scale: Scale) -> list[Measurement]:
    supervisor.prepare(box, starts.services(count))
    starts.forget()
    began = time.monotonic()
    supervisor.launch(box)
    start_s = starts.wait(count, START_TIMEOUT_S) - began
    time.sleep(scale.settle_s)
    own = sorted(descendants(os.getpid()) - set(starts.pids.values()))
    found = [
        Measurement(f"start_{count}_s", supervisor.name, start_s, "s"),
        Measurement(f"memory_{count}_mb", supervisor.name, pss_mb(own), "MB"),
        Measurement(f"idle_{count}_percent", supervisor.name, idle_percent(own, scale.idle_s), "%"),
    ]
    if count == 1:
        found.append(Measurement("restart_ms", supervisor.name, _restart_ms(starts, scale.restarts), "ms"))
    return found


def _restart_ms(starts: Starts, times: int) -> float:
    """Median from the SIGKILL to the first sign of the next process."""
    (name,) = starts.pids
    found = []
    for _ in range(times):
        time.sleep(RAN_S)
        began = time.monotonic()
        os.kill(starts.pids[name], signal.SIGKILL)
        found.append((starts.wait(1, START_TIMEOUT_S) - began) * 1000)
    return statistics.median(found)
