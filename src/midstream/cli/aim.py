"""What a command is about: the app, the stage, the services, and the agent to ask. From the words of the command line,
`midstream.toml` where there is one, and what the agent knows.

Reads only a few keys of the file, without checking it: a mistake in a build step must not stop `midstream status`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from midstream.cli.hosts import ALL, HERE, Only, choose, is_here, reach
from midstream.cli.places import socket_to_ask
from midstream.core.values import dataclass
from midstream.deploy.transport import Host, LocalHost
from midstream.errors import OperatorError

if TYPE_CHECKING:
    from midstream.cli.ask import Answers
    from midstream.deploy.sync_client import SyncClient

CONFIG_NAME = "midstream.toml"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Aim:
    """`app` and `stage` may be "": not said. `services` empty: all. `several`: the stage has several hosts, whichever of
    them are meant, so output names them."""

    app: str
    stage: str
    services: tuple[str, ...]
    hosts: tuple[Host, ...]
    several: bool = False

    def ask(self, work: Callable[[SyncClient, str], T]) -> Answers[T]:
        """`work(client, host name)` on all hosts at the same time; see `ask_all`."""
        from midstream.cli.ask import ask_all  # not for who only looks where to go

        return ask_all(self.hosts, work, several=self.several)

    def require_somebody(self, answers: Answers[Any]) -> None:
        """Raises OperatorError when none of the hosts, all of which answered, has a service of those names."""
        if self.services and not answers.failed and all(row.value is None for row in answers.rows):
            raise OperatorError(
                f"no host has a service called {', '.join(self.services)}",
                where=self.where,
                remedy=f"midstream status {self.stage} names them",
            )

    @property
    def where(self) -> str:
        """The hosts, or the one socket, for messages."""
        return ", ".join(host.socket_path if isinstance(host, LocalHost) else host.name for host in self.hosts)


@dataclass(frozen=True, slots=True)
class RawHost:
    """A host of `midstream.toml` as it is written. `roles` empty: all."""

    address: str
    roles: tuple[str, ...] = ()


def find_config(given: str = "", folder: str = "") -> str | None:
    """The project file: `given`, or midstream.toml in `folder` (default: here) or above it. Raises OperatorError when
    the given one does not exist."""
    if given:
        path = os.path.join(given, CONFIG_NAME) if os.path.isdir(given) else given
        if not os.path.exists(path):
            raise OperatorError("there is no such project file", where=path, remedy="midstream init writes one")
        return os.path.abspath(path)
    here = os.path.abspath(folder or os.getcwd())
    while True:
        path = os.path.join(here, CONFIG_NAME)
        if os.path.exists(path):
            return path
        above = os.path.dirname(here)
        if above == here:
            return None
        here = above


def take_aim(
    words: Sequence[str] = (), *, config: str = "", app: str = "", socket_path: str = "", only: Only = ALL
) -> Aim:
    """What `[STAGE] [SERVICE…]` means, and which hosts. Raises OperatorError when no stage is named and none of several is
    on this machine.

    Where a socket is named by `--socket`, that agent is asked, whatever the stage's hosts are.
    """
    path = find_config(config)
    table = _peek(path) if path else {}
    stages = _stages_of(table)
    services = tuple(words)
    stage = ""
    if services and services[0] in stages and services[0] not in table.get("services", {}):
        stage, services = services[0], services[1:]
    elif len(stages) == 1:
        stage = next(iter(stages))
    own_app = _app_of(stage, stages, table, path)
    name = app or own_app
    if socket_path or (app and app != own_app):
        return Aim(name, stage, services, (LocalHost(HERE, socket_to_ask(socket_path)),))
    rows = raw_hosts(stages[stage]) if stage else _of_no_stage(stages)
    chosen = choose(rows, only, stage)
    several = len(rows) > 1
    hosts = reach([row.address for row in chosen], of_several=several)
    return Aim(name, stage, services, tuple(hosts.values()), several)


def _peek(path: str) -> dict[str, Any]:
    """The file as it is, or nothing where it cannot be read: the commands that need it say why."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError):
        return {}


def _app_of(stage: str, stages: dict[str, Any], table: dict[str, Any], path: str | None) -> str:
    own = stages.get(stage, {})
    name = (own.get("app") if isinstance(own, dict) else None) or table.get("app")
    if isinstance(name, str):
        return name
    if not table or path is None:
        return ""
    from midstream.core.config import app_name

    return app_name(os.path.basename(os.path.dirname(path)))


def _stages_of(table: dict[str, Any]) -> dict[str, Any]:
    stages = table.get("stages", {})
    return stages if isinstance(stages, dict) else {}


def raw_stages(path: str) -> dict[str, Any]:
    """name -> raw table, of the stages of a project file; empty where it cannot be read."""
    return _stages_of(_peek(path))


def raw_hosts(stage: Any) -> tuple[RawHost, ...]:
    """The hosts of a stage's raw table; one without address for a stage without hosts, which is this machine."""
    hosts = stage.get("hosts", []) if isinstance(stage, dict) else []
    rows = [_raw_host(host) for host in (hosts if isinstance(hosts, list) else []) if host != {}]
    return tuple(rows) or (RawHost(""),)


def _raw_host(host: Any) -> RawHost:
    if not isinstance(host, dict):
        return RawHost(str(host))
    roles = host.get("roles", ())
    several = [roles] if isinstance(roles, str) else roles
    return RawHost(str(host.get("address", "")), tuple(map(str, several if isinstance(several, list | tuple) else ())))


def _of_no_stage(stages: dict[str, Any]) -> tuple[RawHost, ...]:
    """Where several stages could be meant, this machine is, if any of them is on it."""
    addresses = [row.address for table in stages.values() for row in raw_hosts(table)]
    if addresses and not os.environ.get("MIDSTREAM_SOCKET") and not any(is_here(address) for address in addresses):
        raise OperatorError("which stage?", remedy=f"choose from {', '.join(stages)}")
    return (RawHost(""),)


def only_app(client: SyncClient, app: str) -> str:
    """`app`, or the only one that the agent has. Raises OperatorError."""
    if app:
        return app
    names = [str(row["app"]) for row in client.call("status")["apps"]]
    if len(names) == 1:
        return names[0]
    raise OperatorError(
        "which app?" if names else "the agent has no app yet",
        detail="the agent has " + ", ".join(names) if names else "",
        remedy="name one with --app, or call it in the project's folder" if names else "midstream deploy brings one",
    )
