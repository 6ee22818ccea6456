"""The durable store: all of a write or nothing, and now and then no space."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from midstream.core.intent import Intent
from midstream.core.service import Service

if TYPE_CHECKING:
    from simulation.kernel import Key
    from simulation.world import World


class DiskFull(Exception):
    """Nothing was written."""


@dataclass(frozen=True)
class Truth:
    """What is stored: the services' durable parts, the deploy that is open, and the app's own row."""

    services: dict[str, Service] = field(default_factory=dict)
    intent: Intent | None = None
    generation: int = 0  # the last number given
    committed: int = 0
    release: str = ""
    words: frozenset[tuple[Key, int]] = frozenset()  # READY=1 of uncommitted processes, with their pids


@dataclass
class Disk:
    world: World
    truth: Truth = field(default_factory=Truth)
    full: bool = False
    was_full: bool = False  # then a stop that was to be followed by a start may not have been stored as one

    def write(self, **changes: object) -> None:
        """Fields of `Truth`; `services` are merged. Raises DiskFull, and then nothing has changed."""
        if self.full:
            self.was_full = True
            raise DiskFull
        services = changes.pop("services", None)
        if isinstance(services, dict):
            changes["services"] = {**self.truth.services, **services}
        before, self.truth = self.truth, replace(self.truth, **changes)  # type: ignore[arg-type]
        self.world.rules.stored(before, self.truth)
