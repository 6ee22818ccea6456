"""Upgrades of a master, as a table: what an event means in each phase. Pure; `tests/core/test_serve_upgrade.py` holds that
the table is whole, docs/serve.md draws it.

What lives here: phases, events, effects. What must not: processes, time. The master performs the effects.

There is one upgrade at a time. Who asks during one is not forgotten: when it has ended the next begins, one for all who
asked, with what the folder is then. At most MAX_DRAINING generations drain; with as many, an upgrade waits for room.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

MAX_DRAINING = 3


class Phase(enum.Enum):
    """STEADY: nothing is under way. WAITING: too many drain. BOOTING: the new zygote loads. CHECKING: its health is
    asked for. SWITCHING: it was told to serve. LEAVING: it serves, and the former is told to accept nothing more.
    STOPPING: the master itself ends."""

    STEADY = "steady"
    WAITING = "waiting"
    BOOTING = "booting"
    CHECKING = "checking"
    SWITCHING = "switching"
    LEAVING = "leaving"
    STOPPING = "stopping"


class Event(enum.Enum):
    """ASKED, ASKED_FULL: somebody wants an upgrade; FULL: as many drain as may. ROOM: one has drained. PROVEN: all new workers
    are ready. HEALTHY: the check passed, or there is none. SERVING: all new workers accept. LEFT: no old worker accepts
    any more. FAILED: exit, time-out, bad answer, nothing to start. STOP: the master is to end."""

    ASKED = "asked"
    ASKED_FULL = "asked, full"
    ROOM = "room"
    PROVEN = "proven"
    HEALTHY = "healthy"
    SERVING = "serving"
    LEFT = "left"
    FAILED = "failed"
    STOP = "stop"


class Effect(enum.Enum):
    START = "start the next generation"
    SAY_WAITING = "say that it waits for room"
    REMEMBER = "note that there is one more to do"
    CHECK = "ask for its health"
    SWITCH = "tell it to serve"
    COMMIT = "it is the committed one now; drain the former"
    DISCARD = "end the new one"
    RETREAT = "drain the new one, which may have accepted"
    TELL_FAILED = "tell everybody that it failed"
    TELL_DONE = "tell everybody that it is done"
    NEXT = "begin what was noted"
    TELL_STOPPING = "tell who waits that the master ends"


@dataclass(frozen=True, slots=True)
class Step:
    phase: Phase
    effects: tuple[Effect, ...] = ()


_P, _E, _F = Phase, Event, Effect
_FAILED = Step(_P.STEADY, (_F.DISCARD, _F.TELL_FAILED, _F.NEXT))


def _stays(phase: Phase) -> Step:
    return Step(phase)


TABLE: dict[tuple[Phase, Event], Step] = {
    (_P.STEADY, _E.ASKED): Step(_P.BOOTING, (_F.START,)),
    (_P.STEADY, _E.ASKED_FULL): Step(_P.WAITING, (_F.SAY_WAITING,)),
    (_P.STEADY, _E.ROOM): _stays(_P.STEADY),
    (_P.STEADY, _E.PROVEN): _stays(_P.STEADY),
    (_P.STEADY, _E.HEALTHY): _stays(_P.STEADY),
    (_P.STEADY, _E.SERVING): _stays(_P.STEADY),
    (_P.STEADY, _E.LEFT): _stays(_P.STEADY),
    (_P.STEADY, _E.FAILED): _stays(_P.STEADY),
    (_P.STEADY, _E.STOP): Step(_P.STOPPING),
    (_P.WAITING, _E.ASKED): Step(_P.BOOTING, (_F.START,)),
    (_P.WAITING, _E.ASKED_FULL): _stays(_P.WAITING),
    (_P.WAITING, _E.ROOM): Step(_P.BOOTING, (_F.START,)),
    (_P.WAITING, _E.PROVEN): _stays(_P.WAITING),
    (_P.WAITING, _E.HEALTHY): _stays(_P.WAITING),
    (_P.WAITING, _E.SERVING): _stays(_P.WAITING),
    (_P.WAITING, _E.LEFT): _stays(_P.WAITING),
    (_P.WAITING, _E.FAILED): _stays(_P.WAITING),
    (_P.WAITING, _E.STOP): Step(_P.STOPPING, (_F.TELL_STOPPING,)),
    (_P.BOOTING, _E.ASKED): Step(_P.BOOTING, (_F.REMEMBER,)),
    (_P.BOOTING, _E.ASKED_FULL): Step(_P.BOOTING, (_F.REMEMBER,)),
    (_P.BOOTING, _E.ROOM): _stays(_P.BOOTING),
    (_P.BOOTING, _E.PROVEN): Step(_P.CHECKING, (_F.CHECK,)),
    (_P.BOOTING, _E.HEALTHY): _stays(_P.BOOTING),
    (_P.BOOTING, _E.SERVING): _stays(_P.BOOTING),
    (_P.BOOTING, _E.LEFT): _stays(_P.BOOTING),
    (_P.BOOTING, _E.FAILED): _FAILED,
    (_P.BOOTING, _E.STOP): Step(_P.STOPPING, (_F.DISCARD, _F.TELL_STOPPING)),
    (_P.CHECKING, _E.ASKED): Step(_P.CHECKING, (_F.REMEMBER,)),
    (_P.CHECKING, _E.ASKED_FULL): Step(_P.CHECKING, (_F.REMEMBER,)),
    (_P.CHECKING, _E.ROOM): _stays(_P.CHECKING),
    (_P.CHECKING, _E.PROVEN): _stays(_P.CHECKING),
    (_P.CHECKING, _E.HEALTHY): Step(_P.SWITCHING, (_F.SWITCH,)),
    (_P.CHECKING, _E.SERVING): _stays(_P.CHECKING),
    (_P.CHECKING, _E.LEFT): _stays(_P.CHECKING),
    (_P.CHECKING, _E.FAILED): _FAILED,
    (_P.CHECKING, _E.STOP): Step(_P.STOPPING, (_F.DISCARD, _F.TELL_STOPPING)),
    (_P.SWITCHING, _E.ASKED): Step(_P.SWITCHING, (_F.REMEMBER,)),
    (_P.SWITCHING, _E.ASKED_FULL): Step(_P.SWITCHING, (_F.REMEMBER,)),
    (_P.SWITCHING, _E.ROOM): _stays(_P.SWITCHING),
    (_P.SWITCHING, _E.PROVEN): _stays(_P.SWITCHING),
    (_P.SWITCHING, _E.HEALTHY): _stays(_P.SWITCHING),
    (_P.SWITCHING, _E.SERVING): Step(_P.LEAVING, (_F.COMMIT,)),
    (_P.SWITCHING, _E.LEFT): _stays(_P.SWITCHING),
    (_P.SWITCHING, _E.FAILED): Step(_P.STEADY, (_F.RETREAT, _F.TELL_FAILED, _F.NEXT)),
    # It may have accepted already: it is drained with the others, not discarded.
    (_P.SWITCHING, _E.STOP): Step(_P.STOPPING, (_F.TELL_STOPPING,)),
    (_P.LEAVING, _E.ASKED): Step(_P.LEAVING, (_F.REMEMBER,)),
    (_P.LEAVING, _E.ASKED_FULL): Step(_P.LEAVING, (_F.REMEMBER,)),
    (_P.LEAVING, _E.ROOM): _stays(_P.LEAVING),
    (_P.LEAVING, _E.PROVEN): _stays(_P.LEAVING),
    (_P.LEAVING, _E.HEALTHY): _stays(_P.LEAVING),
    (_P.LEAVING, _E.SERVING): _stays(_P.LEAVING),
    (_P.LEAVING, _E.LEFT): Step(_P.STEADY, (_F.TELL_DONE, _F.NEXT)),
    (_P.LEAVING, _E.FAILED): _stays(_P.LEAVING),
    (_P.LEAVING, _E.STOP): Step(_P.STOPPING, (_F.TELL_DONE, _F.TELL_STOPPING)),
    **{(_P.STOPPING, event): _stays(_P.STOPPING) for event in Event},
}


def step(phase: Phase, event: Event) -> Step:
    """What happens next."""
    return TABLE[phase, event]
