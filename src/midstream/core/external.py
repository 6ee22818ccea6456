"""A hold on a service that another supervisor owns, as it is stored, and what is decided about it.

Pure. The record is written before the supervisor is told anything, so that whoever finds it knows what has to be given
back. `agent/external.py` performs; `docs/external-services.md` tells operators.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace

HOLD_MAX_S = 86400.0


class HoldState(enum.Enum):
    """TAKING: stored, and the supervisor may have been told. HELD: it leaves the service alone. RELEASING: to be given
    back, whatever that takes. RELEASED: given back; kept while its deploy may still have to put the service back."""

    TAKING = "taking"
    HELD = "held"
    RELEASING = "releasing"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class ExternalHold:
    """`number` is the fencing token, and names the hold's one-shots. `deadline_s` is CLOCK_BOOTTIME of boot `boot_id`."""

    number: int
    app: str
    supervisor: str
    service: str
    deploy_id: str
    owner: str  # who deploys
    uid: int  # as whom the supervisor is spoken to
    control: str
    ttl_s: float
    deadline_s: float
    boot_id: str
    since_wall_s: float
    state: HoldState = HoldState.TAKING
    restart: bool = True
    quiet: str = ""
    quiet_timeout_s: float = 60.0
    min_uptime_s: float = 3.0
    watched_before: tuple[str, ...] = ()  # all that the supervisor watched when the hold was begun
    along: tuple[str, ...] = ()  # what it left alone with it, because it depends on it
    pid: int = 0  # of the service, as last seen
    start_ticks: int = 0
    expired: bool = False
    touched: str = ""  # the release that it is, or may have been, brought to by its deploy
    current_before: str = ""  # what `current` named before that; "" : nothing
    note: str = ""  # what is wrong, for people

    @property
    def name(self) -> tuple[str, str, str]:
        return self.app, self.supervisor, self.service

    @property
    def was_watched(self) -> bool:
        return self.service in self.watched_before

    @property
    def label(self) -> str:
        return f"{self.supervisor}:{self.service}"


def inherited(new: ExternalHold, old: ExternalHold | None) -> ExternalHold:
    """A hold that follows one which was not given back yet: what that found is what there was."""
    if old is None or old.state is HoldState.RELEASED:
        return new
    return replace(new, watched_before=tuple(sorted({*new.watched_before, *old.watched_before})), along=old.along)


def taken(hold: ExternalHold, watched_now: Iterable[str]) -> ExternalHold:
    """After the supervisor has let go. What it let go along with the service are those that it no longer watches."""
    gone = set(hold.watched_before) - set(watched_now) - {hold.service}
    return replace(hold, state=HoldState.HELD, along=tuple(sorted({*hold.along, *gone})))


def to_give_back(hold: ExternalHold, others: Iterable[ExternalHold]) -> tuple[str, ...]:
    """The services to be watched again: this one and those that went along, if they were watched, but for those that
    another hold keeps."""
    kept = _kept(hold, others)
    names = [hold.service] if hold.was_watched else []
    return tuple(name for name in (*names, *hold.along) if name not in kept)


def heirs(hold: ExternalHold, others: Iterable[ExternalHold]) -> list[ExternalHold]:
    """Holds on services that went along with this one, changed so that they give back what this one found watched."""
    found = []
    for other in others:
        if _is_rival(hold, other) and other.service in hold.along and not other.was_watched:
            found.append(replace(other, watched_before=tuple(sorted({*other.watched_before, other.service}))))
    return found


def _kept(hold: ExternalHold, others: Iterable[ExternalHold]) -> set[str]:
    return {other.service for other in others if _is_rival(hold, other)}


def _is_rival(hold: ExternalHold, other: ExternalHold) -> bool:
    """Of the same supervisor, and in force."""
    same = (other.supervisor, other.control, other.uid) == (hold.supervisor, hold.control, hold.uid)
    return same and other.number != hold.number and other.state in (HoldState.TAKING, HoldState.HELD)


def left_s(hold: ExternalHold, now_s: float, boot_id: str, wall_s: float) -> float:
    """What is left of its time. After a reboot by the wall clock, and never more than its TTL."""
    if hold.boot_id == boot_id:
        return hold.deadline_s - now_s
    return min(hold.ttl_s, hold.since_wall_s + hold.ttl_s - wall_s)
