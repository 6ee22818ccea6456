"""`midstream status`."""

from __future__ import annotations

import click

from midstream.cli.aim import take_aim
from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import echo_json
from midstream.cli.status_view import problems, status_text
from midstream.errors import EXIT_DRIFT, EXIT_OK, OperatorError


@command(
    "status",
    exits=(0, 2, 3, 70),
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
@app_option
@config_option
@socket_option
@json_option
def status(words: tuple[str, ...], check: bool, app: str, config_path: str, socket: str, as_json: bool) -> int:
    """Show what runs.

    For each process its pid, generation and state, the release that is committed, the release the process really
    runs (read from the process itself, not from a symlink), uptime, restarts and memory; and whatever drifted.
    """
    aim = take_aim(words, config=config_path, app=app, socket_path=socket)
    with aim.connect() as client:
        answer = client.call("status")
    if aim.app:
        answer["apps"] = [row for row in answer["apps"] if row["app"] == aim.app]
        if app and not answer["apps"]:
            raise OperatorError(f"the agent has no app {app}", where=aim.socket, remedy="midstream deploy brings one")
    if aim.services:
        _narrow(answer["apps"], aim.services)
    found = problems(answer)
    if as_json:
        echo_json({**answer, "problems": found})
    else:
        click.echo(status_text(answer))
    if not check:
        return EXIT_OK
    missing = [f"{aim.app} is not deployed here"] if aim.app and not answer["apps"] else []
    for line in [*missing, *found]:
        click.echo(f"midstream: {line}", err=True)
    return EXIT_DRIFT if found or missing else EXIT_OK


def _narrow(apps: list[dict[str, object]], wanted: tuple[str, ...]) -> None:
    known = {row["service"] for app in apps for row in _services(app)}
    for name in wanted:
        if name not in known:
            raise OperatorError(f"no service is called {name}", remedy=f"known: {', '.join(sorted(known)) or 'none'}")
    for app in apps:
        app["services"] = [row for row in _services(app) if row["service"] in wanted]
        drift = app.get("drift")
        assert isinstance(drift, list)
        app["drift"] = [row for row in drift if row.get("service") in (*wanted, None, "")]


def _services(app: dict[str, object]) -> list[dict[str, str]]:
    services = app["services"]
    assert isinstance(services, list)
    return services
