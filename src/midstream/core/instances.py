"""What an event makes of one instance: the table of `core/instance.py` performed, and what follows for its generation.

Pure, on a `Draft`. Not here: which instances there should be (`core/wanted.py`, `core/converging.py`).
"""

from __future__ import annotations

from dataclasses import replace

from midstream.core.draft import Draft
from midstream.core.events import Ended, Healthy, KillTree, Ready, Signal, Spawn, Spawned, Sweep, Unhealthy, Watch
from midstream.core.generation import ENDING, PROVISIONAL, Generation, GenerationState, pause_s
from midstream.core.instance import JUDGED, SERVING, TABLE, Action, Instance, InstanceEvent, InstanceState
from midstream.core.succession import fail
from midstream.core.wanted import is_kept, targets


def take_event(
    turn: Draft,
    event: Spawned | Ended | Ready | Unhealthy,
    kind: InstanceEvent,
    *,
    pid: int = 0,
    why: str = "",
) -> None:
    """Of an instance that is not known a start is taken for the keeper's own, when it is the newest; else it is a stray."""
    instance = turn.find(event)
    if instance is None:
        if isinstance(event, Ended):
            turn.effects.append(Sweep(event.generation, event.slot, event.attempt))
        elif isinstance(event, Spawned) and _is_newer(turn, event):
            _adopt(turn, event)
        elif isinstance(event, Spawned):
            turn.note("stray", "a process beside a later one, or of no generation", event.generation, event.slot)
            turn.effects.append(KillTree(event.generation, event.slot, event.attempt))
        return
    if pid:
        instance = replace(instance, pid=pid)
    apply(turn, instance, kind, why)


def _is_newer(turn: Draft, event: Spawned) -> bool:
    """A process that the keeper started by its standing order."""
    generation = turn.service.generation(event.generation)
    known = next(
        (i for i in turn.service.instances if (i.generation, i.slot) == (event.generation, event.slot)),
        None,
    )
    return generation is not None and (known is None or known.attempt < event.attempt)


def _adopt(turn: Draft, event: Spawned) -> None:
    old = next(
        (i for i in turn.service.instances if (i.generation, i.slot) == (event.generation, event.slot)),
        None,
    )
    restarts = old.restarts + 1 if old else 0
    if old is not None:
        turn.effects.append(Sweep(old.generation, old.slot, old.attempt))
    apply(
        turn,
        Instance(
            event.generation,
            event.slot,
            InstanceState.STARTING,
            attempt=event.attempt,
            pid=event.pid,
            restarts=restarts,
            why="started by the keeper's standing order",
        ),
        InstanceEvent.SPAWNED,
    )


def apply(turn: Draft, instance: Instance, kind: InstanceEvent, why: str = "") -> None:
    """Looks the event up in the table and performs the action."""
    state, action = TABLE[instance.state, kind]
    generation = turn.service.generation(instance.generation)
    assert generation is not None
    plan = generation.plan
    after = instance
    if state is not instance.state:
        after = replace(instance, state=state, since_s=turn.now_s, deadline_s=0.0, why=why or instance.why)
    name = (instance.generation, instance.slot, instance.attempt)
    match action:
        case Action.SPAWN:
            after = replace(after, deadline_s=turn.now_s + plan.start_timeout_s)
            turn.effects.append(Spawn(*name))
        case Action.WATCH:
            after = replace(after, deadline_s=turn.now_s + plan.start_timeout_s)
            _started_again(turn, generation, instance.slot)
            confirm = generation.state in PROVISIONAL and plan.confirm
            turn.effects.append(Watch(*name, confirm or instance.is_throwaway))
        case Action.SIGNAL:
            after = tell_to_end(turn, after, generation)
        case Action.KILL:
            after = replace(after, deadline_s=turn.now_s + max(2.0, plan.stop_timeout_s))
            turn.effects.append(KillTree(*name))
        case Action.SETTLE:
            turn.put(after)
            _settle(turn, after, generation)
            return
        case Action.CANCEL:
            if is_kept(instance, generation):
                turn.put(after)
            else:
                turn.drop(instance)
            return
        case Action.NONE:
            pass
    if state is InstanceState.READY and instance.state is not InstanceState.READY:
        after = _became_ready(turn, after, generation)
    turn.put(after)


def _became_ready(turn: Draft, instance: Instance, generation: Generation) -> Instance:
    if generation.state in PROVISIONAL and (generation.plan.confirm or instance.is_throwaway):
        # The shell's own check gives up first and says why; this is the backstop.
        return replace(instance, deadline_s=turn.now_s + generation.plan.healthy_timeout_s + 5.0)
    return replace(instance, healthy_since_s=turn.now_s, deadline_s=0.0)


def tell_to_end(turn: Draft, instance: Instance, generation: Generation, cut: bool = False) -> Instance:
    """cut: whatever it has in hand."""
    name = (instance.generation, instance.slot, instance.attempt)
    plan = generation.plan
    if instance.draining:
        if not instance.quieted:  # else it was told, by the same or a stronger word
            turn.effects.append(Signal(*name, plan.drain_signal))
        deadline = generation.deadline_s or turn.now_s + plan.drain_timeout_s
        told_s = instance.told_s or turn.now_s
        return replace(instance, deadline_s=max(deadline, turn.now_s), signalled_s=turn.now_s, told_s=told_s)
    again = instance.quieted and plan.quiet_once and not cut
    if not again:
        turn.effects.append(Signal(*name, plan.stop_signal))
    return replace(instance, deadline_s=turn.now_s + plan.stop_timeout_s)


def take_ended(turn: Draft, event: Ended) -> None:
    instance = turn.find(event)
    generation = turn.service.generation(event.generation)
    turn.effects.append(Sweep(event.generation, event.slot, event.attempt))
    if instance is None or generation is None:
        return
    ok = event.code is not None and event.code in generation.plan.ok_codes
    stopped = instance.state in (InstanceState.STOPPING, InstanceState.KILLING)
    turn.put(replace(instance, last_exit=event.text))
    turn.note("stopped" if stopped else "exited", event.text, event.generation, event.slot)
    wanted = event.slot in targets(turn.service, generation)
    if not stopped and wanted and generation.state in PROVISIONAL:
        what = "the throw-away instance" if instance.is_throwaway else f"instance {instance.slot}"
        fail(turn, event.generation, f"{what} {event.text} before it was committed")
    found = turn.find(event)
    if found is None:
        return
    again = generation.plan.restart_on == "always" or (generation.plan.restart_on == "failure" and not ok)
    again = again or not event.ran or (event.slot, event.attempt) in generation.told
    apply(turn, replace(found, again=found.again or again or stopped), InstanceEvent.ENDED)


def _settle(turn: Draft, instance: Instance, generation: Generation) -> None:
    """The process is gone. A slot of the committed generation that is wanted now is filled again, whyever it ended;
    but for what ended by itself, there `restart_on` decides."""
    generation = turn.service.generation(generation.number) or generation
    if not is_kept(instance, generation):
        turn.drop(instance)
        return
    if instance.slot not in targets(turn.service, generation):
        return
    if not instance.again:
        turn.put_generation(replace(generation, finished=(*generation.finished, instance.slot)))
        return
    lived = turn.now_s - instance.healthy_since_s if instance.healthy_since_s else 0.0
    streak = 1 if lived >= generation.plan.backoff_reset_s else instance.streak + 1
    pause = pause_s(generation.plan, streak, turn.luck)
    turn.put(
        Instance(
            instance.generation,
            instance.slot,
            InstanceState.WAITING,
            attempt=instance.attempt + 1,
            since_s=turn.now_s,
            due_s=turn.now_s + pause,
            streak=streak,
            restarts=instance.restarts + 1,
            last_exit=instance.last_exit,
            why=instance.why or f"crashed: {instance.last_exit}",
        )
    )
    if pause:
        turn.note("backoff", f"start again in {pause:.1f} s", instance.generation, instance.slot)


def take_healthy(turn: Draft, event: Healthy) -> None:
    instance = turn.find(event)
    if instance is None or instance.state not in (InstanceState.READY, InstanceState.RUNNING):
        return
    if instance.state is InstanceState.RUNNING:
        apply(turn, instance, InstanceEvent.READY)
        instance = turn.find(event)
        assert instance is not None
    if not instance.healthy_since_s or instance.deadline_s:
        turn.put(replace(instance, healthy_since_s=instance.healthy_since_s or turn.now_s, deadline_s=0.0))


def take_unhealthy(turn: Draft, event: Unhealthy) -> None:
    generation = turn.service.generation(event.generation)
    instance = turn.find(event)
    if generation is None or instance is None:
        return
    if generation.state in PROVISIONAL and instance.state in JUDGED:
        fail(turn, event.generation, event.reason)
    elif generation.state is GenerationState.COMMITTED and instance.state in SERVING and not instance.parked:
        turn.note("unhealthy", event.reason, event.generation, event.slot)
        turn.put(replace(instance, again=True))
        remember_told(turn, instance)
        take_event(turn, event, InstanceEvent.UNHEALTHY, why=event.reason)


def pass_deadline(turn: Draft, instance: Instance) -> None:
    generation = turn.service.generation(instance.generation)
    assert generation is not None
    if instance.state is InstanceState.STOPPING and instance.draining:
        turn.note("drain", "drain time-out: what is unfinished is cut", instance.generation, instance.slot)
        turn.put(tell_to_end(turn, replace(instance, draining=False), generation, cut=True))
        return
    if generation.state in ENDING and instance.state in JUDGED:
        return  # another one's time-out failed the generation just now; it is stopped like any other
    if instance.state is InstanceState.READY and generation.state in PROVISIONAL:
        fail(
            turn,
            generation.number,
            f"no health check was answered within {generation.plan.healthy_timeout_s:g} s",
        )
        return
    if instance.state in (InstanceState.STARTING, InstanceState.RUNNING):
        reason = f"not ready within {generation.plan.start_timeout_s:g} s"
        turn.note("timeout", reason, instance.generation, instance.slot)
        if generation.state in PROVISIONAL:
            fail(turn, generation.number, f"instance {instance.slot} was {reason}")
            return
        instance = replace(instance, again=True)
        remember_told(turn, instance)
    apply(turn, instance, InstanceEvent.DEADLINE)


def remember_told(turn: Draft, instance: Instance) -> None:
    """For an agent that comes back: it would else take the end for the last one (`restart_on`), or go on with a
    process that was told to stop and serves no longer."""
    generation = turn.service.generation(instance.generation)
    if generation is not None and (generation.state is GenerationState.COMMITTED or generation.state in ENDING):
        told = {*generation.told, (instance.slot, instance.attempt)}
        turn.put_generation(replace(generation, told=tuple(sorted(told))))


def _started_again(turn: Draft, generation: Generation, slot: int) -> None:
    if generation.state is GenerationState.COMMITTED and any(item[0] == slot for item in generation.told):
        told = tuple(item for item in generation.told if item[0] != slot)
        turn.put_generation(replace(generation, told=told))
