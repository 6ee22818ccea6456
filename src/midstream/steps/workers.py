"""The step `workers`: what Sidekiq and RQ themselves say about their workers on this host.

What lives here: reading their records. What must not: what follows from it (`core/turn.py`). Runs as a one-shot under the
app's uid, for as long as somebody waits for an answer, at most `for_s`. Read-only; may be killed at any instant.

A worker is known by host name and pid: its own, or one whose parents lead to the instance's (a shell may stand between).
An entry whose last heartbeat is older than the instance belongs to an earlier process of that pid.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from midstream.core.steps import WORKERS_MARK, Worker, Workers
from midstream.errors import MidstreamError, OperatorError
from midstream.linux import clock
from midstream.linux.process import read_stat
from midstream.steps.redis_wire import Redis, RedisRefused, parse_url

_REPEAT_S = 5.0
_EARLIER_S = 1.0  # what /proc says of the start is not exact
_JOBS_MAX = 50
_PARENTS_MAX = 8


@dataclass(slots=True)
class Found:
    """One worker as its library lists it."""

    slot: int
    attempt: int
    listed: bool = False
    quiet: bool = False
    busy: int = 0
    beat: float = 0.0
    jobs: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""


def workers(request: Workers) -> dict[str, Any]:
    """Writes observations until the time is up. Blocks."""
    read = _LIBRARIES.get(request.library)
    if read is None:
        raise OperatorError(
            f"no job library is called {request.library!r}", remedy=f"there are: {', '.join(_LIBRARIES)}"
        )
    where = parse_url(request.url)
    ends_s = time.monotonic() + request.for_s
    said, said_s = "", 0.0
    redis: Redis | None = None
    while True:
        try:
            redis = redis or Redis(where)
            found = read(redis, request.workers)
        except (MidstreamError, RedisRefused) as error:
            redis = None if isinstance(error, MidstreamError) else redis
            what = error.what if isinstance(error, MidstreamError) else f"{where}: {error}"
            found = [Found(item.slot, item.attempt, trouble=what) for item in request.workers]
        text = json.dumps([asdict(item) for item in found])
        if text != said or time.monotonic() >= said_s + _REPEAT_S:
            print(WORKERS_MARK + text, flush=True)
            said, said_s = text, time.monotonic()
        if time.monotonic() + request.pause_s > ends_s:
            return {}
        time.sleep(request.pause_s)


def _sidekiq(redis: Redis, wanted: tuple[Worker, ...]) -> list[Found]:
    """`processes` SET, `ID` HASH {info, busy, beat, quiet} with a life of 60 s, `ID:work` (`ID:workers` before 6.5) HASH
    thread -> {queue, payload, run_at}; ID is host:pid:nonce. The counts are those of the last heartbeat."""
    host = os.uname().nodename
    listed: list[tuple[int, str]] = []
    for name in redis.members("processes"):
        words = name.rsplit(":", 2)
        if len(words) == 3 and words[0] == host and words[1].isdecimal():
            listed.append((int(words[1]), name))
    return [_sidekiq_one(redis, worker, listed) for worker in wanted]


def _sidekiq_one(redis: Redis, worker: Worker, listed: list[tuple[int, str]]) -> Found:
    found = Found(worker.slot, worker.attempt)
    for pid, name in listed:
        if not _belongs(pid, worker.pid):
            continue
        info, busy, beat, quiet = redis.fields(name, "info", "busy", "beat", "quiet")
        if not info or _number(beat) < _began(worker) - _EARLIER_S:
            continue
        found.listed, found.quiet = True, quiet == "true"
        found.busy, found.beat = int(_number(busy)), _number(beat)
        running = {**redis.hash(f"{name}:workers"), **redis.hash(f"{name}:work")}
        found.jobs = [_sidekiq_job(_json(text)) for text in list(running.values())[:_JOBS_MAX]]
    if not found.listed:
        found.trouble = "Sidekiq does not list it in Redis"
    return found


def _sidekiq_job(work: dict[str, Any]) -> dict[str, Any]:
    payload = work.get("payload")
    job = _json(payload) if isinstance(payload, str) else payload if isinstance(payload, dict) else {}
    name = job.get("display_class") or job.get("wrapped") or job.get("class") or "?"
    return {
        "id": str(job.get("jid", ""))[:80],
        "name": str(name)[:120],
        "queue": str(work.get("queue", ""))[:80],
        "since": _number(work.get("run_at")),
    }


def _rq(redis: Redis, wanted: tuple[Worker, ...]) -> list[Found]:
    """`rq:workers` SET of `rq:worker:NAME` HASH {hostname, pid, last_heartbeat, state, shutdown_requested_date, before 3.0
    current_job}; since 3.0 `rq:worker:NAME:executions` SET of JOB:EXECUTION; `rq:job:ID` HASH {description, origin,
    started_at}."""
    host = os.uname().nodename
    listed: list[tuple[int, dict[str, str]]] = []
    for name in redis.members("rq:workers"):
        row = redis.hash(name) | {"": name}
        if row.get("hostname") == host and row.get("pid", "").isdecimal():
            listed.append((int(row["pid"]), row))
    return [_rq_one(redis, worker, listed) for worker in wanted]


def _rq_one(redis: Redis, worker: Worker, listed: list[tuple[int, dict[str, str]]]) -> Found:
    found = Found(worker.slot, worker.attempt)
    for pid, row in listed:
        if not _belongs(pid, worker.pid) or _moment(row.get("last_heartbeat", "")) < _began(worker) - _EARLIER_S:
            continue
        found.listed = row.get("state", "") in ("idle", "busy", "suspended")
        found.quiet = bool(row.get("shutdown_requested_date"))
        found.beat = _moment(row.get("last_heartbeat", ""))
        running = [item.rpartition(":")[0] for item in redis.members(f"{row['']}:executions")]
        running = running or [item for item in [row.get("current_job", "")] if item]
        found.busy = max(len(running), int(row.get("state") == "busy"))
        found.jobs = [_rq_job(redis, item) for item in running[:_JOBS_MAX]]
    if not found.listed:
        found.trouble = "RQ does not list it in Redis"
    return found


def _rq_job(redis: Redis, name: str) -> dict[str, Any]:
    what, queue, since = redis.fields(f"rq:job:{name}", "description", "origin", "started_at")
    return {"id": name[:80], "name": what[:120] or "?", "queue": queue[:80], "since": _moment(since)}


_LIBRARIES: dict[str, Callable[[Redis, tuple[Worker, ...]], list[Found]]] = {"sidekiq": _sidekiq, "rq": _rq}


def _began(worker: Worker) -> float:
    """Epoch seconds, by what the clock says now: it may have been set since the last look, and then heartbeats are, too."""
    return time.time() - (clock.boottime_s() - worker.start_ticks / os.sysconf("SC_CLK_TCK"))


def _belongs(pid: int, instance: int) -> bool:
    """Whether the process is the instance's own, or descends from it."""
    for _ in range(_PARENTS_MAX):
        if pid == instance:
            return True
        stat = read_stat(pid) if pid > 1 else None
        if stat is None:
            return False
        pid = stat.ppid
    return False


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    """Seconds since the epoch, or a count. Sidekiq 8 writes some times as whole milliseconds."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number / 1000.0 if number > 1e11 else number if number == number else 0.0


def _moment(text: str) -> float:
    """RQ's UTC times: `2026-11-21T19:05:01.123456Z`, with or without the fraction."""
    try:
        return datetime.fromisoformat(text.replace("Z", "")).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
