"""A table on the screen, and the page `docs/benchmarks.md`: both drawn from the recorded JSON alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from budgets import BUDGETS, OURS, Budget, judge
from measurement import Measurement, Summary, summed_up

Record = dict[str, Any]


def measurements(record: Record) -> list[Measurement]:
    return [Measurement(**item) for item in record["measurements"]]


def rows(record: Record, between: str = ", ") -> list[list[str]]:
    """One row a metric: title, ours, the peers, the ratio, the budget, pass or over."""
    found = summed_up(measurements(record))
    return [_row(budget, found[budget.metric], between) for budget in BUDGETS if budget.metric in found]


def _row(budget: Budget, subjects: dict[str, Summary], between: str) -> list[str]:
    verdict = judge(budget, subjects)
    others = between.join(f"{name} {value(item, budget.worst)}" for name, item in subjects.items() if name != OURS)
    ratio = "" if verdict.ratio is None or not budget.beside else f"{verdict.ratio:.2f} of {budget.beside}"
    word = {True: "pass", False: "OVER", None: ""}[verdict.passed]
    ours = value(subjects[OURS], budget.worst) if OURS in subjects else "not measured"
    return [budget.title, ours, others, ratio, budget.text, word]


def value(item: Summary, worst: bool = False) -> str:
    """`6.4 ms (6.1-7.0)`: the median, and the span where there were several runs; or the worst of them."""
    if item.missing:
        return "not measured"
    if worst:
        return digits(item.highest)
    text = f"{digits(item.median)} {item.unit}" if item.unit not in ("count", "ratio") else digits(item.median)
    if item.runs > 1 and item.lowest != item.highest:
        text += f" ({digits(item.lowest)}-{digits(item.highest)})"
    return text


def reason(item: Measurement) -> str:
    """Why it was not measured, on one line; of a long text the beginning and, where errors tell most, the end."""
    text = " ".join(item.missing.split())
    return text if len(text) < 300 else f"{text[:100]} ... {text[-200:]}"


def digits(number: float) -> str:
    """Three digits that mean something."""
    if number == int(number):
        return f"{int(number):,}"
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}"


HEAD = ["what", "midstream", "peers", "ratio", "budget", ""]


def table(record: Record) -> str:
    """For the screen: what was measured, one metric a paragraph, so that it fits any width."""
    lines = []
    for title, ours, others, ratio, budget, word in rows(record):
        lines.append(f"{title}:  midstream {ours}" + (f"  = {ratio}" if ratio else ""))
        if budget:
            lines.append(f"    budget {budget}" + (f"  -> {word}" if word else ""))
        if others:
            lines.append(f"    {others}")
    missing = {f"{item.subject}: {reason(item)}" for item in measurements(record) if item.missing}
    return "\n".join([*lines, *sorted(missing)])


def page(record: Record) -> str:
    """`docs/benchmarks.md`."""
    machine = record["machine"]
    quick = ["**A quick run: it shows that the benchmarks work; do not quote its numbers.**", ""]
    runs = "one run" if record["runs"] == 1 else f"medians of {record['runs']} runs"
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "Written by `make bench` from what it measured; do not edit. How: `tests/bench/README.md`.",
            "",
            *(quick if record["quick"] else []),
            f"{record['date']}, {machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB, "
            f"Linux {machine['kernel']}, Python {machine['python']}; {runs}"
            f" (lowest-highest), load before: {machine['load']}.",
            "",
            *_markdown([HEAD, *rows(record, "<br>")]),
            "",
            "Versions: " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()) + ".",
            "",
            *_not_measured(record),
        ]
    )


def _markdown(table: Sequence[Sequence[str]]) -> list[str]:
    head, *body = table
    return [_line(head), _line(["---"] * len(head)), *(_line(row) for row in body)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _not_measured(record: Record) -> list[str]:
    reasons: dict[str, str] = {}
    for item in measurements(record):
        if item.missing:
            reasons.setdefault(f"{item.subject}, {item.metric}", reason(item))
    if not reasons:
        return []
    return ["Not measured:", "", *(f"- {what}: {why}" for what, why in reasons.items()), ""]
