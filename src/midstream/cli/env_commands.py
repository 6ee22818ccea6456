"""`midstream env push` and `env list`: variables and secrets of a stage, without a new release. Values are never printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from midstream.cli.aim import only_app, take_aim
from midstream.cli.ask import ask_all
from midstream.cli.hosts import Only, host_options
from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import echo_json, moment
from midstream.core.spec import AppSpec
from midstream.deploy.sync_client import SyncClient
from midstream.errors import LockedError, OperatorError


@click.group("env")
def env() -> None:
    """Variables and secrets of the app on its hosts, without a new release."""


@command(
    "push",
    exits=(0, 1, 2, 4, 70),
    examples="""
    midstream env push                        kept on the hosts; the next restart takes them
    midstream env push production --restart   and hands over at once
    """,
)
@click.argument("stage", required=False)
@click.option("--restart", "is_restart", is_flag=True, help="Hand over to new processes that have them.")
@host_options
@config_option
@socket_option
@json_option
def push(stage: str | None, is_restart: bool, only: Only, config_path: str, socket: str, as_json: bool) -> int:
    """Send the variables ([env], with what the stage and the hosts override) and the secrets of STAGE to its hosts.

    They are those of the working copy's stage over the configuration of the release that runs. The hosts keep them with
    mode 0600; what runs goes on with what it was proven with, also after a crash. The next `midstream restart`, deploy or
    rollback takes them; `midstream start` does where nothing of the app runs. With --restart that is done at once, by a
    handover: if the new processes do not come up, the old ones serve on. All hosts are locked for that, as for a deploy:
    where one is in a deploy nothing is sent to any.
    """
    from midstream.cli import project
    from midstream.deploy.config_file import read_secrets

    chosen = project.of_working_copy(config_path, stage, socket=socket, only=only)
    several = len(chosen.stage.hosts) > 1
    secrets = read_secrets(chosen.stage.secrets, chosen.file.folder)
    hosts = list(chosen.reach.values())
    revisions = ask_all(hosts, lambda client, host: _committed(client, chosen.app), several=several)
    if revisions.failed:
        return revisions.conclude(as_json)
    specs: dict[str, AppSpec] = {}
    for revision in {value for _, value in revisions.good()}:
        of_release = project.of_revision(config_path, stage, socket=socket, only=only, revision=revision)
        of_release.close()
        mine = {host for host, value in revisions.good() if value == revision}
        specs |= {host: spec for host, spec in of_release.specs.items() if host in mine}

    def send(client: SyncClient, host: str, **mark: Any) -> dict[str, Any]:
        answer = client.call("env.push", app=chosen.app, variables=_variables(specs[host]), secrets=secrets, **mark)
        if as_json:
            echo_json({"type": "pushed", "host": host, **answer})
        else:
            click.echo(f"{host}: {', '.join(answer['changed']) or 'nothing that differs'}")
        return answer

    if not is_restart:
        answers = ask_all(hosts, send, several=several)
        if not answers.failed and not as_json:
            click.echo("kept until the next midstream restart, deploy or rollback")
        return answers.conclude(as_json)
    from midstream.cli.deploy_run import operator_name
    from midstream.cli.fleet_lock import FleetLock

    lock = FleetLock(specs, operator_name())

    def send_and_restart(client: SyncClient, host: str, mark: dict[str, Any]) -> dict[str, Any]:
        _require_unchanged(client, chosen.app, dict(revisions.good())[host])
        lock.meet("looked")
        send(client, host, **mark)
        lock.meet("sent")
        return client.call("restart", app=chosen.app, services=[], **mark)

    restarted = lock.ask(hosts, send_and_restart, several=several)
    for host, answer in restarted.good():
        for row in answer["services"]:
            if as_json:
                echo_json({"type": "restarted", "host": host, **row})
            else:
                click.echo(f"{host}: {row['service']}: {row['state']}, pid {', '.join(map(str, row['pids'])) or '-'}")
    return restarted.conclude(as_json)


def _require_unchanged(client: SyncClient, app: str, revision: str) -> None:
    if _committed(client, app) != revision:
        raise LockedError(
            "another release came before the lock was taken; nothing was sent",
            remedy="run it again: midstream env push --restart",
        )


def _committed(client: SyncClient, app: str) -> str:
    row = next((row for row in client.call("status")["apps"] if row["app"] == app), None)
    if row is None or not row.get("revision"):
        raise OperatorError(f"{app} is not deployed there", remedy="midstream deploy, which sends them too")
    return str(row["revision"])


def _variables(spec: AppSpec) -> dict[str, Mapping[str, str]]:
    own = {name: service.env.variables for name, service in spec.services.items() if service.env.variables}
    return {"": spec.env.variables, **own}


@command(
    "list",
    exits=(0, 1, 2, 70),
    examples="""
    midstream env list
    midstream env list production --json
    """,
)
@click.argument("stage", required=False)
@host_options
@app_option
@config_option
@socket_option
@json_option
def list_(stage: str | None, only: Only, app: str, config_path: str, socket: str, as_json: bool) -> int:
    """List the names of the variables and secrets of the release that runs, and which of them wait for a restart with
    another value. Names only, never values.
    """
    aim = take_aim([stage] if stage else [], config=config_path, app=app, socket_path=socket, only=only)

    def ask(client: SyncClient, host: str) -> dict[str, Any]:
        return client.call("env.list", app=only_app(client, aim.app))

    answers = aim.ask(ask)
    for host, answer in answers.good():
        if as_json:
            echo_json({"host": host, **answer})
        else:
            click.echo("\n".join(_lines(f"{host}: " if aim.several else "", answer)))
    return answers.conclude(as_json)


def _lines(head: str, answer: dict[str, Any]) -> list[str]:
    lines = [f"{head}release {answer['release']}"]
    rows = {"variables": answer["variables"], "secrets": answer["secrets"], "from files": answer["from_files"]}
    rows |= {f"of {name}": names for name, names in answer["services"].items()}
    lines += [f"  {what}: {', '.join(names)}" for what, names in rows.items() if names]
    pending = answer["pending"]
    if pending is not None:
        names = ", ".join(pending["changed"]) or "nothing that differs"
        since = moment(pending["since"])
        lines.append(f"  waiting for a restart: {names} (sent by {pending['who']}, {since})")
    return lines


env.add_command(push)
env.add_command(list_)
