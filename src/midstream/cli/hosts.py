"""Which hosts a command is about, and how each is reached: `--hosts`, `--roles`, `--without`, `--socket`.

Works on values: the hosts of a stage come from `midstream.toml`, raw (`aim.py`) or resolved (`project.py`).
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from midstream.cli.places import socket_to_ask
from midstream.deploy.transport import Host, LocalHost, SshHost
from midstream.deploy.unreachable import name_of
from midstream.errors import OperatorError

HERE = "localhost"
_HERE = ("", HERE, "127.0.0.1", "::1")
F = TypeVar("F", bound=Callable[..., Any])


class HostRow(Protocol):
    """`roles` empty: all of them."""

    @property
    def address(self) -> str: ...

    @property
    def roles(self) -> tuple[str, ...]: ...


R = TypeVar("R", bound=HostRow)


@dataclass(frozen=True, slots=True)
class Only:
    """What the command line says of hosts. Names are addresses as in `midstream.toml`, or the host's name alone."""

    hosts: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.hosts or self.roles or self.without)


ALL = Only()


def host_options(function: F) -> F:
    """`--hosts`, `--roles`, `--without`; the command gets them as `only: Only`."""
    import click  # a deploy dials before it has that

    @functools.wraps(function)
    def with_only(*args: Any, hosts: str, roles: str, without: str, **kwargs: Any) -> Any:
        return function(*args, only=only_of(hosts, roles, without), **kwargs)

    decorated: Any = with_only
    for name, metavar, text in (
        ("--without", "A,B", "Leave these hosts out."),
        ("--roles", "R,S", "Only hosts with one of these roles."),
        ("--hosts", "A,B", "Only these hosts of the stage."),
    ):
        decorated = click.option(name, metavar=metavar, default="", help=text)(decorated)
    return decorated  # type: ignore[no-any-return]


def only_of(hosts: str, roles: str, without: str) -> Only:
    """From the options as they were written."""
    return Only(_words(hosts), _words(roles), _words(without))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in (part.strip() for part in text.split(",")) if word)


def is_here(address: str) -> bool:
    """Whether a host's address in midstream.toml means this machine."""
    name = name_of(address)
    return name in _HERE or name in (socket.gethostname(), socket.getfqdn() if "." in name else "")


def choose(rows: Sequence[R], only: Only, stage: str) -> tuple[R, ...]:
    """The rows that are meant, in their order. Raises OperatorError for a name that none has, or when none is left."""
    wanted, unwanted = _named(rows, only.hosts, stage), _named(rows, only.without, stage)
    known = {role for row in rows for role in row.roles}
    for role in only.roles:
        if known and role not in known and all(row.roles for row in rows):
            raise OperatorError(
                f"no host of stage {stage} has role {role}", remedy=f"choose from {', '.join(sorted(known))}"
            )
    left = tuple(
        row
        for row in rows
        if (not only.hosts or row in wanted)
        and row not in unwanted
        and (not only.roles or not row.roles or set(row.roles) & set(only.roles))
    )
    if not left:
        raise OperatorError(
            f"no host of stage {stage} is left by --hosts, --roles and --without",
            remedy="name hosts and roles that midstream.toml has for the stage, or leave the options out",
        )
    return left


def _named(rows: Sequence[R], names: Sequence[str], stage: str) -> list[R]:
    found: list[R] = []
    for name in names:
        exact = [row for row in rows if (row.address or HERE) == name]
        rows_of_it = exact or [row for row in rows if name_of(row.address or HERE) == name]
        if not rows_of_it:
            known = ", ".join(row.address or HERE for row in rows)
            raise OperatorError(f"stage {stage} has no host {name}", remedy=f"choose from {known}")
        found += rows_of_it
    return found


def reach(addresses: Sequence[str], socket_path: str = "", *, of_several: bool = False) -> Mapping[str, Host]:
    """host name -> how to reach it. socket_path: of `--socket`, which is believed wherever it leads. MIDSTREAM_SOCKET says
    where the agent of this machine is, and of a stage's only host. of_several: the stage has more hosts than these.

    Raises OperatorError when one socket is named for several hosts.
    """
    if socket_path and (len(addresses) > 1 or of_several):
        raise OperatorError(
            "--socket names one agent, and the stage has several hosts",
            remedy="leave --socket out; MIDSTREAM_SOCKET names the agent of this machine alone",
        )
    named = bool(socket_path or (os.environ.get("MIDSTREAM_SOCKET") and len(addresses) == 1 and not of_several))
    return {address or HERE: _host(address, socket_path, named) for address in addresses}


def _host(address: str, socket_path: str, named: bool) -> Host:
    if named or is_here(address):
        return LocalHost(address or HERE, socket_to_ask(socket_path))
    return SshHost(address)
