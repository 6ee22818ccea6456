"""From what is to what should be: starts, stops and retires whatever differs.

Pure, on a `Draft`. Level-triggered: it looks at what is, never at how it came about, so that a crash of the agent between any
two effects leads to the same end. Safe to run at any time.
"""

from __future__ import annotations

from dataclasses import replace

from midstream.core.draft import Draft
from midstream.core.events import Retired, Signal
from midstream.core.generation import ENDING, Generation, GenerationEvent, GenerationState
from midstream.core.handover import progress
from midstream.core.instance import SERVING, Instance, InstanceEvent, InstanceState
from midstream.core.instances import apply, remember_told
from midstream.core.quieting import look, tell_quiet
from midstream.core.service import soaks
from midstream.core.wanted import is_kept, may_start, targets


def converge(turn: Draft) -> None:
    _wake(turn)
    tell_quiet(turn)
    progress(turn)
    for generation in turn.service.generations:
        wanted = targets(turn.service, generation)
        _fill(turn, generation, wanted)
        _stop_surplus(turn, generation, wanted)
    for instance in turn.service.instances:
        waited = instance.state is InstanceState.WAITING and instance.due_s <= turn.now_s
        if waited and may_start(turn.service, instance):
            apply(turn, instance, InstanceEvent.DUE)
    for instance in turn.service.instances:
        if instance.draining and instance.state is InstanceState.STOPPING and not instance.looked:
            plan = next(item.plan for item in turn.service.generations if item.number == instance.generation)
            if plan.quiet_signal and not plan.leaves_when_idle:
                look(turn, instance)
    _retire(turn)


def _wake(turn: Draft) -> None:
    """The parked generation accepts again as soon as nothing soaks. It is stored as parked until the signals are
    surely sent (`confirm`)."""
    old = turn.service.committed
    if old is None or not old.parked or soaks(turn.service):
        return
    mine = turn.service.of(old.number)
    asleep = [item for item in mine if item.parked and item.state in SERVING]
    if not asleep and not any(item.signalled_s for item in mine):
        turn.put_generation(replace(old, parked=False))
    for item in asleep:
        turn.put(replace(item, parked=False, signalled_s=turn.now_s))
        turn.effects.append(Signal(item.generation, item.slot, item.attempt, old.plan.unpark_signal))


def _fill(turn: Draft, generation: Generation, wanted: frozenset[int]) -> None:
    have = {item.slot: item for item in turn.service.of(generation.number)}
    for slot in sorted(wanted):
        known = have.get(slot)
        if known is not None and known.state is not InstanceState.ENDED:
            continue
        fresh = Instance(generation.number, slot, InstanceState.WAITING, since_s=turn.now_s, due_s=turn.now_s)
        if slot in generation.finished:
            turn.put(known or replace(fresh, state=InstanceState.ENDED, why="ended for good"))
        else:
            last = max((attempt for told, attempt in generation.told if told == slot), default=-1)
            last = max(last, known.attempt) if known is not None else last
            last_exit = known.last_exit if known is not None else ""
            turn.put(replace(fresh, why="wanted", attempt=last + 1, last_exit=last_exit))


def _stop_surplus(turn: Draft, generation: Generation, wanted: frozenset[int]) -> None:
    for instance in turn.service.of(generation.number):
        if instance.slot in wanted:
            continue
        if instance.state is InstanceState.ENDED:
            if not is_kept(instance, generation):
                turn.drop(instance)
            continue
        # Where nothing runs twice, the other one waits for it: it is stopped, not drained.
        alone = generation.plan.policy == "replace"
        draining = generation.state in ENDING and not instance.is_throwaway and not alone
        if generation.plan.quiet_signal and instance.state in (InstanceState.STARTING, InstanceState.RUNNING):
            draining = draining and instance.quieted  # it has no job yet, nor may it know of the signal
        if instance.state in (InstanceState.STOPPING, InstanceState.KILLING):
            if instance.again:
                turn.put(replace(instance, again=False))
            continue
        if generation.state is GenerationState.COMMITTED:
            remember_told(turn, instance)  # a drain signal is stored once it was sent
        apply(turn, replace(instance, draining=draining, again=False), InstanceEvent.STOP)


def _retire(turn: Draft) -> None:
    for generation in turn.service.generations:
        if generation.state in ENDING and not turn.service.of(generation.number):
            after = turn.advance(generation, GenerationEvent.GONE)
            turn.effects.append(Retired(after.number))
            turn.service = replace(
                turn.service,
                generations=tuple(i for i in turn.service.generations if i.number != generation.number),
            )
