"""A table on the screen, and the page `docs/benchmarks.md`: both drawn from the recorded JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from budgets import BUDGETS, OURS, Budget, Section, judge
from measurement import Measurement, Summary, summed_up
from server_budgets import SERVER_SECTIONS

Record = dict[str, Any]


def measurements(record: Record) -> list[Measurement]:
    return [Measurement(**item) for item in record["measurements"]]


def rows(record: Record, between: str = ", ") -> list[list[str]]:
    """One row a metric: title, ours, the peers, the ratio, the budget, pass or over."""
    found = summed_up(measurements(record))
    return [_row(budget, found[budget.metric], between) for budget in BUDGETS if budget.metric in found]


def _row(budget: Budget, subjects: dict[str, Summary], between: str) -> list[str]:
    others = between.join(f"{name} {value(item, budget.worst)}" for name, item in subjects.items() if name != OURS)
    ours = value(subjects[OURS], budget.worst) if OURS in subjects else "not measured"
    return [budget.title, ours, others, *_judged(budget, subjects)]


def _judged(budget: Budget, subjects: dict[str, Summary]) -> list[str]:
    """Ratio, budget, and how it ended."""
    verdict = judge(budget, subjects)
    ratio = "" if verdict.ratio is None or not budget.beside else f"{verdict.ratio:.2f} of {budget.beside}"
    return [ratio, budget.text, {True: "pass", False: "OVER", None: ""}[verdict.passed]]


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
    for section, cells in _sections(record):
        lines += ["", section.title, *_aligned(cells)]
    missing = {f"{item.subject}: {reason(item)}" for item in measurements(record) if item.missing}
    return "\n".join([*lines, *sorted(missing)])


def _sections(record: Record) -> list[tuple[Section, list[list[str]]]]:
    """The tables of which anything was measured, head first."""
    found = summed_up(measurements(record))
    return [
        (section, by_subject(section, found) if section.by_subject else by_metric(section, found))
        for section in SERVER_SECTIONS
        if any(budget.metric in found for budget in section.budgets)
    ]


def by_metric(section: Section, found: Mapping[str, dict[str, Summary]]) -> list[list[str]]:
    """A row a metric, a column a subject; several budgets of one metric stand in one row."""
    names = _subjects(section, found)
    metrics = [metric for metric in dict.fromkeys(budget.metric for budget in section.budgets) if metric in found]
    table = [["", *names, "ratio", "budget", ""]]
    for metric in metrics:
        budgets = [budget for budget in section.budgets if budget.metric == metric]
        judged = [_judged(budget, found[metric]) for budget in budgets]
        cells = [_plain(found[metric].get(name)) for name in names]
        table.append(
            [budgets[0].title, *cells, *(", ".join(filter(None, column)) for column in zip(*judged, strict=True))]
        )
    return _without_empty(table)


def by_subject(section: Section, found: Mapping[str, dict[str, Summary]]) -> list[list[str]]:
    """A row a subject, a column a metric; a last row for the budgets of ours."""
    budgets = [budget for budget in section.budgets if budget.metric in found]
    table = [["", *(budget.title for budget in budgets)]]
    for name in _subjects(section, found):
        table.append([name, *(_plain(found[budget.metric].get(name), budget.worst) for budget in budgets)])
    judged = [_judged(budget, found[budget.metric]) for budget in budgets]
    return [*table, ["budget", *(f"{text} {word}".strip() for _, text, word in judged)]]


def _subjects(section: Section, found: Mapping[str, dict[str, Summary]]) -> list[str]:
    """In the order in which they were measured."""
    return list(dict.fromkeys(name for budget in section.budgets for name in found.get(budget.metric, ())))


def _plain(item: Summary | None, worst: bool = False) -> str:
    """The number alone: its unit stands above the table."""
    if item is None:
        return ""
    return "-" if item.missing else digits(item.highest if worst else item.median)


def _without_empty(table: list[list[str]]) -> list[list[str]]:
    """Columns in which nothing stands below the head are left out."""
    kept = [index for index, column in enumerate(zip(*table, strict=True)) if index == 0 or any(column[1:])]
    return [[row[index] for index in kept] for row in table]


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        ("    " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in table
    ]


def _spread(section: Section, found: Mapping[str, dict[str, Summary]]) -> str:
    """How far the rounds of the figures lie apart, in one sentence; "" where there was one round only."""
    items = [item for budget in section.budgets for item in found.get(budget.metric, {}).values() if item.runs > 1]
    if not items:
        return ""
    spans = sorted((item.highest - item.lowest) / item.median * 100 for item in items if item.median)
    middle, most = spans[len(spans) // 2] if spans else 0.0, spans[-1] if spans else 0.0
    rounds = max(item.runs for item in items)
    return f"Medians of {rounds} rounds; highest and lowest are {middle:.0f} % apart (at most {most:.0f} %)."


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
            *_first_table(record),
            *_further_tables(record),
            "Versions: " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()) + ".",
            "",
            *_not_measured(record),
        ]
    )


def _first_table(record: Record) -> list[str]:
    found = rows(record, "<br>")
    return [*_markdown([HEAD, *found]), ""] if found else []


def _further_tables(record: Record) -> list[str]:
    found = summed_up(measurements(record))
    lines = []
    for section, cells in _sections(record):
        notes = " ".join(filter(None, [section.note, _spread(section, found)]))
        lines += [f"## {section.title}", "", *([notes, ""] if notes else []), *_markdown(cells), ""]
    return lines


def _markdown(table: Sequence[Sequence[str]]) -> list[str]:
    head, *body = table
    return [_line(head), _line(["---"] * len(head)), *(_line(row) for row in body)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _not_measured(record: Record) -> list[str]:
    reasons: dict[str, dict[str, None]] = {}  # what is not installed is missing in many tables
    for item in measurements(record):
        if item.missing:
            reasons.setdefault(f"{item.subject}: {reason(item)}", {})[item.metric] = None
    if not reasons:
        return []
    lines = [f"- {why} ({', '.join(list(metrics)[:3])}{' …' * (len(metrics) > 3)})" for why, metrics in reasons.items()]
    return ["Not measured:", "", *lines, ""]
