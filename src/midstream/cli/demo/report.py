"""The end of the demo: tables and a verdict in words, or one JSON object. Reads an `Ending`, changes nothing."""

from __future__ import annotations

from typing import Any

import click

from midstream.cli.demo.board import Handover
from midstream.cli.demo.clients import Seen
from midstream.cli.demo.evidence import Reign
from midstream.cli.demo.story import Ending
from midstream.cli.output import clean, table
from midstream.testing.load import percentile

_FAILURES_SHOWN = 10


def text(ending: Ending) -> str:
    """Everything that is printed at the end, but for where the picture is."""
    parts = [_clients(ending), _handovers(ending), _facts(ending), _verdict(ending)]
    return "\n\n".join(part for part in parts if part)


def _clients(ending: Ending) -> str:
    rows = [_client_row(seen) for seen in ending.seen]
    samples = [sample for seen in ending.seen for sample in seen.samples]
    total = Seen("all", sum(seen.clients for seen in ending.seen), tuple(samples), (), 0)
    header = ("CLIENTS", "N", "REQUESTS", "FAILED", "MEDIAN", "P99", "SLOWEST")
    lines = table(header, [*rows, _client_row(total)])
    failures = [failure for seen in ending.seen for failure in seen.failures]
    return "\n".join([lines, *(click.style(f"  {clean(failure)}", fg="red") for failure in failures[:_FAILURES_SHOWN])])


def _client_row(seen: Seen) -> tuple[str, ...]:
    seconds = [sample.seconds for sample in seen.samples]
    failed = click.style(str(seen.failed), fg="red" if seen.failed else "green")
    return (
        seen.kind,
        str(seen.clients),
        f"{len(seconds):,}",
        failed,
        _ms(percentile(seconds, 0.5)),
        _ms(percentile(seconds, 0.99)),
        _ms(max(seconds, default=0.0)),
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _handovers(ending: Ending) -> str:
    rows = []
    for handover in ending.board.handovers:
        within = ending.during(handover)
        rows.append(
            (
                handover.label,
                click.style(_end_of(handover), fg="green" if handover.as_meant else "red"),
                f"{handover.whole_s:.1f} s",
                f"{handover.took_s:.1f} s" if handover.took_s else "-",
                f"{len(within):,}" if within else "-",
                str(sum(not sample.ok for sample in within)) if within else "-",
                _ms(max(sample.seconds for sample in within)) if within else "-",
            )
        )
    header = ("HANDOVER", "ENDED", "COMMAND", "HANDOVER", "REQUESTS", "FAILED", "SLOWEST WITHIN")
    return table(header, rows)


def _end_of(handover: Handover) -> str:
    if handover.committed:
        return "committed" if handover.as_meant else "committed, which it was not to be"
    return f"put back: {handover.prospect.value}" if handover.as_meant else "failed"


def _facts(ending: Ending) -> str:
    verdict, orders = ending.verdict, ending.orders
    workers = sum(kill.what == "worker" for kill in ending.board.kills)
    agents = sum(kill.what == "agent" for kill in ending.board.kills)
    rows = [
        ("worker killed (kill -9)", _times(workers)),
        ("agent killed (kill -9)", _times(agents)),
        ("processes started", f"{verdict.processes}, {verdict.trying} of them to prove a release"),
        ("processes ever started on uncommitted code", _zero(len(verdict.stale))),
        ("jobs taken", f"{verdict.jobs:,}"),
        ("jobs taken by uncommitted code", _zero(len(verdict.stale_jobs))),
    ]
    if orders is not None:
        rows += [
            ("orders placed and delivered", f"{orders.placed:,} and {orders.delivered:,}"),
            ("orders lost", _zero(orders.lost)),
        ]
    settled = click.style("no", fg="red") if ending.drift else "yes"
    rows.append(("every process runs the committed release now", settled))
    width = max(len(row[0]) for row in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    troubles = (*verdict.stale, *verdict.stale_jobs, *filter(None, [ending.drift]))
    return "\n".join([*lines, *(click.style(f"  {clean(line)}", fg="red") for line in troubles[:_FAILURES_SHOWN])])


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _zero(count: int) -> str:
    return click.style(str(count), fg="red" if count else "green")


def _verdict(ending: Ending) -> str:
    if ending.good:
        committed = sum(handover.committed for handover in ending.board.handovers) - 1
        refused = sum(not handover.committed for handover in ending.board.handovers)
        words = f"{ending.requests:,} requests, {committed} handovers and {refused} bad releases: none failed."
        return click.style(words, fg="green", bold=True)
    return click.style("The demo did not go as it should; see above.", fg="red", bold=True)


def as_json(ending: Ending) -> dict[str, Any]:
    """The same as one object."""
    board, verdict = ending.board, ending.verdict
    return {
        "type": "summary",
        "ok": ending.good,
        "requests": ending.requests,
        "failed": ending.failed,
        "clients": [_client_wire(seen) for seen in ending.seen],
        "handovers": [_handover_wire(ending, handover) for handover in board.handovers],
        "kills": [
            {"what": kill.what, "pid": kill.pid, "release": kill.release, "at": round(kill.time - board.began, 3)}
            for kill in board.kills
        ],
        "processes": verdict.processes,
        "proving": verdict.trying,
        "stale": list(verdict.stale),
        "jobs": verdict.jobs,
        "stale_jobs": list(verdict.stale_jobs),
        "orders": {"placed": ending.orders.placed, "delivered": ending.orders.delivered} if ending.orders else None,
        "drift": ending.drift,
        "committed": [
            _reign_wire(reign, board.wall_offset_s + board.began) for reign in ending.reigns if reign.committed
        ],
    }


def _client_wire(seen: Seen) -> dict[str, Any]:
    seconds = [sample.seconds for sample in seen.samples]
    return {
        "kind": seen.kind,
        "clients": seen.clients,
        "requests": len(seconds),
        "failed": seen.failed,
        "p50_ms": round(percentile(seconds, 0.5) * 1000, 2),
        "p99_ms": round(percentile(seconds, 0.99) * 1000, 2),
        "max_ms": round(max(seconds, default=0.0) * 1000, 1),
        "failures": list(seen.failures),
        "idle_closes": seen.idle_closes,
    }


def _handover_wire(ending: Ending, handover: Handover) -> dict[str, Any]:
    within = ending.during(handover)
    return {
        "label": handover.label,
        "command": handover.command,
        "release": handover.release,
        "committed": handover.committed,
        "as_meant": handover.as_meant,
        "reason": handover.reason,
        "command_s": round(handover.whole_s, 3),
        "handover_s": round(handover.took_s, 3),
        "requests": len(within),
        "failed": sum(not sample.ok for sample in within),
        "max_ms": round(max((sample.seconds for sample in within), default=0.0) * 1000, 1),
    }


def _reign_wire(reign: Reign, zero: float) -> dict[str, Any]:
    return {"service": reign.service, "release": reign.release, "from": round(reign.begin - zero, 3)}
