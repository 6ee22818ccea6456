"""How one generation takes another's place: the old one is superseded, the candidate taken away, the quiet one relieved.

Pure, on a `Draft`. When that happens is said elsewhere: by the phases (`core/handover.py`), or by an instance that failed
(`core/instances.py`).
"""

from __future__ import annotations

from dataclasses import replace

from midstream.core.draft import Draft
from midstream.core.events import HandoverNews
from midstream.core.generation import PROVISIONAL, Generation, GenerationEvent, GenerationState
from midstream.core.instance import InstanceState


def supersede_committed(turn: Draft) -> None:
    """The committed generation, if there is one, drains from now on."""
    old = turn.service.committed
    if old is not None:
        after = turn.advance(old, GenerationEvent.SUPERSEDE)
        deadline_s = turn.now_s + old.plan.drain_timeout_s
        turn.put_generation(replace(after, deadline_s=deadline_s, parked=False, told=()))


def retire_surplus(turn: Draft, most: int) -> None:
    """Of more than `most` draining generations the oldest have to end now."""
    draining = [item for item in turn.service.generations if item.state is GenerationState.DRAINING]
    for surplus in draining[: max(0, len(draining) - most)]:
        turn.put_generation(replace(surplus, deadline_s=turn.now_s))
        for item in turn.service.of(surplus.number):
            if item.state is InstanceState.STOPPING:
                turn.put(replace(item, deadline_s=turn.now_s))


def relieve(turn: Draft, told: bool = False) -> None:
    """Ends the quiet. Workers that were told so never fetch again, so a fresh generation of the same release and
    configuration takes over, and they finish their jobs behind it. told: whatever is recorded of that."""
    quiet = turn.service.quiet
    old = turn.service.generation(quiet.generation) if quiet is not None else None
    turn.service = replace(turn.service, quiet=None)
    if quiet is None or old is None or old.state is not GenerationState.COMMITTED:
        return
    if not old.quieted and not told:
        for item in turn.service.of(old.number):
            turn.put(replace(item, looked=False, seen=False, trouble=""))
        return
    supersede_committed(turn)
    fresh = replace(
        old,
        number=quiet.spare,
        since_s=turn.now_s,
        deadline_s=0.0,
        note=f"takes over from the quiet generation {old.number}",
        finished=(),
        told=(),
        quieted=(),
        copy_of=old.copy_of or old.number,
    )
    turn.put_generation(fresh)
    turn.note("generation", f"committed: {fresh.note}", fresh.number)
    retire_surplus(turn, fresh.plan.max_draining)


def take_away(turn: Draft, candidate: Generation, reason: str) -> None:
    """The candidate has failed: whatever it runs is stopped."""
    after = turn.advance(candidate, GenerationEvent.FAIL, reason)
    # It may have accepted real requests (park = mixed): they are answered, like any others.
    turn.put_generation(replace(after, deadline_s=turn.now_s + after.plan.drain_timeout_s))


def revert(turn: Draft, reason: str) -> None:
    """Ends the handover in favour of the committed generation, whose workers fetch again."""
    candidate = turn.service.candidate
    if candidate is not None:
        take_away(turn, candidate, reason)
    turn.service = replace(turn.service, handover=None)
    if turn.service.quiet is not None and not turn.service.quiet.deadline_s:
        relieve(turn)


def fail(turn: Draft, number: int, reason: str) -> None:
    """Likewise, by itself, and the host is told; nothing where that generation is no candidate (any more)."""
    generation = turn.service.generation(number)
    if generation is None or generation.state not in PROVISIONAL:
        return
    revert(turn, reason)
    turn.effects.append(HandoverNews(number, None, reason))
