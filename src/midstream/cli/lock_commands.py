"""`midstream lock` and `midstream unlock`."""

from __future__ import annotations

from typing import Any

import click

from midstream.cli.aim import only_app, take_aim
from midstream.cli.hosts import Only, host_options
from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import echo_json
from midstream.deploy.sync_client import SyncClient


@command(
    "lock",
    examples="""
    midstream lock --reason "release freeze until Monday"
    midstream lock production --reason "database maintenance"
    """,
)
@click.argument("stage", required=False)
@click.option("--reason", required=True, metavar="TEXT", help="Why; whoever is refused reads it.")
@host_options
@app_option
@config_option
@socket_option
@json_option
def lock(stage: str | None, reason: str, only: Only, app: str, config_path: str, socket: str, as_json: bool) -> int:
    """Refuse deploys and rollbacks (they exit with 4 and tell who and why) until `midstream unlock`."""
    from midstream.cli.deploy_run import operator_name

    aim = take_aim([stage] if stage else [], config=config_path, app=app, socket_path=socket, only=only)

    def take(client: SyncClient, host: str) -> tuple[str, dict[str, Any]]:
        name = only_app(client, aim.app)
        return name, client.call("lock", app=name, owner=operator_name(), reason=reason)["lock"]

    answers = aim.ask(take)
    for host, (name, answer) in answers.good():
        if as_json:
            echo_json({"host": host, **answer} if aim.several else answer)
        else:
            click.echo(f"{name} is locked" + (f" on {host}" if aim.several else "") + f": {reason}")
    return answers.conclude(as_json)


@command(
    "unlock",
    examples="""
    midstream unlock
    midstream unlock production
    """,
)
@click.argument("stage", required=False)
@host_options
@app_option
@config_option
@socket_option
@json_option
def unlock(stage: str | None, only: Only, app: str, config_path: str, socket: str, as_json: bool) -> int:
    """Allow deploys again. The lock of a deploy that is going on is not freed by this: see `midstream abort`."""
    aim = take_aim([stage] if stage else [], config=config_path, app=app, socket_path=socket, only=only)

    def free(client: SyncClient, host: str) -> tuple[str, dict[str, Any]]:
        name = only_app(client, aim.app)
        return name, client.call("unlock", app=name)

    answers = aim.ask(free)
    for host, (name, answer) in answers.good():
        if as_json:
            echo_json({"host": host, **answer} if aim.several else answer)
        else:
            click.echo(f"{name} is not locked" + (f" on {host}" if aim.several else ""))
    return answers.conclude(as_json)
