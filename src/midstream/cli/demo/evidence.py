"""Whether a process ever ran uncommitted code: what the processes wrote down, held against the agent's journal.

Pure. Two witnesses that know nothing of each other: `log/processes.jsonl`, in which each process says from which folder
its own code was loaded and when the kernel made it, and the events of the agent, which say what was committed when.

The rule (docs/demo.md): a process may begin, and a worker may take a job, from the release that is committed for its
service at that moment, or from the one that a handover going on at that moment brings. Anything else is stale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# The kernel counts the start of a process in ticks of 10 ms.
EDGE_S = 0.1
# The agent notes a start when the keeper has answered, so the first process of a handover is a little older than the
# first word of it in the journal; on a machine that is busy by some tenths of a second.
NOTED_S = 1.0
# One that is killed before it noted a start leaves that to the next agent, which notes it once it is there.
AWAY_S = 20.0
# From the commit until TERM has reached a worker that is just asking for its next job.
QUIET_S = 0.5


@dataclass(frozen=True, slots=True)
class Began:
    """A process that began. began: epoch seconds. release: where its code was loaded from. trying: a throw-away
    instance that proves a release and serves nobody."""

    began: float
    pid: int
    service: str
    release: str
    trying: bool


@dataclass(frozen=True, slots=True)
class Job:
    """A job that a worker took, at `time` (epoch seconds)."""

    time: float
    pid: int
    service: str
    release: str


@dataclass(frozen=True, slots=True)
class Fact:
    """An event of the agent, as far as it matters here."""

    time: float
    service: str
    generation: int
    kind: str
    text: str
    intent: str


@dataclass(frozen=True, slots=True)
class Reign:
    """`service` may run `release` from `begin` to `end` (epoch seconds). committed: else a handover to it was tried."""

    service: str
    release: str
    begin: float
    end: float
    committed: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """stale, stale_jobs: one sentence for each."""

    processes: int
    trying: int
    jobs: int
    stale: tuple[str, ...]
    stale_jobs: tuple[str, ...]


def read_log(lines: Iterable[str]) -> tuple[list[Began], list[Job]]:
    """What the processes wrote down. A line that was cut by a kill is passed over, others must be whole."""
    began: list[Began] = []
    jobs: list[Job] = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["what"] == "began":
            began.append(Began(row["began"], row["pid"], row["service"], row["release"], row["trying"]))
        else:
            jobs.append(Job(row["time"], row["pid"], row["service"], row["release"]))
    return began, jobs


def reigns(facts: Iterable[Fact], release_of: Mapping[str, str], agent_killed: Iterable[float] = ()) -> list[Reign]:
    """release_of: deploy id -> the release it brought, as its command said. agent_killed: when, epoch seconds."""
    killed = sorted(agent_killed)
    ordered = sorted(facts, key=lambda fact: fact.time)
    brought_by: dict[int, str] = {}
    decided: dict[str, float] = {}
    for fact in ordered:
        if fact.generation and fact.intent:
            brought_by.setdefault(fact.generation, fact.intent)
        if fact.kind in ("commit", "revert"):
            decided.setdefault(fact.intent, fact.time)
    found: list[Reign] = []
    for service in sorted({fact.service for fact in ordered if fact.service}):
        mine = [fact for fact in ordered if fact.service == service]
        found += _tried(service, mine, brought_by, decided, release_of, killed)
        found += _committed(service, mine, brought_by, release_of)
    return found


def _tried(
    service: str,
    facts: list[Fact],
    brought_by: Mapping[int, str],
    decided: Mapping[str, float],
    release_of: Mapping[str, str],
    killed: list[float],
) -> list[Reign]:
    first: dict[int, float] = {}
    for fact in facts:
        if fact.generation not in first:
            away = (time for time in killed if fact.time - AWAY_S < time < fact.time)
            first[fact.generation] = min(away, default=fact.time)
    return [
        Reign(service, release_of[intent], begin - NOTED_S, decided.get(intent, math.inf), False)
        for generation, begin in first.items()
        if (intent := brought_by.get(generation, "")) in release_of
    ]


def _committed(
    service: str, facts: list[Fact], brought_by: Mapping[int, str], release_of: Mapping[str, str]
) -> list[Reign]:
    commits = [fact for fact in facts if fact.kind == "generation" and fact.text.endswith("-> committed")]
    ends = [fact.time for fact in commits[1:]] + [math.inf]
    return [
        Reign(service, release_of.get(brought_by.get(fact.generation, ""), "?"), fact.time, end, True)
        for fact, end in zip(commits, ends, strict=True)
    ]


def judge(began: list[Began], jobs: list[Job], spans: list[Reign]) -> Verdict:
    """Every process and every job against the rule."""
    stale = [
        _sentence(one, "began", one.began, spans)
        for one in began
        if not _allowed(one.service, one.release, one.began, spans, EDGE_S)
    ]
    stale_jobs = [
        _sentence(one, "took a job", one.time, spans)
        for one in jobs
        if not _allowed(one.service, one.release, one.time, spans, QUIET_S)
    ]
    trying = sum(one.trying for one in began)
    return Verdict(len(began), trying, len(jobs), tuple(stale), tuple(stale_jobs))


def _allowed(service: str, release: str, time: float, spans: list[Reign], after_s: float) -> bool:
    return any(
        span.service == service and span.release == release and span.begin - EDGE_S <= time <= span.end + after_s
        for span in spans
    )


def _sentence(one: Began | Job, did: str, time: float, spans: list[Reign]) -> str:
    then = _then(one.service, time, spans)
    return f"{one.service} process {one.pid} of release {one.release} {did} at {time:.3f}: {then}"


def _then(service: str, time: float, spans: list[Reign]) -> str:
    """What was the rule at that moment, for the message."""
    there = [span for span in spans if span.service == service and span.begin <= time <= span.end]
    if not there:
        return "nothing was committed then"
    return ", ".join(f"{span.release} was {'committed' if span.committed else 'being brought'}" for span in there)
