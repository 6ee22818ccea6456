"""`midstream console`: the app's own shell on a host."""

from __future__ import annotations

import sys

import click

from midstream.cli.aim import only_app, take_aim
from midstream.cli.hosts import Only, host_options
from midstream.cli.manpage import app_option, command, config_option, socket_option
from midstream.errors import OperatorError


@command(
    "console",
    exits=(0, 1, 2, 70),
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    examples="""
    midstream console                          `console` of midstream.toml, on the first host
    midstream console --stage production --hosts web2
    midstream console --roles db -- bash -l
    """,
)
@click.argument("argv", metavar="[COMMAND [ARG]...]", nargs=-1, type=click.UNPROCESSED)
@click.option("-s", "--stage", metavar="STAGE", default="", help="Which stage (default: the only one).")
@host_options
@app_option
@config_option
@socket_option
def console(argv: tuple[str, ...], stage: str, only: Only, app: str, config_path: str, socket: str) -> int:
    """Open the app's own shell, or COMMAND, on a host: in the folder of the committed release, with the app's user and
    environment, on a terminal.

    On the first host of the stage that --hosts, --roles and --without leave. ^C and ^Z are the program's; a line that
    begins with `~.` leaves. What runs ends when the connection does. Exits with the program's own exit code, 128 + N when
    signal N ended it.
    """
    from midstream.cli.terminal_bridge import Bridge, Left, exit_code, has_terminal
    from midstream.deploy.sync_client import connect

    words = list(argv)
    aim = take_aim([stage] if stage else words[:1], config=config_path, app=app, socket_path=socket, only=only)
    if stage and aim.services:
        raise OperatorError(f"there is no stage {stage}", remedy="midstream.toml names the stages")
    if not stage and words and aim.stage and not aim.services:
        words = words[1:]  # the first word was the stage
    if not has_terminal():
        raise OperatorError("a console needs a terminal", remedy="midstream exec COMMAND runs a command without one")
    with connect(aim.hosts[0]) as client:
        name = only_app(client, aim.app)
        if aim.several:
            click.echo(f"midstream: on {aim.hosts[0].name}", err=True)
        try:
            answer = Bridge(client, sys.stdin.fileno(), sys.stdout.fileno()).run(name, tuple(words))
        except Left:
            click.echo("\nmidstream: left", err=True)
            return 1
    return exit_code(answer)
