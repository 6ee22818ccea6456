"""The end of a deploy on this host: old releases go, revisions.log is written, and what truly runs is looked at. Runs in the
agent's loop."""

from __future__ import annotations

from typing import Any

from midstream.agent.drift import drift_of
from midstream.agent.host import Host
from midstream.agent.work import Part, Work
from midstream.core import releases, steps
from midstream.core.generation import ENDING, PROVISIONAL, GenerationState
from midstream.core.intent import IntentState


async def verify(work: Work) -> None:
    """Tells, once a deploy, what its processes really run, before anything is cleaned up. What differs is also in what
    `finish` answers at its end, when it has looked again."""
    if work.verified or work.intent.state is not IntentState.COMMITTED:
        return
    with work.telling("deploy:verify"):
        await work.host.folders.look([work.intent.app])
        for row in drift_of(work.host, work.intent.app):
            line = f"{row['service']}: {row['kind']}, expected {row['expected']}, found {row['found']}"
            work.tell("deploy:verify", "line", line=line)
    work.verified = True


async def tidy(work: Work, until: str) -> list[str]:
    """Cleanup and revisions.log, as far as `until`; returns the releases that were removed."""
    removed: list[str] = []
    if until == "deploy:cleanup":
        return removed
    parts = [] if work.done("deploy:cleanup") else [_cleanup(work, removed)]
    committed = work.intent.state is IntentState.COMMITTED
    if committed and until != "deploy:log_revision" and not work.done("deploy:log_revision"):
        line = steps.LogRevision(work.spec.deploy_to, _line(work))
        parts.append(Part("deploy:log_revision", "log_revision", line))
    await work.run_parts(parts)
    return removed


def found(work: Work, removed: list[str], warnings: list[str]) -> dict[str, Any]:
    """What `finish` answers, from the processes as they are now."""
    app = work.intent.app
    drift = drift_of(work.host, app) if work.intent.state is IntentState.COMMITTED else []
    draining = sum(
        item.state is GenerationState.DRAINING
        for (owner, _), service in work.host.services.items()
        if owner == app
        for item in service.generations
    )
    return {"removed": removed, "drift": drift, "draining": draining, "warnings": warnings}


def _line(work: Work) -> str:
    intent = work.intent
    if intent.kind == "rollback":
        return releases.rolled_back_line(intent.user, intent.release)
    return releases.deployed_line(intent.branch, intent.revision, intent.release, intent.user)


def _cleanup(work: Work, removed: list[str]) -> Part:
    host, app = work.host, work.app
    known = host.store.releases(app.app)
    bad = tuple(release for release, record in known.items() if record.state == "bad")
    good = [release for release, record in known.items() if record.state == "good" and release < app.release]
    live = live_releases(host, app.app)
    cleanup = steps.Cleanup(
        work.spec.deploy_to,
        work.spec.keep_releases,
        tuple(sorted(live)),
        app.release or None,
        good[-1] if good else None,
        app.release or None,
        bad,
    )

    def cleaned(answer: dict[str, Any]) -> None:
        removed[:] = [str(release) for release in answer.get("removed", [])]
        with host.store.transaction(relaxed=True):
            for release in removed:
                record = known.get(release)
                if record is not None and record.state != "bad":
                    host.store.drop_release(app.app, release)

    return Part("deploy:cleanup", "cleanup", cleanup, cleaned)


def live_releases(host: Host, app: str) -> set[str]:
    """Releases that a process runs from, or may have to be started from."""
    found = {
        item.release
        for (owner, _), service in host.services.items()
        if owner == app
        for item in service.generations
        if item.state is GenerationState.COMMITTED or item.state in PROVISIONAL or item.state in ENDING
    }
    record = host.apps.get(app)
    if record is not None and record.release:
        found.add(record.release)
    return found
