"""Workers that are to begin no further job: told, looked at in their job library, told again where they did not hear it.

Pure, on a `Draft`. How a quiet ends is in `core/succession.py` (`relieve`).
"""

from __future__ import annotations

from dataclasses import replace

from midstream.core.draft import Draft
from midstream.core.events import Look, Observed, Quieten, Signal
from midstream.core.generation import Generation, GenerationPlan, IllegalTransition
from midstream.core.instance import ALIVE, SERVING, Instance, InstanceState
from midstream.core.instances import tell_to_end
from midstream.core.phases import Quiet

_DEAF_S = 12.0  # more than the longest time between two heartbeats
_UNSURE_S = 2.0  # a worker that an earlier agent told to be quiet, perhaps, has this long to say so


def take_observed(turn: Draft, event: Observed) -> None:
    instance = turn.find(event)
    generation = turn.service.generation(event.generation)
    if instance is None or generation is None or instance.state not in ALIVE:
        return
    if event.trouble:
        turn.put(replace(instance, trouble=event.trouble))
        return
    known = replace(instance, seen=True, quiet=event.quiet, trouble="")
    if event.quiet:
        known = replace(known, unsure=False)
    elif _is_deaf(turn, known, generation.plan):
        known = replace(known, unsure=False, told_s=turn.now_s)
        draining = known.state is InstanceState.STOPPING
        signal = generation.plan.drain_signal if draining else generation.plan.quiet_signal
        turn.effects.append(Signal(known.generation, known.slot, known.attempt, signal))
    turn.put(known)
    if event.idle and known.state is InstanceState.STOPPING and known.draining:
        turn.note("idle", "has finished its jobs", known.generation, known.slot)
        turn.put(tell_to_end(turn, replace(known, draining=False), generation, cut=True))


def _is_deaf(turn: Draft, item: Instance, plan: GenerationPlan) -> bool:
    """Whether it has to be told again: an earlier agent died before it did, or (where twice does no harm) the signal
    was lost, as SIGCONT throws away a SIGTSTP that waits."""
    if item.state is InstanceState.STOPPING and not item.draining:
        return False  # it was told more than that
    if item.unsure:
        return turn.now_s >= item.told_s + _UNSURE_S
    return bool(item.told_s) and not plan.quiet_once and turn.now_s >= item.told_s + _DEAF_S


def quieten(turn: Draft, event: Quieten) -> None:
    committed = turn.service.committed
    if turn.service.handover is not None:
        raise IllegalTransition("a handover is under way")
    if committed is None or not turn.service.want_up or not committed.plan.quiet_signal:
        raise IllegalTransition("there is nothing to quiet")
    known = turn.service.quiet
    spare = known.spare if known is not None else event.spare
    since_s = known.since_s if known is not None else turn.now_s
    quiet = Quiet(committed.number, spare, since_s, event.deadline_s, event.owner, event.reason)
    turn.service = replace(turn.service, quiet=quiet)


def tell_quiet(turn: Draft) -> None:
    """All workers of the committed generation are told at once, and none before each was found in the job library:
    where nothing can be proven nothing is touched. What is still starting is waited for: a signal that it does not
    catch yet would stop it for good."""
    quiet = turn.service.quiet
    generation = turn.service.generation(quiet.generation) if quiet is not None else None
    if generation is None:
        return
    alive = [item for item in turn.service.of(generation.number) if item.state in SERVING | {InstanceState.STARTING}]
    if quiet is not None and quiet.cold:
        # What boots is told when it is ready: it serves nobody yet, and may not know the signal.
        _tell(turn, generation, [item for item in alive if not item.quieted and item.state is InstanceState.READY])
        return
    for item in alive:
        if not item.looked and (item.state is InstanceState.READY or item.quieted):
            look(turn, item)
    untold = [item for item in alive if not item.quieted]
    if not all(item.seen and item.state is InstanceState.READY for item in untold):
        return
    _tell(turn, generation, untold)


def _tell(turn: Draft, generation: Generation, untold: list[Instance]) -> None:
    quiet = turn.service.quiet
    signal = generation.plan.drain_signal if quiet and quiet.cold else generation.plan.quiet_signal
    for item in untold:
        now = turn.find(Observed(item.generation, item.slot, item.attempt))
        assert now is not None
        turn.put(replace(now, quieted=True, quiet=False, told_s=turn.now_s))
        turn.effects.append(Signal(item.generation, item.slot, item.attempt, signal))
    if untold:
        told = {*generation.quieted, *((item.slot, item.attempt) for item in untold)}
        turn.put_generation(replace(generation, quieted=tuple(sorted(told))))


def look(turn: Draft, instance: Instance) -> None:
    turn.put(replace(instance, looked=True))
    turn.effects.append(Look(instance.generation, instance.slot, instance.attempt))
