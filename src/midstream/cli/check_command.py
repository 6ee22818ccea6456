"""`midstream check`: the first phase of a deploy, by itself."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import click

from midstream.cli.hosts import Only, host_options
from midstream.cli.manpage import command, config_option, json_option, socket_option
from midstream.cli.output import clean, echo_json, short, size
from midstream.deploy.transport import Host, LocalHost

if TYPE_CHECKING:
    from midstream.cli.project import Project
    from midstream.deploy.sync_client import SyncClient


@command(
    "check",
    exits=(0, 1, 2, 4, 70),
    examples="""
    midstream check
    midstream check production --branch v2.1
    """,
)
@click.argument("stage", required=False)
@click.option("-b", "--branch", metavar="REV", default="", help="Branch, tag or revision.")
@host_options
@config_option
@socket_option
@json_option
def check(stage: str | None, branch: str, only: Only, config_path: str, socket: str, as_json: bool) -> int:
    """See whether a deploy could run.

    Resolves the revision, reads its configuration and the secrets, and has the agent of each host do what it does at the
    beginning of a deploy: take the lock, make the folders, look for linked files, free space, ports and rights. The
    lock is freed again, and nothing else is changed.
    """
    from midstream.cli import project
    from midstream.cli.ask import ask_all
    from midstream.deploy.config_file import read_secrets

    lines: list[str] = []
    chosen = project.of_revision(config_path, stage, branch=branch, socket=socket, only=only)
    try:
        assert chosen.target is not None
        lines.append(f"revision: {chosen.target.branch} is {short(chosen.target.sha)} “{clean(chosen.target.subject)}”")
        lines.append(f"configuration: {len(chosen.stage.app.services)} services, stage {chosen.stage.name}")
        secrets = read_secrets(chosen.stage.secrets, chosen.file.folder)
        if secrets:
            lines.append(f"secrets: {', '.join(secrets)} can be read")
        notes = [*chosen.notes, *service_warnings(chosen)]
    finally:
        chosen.close()
    absent = [host for host in chosen.reach.values() if _is_not_there_yet(host)]
    lines += [f"{host.name}: no agent runs here yet; `midstream deploy` starts one for you" for host in absent]
    hosts = [host for host in chosen.reach.values() if host not in absent]
    several = len(chosen.stage.hosts) > 1
    answers = ask_all(hosts, partial(_open_and_end, chosen), several=several) if hosts else None
    lines += [f"{host}: {line}" for host, line in (answers.good() if answers else ())]
    if answers and answers.failed and not several:
        return answers.conclude(as_json)
    if as_json:
        echo_json({"ok": not (answers and answers.failed), "checked": lines, "notes": notes})
    else:
        click.echo("\n".join(f"ok  {line}" for line in lines))
        for note in notes:
            click.echo(f"note: {note}", err=True)
    return answers.conclude(as_json) if answers else 0


def service_warnings(chosen: object) -> list[str]:
    """What the profiles of the servers find unsafe in the services' commands."""
    from midstream import profiles
    from midstream.cli.project import Project
    from midstream.profiles.workers import worker_warnings

    assert isinstance(chosen, Project)
    found: list[str] = []
    for service in chosen.stage.app.services.values():
        named = service.profile
        profile = profiles.profile_named(named) if named else profiles.recognise(service.command, shell=service.shell)
        found += [
            f"{service.name}: {text}" for text in profiles.warnings(profile, service.command, shell=service.shell)
        ]
        found += [f"{service.name}: {text}" for text in worker_warnings(profile, service)]
    return found


def _is_not_there_yet(host: Host) -> bool:
    """Whether the host is this machine, and has no agent: `midstream deploy` starts one."""
    return isinstance(host, LocalHost) and not os.path.exists(host.socket_path)


def _open_and_end(chosen: Project, client: SyncClient, host: str) -> str:
    """Opens a deploy and ends it at once. Raises what the agent refuses."""
    from midstream.cli.deploy_run import operator_name
    from midstream.core.wire import to_wire
    from midstream.deploy.record import new_deploy_id

    deploy_id, user, spec = new_deploy_id(), operator_name(), to_wire(chosen.specs[host])
    opened = client.call("deploy.open", deploy_id=deploy_id, spec=spec, kind="deploy", user=user, wait=False)
    client.call("deploy.finish", deploy_id=deploy_id, token=opened["token"], outcome="checked")
    committed = opened.get("committed")
    serving = f"release {committed['release']} is committed" if committed else "nothing is committed yet"
    return f"folders, linked files, ports and rights are fine, {size(opened.get('free_bytes'))} free; {serving}"
