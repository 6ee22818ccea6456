"""What one event makes of a service. `step` and `restore` are the whole interface.

Pure. The tables are in `core/instance.py` and `core/generation.py`. What spans several instances or generations: their
events in `core/instances.py`, the phases of a handover in `core/handover.py`, who takes whose place in
`core/succession.py`, workers in `core/quieting.py`. After each event `core/converging.py` brings what is to what should be
(`core/wanted.py`).
"""

from __future__ import annotations

from dataclasses import replace

from midstream.core.converging import converge
from midstream.core.draft import Draft
from midstream.core.events import (
    Begin,
    Commit,
    Effect,
    Ended,
    Event,
    Extended,
    Go,
    Healthy,
    KillTree,
    Note,
    Observed,
    Quieten,
    Ready,
    Refuted,
    Remove,
    Revert,
    Said,
    SetHold,
    Soak,
    Spawned,
    Tick,
    Unhealthy,
    Waken,
    Want,
)
from midstream.core.generation import ENDING
from midstream.core.handover import begin, commit, enter_first_phase, remove, soak, want
from midstream.core.instance import ALIVE, JUDGED, InstanceEvent
from midstream.core.instances import pass_deadline, remember_told, take_ended, take_event, take_healthy, take_unhealthy
from midstream.core.quieting import quieten, take_observed
from midstream.core.readopting import go_back_again, miss, readopt
from midstream.core.service import Service
from midstream.core.succession import fail, relieve, revert


def step(service: Service, event: Event, now_s: float, luck: float = 0.5) -> tuple[Service, tuple[Effect, ...]]:
    """What `event` makes of `service`, and what is to be done about it. Raises IllegalTransition, nothing changed."""
    turn = Draft(service, now_s, luck)
    _confirm(turn)
    _take(turn, event)
    converge(turn)
    return turn.service, tuple(turn.effects)


def restore(
    stored: Service, live: tuple[Spawned, ...], ended: tuple[Ended, ...], now_s: float
) -> tuple[Service, tuple[Effect, ...]]:
    """The service after a restart of the agent: `stored` plus the processes the keeper has, or has seen end.

    A process of a generation that is not recorded is killed: it can only come from a truth that was lost. But for the
    fresh generation that takes over from a quiet one: its number was stored with the quiet, so one process of it tells
    that an earlier agent went back, and that a full disk did not take it.
    """
    turn = Draft(replace(stored, instances=()), now_s, 0.5)
    if stored.quiet is not None and any(seen.generation == stored.quiet.spare for seen in live):
        go_back_again(turn)
    last = {(seen.generation, seen.slot): seen.attempt for seen in sorted(ended, key=lambda seen: seen.attempt)}
    last.update({(seen.generation, seen.slot): seen.attempt for seen in sorted(live, key=lambda seen: seen.attempt)})
    for seen in live:
        generation = turn.service.generation(seen.generation)
        if generation is None or last[seen.generation, seen.slot] != seen.attempt:
            turn.effects.append(KillTree(seen.generation, seen.slot, seen.attempt))
            turn.effects.append(Note("stray", "a process that nothing accounts for", seen.generation, seen.slot))
        else:
            readopt(turn, seen, generation)
    for gone in ended:
        generation = turn.service.generation(gone.generation)
        if generation is not None and last[gone.generation, gone.slot] == gone.attempt:
            readopt(turn, Spawned(gone.generation, gone.slot, gone.attempt, 0), generation)
        _take(turn, gone)
    miss(turn)
    converge(turn)
    return turn.service, tuple(turn.effects)


def _confirm(turn: Draft) -> None:
    """Stores which signals were sent, once they surely were: in a turn of a later time than the one that sent them
    (the shell may take several turns before it acts, at one time). An agent that dies in between sends them again;
    later ones do not, because for some a second TERM kills the job in hand."""
    for item in turn.service.instances:
        if not item.signalled_s or item.signalled_s >= turn.now_s:
            continue
        turn.put(replace(item, signalled_s=0.0))
        generation = turn.service.generation(item.generation)
        if generation is not None and generation.state in ENDING:
            remember_told(turn, item)


def _take(turn: Draft, event: Event) -> None:
    match event:
        case Spawned():
            take_event(turn, event, InstanceEvent.SPAWNED, pid=event.pid)
        case Ended():
            take_ended(turn, event)
        case Ready():
            take_event(turn, event, InstanceEvent.READY)
        case Healthy():
            take_healthy(turn, event)
        case Refuted():
            found = turn.find(event)
            if found is not None and found.state in JUDGED:
                fail(turn, event.generation, event.reason)
        case Unhealthy():
            take_unhealthy(turn, event)
        case Extended():
            found = turn.find(event)
            if found is not None and found.deadline_s:
                turn.put(replace(found, deadline_s=max(found.deadline_s, turn.now_s + event.extra_s)))
        case Said():
            found = turn.find(event)
            if found is not None:
                turn.put(replace(found, status_text=event.text))
        case Observed():
            take_observed(turn, event)
        case Tick():
            _tick(turn)
        case _:
            _command(turn, event)


def _command(turn: Draft, event: Event) -> None:
    match event:
        case Begin():
            begin(turn, event)
        case Go():
            enter_first_phase(turn)
        case Soak():
            soak(turn)
        case Commit():
            commit(turn)
        case Revert():
            revert(turn, event.reason)
        case Want():
            want(turn, event.up)
        case SetHold():
            turn.service = replace(turn.service, hold=event.hold)
        case Quieten():
            quieten(turn, event)
        case Waken():
            relieve(turn)
        case Remove():
            remove(turn)


def _tick(turn: Draft) -> None:
    hold = turn.service.hold
    if hold is not None and hold.deadline_s <= turn.now_s:
        turn.note("hold", f"the hold of {hold.owner} ran out")
        turn.service = replace(turn.service, hold=None)
    quiet = turn.service.quiet
    if quiet is not None and quiet.deadline_s and quiet.deadline_s <= turn.now_s:
        relieve(turn)
    for instance in turn.service.instances:
        if instance.deadline_s and instance.deadline_s <= turn.now_s and instance.state in ALIVE:
            pass_deadline(turn, instance)
    for instance in turn.service.instances:
        generation = turn.service.generation(instance.generation)
        if not instance.streak or not instance.healthy_since_s or generation is None:
            continue
        if turn.now_s >= instance.healthy_since_s + generation.plan.backoff_reset_s:
            turn.put(replace(instance, streak=0))
