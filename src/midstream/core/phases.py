"""Where a handover stands, and the hold: the small durable records of a service.

Pure.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Phase(enum.Enum):
    """Where a handover stands. QUEUED: recorded, waits for the host to give it the word (services with `replace` go
    last). TRYING: the throw-away instance. CLEARING: `replace` stops the old. STARTING: the real instances. PROVEN:
    waits for the other services of the host. SOAKING, SOAKED: on probation, and through."""

    QUEUED = "queued"
    TRYING = "trying"
    CLEARING = "clearing"
    STARTING = "starting"
    PROVEN = "proven"
    SOAKING = "soaking"
    SOAKED = "soaked"


@dataclass(frozen=True, slots=True)
class Handover:
    generation: int
    phase: Phase
    since_s: float


@dataclass(frozen=True, slots=True)
class Hold:
    """A lease: nothing is started while it lasts. deadline_s: CLOCK_BOOTTIME."""

    owner: str
    token: int
    deadline_s: float
    reason: str = ""
