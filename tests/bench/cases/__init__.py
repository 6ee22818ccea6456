"""The benchmarks: each module has `measure(scale, only)`: one run of all its subjects, or of those named."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

# What a peer may do to us: it becomes a row that says so. A mistake of ours, such as a TypeError, ends the run.
FAILURES = (TimeoutError, RuntimeError, OSError, ValueError, subprocess.SubprocessError)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to do. Quick runs show that the benchmark works; their numbers are not to be quoted."""

    quick: bool
    runs: int
    restarts: int
    counts: tuple[int, ...]  # of services
    idle_s: float  # how long idle CPU is measured
    settle_s: float  # between the last start and that
    handovers: int
    steady_s: float  # between two handovers
    deploys: int
    rounds: int  # of the cases that interleave their subjects themselves
    upgrades: int
    upgrades_s: float  # for those of one server; after it no further one begins
    load_s: float  # how long latency is measured
    workers: tuple[int, ...]  # whose memory is measured
    parts: frozenset[str] = frozenset()  # of `serving`; none: all


FULL = Scale(False, 3, 10, (1, 100, 1000), 30.0, 10.0, 10, 5.0, 5, 3, 10, 45.0, 4.0, (1, 2, 4, 8))
QUICK = Scale(True, 1, 3, (1, 100), 5.0, 6.0, 2, 3.0, 2, 1, 2, 12.0, 1.5, (1, 2))
