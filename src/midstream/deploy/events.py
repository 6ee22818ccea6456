"""What a deploy tells while it runs, and its outcome: values for printers, the log file and `--json`.

No printing here. Made by the runner.
"""

from __future__ import annotations

import enum
from typing import Any

from midstream.core.values import dataclass
from midstream.errors import MidstreamError


class EventKind(enum.Enum):
    """`state`: how far the run is (text: opened, updated, publishing, deciding, committed, finished, reverted).
    `begin`/`line`/`end`: one step on one host. `note`: something to know. `call`: a round trip ended."""

    STATE = "state"
    BEGIN = "begin"
    LINE = "line"
    END = "end"
    NOTE = "note"
    CALL = "call"


@dataclass(frozen=True, slots=True)
class Event:
    """seconds: how long the step or call took. release: known from `state` updated on."""

    kind: EventKind
    host: str = ""
    phase: str = ""
    step: str = ""
    service: str = ""
    text: str = ""
    ok: bool | None = None
    seconds: float | None = None
    release: str = ""


@dataclass(frozen=True, slots=True)
class HostOutcome:
    """One host at the end. `services`: rows of the answer to `deploy.publish`. `draining`: old generations that still
    finish what they accepted. `state`: committed, reverted, untouched, undecided or failed."""

    host: str
    state: str
    release: str = ""
    generation: int | None = None
    services: tuple[dict[str, Any], ...] = ()
    draining: int = 0
    removed: tuple[str, ...] = ()
    serving: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a deploy or rollback. error None: done, and the fleet is on `release`."""

    deploy_id: str
    kind: str
    app: str
    stage: str
    release: str
    revision: str
    branch: str
    seconds: float
    hosts: tuple[HostOutcome, ...]
    error: MidstreamError | None = None
    previous: str = ""  # the revision that was committed before, on the coordinator

    @property
    def exit_code(self) -> int:
        return 0 if self.error is None else self.error.exit_code
