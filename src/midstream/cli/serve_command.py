"""`midstream serve`, where click is: the words are passed on as they are to `midstream.serve.program`.

The server starts without click (`midstream.__main__` goes there directly); this is for the overview, for completion, and
for whoever calls the command line as a function. The options come from the server's own table.
"""

from __future__ import annotations

from typing import Any

import click

from midstream.cli.manpage import ManCommand
from midstream.serve import options
from midstream.serve.settings import TABLE, Kind


class ServeCommand(ManCommand):
    """Leaves parsing, help and errors to the server."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # completion
            return super().parse_args(ctx, args)
        ctx.params["argv"] = tuple(args)
        return []


def _params() -> list[click.Parameter]:
    found: list[click.Parameter] = [click.Argument(["words"], nargs=-1, metavar="MODULE:NAME")]
    for names in (("-c", "--config"), ("--ask",)):
        found.append(click.Option(names, metavar="TEXT"))
    for name in ("--check", "--print-config", "--json"):
        found.append(click.Option((name,), is_flag=True))
    for setting in TABLE:
        if setting.name == "app":
            continue
        if setting.kind is Kind.FLAG:
            found.append(click.Option([f"{name}/--no-{name[2:]}" for name in setting.options], help=setting.help))
        else:
            found.append(click.Option(setting.options, metavar="TEXT", help=setting.help))
    return found


def _run(argv: tuple[str, ...] = (), **_: Any) -> int:
    from midstream.serve import program

    return program.main(argv)


serve = ServeCommand(
    "serve",
    params=_params(),
    callback=_run,
    help=options.DESCRIPTION,
    examples="\n".join(options.EXAMPLES),
    exits=tuple(options.EXITS),
    context_settings={"help_option_names": []},
)
