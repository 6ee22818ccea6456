"""What an app is, resolved: the frozen values that configuration becomes and that every program works from.

Pure. One `AppSpec` describes one app on one host, with nothing left to look up but secrets: stage and host overrides are
applied, defaults filled in, durations are seconds, sizes bytes, commands argv. It is stored with the release, and a
rollback uses the stored one. Each setting is declared here once; `core/config.py` reads it from `midstream.toml`, the
reference page and `--help` are drawn from the same fields.
"""

from __future__ import annotations

import enum
from dataclasses import field

from midstream.core.values import dataclass


class HandoverPolicy(enum.Enum):
    """How a generation is replaced (DESIGN 3). `overlap`: new proven, then old drained. `drain`: for workers: old quiet,
    new fetches, old finishes its jobs. `replace`: old stopped, then new started, for what cannot run twice."""

    OVERLAP = "overlap"
    DRAIN = "drain"
    REPLACE = "replace"


class Readiness(enum.Enum):
    """How an instance says that it is ready. `notify`: sd_notify READY=1. `fd`: a newline on `{ready_fd}` (s6).
    `health`: its health check is answered. `listening`: its tree holds all listeners. `alive`: it ran for `min_uptime`.
    `heartbeat`: its job library lists it as a worker."""

    NOTIFY = "notify"
    FD = "fd"
    HEALTH = "health"
    LISTENING = "listening"
    ALIVE = "alive"
    HEARTBEAT = "heartbeat"


class Source(enum.Enum):
    """`push`: the deployer sends the objects (no keys on hosts). `fetch`: the host fetches from the repository."""

    PUSH = "push"
    FETCH = "fetch"


@dataclass(frozen=True, slots=True)
class ListenSpec:
    """`tcp://HOST:PORT`, `tcp://[V6]:PORT` or `unix:///PATH` (`{shared}` and `{deploy_to}` are filled in)."""

    address: str
    name: str = ""  # LISTEN_FDNAMES and `{fd:NAME}`; default: the first is "web", others "listen1", …
    backlog: int = 2048
    mode: int | None = None  # of a unix socket, e.g. 0o660
    owner: str = ""  # "user" or "user:group" of a unix socket; default: the app's user


@dataclass(frozen=True, slots=True)
class HealthSpec:
    """One check. Exactly one of http (a path), tcp (True), command (argv; exit 0 is healthy)."""

    http: str = ""
    tcp: bool = False
    command: tuple[str, ...] = ()
    host: str = ""  # Host header; default: the listener's own address
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    status: tuple[int, ...] = ()  # accepted; empty: any 2xx
    contains: str = ""  # text that must be in the body
    timeout_s: float = 5.0
    interval_s: float = 0.0  # 0: only in a handover; else also while running
    failures: int = 3  # consecutive, while running, before a restart
    listener: str = ""  # name of the listener to ask; default the first


@dataclass(frozen=True, slots=True)
class LimitsSpec:
    """Resource limits: name of the rlimit in lower case without RLIMIT_ -> (soft, hard); -1 is unlimited."""

    rlimits: dict[str, tuple[int, int]] = field(default_factory=dict)
    memory_bytes: int | None = None  # resident memory of the tree above which it is restarted
    no_new_privileges: bool = False
    nice: int | None = None
    umask: int | None = None


@dataclass(frozen=True, slots=True)
class LogSpec:
    """Where a service's output goes. The agent's own log files are rotated by size and by age."""

    path: str = ""  # default: the agent's log folder, APP/SERVICE.log
    max_size_bytes: int = 10 * 1024 * 1024
    max_age_s: float = 7 * 86400.0
    keep: int = 10
    timestamps: bool = True


@dataclass(frozen=True, slots=True)
class BackoffSpec:
    """Restart pauses after a crash: first_s, doubling, up to max_s, each with +-jitter; reset after reset_after_s of
    health. A committed generation is never given up on."""

    first_s: float = 0.0
    second_s: float = 0.5
    max_s: float = 30.0
    factor: float = 2.0
    jitter: float = 0.1
    reset_after_s: float = 10.0


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """Environment for build, migrate, hooks, services, exec. `path` entries are put in front of PATH, relative ones
    inside the release. `secrets` names variables whose values are never printed (the values live apart)."""

    path: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()  # env files (KEY=value lines), relative to the release
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One kind of process of the app on this host."""

    name: str
    command: tuple[str, ...]
    shell: bool = False
    profile: str = ""  # "" : recognised from the command; see profiles/
    instances: int = 1
    listen: tuple[ListenSpec, ...] = ()
    roles: tuple[str, ...] = ()
    health: HealthSpec | None = None
    ready: Readiness | None = None  # None: the profile's, else health if there is one, listening, alive
    handover: HandoverPolicy | None = None  # None: the profile's
    soak_s: float = 0.0  # time between proven and committed
    min_healthy_s: float = 0.0  # how long ready and healthy must last to count as proven
    start_timeout_s: float = 60.0  # spawn to ready
    healthy_timeout_s: float = 30.0  # ready to health check answered
    min_uptime_s: float = 1.0  # for ready = "alive"
    drain_timeout_s: float = 60.0  # drain signal to stop
    stop_timeout_s: float = 10.0  # stop signal to SIGKILL of the tree
    stop_signal: str = ""  # "" : the profile's
    reload_signal: str = ""
    surge: int = 0  # new instances that boot at a time; 0: all at once
    max_draining: int = 2
    watchdog_s: float = 0.0  # 0: none; WATCHDOG=1 must come within this time
    redis: str = ""  # where a worker's job library keeps its truth; "" : from its command and environment
    env: EnvSpec = EnvSpec()
    user: str = ""  # "" : the app's user
    group: str = ""
    groups: tuple[str, ...] = ()
    cwd: str = ""  # relative to the release
    limits: LimitsSpec = LimitsSpec()
    log: LogSpec = LogSpec()
    backoff: BackoffSpec = BackoffSpec()
    restart_on: str = "always"  # "always", "failure" (exit code not 0 or a signal), "never"
    ok_codes: tuple[int, ...] = (0,)
    autostart: bool = True
    depends_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CommandStep:
    """A build step, migration or hook: argv (or a shell line when `shell`), run in the release."""

    run: tuple[str, ...]
    shell: bool = False
    timeout_s: float = 1800.0
    env: dict[str, str] = field(default_factory=dict)
    on: str = "each"  # build: "each", "once", "deployer"; hooks: "each", "primary"
    roles: tuple[str, ...] = ()
    name: str = ""
    files: tuple[str, ...] = ()  # of a build that is not made on each host: what is carried to the others
    number: int = 0  # of such a build: its place in the file, counted from 1


@dataclass(frozen=True, slots=True)
class MigrateSpec:
    run: tuple[CommandStep, ...]
    role: str = "db"
    reversible: bool = True
    rerun: bool = False  # may be run again when its end is unknown


@dataclass(frozen=True, slots=True)
class HookSpec:
    """`before` or `after` a phase, a built-in task or `handover`; `undo` runs in every way of failing."""

    when: str  # "before" or "after"
    point: str
    step: CommandStep
    undo: CommandStep | None = None
    number: int = 0  # its place in the file, counted from 0: hosts have different ones of them


@dataclass(frozen=True, slots=True)
class HoldSpec:
    """A service that another supervisor owns, left alone by it for a span of the deploy, and brought to the new release
    within it."""

    supervisor: str
    service: str
    start: str  # `from`: "after check"
    end: str  # `to`: "after finishing"
    ttl_s: float = 900.0
    control: str = ""  # the supervisor's control file; "" : the one it finds itself
    restart: bool = True  # the agent brings it to the new release; else a hook of the project's does
    quiet: str = ""  # signal that a worker is sent before it is stopped; "" : none
    quiet_timeout_s: float = 60.0  # at most so long for its jobs in hand
    min_uptime_s: float = 3.0  # the new process must stay up so long
    roles: tuple[str, ...] = ()  # of the hosts that have it; none: all


@dataclass(frozen=True, slots=True)
class HostSpec:
    address: str  # "" or "localhost": this machine; else what ssh takes
    roles: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AppSpec:
    """One app on one host."""

    app: str
    deploy_to: str
    repository: str
    stage: str = "production"
    branch: str = "main"
    source: Source = Source.PUSH
    repo_tree: str = ""  # only this sub-folder of the repository
    submodules: bool = False
    keep_releases: int = 5
    linked_dirs: tuple[str, ...] = ()
    linked_files: tuple[str, ...] = ()
    user: str = ""  # who owns and builds; "" : owner of deploy_to, or the deployer
    env: EnvSpec = EnvSpec()
    build: tuple[CommandStep, ...] = ()
    migrate: MigrateSpec | None = None
    assets: tuple[str, ...] = ()  # folders in the release published additively into shared/assets
    console: tuple[str, ...] = ()  # the app's own shell, for `midstream console`
    services: dict[str, ServiceSpec] = field(default_factory=dict)
    hooks: tuple[HookSpec, ...] = ()
    holds: tuple[HoldSpec, ...] = ()
    roles: tuple[str, ...] = ()  # of this host
    min_free_bytes: int = 100 * 1024 * 1024
    progress_timeout_s: float = 600.0
    max_parallel: int = 0  # hosts of a wave that are handed over at the same time; 0: all
    auto_revert: bool = True
