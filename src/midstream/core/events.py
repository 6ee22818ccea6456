"""What can happen to a service, and what is to be done about it: the values that pass between core and shell.

Pure. (generation, slot, attempt) names one process for ever; an event of an earlier attempt is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

from midstream.core.generation import Generation
from midstream.core.phases import Hold, Phase


@dataclass(frozen=True, slots=True)
class Spawned:
    generation: int
    slot: int
    attempt: int
    pid: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The process is gone; or (not ran) it never was, because it could not be started. code: None when a signal ended
    it, or nobody saw how it ended."""

    generation: int
    slot: int
    attempt: int
    text: str
    code: int | None = None
    ran: bool = True


@dataclass(frozen=True, slots=True)
class Ready:
    generation: int
    slot: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Healthy:
    generation: int
    slot: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Refuted:
    """The new generation gave a wrong answer, or none in time."""

    generation: int
    slot: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """A running instance failed its periodic check or its watchdog."""

    generation: int
    slot: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Extended:
    """EXTEND_TIMEOUT_USEC: the present deadline moves to now + extra_s."""

    generation: int
    slot: int
    attempt: int
    extra_s: float


@dataclass(frozen=True, slots=True)
class Said:
    generation: int
    slot: int
    attempt: int
    text: str


@dataclass(frozen=True, slots=True)
class Observed:
    """What the job library says of a worker. quiet: it begins nothing new. idle: and has nothing in hand. trouble: why
    nothing is known of it; then the rest means nothing."""

    generation: int
    slot: int
    attempt: int
    quiet: bool = False
    idle: bool = False
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    pass


@dataclass(frozen=True, slots=True)
class Begin:
    """A new generation, PREPARED, is to take over. queued: wait for Go (policy replace, once all others are proven).
    spare: the number for a fresh generation of the old release, should it be needed."""

    generation: Generation
    queued: bool = False
    spare: int = 0


@dataclass(frozen=True, slots=True)
class Go:
    pass


@dataclass(frozen=True, slots=True)
class Soak:
    pass


@dataclass(frozen=True, slots=True)
class Commit:
    pass


@dataclass(frozen=True, slots=True)
class Revert:
    reason: str


@dataclass(frozen=True, slots=True)
class Want:
    up: bool


@dataclass(frozen=True, slots=True)
class SetHold:
    hold: Hold | None


@dataclass(frozen=True, slots=True)
class Quieten:
    """The committed workers are to begin nothing new until deadline_s, outside of a handover."""

    spare: int
    deadline_s: float
    owner: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Waken:
    """The quiet ends: a fresh generation takes over from the quiet one."""


@dataclass(frozen=True, slots=True)
class Remove:
    """The service is no longer part of the app: its committed generation drains, and nothing follows."""


Event = (
    Spawned
    | Ended
    | Ready
    | Healthy
    | Refuted
    | Unhealthy
    | Extended
    | Said
    | Observed
    | Tick
    | Begin
    | Go
    | Soak
    | Commit
    | Revert
    | Want
    | SetHold
    | Quieten
    | Waken
    | Remove
)


# What is to be done.


@dataclass(frozen=True, slots=True)
class Spawn:
    generation: int
    slot: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Find out whether the instance is ready, then (confirm) whether a check is answered by it. ready: it is known to
    be (it was proven before the agent restarted) and will not say so again; only its periodic checks are wanted."""

    generation: int
    slot: int
    attempt: int
    confirm: bool
    ready: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """Ask the job library about the worker, again and again, for as long as it lives: Observed."""

    generation: int
    slot: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Signal:
    generation: int
    slot: int
    attempt: int
    signal: str


@dataclass(frozen=True, slots=True)
class KillTree:
    generation: int
    slot: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """The main process is gone: end what is left of its tree, then acknowledge the key."""

    generation: int
    slot: int
    attempt: int


@dataclass(frozen=True, slots=True)
class HandoverNews:
    """phase PROVEN or SOAKED was reached, or (phase None) the handover failed for `reason`."""

    generation: int
    phase: Phase | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Retired:
    generation: int


@dataclass(frozen=True, slots=True)
class Note:
    kind: str
    text: str
    generation: int = 0
    slot: int = -1


Effect = Spawn | Watch | Look | Signal | KillTree | Sweep | HandoverNews | Retired | Note
