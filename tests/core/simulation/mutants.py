"""Ways to break the core that the simulation must catch: one change of text each, in a copy.

Used by `test_simulation.py::test_the_simulation_bites`. A text that is no longer in the core is an error: move the
mutant along with the rule that it breaks.
"""

from __future__ import annotations

from dataclasses import dataclass

CONVERGING = "converging.py"
GENERATION = "generation.py"
HANDOVER = "handover.py"
INSTANCES = "instances.py"
INTENT = "intent.py"
READOPTING = "readopting.py"
SERVICE = "service.py"
SUCCESSION = "succession.py"
TURN = "turn.py"
WANTED = "wanted.py"


@dataclass(frozen=True)
class Mutant:
    name: str
    changes: tuple[tuple[str, str, str], ...]  # file, text, what it becomes
    often: bool = True  # caught within the first hundred histories
    first: int = 0  # where the histories begin: near one that is known to catch a rare one


def _one(name: str, file: str, text: str, becomes: str, often: bool = True, first: int = 0) -> Mutant:
    return Mutant(name, ((file, text, becomes),), often, first)


MUTANTS = (
    Mutant(
        "commit before proven",
        (
            (GENERATION, "(_S.PREPARED, _E.COMMIT): None,", "(_S.PREPARED, _E.COMMIT): _S.COMMITTED,"),
            (HANDOVER, "not in (Phase.PROVEN, Phase.SOAKING, Phase.SOAKED):", "in ():"),
            (INTENT, "_S.PUBLISHING: {", "_S.PUBLISHING: {_E.COMMIT: _S.COMMITTED, "),
        ),
    ),
    _one("one healthy slot proves all", WANTED, "return slots <= healthy", "return bool(slots & healthy)"),
    _one(
        "ready counts as healthy",
        INSTANCES,
        "if generation.state in PROVISIONAL and (generation.plan.confirm or instance.is_throwaway):",
        "if False:",
    ),
    _one(
        "a draining generation is started again",
        WANTED,
        "    if generation.state not in PROVISIONAL:\n        return frozenset()\n    handover",
        "    if generation.state is GenerationState.DRAINING:\n        return slots\n    handover",
    ),
    _one("forget to wake the parked", CONVERGING, "old.plan.unpark_signal))", "''))"),
    _one(
        "wake the parked after the new one stops",
        CONVERGING,
        "    _wake(turn)\n    tell_quiet(turn)\n    progress(turn)",
        "    progress(turn)\n"
        "    for item in turn.service.generations:\n"
        "        if item.state in ENDING:\n"
        "            _stop_surplus(turn, item, frozenset())\n"
        "    _wake(turn)",
    ),
    _one(
        "waking is stored before it is done",
        CONVERGING,
        "if not asleep and not any(item.signalled_s for item in mine):",
        "if True:",
        often=False,
    ),
    _one(
        "the soak drains the old",
        HANDOVER,
        "    turn.advance(generation, GenerationEvent.SOAK)\n",
        "    turn.advance(generation, GenerationEvent.SOAK)\n    supersede_committed(turn)\n",
    ),
    _one(
        "a crash is made good from the new release",
        INSTANCES,
        "instance.generation,\n            instance.slot,\n            InstanceState.WAITING,",
        "turn.service.generations[-1].number,\n            instance.slot,\n            InstanceState.WAITING,",
    ),
    _one(
        "replace: the old comes back beside the failed",
        SERVICE,
        'if generation.state in ENDING and generation.plan.policy == "replace"',
        "if False",
    ),
    _one(
        "replace: the new starts beside the old",
        WANTED,
        'return candidate.plan.policy == "replace" and any(',
        "return any([]) and any(",
    ),
    _one(
        "stopped and wanted again stays down", INSTANCES, "again=found.again or again or stopped", "again=not stopped"
    ),
    _one(
        "a crash of the candidate is passed over",
        INSTANCES,
        "if not stopped and wanted and generation.state in PROVISIONAL:",
        "if not stopped and wanted and generation.state is GenerationState.PREPARED:",
    ),
    _one("a lost proof is filled up", TURN, "    miss(turn)\n", "", often=False),
    _one("a hold is passed over", WANTED, "return service.hold is None or instance", "return True or instance"),
    Mutant(
        "a hold never expires",
        (
            (TURN, "        turn.service = replace(turn.service, hold=None)", "        pass"),
            (SERVICE, "        times.append(service.hold.deadline_s)", "        pass"),
        ),
    ),
    _one(
        "orders stand during a hold",
        SERVICE,
        "or not service.want_up or service.hold is not None or cleared(service)",
        "or not service.want_up or cleared(service)",
        often=False,
    ),
    _one(
        "restore forgets what ended",
        TURN,
        "if generation is not None and last[gone.generation, gone.slot] == gone.attempt:",
        "if False:",
    ),
    _one(
        "a restored committed process must be ready in time",
        READOPTING,
        "deadline_s=turn.now_s + generation.plan.start_timeout_s if prepared else 0.0,",
        "deadline_s=turn.now_s + generation.plan.start_timeout_s,",
    ),
    _one(
        "attempts are named twice",
        CONVERGING,
        "attempt=last + 1, last_exit=last_exit",
        "attempt=0, last_exit=last_exit",
    ),
    _one(
        "a drain has no end",
        INSTANCES,
        "deadline_s=max(deadline, turn.now_s), signalled_s",
        "deadline_s=0.0, signalled_s",
    ),
    _one(
        "a stop is never followed by a kill",
        INSTANCES,
        "deadline_s=turn.now_s + plan.stop_timeout_s)",
        "deadline_s=0.0)",
    ),
    _one(
        "the dead are not swept",
        INSTANCES,
        "turn.effects.append(Sweep(event.generation, event.slot, event.attempt))\n    if instance is None or",
        "if instance is None or",
    ),
    _one(
        "a wake-up in the past",
        SERVICE,
        "if healthy and len(healthy) == len(service.of(generation.number)):",
        "if healthy:",
    ),
    _one(
        "a failed generation is forgotten at once",
        CONVERGING,
        "if generation.state in ENDING and not turn.service.of(generation.number):",
        "if generation.state in ENDING:",
    ),
    _one("surge stops what it started", WANTED, " | {item.slot for item in mine}", ""),
    _one(
        "the commit leaves the old one committed",
        HANDOVER,
        "    supersede_committed(turn)\n    turn.advance(generation, GenerationEvent.COMMIT)",
        "    turn.advance(generation, GenerationEvent.COMMIT)",
    ),
    _one(
        "commit beside workers that fetch",
        HANDOVER,
        "if old is not None and goes_quiet(old, generation):\n        turn.service",
        "if False:\n        turn.service",
    ),
    _one("told to be quiet is quiet", HANDOVER, "if not item.quiet]", "if not item.quieted]"),
    _one(
        "a quiet worker that ended is started again",
        WANTED,
        "return judged if service.want_up else frozenset()",
        "return slots if service.want_up else frozenset()",
    ),
    _one(
        "orders stand while it is quiet",
        SERVICE,
        "    if service.quiet is not None:\n        return {}",
        "    if False:\n        return {}",
        often=False,
    ),
    _one("a quiet is woken by nobody", SUCCESSION, "    if not old.quieted and not told:\n", "    if True:\n"),
    Mutant(
        "a quiet never expires",
        (
            (TURN, "if quiet is not None and quiet.deadline_s and quiet.deadline_s <= turn.now_s:", "if False:"),
            (SERVICE, "        times.append(service.quiet.deadline_s)", "        pass"),
        ),
        often=False,
    ),
    _one("a quiet one is told again", INSTANCES, "if not instance.quieted:  # else", "if True:  # else"),
    _one(
        "each agent quiets again",
        READOPTING,
        "known = replace(known, quieted=quieted, unsure=quieted, told_s=turn.now_s if quieted else 0.0)",
        "pass",
    ),
    _one(
        "a booting worker is told to be quiet",
        CONVERGING,
        "draining = draining and instance.quieted  # it",
        "pass  # it",
    ),
    _one(
        "what ended for good is forgotten",
        INSTANCES,
        "turn.put_generation(replace(generation, finished=(*generation.finished, instance.slot)))",
        "pass",
    ),
    _one(
        "a removed service goes on",
        HANDOVER,
        "    supersede_committed(turn)\n    turn.service = replace(turn.service, want_up=False, quiet=None)",
        "    pass",
    ),
    _one(
        "an adopted process is taken for a stray",
        TURN,
        "if generation is None or last[seen.generation, seen.slot] != seen.attempt:",
        "if generation is None or seen.attempt > 0:",
    ),
    _one("each agent drains again", READOPTING, "if generation.state in ENDING and told:", "if False:"),
    _one(
        "what was told to stop is taken on",
        READOPTING,
        "if seen.pid and generation.state is GenerationState.COMMITTED and told:",
        "if False:",
    ),
    _one(
        "an end that was asked for is the last",
        INSTANCES,
        " or (event.slot, event.attempt) in generation.told\n",
        "\n",
        often=False,
    ),
    _one(
        "a failed fork is the last end",
        INSTANCES,
        "again = again or not event.ran or",
        "again = again or",
        often=False,
        first=3400,
    ),
)
