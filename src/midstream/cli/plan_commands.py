"""`midstream plan` and `midstream diff`: what a deploy would do, and what it would bring. Nothing is changed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from midstream.cli.hosts import Only, host_options
from midstream.cli.manpage import command, config_option, json_option, socket_option
from midstream.cli.output import clean, echo_json, moment, short

if TYPE_CHECKING:
    from midstream.deploy.sync_client import SyncClient

_BRANCH = click.option("-b", "--branch", metavar="REV", default="", help="Branch, tag or revision.")


@command(
    "plan",
    exits=(0, 1, 2, 70),
    examples="""
    midstream plan
    midstream plan production --branch v2.1
    midstream plan --rollback
    midstream plan --offline             no host is asked
    midstream plan --json | jq .moves
    """,
)
@click.argument("stage", required=False)
@_BRANCH
@click.option("--rollback", is_flag=True, help="The plan of `midstream rollback` instead.")
@click.option("--offline", is_flag=True, help="Ask no host: only what would be run.")
@host_options
@config_option
@socket_option
@json_option
def plan(
    stage: str | None,
    branch: str,
    rollback: bool,
    offline: bool,
    only: Only,
    config_path: str,
    socket: str,
    as_json: bool,
) -> int:
    """Print the plan that `midstream deploy` would run: this very value is what it walks through.

    The revision is resolved and its configuration read. Each host is asked what it is on now (nothing is locked or
    changed): its committed release, who holds its lock, a deploy that is undecided, hosts left behind. One that cannot
    be reached is told with the reason and hides nothing; of a stage with several hosts the exit code is then 1, as a
    deploy would be refused. --offline asks nobody.
    """
    from midstream.cli import project
    from midstream.cli.plan_state import ask_hosts
    from midstream.cli.task_book import open_book
    from midstream.core.plan import deploy_plan, plan_lines, rollback_plan
    from midstream.core.wire import to_wire

    if rollback:
        chosen = project.of_working_copy(config_path, stage, socket=socket, only=only)
        made = rollback_plan(chosen.specs, attached=open_book(chosen.file.folder).registry.attached())
    else:
        chosen = project.of_revision(config_path, stage, branch=branch, socket=socket, only=only)
        made = deploy_plan(chosen.specs, attached=open_book(chosen.file.folder).registry.attached())
    try:
        now = None if offline else ask_hosts(chosen)
        code = now.exit_code if now else 0
        if as_json:
            target = to_wire(chosen.target) if chosen.target else None
            state = now.rows() if now else None
            echo_json({**to_wire(made), "target": target, "notes": list(chosen.notes), "state": state})
            return code
        head = f"{made.kind.value} of {made.app} ({made.stage}) on {', '.join(made.hosts)}"
        if chosen.target:
            head += f": {chosen.target.branch} at {short(chosen.target.sha)} “{clean(chosen.target.subject)}”"
        click.echo("\n".join([head, *(f"  {line}" for line in (now.lines() if now else ())), *plan_lines(made)]))
        for note in chosen.notes:
            click.echo(f"note: {note}", err=True)
        return code
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
@host_options
@config_option
@socket_option
@json_option
def diff(stage: str | None, branch: str, only: Only, config_path: str, socket: str, as_json: bool) -> int:
    """Show the commits between the release that is committed on the hosts and what a deploy would bring.

    Where the hosts are not on one release, each of their releases is compared, with the hosts that have it.
    """
    from midstream.cli import project
    from midstream.cli.ask import ask_all

    chosen = project.of_revision(config_path, stage, branch=branch, socket=socket, only=only)
    try:
        assert chosen.target is not None and chosen.source is not None
        new = chosen.target.sha
        several = len(chosen.stage.hosts) > 1
        asked = ask_all(list(chosen.reach.values()), partial(_committed_revision, chosen.app), several=several)
        hosts_of: dict[str, list[str]] = {}
        for row in asked.rows:
            if row.error is None or not several:  # one host without an agent: nothing is deployed there yet
                hosts_of.setdefault(row.value or "", []).append(row.host)
        for running, hosts in hosts_of.items():
            place = {"app": chosen.app, "stage": chosen.stage.name}
            answer: dict[str, Any] = {**place, "running": running, "target": new}
            answer |= _compare(chosen.source, running, new)
            if several:
                answer["hosts"] = hosts
            if as_json:
                echo_json(answer)
            else:
                click.echo("\n".join(_diff_lines(answer)))
    finally:
        chosen.close()
    return asked.conclude(as_json) if several else 0


def _committed_revision(app: str, client: SyncClient, host: str) -> str:
    """The committed revision, "" when the app is not deployed."""
    apps = client.call("status")["apps"]
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
    hosts = f" on {', '.join(answer['hosts'])}" if "hosts" in answer else ""
    head = f"{answer['app']} ({answer['stage']}){hosts}: "
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
