"""Is it ready, and does it answer? One task per instance that is being started, or that has a periodic check.

Lives here: asking. Not here: what the answer leads to (`core/turn.py`). Events go back through `report`. Nothing here is
a protocol: an instance that says it is ready is believed at once; the rest are looked at with growing pauses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from midstream.agent.health import Address, HealthResult, check, command_check
from midstream.agent.proof import Holding, Verdict, bound_itself, holding, identified_check, tree_membership
from midstream.core.events import Event, Healthy, Ready, Refuted, Unhealthy
from midstream.core.spec import HealthSpec, Readiness, ServiceSpec

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
_MARGIN_S = 0.1  # before the deadline of the core, which knows no reason


@dataclass(frozen=True, slots=True)
class Subject:
    """One instance as the watcher sees it.

    shared: inode -> address of the listeners it was given. private: address (and inode) only it was given, or None.
    alone: no other generation has the shared listeners, so whoever answers there is this one. tried: a throw-away
    instance of the same generation was proven. provisional: its generation is not committed. pids: its tree, now.
    explain: why a tree (pids) that binds its own does not serve what it was given (inodes).
    """

    generation: int
    slot: int
    attempt: int
    readiness: Readiness
    health: HealthSpec | None
    shared: dict[int, Address]
    private: tuple[Address, int] | None
    alone: bool
    tried: bool
    provisional: bool
    confirm: bool
    start_timeout_s: float
    healthy_timeout_s: float
    min_uptime_s: float
    explain: Callable[[Collection[int], Collection[int]], str]
    pids: Callable[[], Collection[int]]
    said_ready: Callable[[], Awaitable[None]]
    run_command: Callable[[tuple[str, ...], float], Awaitable[HealthResult]]
    listed: Callable[[list[str]], Awaitable[None]] | None = None  # until its job library lists it; says why not in [0]


def needs_only_time(spec: ServiceSpec, readiness: Readiness, *, confirm: bool) -> bool:
    """Whether all that `watch` would do is to wait `min_uptime`, and then report that it is ready and healthy."""
    periodic = spec.health is not None and spec.health.interval_s > 0
    in_time = spec.min_uptime_s < spec.start_timeout_s - _MARGIN_S
    return readiness is Readiness.ALIVE and in_time and not confirm and not periodic


async def watch(subject: Subject, report: Callable[[Event], None]) -> None:
    """Until ready and, where asked, healthy; then, if the check is periodic, for as long as the instance lives."""
    name = (subject.generation, subject.slot, subject.attempt)
    trouble = ["nothing was heard of it"]
    try:
        async with asyncio.timeout(max(0.1, subject.start_timeout_s - _MARGIN_S)):
            refused = await _until_ready(subject, trouble)
    except TimeoutError:
        # For a committed generation the core's own deadline decides; here only the reason would be known.
        if subject.provisional:
            reason = f"not ready within {subject.start_timeout_s:g} s: {trouble[0]}"
            report(Refuted(*name, _explained(subject, reason)))
        return
    if refused:
        report(Refuted(*name, _explained(subject, refused)))
        return
    report(Ready(*name))
    if subject.confirm:
        reason = await _confirm(subject)
        report(Refuted(*name, _explained(subject, reason)) if reason else Healthy(*name))
        if reason:
            return
    else:
        report(Healthy(*name))
    await _periodic(subject, report)


async def _until_ready(subject: Subject, trouble: list[str]) -> str:
    """Returns when the instance is ready: "" or, when it gave a definitely wrong answer, what was wrong."""
    match subject.readiness:
        case Readiness.NOTIFY | Readiness.FD:
            how = "READY=1" if subject.readiness is Readiness.NOTIFY else "the newline on {ready_fd}"
            trouble[0] = f"{how} did not come"
            await subject.said_ready()
        case Readiness.ALIVE:
            await asyncio.sleep(subject.min_uptime_s)
        case Readiness.LISTENING:
            await _until_held(subject, trouble)
            await asyncio.sleep(subject.min_uptime_s)
        case Readiness.HEARTBEAT:
            if subject.listed is None:
                return 'ready = "heartbeat" is for workers of a job library that is known'
            await subject.listed(trouble)
        case Readiness.HEALTH:
            return await _until_answered(subject, trouble)
    return ""


async def _until_held(subject: Subject, trouble: list[str]) -> None:
    pause_s = _FIRST_PAUSE_S
    while True:
        missing = _not_held(subject)
        if not missing:
            return
        trouble[0] = f"its processes do not hold {missing}"
        await asyncio.sleep(pause_s)
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.6)


def _not_held(subject: Subject) -> str:
    pids = subject.pids()
    for inode, address in subject.shared.items():
        if holding(pids, inode) is Holding.NOT_HELD:
            return str(address)
    return ""


async def _until_answered(subject: Subject, trouble: list[str]) -> str:
    """readiness = health. Where only shared listeners are there to ask, an answer may be anybody's."""
    assert subject.health is not None
    target = _own_address(subject)
    if target is None:
        await _until_held(subject, trouble)
        await _until_accepting(subject)
        return ""
    bad = 0
    pause_s = _FIRST_PAUSE_S
    while True:
        result = await _ask(subject, target)
        if result.ok:
            return ""
        trouble[0] = result.reason
        bad = bad + 1 if result.answered else 0
        if subject.provisional and bad >= max(1, subject.health.failures):
            return result.reason
        await asyncio.sleep(max(pause_s, 0.5) if result.answered else pause_s)
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.6)


async def _until_accepting(subject: Subject) -> None:
    """An epoll of the tree watches each shared listener; servers that do not use one get `min_uptime`."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + max(subject.min_uptime_s, 1.0)
    pause_s = _FIRST_PAUSE_S
    while loop.time() < deadline_s:
        pids = subject.pids()
        if all(holding(pids, inode) is Holding.ACCEPTING for inode in subject.shared):
            return
        await asyncio.sleep(pause_s)
        pause_s = min(0.1, pause_s * 1.6)


def _own_address(subject: Subject) -> Address | None:
    """Where only this instance (or only its generation) can answer."""
    if subject.private is not None:
        return subject.private[0]
    if subject.alone and subject.shared:
        return next(iter(subject.shared.values()))
    return None


async def _ask(subject: Subject, target: Address) -> HealthResult:
    assert subject.health is not None
    command = command_check(subject.health)
    if command is not None:
        return await subject.run_command(command.argv, command.timeout_s)
    return await check(subject.health, target)


async def _confirm(subject: Subject) -> str:
    """ "" when a check was answered well by this generation, else what was wrong."""
    assert subject.health is not None
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + subject.healthy_timeout_s
    target = _own_address(subject)
    if target is None and subject.health.command:
        target = next(iter(subject.shared.values()), Address(host="127.0.0.1"))
    if target is None:
        return await _confirm_shared(subject, deadline_s)
    bad = 0
    while True:
        result = await _ask(subject, target)
        if result.ok:
            return ""
        bad = bad + 1 if result.answered else 0
        if bad >= max(1, subject.health.failures):
            return result.reason
        if loop.time() >= deadline_s:
            return f"not healthy within {subject.healthy_timeout_s:g} s: {result.reason}"
        await asyncio.sleep(0.5)


async def _confirm_shared(subject: Subject, deadline_s: float) -> str:
    """The real instance shares its listener. Its code was proven by a throw-away one; what is left to show is that this
    process holds the listener and takes part. A wrong answer counts; no answer within the bounds does not."""
    assert subject.health is not None
    missing = _not_held(subject)
    if missing:
        return f"its processes do not hold {missing}"
    address = next(iter(subject.shared.values()))
    left_s = max(0.5, min(3.0, deadline_s - asyncio.get_running_loop().time()))
    result = await identified_check(
        subject.health, address, tree_membership(subject.pids), attempts=6, timeout_s=left_s
    )
    if result.verdict is Verdict.REFUTED:
        return result.reason
    if result.verdict is Verdict.UNDECIDED and not subject.tried:
        return result.reason
    return ""


async def _periodic(subject: Subject, report: Callable[[Event], None]) -> None:
    """While it runs: `failures` bad answers in a row are one Unhealthy. Only where the answer is this instance's own."""
    health = subject.health
    if health is None or not health.interval_s:
        return
    target = _own_address(subject) or next(iter(subject.shared.values()), None)
    if target is None:
        return
    bad = 0
    while True:
        await asyncio.sleep(health.interval_s)
        result = await _ask(subject, target)
        bad = 0 if result.ok else bad + 1
        if bad >= health.failures:
            report(Unhealthy(subject.generation, subject.slot, subject.attempt, result.reason))
            bad = 0  # it is stopped for it, and this watch with it; a parked one is not, and is asked again


def _explained(subject: Subject, reason: str) -> str:
    """The reason and, where its processes bound something of their own, what swallowed the listener."""
    given = set(subject.shared)
    if subject.private is not None:
        given.add(subject.private[1])
    pids = subject.pids()
    if given and bound_itself(pids, given):
        return f"{reason}; {subject.explain(pids, given)}"
    return reason
