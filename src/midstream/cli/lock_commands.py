"""`midstream lock` and `midstream unlock`."""

from __future__ import annotations

from typing import Any

import click

from midstream.cli.aim import only_app, take_aim
from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import echo_json, moment
from midstream.cli.words import DURATION


@command(
    "lock",
    examples="""
    midstream lock --reason "release freeze until Monday"
    midstream lock production --for 2h --reason "database maintenance"
    """,
)
@click.argument("stage", required=False)
@click.option("--reason", required=True, metavar="TEXT", help="Why; whoever is refused reads it.")
@click.option("--for", "ttl_s", type=DURATION, default=None, help="Unlocks by itself after TIME (30m, 2h, 1d).")
@app_option
@config_option
@socket_option
@json_option
def lock(
    stage: str | None, reason: str, ttl_s: float | None, app: str, config_path: str, socket: str, as_json: bool
) -> int:
    """Refuse deploys and rollbacks (they exit with 4 and tell who and why) until `midstream unlock`."""
    from midstream.cli.deploy_run import operator_name

    aim = take_aim([stage] if stage else [], config=config_path, app=app, socket_path=socket)
    extra: dict[str, Any] = {} if ttl_s is None else {"ttl_s": ttl_s}
    with aim.connect() as client:
        name = only_app(client, aim.app)
        answer = client.call("lock", app=name, owner=operator_name(), reason=reason, **extra)["lock"]
    if as_json:
        echo_json(answer)
    else:
        until = f" until {moment(answer['until'])}" if answer.get("until") else ""
        click.echo(f"{name} is locked{until}: {reason}")
    return 0


@command(
    "unlock",
    examples="""
    midstream unlock
    midstream unlock production --force     a lock of somebody else
    """,
)
@click.argument("stage", required=False)
@click.option("--force", is_flag=True, help="Also a lock of somebody else.")
@app_option
@config_option
@socket_option
@json_option
def unlock(stage: str | None, force: bool, app: str, config_path: str, socket: str, as_json: bool) -> int:
    """Allow deploys again. The lock of a deploy that is going on is not freed by this: see `midstream abort`."""
    aim = take_aim([stage] if stage else [], config=config_path, app=app, socket_path=socket)
    with aim.connect() as client:
        name = only_app(client, aim.app)
        answer = client.call("unlock", app=name, force=force)
    if as_json:
        echo_json(answer)
    else:
        click.echo(f"{name} is not locked")
    return 0
