"""Supervisors with 1, 100, 1,000 services: time to start them, memory and idle CPU, and a crash to its restart."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

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
        restarts = partial(_restarts, count=scale.restarts)
        yield from _tried(supervisor, {"restart_ms": "ms"}, scale.restarts, restarts)
        for count in scale.counts:
            metrics = {f"start_{count}_s": "s", f"memory_{count}_mb": "MB", f"idle_{count}_percent": "%"}
            yield from _tried(supervisor, metrics, count, partial(_at_rest, count=count, scale=scale))


@dataclass(frozen=True, slots=True)
class Launched:
    """A supervisor whose services have all started, `start_s` after its own start."""

    name: str
    starts: Starts
    start_s: float


def _tried(
    supervisor: Supervisor,
    metrics: dict[str, str],
    count: int,
    measured: Callable[[Launched], list[Measurement]],
) -> list[Measurement]:
    """What `measured` finds with `count` services, or why there is nothing."""
    why = supervisor.missing()
    if not why:
        try:
            with sandbox() as box:
                return _with(supervisor, box, count, measured)
        except (TimeoutError, RuntimeError, OSError) as error:
            why = f"failed: {error}"
    return [absent(metric, supervisor.name, unit, why) for metric, unit in metrics.items()]


def _with(
    supervisor: Supervisor, box: Sandbox, count: int, measured: Callable[[Launched], list[Measurement]]
) -> list[Measurement]:
    starts = Starts(box.folder)
    starts.open()
    try:
        supervisor.prepare(box, starts.services(count))
        starts.forget()
        began = time.monotonic()
        supervisor.launch(box)
        return measured(Launched(supervisor.name, starts, starts.wait(count, START_TIMEOUT_S) - began))
    except TimeoutError as error:
        outputs = " ".join(box.output(path.stem) for path in sorted(box.folder.glob("*.out")))
        raise TimeoutError(f"{error}; {outputs}") from error
    finally:
        box.kill_all(frozenset(starts.pids.values()))
        starts.close()


def _at_rest(launched: Launched, count: int, scale: Scale) -> list[Measurement]:
    time.sleep(scale.settle_s)
    own = sorted(descendants(os.getpid()) - set(launched.starts.pids.values()))
    return [
        Measurement(f"start_{count}_s", launched.name, launched.start_s, "s"),
        Measurement(f"memory_{count}_mb", launched.name, pss_mb(own), "MB"),
        Measurement(f"idle_{count}_percent", launched.name, idle_percent(own, scale.idle_s), "%"),
    ]


def _restarts(launched: Launched, count: int) -> list[Measurement]:
    """Median from the SIGKILL to the first sign of the next process. Each service is killed once: that a service which
    crashes again and again has to wait is as it should be."""
    time.sleep(RAN_S)
    found = []
    for name in [f"s{index}" for index in range(count)]:
        began = time.monotonic()
        os.kill(launched.starts.pids[name], signal.SIGKILL)
        found.append((launched.starts.wait(1, START_TIMEOUT_S) - began) * 1000)
    return [Measurement("restart_ms", launched.name, statistics.median(found), "ms")]
