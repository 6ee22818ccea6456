"""Help pages: a command with examples and exit codes, and the options that many commands share.

No behaviour of commands here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

EXIT_WORDS = {
    0: "done",
    1: "failed; the old state stands",
    2: "wrong usage or configuration",
    3: "something does not run, or runs another release than the committed one",
    4: "locked or held by somebody else",
    5: "failed, and something needs attention (it is said what)",
    70: "a bug of Midstream",
    130: "interrupted, and rolled back",
}
COMMON_EXITS = (0, 1, 2, 4, 70)


class ManCommand(click.Command):
    """A command whose help ends with examples and exit codes."""

    def __init__(self, *args: Any, examples: str = "", exits: tuple[int, ...] = COMMON_EXITS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = [line.strip() for line in examples.strip().splitlines()]
        self.exits = exits

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), EXIT_WORDS[code]) for code in self.exits])


def command(name: str, *, examples: str, exits: tuple[int, ...] = COMMON_EXITS, **extra: Any) -> Callable[[F], Any]:
    """`@command("deploy", examples="…")`: a click command with a whole help page."""
    return click.command(name, cls=ManCommand, examples=examples, exits=exits, **extra)


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, one value a line, for programs.")(function)


def socket_option(function: F) -> F:
    return click.option(
        "--socket",
        metavar="PATH",
        default="",
        help="The agent's control socket (default: $MIDSTREAM_SOCKET, your own agent's, the system's).",
    )(function)


def config_option(function: F) -> F:
    return click.option(
        "-c",
        "--config",
        "config_path",
        metavar="FILE",
        default="",
        help="The project file (default: midstream.toml here, or in a folder above).",
    )(function)


def app_option(function: F) -> F:
    return click.option(
        "-a", "--app", metavar="NAME", default="", help="The app (default: the one of midstream.toml, or the only one)."
    )(function)
