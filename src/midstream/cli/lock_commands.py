"""`midstream lock` and `midstream unlock`."""

from __future__ import annotations

from typing import Any

import click

from midstream.cli.aim import Aim, only_app, take_aim
from midstream.cli.hosts import Only, host_options
from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import echo_json, moment
from midstream.cli.status_view import lock_words
from midstream.deploy.sync_client import SyncClient
from midstream.errors import EXIT_LOCKED, OperatorError


@command(
    "lock",
    examples="""
    midstream lock --reason "release freeze until Monday"
    midstream lock production --reason "database maintenance" --for 2h
    midstream lock --why
    """,
    exits=(0, 1, 2, 4, 70),
)
@click.argument("stage", required=False)
@click.option("--reason", metavar="TEXT", default="", help="Why; whoever is refused reads it.")
@click.option("--for", "ttl", metavar="DURATION", default="", help="It ends by itself after this time, such as 2h.")
@click.option("--why", is_flag=True, help="Only tell who holds the lock, since when and why; 4 when somebody does.")
@host_options
@app_option
@config_option
@socket_option
@json_option
def lock(
    stage: str | None,
    reason: str,
    ttl: str,
    why: bool,
    only: Only,
    app: str,
    config_path: str,
    socket: str,
    as_json: bool,
) -> int:
    """Refuse deploys and rollbacks (they exit with 4 and tell who and why) until `midstream unlock`, or for a time.

    --why changes nothing: it tells of each host who holds the lock, a person or a deploy that is going on.
    """
    from midstream.cli.deploy_run import operator_name
    from midstream.core.durations import parse_duration

    aim = take_aim([stage] if stage else [], config=config_path, app=app, socket_path=socket, only=only)

    if why:
        return _tell_why(aim, as_json)
    if not reason:
        raise OperatorError("--reason is missing: whoever is refused reads it", remedy='midstream lock --reason "…"')
    try:
        end: dict[str, Any] = {"ttl_s": parse_duration(ttl)} if ttl else {}
    except ValueError as error:
        raise OperatorError(str(error), where="--for", remedy="a number with its unit: --for 30m") from None

    def take(client: SyncClient, host: str) -> tuple[str, dict[str, Any]]:
        name = only_app(client, aim.app)
        return name, client.call("lock", app=name, owner=operator_name(), reason=reason, **end)["lock"]

    answers = aim.ask(take)
    for host, (name, answer) in answers.good():
        if as_json:
            echo_json({"host": host, **answer} if aim.several else answer)
        else:
            end_text = f" (for {ttl})" if ttl else ""
            click.echo(f"{name} is locked" + (f" on {host}" if aim.several else "") + f": {reason}{end_text}")
    return answers.conclude(as_json)


def _tell_why(aim: Aim, as_json: bool) -> int:
    """Who holds it, on every host; EXIT_LOCKED when somebody does on any."""

    def look(client: SyncClient, host: str) -> dict[str, Any]:
        name = only_app(client, aim.app)
        rows = [row for row in client.call("status")["apps"] if row["app"] == name]
        row = rows[0] if rows else {}
        return {"app": name, "lock": row.get("lock"), "deploy": row.get("deploy")}

    answers = aim.ask(look)
    held = False
    for host, row in answers.good():
        held = held or bool(row["lock"] or row["deploy"])
        if as_json:
            echo_json({"host": host, **row})
            continue
        head = f"{host}: " if aim.several else ""
        for text in _holders(row) or [f"{row['app']} is not locked"]:
            click.echo(head + text)
    code = answers.conclude(as_json)
    return code or (EXIT_LOCKED if held else 0)


def _holders(row: dict[str, Any]) -> list[str]:
    found = []
    if deploy := row["deploy"]:
        since = moment(deploy.get("since"))
        found.append(f"{deploy.get('user')} runs a {deploy.get('kind')} since {since} ({deploy.get('phase')})")
    if lock := row["lock"]:
        found.append(lock_words(lock))
    return found


@command(
    "unlock",
    examples="""
    midstream unlock
    midstream unlock production --force
    """,
    exits=(0, 1, 2, 4, 70),
)
@click.argument("stage", required=False)
@click.option("--force", is_flag=True, help="Also the lock of somebody else.")
@host_options
@app_option
@config_option
@socket_option
@json_option
def unlock(stage: str | None, force: bool, only: Only, app: str, config_path: str, socket: str, as_json: bool) -> int:
    """Allow deploys again. The lock of a deploy that is going on is not freed by this: see `midstream abort`."""
    from midstream.cli.deploy_run import operator_name

    aim = take_aim([stage] if stage else [], config=config_path, app=app, socket_path=socket, only=only)

    def free(client: SyncClient, host: str) -> tuple[str, dict[str, Any]]:
        name = only_app(client, aim.app)
        held = any(row["app"] == name and row.get("lock") for row in client.call("status")["apps"])
        return name, {**client.call("unlock", app=name, owner=operator_name(), force=force), "was_locked": held}

    answers = aim.ask(free)
    for host, (name, answer) in answers.good():
        if as_json:
            echo_json({"host": host, **answer} if aim.several else answer)
        else:
            words = "is unlocked" if answer["was_locked"] else "was not locked"
            click.echo(f"{name} {words}" + (f" on {host}" if aim.several else ""))
    return answers.conclude(as_json)
