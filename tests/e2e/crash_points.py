"""Which of the points at which something can be killed a test tries: some of them as a rule, all with MIDSTREAM_CRASH_ALL=1.

Those that are tried are the same in every run, so that a failure belongs to the change at hand; MIDSTREAM_SEED=N tries
others, and MIDSTREAM_EXPLORE=1 others every day. The head of the run says which.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

ALL = bool(os.environ.get("MIDSTREAM_CRASH_ALL"))
_OF_TODAY = int(time.time() // 86400) if os.environ.get("MIDSTREAM_EXPLORE") else 0
SEED = int(os.environ.get("MIDSTREAM_SEED", "") or _OF_TODAY)


def chosen(points: Sequence[T], wanted: int) -> list[T]:
    """All points, or `wanted` of them spread over the whole."""
    if ALL or len(points) <= wanted:
        return list(points)
    stride = len(points) / wanted
    return [points[int(SEED % stride + index * stride) % len(points)] for index in range(wanted)]


def said() -> str:
    return "crash points: all" if ALL else f"crash points: some, MIDSTREAM_SEED={SEED}; MIDSTREAM_CRASH_ALL=1 tries all"
