"""`midstream hold` and `midstream unhold`: a lease on a service. It always ends: by hand, or by itself."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import click

from midstream.cli.aim import Aim, only_app, take_aim
from midstream.cli.ask import services_here
from midstream.cli.hosts import Only, host_options
from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import echo_json, span
from midstream.cli.places import state_home
from midstream.cli.words import DURATION
from midstream.deploy.sync_client import SyncClient
from midstream.errors import OperatorError


@command(
    "hold",
    examples="""
    midstream hold jobs --for 30m --reason "moving the queue"
    midstream hold production web
    """,
)
@click.argument("words", metavar="[STAGE] SERVICE", nargs=-1, required=True)
@click.option("--for", "ttl_s", type=DURATION, default="15m", show_default=True, help="When it ends by itself.")
@click.option("--reason", metavar="TEXT", default="", help="Why; `status` shows it.")
@host_options
@app_option
@config_option
@socket_option
@json_option
def hold(
    words: tuple[str, ...],
    ttl_s: float,
    reason: str,
    only: Only,
    app: str,
    config_path: str,
    socket: str,
    as_json: bool,
) -> int:
    """Start nothing of SERVICE for a while. What runs goes on running; what ends stays ended until the hold ends.

    When this returns no start is in flight any more. Unlike Monit's `unmonitor` it cannot be forgotten: it ends by
    itself.
    """
    from midstream.cli.deploy_run import operator_name

    aim = _one_service(words, "hold", config_path, app, socket, only)
    service = aim.services[0]

    def take(client: SyncClient, host: str) -> tuple[str, dict[str, Any]]:
        name = only_app(client, aim.app)
        services_here(client, name, aim.services, several=aim.several)
        answer = client.call("hold", app=name, service=service, owner=operator_name(), ttl_s=ttl_s, reason=reason)
        return f"{client.where} {name}/{service}", answer

    answers = aim.ask(take)
    aim.require_somebody(answers)
    for host, (place, answer) in answers.good():
        _remember(place, answer["token"])
        if as_json:
            echo_json({"host": host, **answer} if aim.several else answer)
        else:
            on = f" on {host}" if aim.several else ""
            click.echo(f"{service} is held{on} for {span(ttl_s)}; `midstream unhold {service}` ends it earlier")
    return answers.conclude(as_json)


@command(
    "unhold",
    examples="""
    midstream unhold jobs
    midstream unhold jobs --force        a hold of somebody else
    """,
)
@click.argument("words", metavar="[STAGE] SERVICE", nargs=-1, required=True)
@click.option("--token", metavar="TOKEN", default="", help="The hold's token (default: that of your last hold of it).")
@click.option("--force", is_flag=True, help="Also a hold of somebody else.")
@host_options
@app_option
@config_option
@socket_option
@json_option
def unhold(
    words: tuple[str, ...],
    token: str,
    force: bool,
    only: Only,
    app: str,
    config_path: str,
    socket: str,
    as_json: bool,
) -> int:
    """End a hold: the service is watched and restarted again at once."""
    aim = _one_service(words, "unhold", config_path, app, socket, only)
    service = aim.services[0]
    tokens = _tokens()

    def end(client: SyncClient, host: str) -> tuple[str, dict[str, Any]]:
        name = only_app(client, aim.app)
        services_here(client, name, aim.services, several=aim.several)
        place = f"{client.where} {name}/{service}"
        known: Any = token or tokens.get(place)
        extra = {} if known is None else {"token": known}
        return place, client.call("unhold", app=name, service=service, force=force, **extra)

    answers = aim.ask(end)
    aim.require_somebody(answers)
    for host, (place, answer) in answers.good():
        _remember(place, None)
        if as_json:
            echo_json({"host": host, **answer} if aim.several else answer)
        else:
            click.echo(f"{service} is not held" + (f" on {host}" if aim.several else ""))
    return answers.conclude(as_json)


def _one_service(words: tuple[str, ...], verb: str, config: str, app: str, socket: str, only: Only) -> Aim:
    aim = take_aim(words, config=config, app=app, socket_path=socket, only=only)
    if len(aim.services) != 1:
        raise OperatorError(f"{verb} which service?", remedy=f"midstream {verb} SERVICE: one at a time")
    return aim


def _tokens_path() -> str:
    return os.path.join(state_home(), "midstream", "holds.json")


def _tokens() -> dict[str, Any]:
    """Tokens of this user's holds, by place; empty when there are none or the file is spoilt."""
    try:
        with open(_tokens_path(), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(place: str, token: Any) -> None:
    """Keeps a token, or forgets it when None. A disk that cannot be written costs only the convenience."""
    tokens = {key: value for key, value in _tokens().items() if key != place}
    if token is not None:
        tokens[place] = token
    path = _tokens_path()
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(tokens, file)
        os.replace(f"{path}.new", path)
