"""What a set of processes costs: proportional memory and CPU time, from /proc."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path


def pss_mb(pids: Iterable[int]) -> float:
    """Proportional set size of all of them together: pages that are shared count once, divided."""
    total_kb = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total_kb += int(line.split()[1])
    return total_kb / 1024


def cpu_s(pids: Iterable[int]) -> float:
    """CPU time used by all threads of these processes, to the nanosecond (schedstat)."""
    total_ns = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                total_ns += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    return total_ns / 1e9


def idle_percent(pids: list[int], seconds: float) -> float:
    """Share of one core that they use while nothing happens, over `seconds` of waiting."""
    before, began = cpu_s(pids), time.monotonic()
    time.sleep(seconds)
    return 100.0 * (cpu_s(pids) - before) / (time.monotonic() - began)
