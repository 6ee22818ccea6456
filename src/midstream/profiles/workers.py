"""One profile for each job library that Midstream knows: how its workers are quieted, watched and stopped.

What lives here: values, and the questions about a worker's command that need them. What must not: I/O, decisions. Runs in
the agent and in `midstream check`. The statements are proven against the real programs in `tests/e2e/test_workers.py`
(docs/workers.md says with which versions).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from midstream.core.spec import HandoverPolicy, Readiness, ServiceSpec
from midstream.profiles.profile import Lifecycle, Park, Profile, UnsafeOption, option_value, unwrap

DEFAULT_URL = "redis://localhost:6379/0"

_DAEMON = "the worker leaves its parent, so nobody can watch, quiet or stop it; run it in the foreground"
_SIDEKIQ_NOTES = (
    "Sidekiq itself loses the jobs in hand when it is killed with SIGKILL (without Pro's super_fetch)",
    "a `:timeout:` in sidekiq.yml is not seen: set `stop_timeout` to at least that and 5 s",
    "the new workers fetch from the moment they have booted, beside the old ones, until those are told to be quiet",
)

_SIDEKIQ_WORKER = Lifecycle(
    library="sidekiq",
    quiet_signal="TSTP",
    quiet_once=False,
    quiet_timeout_s=30.0,  # it beats every 5 s before 7.0, every 10 s since
    leaves_when_idle=False,
    unfinished="they are pushed back to their queue and begin again",
    stop_option=("-t", "--timeout"),
    stop_default_s=25.0,
)

SIDEKIQ = Profile(
    name="sidekiq",
    programs=("sidekiq",),
    worker=_SIDEKIQ_WORKER,
    park=Park.COLD,
    drain_signal="TSTP",
    ready=Readiness.HEARTBEAT,
    default_policy=HandoverPolicy.DRAIN,
    unsafe=(
        UnsafeOption(("-d", "--daemon"), _DAEMON),
        UnsafeOption(("-P", "--pidfile"), "a pid file shared by two generations names the wrong one; leave it out"),
    ),
    notes=_SIDEKIQ_NOTES,
    min_version="5.0",
)

SIDEKIQ_4 = replace(
    SIDEKIQ,
    name="sidekiq4",
    programs=(),
    worker=replace(_SIDEKIQ_WORKER, quiet_signal="USR1", stop_default_s=8.0),
    drain_signal="USR1",
    min_version="",
    notes=(*_SIDEKIQ_NOTES, "for Sidekiq before 5.0; it cannot be told from the command, so name it: `profile`"),
)

RQ = Profile(
    name="rq",
    programs=("rq",),
    modules=("rq",),
    verb="worker",
    worker=Lifecycle(
        library="rq",
        quiet_signal="TERM",
        quiet_once=True,
        quiet_timeout_s=10.0,
        leaves_when_idle=True,
        unfinished="a job that is still running at the end of `drain_timeout` is killed: with `Retry` it is queued again, "
        "else it is in the failed registry (`rq requeue`)",
        url_options=("-u", "--url"),
        url_variables=("RQ_REDIS_URL", "REDIS_URL"),
    ),
    park=Park.COLD,
    drain_signal="TERM",
    ready=Readiness.HEARTBEAT,
    default_policy=HandoverPolicy.DRAIN,
    unsafe=(
        UnsafeOption(
            ("-n", "--name"),
            "two workers of one name cannot run at the same time, so none replaces another; leave it out",
        ),
        UnsafeOption(("-b", "--burst"), "it ends when the queues are empty"),
    ),
    notes=(
        "`drain_timeout` is how long a job may go on after a deploy; set it above the longest one",
        "`suspend` is not used: it would stop every worker on that Redis",
    ),
)

WORKERS = (SIDEKIQ, SIDEKIQ_4, RQ)


def stop_timeout_s(profile: Profile, argv: tuple[str, ...], shell: bool, configured_s: float) -> float:
    """How long after the stop signal the tree may be killed: never before the worker's own limit has passed and it has
    given back what is unfinished."""
    life = profile.worker
    if life is None or not life.stop_option:
        return configured_s
    return max(configured_s, (own_limit_s(life, argv, shell) or life.stop_default_s) + life.stop_margin_s)


def own_limit_s(life: Lifecycle, argv: tuple[str, ...], shell: bool) -> float | None:
    """The worker's own limit for a stop as its command says it; None: it does not."""
    args = unwrap(argv, shell).args
    found = [value for name in life.stop_option if (value := option_value(args, name)) is not None]
    return float(found[-1]) if found and re.fullmatch(r"[0-9]+", found[-1]) else None


def redis_url(profile: Profile, argv: tuple[str, ...], shell: bool, configured: str, env: Mapping[str, str]) -> str:
    """Where the worker's job library keeps its records."""
    life = profile.worker
    if configured or life is None:
        return configured
    args = unwrap(argv, shell).args
    for option in life.url_options:
        value = option_value(args, option)
        if value:
            return value
    named = [env[name] for name in life.url_variables if env.get(name)]
    return named[0] if named else DEFAULT_URL


def worker_warnings(profile: Profile, service: ServiceSpec) -> tuple[str, ...]:
    """Two limits that disagree (sidekiq#5829)."""
    life = profile.worker
    own_s = own_limit_s(life, service.command, service.shell) if life is not None else None
    if life is None or own_s is None or own_s + life.stop_margin_s <= service.stop_timeout_s:
        return ()
    wanted_s = own_s + life.stop_margin_s
    return (
        f"`-t {own_s:g}` is more than `stop_timeout` ({service.stop_timeout_s:g} s) leaves it: {wanted_s:g} s are used",
    )
