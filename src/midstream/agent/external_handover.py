"""Bringing held services of another supervisor to the new release within a handover, and back.

Their supervisor starts them through `current`. So `current` moves first, journalled, while the supervisor looks away;
then it is told to restart them, and what then runs is read from /proc. All this is before the decision: when it fails
here or on another host, `current` goes back and so do they. Runs in the agent's loop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from midstream.agent.external import RESTART_MAX_S, Externals
from midstream.agent.work import Work
from midstream.core import steps
from midstream.core.external import ExternalHold, HoldState
from midstream.core.layout import CurrentKind
from midstream.core.names import is_release
from midstream.core.points import handover_task
from midstream.core.steps import MonitQuiet, MonitRestart
from midstream.errors import AppError, HostError, MidstreamError, OperatorError
from midstream.linux import process, tree
from midstream.linux.drift import Running, runs


async def hand_over(work: Work, rollback_target: str | None) -> None:
    """Every held service that is to be restarted runs the intent's release. Raises MidstreamError; the caller reverts.
    Called again it goes on where it stood."""
    externals = work.host.externals
    holds = [hold for hold in externals.of_deploy(work.intent.id) if hold.restart]
    expired = next((hold for hold in holds if hold.expired and not hold.touched), None)
    if expired is not None:
        raise HostError(
            f"the hold on {expired.label} ran out after {expired.ttl_s:g} s, before the handover",
            where=f"holds, {expired.service}",
            serving=work.serving(),
            remedy="let it begin later (`from`), or last longer (`ttl`)",
        )
    holds = [hold for hold in holds if hold.state is HoldState.HELD]
    if not holds:
        return
    async with externals.lock(work.intent.app):
        before = await _current(work)
        for hold in holds:
            if not hold.touched:
                externals.put(hold, touched=work.intent.release, current_before=before)
        for hold in _fresh(externals, holds):
            await _quiet(externals, work, hold)
        with work.step("external:current"):
            await work.run_step("switch", steps.Switch(work.spec.deploy_to, work.intent.release, None, rollback_target))
        for hold in _fresh(externals, holds):
            step = f"external:restart:{hold.service}"
            if not work.done(step):
                with work.step(step), work.telling(handover_task(hold.label)):
                    await _restart(externals, work, hold, work.intent.release, step)


def _fresh(externals: Externals, holds: list[ExternalHold]) -> list[ExternalHold]:
    return [externals.holds[hold.name] for hold in holds]


async def _current(work: Work) -> str:
    """The release that `current` names, "" for none. Raises OperatorError when there is no way back to what it is."""
    found = await work.run_step("inspect", steps.Inspect(work.spec.deploy_to, False))
    kind, current = CurrentKind(found["current_kind"]), found["current"]
    if kind is CurrentKind.MISSING:
        return ""
    if isinstance(current, str) and is_release(current):
        return current
    raise OperatorError(
        f"`current` points to {current}, which is no release here: there would be no way back to it",
        where=work.spec.deploy_to,
        serving=work.serving(),
        remedy="point it to a release (ln -sfn), then deploy again",
    )


async def _quiet(externals: Externals, work: Work, hold: ExternalHold) -> None:
    if not hold.quiet or work.done(f"external:restart:{hold.service}"):
        return
    step = f"external:quiet:{hold.service}"
    with work.step(step):
        request = MonitQuiet(hold.control, hold.service, hold.quiet, hold.quiet_timeout_s)
        found = await externals.ask(hold, request, hold.quiet_timeout_s)
        if not found["idle"]:
            line = (
                f"{hold.label} (pid {found['pid']}) still has jobs after {hold.quiet_timeout_s:g} s: {found['title']}"
            )
            work.tell(step, "line", line=line)


async def _restart(externals: Externals, work: Work, hold: ExternalHold, release: str, step: str) -> None:
    was_down = not hold.pid and not hold.was_watched
    if was_down:
        work.tell(step, "line", line=f"{hold.label} was stopped, and not watched: left so")
        return
    request = MonitRestart(
        hold.control,
        hold.service,
        tuple(name for name in hold.along if name in hold.watched_before),
        hold=hold.state is HoldState.HELD or not hold.was_watched,
        min_uptime_s=hold.min_uptime_s,
    )
    found = await externals.ask(hold, request, RESTART_MAX_S, lambda line: work.tell(step, "line", line=line))
    if not found["pid"]:
        raise AppError(
            f"{hold.label} came up on release {release}, and died again",
            where=f"{hold.supervisor}, service {hold.service}",
            serving=work.serving(),
            remedy="look at its log",
        )
    externals.put(hold, pid=found["pid"], start_ticks=found["start_ticks"])
    await work.host.folders.look([work.intent.app])
    _verify(work, hold, release, found, step)


def _verify(work: Work, hold: ExternalHold, release: str, found: dict[str, Any], step: str) -> None:
    """Of every process of its tree, from /proc."""
    for pid in _tree(found["pid"]):
        seen = runs(pid, work.host.folders.resolved(work.app))
        if seen.release == release and not seen.deleted:
            work.tell(step, "line", line=f"{hold.label} pid {pid} runs release {release}")
        elif seen.release is not None:
            raise _wrong(work, hold, release, pid, seen)
        elif not seen.certain:
            work.tell(step, "line", line=f"{hold.label} pid {pid}: {'; '.join(seen.evidence)}")


def _tree(pid: int) -> list[int]:
    everything = tree.snapshot()
    found = [pid] if pid in everything else []
    for one in found:
        found.extend(stat.pid for stat in everything.values() if stat.ppid == one)
    return found


def _wrong(work: Work, hold: ExternalHold, release: str, pid: int, seen: Running) -> AppError:
    return AppError(
        f"{hold.label}: pid {pid} runs release {seen.release}{' (deleted)' if seen.deleted else ''}, not {release}"
        f" ({process.read_command(pid)})",
        where=f"{hold.supervisor}, service {hold.service}",
        detail="\n".join(seen.evidence),
        serving=work.serving(),
        remedy=f"its start program must go through {work.spec.deploy_to}/current; look at it, then deploy again",
    )


async def put_back(work: Work) -> None:
    """`current` as it was, and what was brought to the new release (or may have been) restarted on the old. Never raises a
    MidstreamError: what is left wrong is kept for the deploy's end, which tells it."""
    externals = work.host.externals
    touched = [hold for hold in externals.of_deploy(work.intent.id) if hold.touched]
    if not touched:
        return
    troubles = externals.troubles.setdefault(work.intent.id, [])
    async with externals.lock(work.intent.app):
        try:
            await _current_back(work, touched[0])
        except MidstreamError as error:
            troubles.append(f"`current` still points to {touched[0].touched}: {error.what}")
        for hold in _fresh(externals, touched):
            try:
                await _one_back(externals, work, hold)
            except MidstreamError as error:
                troubles.append(f"{hold.label} could not be put back: {error.what}")
                externals.note(hold, "attention", f"could not be put back: {error.what}")


async def _current_back(work: Work, hold: ExternalHold) -> None:
    with work.step("external:current_back"):
        if hold.current_before:
            switch = steps.Switch(work.spec.deploy_to, hold.current_before)
            await work.run_step("switch", switch)
        else:
            await work.run_step("unswitch", steps.Unswitch(work.spec.deploy_to, hold.touched))


async def _one_back(externals: Externals, work: Work, hold: ExternalHold) -> None:
    if not hold.current_before:
        externals.put(hold, touched="")
        work.tell("external:current_back", "line", line=f"{hold.label}: there was no release before to go back to")
        return
    step = f"external:back:{hold.service}"
    with work.step(step):
        await _restart(externals, work, hold, hold.current_before, step)
        externals.put(externals.holds[hold.name], touched="")


def committed(work: Work) -> None:
    """There is no way back any more."""
    externals = work.host.externals
    for hold in externals.of_deploy(work.intent.id):
        if hold.touched:
            try:
                externals.put(hold, touched="")
            except HostError:
                externals.remember(replace(hold, touched=""))  # a committed deploy is never put back
