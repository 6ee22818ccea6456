"""What the deployer asks of a host and what it hears: values that cross the ssh connection as JSON lines. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

INSTALL = "install"
UPGRADE = "upgrade"


class ServiceKind(Enum):
    """Who starts the agent on a host. `auto`: whichever of the others is there."""

    AUTO = "auto"
    SYSTEMD = "systemd"
    RUNIT = "runit"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder to be made when it is missing, for that user."""

    path: str
    owner: str


@dataclass(frozen=True, slots=True)
class Request:
    """`name`: VERSION-HASH of the program that carries it out. `allow`: as for `agent allow`."""

    action: str
    name: str
    version: str
    service: ServiceKind = ServiceKind.AUTO
    allow: tuple[str, ...] = ()
    folders: tuple[Folder, ...] = ()
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """`state`: ok (it was so already), done, would (be done, but for --dry-run), note (somebody should know)."""

    step: str
    state: str
    text: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """How it ended on one host. Versions of the agent; `before` is "" when none ran."""

    before: str
    after: str
    changed: int
    service: str
    rootless: bool
    pid: int = 0
    keeper_pid: int = 0
