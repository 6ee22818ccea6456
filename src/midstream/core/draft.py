"""`Draft`: one step of a service in the making, and the edits of which every rule is made.

Pure. Mutable, and lives for one call of `core/turn.py`; no rule is here.
"""

from __future__ import annotations

from dataclasses import replace

from midstream.core.events import (
    Effect,
    Ended,
    Extended,
    Healthy,
    Note,
    Observed,
    Ready,
    Refuted,
    Said,
    Spawned,
    Unhealthy,
)
from midstream.core.generation import Generation, GenerationEvent, advance
from midstream.core.instance import Instance
from midstream.core.phases import Phase
from midstream.core.service import Service


class Draft:
    """`effects`: what the shell has to do, in this order."""

    def __init__(self, service: Service, now_s: float, luck: float) -> None:
        self.service = service
        self.now_s = now_s
        self.luck = luck
        self.effects: list[Effect] = []

    def put(self, instance: Instance) -> None:
        key = (instance.generation, instance.slot)
        kept = [item for item in self.service.instances if (item.generation, item.slot) != key]
        ordered = sorted([*kept, instance], key=lambda item: (item.generation, item.slot))
        self.service = replace(self.service, instances=tuple(ordered))

    def drop(self, instance: Instance) -> None:
        key = (instance.generation, instance.slot)
        kept = tuple(item for item in self.service.instances if (item.generation, item.slot) != key)
        self.service = replace(self.service, instances=kept)

    def put_generation(self, generation: Generation) -> None:
        kept = [item for item in self.service.generations if item.number != generation.number]
        ordered = sorted([*kept, generation], key=lambda item: item.number)
        self.service = replace(self.service, generations=tuple(ordered))

    def advance(self, generation: Generation, event: GenerationEvent, note: str = "") -> Generation:
        state = advance(generation.state, event)
        after = replace(generation, state=state, since_s=self.now_s, note=note or generation.note)
        self.put_generation(after)
        self.note(
            "generation",
            f"{generation.state.value} -> {state.value}{': ' + note if note else ''}",
            after.number,
        )
        return after

    def note(self, kind: str, text: str, generation: int = 0, slot: int = -1) -> None:
        self.effects.append(Note(kind, text, generation, slot))

    def enter(self, phase: Phase) -> None:
        handover = self.service.handover
        assert handover is not None
        self.service = replace(self.service, handover=replace(handover, phase=phase, since_s=self.now_s))

    def find(
        self, event: Spawned | Ended | Ready | Healthy | Refuted | Unhealthy | Extended | Said | Observed
    ) -> Instance | None:
        """The instance that the event speaks of; None when it speaks of an earlier attempt."""
        for item in self.service.instances:
            if (item.generation, item.slot) == (event.generation, event.slot):
                return item if item.attempt == event.attempt else None
        return None
