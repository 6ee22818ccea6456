"""`quiet` on request: workers begin no further job for a while, and fetch again when it ends, whatever happens meanwhile.

What lives here: the order of asking, waiting and telling. What must not: when a quiet ends (`core/succession.py`: at its
deadline, by `Waken`, with a handover, with a start or stop). Runs in the agent's loop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from midstream.agent.host import Host
from midstream.agent.store import AppRecord
from midstream.core.events import Quieten, Waken
from midstream.core.instance import ALIVE, Instance
from midstream.core.service import Service
from midstream.errors import HostError, OperatorError
from midstream.linux import clock

_MARGIN_S = 5.0


async def begin(
    host: Host, record: AppRecord, service: Service, ttl_s: float, owner: str, reason: str, wait: bool
) -> dict[str, Any]:
    """Returns when each worker is proven quiet. Raises OperatorError for what is no worker, HostError when it could not be
    proven; nothing was told then, or the quiet goes on and says so."""
    name = (service.app, service.name)
    committed = service.committed
    if committed is None or not service.want_up:
        raise OperatorError(f"{service.name} does not run", remedy=f"midstream start {service.name}")
    if not committed.plan.quiet_signal:
        raise OperatorError(
            f"{service.name} is not a worker that can be quieted",
            remedy=f"name its library in services.{service.name}.profile, or: midstream stop {service.name}",
        )
    spare = record.generation + 1
    after = replace(record, generation=spare)
    host.who[name] = owner
    event = Quieten(spare, clock.boottime_s() + ttl_s, owner, reason)
    await host.decide([(name, event)], lambda: host.store.put_app(after))
    host.apps[record.app] = after
    host.note(*name, "quiet", f"{owner}, {ttl_s:g} s: {reason}", committed.number, who=owner)
    if wait:
        await host.until(lambda: _over(host.services[name]), committed.plan.quiet_timeout_s + _MARGIN_S)
        await _insist(host, host.services[name])
    return told(host, host.services[name])


async def end(host: Host, service: Service, owner: str) -> dict[str, Any]:
    """A fresh generation of the same release takes over; the quiet one finishes its jobs."""
    name = (service.app, service.name)
    if service.quiet is not None:
        host.who[name] = owner
        await host.decide([(name, Waken())])
        host.note(*name, "quiet", "ended", who=owner)
    return told(host, host.services[name])


def told(host: Host, service: Service) -> dict[str, Any]:
    """The answer of the method `quiet`."""
    quiet = service.quiet
    return {
        "service": service.name,
        "quiet": quiet is not None and not _loud(service),
        "expires_in_s": round(quiet.deadline_s - clock.boottime_s(), 1) if quiet is not None else None,
        "jobs": sum(len(jobs_of(host, service, item) or ()) for item in service.instances),
    }


def jobs_of(host: Host, service: Service, item: Instance) -> list[dict[str, Any]] | None:
    """What the worker has in hand, as its library last said; None: it is no worker, or nothing is known."""
    seen = host.looks.seen((service.app, service.name), (item.generation, item.slot, item.attempt))
    return seen.jobs if seen is not None and seen.listed else None


def _loud(service: Service) -> list[Instance]:
    number = service.quiet.generation if service.quiet is not None else 0
    return [item for item in service.of(number) if item.state in ALIVE and not item.quiet]


def _over(service: Service) -> bool:
    return service.quiet is None or not _loud(service)


async def _insist(host: Host, service: Service) -> None:
    name = (service.app, service.name)
    quiet, loud = service.quiet, _loud(service)
    if quiet is None or not loud:
        return
    committed = service.committed
    why = loud[0].trouble or "it did not say so"
    if committed is not None and not committed.quieted:
        await host.decide([(name, Waken())])
        raise HostError(
            f"{service.name}/{loud[0].slot} could not be asked, so nothing was quieted: {why}",
            serving="it works on",
            remedy=f"see services.{service.name}.redis; or: midstream stop {service.name}",
        )
    left_s = quiet.deadline_s - clock.boottime_s()
    raise HostError(
        f"{service.name}/{loud[0].slot} was told to be quiet and is not proven to be: {why}",
        serving=f"what is quiet stays so for another {left_s:.0f} s",
        remedy=f"midstream status {service.name}; midstream quiet {service.name} --end",
    )
