"""The options that `deploy`, `rollback` and `resume` share. No behaviour of commands here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from midstream.cli.hosts import host_options
from midstream.cli.manpage import config_option, json_option, socket_option

F = TypeVar("F", bound=Callable[..., Any])
_OPTIONS = (
    click.option("--wait", is_flag=True, help="Wait for another deploy instead of exiting with 4."),
    click.option(
        "--set",
        "answers",
        metavar="NAME=VALUE",
        multiple=True,
        help="A setting of deploy.py; it answers the question of that name beforehand. May be given several times.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Print what the steps print, too. It is in the log anyway."),
    host_options,
    config_option,
    socket_option,
    json_option,
)


def run_options(function: F) -> F:
    """Passes on wait, answers, verbose, only, config_path, socket, as_json."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
