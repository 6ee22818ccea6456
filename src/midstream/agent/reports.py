"""`status`, `why` and `releases`: what the agent tells about this host. Read-only; returns at once. Runs in the agent."""

from __future__ import annotations

import os
import time
from typing import Any

from midstream.agent import left_behind
from midstream.agent.accounts import account_of_uid
from midstream.agent.deploys import Deploys
from midstream.agent.drift import drift_of
from midstream.agent.finishing import live_releases
from midstream.agent.host import Host
from midstream.agent.locks import lock_of
from midstream.agent.plans import policy_of, profile_of
from midstream.core.instance import Instance, InstanceState
from midstream.core.service import Service
from midstream.errors import OperatorError
from midstream.linux.clock import boottime_s
from midstream.linux.drift import runs, usage


def app_status(host: Host, deploys: Deploys, app: str) -> dict[str, Any]:
    """One app, in the form of `docs/control-protocol.md`."""
    record = host.apps[app]
    work = deploys.of(app)
    deploy = None
    if work is not None:
        intent = work.intent
        deploy = {
            "id": intent.id,
            "kind": intent.kind,
            "phase": work.phase,
            "state": intent.state.value,
            "user": intent.user,
            "since": intent.started_wall_s,
            "release": intent.release,
        }
    lock = lock_of(record)
    services = [service_status(host, service) for (owner, _), service in sorted(host.services.items()) if owner == app]
    return {
        "app": app,
        "stage": record.stage,
        "deploy_to": record.deploy_to,
        "user": account_of_uid(record.owner_uid).name,
        "release": record.release,
        "revision": record.revision,
        "branch": record.branch,
        "current": _current(host, app),
        "lock": lock,
        "behind": left_behind.of(host.store, record),
        "deploy": deploy,
        "services": services,
        "external": host.externals.status(app),
        "drift": drift_of(host, app),
    }


def _current(host: Host, app: str) -> str | None:
    """The name of what `current` points to, as it was when somebody looked last."""
    seen = host.folders.of(app)
    return os.path.basename(seen.target.rstrip("/")) if seen is not None and seen.target is not None else None


def service_status(host: Host, service: Service) -> dict[str, Any]:
    record = host.record(service.app, service.generations[-1].number) if service.generations else None
    spec = record.spec.services.get(service.name) if record else None
    hold = None
    if service.hold is not None:
        left_s = round(service.hold.deadline_s - boottime_s(), 1)
        hold = {"owner": service.hold.owner, "reason": service.hold.reason, "expires_in_s": left_s}
    return {
        "service": service.name,
        "profile": profile_of(spec).name if spec else "",
        "policy": policy_of(spec, profile_of(spec)).value if spec else "",
        "quiet": _quiet(service),
        "want": "up" if service.want_up else "down",
        "state": state_of(service),
        "hold": hold,
        "listeners": [
            {"name": name, "address": address} for name, address in host.listeners.addresses(service.app, service.name)
        ],
        "handover": service.handover.phase.value if service.handover else None,
        "generations": [
            {
                "generation": item.number,
                "release": item.release,
                "state": item.state.value,
                "parked": item.parked,
                "since_s": round(boottime_s() - item.since_s, 1),
                "note": item.note,
                "instances": [_instance(host, service, one) for one in service.of(item.number)],
            }
            for item in service.generations
        ],
    }


def state_of(service: Service) -> str:
    """One word for the service: what its committed generation does, unless a handover or a hold says more."""
    committed = service.committed
    if service.hold is not None:
        return "held"
    if service.handover is not None:
        return "handover"
    if service.quiet is not None:
        return "quiet"
    if committed is None:
        return "stopped" if not service.generations else "failed"
    instances = service.of(committed.number)
    states = [item.state for item in instances]
    if not service.want_up:
        return "stopped" if not any(item is not InstanceState.ENDED for item in states) else "stopping"
    ready = sum(item is InstanceState.READY for item in states)
    if ready == committed.plan.instances:
        return "running"
    if any(item.state is InstanceState.WAITING and item.streak > 1 for item in instances):
        return "backoff"
    if any(item is InstanceState.ENDED for item in states):
        return "exited"
    return "degraded" if ready else "starting"


def _quiet(service: Service) -> dict[str, Any] | None:
    quiet = service.quiet
    if quiet is None:
        return None
    left_s = round(quiet.deadline_s - boottime_s(), 1) if quiet.deadline_s else None
    return {"owner": quiet.owner, "reason": quiet.reason, "expires_in_s": left_s}


def _work(host: Host, service: Service, instance: Instance) -> dict[str, Any] | None:
    """What a worker's job library says of it; None: it is no worker, or it was not asked."""
    seen = host.looks.seen((service.app, service.name), (instance.generation, instance.slot, instance.attempt))
    if seen is None:
        return None
    now_s = time.time()
    jobs = [{**job, "age_s": round(max(0.0, now_s - job["since"]), 1) if job["since"] else None} for job in seen.jobs]
    return {"listed": seen.listed, "quiet": seen.quiet, "jobs": jobs, "trouble": seen.trouble}


def _instance(host: Host, service: Service, instance: Instance) -> dict[str, Any]:
    record = host.apps.get(service.app)
    seen = runs(instance.pid, host.folders.resolved(record)) if record and instance.pid else None
    used = usage(instance.pid) if instance.pid else None
    state = instance.state.value
    if instance.state is InstanceState.STOPPING and instance.draining:
        state = "draining"
    return {
        "slot": instance.slot,
        "pid": instance.pid,
        "state": state,
        "ready": instance.state is InstanceState.READY,
        "release_running": seen.release if seen else None,
        "uptime_s": round(used.uptime_s, 1) if used else 0.0,
        "restarts": instance.restarts,
        "memory_bytes": used.memory_bytes if used else 0,
        "status_text": instance.status_text,
        "last_exit": instance.last_exit,
        "why": instance.why,
        "throwaway": instance.is_throwaway,
        "work": _work(host, service, instance),
    }


def why(host: Host, app: str, service: str, limit: int) -> dict[str, Any]:
    """Each start, stop and restart of a service with its cause."""
    rows = host.store.events(app=app, service=service, limit=limit, latest=True)
    # One that the configuration has dropped is answered for as long as its events are kept.
    if (app, service) not in host.services and not any(row.service == service for row in rows):
        known = sorted(name for owner, name in host.services if owner == app)
        raise OperatorError(
            f"app {app!r} has no service {service!r}", remedy=f"it has: {', '.join(known) or 'none yet'}"
        )
    entries = [
        {
            "time": row.time,
            "service": row.service,
            "generation": row.generation,
            "slot": row.slot,
            "what": row.kind,
            "cause": row.text,
            "who": row.who,
            "intent": row.intent,
        }
        for row in rows
    ]
    return {"entries": entries, "now": time.time()}


def releases(host: Host, app: str, on_disk: dict[str, str]) -> dict[str, Any]:
    """What the agent knows of the app's releases and what is on the disk, newest last. on_disk: release -> revision."""
    record = host.apps[app]
    known = host.store.releases(app)
    live = live_releases(host, app)
    current = _current(host, app)
    rows = []
    for release in sorted(on_disk.keys() | known.keys()):
        entry = known.get(release)
        running = [
            name
            for (owner, name), service in sorted(host.services.items())
            if owner == app and any(g.release == release and service.of(g.number) for g in service.generations)
        ]
        rows.append(
            {
                "release": release,
                "revision": entry.revision if entry else on_disk.get(release, ""),
                "branch": entry.branch if entry else "",
                "time": entry.committed_wall_s or entry.made_wall_s if entry else 0.0,
                "state": entry.state if entry else "foreign",
                "reason": entry.reason if entry else "",
                "on_disk": release in on_disk,
                "committed": release == record.release,
                "current": release == current,
                "live": release in live,
                "running": running,
            }
        )
    return {"releases": rows}


def host_status(host: Host, deploys: Deploys, apps: list[str], started_s: float, version: str) -> dict[str, Any]:
    hello = host.link.hello if host.link else None
    used = usage(os.getpid())
    return {
        "host": os.uname().nodename,
        "time": time.time(),
        "agent": {
            "pid": os.getpid(),
            "version": version,
            "uptime_s": round(time.monotonic() - started_s, 1),
            "memory_bytes": used.memory_bytes if used else 0,
        },
        "keeper": {
            "pid": hello.pid if hello else 0,
            "version": hello.version if hello else "",
            "epoch": hello.epoch if hello else 0,
            "attached": host.link is not None and host.link.is_connected,
            "cgroup": hello.cgroup if hello else None,
            "notes": list(hello.notes) if hello else [],
        },
        "apps": [app_status(host, deploys, app) for app in apps],
    }


__all__ = ["app_status", "host_status", "releases", "service_status", "state_of", "why"]
