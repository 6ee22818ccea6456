"""`midstream lock` and `midstream unlock`."""

from __future__ import annotations

import click

from midstream.cli.aim import only_app, take_aim
from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import echo_json


@command(
    "lock",
    examples="""
    midstream lock --reason "release freeze until Monday"
    midstream lock production --reason "database maintenance"
    """,
)
@click.argument("stage", required=False)
@click.option("--reason", required=True, metavar="TEXT", help="Why; whoever is refused reads it.")
@app_option
@config_option
@socket_option
@json_option
def lock(stage: str | None, reason: str, app: str, config_path: str, socket: str, as_json: bool) -> int:
    """Refuse deploys and rollbacks (they exit with 4 and tell who and why) until `midstream unlock`."""
    from midstream.cli.deploy_run import operator_name

    aim = take_aim([stage] if stage else [], config=config_path, app=app, socket_path=socket)
    with aim.connect() as client:
        name = only_app(client, aim.app)
        answer = client.call("lock", app=name, owner=operator_name(), reason=reason)["lock"]
    if as_json:
        echo_json(answer)
    else:
        click.echo(f"{name} is locked: {reason}")
    return 0


@command(
    "unlock",
    examples="""
    midstream unlock
    midstream unlock production
    """,
)
@click.argument("stage", required=False)
@app_option
@config_option
@socket_option
@json_option
def unlock(stage: str | None, app: str, config_path: str, socket: str, as_json: bool) -> int:
    """Allow deploys again. The lock of a deploy that is going on is not freed by this: see `midstream abort`."""
    aim = take_aim([stage] if stage else [], config=config_path, app=app, socket_path=socket)
    with aim.connect() as client:
        name = only_app(client, aim.app)
        answer = client.call("unlock", app=name)
    if as_json:
        echo_json(answer)
    else:
        click.echo(f"{name} is not locked")
    return 0
