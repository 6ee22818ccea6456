"""What a command is about: the app, the stage, the services, and the agent to ask. From the words of the command line,
`midstream.toml` where there is one, and what the agent knows.

Reads only a few keys of the file, without checking it: a mistake in a build step must not stop `midstream status`.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from midstream.cli.places import socket_to_ask
from midstream.deploy.sync_client import SyncClient, connect
from midstream.errors import OperatorError

CONFIG_NAME = "midstream.toml"
_HERE = ("", "localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Aim:
    """`app` and `stage` may be "": not said. `services` empty: all."""

    app: str
    stage: str
    services: tuple[str, ...]
    socket: str

    def connect(self) -> SyncClient:
        """A client of the agent. Raises HostError."""
        return connect(self.socket)


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


def take_aim(words: Sequence[str] = (), *, config: str = "", app: str = "", socket_path: str = "") -> Aim:
    """What `[STAGE] [SERVICE…]` means. Raises OperatorError for a stage whose hosts are not this machine.

    Where a socket is named, it is believed: that agent is asked, whatever the stage's hosts are.
    """
    path = find_config(config)
    table = _peek(path) if path else {}
    raw_stages = table.get("stages", {})
    stages: dict[str, Any] = raw_stages if isinstance(raw_stages, dict) else {}
    services = tuple(words)
    stage = ""
    if services and services[0] in stages and services[0] not in table.get("services", {}):
        stage, services = services[0], services[1:]
    elif len(stages) == 1:
        stage = next(iter(stages))
    named = bool(socket_path or os.environ.get("MIDSTREAM_SOCKET"))
    if not named and not app:
        _refuse_elsewhere(stage, stages)
    name = app or _app_of(stage, stages, table, path)
    return Aim(name, stage, services, socket_to_ask(socket_path))


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


def is_here(address: str) -> bool:
    """Whether a host's address in midstream.toml means this machine."""
    name = address.rpartition("@")[2]
    return name in _HERE or name in (socket.gethostname(), socket.getfqdn() if "." in name else "")


def addresses(stage: Any) -> list[str]:
    """The host addresses of a stage's raw table; [""] for a stage without hosts, which is this machine."""
    hosts = stage.get("hosts", []) if isinstance(stage, dict) else []
    found = [host if isinstance(host, str) else str(host.get("address", "")) for host in hosts if host != {}]
    return found or [""]


def _refuse_elsewhere(stage: str, stages: dict[str, Any]) -> None:
    asked = [stages[stage]] if stage else list(stages.values())
    elsewhere = [address for table in asked for address in addresses(table) if not is_here(address)]
    if elsewhere and (stage or all(not is_here(a) for table in asked for a in addresses(table))):
        raise elsewhere_error(stage, elsewhere)


def elsewhere_error(stage: str, elsewhere: Sequence[str]) -> OperatorError:
    return OperatorError(
        f"stage {stage} is on {', '.join(elsewhere)}; this version reaches only the agent of the machine it runs on"
        if stage
        else f"no stage is on this machine, but on {', '.join(elsewhere)}",
        remedy="run the command there, or name an agent with --socket",
    )


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
