"""Where a handover stands, and the hold: the small durable records of a service.

Pure.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class Phase(enum.Enum):
    """Where a handover stands. QUEUED: recorded, waits for the host to give it the word (services with `replace` go
    last). TRYING: the throw-away instance. CLEARING: `replace` stops the old. STARTING: the real instances. PROVEN:
    waits for the other services of the host. QUIETING: the old workers are told to begin no further job, until each is
    proven to. SOAKING, SOAKED: on probation, and through."""

    QUEUED = "queued"
    TRYING = "trying"
    CLEARING = "clearing"
    STARTING = "starting"
    PROVEN = "proven"
    QUIETING = "quieting"
    SOAKING = "soaking"
    SOAKED = "soaked"


@dataclass(frozen=True, slots=True)
class Handover:
    generation: int
    phase: Phase
    since_s: float
    spare: int = 0  # the number of the fresh generation that goes back to the old release, once that was quieted


@dataclass(frozen=True, slots=True)
class Quiet:
    """The committed generation begins nothing new, and what ends of it is not started again. It cannot be undone: when it
    ends, a fresh generation of the same release, numbered `spare`, takes its place. deadline_s: CLOCK_BOOTTIME; 0: as long
    as the handover."""

    generation: int
    spare: int
    since_s: float
    deadline_s: float = 0.0
    owner: str = ""
    reason: str = ""
    cold: bool = False  # told to drain, whatever it is; nothing has to be proven


@dataclass(frozen=True, slots=True)
class Hold:
    """A lease: nothing is started while it lasts. deadline_s: CLOCK_BOOTTIME, of this boot. ttl_s, ends_wall_s: for a
    host that is restarted meanwhile (`after_reboot`)."""

    owner: str
    token: int
    deadline_s: float
    reason: str = ""
    ttl_s: float = 0.0
    ends_wall_s: float = 0.0


def after_reboot(hold: Hold, now_s: float, now_wall_s: float) -> Hold | None:
    """The hold in a new boot: what is left of it by the wall clock, but never more than it was given, because that
    clock may have been set, or start in 1970. None when it is over."""
    left_s = min(hold.ends_wall_s - now_wall_s, hold.ttl_s)
    return replace(hold, deadline_s=now_s + left_s) if left_s > 0 else None
