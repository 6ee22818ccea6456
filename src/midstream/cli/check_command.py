"""`midstream check`: the first phase of a deploy, by itself."""

from __future__ import annotations

import click

from midstream.cli.manpage import command, config_option, json_option, socket_option
from midstream.cli.output import clean, echo_json, short, size


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
@config_option
@socket_option
@json_option
def check(stage: str | None, branch: str, config_path: str, socket: str, as_json: bool) -> int:
    """See whether a deploy could run.

    Resolves the revision, reads its configuration and the secrets, and has the agent do what it does at the
    beginning of a deploy: take the lock, make the folders, look for linked files, free space, ports and rights. The
    lock is freed again, and nothing else is changed.
    """
    from midstream.cli import project
    from midstream.cli.places import socket_to_ask
    from midstream.deploy.config_file import read_secrets

    lines: list[str] = []
    chosen = project.of_revision(config_path, stage, branch=branch, named_socket=bool(socket))
    try:
        assert chosen.target is not None
        lines.append(f"revision: {chosen.target.branch} is {short(chosen.target.sha)} “{clean(chosen.target.subject)}”")
        lines.append(f"configuration: {len(chosen.stage.app.services)} services, stage {chosen.stage.name}")
        secrets = read_secrets(chosen.stage.secrets, chosen.file.folder)
        if secrets:
            lines.append(f"secrets: {', '.join(secrets)} can be read")
        notes = [*chosen.notes, *service_warnings(chosen)]
        lines.append(_agent_line(chosen, socket_to_ask(socket)))
    finally:
        chosen.close()
    if as_json:
        echo_json({"ok": True, "checked": lines, "notes": notes})
        return 0
    click.echo("\n".join(f"ok  {line}" for line in lines))
    for note in notes:
        click.echo(f"note: {note}", err=True)
    return 0


def service_warnings(chosen: object) -> list[str]:
    """What the profiles of the servers find unsafe in the services' commands."""
    from midstream import profiles
    from midstream.cli.project import Project

    assert isinstance(chosen, Project)
    found: list[str] = []
    for service in chosen.stage.app.services.values():
        named = service.profile
        profile = profiles.profile_named(named) if named else profiles.recognise(service.command, shell=service.shell)
        found += [
            f"{service.name}: {text}" for text in profiles.warnings(profile, service.command, shell=service.shell)
        ]
    return found


def _agent_line(chosen: object, socket_path: str) -> str:
    """Opens a deploy and ends it at once. Raises what the agent refuses."""
    import os

    from midstream.cli.deploy_run import operator_name
    from midstream.cli.project import Project
    from midstream.core.wire import to_wire
    from midstream.deploy.record import new_deploy_id
    from midstream.deploy.sync_client import connect

    assert isinstance(chosen, Project)
    if not os.path.exists(socket_path):
        return "host: no agent runs here yet; `midstream deploy` starts one for you"
    spec = to_wire(next(iter(chosen.specs.values())))
    deploy_id = new_deploy_id()
    with connect(socket_path) as client:
        user = operator_name()
        opened = client.call("deploy.open", deploy_id=deploy_id, spec=spec, kind="deploy", user=user, wait=False)
        client.call("deploy.finish", deploy_id=deploy_id, token=opened["token"], outcome="checked")
    committed = opened.get("committed")
    serving = f"release {committed['release']} is committed" if committed else "nothing is committed yet"
    return f"host: folders, linked files, ports and rights are fine, {size(opened.get('free_bytes'))} free; {serving}"
