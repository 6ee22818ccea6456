"""`midstream resume` and `midstream abort`: what a deployer that died has left behind is carried on or put back.

Both only repeat idempotent calls under the id of that deploy: the agent knows from its journal what was done.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from midstream.cli.hosts import Only, host_options
from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import echo_json
from midstream.cli.run_options import run_options
from midstream.errors import AttentionError, HostError, OperatorError

if TYPE_CHECKING:
    from midstream.cli.aim import Aim
    from midstream.cli.ask import Answers
    from midstream.deploy.sync_client import SyncClient

Settled = tuple[str, dict[str, Any]]  # app, answer of deploy.settle
_EXITS = (0, 1, 2, 4, 5, 70, 130)
_ID = click.option("--id", "deploy_id", metavar="ID", default="", help="Which deploy (default: the unfinished one).")


@command(
    "resume",
    exits=_EXITS,
    examples="""
    midstream resume
    midstream resume production
    midstream resume --wait              somebody else's deploy goes first
    midstream resume --without web3      a host that does not come back; it is recorded as behind
    """,
)
@click.argument("stage", required=False)
@_ID
@run_options
def resume(
    stage: str | None,
    deploy_id: str,
    wait: bool,
    answers: tuple[str, ...],
    verbose: bool,
    only: Only,
    config_path: str,
    socket: str,
    as_json: bool,
) -> int:
    """Carry the deploy of a deployer that died, or lost its hosts, to its end.

    Runs on the machine that deployed: the record of the deploy is there. The same revision goes on from where each
    host stands; what is done is not done again, and what a host has put back meanwhile is made anew. Answers that were
    given by --set are not kept: give them again.
    """
    from midstream.cli import deploy_run, project
    from midstream.cli.places import records_folder
    from midstream.cli.task_book import open_book_with
    from midstream.core.plan import Kind, deploy_plan, rollback_plan
    from midstream.deploy.config_file import read_secrets
    from midstream.deploy.record import ENDED, last_memo, memo_of

    file = project.open_file(config_path)
    where = file.destination(stage)
    folder = records_folder()
    memo = memo_of(folder, deploy_id) if deploy_id else last_memo(folder, where.app, where.stage)
    if memo is None or memo.state in ENDED:
        raise OperatorError(
            f"there is no unfinished deploy of {where.app} ({where.stage}) on record here",
            where=folder,
            remedy="resume it on the machine that deployed, or put it back: midstream abort",
        )
    path, socket = str(file.path), socket or memo.socket
    only = replace(only, hosts=only.hosts or memo.hosts)
    tasks = open_book_with(file.folder, answers)
    if memo.kind == Kind.DEPLOY.value:
        chosen = project.of_revision(path, memo.stage, revision=memo.revision, socket=socket, only=only)
        plan = deploy_plan(chosen.specs, attached=tasks.registry.attached())
    else:
        chosen = project.of_working_copy(path, memo.stage, socket=socket, only=only)
        plan = rollback_plan(chosen.specs, release=memo.release, attached=tasks.registry.attached())
    try:
        secrets = read_secrets(chosen.stage.secrets, chosen.file.folder)
        order = deploy_run.new_order(chosen, plan, release=memo.release, secrets=secrets, wait=wait, tasks=tasks)
        order = replace(order, deploy_id=memo.deploy_id, user=memo.user, target=memo.target or order.target)
        return deploy_run.perform(order, chosen, deploy_run.Show(as_json, verbose), socket=socket, resumed=True)
    finally:
        chosen.close()


@command(
    "abort",
    exits=(0, 1, 2, 4, 5, 70),
    examples="""
    midstream abort
    midstream abort production
    """,
)
@click.argument("stage", required=False)
@host_options
@app_option
@config_option
@socket_option
@json_option
def abort(stage: str | None, only: Only, app: str, config_path: str, socket: str, as_json: bool) -> int:
    """Put back the deploy that is going on, whoever began it, and free its lock.

    What is committed stays: to leave a committed release use `midstream rollback`. Where it is committed on some of the
    hosts already, it is not put back on the others: `midstream resume` carries it to its end. The agents do the same by
    themselves some seconds after they lost a deployer; this is for not waiting, and for a deployer that hangs.
    """
    from midstream.cli.aim import take_aim
    from midstream.cli.deploy_run import operator_name

    aim = take_aim([stage] if stage else [], config=config_path, app=app, socket_path=socket, only=only)
    reason = f"aborted by {operator_name()}"
    answers = settle_fleet(aim, look_at_fleet(aim), reason) if aim.several else _settle_one(aim, reason)
    for host, (name, answer) in answers.good():
        head = f"{host}: " if aim.several else ""
        serving = f"release {answer['release']} is committed" if answer.get("release") else "nothing is committed"
        if as_json:
            echo_json({"host": host, **answer} if aim.several else answer)
        elif answer["settled"]:
            click.echo(f"{head}the deploy of {name} is ended; {serving}")
        else:
            click.echo(f"{head}no deploy of {name} is going on; {serving}")
    apart = _apart({host: str(answer.get("release") or "") for host, (_, answer) in answers.good()}, aim.stage)
    code = answers.conclude(as_json)
    if apart is not None:
        raise apart
    return code


def _apart(committed: dict[str, str], stage: str) -> AttentionError | None:
    """What to say when the hosts have ended on different releases: some had committed when the deployer was lost, and the
    leases of the others have put them back. None when all are on one."""
    if len(set(committed.values())) < 2:
        return None
    return AttentionError(
        "the hosts are on different releases: there is nothing left to put back",
        where=", ".join(committed),
        serving=_by_host(committed),
        remedy=f"`midstream resume {stage}` on the machine that deployed, or `midstream deploy {stage}` on any: both bring "
        "all hosts to one release",
    )


def _by_host(committed: dict[str, str]) -> str:
    return "; ".join(f"{release or 'nothing'} on {host}" for host, release in committed.items())


def _row(client: SyncClient, app: str) -> dict[str, Any]:
    """What the host's status says of the app; empty when it has none of that name."""
    return next((row for row in client.call("status")["apps"] if row["app"] == app), {})


def _settle_one(aim: Aim, reason: str) -> Answers[Settled]:
    def settle(client: SyncClient, host: str) -> Settled:
        from midstream.cli.aim import only_app

        name = only_app(client, aim.app)
        return name, client.call("deploy.settle", app=name, reason=reason)

    return aim.ask(settle)


def settle_fleet(aim: Aim, seen: dict[str, dict[str, Any]], reason: str) -> Answers[Settled]:
    """Has each host end what was `seen` there, and nothing else: a decision that came since is refused by its agent. The
    deploy's first host, which decides for all, is asked first: once that one went back nobody can commit any more, and
    where it refuses the others are left alone."""
    from midstream.cli.ask import Answers, ask_all

    def settle(client: SyncClient, host: str) -> Settled:
        deploy = seen[host].get("deploy")
        if not deploy:
            return aim.app, {"settled": False, "release": str(seen[host].get("release") or "")}
        expected = {"deploy_id": deploy["id"], "undecided": deploy["state"] != "committed"}
        return aim.app, client.call("deploy.settle", app=aim.app, reason=reason, **expected)

    first = next((host for host in aim.hosts if seen[host.name].get("deploy")), aim.hosts[0])
    decided = ask_all([first], settle, several=True)
    if decided.failed:
        return decided
    others = ask_all([host for host in aim.hosts if host is not first], settle, several=True)
    rows = {row.host: row for row in (*decided.rows, *others.rows)}
    return Answers(tuple(rows[host.name] for host in aim.hosts), several=True)


def look_at_fleet(aim: Aim) -> dict[str, dict[str, Any]]:
    """host -> what its status says of the app. Raises AttentionError when the decision was made: some hosts have committed
    the release of the deploy that others have not decided yet. Putting those back would leave the fleet on two releases.
    Raises HostError when a host cannot be asked: whether it has decided is never guessed."""

    def look(client: SyncClient, host: str) -> dict[str, Any]:
        return _row(client, aim.app)

    answers = aim.ask(look)
    if answers.failed:
        names = ", ".join(row.host for row in answers.failed)
        raise HostError(
            f"{names} cannot be reached, so it is not known whether the deploy was decided there",
            where=names,
            detail="\n".join(f"{row.host}: {row.error.what}" for row in answers.failed if row.error is not None),
            remedy=f"`midstream resume {aim.stage}` once it can be reached; `midstream abort {aim.stage} --without {names}` "
            f"puts the others back without asking it",
        )
    committed = {host: str(row.get("release") or "") for host, row in answers.good()}
    wanted = {host: str(row["deploy"].get("release") or "") for host, row in answers.good() if row.get("deploy")}
    lagging = [host for host, release in wanted.items() if release and committed[host] != release]
    ahead = [host for host, release in committed.items() if release in {wanted[name] for name in lagging}]
    if ahead:
        raise AttentionError(
            f"the deploy is decided: {', '.join(ahead)} has committed its release, {', '.join(lagging)} not yet",
            where=", ".join(lagging),
            serving=_by_host(committed),
            remedy=f"`midstream resume {aim.stage}` on the machine that deployed; from another: wait until their leases have "
            f"run out (seconds), then `midstream deploy {aim.stage}`",
        )
    return dict(answers.good())
