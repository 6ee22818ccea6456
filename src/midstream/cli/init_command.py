"""`midstream init`: a `midstream.toml` for the project in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import click

from midstream.cli.manpage import command, json_option
from midstream.cli.output import echo_json
from midstream.errors import HostError, OperatorError

CONFIG_NAME = "midstream.toml"


@command(
    "init",
    exits=(0, 1, 2, 70),
    examples="""
    midstream init
    midstream init ~/src/shop
    midstream init --print | less          look first, write nothing
    """,
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False), default=".")
@click.option("--force", is_flag=True, help="Overwrite a midstream.toml.")
@click.option("--print", "only_print", is_flag=True, help="Print it, write nothing.")
@json_option
def init(folder: str, force: bool, only_print: bool, as_json: bool) -> int:
    """Look at the project in FOLDER and write a commented midstream.toml that deploys it as it is.

    Knows Django, Flask, FastAPI and other ASGI apps, plain WSGI, Procfiles, Rails and Rack, Node, and the workers
    beside them.
    """
    from midstream.deploy.scaffold import propose

    proposal = propose(Path(folder).resolve())
    path = os.path.join(os.path.abspath(folder), CONFIG_NAME)
    if not only_print:
        _write(path, proposal.text, force)
    notes = [str(note) for note in proposal.notes]
    if as_json:
        echo_json({"path": None if only_print else path, "text": proposal.text, "notes": notes})
        return 0
    click.echo(proposal.text if only_print else f"wrote {path}")
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if not only_print:
        click.echo("next: read it, commit it, then `midstream check` and `midstream deploy`")
    return 0


def _write(path: str, text: str, force: bool) -> None:
    try:
        with open(path, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise OperatorError(
            "there is a midstream.toml already", where=path, remedy="--force overwrites it, --print only shows"
        ) from None
    except OSError as error:
        raise HostError(f"midstream.toml cannot be written: {error.strerror}", where=path) from None
