"""`midstream releases`, `why`, `logs`: reading only."""

from __future__ import annotations

import datetime
from typing import Any

import click

from midstream.cli.aim import only_app, take_aim
from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import clean, coloured, echo_json, moment, short, table
from midstream.deploy.sync_client import ConnectionLost, connect
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
@app_option
@config_option
@socket_option
@json_option
def releases(stage: str | None, app: str, config_path: str, socket: str, as_json: bool) -> int:
    """List the releases on the host, oldest first: which is committed, which really run, which are known bad.

    `foreign` ones were made by another tool (Capistrano); a rollback can go to them when its log says they ran.
    """
    aim = take_aim([stage] if stage else [], config=config_path, app=app, socket_path=socket)
    with aim.connect() as client:
        name = only_app(client, aim.app)
        rows = client.call("releases", app=name)["releases"]
    if as_json:
        for row in rows:
            echo_json(row)
        return 0
    if not rows:
        click.echo(f"{name} has no release yet")
        return 0
    header = ("RELEASE", "REVISION", "BRANCH", "MADE", "STATE", "RUNS", "NOTE")
    click.echo(table(header, [_release_row(row) for row in rows]))
    return 0


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
@app_option
@config_option
@socket_option
@json_option
def why(words: tuple[str, ...], limit: int, app: str, config_path: str, socket: str, as_json: bool) -> int:
    """Tell each start, stop and restart of SERVICE, oldest first, with its cause: who, which intent, which exit."""
    aim = take_aim(words, config=config_path, app=app, socket_path=socket)
    if len(aim.services) != 1:
        raise OperatorError("why of which service?", remedy="midstream why SERVICE")
    with aim.connect() as client:
        name = only_app(client, aim.app)
        entries = client.call("why", app=name, service=aim.services[0], limit=limit)["entries"]
    if as_json:
        for entry in entries:
            echo_json(entry)
    elif not entries:
        click.echo(f"nothing has happened to {aim.services[0]} yet")
    else:
        click.echo(table(("WHEN", "GEN", "SLOT", "WHAT", "CAUSE", "WHO"), [_why_row(entry) for entry in entries]))
    return 0


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
@app_option
@config_option
@socket_option
@json_option
def logs(
    words: tuple[str, ...], follow: bool, lines: int, app: str, config_path: str, socket: str, as_json: bool
) -> int:
    """Print the output of services, each line with its time and `service.generation.slot`."""
    aim = take_aim(words, config=config_path, app=app, socket_path=socket)
    follower = _Follower(as_json)
    client = aim.connect()
    name = only_app(client, aim.app)
    while True:
        ask = {"app": name, "services": list(aim.services), "lines": lines, "follow": follow}
        try:
            with client:
                client.call("logs", on_notice=follower.take, **ask)
            return 0
        except ConnectionLost:
            if not follow:
                raise
        follower.skip_known()
        lines = max(lines, 1000)
        client = connect(aim.socket, give_up_s=30.0)


class _Follower:
    """Prints log lines; after a reconnect those that were shown before are passed over: all that are older than the
    last one of their service, and as many of its very time as were shown."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._shown: dict[str, tuple[float, int]] = {}
        self._skip: dict[str, tuple[float, int]] = {}

    def skip_known(self) -> None:
        self._skip = dict(self._shown)

    def take(self, method: str, row: dict[str, Any]) -> None:
        if method != "log":
            return
        moment_s = _time_of(row)
        if not self._is_new(str(row.get("service")), moment_s.timestamp()):
            return
        if self._as_json:
            echo_json(row)
            return
        stamp = moment_s.astimezone().isoformat(sep=" ", timespec="milliseconds")
        place = f"{row.get('service')}.{row.get('generation')}.{row.get('slot')}"
        click.echo(f"{stamp} {place} | {clean(str(row.get('line')))}")

    def _is_new(self, service: str, time_s: float) -> bool:
        last, count = self._shown.get(service, (0.0, 0))
        skip_s, skip_count = self._skip.get(service, (0.0, 0))
        if time_s < skip_s:
            return False
        if time_s == skip_s and skip_count:
            self._skip[service] = (skip_s, skip_count - 1)
            return False
        self._shown[service] = (time_s, count + 1 if time_s == last else 1)
        return True


def _time_of(row: dict[str, Any]) -> datetime.datetime:
    """When the line was written: ISO 8601, UTC."""
    try:
        return datetime.datetime.fromisoformat(str(row["time"]))
    except (KeyError, ValueError):
        return datetime.datetime.fromtimestamp(0, datetime.UTC)
