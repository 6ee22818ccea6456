"""`midstream start`, `stop`, `restart`, `reload`, `signal`: the operator's hand on services.

Each asks the agent, which records the intent before it acts; nothing is signalled from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from midstream.cli.aim import Aim, only_app, take_aim
from midstream.cli.ask import services_here
from midstream.cli.hosts import Only, host_options
from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import coloured, echo_json
from midstream.cli.words import DURATION, SIGNAL
from midstream.deploy.sync_client import SyncClient
from midstream.errors import OperatorError

ALL = "all"


def aim_at_services(words: tuple[str, ...], verb: str, config: str, app: str, socket: str, only: Only) -> Aim:
    """The aim of `[STAGE] SERVICE…|all`. Raises OperatorError when no service is named: that would be all of them."""
    aim = take_aim(words, config=config, app=app, socket_path=socket, only=only)
    if not aim.services:
        raise OperatorError(f"{verb} which services?", remedy=f"midstream {verb} SERVICE…, or: midstream {verb} {ALL}")
    return replace(aim, services=()) if ALL in aim.services else aim


def _act(verb: str, aim: Aim, as_json: bool, wait: bool, timeout_s: float | None) -> int:
    extra: dict[str, Any] = {} if timeout_s is None else {"timeout_s": timeout_s}

    def act(client: SyncClient, host: str) -> list[dict[str, Any]]:
        name = only_app(client, aim.app)
        services = services_here(client, name, aim.services, several=aim.several)
        return list(client.call(verb, app=name, services=services, wait=wait, **extra)["services"])

    answers = aim.ask(act)
    aim.require_somebody(answers)
    for host, rows in answers.good():
        for row in rows:
            if as_json:
                echo_json({"host": host, **row} if aim.several else row)
            else:
                head = f"{host}: " if aim.several else ""
                pids = ", ".join(str(pid) for pid in row.get("pids", ()))
                tail = f" (pid {pids})" if pids else ""
                click.echo(f"{head}{row['service']}: {coloured(str(row['state']))}{tail}")
    return answers.conclude(as_json)


def _verb(verb: str, text: str, examples: str) -> click.Command:
    """One command of the family; they differ in the verb and in what is said about it."""

    def act(
        words: tuple[str, ...],
        wait: bool,
        timeout_s: float | None,
        only: Only,
        app: str,
        config_path: str,
        socket: str,
        as_json: bool,
    ) -> int:
        return _act(verb, aim_at_services(words, verb, config_path, app, socket, only), as_json, wait, timeout_s)

    act.__doc__ = text
    options: list[Callable[[Any], Any]] = [
        click.argument("words", metavar="[STAGE] SERVICE...|all", nargs=-1),
        click.option("--wait/--no-wait", default=True, show_default=True, help="Return when it is done, or at once."),
        click.option("--timeout", "timeout_s", type=DURATION, default=None, help="Wait at most so long."),
        host_options,
        app_option,
        config_option,
        socket_option,
        json_option,
    ]
    decorated: Any = act
    for option in reversed(options):
        decorated = option(decorated)
    made = command(verb, examples=examples)(decorated)
    assert isinstance(made, click.Command)
    return made


start = _verb(
    "start",
    """Start services, from the release that is committed. One that runs is left alone.

    Ends a stop by hand: from now on the service is watched and restarted again.
    """,
    """
    midstream start web
    midstream start all
    """,
)
stop = _verb(
    "stop",
    """Stop services in order, and keep them stopped, also over a reboot and a deploy, until `midstream start`.

    Their listening sockets stay open; connections wait in the queue.
    """,
    """
    midstream stop jobs
    midstream stop production web jobs
    midstream stop all --timeout 2m
    """,
)
restart = _verb(
    "restart",
    """Replace the processes of services by new ones of the same release, as a deploy would: the new ones are proven
    before the old ones are drained.
    """,
    """
    midstream restart web
    midstream restart all --no-wait
    """,
)
reload = _verb(
    "reload",
    """Have services read their configuration again, with the signal that their profile or `reload_signal` names.""",
    """
    midstream reload web
    """,
)


@command(
    "signal",
    examples="""
    midstream signal HUP web
    midstream signal USR1 production web
    midstream signal TERM jobs --slot 1
    """,
)
@click.argument("name", metavar="SIGNAL", type=SIGNAL)
@click.argument("words", metavar="[STAGE] SERVICE...|all", nargs=-1)
@click.option("--slot", type=click.IntRange(min=0), default=None, help="Only the instance in this slot.")
@host_options
@app_option
@config_option
@socket_option
@json_option
def signal(
    name: str,
    words: tuple[str, ...],
    slot: int | None,
    only: Only,
    app: str,
    config_path: str,
    socket: str,
    as_json: bool,
) -> int:
    """Send SIGNAL to the main processes of services. A service that ends by it is restarted as after any end."""
    aim = aim_at_services(words, "signal " + name, config_path, app, socket, only)
    extra: dict[str, Any] = {} if slot is None else {"slot": slot}

    def send(client: SyncClient, host: str) -> dict[str, Any]:
        app_name = only_app(client, aim.app)
        services = services_here(client, app_name, aim.services, several=aim.several)
        return client.call("signal", app=app_name, services=services, signal=name, **extra)

    answers = aim.ask(send)
    aim.require_somebody(answers)
    for host, answer in answers.good():
        if as_json:
            echo_json({"host": host, **answer} if aim.several else answer)
        else:
            head = f"{host}: " if aim.several else ""
            click.echo(f"{head}sent {name} to {', '.join(map(str, answer['pids'])) or 'no process: none runs'}")
    return answers.conclude(as_json)
