"""`midstream exec` and `midstream run`: one command, or one task of the deploy, in the release that is committed."""

from __future__ import annotations

import difflib
import os
from typing import Any

import click

from midstream.cli.aim import Aim, find_config, only_app, raw_stages, take_aim
from midstream.cli.hosts import Only, host_options
from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import echo_json
from midstream.deploy.sync_client import SyncClient
from midstream.errors import AppError, OperatorError

MIGRATE = "deploy:migrate"


@command(
    "exec",
    exits=(0, 1, 2, 70, 130),
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    examples="""
    midstream exec python manage.py check --deploy
    midstream exec --shell 'ls -l | head'
    midstream exec -- cat REVISION
    midstream exec production -- df -h .
    midstream exec --stage production --roles db -- df -h .
    """,
)
@click.argument("argv", metavar="COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--shell", is_flag=True, help="COMMAND is one line for the shell.")
@click.option("-s", "--stage", metavar="STAGE", default="", help="Which stage (default: the only one).")
@host_options
@app_option
@config_option
@socket_option
@json_option
def exec_(
    argv: tuple[str, ...],
    shell: bool,
    stage: str,
    only: Only,
    app: str,
    config_path: str,
    socket: str,
    as_json: bool,
) -> int:
    """Run COMMAND on the hosts, in the folder of the committed release, with the app's user and environment.

    Its output is printed as it comes, of several hosts at the same time, with the host; values of secrets are taken out
    (docs/security.md). Exits with 0 when COMMAND did everywhere, else with 1, and says how it ended. The stage may stand
    in front, with `--` behind it.
    """
    path = find_config(config_path)
    stages = raw_stages(path) if path else {}
    if not stage and argv[0] in stages and argv[1:2] == ("--",) and argv[2:]:
        stage, argv = argv[0], argv[2:]
    aim = take_aim([stage] if stage else [], config=config_path, app=app, socket_path=socket, only=only)
    if aim.services:
        raise OperatorError(f"there is no stage {stage}", remedy=f"choose from {', '.join(stages) or 'none'}")

    def work(client: SyncClient, host: str) -> int:
        hint = f"options go in front of the command: midstream exec --stage {argv[0]} …" if argv[0] in stages else ""
        return _one_shot(client, only_app(client, aim.app), argv, shell, as_json, host if aim.several else "", hint)

    return aim.ask(work).conclude(as_json)


def _one_shot(
    client: SyncClient, app: str, argv: tuple[str, ...], shell: bool, as_json: bool, host: str = "", hint: str = ""
) -> int:
    """Runs one command to its end. Raises AppError when it fails. host: in front of each line, when there are several.
    hint: what to do where there is no such program."""
    mark: dict[str, Any] = {"host": host} if host else {}
    head = f"{host} | " if host else ""

    def take(method: str, params: dict[str, Any]) -> None:
        if method == "output":
            if as_json:
                echo_json({"type": "output", **mark, "line": params.get("line", "")})
            else:
                click.echo(head + str(params.get("line", "")))

    answer = client.call("run", on_notice=take, app=app, argv=list(argv), shell=shell)
    if as_json:
        echo_json({"type": "end", **mark, **answer})
    if answer.get("code") == 0:
        return 0
    text = str(answer.get("text") or "failed")
    remedy = "its own lines above say why"
    if text.startswith("did not start"):
        remedy = hint or "look at its name, and at `path` of [env]; a line for the shell needs --shell"
    raise AppError(f"`{' '.join(argv)}` {text}", where=app, serving="unchanged", remedy=remedy)


@command(
    "run",
    exits=(0, 1, 2, 70, 130),
    examples="""
    midstream run --list
    midstream run deploy:migrate
    midstream run production sidekiq:monit:unmonitor
    midstream run cache:warm PAGES=200
    """,
)
@click.argument("words", metavar="[STAGE] TASK [NAME=VALUE]...", nargs=-1)
@click.option("--list", "listing", is_flag=True, help="List the tasks, built-in ones and those of deploy.py.")
@host_options
@config_option
@socket_option
@json_option
def run(words: tuple[str, ...], listing: bool, only: Only, config_path: str, socket: str, as_json: bool) -> int:
    """Run one task by itself: one of the project's deploy.py, or deploy:migrate, in the committed release.

    NAME=VALUE sets a setting of deploy.py, and answers its question beforehand. deploy:migrate runs the commands of
    [migrate] as the committed release has them, on the primary of its role.
    """
    from midstream.cli.run_tasks import list_tasks, perform
    from midstream.cli.task_book import open_book, settings_of

    aim = take_aim(tuple(word for word in words if "=" not in word), config=config_path, socket_path=socket, only=only)
    config = find_config(config_path)
    book = open_book(os.path.dirname(config) if config else "", settings_of([word for word in words if "=" in word]))
    if listing:
        list_tasks(book.registry, as_json)
        return 0
    known = [MIGRATE, *book.registry.tasks]
    if len(aim.services) != 1 or aim.services[0] not in known:
        asked = " ".join(aim.services)
        near = difflib.get_close_matches(asked, known, 1)
        raise OperatorError(
            f"there is no task {asked}" if asked else "which task?",
            remedy=f"did you mean {near[0]}?" if near else "midstream run --list names them",
        )
    if aim.services[0] == MIGRATE:
        return _migrate(aim, only, config_path, socket, as_json)
    return perform(book, aim.services[0], aim.stage or None, only, config_path, socket, as_json)


def _migrate(aim: Aim, only: Only, config_path: str, socket: str, as_json: bool) -> int:
    from midstream.cli import project
    from midstream.core.plan import primary_of
    from midstream.deploy.sync_client import connect

    with connect(aim.hosts[0]) as client:
        row = next((row for row in client.call("status")["apps"] if row["app"] == aim.app), None)
    if row is None or not row.get("revision"):
        raise OperatorError(f"{aim.app or 'the app'} is not deployed here", remedy="midstream deploy")
    chosen = project.of_revision(config_path, aim.stage or None, revision=row["revision"], socket=socket, only=only)
    chosen.close()
    migrate = chosen.stage.app.migrate
    if migrate is None:
        raise OperatorError(
            "[migrate] is not configured in that release",
            where=f"release {row.get('release', '')}",
            remedy="write [migrate] run = … into midstream.toml, commit, deploy; or run the command itself: midstream exec",
        )
    primary = primary_of(migrate.role, chosen.specs)
    roles = chosen.specs[primary].roles
    if roles and migrate.role not in roles:
        raise OperatorError(
            f'none of these hosts has role "{migrate.role}", which the migration is run on',
            where=", ".join(chosen.specs),
            remedy="leave --hosts, --roles and --without out",
        )
    with connect(chosen.reach[primary]) as client:
        for step in migrate.run:
            _one_shot(client, aim.app, step.run, step.shell, as_json, primary if aim.several else "")
    return 0
