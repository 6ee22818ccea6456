"""The life of one instance: one slot of one generation, over all the processes that fill it one after the other.

Pure. The table says what each event does in each state; what "ended" means next (start again, or not) is decided in
`core/service.py`, which knows the generation.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

# The slot number of the instance that only proves a release; so it is the most instances that a service may have.
THROWAWAY_SLOT = 900


class InstanceState(enum.Enum):
    WAITING = "waiting"  # to be started when due: a first start, a back-off, or a hold that has to pass
    STARTING = "starting"  # the spawn is issued
    RUNNING = "running"  # exec'd, not ready yet
    READY = "ready"
    STOPPING = "stopping"  # signalled
    KILLING = "killing"  # the whole tree is being killed
    ENDED = "ended"  # no process, and none will be started


class InstanceEvent(enum.Enum):
    DUE = "due"
    SPAWNED = "spawned"
    READY = "ready"
    ENDED = "ended"  # exited, failed to spawn, or lost
    STOP = "stop"
    UNHEALTHY = "unhealthy"
    DEADLINE = "deadline"


class Action(enum.Enum):
    NONE = "none"
    SPAWN = "spawn"
    WATCH = "watch"  # begin to look for readiness and health
    SIGNAL = "signal"  # the stop or drain signal
    KILL = "kill"
    SETTLE = "settle"  # the process is gone: start again or not
    CANCEL = "cancel"  # nothing was started; nothing will be


_S = InstanceState
_E = InstanceEvent
_A = Action

TABLE: dict[tuple[InstanceState, InstanceEvent], tuple[InstanceState, Action]] = {
    (_S.WAITING, _E.DUE): (_S.STARTING, _A.SPAWN),
    (_S.WAITING, _E.SPAWNED): (_S.RUNNING, _A.WATCH),  # the keeper was quicker, by its standing order
    (_S.WAITING, _E.READY): (_S.WAITING, _A.NONE),
    (_S.WAITING, _E.ENDED): (_S.WAITING, _A.NONE),
    (_S.WAITING, _E.STOP): (_S.ENDED, _A.CANCEL),
    (_S.WAITING, _E.UNHEALTHY): (_S.WAITING, _A.NONE),
    (_S.WAITING, _E.DEADLINE): (_S.WAITING, _A.NONE),
    (_S.STARTING, _E.DUE): (_S.STARTING, _A.NONE),
    (_S.STARTING, _E.SPAWNED): (_S.RUNNING, _A.WATCH),
    (_S.STARTING, _E.READY): (_S.READY, _A.WATCH),  # heard before the keeper's answer to the spawn
    (_S.STARTING, _E.ENDED): (_S.ENDED, _A.SETTLE),
    (_S.STARTING, _E.STOP): (_S.STOPPING, _A.SIGNAL),
    (_S.STARTING, _E.UNHEALTHY): (_S.STARTING, _A.NONE),
    (_S.STARTING, _E.DEADLINE): (_S.KILLING, _A.KILL),
    (_S.RUNNING, _E.DUE): (_S.RUNNING, _A.NONE),
    (_S.RUNNING, _E.SPAWNED): (_S.RUNNING, _A.NONE),
    (_S.RUNNING, _E.READY): (_S.READY, _A.NONE),
    (_S.RUNNING, _E.ENDED): (_S.ENDED, _A.SETTLE),
    (_S.RUNNING, _E.STOP): (_S.STOPPING, _A.SIGNAL),
    (_S.RUNNING, _E.UNHEALTHY): (_S.STOPPING, _A.SIGNAL),
    (_S.RUNNING, _E.DEADLINE): (_S.KILLING, _A.KILL),
    (_S.READY, _E.DUE): (_S.READY, _A.NONE),
    (_S.READY, _E.SPAWNED): (_S.READY, _A.NONE),
    (_S.READY, _E.READY): (_S.READY, _A.NONE),
    (_S.READY, _E.ENDED): (_S.ENDED, _A.SETTLE),
    (_S.READY, _E.STOP): (_S.STOPPING, _A.SIGNAL),
    (_S.READY, _E.UNHEALTHY): (_S.STOPPING, _A.SIGNAL),
    (_S.READY, _E.DEADLINE): (_S.KILLING, _A.KILL),
    (_S.STOPPING, _E.DUE): (_S.STOPPING, _A.NONE),
    (_S.STOPPING, _E.SPAWNED): (_S.STOPPING, _A.NONE),  # the signal followed the spawn; a second TERM may kill a job
    (_S.STOPPING, _E.READY): (_S.STOPPING, _A.NONE),
    (_S.STOPPING, _E.ENDED): (_S.ENDED, _A.SETTLE),
    (_S.STOPPING, _E.STOP): (_S.STOPPING, _A.NONE),
    (_S.STOPPING, _E.UNHEALTHY): (_S.STOPPING, _A.NONE),
    (_S.STOPPING, _E.DEADLINE): (_S.KILLING, _A.KILL),
    (_S.KILLING, _E.DUE): (_S.KILLING, _A.NONE),
    (_S.KILLING, _E.SPAWNED): (_S.KILLING, _A.KILL),
    (_S.KILLING, _E.READY): (_S.KILLING, _A.NONE),
    (_S.KILLING, _E.ENDED): (_S.ENDED, _A.SETTLE),
    (_S.KILLING, _E.STOP): (_S.KILLING, _A.NONE),
    (_S.KILLING, _E.UNHEALTHY): (_S.KILLING, _A.NONE),
    (_S.KILLING, _E.DEADLINE): (_S.KILLING, _A.KILL),
    (_S.ENDED, _E.DUE): (_S.ENDED, _A.NONE),
    (_S.ENDED, _E.SPAWNED): (_S.KILLING, _A.KILL),  # a process that should not be
    (_S.ENDED, _E.READY): (_S.ENDED, _A.NONE),
    (_S.ENDED, _E.ENDED): (_S.ENDED, _A.NONE),
    (_S.ENDED, _E.STOP): (_S.ENDED, _A.NONE),
    (_S.ENDED, _E.UNHEALTHY): (_S.ENDED, _A.NONE),
    (_S.ENDED, _E.DEADLINE): (_S.ENDED, _A.NONE),
}

ALIVE = frozenset({_S.STARTING, _S.RUNNING, _S.READY, _S.STOPPING, _S.KILLING})
SERVING = frozenset({_S.RUNNING, _S.READY})
JUDGED = frozenset({_S.STARTING, _S.RUNNING, _S.READY})  # what a check says of it counts


@dataclass(frozen=True, slots=True)
class Instance:
    """One slot as the agent knows it. Volatile: rebuilt from the keeper's table after a crash of the agent.

    due_s: not before this CLOCK_BOOTTIME while waiting. deadline_s: when the present state has lasted too long (0:
    never). healthy_since_s: ready and checked since (0: not). streak: crashes in a row. again: start again once it has
    ended. parked: was told to, and not yet to wake. signalled_s: when it was told to drain or to wake, until that is
    stored. Of a worker: looked: its job library is being asked about it; seen: it was found there; quieted: was told to
    begin nothing new; unsure: by an earlier agent, perhaps; told_s: when; quiet: proven to; trouble: why nothing is known.
    """

    generation: int
    slot: int
    state: InstanceState
    attempt: int = 0
    pid: int = 0
    since_s: float = 0.0
    due_s: float = 0.0
    deadline_s: float = 0.0
    healthy_since_s: float = 0.0
    streak: int = 0
    restarts: int = 0
    again: bool = False
    draining: bool = False
    parked: bool = False
    signalled_s: float = 0.0
    looked: bool = False
    seen: bool = False
    quieted: bool = False
    unsure: bool = False
    told_s: float = 0.0
    quiet: bool = False
    trouble: str = ""
    last_exit: str = ""
    why: str = ""
    status_text: str = ""

    @property
    def is_throwaway(self) -> bool:
        return self.slot >= THROWAWAY_SLOT
