"""`midstream setup STAGE`: from hosts with nothing but sshd and python3 to hosts that a deploy can go to."""

from __future__ import annotations

import getpass
import subprocess
from typing import TYPE_CHECKING, Any

import click

from midstream.cli.hosts import Only, host_options
from midstream.cli.install_options import How, install_options
from midstream.cli.manpage import command, config_option, json_option

if TYPE_CHECKING:
    from midstream.cli.installing import Row
    from midstream.cli.project import Project


@command(
    "setup",
    exits=(0, 1, 2, 4, 5, 70),
    examples="""
    midstream setup production --user root
    midstream setup production                     by sudo, where the hosts' users may without password
    midstream setup production --user root --allow deploy:shop:/srv/shop:port=80
    midstream setup staging --rootless --dry-run
    """,
)
@click.argument("stage", required=False)
@host_options
@install_options
@config_option
@click.option("--no-check", is_flag=True, help="Leave out `midstream check` at the end.")
@json_option
def setup(stage: str | None, only: Only, how: How, config_path: str, no_check: bool, as_json: bool) -> int:
    """Make the hosts of a stage ready: agents installed and started where they are missing or older, `deploy_to` made for
    the user who deploys, grants written, and everything checked as `midstream check` does.

    What is in order is left as it is, so it may be run at any time. Only an address's own user deploys; --user is for
    the installation.
    """
    from midstream.cli import project
    from midstream.cli.installing import INSTALL, answers_of, tell_results

    chosen = project.of_working_copy(config_path, stage, only=only)
    rows = _rows(chosen, how)
    answers = answers_of(rows, INSTALL, how, as_json=as_json)
    tell_results(answers, how, as_json=as_json)
    code = answers.conclude(as_json)
    if code or no_check or how.dry_run:
        return code
    return _check(chosen.stage.name, only, config_path, as_json)


def _rows(chosen: Project, how: How) -> list[Row]:
    from midstream.cli.installing import Row, goal, goals
    from midstream.deploy.install.request import Folder

    granted = goals(list(chosen.specs), how)[0].folders
    rows = []
    for name, spec in chosen.specs.items():
        owner = login_of(name, how.user if how.rootless else "")
        own = Folder(spec.deploy_to, owner)
        others = tuple(folder for folder in granted if folder.path != own.path)
        rows.append(Row(goal(name, how), (own, *others)))
    return rows


def login_of(address: str, user: str = "") -> str:
    """Who deploys to the host: the user that ssh would log in as. Raises OperatorError when ssh does not say."""
    from midstream.cli.hosts import is_here
    from midstream.deploy.ssh import ssh_words
    from midstream.errors import OperatorError

    if user:
        return user
    if is_here(address):
        return getpass.getuser()
    done = subprocess.run([*ssh_words(), "-G", "--", address], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    found = [line.partition(" ")[2] for line in done.stdout.splitlines() if line.startswith("user ")]
    if done.returncode != 0 or not found:
        raise OperatorError(
            "ssh does not say whom it would log in as",
            where=address,
            detail=done.stderr,
            remedy="mend ssh_config, or write USER@HOST: `ssh -G HOST` shows what ssh makes of it",
        )
    return found[0]


def _check(stage: str, only: Only, config_path: str, as_json: bool) -> int:
    """`midstream check` of the same hosts."""
    from midstream.cli.check_command import check

    words: dict[str, Any] = {
        "hosts": ",".join(only.hosts),
        "roles": ",".join(only.roles),
        "without": ",".join(only.without),
        "stage": stage,
        "config_path": config_path,
        "as_json": as_json,
    }
    context = click.get_current_context()
    return int(context.invoke(check, **words) or 0)
