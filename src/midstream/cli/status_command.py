"""`midstream status`."""

from __future__ import annotations

import time
from typing import Any

import click

from midstream.cli.aim import Aim, take_aim
from midstream.cli.fleet_view import clock_lines, fleet_problems, fleet_text
from midstream.cli.hosts import Only, host_options
from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import echo_json
from midstream.cli.status_view import problems, status_text
from midstream.errors import EXIT_DRIFT, EXIT_OK, OperatorError


@command(
    "status",
    exits=(0, 1, 2, 3, 70),
    examples="""
    midstream status
    midstream status production
    midstream status web jobs            only these services
    midstream status --check || page-me  exit code 3 when something is down or drifted
    midstream status --json | jq .apps[].drift
    """,
)
@click.argument("words", metavar="[STAGE] [SERVICE]...", nargs=-1)
@click.option("--check", is_flag=True, help="Exit with 3 when a service does not run or runs another release.")
@host_options
@app_option
@config_option
@socket_option
@json_option
def status(
    words: tuple[str, ...], check: bool, only: Only, app: str, config_path: str, socket: str, as_json: bool
) -> int:
    """Show what runs, on all hosts of the stage.

    For each process its pid, generation and state, the release that is committed, the release the process really
    runs (read from the process itself, not from a symlink), uptime, restarts and memory; and whatever drifted. A
    host that cannot be reached is told, hides no other, and makes the exit code 1.
    """
    aim = take_aim(words, config=config_path, app=app, socket_path=socket, only=only)
    asked_s = time.time()
    answers = aim.ask(lambda client, host: client.call("status"))
    seen = dict(answers.good())
    clocks = clock_lines(seen, asked_s, time.time())
    for answer in seen.values():
        if aim.app:
            answer["apps"] = [row for row in answer["apps"] if row["app"] == aim.app]
    if app and seen and not any(answer["apps"] for answer in seen.values()):
        raise OperatorError(f"the agent has no app {app}", where=aim.where, remedy="midstream deploy brings one")
    if aim.services:
        _narrow([row for answer in seen.values() for row in answer["apps"]], aim)
    found = {host: problems(answer) for host, answer in seen.items()}
    _show(aim, seen, found, {row.host: str(row.error.what) for row in answers.failed if row.error}, clocks, as_json)
    code = _checked(aim, seen, found) if check else EXIT_OK
    failed = answers.conclude(as_json)
    return code or failed


def _show(
    aim: Aim,
    seen: dict[str, Any],
    found: dict[str, list[str]],
    failed: dict[str, str],
    clocks: list[str],
    as_json: bool,
) -> None:
    if as_json:
        for host, answer in seen.items():
            row = {**answer, "problems": found[host]}
            echo_json({"address": host, **row} if aim.several else row)
    elif aim.several:
        click.echo(fleet_text(seen, failed, _is_unfinished, clocks))
    else:
        for answer in seen.values():
            click.echo(status_text(answer))


def _is_unfinished(app: str, stage: str) -> bool:
    """Whether `midstream resume` would find a deploy of the stage to carry on, on this machine."""
    from midstream.cli.places import records_folder
    from midstream.deploy.record import ENDED, last_memo

    memo = last_memo(records_folder(), app, stage)
    return memo is not None and memo.state not in ENDED


def _checked(aim: Aim, seen: dict[str, Any], found: dict[str, list[str]]) -> int:
    """The verdict of --check, told on stderr."""
    lines = []
    for host, answer in seen.items():
        missing = [f"{aim.app} is not deployed here"] if aim.app and not answer["apps"] else []
        lines += [f"{host}: {line}" if aim.several else line for line in [*missing, *found[host]]]
    lines += fleet_problems(seen, _is_unfinished)
    for line in lines:
        click.echo(f"midstream: {line}", err=True)
    return EXIT_DRIFT if lines else EXIT_OK


def _narrow(apps: list[dict[str, object]], aim: Aim) -> None:
    wanted = aim.services
    known = {row["service"] for app in apps for row in _services(app)}
    for name in wanted:
        if name not in known:
            stage = f"; stages: {aim.stage}" if aim.stage else ""
            raise OperatorError(
                f"no service is called {name}", remedy=f"known: {', '.join(sorted(known)) or 'none'}{stage}"
            )
    for app in apps:
        app["services"] = [row for row in _services(app) if row["service"] in wanted]
        drift = app.get("drift")
        assert isinstance(drift, list)
        app["drift"] = [row for row in drift if row.get("service") in (*wanted, None, "")]


def _services(app: dict[str, object]) -> list[dict[str, str]]:
    services = app["services"]
    assert isinstance(services, list)
    return services
