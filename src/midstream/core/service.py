"""One service on one host: what should run, what does, and the handover from one generation to the next.

Pure. What happens to a service is in `core/turn.py`. The shell
persists `durable(service)` whenever it changed, before it performs any effect; after a crash of the agent,
`restore(...)` rebuilds the rest from the keeper's table. Nothing here reads a clock: `now_s` is CLOCK_BOOTTIME.

Invariants that live here (DESIGN 2): a process is started from its generation's release and from nothing else; until
the commit the committed generation is started again after a crash; the new generation is committed only when proven;
the old one is not touched before that (but for `replace`, whose point it is).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from midstream.core.generation import ENDING, PROVISIONAL, Generation, GenerationState
from midstream.core.instance import ALIVE, Instance, InstanceState
from midstream.core.phases import Handover, Hold, Phase, Quiet


@dataclass(frozen=True, slots=True)
class Service:
    """All but the instances is durable."""

    app: str
    name: str
    want_up: bool = True
    hold: Hold | None = None
    generations: tuple[Generation, ...] = ()
    handover: Handover | None = None
    quiet: Quiet | None = None
    instances: tuple[Instance, ...] = ()

    def generation(self, number: int) -> Generation | None:
        return next((item for item in self.generations if item.number == number), None)

    @property
    def committed(self) -> Generation | None:
        return next((item for item in self.generations if item.state is GenerationState.COMMITTED), None)

    @property
    def candidate(self) -> Generation | None:
        return next((item for item in self.generations if item.state in PROVISIONAL), None)

    def of(self, generation: int) -> tuple[Instance, ...]:
        return tuple(item for item in self.instances if item.generation == generation)


def wake_s(service: Service) -> float | None:
    """The CLOCK_BOOTTIME at which `Tick` has something to do; None: never by itself."""
    times: list[float] = []
    for item in service.instances:
        if item.state is InstanceState.WAITING:
            times.append(max(item.due_s, service.hold.deadline_s if service.hold else 0.0))
        elif item.deadline_s and item.state in ALIVE:
            times.append(item.deadline_s)
        elif item.streak and item.state is InstanceState.READY and item.healthy_since_s:
            plan = next(one.plan for one in service.generations if one.number == item.generation)
            times.append(item.healthy_since_s + plan.backoff_reset_s)
    if service.hold is not None:
        times.append(service.hold.deadline_s)
    if service.quiet is not None and service.quiet.deadline_s:
        times.append(service.quiet.deadline_s)
    handover = service.handover
    if handover is not None:
        generation = service.generation(handover.generation)
        if generation is not None and handover.phase is Phase.SOAKING:
            times.append(handover.since_s + generation.plan.soak_s)
        if handover.phase is Phase.QUIETING and service.committed is not None:
            times.append(handover.since_s + service.committed.plan.quiet_timeout_s)
        if generation is not None and handover.phase in (Phase.TRYING, Phase.STARTING):
            healthy = [item.healthy_since_s for item in service.of(generation.number) if item.healthy_since_s]
            # While one of them is not healthy, that the others have been so for long enough moves nothing.
            if healthy and len(healthy) == len(service.of(generation.number)):
                times.append(max(healthy) + generation.plan.min_healthy_s)
    times += [item.signalled_s + 0.01 for item in service.instances if item.signalled_s]
    return min(times) if times else None


def standing_orders(service: Service) -> dict[int, Instance]:
    """Slots that the keeper is to keep alive while the agent is away, with the instance that holds each now."""
    committed = service.committed
    if committed is None or not service.want_up or service.hold is not None or cleared(service):
        return {}
    if service.quiet is not None:
        return {}  # one that is quiet and ends must not come back as one that fetches
    if committed.plan.restart_on != "always":
        return {}  # the keeper cannot judge an exit code; the agent will, when it is back
    return {
        item.slot: item
        for item in service.of(committed.number)
        if item.slot < committed.plan.instances and item.state is not InstanceState.ENDED
    }


def at_once(service: Service, instance: Instance) -> bool:
    """Whether the next crash of the instance is answered without a pause, so that the keeper may do it by itself. Not in
    a handover: what the agent decides then must not meet a start that it has not seen."""
    committed = service.committed
    return (
        committed is not None
        and service.handover is None
        and instance.state is InstanceState.READY
        and instance.streak == 0
        and committed.plan.backoff_first_s == 0
    )


def durable(service: Service) -> Service:
    """The part that is stored."""
    return replace(service, instances=())


def cleared(service: Service) -> bool:
    """Whether the committed generation is down on purpose, because the policy is `replace`: for the candidate, or until
    the last process of a failed one, or of the quiet one that it takes over from, is gone."""
    handover = service.handover
    if handover is not None and handover.phase is not Phase.QUEUED:
        generation = service.generation(handover.generation)
        if generation is not None and generation.plan.policy == "replace":
            return True
    committed = service.committed
    return any(
        item.state in ALIVE
        for generation in service.generations
        if generation.state in ENDING and generation.plan.policy == "replace"
        if committed is not None and (generation.number > committed.number or committed.copy_of)
        for item in service.of(generation.number)
    )


def soaks(service: Service) -> bool:
    return service.handover is not None and service.handover.phase in (Phase.SOAKING, Phase.SOAKED)
