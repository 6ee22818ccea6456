"""Handing this host over to a new generation: start, prove, soak, decide, or put back.

All services of the app go together: each is proven before any is decided, the decision is one transaction. Services with
policy `replace`, and those that depend on others, get their word (`Go`) when the rest is proven. Runs in the agent's loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from midstream.agent import external_handover
from midstream.agent.current_link import not_switched
from midstream.agent.host import Host
from midstream.agent.oneshots import is_of_deploy
from midstream.agent.plans import plan_of, policy_of, profile_of
from midstream.agent.processes import Name
from midstream.agent.store import AppRecord, GenerationRecord, ReleaseRecord
from midstream.agent.work import Work
from midstream.core import steps
from midstream.core.events import Begin, Commit, Event, Go, HandoverNews, Remove, Revert, Soak
from midstream.core.generation import Generation, GenerationState, IllegalTransition
from midstream.core.instance import ALIVE
from midstream.core.intent import IntentEvent, IntentState
from midstream.core.names import parse_key
from midstream.core.phases import Phase
from midstream.core.points import handover_task
from midstream.core.service import Service
from midstream.core.wanted import goes_cold, goes_quiet
from midstream.errors import AppError, HostError, MidstreamError
from midstream.linux import clock

_PASSED = (Phase.PROVEN, Phase.QUIETING, Phase.SOAKING, Phase.SOAKED)


async def publish(work: Work, record: GenerationRecord) -> list[dict[str, Any]]:
    """Until every service of the release is proven and soaked; the new generation is then provisional.

    `record`: what it is started from (its number is given here). Raises AppError, after everything has been put back.
    Called again (after a crash of the agent, or of the deployer) it goes on waiting.
    """
    work.phase = "publishing"
    begun = time.monotonic()
    try:
        with work.step("handover"):
            await _own_services(work, record)
            await external_handover.hand_over(work, _rollback_target(work))
            work.move(IntentEvent.PROVED)
    except (MidstreamError, OSError) as error:
        await revert(work, getattr(error, "what", str(error)))
        raise
    seconds = round(time.monotonic() - begun, 3)
    return [
        {
            "service": name,
            "policy": policy_of(service, profile_of(service)).value,
            "proof": _proof_words(work, name),
            "seconds": seconds,
        }
        for name, service in work.spec.services.items()
        if name in work.intent.services
    ]


async def _own_services(work: Work, record: GenerationRecord) -> None:
    """Each is told as a task of its own, by the plan's name; the journal has the handover as one."""
    tasks = {name: handover_task(name) for name, service in work.spec.services.items() if service.autostart}

    def failed() -> list[str]:
        begun = set(work.intent.services)
        return [task for name, task in tasks.items() if name not in begun or _phase_of(work, name) not in _PASSED]

    with work.telling(*tasks.values(), failed=failed):
        if work.intent.state is not IntentState.PUBLISHING:
            await _begin(work, record)
        await _until_proven(work)
        await _soak(work)


def _proof_words(work: Work, service: str) -> str:
    spec = work.spec.services[service]
    if spec.health is None:
        return "ready"
    return f"{spec.health.method} {spec.health.http}" if spec.health.http else "checked"


async def _begin(work: Work, record: GenerationRecord) -> None:
    """Records the new generation and every service's intent, then starts; ports are bound first."""
    host, app = work.host, work.app
    number = app.generation + 1
    record = replace(record, number=number)
    chosen = {name: service for name, service in work.spec.services.items() if service.autostart}
    for service in chosen.values():
        await host.listeners.open_service(work.spec, service, app.owner_uid)
    changes: list[tuple[Name, Event]] = []
    now_s = clock.boottime_s()
    last = number
    for name, service in chosen.items():
        plan = plan_of(service)
        candidate = Generation(number, record.release, GenerationState.PREPARED, plan, since_s=now_s)
        queued = plan.policy == "replace" or bool(service.depends_on)
        old = host.services[app.app, name].committed if (app.app, name) in host.services else None
        goes_back_fresh = old is not None and (goes_quiet(old, candidate) or goes_cold(old, candidate))
        spare = last + 1 if goes_back_fresh else 0
        last = spare or last
        changes.append(((app.app, name), Begin(candidate, queued, spare)))
        starting = f"{name}: starting {service.instances} of generation {number}"
        work.tell(handover_task(name), "line", line=starting, service=name)
    for key in [key for key in host.news if key[0] == app.app]:
        del host.news[key]
    host.intent_of[app.app] = work.intent.id
    after = replace(app, generation=last)

    def write() -> None:
        host.store.put_app(after)
        host.store.put_generation(app.app, record)
        work.move(IntentEvent.PUBLISH, generation=number, services=tuple(chosen), release=record.release)

    host.generations[app.app, number] = record
    await host.decide(changes, write)
    host.apps[app.app] = after


def _services(work: Work) -> dict[str, Service]:
    return {name: work.host.services[work.intent.app, name] for name in work.intent.services}


def _phase_of(work: Work, name: str) -> Phase | None:
    service = work.host.services[work.intent.app, name]
    if service.handover is None or service.handover.generation != work.intent.generation:
        return None
    return service.handover.phase


def _failed(work: Work) -> HandoverNews | None:
    for name in work.intent.services:
        news = work.host.news.get((work.intent.app, name, work.intent.generation))
        if news is not None and news.phase is None:
            return news
        if _phase_of(work, name) is None:
            return HandoverNews(work.intent.generation, None, f"the handover of {name} was given up")
    return None


class _Turns:
    """Whose turn it is: services with `replace` and those that depend on others wait for their word (`Go`)."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._policies = {name: plan_of(work.spec.services[name]).policy for name in work.intent.services}
        self._after = {
            name: [other for other in work.spec.services[name].depends_on if other in self._policies]
            for name in self._policies
        }
        self.gone: set[str] = set()  # services that were given their word

    def proven(self) -> set[str]:
        return {name for name in self._policies if _phase_of(self._work, name) in _PASSED}

    def may_go(self, proven: set[str]) -> list[str]:
        """Queued services whose time has come."""
        first = {name for name, policy in self._policies.items() if policy != "replace" and not self._after[name]}
        all_first = first <= proven
        return [
            name
            for name, after in self._after.items()
            if name not in self.gone
            and (all(other in proven for other in after) if after else all_first)
            and _phase_of(self._work, name) is Phase.QUEUED
        ]


async def _until_proven(work: Work) -> None:
    """Gives queued services their word in turn, and raises when one fails or the time is up."""
    turns = _Turns(work)
    told: set[str] = set()
    deadline = time.monotonic() + work.spec.progress_timeout_s
    while True:
        proven = turns.proven()
        for name in sorted(proven - told):
            work.tell(handover_task(name), "line", line=f"{name}: proven", service=name)
        told |= proven
        raise_if_failed(work)
        if len(proven) == len(work.intent.services):
            return
        going = turns.may_go(proven)
        if going:
            turns.gone.update(going)
            # Decided, not posted: the standing orders of what is about to be stopped are revoked first.
            await work.host.decide([((work.intent.app, name), Go()) for name in going])
        if time.monotonic() > deadline:
            waiting = [name for name in work.intent.services if name not in proven]
            raise AppError(
                f"{', '.join(waiting)} made no progress within {work.spec.progress_timeout_s:g} s",
                remedy="midstream logs shows what they wait for; progress_deadline may be longer",
            )

        def moved(before: set[str] = proven) -> bool:
            now = turns.proven()
            return now != before or _failed(work) is not None or bool(turns.may_go(now))

        await work.host.until(moved, timeout_s=5.0)


def raise_if_failed(work: Work) -> None:
    """Raises AppError when a service of the new generation failed, also after it was proven."""
    news = _failed(work)
    if news is not None:
        raise _failure(work, news)


def _failure(work: Work, news: HandoverNews) -> AppError:
    name = next(
        (
            name
            for name in work.intent.services
            if work.host.news.get((work.intent.app, name, work.intent.generation)) is news
        ),
        work.intent.services[0] if work.intent.services else "",
    )
    lines = work.host.last_lines(work.intent.app, name, work.intent.generation)
    reason = work.redacted(news.reason)
    if "did not start" in reason:
        reason += f"; the command is `{' '.join(work.spec.services[name].command)}`"
    return AppError(
        f"release {work.intent.release} was not proven: {name}: {reason}",
        where=f"service {name}, generation {work.intent.generation}",
        detail=work.redacted("\n".join(lines)),
        serving=work.serving(),
        remedy=f"look at it: midstream logs {name}; mend it, commit, and deploy again",
    )


async def _soak(work: Work) -> None:
    app = work.intent.app
    waiting = [(app, name) for name in work.intent.services if _phase_of(work, name) is Phase.PROVEN]
    if waiting:
        await work.host.decide([(name, Soak()) for name in waiting])
    longest_s = max((plan_of(work.spec.services[name]).soak_s for name in work.intent.services), default=0.0)
    if longest_s:
        work.tell("handover", "line", line=f"soaking for {longest_s:g} s")

    def over() -> bool:
        return _failed(work) is not None or all(_phase_of(work, name) is Phase.SOAKED for name in work.intent.services)

    said = ""
    while not await work.host.until(over, timeout_s=1.0):
        for name in work.intent.services:
            words = _quieting_words(work, name)
            if words and words != said:
                work.tell(handover_task(name), "line", line=words, service=name)
                said = words
    raise_if_failed(work)


def _quieting_words(work: Work, name: str) -> str:
    """Which of the old workers are not proven quiet yet, and what they have in hand."""
    if _phase_of(work, name) is not Phase.QUIETING:
        return ""
    service = work.host.services[work.intent.app, name]
    old = service.committed
    waiting = [item for item in service.of(old.number) if item.state in ALIVE and not item.quiet] if old else []
    words = []
    for item in waiting:
        seen = work.host.looks.seen((work.intent.app, name), (item.generation, item.slot, item.attempt))
        in_hand = (
            f"{len(seen.jobs)} jobs in hand" if seen is not None and seen.listed else item.trouble or "not heard of"
        )
        words.append(f"{item.slot} ({in_hand})")
    return f"{name}: waiting for the old workers to be quiet: {', '.join(words)}" if words else ""


async def commit(work: Work) -> None:
    """The decision, in one transaction; then `current`, which follows. Called again it finishes what is left to do.

    Raises AppError when the new generation has failed since it was proven, AttentionError when the decision stands and
    `current` could not be switched.
    """
    work.phase = "publishing"
    host = work.host
    if work.intent.state is not IntentState.COMMITTED:
        app = work.app
        changes: list[tuple[Name, Event]] = [((app.app, name), Commit()) for name in work.intent.services]
        for (owner, name), service in host.services.items():
            if owner == app.app and name not in work.spec.services and service.committed is not None:
                changes.append(((owner, name), Remove()))
        after = replace(
            app,
            release=work.intent.release,
            revision=work.intent.revision,
            branch=work.intent.branch,
            stage=work.spec.stage,
            committed_generation=work.intent.generation,
        )
        made = host.store.releases(app.app).get(work.intent.release) or ReleaseRecord(
            work.intent.release, work.intent.revision, work.intent.branch
        )
        good = replace(made, state="good", reason="", committed_wall_s=time.time())

        def write() -> None:
            host.store.put_app(after)
            host.store.put_release(app.app, good)
            host.store.drop_pushed(app.app)  # what is committed has it, or something newer
            work.move(IntentEvent.COMMIT, previous=app.release)

        try:
            await host.decide(changes, write)
        except IllegalTransition:
            raise_if_failed(work)  # proven, and dead since: nothing is decided, and that is the release's fault
            raise
        host.apps[app.app] = after
        host.note(app.app, "", "commit", f"release {after.release} is committed", after.committed_generation)
        _write_backup(host, after)
        external_handover.committed(work)
    await _switch(work)


def _write_backup(host: Host, app: AppRecord) -> None:
    record = host.record(app.app, app.committed_generation)
    if record is not None:
        mine = [service for (owner, _), service in host.services.items() if owner == app.app]
        host.store.write_backup(app, [replace(item, instances=()) for item in mine], record)


def _rollback_target(work: Work) -> str | None:
    """Where a rollback from the new release would go, so that Capistrano's, which goes by mtime, goes there too."""
    known = work.host.store.releases(work.intent.app)
    older = [item for item, record in known.items() if record.state == "good" and item < work.intent.release]
    return older[-1] if older else None


async def _switch(work: Work) -> None:
    if work.done("deploy:symlink:release"):
        return
    link, app = work.host.current, work.intent.app
    async with link.switching(app):
        try:
            with work.step("deploy:symlink:release"):
                switch = steps.Switch(work.spec.deploy_to, work.intent.release, None, _rollback_target(work))
                await work.run_step("switch", switch, label="deploy:symlink:release")
        except MidstreamError as error:
            link.failed(work, await _named_by_current(work), _rollback_target(work))
            raise not_switched(work.app, error) from error
        link.switched(app)


async def _named_by_current(work: Work) -> str:
    """A release, another target, or "" where there is none. Where nobody can look: the release before."""
    try:
        return str((await work.run_step("inspect", steps.Inspect(work.spec.deploy_to, False)))["current"] or "")
    except MidstreamError:
        return work.intent.previous


async def revert(work: Work, reason: str) -> None:
    """Puts back what this deploy began; the committed generation was never touched, or comes back. Idempotent."""
    host = work.host
    if work.intent.state in (IntentState.REVERTED, IntentState.CLOSED, IntentState.COMMITTED):
        return
    work.phase = "reverting"
    _quietly(lambda: work.move(IntentEvent.REVERT, failure=work.redacted(reason)[:2000]))
    for key in host.one_shots.running():
        parsed = parse_key(key)
        if parsed.app == work.intent.app and is_of_deploy(parsed) and parsed.generation == work.intent.number:
            try:
                await host.one_shots.stop(key)
            except HostError as error:  # what was handed over has to go back all the same
                host.note(work.intent.app, "", "attention", f"{key} could not be stopped: {error.what}")
    waiting = handed_over(work)
    if waiting:
        try:
            await host.decide([(name, Revert(reason)) for name in waiting])
        except HostError:
            for name in waiting:  # the disk is full: put back all the same, and store it when it can be stored
                host.post(name, Revert(reason))
    if (work.intent.generation and work.intent.kind in ("deploy", "rollback")) or work.intent.made_release:
        _mark_bad(work, reason)
    await host.until(lambda: _old_is_whole(work), timeout_s=60.0)
    await external_handover.put_back(work)
    await _clear_disk(work)
    if work.intent.state is not IntentState.REVERTING:  # a full disk did not take it then; there may be room now
        _quietly(lambda: work.move(IntentEvent.REVERT, failure=work.redacted(reason)[:2000]))
    if work.intent.state is IntentState.REVERTING:
        _quietly(lambda: work.move(IntentEvent.REVERT_DONE))
    host.note(work.intent.app, "", "revert", work.redacted(reason), work.intent.generation)


def handed_over(work: Work) -> list[Name]:
    """The services whose handover by this deploy stands: neither committed nor put back."""
    return [
        (work.intent.app, name)
        for name in work.intent.services
        if (service := work.host.services.get((work.intent.app, name))) is not None
        and service.handover is not None
        and service.handover.generation == work.intent.generation
    ]


async def _clear_disk(work: Work) -> None:
    """What a half-made release left goes; assets that the new release replaced come back. Best effort: what is left over is
    swept by the next deploy."""
    try:
        if work.intent.steps.get("git:create_release") in ("begun", "begun-before"):
            await work.run_step("discard", steps.Discard(work.spec.deploy_to, deploy_id=work.intent.id))
        if work.spec.assets and work.app.release and "deploy:publish_assets" in work.intent.steps:
            back = steps.PublishAssets(work.spec.deploy_to, work.app.release, work.spec.assets)
            await work.run_step("publish_assets", back)
    except MidstreamError as error:
        work.warnings.append(error.what)


def _mark_bad(work: Work, reason: str) -> None:
    """A release that failed is remembered: no rollback goes to it, and it uses up none of `keep_releases`."""
    record = work.host.store.releases(work.intent.app).get(work.intent.release)
    if record is not None and record.state != "good":
        bad = replace(record, state="bad", reason=work.redacted(reason)[:500])
        _quietly(lambda: work.host.store.put_release(work.intent.app, bad))


def _old_is_whole(work: Work) -> bool:
    """Whether each service has its committed processes again (it matters after `replace` and `cold`)."""
    for name in work.intent.services:
        service = work.host.services.get((work.intent.app, name))
        if service is None or service.committed is None or not service.want_up or service.hold is not None:
            continue
        if any(item.state.value in ("starting", "running") for item in service.of(service.committed.number)):
            return False
    return True


def _quietly(write: Callable[[], None]) -> None:
    """On the way back a full disk must not stop us: what is not written is found out again after a restart."""
    try:
        write()
    except HostError:
        pass
