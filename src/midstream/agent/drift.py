"""What truly runs against what is committed: from the processes, never from a symlink. Runs in the agent, at once."""

from __future__ import annotations

import os
from typing import Any

from midstream.agent.host import Host
from midstream.agent.store import AppRecord
from midstream.core.generation import GenerationState
from midstream.core.instance import ALIVE, Instance
from midstream.core.layout import Layout
from midstream.linux.drift import runs

# Whoever took their files away: these processes only finish what they have.
_LEAVING = frozenset({GenerationState.DRAINING, GenerationState.RETIRED, GenerationState.FAILED})


def drift_of(host: Host, app: str) -> list[dict[str, Any]]:
    """Each process that runs another release than its generation's, each slot that is down, a `current` moved by hand."""
    record = host.apps.get(app)
    if record is None or not record.release:
        return []
    found: list[dict[str, Any]] = []
    for (owner, name), service in sorted(host.services.items()):
        if owner != app:
            continue
        for generation in service.generations:
            for instance in service.of(generation.number):
                pids = host.processes.pids_of(app, name, instance)
                seen = _instance(host.folders.resolved(record), name, generation.release, instance, pids)
                leaves = generation.state in _LEAVING
                found.extend(row for row in seen if not (leaves and row["kind"] == "deleted"))
        committed = service.committed
        if committed is not None and service.want_up and service.hold is None:
            alive = {item.slot for item in service.of(committed.number) if item.state in ALIVE}
            for slot in range(committed.plan.instances):
                if slot not in alive:
                    found.append(_row(name, slot, 0, "down", committed.release, "no process"))
        stale = [item for item in service.generations if item.state is GenerationState.COMMITTED]
        found.extend(
            _row(name, -1, 0, "release", record.release, item.release)
            for item in stale
            if item.release != record.release
        )
    found.extend(_current(host, record))
    found.extend(host.externals.drift(app))
    return found


def _instance(deploy_to: str, service: str, release: str, instance: Instance, pids: list[int]) -> list[dict[str, Any]]:
    """Every process of the instance's tree: a worker may run other code than its master."""
    if instance.state not in ALIVE or not instance.pid:
        return []
    found = []
    for pid in sorted({instance.pid, *pids}):
        seen = runs(pid, deploy_to)
        if seen.release is None:
            if seen.certain or not os.path.exists(f"/proc/{pid}"):
                continue  # it has just ended, or runs nothing of a release (a command that leaves its folder)
            found.append(_row(service, instance.slot, pid, "unknown", release, "; ".join(seen.evidence)))
        elif seen.release != release:
            found.append(_row(service, instance.slot, pid, "release", release, seen.release))
        elif seen.deleted:
            found.append(_row(service, instance.slot, pid, "deleted", release, "its files are gone from the disk"))
    return found


def _current(host: Host, record: AppRecord) -> list[dict[str, Any]]:
    """`current` is output: when somebody moved it, that is told, never followed. It is told as
    `host.folders` saw it last."""
    layout, release, seen = Layout(record.deploy_to), record.release, host.folders.of(record.app)
    if seen is None:
        return []
    if seen.target is None:
        return [_row("", -1, 0, "current", layout.release(release), f"no link ({seen.error})")]
    named = os.path.normpath(os.path.join(record.deploy_to, seen.target))
    if named not in (layout.release(release), layout.release(host.externals.moved(record.app) or release)):
        return [_row("", -1, 0, "current", layout.release(release), seen.target)]
    return []


def _row(service: str, slot: int, pid: int, kind: str, expected: str, seen: str) -> dict[str, Any]:
    return {"service": service, "slot": slot, "pid": pid, "kind": kind, "expected": expected, "found": seen}
