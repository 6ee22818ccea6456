"""`midstream serve` beside other servers: CPU and throughput, slow requests, stalled clients, memory.

Servers of one kind run side by side and are asked in turns (A B C, A B C), so that what disturbs disturbs all. CPU time
is that of all processes of a server, from /proc; the client is another process. Latency is measured by a client of our own
(`closed_load.py`), throughput by wrk.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import wrk
from footprint import cpu_s, pss_mb
from measurement import Measurement, absent, percentile
from peers import program
from peers.web import (
    ASGI,
    GTHREAD,
    RACK,
    SYNC,
    WSGI,
    Wanted,
    WebServer,
    answers,
    free_port,
    launch,
    make_shop,
    named,
    stop,
    write_apps,
)
from sandbox import Sandbox, descendants, sandbox
from workloads import HELLO, SHOP, WORKLOADS, Workload

from cases import FAILURES, Scale

LOAD = Path(__file__).resolve().parents[1] / "closed_load.py"
APPS = {
    ("wsgi", HELLO): "wsgi_app:app",
    ("asgi", HELLO): "asgi_app:app",
    ("rack", HELLO): "config.ru",
    ("wsgi", SHOP): "shop.wsgi:application",
}
SLOW_CLIENTS = {"think_s": 0.075, "slow_share": 0.05}
STALLED_CLIENTS = {"think_s": 0.04}


def measure(scale: Scale, only: frozenset[str]) -> Iterator[Measurement]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a thousand clients are to be stalled
    for name, part in _PARTS.items():
        if not scale.parts or name in scale.parts:
            yield from part(scale, only)


@dataclass(slots=True)
class Running:
    """A server that answers, or why it does not."""

    server: WebServer
    port: int
    process: subprocess.Popen[bytes] | None = None
    why: str = ""

    def processes(self) -> set[int]:
        assert self.process is not None
        return {self.process.pid} | descendants(self.process.pid)


def _chosen(servers: tuple[WebServer, ...], only: frozenset[str]) -> list[WebServer]:
    return [each for each in servers if not only or only & {each.name, each.program}]


# --- CPU and throughput


def _throughput(scale: Scale, only: frozenset[str]) -> Iterator[Measurement]:
    workloads = [each for each in WORKLOADS if each.quick or not scale.quick]
    for interface, servers in (("wsgi", (*WSGI, *RACK)), ("asgi", ASGI)):
        alike: dict[tuple[str, int, bool], list[Workload]] = {}
        for workload in workloads:
            if interface in workload.interfaces:
                alike.setdefault((workload.app, workload.workers, workload.logged), []).append(workload)
        for (app, workers, logged), group in alike.items():
            chosen = [each for each in _chosen(servers, only) if (each.interface, app) in APPS]
            yield from _side_by_side(interface, chosen, group, Wanted(app, 0, workers, logged), scale.rounds)


def _side_by_side(
    interface: str, servers: list[WebServer], group: list[Workload], wanted: Wanted, rounds: int
) -> Iterator[Measurement]:
    """All workloads that the same running servers can answer."""
    with sandbox() as box:
        every = _all_started(box, servers, wanted)
        for running in every:
            if not running.why:
                wrk.warm(running.port)
        for workload in group:
            asked = [each for each in every if workload.load.path == "/" or each.server.interface != "rack"]
            for _ in range(rounds):
                for running in asked:
                    yield from _sampled(f"{interface}_{workload.key}", running, workload)


def _all_started(box: Sandbox, servers: list[WebServer], wanted: Wanted) -> list[Running]:
    folder = box.folder / "app"
    write_apps(folder)
    why = "" if program("wrk") else "wrk is not installed (apt-get install wrk)"
    if wanted.app == SHOP and not why:
        why = _why_not(lambda: make_shop(folder))
    return [_started(box, server, wanted, folder, why) for server in servers]


def _why_not(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except FAILURES as error:
        return f"failed: {error}"
    return ""


def _started(box: Sandbox, server: WebServer, wanted: Wanted, folder: Path, why: str = "") -> Running:
    running = Running(server, free_port(), why=why or server.missing())
    if not running.why:
        real = replace(wanted, port=running.port, app=APPS[server.interface, wanted.app])
        try:
            running.process = launch(box, server, real, folder)
        except FAILURES as error:
            running.why = f"failed: {error}"
    return running


def _sampled(metric: str, running: Running, workload: Workload) -> list[Measurement]:
    name = running.server.name
    why = running.why
    if not why:
        try:
            before_s = cpu_s(running.processes())
            counts = wrk.run(running.port, workload.load, 1)
            spent_s = cpu_s(running.processes()) - before_s
            return [
                Measurement(f"{metric}_us", name, spent_s / counts.requests * 1e6, "µs"),
                Measurement(f"{metric}_rps", name, counts.requests / counts.seconds, "1/s"),
            ]
        except FAILURES as error:
            why = f"failed: {error}"
    return [absent(f"{metric}_us", name, "µs", why), absent(f"{metric}_rps", name, "1/s", why)]


# --- latency


def _slow_requests(scale: Scale, only: frozenset[str]) -> Iterator[Measurement]:
    with sandbox() as box:
        every = _all_started(box, _chosen(WSGI, only), Wanted(HELLO, 0, 2))
        for _ in range(scale.rounds):
            for running in every:
                found = _latencies(running, scale.load_s, **SLOW_CLIENTS)
                yield _quantile("fast_p99_ms", running.server.name, found, 0.99)
                yield _quantile("fast_p50_ms", running.server.name, found, 0.5)


def _stalled_clients(scale: Scale, only: frozenset[str]) -> Iterator[Measurement]:
    for interface, servers in (
        ("wsgi", (*WSGI[:2], GTHREAD)),
        ("asgi", (*ASGI[:1], named("uvicorn", "asgi"))),
    ):
        with sandbox() as box:
            every = _all_started(box, _chosen(servers, only), Wanted(HELLO, 0, 2))
            for _ in range(scale.rounds):
                for index, running in enumerate(every):
                    yield from _with_stalled(interface, running, scale.load_s / 2)
                    every[index] = _still_there(box, running)


def _with_stalled(interface: str, running: Running, seconds: float) -> Iterator[Measurement]:
    """p99 without stalled clients, with half heads, with answers unread; and the ratios of the latter to the first."""
    name, alone = running.server.name, Measurement("", "", 0.0, "ms")
    for stalled in ("none", "heads", "readers"):
        found = _latencies(running, seconds, stalled=stalled, **STALLED_CLIENTS)
        item = _quantile(f"{interface}_stalled_{stalled}_ms", name, found, 0.99)
        yield item
        if stalled == "none":
            alone = item
        elif item.missing or alone.missing:
            yield absent(f"{interface}_stalled_{stalled}_ratio", name, "ratio", item.missing or alone.missing)
        else:
            yield Measurement(f"{interface}_stalled_{stalled}_ratio", name, item.value / alone.value, "ratio")


def _still_there(box: Sandbox, running: Running) -> Running:
    """It, or where it did not come to itself again another one."""
    if running.process is None:
        return running
    for _ in range(20):
        if answers(running.port, timeout_s=0.2):
            return running
    stop(running.process)
    return _started(box, running.server, Wanted(HELLO, 0, 2), box.folder / "app")


def _latencies(running: Running, seconds: float, **plan: object) -> list[float] | str:
    """In milliseconds, or why there are none."""
    if running.why:
        return running.why
    argv = [sys.executable, str(LOAD), str(running.port), str(seconds), json.dumps(plan)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60 + seconds)
    except FAILURES as error:
        return f"failed: {error}"
    if done.returncode != 0:
        return f"failed: {done.stderr[-300:]}"
    found = json.loads(done.stdout)
    if found["failed"]:
        print(f"    {running.server.name}: {found['failed']} of {len(found['fast_ms'])} failed", file=sys.stderr)
    return list(found["fast_ms"])


def _quantile(metric: str, name: str, found: list[float] | str, share: float) -> Measurement:
    if isinstance(found, str):
        return absent(metric, name, "ms", found)
    return Measurement(metric, name, percentile(found, share), "ms")


# --- memory


def _memory(scale: Scale, only: frozenset[str]) -> Iterator[Measurement]:
    preloaded = replace(SYNC, name="gunicorn --preload")
    for workers in scale.workers:
        for server, more in ((WSGI[0], ()), (preloaded, ("--preload",))):
            if _chosen((server,), only):
                yield _footprint(server, Wanted(SHOP, 0, workers, more=more))


def _footprint(server: WebServer, wanted: Wanted) -> Measurement:
    metric = f"preloaded_{wanted.workers}_mb"
    with sandbox() as box:
        (running,) = _all_started(box, [server], wanted)
        why = running.why or _why_not(lambda: wrk.run(running.port, wrk.Load(connections=16, closing=True), 1))
        if why:
            return absent(metric, server.name, "MB", why)
        return Measurement(metric, server.name, pss_mb(running.processes()), "MB")


_PARTS = {"throughput": _throughput, "slow": _slow_requests, "stalled": _stalled_clients, "memory": _memory}
PARTS = tuple(_PARTS)
