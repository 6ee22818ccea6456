"""What keeper and agent say to each other: the frozen shapes of the keeper protocol, version 1.

Transport: a SOCK_SEQPACKET unix socket `keeper.sock` in the runtime folder; one JSON object a message, at most
`MESSAGE_MAX_BYTES`, at most `FDS_MAX` descriptors in its ancillary data. The agent sends one request and waits for its
one reply before the next: `{"id": n, "op": "...", ...}` -> `{"id": n, "ok": {...}}` or
`{"id": n, "error": {"code": "...", "what": "..."}}`. Between replies the keeper may send `{"changed": seq}` (level
triggered: at most one unread). Long answers wait in the keeper's table and are pulled in pages.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

PROTOCOL = 1
MESSAGE_MAX_BYTES = 160 * 1024
FDS_MAX = 250


class ProcessKind(enum.Enum):
    INSTANCE = "instance"
    ONE_SHOT = "one_shot"


class ProcessState(enum.Enum):
    """STARTING: forked, not yet exec'd. FAILED: fork or exec did not succeed (see `error`). LOST: it is gone and
    nobody saw how (it was not our child when it ended)."""

    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"
    FAILED = "failed"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class FdPlacement:
    """Put one descriptor at `target` in the child. `source` is `listener:NAME`, `channel:NAME`, `notify:NAME`,
    `passed:I` (the I-th descriptor in the message) or `null`."""

    target: int
    source: str


@dataclass(frozen=True, slots=True)
class SpawnSpec:
    """One process to start. Paths absolute. uid/gid None: the keeper's own. cgroup: a folder name below the keeper's."""

    key: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    kind: ProcessKind = ProcessKind.INSTANCE
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    umask: int | None = None
    nice: int | None = None
    rlimits: dict[str, tuple[int, int]] = field(default_factory=dict)  # "nofile" -> (soft, hard); -1 is unlimited
    no_new_privileges: bool = False
    cgroup: str | None = None
    fds: tuple[FdPlacement, ...] = ()
    listen_pid: bool = False  # set LISTEN_PID to the child's own pid just before the exec
    notify: str | None = None  # name of a notify socket; sets NOTIFY_SOCKET to its path


@dataclass(frozen=True, slots=True)
class ProcessEntry:
    """One row of the keeper's table. Times are CLOCK_BOOTTIME seconds. `code` is the exit code, `signum` the signal that
    ended it; both None when unknown. `by` says who started it: `agent` or `order` (a standing order)."""

    key: str
    kind: ProcessKind
    state: ProcessState
    seq: int
    pid: int = 0
    start_ticks: int = 0  # field 22 of /proc/PID/stat: with the boot id it names a process for ever
    code: int | None = None
    signum: int | None = None
    error: str = ""
    error_stage: str = ""  # "fork", "fds", "user", "cwd", "exec", ...
    by: str = "agent"
    started_s: float = 0.0
    ended_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """A socket to be bound by the keeper and held for life. `address`: `tcp://HOST:PORT`, `tcp://[V6]:PORT`,
    `unix:///PATH` or `private` (an abstract-free unix socket in the runtime folder, or loopback TCP port 0 with
    `tcp://127.0.0.1:0`). mode/uid/gid are for unix sockets."""

    name: str
    address: str
    backlog: int = 2048
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class StandingOrder:
    """While no agent is attached, an instance of this slot that dies is started again from `spec`, at most once a
    second, with the next attempt number in its key."""

    slot: str  # str(SlotName)
    spec: SpawnSpec
