"""The budgets: what is promised, in the words of the design, and how a summary is judged by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from measurement import Summary

OURS = "midstream"


@dataclass(frozen=True, slots=True)
class Budget:
    """`limit` is for our value itself, or, with `beside`, for our value divided by that peer's of the same runs.
    `worst`: the worst run counts instead of the median."""

    metric: str
    title: str
    text: str
    limit: float | None = None
    beside: str = ""
    worst: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """Budgets of one unit that make a table of their own, a column a subject; `by_subject`: a line a subject."""

    title: str
    budgets: tuple[Budget, ...]
    note: str = ""
    by_subject: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ratio` is what is compared with the limit; None where something was not measured."""

    ratio: float | None
    passed: bool | None


BUDGETS = (
    Budget("restart_ms", "kill -9 of a service to its restart", "not slower than runit", 1.0, "runit"),
    Budget("start_1000_s", "starting 1,000 services", "not slower than runit", 1.0, "runit"),
    Budget("start_100_s", "starting 100 services", ""),
    Budget("memory_1_mb", "memory (PSS) with 1 service", "≤ 30 MB", 30.0),
    Budget("memory_100_mb", "memory (PSS) with 100 services", "≤ 32 MB", 32.0),
    Budget("memory_1000_mb", "memory (PSS) with 1,000 services", "≤ 42 MB", 42.0),
    Budget("idle_1_percent", "idle CPU with 1 service", ""),
    Budget("idle_100_percent", "idle CPU with 100 services", ""),
    Budget("idle_1000_percent", "idle CPU with 1,000 services", "≤ 0.05 % of one core", 0.05),
    Budget("handover_failed", "failed requests in the handovers of the worst run", "0", 0.0, worst=True),
    Budget("handover_p99_ratio", "p99 within a handover / steady p99", "≤ 1.2 with a core free for it", 1.2),
    Budget("handover_worst_ms", "slowest request within a handover", ""),
    Budget("steady_p99_ms", "p99 between handovers", ""),
    Budget("handover_s", "from the trigger until only new code answers", ""),
    Budget(
        "deploy_1_0_s", "deploy, no build steps, one host over ssh", "≤ 1/5 of Capistrano's time", 0.2, "capistrano"
    ),
    Budget("rollback_1_0_s", "rollback, one host", "", None, "capistrano"),
    Budget(
        "deploy_1_50_s",
        "deploy, no build steps, one host over ssh, 50 ms round trip",
        "≤ 1/8 of Capistrano's time",
        0.125,
        "capistrano",
    ),
    Budget("rollback_1_50_s", "rollback, one host, 50 ms round trip", "", None, "capistrano"),
    Budget("deploy_2_0_s", "deploy, no build steps, 2 hosts over ssh", "", None, "capistrano"),
    Budget("rollback_2_0_s", "rollback, 2 hosts", "", None, "capistrano"),
    Budget("deploy_2_50_s", "deploy, no build steps, 2 hosts over ssh, 50 ms round trip", "", None, "capistrano"),
    Budget("rollback_2_50_s", "rollback, 2 hosts, 50 ms round trip", "", None, "capistrano"),
    Budget("deploy_8_0_s", "deploy, no build steps, 8 hosts over ssh", "", None, "capistrano"),
    Budget("rollback_8_0_s", "rollback, 8 hosts", "", None, "capistrano"),
    Budget("deploy_8_50_s", "deploy, no build steps, 8 hosts over ssh, 50 ms round trip", "", None, "capistrano"),
    Budget("rollback_8_50_s", "rollback, 8 hosts, 50 ms round trip", "", None, "capistrano"),
    Budget("deploy_1_cpu_s", "CPU time of a deploy, both sides and ssh, one host", "", None, "capistrano"),
    Budget("deploy_2_cpu_s", "CPU time of a deploy, both sides and ssh, 2 hosts", "", None, "capistrano"),
    Budget("deploy_8_cpu_s", "CPU time of a deploy, both sides and ssh, 8 hosts", "", None, "capistrano"),
    Budget("round_trips_1", "round trips that a deploy waits for, one host (connecting included)", ""),
    Budget("round_trips_2", "round trips that a deploy waits for, 2 hosts (connecting included)", ""),
    Budget("round_trips_8", "round trips that a deploy waits for, 8 hosts (connecting included)", ""),
    Budget("one_file_s", "deploy of a one-file change in a 200 MB tree", "", None, "capistrano"),
    Budget("one_file_kb", "kB between deployer and host for it", "", None, "capistrano"),
)


def judge(budget: Budget, subjects: Mapping[str, Summary]) -> Verdict:
    """Our summary against the budget. Where no limit is set, neither passed nor over."""
    ours = subjects.get(OURS)
    if ours is None or ours.missing:
        return Verdict(None, None)
    ratio: float | None = ours.highest if budget.worst else ours.median
    if budget.beside:
        peer = subjects.get(budget.beside)
        ratio = ours.median / peer.median if peer is not None and not peer.missing and peer.median else None
    if ratio is None or budget.limit is None:
        return Verdict(ratio, None)
    return Verdict(ratio, ratio <= budget.limit)
