"""Processes that were there before the agent was: taken on, each for what it was.

Pure, on a `Draft`. Used by `core/turn.py` (`restore`) alone.
"""

from __future__ import annotations

from dataclasses import replace

from midstream.core.draft import Draft
from midstream.core.events import HandoverNews, Spawned, Watch
from midstream.core.generation import ENDING, PROVISIONAL, Generation, GenerationState
from midstream.core.instance import THROWAWAY_SLOT, Instance, InstanceEvent, InstanceState
from midstream.core.instances import apply
from midstream.core.succession import fail, relieve, take_away
from midstream.core.wanted import targets


def readopt(turn: Draft, seen: Spawned, generation: Generation) -> None:
    """Takes a process that was there before the agent was. Whether it is ready has to be found out again, but for
    what was proven. Only a prepared generation has to be ready in time: that a committed process said so to the
    agent that died is no reason to kill it. What was told to drain is not told again."""
    prepared = generation.state is GenerationState.PREPARED
    proven = generation.state in PROVISIONAL and not prepared
    known = Instance(
        seen.generation,
        seen.slot,
        InstanceState.READY if proven else InstanceState.RUNNING,
        attempt=seen.attempt,
        pid=seen.pid,
        since_s=turn.now_s,
        deadline_s=turn.now_s + generation.plan.start_timeout_s if prepared else 0.0,
        healthy_since_s=turn.now_s if proven else 0.0,
        parked=generation.parked,
    )
    quieted = (seen.slot, seen.attempt) in generation.quieted
    known = replace(known, quieted=quieted, unsure=quieted, told_s=turn.now_s if quieted else 0.0)
    told = (seen.slot, seen.attempt) in generation.told
    if generation.state in ENDING and told:
        known = replace(known, state=InstanceState.STOPPING, draining=True, deadline_s=generation.deadline_s)
    turn.put(known)
    if seen.pid and generation.state is GenerationState.COMMITTED and told:
        apply(turn, replace(known, again=True), InstanceEvent.STOP, "it was being stopped")
        return
    if seen.pid and generation.state not in ENDING:
        confirm = prepared and (generation.plan.confirm or seen.slot >= THROWAWAY_SLOT)
        turn.effects.append(Watch(seen.generation, seen.slot, seen.attempt, confirm, ready=proven))


def go_back_again(turn: Draft) -> None:
    """An earlier agent ended the quiet; the same again, with what is stored."""
    candidate = turn.service.candidate
    if candidate is not None:
        take_away(turn, candidate, "an earlier agent went back from it")
        turn.effects.append(HandoverNews(candidate.number, None, "an earlier agent went back from it"))
        turn.service = replace(turn.service, handover=None)
    relieve(turn, told=True)


def miss(turn: Draft) -> None:
    """A proven generation that lost a process while nobody looked is proven no longer, and is not filled up."""
    candidate = turn.service.candidate
    if candidate is not None and candidate.state is not GenerationState.PREPARED:
        missing = targets(turn.service, candidate) - {item.slot for item in turn.service.of(candidate.number)}
        if missing:
            fail(turn, candidate.number, f"instance {min(missing)} was lost before it was committed")
