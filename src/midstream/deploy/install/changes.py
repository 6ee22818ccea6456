"""One thing after the other on a host: looked at, told, and done unless it is so already or only a dry run.

Runs on the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from midstream.deploy.install.request import Step


@dataclass(frozen=True, slots=True)
class Change:
    """`text`: what is so, or will be. `act` None: it is so already; what it returns, if anything, is told instead."""

    step: str
    text: str
    act: Callable[[], str | None] | None = None


@dataclass(slots=True)
class Changes:
    """`tell` gets each step once it is over. Errors of what is done pass through, untold."""

    tell: Callable[[Step], None]
    dry_run: bool = False
    count: int = field(default=0)

    def make(self, change: Change) -> None:
        """Blocks as long as it takes. Raises what `act` raises."""
        if change.act is None:
            self.tell(Step(change.step, "ok", change.text))
        elif self.dry_run:
            self.count += 1
            self.tell(Step(change.step, "would", change.text))
        else:
            began_s = time.monotonic()
            text = change.act() or change.text
            self.count += 1
            self.tell(Step(change.step, "done", text, round(time.monotonic() - began_s, 3)))

    def note(self, step: str, text: str) -> None:
        self.tell(Step(step, "note", text))
