"""`midstream plan` and `midstream diff`: what a deploy would do, and what it would bring. Nothing is changed."""

from __future__ import annotations

from typing import Any

import click

from midstream.cli.manpage import command, config_option, json_option, socket_option
from midstream.cli.output import clean, echo_json, moment, short
from midstream.errors import HostError

_BRANCH = click.option("-b", "--branch", metavar="REV", default="", help="Branch, tag or revision.")


@command(
    "plan",
    exits=(0, 2, 70),
    examples="""
    midstream plan
    midstream plan production --branch v2.1
    midstream plan --rollback
    midstream plan --json | jq .moves
    """,
)
@click.argument("stage", required=False)
@_BRANCH
@click.option("--rollback", is_flag=True, help="The plan of `midstream rollback` instead.")
@config_option
@socket_option
@json_option
def plan(stage: str | None, branch: str, rollback: bool, config_path: str, socket: str, as_json: bool) -> int:
    """Print the plan that `midstream deploy` would run: this very value is what it walks through.

    The revision is resolved and its configuration read; no host is asked.
    """
    from midstream.cli import project
    from midstream.cli.task_book import open_book
    from midstream.core.plan import deploy_plan, plan_lines, rollback_plan
    from midstream.core.wire import to_wire

    named = bool(socket)
    if rollback:
        chosen = project.of_working_copy(config_path, stage, named_socket=named)
        made = rollback_plan(chosen.specs, attached=open_book(chosen.file.folder).registry.attached())
    else:
        chosen = project.of_revision(config_path, stage, branch=branch, named_socket=named)
        made = deploy_plan(chosen.specs, attached=open_book(chosen.file.folder).registry.attached())
    try:
        if as_json:
            target = to_wire(chosen.target) if chosen.target else None
            echo_json({**to_wire(made), "target": target, "notes": list(chosen.notes)})
            return 0
        head = f"{made.kind.value} of {made.app} ({made.stage}) on {', '.join(made.hosts)}"
        if chosen.target:
            head += f": {chosen.target.branch} at {short(chosen.target.sha)} “{clean(chosen.target.subject)}”"
        click.echo("\n".join([head, *plan_lines(made)]))
        for note in chosen.notes:
            click.echo(f"note: {note}", err=True)
        return 0
    finally:
        chosen.close()


@command(
    "diff",
    exits=(0, 1, 2, 70),
    examples="""
    midstream diff
    midstream diff production --branch v2.1
    midstream diff --json | jq -r '.commits[].subject'
    """,
)
@click.argument("stage", required=False)
@_BRANCH
@config_option
@socket_option
@json_option
def diff(stage: str | None, branch: str, config_path: str, socket: str, as_json: bool) -> int:
    """Show the commits between the release that is committed on the host and what a deploy would bring."""
    from midstream.cli import project
    from midstream.cli.places import socket_to_ask

    chosen = project.of_revision(config_path, stage, branch=branch, named_socket=bool(socket))
    try:
        running = _committed_revision(socket_to_ask(socket), chosen.app)
        assert chosen.target is not None and chosen.source is not None
        new = chosen.target.sha
        found = _compare(chosen.source, running, new)
        answer = {"app": chosen.app, "stage": chosen.stage.name, "running": running, "target": new, **found}
    finally:
        chosen.close()
    if as_json:
        echo_json(answer)
    else:
        click.echo("\n".join(_diff_lines(answer)))
    return 0


def _committed_revision(socket_path: str, app: str) -> str:
    """The committed revision, "" when the app is not deployed or there is no agent yet."""
    from midstream.deploy.sync_client import connect

    try:
        with connect(socket_path) as client:
            apps = client.call("status")["apps"]
    except HostError:
        return ""
    return next((str(row.get("revision") or "") for row in apps if row["app"] == app), "")


def _compare(source: Any, running: str, new: str) -> dict[str, Any]:
    """`added`: what the deploy brings; `removed`: what it takes away, when the running revision is not an ancestor."""
    from midstream.core.wire import to_wire

    if not running:
        return {"commits": [], "removed": []}
    added, removed = source.log(running, new), source.log(new, running)
    return {"commits": [to_wire(c) for c in added], "removed": [to_wire(c) for c in removed]}


def _diff_lines(answer: dict[str, Any]) -> list[str]:
    running, target = answer["running"], answer["target"]
    head = f"{answer['app']} ({answer['stage']}): "
    if not running:
        return [f"{head}nothing is deployed here yet; a deploy brings {short(target)}"]
    if running == target:
        return [f"{head}{short(target)} is what runs; a deploy would bring no commit"]
    lines = [f"{head}{short(running)} runs, a deploy brings {short(target)}"]
    for sign, key in (("+", "commits"), ("-", "removed")):
        for commit in answer[key]:
            when = moment(commit["time_s"])
            lines.append(
                f"  {sign} {short(commit['sha'])} {when} {clean(commit['author'])}: {clean(commit['subject'])}"
            )
    if len(lines) == 1:
        lines.append("  the repository does not know both of them, so their commits cannot be compared")
    return lines
