"""The life of a generation: all instances of one service that were started from one release and one configuration.

Pure. The table is the rule; the diagram in `docs/state-machines.md` is drawn from it. A generation never goes back:
putting an old release back after the commit makes a new generation of it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class GenerationState(enum.Enum):
    PREPARED = "prepared"  # recorded; its instances are being started and proven
    PROVEN = "proven"  # ready, and a health check was answered by it
    SOAKING = "soaking"  # serves beside (or in front of) the parked old one, on probation
    COMMITTED = "committed"  # the one that is started again after a crash
    DRAINING = "draining"  # replaced; finishes what it accepted
    RETIRED = "retired"  # no process left
    FAILED = "failed"  # was never committed and is being, or has been, taken away


class GenerationEvent(enum.Enum):
    PROVED = "proved"
    SOAK = "soak"
    COMMIT = "commit"
    FAIL = "fail"
    SUPERSEDE = "supersede"  # the next generation was committed, or the service is removed
    GONE = "gone"  # its last process ended


class IllegalTransition(Exception):
    """Our bug: the event cannot happen in that state. Nothing was changed."""


_S = GenerationState
_E = GenerationEvent

# None: the event cannot happen in that state.
TABLE: dict[tuple[GenerationState, GenerationEvent], GenerationState | None] = {
    (_S.PREPARED, _E.PROVED): _S.PROVEN,
    (_S.PREPARED, _E.SOAK): None,
    (_S.PREPARED, _E.COMMIT): None,  # invariant 3: nothing unproven is committed
    (_S.PREPARED, _E.FAIL): _S.FAILED,
    (_S.PREPARED, _E.SUPERSEDE): None,
    (_S.PREPARED, _E.GONE): None,
    (_S.PROVEN, _E.PROVED): None,
    (_S.PROVEN, _E.SOAK): _S.SOAKING,
    (_S.PROVEN, _E.COMMIT): _S.COMMITTED,
    (_S.PROVEN, _E.FAIL): _S.FAILED,
    (_S.PROVEN, _E.SUPERSEDE): None,
    (_S.PROVEN, _E.GONE): None,
    (_S.SOAKING, _E.PROVED): None,
    (_S.SOAKING, _E.SOAK): None,
    (_S.SOAKING, _E.COMMIT): _S.COMMITTED,
    (_S.SOAKING, _E.FAIL): _S.FAILED,
    (_S.SOAKING, _E.SUPERSEDE): None,
    (_S.SOAKING, _E.GONE): None,
    (_S.COMMITTED, _E.PROVED): None,
    (_S.COMMITTED, _E.SOAK): None,
    (_S.COMMITTED, _E.COMMIT): None,
    (_S.COMMITTED, _E.FAIL): None,  # a committed generation is never given up on
    (_S.COMMITTED, _E.SUPERSEDE): _S.DRAINING,
    (_S.COMMITTED, _E.GONE): None,
    (_S.DRAINING, _E.PROVED): None,
    (_S.DRAINING, _E.SOAK): None,
    (_S.DRAINING, _E.COMMIT): None,
    (_S.DRAINING, _E.FAIL): None,
    (_S.DRAINING, _E.SUPERSEDE): None,
    (_S.DRAINING, _E.GONE): _S.RETIRED,
    (_S.RETIRED, _E.PROVED): None,
    (_S.RETIRED, _E.SOAK): None,
    (_S.RETIRED, _E.COMMIT): None,
    (_S.RETIRED, _E.FAIL): None,
    (_S.RETIRED, _E.SUPERSEDE): None,
    (_S.RETIRED, _E.GONE): None,
    (_S.FAILED, _E.PROVED): None,
    (_S.FAILED, _E.SOAK): None,
    (_S.FAILED, _E.COMMIT): None,
    (_S.FAILED, _E.FAIL): _S.FAILED,
    (_S.FAILED, _E.SUPERSEDE): None,
    (_S.FAILED, _E.GONE): _S.RETIRED,
}

PROVISIONAL = frozenset({_S.PREPARED, _S.PROVEN, _S.SOAKING})
ENDING = frozenset({_S.DRAINING, _S.FAILED})


def advance(state: GenerationState, event: GenerationEvent) -> GenerationState:
    """The next state. Raises IllegalTransition (and changes nothing) where the table has none."""
    after = TABLE[state, event]
    if after is None:
        raise IllegalTransition(f"a {state.value} generation cannot {event.value}")
    return after


class Park(enum.Enum):
    """What the old generation does while the new one soaks (DESIGN 3)."""

    PAUSE = "pause"
    MIXED = "mixed"
    COLD = "cold"


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """The knobs a generation lives by: from the service's settings and the server's profile. Durations in seconds."""

    instances: int = 1
    policy: str = "overlap"  # overlap, drain, replace
    throwaway: bool = False  # prove a throw-away instance on a private listener before the real ones
    confirm: bool = True  # the real instances must also pass the check that the shell runs on them
    start_timeout_s: float = 60.0
    healthy_timeout_s: float = 30.0
    min_healthy_s: float = 0.0
    soak_s: float = 0.0
    park: Park = Park.MIXED
    park_signal: str = ""
    unpark_signal: str = ""
    drain_signal: str = "TERM"
    drain_timeout_s: float = 60.0
    stop_signal: str = "TERM"
    stop_timeout_s: float = 10.0
    quiet_signal: str = ""  # workers: begin no further job; its effect is looked up in the job library
    quiet_once: bool = False  # a second such signal, or the stop signal after it, cuts the job in hand
    quiet_timeout_s: float = 30.0  # the signal to the proof
    leaves_when_idle: bool = False  # quiet and idle it ends by itself; else it has to be stopped
    max_draining: int = 2
    surge: int = 0
    restart_on: str = "always"
    ok_codes: tuple[int, ...] = (0,)
    backoff_first_s: float = 0.0
    backoff_second_s: float = 0.5
    backoff_max_s: float = 30.0
    backoff_factor: float = 2.0
    backoff_jitter: float = 0.1
    backoff_reset_s: float = 10.0
    watchdog_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation as it is stored. since_s: CLOCK_BOOTTIME of the last change of state. deadline_s: when a draining
    or failed one is stopped by force. finished: slots that ended for good, because `restart_on` says so. told: (slot,
    attempt) of what was told to end: none is told to drain twice, and an end that was asked for is not the last.
    quieted: likewise, of what was told to begin nothing new while it was committed. copy_of: the generation whose
    configuration a fresh one of the same release was started from (0: its own)."""

    number: int
    release: str
    state: GenerationState
    plan: GenerationPlan
    since_s: float = 0.0
    deadline_s: float = 0.0
    parked: bool = False
    note: str = ""
    finished: tuple[int, ...] = ()
    told: tuple[tuple[int, int], ...] = ()
    quieted: tuple[tuple[int, int], ...] = ()
    copy_of: int = 0


def pause_s(plan: GenerationPlan, streak: int, luck: float) -> float:
    """The pause before start number `streak` + 1 after `streak` crashes in a row. luck: 0 ≤ x < 1, for the jitter.

    The first crash after health costs nothing; then second_s, doubling, to max_s (Monit, runit and supervisord either
    hammer or give up: PEERS 2).
    """
    if streak <= 1:
        return plan.backoff_first_s
    pause = min(plan.backoff_max_s, plan.backoff_second_s * plan.backoff_factor ** (min(streak, 40) - 2))
    return pause * (1.0 + plan.backoff_jitter * (2.0 * luck - 1.0))
