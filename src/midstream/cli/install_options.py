"""The options that `agent install`, `agent upgrade` and `setup` share; the commands get them as `how: How`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
KINDS = ("auto", "systemd", "runit", "plain")


@dataclass(frozen=True, slots=True)
class How:
    """`user`: to log in as, "" for the address's own. `service`: one of KINDS."""

    user: str = ""
    rootless: bool = False
    allow: tuple[str, ...] = ()
    service: str = "auto"
    dry_run: bool = False


_USER = click.option("--user", metavar="USER", default="", help="Log in as this user (root, or one who may sudo).")
_ROOTLESS = click.option("--rootless", is_flag=True, help="For the user that logs in alone, without root.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Change nothing; say what would be changed.")
_ALLOW = click.option(
    "--allow",
    multiple=True,
    metavar="USER:APP:PATH[:...]",
    help="Grant, as `midstream agent allow` does, and make the folder. May be repeated.",
)
_SERVICE = click.option(
    "--service",
    type=click.Choice(KINDS),
    default="auto",
    show_default=True,
    help="What starts the agent: systemd, runit, or nothing (plain).",
)


def install_options(function: F) -> F:
    """--user, --rootless, --allow, --service, --dry-run."""
    return _as_how(function, (_DRY_RUN, _SERVICE, _ALLOW, _ROOTLESS, _USER))


def upgrade_options(function: F) -> F:
    """--user, --rootless, --dry-run."""
    return _as_how(function, (_DRY_RUN, _ROOTLESS, _USER))


def _as_how(function: F, options: tuple[Callable[[Any], Any], ...]) -> F:
    @functools.wraps(function)
    def with_how(
        *args: Any,
        user: str,
        rootless: bool,
        dry_run: bool,
        allow: tuple[str, ...] = (),
        service: str = "auto",
        **kwargs: Any,
    ) -> Any:
        return function(*args, how=How(user, rootless, allow, service, dry_run), **kwargs)

    decorated: Any = with_how
    for option in options:
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]
