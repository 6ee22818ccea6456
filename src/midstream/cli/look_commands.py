"""`midstream releases`, `why`, `logs`: reading only."""

from __future__ import annotations

import datetime
import json
import threading
import time
from typing import Any

import click

from midstream.cli.aim import Aim, only_app, take_aim
from midstream.cli.ask import services_here
from midstream.cli.hosts import Only, host_options
from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import clean, coloured, echo_json, moment, short, table
from midstream.core.moments import by_age
from midstream.deploy.sync_client import ConnectionLost, SyncClient, connect
from midstream.errors import OperatorError


@command(
    "releases",
    exits=(0, 1, 2, 70),
    examples="""
    midstream releases
    midstream releases --json | jq -r 'select(.committed) | .release'
    """,
)
@click.argument("stage", required=False)
@host_options
@app_option
@config_option
@socket_option
@json_option
def releases(stage: str | None, only: Only, app: str, config_path: str, socket: str, as_json: bool) -> int:
    """List the releases on the hosts, oldest first: which is committed, which really run, which are known bad.

    `foreign` ones were made by another tool (Capistrano); a rollback can go to them when its log says they ran.
    """
    aim = take_aim([stage] if stage else [], config=config_path, app=app, socket_path=socket, only=only)

    def ask(client: SyncClient, host: str) -> tuple[str, list[dict[str, Any]]]:
        name = only_app(client, aim.app)
        return name, client.call("releases", app=name)["releases"]

    answers = aim.ask(ask)
    found = [(host, row) for host, (_, rows) in answers.good() for row in rows]
    if as_json:
        for host, row in found:
            echo_json({"host": host, **row} if aim.several else row)
    elif found:
        header = ("RELEASE", "REVISION", "BRANCH", "MADE", "STATE", "RUNS", "NOTE")
        click.echo(host_table(aim, header, [(host, _release_row(row)) for host, row in found]))
    for host, (name, rows) in answers.good():
        if not rows and not as_json:
            click.echo(f"{name} has no release yet" + (f" on {host}" if aim.several else ""))
    return answers.conclude(as_json)


def host_table(aim: Aim, header: tuple[str, ...], rows: list[tuple[str, tuple[str, ...]]]) -> str:
    """A table, with the host in front where the stage has several."""
    if not aim.several:
        return table(header, [row for _, row in rows])
    return table(("HOST", *header), [(host, *row) for host, row in rows])


def _release_row(row: dict[str, Any]) -> tuple[str, ...]:
    marks = [word for word in ("committed", "current") if row.get(word)]
    notes = [*marks, *([clean(str(row["reason"]))] if row.get("reason") else [])]
    running = ", ".join(row.get("running", ()))
    head = (str(row["release"]), short(row.get("revision") or "-"), str(row.get("branch") or "-"))
    return (*head, moment(row.get("time")), coloured(str(row["state"])), running or "-", ", ".join(notes))


@command(
    "why",
    exits=(0, 1, 2, 70),
    examples="""
    midstream why web
    midstream why production web -n 5
    """,
)
@click.argument("words", metavar="[STAGE] SERVICE", nargs=-1, required=True)
@click.option("-n", "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many entries.")
@host_options
@app_option
@config_option
@socket_option
@json_option
def why(words: tuple[str, ...], limit: int, only: Only, app: str, config_path: str, socket: str, as_json: bool) -> int:
    """Tell each start, stop and restart of SERVICE, oldest first, with its cause: who, which intent, which exit."""
    aim = take_aim(words, config=config_path, app=app, socket_path=socket, only=only)
    if len(aim.services) != 1:
        raise OperatorError("why of which service?", remedy="midstream why SERVICE")

    def ask(client: SyncClient, host: str) -> tuple[float, list[dict[str, Any]]]:
        name = only_app(client, aim.app)
        (service,) = services_here(client, name, aim.services, several=aim.several)
        answer = client.call("why", app=name, service=service, limit=limit)
        return _now_s(answer), answer["entries"]

    answers = aim.ask(ask)
    aim.require_somebody(answers)
    rows = [
        (now_s, [(float(entry.get("time") or 0.0), (host, entry)) for entry in entries])
        for host, (now_s, entries) in answers.good()
    ]
    found = by_age(rows)[-limit:]
    if as_json:
        for host, entry in found:
            echo_json({"host": host, **entry} if aim.several else entry)
    elif found:
        header = ("WHEN", "GEN", "SLOT", "WHAT", "CAUSE", "WHO")
        click.echo(host_table(aim, header, [(host, _why_row(entry)) for host, entry in found]))
    elif not answers.failed:
        click.echo(f"nothing has happened to {aim.services[0]} yet")
    return answers.conclude(as_json)


def _why_row(entry: dict[str, Any]) -> tuple[str, ...]:
    who = str(entry.get("who") or "-")
    if entry.get("intent"):
        who += f" ({entry['intent']})"
    generation, slot = (_or_dash(entry.get(key)) for key in ("generation", "slot"))
    words = (clean(str(entry.get(key) or "-")) for key in ("what", "cause"))
    return (moment(entry.get("time")), generation, slot, *words, clean(who))


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)


@command(
    "logs",
    exits=(0, 1, 2, 70, 130),
    examples="""
    midstream logs                    the last lines of all services
    midstream logs -f web             and on from there
    midstream logs production jobs -n 500
    """,
)
@click.argument("words", metavar="[STAGE] [SERVICE]...", nargs=-1)
@click.option("-f", "--follow", is_flag=True, help="Go on printing; survives restarts of services and of the agent.")
@click.option("-n", "--lines", type=click.IntRange(0, 100_000), default=100, show_default=True, help="How many lines.")
@host_options
@app_option
@config_option
@socket_option
@json_option
def logs(
    words: tuple[str, ...],
    follow: bool,
    lines: int,
    only: Only,
    app: str,
    config_path: str,
    socket: str,
    as_json: bool,
) -> int:
    """Print the output of services, each line with its time and `service.generation.slot`; of several hosts in the order
    of time, with the host.

    With -f the lines of several hosts come as they are written, host by host at first.
    """
    aim = take_aim(words, config=config_path, app=app, socket_path=socket, only=only)
    found: list[_Follower] = []
    lock = threading.Lock()

    def read(client: SyncClient, host: str) -> bool:
        follower = _Follower(as_json, host if aim.several else "", lock, at_once=follow or not aim.several)
        found.append(follower)
        name = only_app(client, aim.app)
        services = services_here(client, name, aim.services, several=aim.several)
        _read_logs(client, follower, {"app": name, "services": services, "lines": lines, "follow": follow})
        return True

    answers = aim.ask(read)
    for line in by_age((follower.now_s, follower.kept) for follower in found):
        click.echo(line)
    aim.require_somebody(answers)
    return answers.conclude(as_json)


def _read_logs(client: SyncClient, follower: _Follower, ask: dict[str, Any]) -> None:
    """To the end; when lines are followed, over losses of the connection."""
    host = client.host
    while True:
        try:
            with client:
                follower.now_s = _now_s(client.call("logs", on_notice=follower.take, **ask))
            return
        except ConnectionLost:
            if not ask["follow"]:
                raise
        follower.skip_known()
        ask["lines"] = max(ask["lines"], 1000)
        client = connect(host, give_up_s=30.0)


class _Follower:
    """Prints log lines of one host; after a reconnect those that were shown before are passed over: all that are older
    than the last one of their service, and as many of its very time as were shown. What comes after that one is new,
    also where the host's clock was set back meanwhile. at_once False: keeps the lines, with their times, instead."""

    def __init__(self, as_json: bool, host: str, lock: threading.Lock, *, at_once: bool) -> None:
        self.kept: list[tuple[float, str]] = []
        self.now_s = time.time()
        self._as_json = as_json
        self._host = host
        self._at_once = at_once
        self._lock = lock
        self._shown: dict[str, tuple[float, int]] = {}
        self._skip: dict[str, tuple[float, int]] = {}

    def skip_known(self) -> None:
        self._skip = dict(self._shown)

    def take(self, method: str, row: dict[str, Any]) -> None:
        if method != "log":
            return
        at = _time_of(row)
        if not self._is_new(str(row.get("service")), at.timestamp()):
            return
        line = self._line(row, at)
        if not self._at_once:
            self.kept.append((at.timestamp(), line))
            return
        with self._lock:
            click.echo(line)

    def _line(self, row: dict[str, Any], at: datetime.datetime) -> str:
        if self._as_json:
            return json.dumps({"host": self._host, **row} if self._host else row, ensure_ascii=False)
        stamp = at.astimezone().isoformat(sep=" ", timespec="milliseconds")
        place = f"{row.get('service')}.{row.get('generation')}.{row.get('slot')}"
        head = f"{self._host} {place}" if self._host else place
        return f"{stamp} {head} | {clean(str(row.get('line')))}"

    def _is_new(self, service: str, time_s: float) -> bool:
        last, count = self._shown.get(service, (0.0, 0))
        skip_s, skip_count = self._skip.get(service, (0.0, 0))
        if time_s < skip_s:
            return False
        if time_s == skip_s and skip_count > 1:
            self._skip[service] = (skip_s, skip_count - 1)
            return False
        self._skip.pop(service, None)
        if time_s == skip_s and skip_count:
            return False
        self._shown[service] = (time_s, count + 1 if time_s == last else 1)
        return True


def _time_of(row: dict[str, Any]) -> datetime.datetime:
    """When the line was written: ISO 8601, UTC."""
    try:
        return datetime.datetime.fromisoformat(str(row["time"]))
    except (KeyError, ValueError):
        return datetime.datetime.fromtimestamp(0, datetime.UTC)


def _now_s(answer: dict[str, Any]) -> float:
    """What the clock of the host says now; an older agent does not tell, and is taken to be right."""
    return float(answer.get("now") or time.time())
