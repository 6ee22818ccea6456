"""What keeper and agent say to each other: the frozen shapes of the keeper protocol, version 1.

Transport: a SOCK_SEQPACKET unix socket `keeper.sock` in the runtime folder; one JSON object a message, at most
`MESSAGE_MAX_BYTES`, at most `FDS_MAX` descriptors in its ancillary data. The agent sends one request and waits for its
one reply before the next: `{"id": n, "op": "...", ...}` -> `{"id": n, "ok": {...}}` or
`{"id": n, "error": {"code": "...", "what": "..."}}`. Between replies the keeper may send `{"changed": seq}` (level
triggered: at most one unread) and, once, `{"stopping": true}`. Long answers wait in the keeper's table and are pulled
in pages.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

PROTOCOL = 1
MESSAGE_MAX_BYTES = 160 * 1024
FDS_MAX = 250
SPECS_MAX = 250  # in one spawn request
SLOTS_MAX = FDS_MAX // 3  # in one slots request


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
    """One process to start. Paths absolute. uid/gid None: the keeper's own. cgroup: a folder below the keeper's.

    Descriptors 0, 1 and 2 that are not placed are /dev/null."""

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
    """One row of the keeper's table. Times are CLOCK_BOOTTIME seconds. `code` is the exit code, `signum` the signal
    that ended it; both None when unknown. `by` says who started it: `agent` or `order` (a standing order)."""

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
    `tcp://127.0.0.1:0`). The rest is for unix sockets: mode and owner of the file, and as_uid/as_gid, whose rights apply
    on the way to it (None: the keeper's own)."""

    name: str
    address: str
    backlog: int = 2048
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    as_uid: int | None = None
    as_gid: int | None = None


@dataclass(frozen=True, slots=True)
class StandingOrder:
    """While no agent is attached, an instance of this slot that dies is started again from `spec`, at most once a
    second, with the next attempt number in its key. at_once: the first time also while an agent is attached, if the
    process ran over a second."""

    slot: str  # str(SlotName)
    spec: SpawnSpec
    at_once: bool = False


class Held(enum.Enum):
    """What the keeper holds by name beside processes. ORDER is listed in the inventory only."""

    LISTENER = "listener"
    CHANNEL = "channel"
    NOTIFY = "notify"
    ORDER = "order"


# Requests: the fields beside `id`, `op` and (where the operation changes something) `epoch`. What is said here of an
# operation holds for the real keeper and for `testing.fake_keeper`; `tests/contract/test_keeper.py` runs both.


@dataclass(frozen=True, slots=True)
class HelloRequest:
    """Attach: the newest hello wins and gets the next epoch; every older epoch is `stale_epoch` from then on."""

    protocol: int
    version: str = ""


@dataclass(frozen=True, slots=True)
class PingRequest:
    """Nothing but a sign of life; an attached agent that is silent for 60 s is killed."""


@dataclass(frozen=True, slots=True)
class PullRequest:
    """Entries whose seq is greater than `after`, ascending. `limit` may be cut so that the page fits in a message."""

    after: int = 0
    limit: int = 500


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    """Start each; idempotent by key. Descriptors named `passed:I` travel with the message."""

    specs: tuple[SpawnSpec, ...]


@dataclass(frozen=True, slots=True)
class SignalRequest:
    """Send `signum` to the process, or with `tree` to every process of its tree."""

    key: str
    signum: int
    tree: bool = False


@dataclass(frozen=True, slots=True)
class KillTreeRequest:
    """SIGKILL to the whole tree, to a fixpoint; works after the first process has ended, until it is acknowledged."""

    key: str


@dataclass(frozen=True, slots=True)
class AckRequest:
    """Forget these entries. Those that have not ended are kept and returned."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListenRequest:
    """Bind and hold. The same name and address again is answered with the socket that is held already."""

    listener: ListenerSpec


@dataclass(frozen=True, slots=True)
class NameRequest:
    """One held thing: `unlisten`, `unchannel`, `unnotify`."""

    name: str


@dataclass(frozen=True, slots=True)
class TakeRequest:
    """Duplicates of held descriptors, at most FDS_MAX names. Unknown names come back as `missing`."""

    kind: Held
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GiveRequest:
    """One descriptor (in the ancillary data) that a new keeper lacks. What it holds already is left as it is."""

    kind: Held
    name: str
    listener: ListenerSpec | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class InventoryRequest:
    """Names held, ordered by (kind, name), those after `after` (`"kind name"`, empty at first)."""

    after: str = ""


@dataclass(frozen=True, slots=True)
class ChannelRequest:
    """A named FIFO that the uid may write to; held open for reading and writing."""

    name: str
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class NotifyRequest:
    """A notify socket (unix DGRAM, SO_PASSCRED) that the uid may send to."""

    name: str
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class SlotOpening:
    """What one slot is heard by: its channel, its notify socket, and with `ready` its channel `NAME/ready`."""

    name: str
    uid: int | None = None
    gid: int | None = None
    ready: bool = False


@dataclass(frozen=True, slots=True)
class SlotsRequest:
    """`channel` and `notify` for many slots at once, at most SLOTS_MAX. Refused as a whole."""

    slots: tuple[SlotOpening, ...]


@dataclass(frozen=True, slots=True)
class NoticesRequest:
    """What the keeper read from notify sockets while no agent was attached; `clear` forgets these names first."""

    clear: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpoolRequest:
    """What the keeper read from a channel meanwhile, in a memfd; stays until asked again with `clear`."""

    name: str
    clear: bool = False


@dataclass(frozen=True, slots=True)
class OrdersRequest:
    """Revoke, then set. Both are in force when the reply arrives."""

    set: tuple[StandingOrder, ...] = ()
    revoke: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AgentCommandRequest:
    """What to start when the agent is gone, from now on."""

    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """Become the keeper image at `path`, in place. Refused, with the reason, when it cannot read our state."""

    path: str


@dataclass(frozen=True, slots=True)
class ShutdownRequest:
    """Ordered stop of everything: TERM to the trees, KILL after `timeout_s`, then the keeper exits with 0."""

    timeout_s: float = 30.0


REQUESTS: dict[str, type] = {
    "hello": HelloRequest,
    "ping": PingRequest,
    "pull": PullRequest,
    "spawn": SpawnRequest,
    "signal": SignalRequest,
    "kill_tree": KillTreeRequest,
    "ack": AckRequest,
    "listen": ListenRequest,
    "unlisten": NameRequest,
    "take": TakeRequest,
    "give": GiveRequest,
    "inventory": InventoryRequest,
    "channel": ChannelRequest,
    "unchannel": NameRequest,
    "notify": NotifyRequest,
    "unnotify": NameRequest,
    "slots": SlotsRequest,
    "notices": NoticesRequest,
    "spool": SpoolRequest,
    "orders": OrdersRequest,
    "agent_command": AgentCommandRequest,
    "upgrade": UpgradeRequest,
    "shutdown": ShutdownRequest,
}

# Operations that need no epoch: they change nothing, or (hello) make one.
READING = frozenset({"hello", "ping", "pull", "inventory"})


# Replies.


@dataclass(frozen=True, slots=True)
class Hello:
    """`instance` names this run of the keeper: when it differs from the last one, pull from 0 and supply what the new
    keeper lacks. `notes`: what it cannot do here and why (no cgroup, runtime folder full)."""

    protocol: int
    version: str
    epoch: int
    pid: int
    boot_id: str
    seq: int
    uid: int
    instance: str
    keeper_id: str
    cgroup: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The reply of operations that have nothing to tell."""


@dataclass(frozen=True, slots=True)
class Page:
    entries: tuple[ProcessEntry, ...]
    seq: int
    more: bool = False


@dataclass(frozen=True, slots=True)
class SpawnResult:
    """`known`: this key was spawned before; nothing was started now. Not `ok`: nothing was started, `error` says why
    (a fork that failed is in the table as FAILED too)."""

    key: str
    ok: bool = True
    known: bool = False
    pid: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Spawned:
    results: tuple[SpawnResult, ...]


@dataclass(frozen=True, slots=True)
class Signalled:
    """How many processes got it; 0: it has ended already."""

    count: int


@dataclass(frozen=True, slots=True)
class TreeKilled:
    """`unattributed`: live orphans of unknown origin (children of the keeper that no key explains)."""

    killed: int
    unattributed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Acked:
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Listening:
    """`address` as bound (the real port for port 0, the real path for `private`). One descriptor comes with it."""

    address: str
    inode: int


@dataclass(frozen=True, slots=True)
class Taken:
    """`names` in the order of the descriptors."""

    names: tuple[str, ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """`known`: it held that already."""

    known: bool = False


@dataclass(frozen=True, slots=True)
class HeldItem:
    """One row of the inventory. For channels `spooled` and `dropped` count bytes, for notify sockets `spooled` is 1
    when there are notices. `held` is false for what is known from the last keeper but not recovered yet: give it."""

    kind: Held
    name: str
    address: str = ""
    inode: int = 0
    spooled: int = 0
    dropped: int = 0
    held: bool = True


@dataclass(frozen=True, slots=True)
class Inventory:
    items: tuple[HeldItem, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """A channel or notify socket: one descriptor comes with it."""

    path: str


@dataclass(frozen=True, slots=True)
class Notice:
    """The last word of one variable on one notify socket, and who said it (SCM_CREDENTIALS)."""

    variable: str
    value: str
    pid: int
    uid: int
    at_s: float


@dataclass(frozen=True, slots=True)
class NoticesOf:
    name: str
    notices: tuple[Notice, ...]


@dataclass(frozen=True, slots=True)
class Notices:
    items: tuple[NoticesOf, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class Spool:
    """`size_bytes` in the memfd that comes with it; `dropped_bytes` were lost before them."""

    size_bytes: int
    dropped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Upgraded:
    version: str


REPLIES: dict[str, type] = {
    "hello": Hello,
    "ping": Done,
    "pull": Page,
    "spawn": Spawned,
    "signal": Signalled,
    "kill_tree": TreeKilled,
    "ack": Acked,
    "listen": Listening,
    "unlisten": Done,
    "take": Taken,
    "give": Given,
    "inventory": Inventory,
    "channel": Opened,
    "unchannel": Done,
    "notify": Opened,
    "unnotify": Done,
    "slots": Done,
    "notices": Notices,
    "spool": Spool,
    "orders": Done,
    "agent_command": Done,
    "upgrade": Upgraded,
    "shutdown": Done,
}


class Refusal(enum.Enum):
    """The `code` of an error reply. A refused request has changed nothing and kept no descriptor."""

    BAD_REQUEST = "bad_request"  # not JSON, wrong types, unknown operation, too long, too many descriptors
    STALE_EPOCH = "stale_epoch"  # a newer agent is attached
    PROTOCOL = "protocol"  # hello with a protocol that is not spoken here
    UNKNOWN = "unknown"  # no such key or name
    TAKEN = "taken"  # the name is held for another address
    OS = "os"  # a system call failed; `errno` has its name, `holder` who has the address
    STOPPING = "stopping"  # the ordered stop has begun
    IMAGE = "image"  # the new keeper image was refused
    BUG = "bug"  # the keeper failed where it should not; its log says where
