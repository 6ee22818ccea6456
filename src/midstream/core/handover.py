"""The commands of a handover, and its phases: when the next one begins (`core/phases.py` has their meaning).

Pure, on a `Draft`. What the end of a handover does to the generations is in `core/succession.py`.
"""

from __future__ import annotations

from dataclasses import replace

from midstream.core.draft import Draft
from midstream.core.events import Begin, HandoverNews, Signal
from midstream.core.generation import Generation, GenerationEvent, GenerationState, IllegalTransition, Park
from midstream.core.instance import ALIVE, SERVING, THROWAWAY_SLOT
from midstream.core.phases import Handover, Phase, Quiet
from midstream.core.succession import fail, relieve, retire_surplus, supersede_committed
from midstream.core.wanted import all_healthy, goes_cold, goes_quiet, runs_twice


def begin(turn: Draft, event: Begin) -> None:
    """Records the candidate. These commands raise IllegalTransition where they do not fit."""
    if turn.service.handover is not None or turn.service.candidate is not None:
        raise IllegalTransition("a handover is under way already")
    if event.generation.state is not GenerationState.PREPARED:
        raise IllegalTransition("a handover begins with a prepared generation")
    if any(known.number >= event.generation.number for known in turn.service.generations):
        raise IllegalTransition(f"generation {event.generation.number} is not newer than all that there are")
    turn.put_generation(replace(event.generation, since_s=turn.now_s))
    begun = Handover(event.generation.number, Phase.QUEUED, turn.now_s, event.spare)
    turn.service = replace(turn.service, handover=begun)
    if not event.queued:
        enter_first_phase(turn)


def enter_first_phase(turn: Draft) -> None:
    """The host has given its word."""
    handover = turn.service.handover
    if handover is None or handover.phase is not Phase.QUEUED:
        return
    generation = turn.service.generation(handover.generation)
    assert generation is not None
    old = turn.service.committed
    if generation.plan.policy == "replace":
        turn.enter(Phase.CLEARING)
    elif generation.plan.throwaway and old is not None:
        turn.enter(Phase.TRYING)
    else:
        turn.enter(Phase.STARTING)


def soak(turn: Draft) -> None:
    """Probation begins: from here on the old generation is quiet, parked, cold, or goes on beside the new."""
    handover = turn.service.handover
    if handover is None or handover.phase is not Phase.PROVEN:
        raise IllegalTransition("only a proven handover can soak")
    generation = turn.service.generation(handover.generation)
    assert generation is not None
    turn.advance(generation, GenerationEvent.SOAK)
    old = turn.service.committed
    if old is not None and goes_quiet(old, generation):
        turn.service = replace(turn.service, quiet=Quiet(old.number, handover.spare, turn.now_s))
        turn.enter(Phase.QUIETING)
        return
    turn.enter(Phase.SOAKING)
    if old is not None and goes_cold(old, generation):
        turn.service = replace(turn.service, quiet=Quiet(old.number, handover.spare, turn.now_s, cold=True))
        return
    if old is not None and generation.plan.soak_s > 0 and old.plan.park is Park.PAUSE:
        turn.put_generation(replace(old, parked=True))
        for item in turn.service.of(old.number):
            if item.state in SERVING:
                turn.put(replace(item, parked=True))
                turn.effects.append(Signal(item.generation, item.slot, item.attempt, old.plan.park_signal))


def commit(turn: Draft) -> None:
    """From here on the candidate is what is started again after a crash."""
    handover = turn.service.handover
    generation = turn.service.generation(handover.generation) if handover else None
    if generation is None or handover is None or handover.phase not in (Phase.PROVEN, Phase.SOAKING, Phase.SOAKED):
        raise IllegalTransition("only a proven handover can be committed")
    old = turn.service.committed
    if handover.phase is Phase.PROVEN and old is not None and goes_quiet(old, generation):
        raise IllegalTransition("the old workers are not quiet")
    supersede_committed(turn)
    turn.advance(generation, GenerationEvent.COMMIT)
    turn.service = replace(turn.service, handover=None, want_up=True, quiet=None)
    retire_surplus(turn, generation.plan.max_draining)


def want(turn: Draft, up: bool) -> None:
    """The operator starts or stops the service."""
    if turn.service.handover is not None:
        raise IllegalTransition("a handover is under way")
    if up:
        relieve(turn)
    turn.service = replace(turn.service, want_up=up, quiet=None)
    committed = turn.service.committed
    if up and committed is not None:
        turn.put_generation(replace(committed, finished=()))
        for item in turn.service.of(committed.number):
            turn.put(replace(item, streak=0, due_s=turn.now_s))


def remove(turn: Draft) -> None:
    """The service is no longer configured: what runs of it drains."""
    if turn.service.handover is not None:
        raise IllegalTransition("a handover is under way")
    supersede_committed(turn)
    turn.service = replace(turn.service, want_up=False, quiet=None)


def progress(turn: Draft) -> None:
    """Moves the handover on when what its phase waits for has come."""
    handover = turn.service.handover
    generation = turn.service.generation(handover.generation) if handover else None
    if handover is None or generation is None:
        return
    mine = turn.service.of(generation.number)
    if handover.phase is Phase.CLEARING:
        if not runs_twice(turn.service, generation):
            turn.enter(Phase.STARTING)
    elif handover.phase is Phase.TRYING and all_healthy(mine, {THROWAWAY_SLOT}, generation, turn.now_s):
        turn.enter(Phase.STARTING)
    elif handover.phase is Phase.STARTING and runs_twice(turn.service, generation):
        if any(item.state in ALIVE for item in mine):
            fail(turn, generation.number, "the old one runs beside it, which it must not")
        else:
            turn.enter(Phase.CLEARING)
    elif handover.phase is Phase.STARTING:
        slots = set(range(generation.plan.instances))
        if all_healthy(mine, slots, generation, turn.now_s):
            turn.advance(generation, GenerationEvent.PROVED)
            turn.enter(Phase.PROVEN)
            turn.effects.append(HandoverNews(generation.number, Phase.PROVEN))
    elif handover.phase is Phase.QUIETING:
        _quieting(turn, generation, handover)
    if turn.service.handover is None:
        return
    handover = turn.service.handover
    if handover.phase is Phase.SOAKING and turn.now_s >= handover.since_s + generation.plan.soak_s:
        turn.enter(Phase.SOAKED)
        turn.effects.append(HandoverNews(generation.number, Phase.SOAKED))


def _quieting(turn: Draft, candidate: Generation, handover: Handover) -> None:
    """The old workers: each proven quiet, or gone. In vain for too long: the old release goes on."""
    old = turn.service.committed
    alive = [item for item in turn.service.of(old.number) if item.state in ALIVE] if old is not None else []
    loud = [item for item in alive if not item.quiet]
    if old is None or not loud:
        turn.enter(Phase.SOAKING)
        return
    if turn.now_s >= handover.since_s + old.plan.quiet_timeout_s:
        item = loud[0]
        why = item.trouble or ("it did not say so" if item.quieted else f"it is {item.state.value}")
        reason = f"the old instance {item.slot} was not proven quiet within {old.plan.quiet_timeout_s:g} s: {why}"
        fail(turn, candidate.number, reason)
