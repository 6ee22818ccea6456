"""`midstream resume` and `midstream abort`: what a deployer that died has left behind is carried on or put back.

Both only repeat idempotent calls under the id of that deploy: the agent knows from its journal what was done.
"""

from __future__ import annotations

from dataclasses import replace

import click

from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import echo_json
from midstream.errors import OperatorError

_EXITS = (0, 1, 2, 4, 5, 70, 130)
_ID = click.option("--id", "deploy_id", metavar="ID", default="", help="Which deploy (default: the unfinished one).")


@command(
    "resume",
    exits=_EXITS,
    examples="""
    midstream resume
    midstream resume production
    """,
)
@click.argument("stage", required=False)
@_ID
@click.option("-v", "--verbose", is_flag=True, help="Print what the steps print, too.")
@config_option
@socket_option
@json_option
def resume(stage: str | None, deploy_id: str, verbose: bool, config_path: str, socket: str, as_json: bool) -> int:
    """Carry the deploy of a deployer that died, or lost its hosts, to its end.

    Runs on the machine that deployed: the record of the deploy is there. The same revision goes on from where each
    host stands; what is done is not done again, and what a host has put back meanwhile is made anew.
    """
    from midstream.cli import deploy_run, project
    from midstream.cli.places import records_folder, socket_to_ask
    from midstream.cli.task_book import open_book
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
    path = str(file.path)
    tasks = open_book(file.folder)
    if memo.kind == Kind.DEPLOY.value:
        chosen = project.of_revision(path, memo.stage, revision=memo.revision, named_socket=bool(socket))
        plan = deploy_plan(chosen.specs, attached=tasks.registry.attached())
    else:
        chosen = project.of_working_copy(path, memo.stage, named_socket=bool(socket))
        plan = rollback_plan(chosen.specs, release=memo.release, attached=tasks.registry.attached())
    try:
        secrets = read_secrets(chosen.stage.secrets, chosen.file.folder)
        order = deploy_run.new_order(chosen, plan, release=memo.release, secrets=secrets, tasks=tasks)
        order = replace(order, deploy_id=memo.deploy_id, user=memo.user, target=memo.target or order.target)
        socket_path = socket_to_ask(socket) if socket else memo.socket
        return deploy_run.perform(order, chosen, socket_path, deploy_run.Show(as_json, verbose))
    finally:
        chosen.close()


@command(
    "abort",
    exits=(0, 1, 2, 5, 70),
    examples="""
    midstream abort
    midstream abort production
    """,
)
@click.argument("stage", required=False)
@app_option
@config_option
@socket_option
@json_option
def abort(stage: str | None, app: str, config_path: str, socket: str, as_json: bool) -> int:
    """Put back the deploy that is going on, whoever began it, and free its lock.

    What is committed stays: to leave a committed release use `midstream rollback`. The agent does the same by itself
    some seconds after it lost a deployer; this is for not waiting, and for a deployer that hangs.
    """
    from midstream.cli.aim import only_app, take_aim
    from midstream.cli.deploy_run import operator_name

    aim = take_aim([stage] if stage else [], config=config_path, app=app, socket_path=socket)
    with aim.connect() as client:
        name = only_app(client, aim.app)
        answer = client.call("deploy.settle", app=name, reason=f"aborted by {operator_name()}")
    serving = f"release {answer['release']} is committed" if answer.get("release") else "nothing is committed"
    if as_json:
        echo_json(answer)
    elif answer["settled"]:
        click.echo(f"the deploy of {name} is ended; {serving}")
    else:
        click.echo(f"no deploy of {name} is going on; {serving}")
    return 0
