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
    midstream init --from-capistrano       from Capfile, config/deploy.rb and config/deploy/*.rb
    """,
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False), default=".")
@click.option("--force", is_flag=True, help="Overwrite a midstream.toml.")
@click.option("--print", "only_print", is_flag=True, help="Print it, write nothing.")
@click.option("--from-capistrano", is_flag=True, help="Read what Capistrano's files in FOLDER say. No Ruby is run.")
@json_option
def init(folder: str, force: bool, only_print: bool, from_capistrano: bool, as_json: bool) -> int:
    """Look at the project in FOLDER and write a commented midstream.toml that deploys it as it is.

    Knows Django, Flask, FastAPI and other ASGI apps, plain WSGI, Procfiles, Rails and Rack, Node, and the workers
    beside them.

    With --from-capistrano: stages, hosts, roles, linked files, builds, the migration, services and hooks come from
    Capistrano's files; what could not be carried over is listed with its place, here and at the end of the file.
    """
    if from_capistrano:
        return _from_capistrano(folder, force, only_print, as_json)
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


def _from_capistrano(folder: str, force: bool, only_print: bool, as_json: bool) -> int:
    from midstream.deploy.scaffold.capistrano import convert, ruby_of

    found = convert(Path(folder).resolve())
    path = os.path.join(os.path.abspath(folder), CONFIG_NAME)
    if not only_print:
        _write(path, found.text, force)
    if as_json:
        listed = [
            {
                "file": one.place.file,
                "line": one.place.line,
                "ruby": ruby_of(one),
                "advice": one.advice,
                "needless": one.needless,
            }
            for one in found.remarks
        ]
        target = None if only_print else path
        echo_json({"path": target, "text": found.text, "stages": list(found.stages), "not_carried_over": listed})
        return 0
    click.echo(found.text if only_print else f"wrote {path}: stages {', '.join(found.stages)}")
    left = found.left()
    if left:
        click.echo(f"{len(left)} not carried over (also at the end of the file):", err=True)
    for one in left:
        first, *more = ruby_of(one).split("\n")
        click.echo(f"  {one.place}: {first}{' …' if more else ''}\n    -> {one.advice}", err=True)
    if not only_print:
        click.echo("next: read it, commit it, then `midstream check STAGE` and `midstream deploy STAGE`")
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
        raise HostError(
            f"midstream.toml cannot be written: {error.strerror}", where=path, remedy="run it in a folder of yours"
        ) from None
