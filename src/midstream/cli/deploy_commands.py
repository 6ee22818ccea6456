"""`midstream deploy` and `midstream rollback`."""

from __future__ import annotations

from dataclasses import replace

import click

from midstream.cli.hosts import Only
from midstream.cli.manpage import command
from midstream.cli.run_options import run_options
from midstream.core.names import is_release
from midstream.errors import OperatorError

_EXITS = (0, 1, 2, 4, 5, 70, 130)


@command(
    "deploy",
    exits=_EXITS,
    examples="""
    midstream deploy
    midstream deploy production
    midstream deploy staging --branch feature/basket
    midstream deploy --without web3      a host that is down; it is recorded as behind
    midstream deploy --wait              wait for another deploy instead of being refused
    midstream deploy --set ticket=T-17   the answer to a question of deploy.py
    midstream deploy --json | tee deploy.jsonl
    """,
)
@click.argument("stage", required=False)
@click.option(
    "-b", "--branch", metavar="REV", default="", help="Branch, tag or revision (default: the stage's branch)."
)
@run_options
def deploy(
    stage: str | None,
    branch: str,
    wait: bool,
    answers: tuple[str, ...],
    verbose: bool,
    only: Only,
    config_path: str,
    socket: str,
    as_json: bool,
) -> int:
    """Put a release on the hosts of STAGE and hand over to it.

    The revision is resolved once. The new generation is started beside the old one, proven by a health check that it
    answered itself, then the old one is drained. If anything fails, what was switched is handed back, nothing stays
    locked or held, and the old release serves on. ^C once goes back in order; twice leaves, and the agents go back by
    themselves. The deploy ends when the new release is committed; old processes finish their work behind it.

    All hosts of STAGE end on the release, or all go back. A host that cannot be reached stops it, unless it is left out
    by --without (or --hosts, --roles): then it is recorded as behind, `midstream status` says so, and the next deploy
    takes it along.

    STAGE may be left out where there is only one. Where no agent runs on this machine, one is started for you.
    """
    from midstream.cli.early import dialled, loading

    with dialled(stage, config_path, socket, only) as early:
        # What follows takes as long to import as ssh to log in; a part of it is imported while git is asked.
        from midstream.cli import project

        with loading("midstream.cli.deploy_run"):
            chosen = project.of_revision(config_path, stage, branch=branch, socket=socket, only=only)
        from midstream.cli import deploy_run
        from midstream.cli.task_book import open_book_with
        from midstream.core.plan import deploy_plan
        from midstream.deploy.config_file import read_secrets

        try:
            tasks = open_book_with(chosen.file.folder, answers)
            secrets = read_secrets(chosen.stage.secrets, chosen.file.folder)
            chosen = deploy_run.with_agent_here(chosen, socket)
            order = deploy_run.new_order(
                chosen,
                deploy_plan(chosen.specs, attached=tasks.registry.attached()),
                secrets=secrets,
                wait=wait,
                tasks=tasks,
            )
            chosen = replace(chosen, reach=early.using(chosen.reach))
            return deploy_run.perform(order, chosen, deploy_run.Show(as_json, verbose), socket=socket)
        finally:
            chosen.close()


@command(
    "rollback",
    exits=_EXITS,
    examples="""
    midstream rollback                        the last proven release before this one
    midstream rollback --to 20261121190501    that one (midstream releases lists them)
    """,
)
@click.argument("stage", required=False)
@click.option("--to", "release", metavar="RELEASE", default="", help="Which release (14 digits).")
@click.option("--force", is_flag=True, help="Also to a bad release, and over a migration that says it is final.")
@run_options
def rollback(
    stage: str | None,
    release: str,
    force: bool,
    wait: bool,
    answers: tuple[str, ...],
    verbose: bool,
    only: Only,
    config_path: str,
    socket: str,
    as_json: bool,
) -> int:
    """Hand over to an earlier release of STAGE.

    Goes to the last release that was proven before the committed one, or to the named one, with the configuration it
    was deployed with; of several hosts, to the last one that all of them have. It is started, proven and handed over to
    like a new one. The repository is not asked, and migrations are not undone.
    """
    from midstream.cli.early import dialled

    if release and not is_release(release):
        raise OperatorError(f"{release} is no release: 14 digits", remedy="midstream releases lists them")
    with dialled(stage, config_path, socket, only) as early:
        from midstream.cli import deploy_run, project
        from midstream.cli.task_book import open_book_with
        from midstream.core.plan import rollback_plan

        chosen = project.of_working_copy(config_path, stage, socket=socket, only=only)
        tasks = open_book_with(chosen.file.folder, answers)
        plan = rollback_plan(chosen.specs, release=release, attached=tasks.registry.attached())
        order = deploy_run.new_order(chosen, plan, release=release, wait=wait, force=force, tasks=tasks)
        chosen = replace(chosen, reach=early.using(chosen.reach))
        return deploy_run.perform(order, chosen, deploy_run.Show(as_json, verbose), socket=socket)
