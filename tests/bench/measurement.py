"""One measured number, and where it came from; medians over runs. Values only: nothing here measures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Measurement:
    """`subject`: the program measured, with its version in the report's own table. `unit`: ms, s, MB, %, ratio, count.
    Either `value`, or `missing` says why there is none."""

    metric: str
    subject: str
    value: float
    unit: str
    missing: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def absent(metric: str, subject: str, unit: str, why: str) -> Measurement:
    return Measurement(metric, subject, 0.0, unit, why)


@dataclass(frozen=True, slots=True)
class Summary:
    """All runs of one metric of one subject."""

    median: float
    lowest: float
    highest: float
    runs: int
    unit: str
    missing: str = ""


def summed_up(measurements: Iterable[Measurement]) -> dict[str, dict[str, Summary]]:
    """metric -> subject -> Summary, in the order in which they were first measured."""
    grouped: dict[str, dict[str, list[Measurement]]] = {}
    for item in measurements:
        grouped.setdefault(item.metric, {}).setdefault(item.subject, []).append(item)
    return {
        metric: {subject: _summary(items) for subject, items in subjects.items()}
        for metric, subjects in grouped.items()
    }


def _summary(items: list[Measurement]) -> Summary:
    values = [item.value for item in items if not item.missing]
    if not values:
        return Summary(0.0, 0.0, 0.0, 0, items[0].unit, items[0].missing)
    return Summary(statistics.median(values), min(values), max(values), len(values), items[0].unit)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of all values do not exceed. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(round(len(ordered) * share, 6)) - 1)]
