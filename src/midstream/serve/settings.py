"""Every setting of `midstream serve`, declared once: the class body below is the table.

From it come the options of the command line, the names in the environment and in TOML, gunicorn's names, the checks,
the page docs/serve.md and what master and zygote tell each other. What must not live here: reading of any of these
(`options.py`), the text forms of values (`setting_values.py`), I/O. Runs in master, zygote and workers; standard
library only.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

ENVIRONMENT_PREFIX = "MIDSTREAM_SERVE_"


class Kind(enum.Enum):
    """How the text of a value is read; see `setting_values.py`."""

    TEXT = "text"
    CHOICE = "choice"
    WHOLE = "whole"  # int
    SECONDS = "seconds"  # float; "90", "1m30s"
    SIZE = "size"  # int, bytes; "64KB"
    FLAG = "flag"
    MODE = "mode"  # int, octal; None: not set
    PATH = "path"  # absolute, or as seen from the folder that the server was started in
    WITHIN = "within"  # a path; a relative one is of the release (--chdir), looked up again at each upgrade
    OUTPUT = "output"  # "" off, "-" standard output or error, else a PATH
    BIND = "bind"  # one address; "" off
    MANY = "many"  # tuple of texts
    MANY_PATHS = "many_paths"  # tuple of PATH
    MANY_WITHIN = "many_within"  # tuple of WITHIN
    BINDS = "binds"  # tuple of addresses as `linux.listen.parse` reads them, or fd://N
    STATUSES = "statuses"  # tuple of int


class Group(enum.Enum):
    """Headings of the help and of the page."""

    APP = "The application"
    LISTEN = "Listening"
    WORKERS = "Workers"
    TIMES = "Time-outs and drain"
    UPGRADE = "Upgrades"
    LIMITS = "Limits of a request"
    PROXY = "Behind a proxy"
    TLS = "TLS"
    LOG = "Logs and metrics"
    ASGI = "WebSockets and lifespan"
    PROCESS = "The process"
    DEVELOPMENT = "Development"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is declared about one setting. name: the attribute of Settings. options: ours first, then those of gunicorn
    and others that mean the same. gunicorn: its name in gunicorn.conf.py where it is another than `key`; understood in
    TOML. environment: variables beside our own. least, most: bounds of a number, in its unit."""

    name: str
    kind: Kind
    group: Group
    default: Any
    options: tuple[str, ...]
    help: str
    gunicorn: str = ""
    environment: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    least: float = 0
    most: float = 2**53

    @property
    def key(self) -> str:
        """Its name in TOML: that of its first long option, with underscores."""
        long = next(option for option in self.options if option.startswith("--"))
        return long[2:].replace("-", "_")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.key.upper()

    @property
    def repeats(self) -> bool:
        """Whether the option may be given several times."""
        return self.kind in (Kind.MANY, Kind.MANY_PATHS, Kind.MANY_WITHIN, Kind.BINDS, Kind.STATUSES)


def _is(default: Any, kind: Kind, group: Group, options: str, help: str, **more: Any) -> Any:
    """One row of the table. options: separated by blanks."""
    return field(
        default=default,
        metadata={"kind": kind, "group": group, "options": tuple(options.split()), "help": help, **more},
    )


_A, _L, _W, _T, _U, _R = Group.APP, Group.LISTEN, Group.WORKERS, Group.TIMES, Group.UPGRADE, Group.LIMITS
_P, _S, _O, _X, _C, _D = Group.PROXY, Group.TLS, Group.LOG, Group.ASGI, Group.PROCESS, Group.DEVELOPMENT


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one server, whole and checked. Times in seconds, 0 switches a time-out off unless it says
    otherwise; sizes in bytes."""

    # ---- the application
    app: str = _is(
        "", Kind.TEXT, _A, "--app", "MODULE:NAME of the app, or MODULE:FACTORY() to call", gunicorn="wsgi_app"
    )
    factory: bool = _is(False, Kind.FLAG, _A, "--factory", "NAME is a function without arguments that makes the app")
    interface: str = _is(
        "auto",
        Kind.CHOICE,
        _A,
        "--interface",
        "what the app is; auto looks at it once it is loaded",
        choices=("auto", "wsgi", "asgi"),
    )
    chdir: str = _is(
        ".",
        Kind.PATH,
        _A,
        "--chdir --app-dir",
        "folder of the app, usually a symlink such as current; resolved again at each upgrade",
    )
    python: str = _is(
        "",
        Kind.WITHIN,
        _A,
        "--python",
        "interpreter of the release; default: .venv/bin/python or venv/bin/python in its folder, else the server's own",
    )
    pythonpath: tuple[str, ...] = _is(
        (),
        Kind.MANY_WITHIN,
        _A,
        "--pythonpath",
        "folder to put in front of the import path; may be given several times",
    )
    env: tuple[str, ...] = _is(
        (),
        Kind.MANY,
        _A,
        "-e --env",
        "NAME=VALUE for the app's environment; may be given several times",
        gunicorn="raw_env",
    )
    preload: bool = _is(
        True,
        Kind.FLAG,
        _A,
        "--preload",
        "import the app once, before the workers are forked; --no-preload imports it in each",
        gunicorn="preload_app",
    )
    hooks: str = _is(
        "", Kind.WITHIN, _A, "--hooks", "Python file with before_fork, after_fork, worker_ready … (docs/serve.md)"
    )

    # ---- listening
    bind: tuple[str, ...] = _is(
        ("tcp://127.0.0.1:8000",),
        Kind.BINDS,
        _L,
        "-b --bind",
        "HOST:PORT, [IPV6]:PORT, unix:/PATH or fd://N; may be given several times; ignored where a supervisor "
        "passes sockets (LISTEN_FDS)",
    )
    backlog: int = _is(2048, Kind.WHOLE, _L, "--backlog", "connections that may wait to be accepted", least=1)

    # ---- workers
    workers: int = _is(
        1,
        Kind.WHOLE,
        _W,
        "-w --workers",
        "worker processes; auto: one for each usable CPU",
        least=1,
        most=4096,
        environment=("WEB_CONCURRENCY",),
    )
    threads: int = _is(
        4,
        Kind.WHOLE,
        _W,
        "--threads",
        "app threads of a worker (WSGI); 1: the app runs inline, for code that is not thread-safe",
        least=1,
        most=1024,
    )
    worker_connections: int = _is(
        1000,
        Kind.WHOLE,
        _W,
        "--worker-connections",
        "open connections at which a worker accepts no further one",
        least=1,
    )
    max_requests: int = _is(
        0, Kind.WHOLE, _W, "--max-requests --limit-max-requests", "replace a worker after so many requests; 0: never"
    )
    max_requests_jitter: int = _is(
        0,
        Kind.WHOLE,
        _W,
        "--max-requests-jitter --limit-max-requests-jitter",
        "add up to so many at random, so that not all are replaced at once",
    )
    max_worker_memory_bytes: int = _is(
        0, Kind.SIZE, _W, "--max-worker-memory", "replace a worker whose resident memory exceeds this; 0: never"
    )

    # ---- times
    timeout_s: float = _is(
        30.0,
        Kind.SECONDS,
        _T,
        "-t --timeout",
        "kill and replace a worker whose loop stands still, or all of whose app threads are busy with no request ending, "
        "for this long; its traceback goes to the log; 0: never",
    )
    graceful_timeout_s: float = _is(
        30.0,
        Kind.SECONDS,
        _T,
        "--graceful-timeout --timeout-graceful-shutdown",
        "how long requests in hand may take when their worker drains; what is cut is counted and said",
    )
    keep_alive_s: float = _is(
        75.0,
        Kind.SECONDS,
        _T,
        "--keep-alive --timeout-keep-alive",
        "how long an idle connection stays open; more than the proxy's own (nginx: 60)",
        gunicorn="keepalive",
    )
    linger_s: float = _is(
        65.0,
        Kind.SECONDS,
        _T,
        "--linger",
        "how long a draining worker keeps idle connections open and answers late requests on them; more than the "
        "proxy's own keep-alive (nginx: 60); 0 closes them at once and loses requests",
    )
    header_timeout_s: float = _is(
        20.0,
        Kind.SECONDS,
        _T,
        "--header-timeout",
        "from the first byte of a request to the end of its headers; then 408",
    )
    body_timeout_s: float = _is(
        60.0, Kind.SECONDS, _T, "--body-timeout", "longest silence of a client within a body; then 408"
    )
    write_timeout_s: float = _is(
        60.0, Kind.SECONDS, _T, "--write-timeout", "longest time that a client reads nothing of its answer; then closed"
    )

    # ---- upgrades
    boot_timeout_s: float = _is(
        60.0,
        Kind.SECONDS,
        _U,
        "--boot-timeout",
        "how long a release may take from its start until all its workers are ready; then it has failed",
    )
    health_path: str = _is(
        "",
        Kind.TEXT,
        _U,
        "--health-path",
        "path that a new release must answer before it gets traffic; empty: not asked",
    )
    health_host: str = _is(
        "localhost", Kind.TEXT, _U, "--health-host", "Host header of that request (Django: one of ALLOWED_HOSTS)"
    )
    health_scheme: str = _is(
        "http",
        Kind.CHOICE,
        _U,
        "--health-scheme",
        "https sends X-Forwarded-Proto: https (Django: SECURE_PROXY_SSL_HEADER)",
        choices=("http", "https"),
    )
    health_headers: tuple[str, ...] = _is(
        (), Kind.MANY, _U, "--health-header", '"NAME: VALUE" to send as well; may be given several times'
    )
    health_status: tuple[int, ...] = _is(
        (),
        Kind.STATUSES,
        _U,
        "--health-status",
        "status that is healthy; may be given several times; default: any 2xx",
        least=100,
        most=599,
    )
    signals: str = _is(
        "midstream",
        Kind.CHOICE,
        _U,
        "--signals",
        "what signals mean: our own table, or that of Unicorn or gunicorn (SIGNALS.md)",
        choices=("midstream", "unicorn", "gunicorn"),
    )

    # ---- limits
    limit_request_line: int = _is(
        8190, Kind.WHOLE, _R, "--limit-request-line", "bytes of the request line; then 414", least=16, most=2**24
    )
    limit_request_fields: int = _is(
        100, Kind.WHOLE, _R, "--limit-request-fields", "header fields; then 431", least=1, most=2**16
    )
    limit_request_field_size: int = _is(
        8190,
        Kind.WHOLE,
        _R,
        "--limit-request-field-size --limit-request-field_size",
        "bytes of one header field, name and value; then 431",
        least=16,
        most=2**24,
    )
    limit_header_bytes: int = _is(
        65536, Kind.SIZE, _R, "--limit-header", "bytes of all header fields together; then 431", least=256, most=2**28
    )
    limit_body_bytes: int = _is(1024**3, Kind.SIZE, _R, "--limit-body", "bytes of a body; then 413; 0: no limit")
    body_memory_bytes: int = _is(
        1024**2,
        Kind.SIZE,
        _R,
        "--body-memory",
        "bytes of a body that are kept in memory, and 16 times as many of all bodies of a worker; others go to a file in "
        "TMPDIR (WSGI)",
    )

    # ---- proxy
    forwarded_allow_ips: tuple[str, ...] = _is(
        ("127.0.0.1", "::1", "unix"),
        Kind.MANY,
        _P,
        "--forwarded-allow-ips",
        "peers whose X-Forwarded-For and X-Forwarded-Proto count: addresses, networks, unix, * (all), separated by "
        "commas",
        environment=("FORWARDED_ALLOW_IPS",),
    )
    hosts: tuple[str, ...] = _is(
        (),
        Kind.MANY,
        _P,
        "--allowed-hosts",
        "names that the Host header may have, .example.com for all below; others get 400; default: any that is well "
        "formed",
    )
    url_scheme: str = _is(
        "",
        Kind.CHOICE,
        _P,
        "--url-scheme",
        "scheme of the app's URLs; default: https on a TLS connection or when a trusted proxy says so, else http",
        choices=("", "http", "https"),
    )
    script_name: str = _is(
        "",
        Kind.TEXT,
        _P,
        "--script-name --root-path",
        "path below which a proxy shows the app (SCRIPT_NAME, root_path)",
        gunicorn="root_path",
        environment=("SCRIPT_NAME",),
    )
    release_header: str = _is(
        "X-Release", Kind.TEXT, _P, "--release-header", "response header that names the release; empty: none"
    )
    server_header: str = _is("", Kind.TEXT, _P, "--server-header", "value of the Server header; empty: none")

    # ---- TLS
    certfile: str = _is("", Kind.PATH, _S, "--certfile --ssl-certfile", "certificate chain (PEM); switches TLS on")
    keyfile: str = _is(
        "", Kind.PATH, _S, "--keyfile --ssl-keyfile", "its private key; default: in the certificate's file"
    )
    ca_certs: str = _is(
        "", Kind.PATH, _S, "--ca-certs --ssl-ca-certs", "authorities; clients must then show a certificate of theirs"
    )

    # ---- logs and metrics
    access_log: str = _is(
        "",
        Kind.OUTPUT,
        _O,
        "--access-log --access-logfile",
        "a line for each request: a file, - for standard output; empty: none",
        gunicorn="accesslog",
    )
    access_log_format: str = _is(
        "combined",
        Kind.TEXT,
        _O,
        "--access-log-format --access-logformat",
        "combined, json, or atoms of gunicorn's such as %(h)s %(s)s %(M)s",
    )
    error_log: str = _is(
        "-",
        Kind.OUTPUT,
        _O,
        "--error-log --error-logfile --log-file",
        "what the server and the app's tracebacks say: a file, - for standard error",
        gunicorn="errorlog",
    )
    log_level: str = _is(
        "info",
        Kind.CHOICE,
        _O,
        "--log-level",
        "least severity that is written",
        gunicorn="loglevel",
        choices=("debug", "info", "warning", "error", "critical"),
    )
    metrics: str = _is(
        "",
        Kind.BIND,
        _O,
        "--metrics",
        "address at which GET /metrics answers for all workers (Prometheus); empty: none",
    )

    # ---- ASGI
    lifespan: str = _is(
        "auto",
        Kind.CHOICE,
        _X,
        "--lifespan",
        "the app's start-up and shutdown, once in each worker; auto: where it knows them",
        gunicorn="asgi_lifespan",
        choices=("auto", "on", "off"),
    )
    ws_max_size_bytes: int = _is(
        16 * 1024**2,
        Kind.SIZE,
        _X,
        "--ws-max-size",
        "bytes of a WebSocket message",
        gunicorn="websocket_max_message_size",
        least=1,
    )
    ws_ping_interval_s: float = _is(
        20.0, Kind.SECONDS, _X, "--ws-ping-interval", "how often an idle WebSocket is pinged; 0: never"
    )
    ws_ping_timeout_s: float = _is(
        20.0, Kind.SECONDS, _X, "--ws-ping-timeout", "how long its pong may take before it is closed; 0: for ever"
    )

    # ---- the process
    user: str = _is("", Kind.TEXT, _C, "-u --user", "user of the zygote and workers; needs root")
    group: str = _is("", Kind.TEXT, _C, "-g --group", "their group; default: the user's own")
    umask: int | None = _is(None, Kind.MODE, _C, "-m --umask", "their umask, octal; default: as it was")
    pid_file: str = _is(
        "",
        Kind.PATH,
        _C,
        "-p --pid",
        "file to write the master's pid to; for other programs, the server itself reads none",
        gunicorn="pidfile",
    )
    proc_name: str = _is("", Kind.TEXT, _C, "-n --name", "word for the process titles; default: the app")
    proc_title: bool = _is(
        True,
        Kind.FLAG,
        _C,
        "--proc-title",
        "processes are titled with their part, release and generation; --no-proc-title leaves the command line",
    )

    # ---- development
    reload: bool = _is(
        False, Kind.FLAG, _D, "--reload", "upgrade whenever a source file changes; for development (needs watchfiles)"
    )
    reload_paths: tuple[str, ...] = _is(
        (),
        Kind.MANY_PATHS,
        _D,
        "--reload-path --reload-dir --reload-extra-file",
        "further file or folder to watch; may be given several times",
        gunicorn="reload_extra_files",
    )

    def to_json(self) -> dict[str, Any]:
        """All settings as JSON values, for a message; tuples are lists."""
        values = ((setting.name, getattr(self, setting.name)) for setting in TABLE)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """What `to_json` of this version, the one before or the next one made: what is not known is passed over, what is
        missing has its default. Raises ValueError that names a setting whose value is of another type."""
        found: dict[str, Any] = {}
        for setting in TABLE:
            if setting.name not in data:
                continue
            value = data[setting.name]
            value = tuple(value) if isinstance(value, list) else value
            if not _is_of(setting, value):
                raise ValueError(f"setting {setting.name}: {value!r} is no {setting.kind.value}")
            found[setting.name] = value
        return cls(**found)


def _is_of(setting: Setting, value: object) -> bool:
    """Whether it may be the setting's value, going by its type alone."""
    match setting.kind:
        case Kind.FLAG:
            return isinstance(value, bool)
        case Kind.WHOLE | Kind.SIZE:
            return isinstance(value, int) and not isinstance(value, bool)
        case Kind.SECONDS:
            return isinstance(value, int | float) and not isinstance(value, bool)
        case Kind.MODE:
            return value is None or (isinstance(value, int) and not isinstance(value, bool))
        case Kind.STATUSES:
            return isinstance(value, tuple) and all(isinstance(item, int) for item in value)
        case Kind.MANY | Kind.MANY_PATHS | Kind.MANY_WITHIN | Kind.BINDS:
            return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        case _:
            return isinstance(value, str)


TABLE: tuple[Setting, ...] = tuple(
    Setting(name=item.name, default=item.default, **item.metadata) for item in fields(Settings)
)
