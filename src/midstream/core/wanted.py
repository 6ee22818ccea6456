"""What a service should have now: which slots of a generation a process, and what has to wait for what.

Pure questions about a `Service`; nothing is changed here (`core/turn.py`).
"""

from __future__ import annotations

from midstream.core.generation import PROVISIONAL, Generation, GenerationState, Park
from midstream.core.instance import ALIVE, JUDGED, THROWAWAY_SLOT, Instance, InstanceState
from midstream.core.phases import Phase
from midstream.core.service import Service, cleared


def goes_quiet(old: Generation, candidate: Generation) -> bool:
    """Whether the old workers must be proven quiet before the new ones are committed."""
    return candidate.plan.policy == "drain" and bool(old.plan.quiet_signal)


def goes_cold(old: Generation, candidate: Generation) -> bool:
    """Whether the old generation drains while the new one soaks."""
    cold = old.plan.park is Park.COLD and candidate.plan.soak_s > 0 and candidate.plan.policy != "replace"
    return cold and not goes_quiet(old, candidate)


def targets(service: Service, generation: Generation) -> frozenset[int]:
    """The slots of the generation that should have a process now."""
    number, plan = generation.number, generation.plan
    slots = frozenset(range(plan.instances))
    if generation.state is GenerationState.COMMITTED and service.quiet is not None:
        # What ends of it is not started again: it would fetch.
        judged = frozenset(item.slot for item in service.of(number) if item.state in JUDGED)
        return judged if service.want_up else frozenset()
    if generation.state is GenerationState.COMMITTED:
        return slots if service.want_up and not cleared(service) else frozenset()
    if generation.state not in PROVISIONAL:
        return frozenset()
    handover = service.handover
    if handover is None or handover.generation != number or handover.phase in (Phase.QUEUED, Phase.CLEARING):
        return frozenset()
    if handover.phase is Phase.TRYING:
        return frozenset({THROWAWAY_SLOT})
    if plan.surge and handover.phase is Phase.STARTING:
        mine = [item for item in service.of(number) if not item.is_throwaway]
        done = sum(1 for item in mine if item.healthy_since_s)
        # What was started stays, healthy or (after a restart of the agent) not known to be.
        return frozenset(range(min(plan.instances, done + plan.surge))) | {item.slot for item in mine}
    return slots


def may_start(service: Service, instance: Instance) -> bool:
    """A hold keeps what is committed from being started, not the handover of its owner."""
    return service.hold is None or instance.generation != getattr(service.committed, "number", -1)


def is_kept(instance: Instance, generation: Generation) -> bool:
    """Whether its last attempt must be remembered once it has ended, so that the next one gets another name."""
    lasting = generation.state is GenerationState.COMMITTED or generation.state in PROVISIONAL
    return lasting and instance.slot < generation.plan.instances


def runs_twice(service: Service, candidate: Generation) -> bool:
    """Whether a candidate with the policy `replace` would not be the only one."""
    return candidate.plan.policy == "replace" and any(
        item.state in ALIVE for item in service.instances if _excludes(service, item)
    )


def _excludes(service: Service, instance: Instance) -> bool:
    """Whether a candidate with the policy `replace` cannot start while this instance lives."""
    generation = service.generation(instance.generation)
    if generation is None or generation.state in PROVISIONAL:
        return False
    return generation.state is GenerationState.COMMITTED or generation.plan.policy == "replace"


def all_healthy(mine: tuple[Instance, ...], slots: set[int], generation: Generation, now_s: float) -> bool:
    """Whether each of the slots is ready, and has been healthy for as long as the plan asks."""
    healthy = {
        item.slot
        for item in mine
        if item.state is InstanceState.READY
        and item.healthy_since_s
        and now_s >= item.healthy_since_s + generation.plan.min_healthy_s
    }
    return slots <= healthy
