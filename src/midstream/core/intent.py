"""A deploy or rollback on one host, as what the agent was asked to do and how far it is.

Pure. The states are written to the agent's database before the work that they name begins. `COMMITTED` is the decision:
before it a crash leads back to the old release, after it forward to the new one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from midstream.core.generation import IllegalTransition
from midstream.core.messages import SpawnSpec


class IntentState(enum.Enum):
    OPEN = "open"  # the lock is taken, nothing was touched
    UPDATING = "updating"  # release being made, built, migrated; nothing is switched
    UPDATED = "updated"
    PUBLISHING = "publishing"  # new generations are being started and proven
    PROVISIONAL = "provisional"  # proven and soaked; waits for the decision
    COMMITTED = "committed"  # decided; `current` follows
    REVERTING = "reverting"
    REVERTED = "reverted"
    CLOSED = "closed"


class IntentEvent(enum.Enum):
    UPDATE = "update"
    UPDATE_DONE = "update_done"
    PUBLISH = "publish"
    PROVED = "proved"
    COMMIT = "commit"
    REVERT = "revert"
    REVERT_DONE = "revert_done"
    CLOSE = "close"


_S = IntentState
_E = IntentEvent

_LEGAL: dict[IntentState, dict[IntentEvent, IntentState]] = {
    _S.OPEN: {
        _E.UPDATE: _S.UPDATING,
        _E.PUBLISH: _S.PUBLISHING,
        _E.REVERT: _S.REVERTING,
        _E.CLOSE: _S.CLOSED,
    },
    _S.UPDATING: {_E.UPDATE: _S.UPDATING, _E.UPDATE_DONE: _S.UPDATED, _E.REVERT: _S.REVERTING},
    _S.UPDATED: {_E.UPDATE: _S.UPDATING, _E.PUBLISH: _S.PUBLISHING, _E.REVERT: _S.REVERTING},
    _S.PUBLISHING: {_E.PUBLISH: _S.PUBLISHING, _E.PROVED: _S.PROVISIONAL, _E.REVERT: _S.REVERTING},
    _S.PROVISIONAL: {_E.COMMIT: _S.COMMITTED, _E.REVERT: _S.REVERTING},
    _S.COMMITTED: {_E.COMMIT: _S.COMMITTED, _E.CLOSE: _S.CLOSED},
    _S.REVERTING: {_E.REVERT: _S.REVERTING, _E.REVERT_DONE: _S.REVERTED},
    _S.REVERTED: {_E.REVERT: _S.REVERTED, _E.CLOSE: _S.CLOSED},
    _S.CLOSED: {_E.CLOSE: _S.CLOSED},
}

TABLE: dict[tuple[IntentState, IntentEvent], IntentState | None] = {
    (state, event): _LEGAL[state].get(event) for state in IntentState for event in IntentEvent
}


def advance(state: IntentState, event: IntentEvent) -> IntentState:
    """The next state. Raises IllegalTransition where the table has none."""
    after = TABLE[state, event]
    if after is None:
        raise IllegalTransition(f"a deploy that is {state.value} cannot {event.value}")
    return after


class CommandState(enum.Enum):
    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"
    UNDONE = "undone"
    NOT_UNDONE = "not_undone"  # its undo failed: somebody has to look


@dataclass(frozen=True, slots=True)
class CommandRecord:
    """A hook, or another command that a deploy ran here: stored before it is started, with what undoes it as it will be
    run, because whoever ran the deploy may be gone when that is needed. slot: names its process. code, text: its end."""

    name: str
    slot: int
    state: CommandState = CommandState.BEGUN
    code: int | None = None
    text: str = ""
    undo: SpawnSpec | None = None
    undo_timeout_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class Intent:
    """One deploy on this host, as it is stored. Deadlines are CLOCK_BOOTTIME, valid within one boot."""

    id: str
    number: int  # counts the host's deploys; names its one-shots
    app: str
    kind: str  # deploy, rollback, restart
    state: IntentState
    user: str
    token: int
    uid: int = 0
    started_wall_s: float = 0.0
    lease_deadline_s: float = 0.0
    release: str = ""
    previous: str = ""  # the committed release when it began
    revision: str = ""
    branch: str = ""
    generation: int = 0
    services: tuple[str, ...] = ()
    migrated: bool = False
    made_release: bool = False
    failure: str = ""
    ended: str = ""  # once it is closed: committed or reverted
    where: str = ""
    steps: dict[str, str] = field(default_factory=dict)  # step -> "begun" or "done" (the journal has the times)
    commands: tuple[CommandRecord, ...] = ()  # in the order in which they were begun
