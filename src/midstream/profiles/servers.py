"""One profile for each server that Midstream knows, and `recognise`, which picks one for a command.

What lives here: values. What must not: code that acts on them, I/O. Runs in the agent and in `midstream
check`. How each statement was found out, and the measured losses, are in `docs/servers.md`;
`tests/process/test_profiles_real.py` runs the real programs against these values.
"""

from __future__ import annotations

from midstream.core.spec import HandoverPolicy, Readiness
from midstream.errors import OperatorError
from midstream.profiles.profile import (
    BindOption,
    Park,
    Profile,
    Proof,
    Takes,
    UnsafeOption,
    fits,
    in_mode,
    unwrap,
)
from midstream.profiles.workers import WORKERS

_PID_FILE = "a pid file shared by two generations names the wrong one; put it in {run}, or leave it out"
_DAEMON = "the server leaves its parent, so nobody can watch or stop it; run it in the foreground"
_RELOAD = (
    "watching files restarts the server behind the agent's back, half-way through a checkout; for development only"
)
_REUSE_PORT = "a second socket on the port takes connections that are reset when it closes; share the one listener"

_GUNICORN_UNSAFE = (
    UnsafeOption(("-D", "--daemon"), _DAEMON),
    UnsafeOption(("--reload",), _RELOAD),
    UnsafeOption(("-p", "--pid"), _PID_FILE),
    UnsafeOption(("--reuse-port",), "gunicorn then ignores the listener that it was given; " + _REUSE_PORT),
)
_GUNICORN_READY = (
    "gunicorn sends READY=1 before any worker has loaded the app, so ready is a health check (or a "
    "listener held and "
    "accepted on), never `notify`"
)
_GUNICORN_RELOAD = (
    "HUP stops the old workers before the new ones have imported the app, exits altogether when the app "
    "does not load, "
    "and keeps the old release's virtualenv"
)
_GUNICORN_NOTES = (
    "gunicorn ignores `--bind` when it gets LISTEN_FDS",
    "requests longer than `--graceful-timeout` (30 s) are cut at a graceful stop",
    "its control socket (`gunicorn.ctl`, since 25) has one path for all generations and instances: use "
    "`--no-control-socket`, or `--control-socket {run}/gunicorn-{slot}.ctl`",
)


_CLOSES_IDLE = (
    "idle keep-alive connections, and new ones without a request yet, are closed at once: a request sent at that very "
    "moment is lost"
)
_ANSWERS_LATE = (
    "nothing: idle connections live on for `--keep-alive` (2 s), and a late request is answered with "
    "`Connection: close`"
)


def _gunicorn(
    name: str,
    loss: str,
    mode: tuple[tuple[str, str], ...] = (),
    answers_late: bool | None = None,
) -> Profile:
    return Profile(
        name=name,
        programs=("gunicorn",),
        modules=("gunicorn",),
        mode=mode,
        second_listener=True,
        drain_signal="TERM",
        stop_signal="TERM",
        # QUIT lets the workers of gevent and uvicorn and the threads of gthread go on for `--graceful-timeout`, and it
        # was seen to be lost while the master forks its workers.
        quick_signal="KILL",
        reload_signal="HUP",
        reload_unsafe=_GUNICORN_RELOAD,
        readiness_note=_GUNICORN_READY,
        keep_alive_loss=loss,
        answers_late=answers_late,
        non_blocking_listener=True,
        proof=Proof.SECOND,
        unsafe=_GUNICORN_UNSAFE,
        notes=_GUNICORN_NOTES,
        min_version="19.7",
    )


GUNICORN_GEVENT = _gunicorn(
    "gunicorn-gevent",
    _ANSWERS_LATE,
    (("-k", "gevent.*|.*GeventWorker"), ("--worker-class", "gevent.*|.*GeventWorker")),
    answers_late=True,
)
GUNICORN_UVICORN = _gunicorn(
    "gunicorn-uvicorn",
    _CLOSES_IDLE,
    (("-k", r"uvicorn.*"), ("--worker-class", r"uvicorn.*")),
    answers_late=False,
)
GUNICORN_ASGI = _gunicorn(
    "gunicorn-asgi", _ANSWERS_LATE, (("-k", "asgi"), ("--worker-class", "asgi")), answers_late=True
)
GUNICORN_GTHREAD = _gunicorn(
    "gunicorn-gthread",
    _ANSWERS_LATE,
    (("-k", "gthread"), ("--worker-class", "gthread"), ("--threads", "[2-9]|[1-9][0-9]+")),
    answers_late=True,
)
GUNICORN = _gunicorn("gunicorn", "nothing: the sync worker closes each connection after its answer")

_UVICORN_UNSAFE = (UnsafeOption(("--reload",), _RELOAD),)
_UVICORN_BINDS = (BindOption(("--uds",)), BindOption(("--host",)), BindOption(("--port",)))

UVICORN_WORKERS = Profile(
    name="uvicorn-workers",
    programs=("uvicorn",),
    modules=("uvicorn",),
    mode=(("--workers", "[2-9]|[1-9][0-9]+"),),
    takes_listener=Takes.FD_ARGUMENT,
    listener_option=("--fd", "{fd}"),
    bind_options=_UVICORN_BINDS,
    reload_signal="HUP",
    reload_unsafe=("HUP starts workers from the old working folder and interpreter: it never loads a new release"),
    keep_alive_loss=_CLOSES_IDLE,
    answers_late=False,
    non_blocking_listener=True,
    unsafe=_UVICORN_UNSAFE,
    notes=(
        "without `--timeout-graceful-shutdown` it waits for its last request without end; the stop time-out cuts it",
        "with `--http` and docs/recipes/uvicorn_draining.py it closes no connection on which a request may be on its way",
    ),
)
UVICORN = Profile(
    name="uvicorn",
    programs=("uvicorn",),
    modules=("uvicorn",),
    takes_listener=Takes.FD_ARGUMENT,
    listener_option=("--fd", "{fd}"),
    bind_options=_UVICORN_BINDS,
    keep_alive_loss=_CLOSES_IDLE,
    answers_late=False,
    non_blocking_listener=True,
    unsafe=_UVICORN_UNSAFE,
    notes=UVICORN_WORKERS.notes,
)

HYPERCORN = Profile(
    name="hypercorn",
    programs=("hypercorn",),
    modules=("hypercorn",),
    takes_listener=Takes.FD_ARGUMENT,
    second_listener=True,
    listener_option=("--bind", "fd://{fd}"),
    bind_options=(BindOption(("-b", "--bind")),),
    reload_signal="HUP",
    reload_unsafe="HUP stops all workers before it starts new ones, from the old working folder",
    keep_alive_loss=_CLOSES_IDLE,
    answers_late=False,
    non_blocking_listener=True,
    proof=Proof.SECOND,
    unsafe=(
        UnsafeOption(("--reload",), _RELOAD),
        UnsafeOption(("-p", "--pid"), _PID_FILE),
        UnsafeOption(("--daemon",), "its workers then die with the master in the middle of requests"),
        UnsafeOption(
            ("-w", "--workers"),
            "at a graceful stop hypercorn ends all workers by TERM as soon as the first one is idle, in the middle of "
            "their requests; use one worker, and `instances` for more",
            values="[2-9]|[1-9][0-9]+",
        ),
    ),
    notes=("requests longer than `--graceful-timeout` (3 s by default) are cut at a graceful stop: set it higher",),
)

GRANIAN = Profile(
    name="granian",
    programs=("granian",),
    modules=("granian",),
    takes_listener=Takes.NONE,
    reload_signal="HUP",
    reload_unsafe=("HUP loses requests, and serves nobody when the import takes longer than its respawn interval"),
    keep_alive_loss=(
        "its listener closes with it: connections in its queue are reset, new ones refused until the next is up"
    ),
    default_policy=HandoverPolicy.REPLACE,
    proof=Proof.OWN,
    unsafe=(UnsafeOption(("--reload",), _RELOAD), UnsafeOption(("--pid-file",), _PID_FILE)),
    notes=("granian takes no listening socket from outside, so its port is closed while it is replaced",),
)

UWSGI = Profile(
    name="uwsgi",
    programs=("uwsgi", "uwsgi-core", "pyuwsgi"),
    modules=("pyuwsgi",),
    second_listener=True,
    listener_option=("--http-socket", "fd://{fd}"),
    bind_options=(
        BindOption(("--http-socket", "--http11-socket", "--http")),
        BindOption(("-s", "--socket", "--uwsgi-socket"), ("--socket", "fd://{fd}")),
    ),
    always_append=(
        ("unix_signal:15", ("--hook-master-start", "unix_signal:15 gracefully_kill_them_all")),
        ("--die-on-term", ("--die-on-term",)),
    ),
    drain_signal="TERM",
    stop_signal="TERM",
    quick_signal="INT",
    reload_signal="HUP",
    reload_unsafe="a release that does not load answers 500 in place of the old one",
    keep_alive_loss=(
        "nothing by the stop, but http-socket closes each connection unannounced after its answer, so a client "
        "that counts on keep-alive loses a request now and then, at any time"
    ),
    proof=Proof.SECOND,
    unsafe=(
        UnsafeOption(("-d", "--daemonize", "--daemonize2"), _DAEMON),
        UnsafeOption(("--pidfile", "--safe-pidfile"), _PID_FILE),
        UnsafeOption(("--py-autoreload", "--touch-reload"), _RELOAD),
        UnsafeOption(("--reuse-port",), _REUSE_PORT),
    ),
    notes=(
        "`--master` is needed: without it TERM ends requests half-way",
        "TERM means `brutal reload` unless told otherwise, so Midstream adds the hook that makes it a graceful stop",
        "an address bound in an ini file cannot be taken out by Midstream: leave it out there",
    ),
)

WAITRESS = Profile(
    name="waitress",
    programs=("waitress-serve",),
    modules=("waitress",),
    takes_listener=Takes.NONE,
    drain_signal="INT",
    stop_signal="INT",
    quick_signal="TERM",
    keep_alive_loss=(
        "TERM kills it at once; INT waits 5 s for running requests, queued ones and idle connections are lost"
    ),
    default_policy=HandoverPolicy.REPLACE,
    proof=Proof.OWN,
    notes=(
        "waitress-serve takes no listening socket; `waitress.serve(app, sockets=[...])` in a program of "
        "your own does: "
        "run that under the profile `generic`",
    ),
)

PUMA = Profile(
    name="puma",
    programs=("puma",),
    second_listener=True,
    listener_append=("--bind-to-activated-sockets", "only"),
    quick_signal="KILL",
    reload_signal="USR2",
    reload_unsafe="USR2 re-executes in place with up to half a second of silence; USR1 keeps an old Gemfile",
    keep_alive_loss=_CLOSES_IDLE,
    answers_late=False,
    non_blocking_listener=True,
    proof=Proof.SECOND,
    unsafe=(UnsafeOption(("--pidfile",), _PID_FILE),),
    notes=("`--bind-to-activated-sockets only` is added, so binds of puma.rb do not count",),
    min_version="5.1",
)

# Unicorn takes what it inherits and then binds those of its `listen` lines that it did not inherit. In a throw-away
# instance that is the shared address: EADDRINUSE, and nearly every unicorn.rb has such a line. This leaves the lines
# their options (backlog, tcp_nopush) for a listener of the same name, and takes the binding from them.
_UNICORN_BINDS_NOTHING = "class Unicorn::HttpServer; def bind_new_listeners!; NEW_LISTENERS.clear; end; end"

UNICORN = Profile(
    name="unicorn",
    programs=("unicorn", "unicorn_rails"),
    second_listener=True,
    listener_append=("-e", _UNICORN_BINDS_NOTHING),
    bind_options=(
        BindOption(("-l", "--listen")),
        BindOption(("-o", "--host")),
        BindOption(("-p", "--port")),
    ),
    park=Park.PAUSE,
    park_signal="WINCH",
    unpark_signal="TTIN",
    unpark_each_worker=True,
    drain_signal="QUIT",
    stop_signal="QUIT",
    quick_signal="TERM",
    reload_signal="USR2",
    reload_unsafe=("USR2 makes a second master that the agent did not start; the agent's handover takes its place"),
    keep_alive_loss="nothing: it closes each connection after its answer",
    non_blocking_listener=True,
    proof=Proof.SECOND,
    unsafe=(
        UnsafeOption(("-D", "--daemonize"), _DAEMON),
        UnsafeOption(("-P", "--pid"), _PID_FILE),
    ),
    notes=(
        "`listen` lines in unicorn.rb bind nothing (by a line of Ruby given with `-e`): the service's `listen` counts, "
        "and a line of the same address lends it its options",
        "a `before_fork` that sends QUIT to the pid in `.oldbin` is not needed and should go",
    ),
)

NODE = Profile(
    name="node",
    programs=("node", "nodejs", "bun", "deno"),
    keep_alive_loss=(
        "Node ends at TERM at once unless the app handles it; server.close() closes idle connections at once"
    ),
    answers_late=False,
    non_blocking_listener=True,
    unsafe=(UnsafeOption(("--watch",), _RELOAD),),
    notes=(
        "the app takes the listener itself: server.listen({ fd: 3 }), or `{fd}` as an argument",
        "server.close() waits for clients that go on asking: answer with `Connection: close` once draining has begun",
    ),
)

MIDSTREAM_SERVE = Profile(
    name="midstream-serve",
    programs=("midstream-serve",),
    modules=("midstream-serve",),
    second_listener=True,
    park=Park.PAUSE,
    park_signal="WINCH",
    unpark_signal="TTIN",
    quick_signal="INT",
    reload_signal="HUP",
    reload_unsafe="HUP asks the agent for a handover to new processes; the agent makes it at once",
    ready=Readiness.NOTIFY,
    readiness_note="READY=1 comes when every worker of the new release accepts",
    keep_alive_loss="nothing: late requests are answered with `Connection: close`",
    answers_late=True,
    non_blocking_listener=True,
    proof=Proof.SECOND,
    unsafe=(
        UnsafeOption(("-p", "--pid"), _PID_FILE),
        UnsafeOption(("--reload",), _RELOAD),
        UnsafeOption(
            ("--linger",),
            "idle connections are closed before the proxy gives them up, so requests are lost",
            values="0|0s|0.0",
        ),
    ),
    notes=(
        "The release's virtualenv needs `midstream[serve]`; `--bind` and `--pid` of the command do not count: the "
        "service's `listen` does.",
        "A drain takes up to `--linger` (65 s) for idle connections and `--graceful-timeout` (30 s) for requests in "
        "hand: let `drain_timeout` be longer.",
    ),
)

GENERIC = Profile(
    name="generic",
    keep_alive_loss="not known: it depends on what the program does at TERM",
    notes=("the program takes its listeners as LISTEN_FDS from descriptor 3 on, or as `{fd}` in its command",),
)

# Special modes stand before the plain one of the same program.
SERVERS = (
    GUNICORN_GEVENT,
    GUNICORN_UVICORN,
    GUNICORN_ASGI,
    GUNICORN_GTHREAD,
    GUNICORN,
    UVICORN_WORKERS,
    UVICORN,
    HYPERCORN,
    GRANIAN,
    UWSGI,
    WAITRESS,
    PUMA,
    UNICORN,
    MIDSTREAM_SERVE,
    NODE,
    GENERIC,
)


def recognise(argv: tuple[str, ...], *, shell: bool = False) -> Profile:
    """The profile of the server that this command runs; `generic` when it is none that is known. It looks
    through absolute paths, interpreters (`python -m gunicorn`) and wrappers (`bundle exec puma`, `uv run …`,
    `sh -c …`). shell: argv is one line for /bin/sh."""
    inner = unwrap(argv, shell)
    if inner.program == "midstream" or inner.module == "midstream":
        return MIDSTREAM_SERVE if inner.args[:1] == ("serve",) else GENERIC
    return next((one for one in (*WORKERS, *SERVERS) if fits(one, inner) and in_mode(one, inner)), GENERIC)


def profile_named(name: str) -> Profile:
    """The profile called `name`. Raises OperatorError, naming those there are."""
    found = next((one for one in (*SERVERS, *WORKERS) if one.name == name), None)
    if found is None:
        raise OperatorError(
            f"there is no profile {name!r}",
            remedy=f"use one of: {', '.join(one.name for one in (*SERVERS, *WORKERS))}",
        )
    return found
