"""The workers of one zygote, as values, and what to do next for them: pure.

What lives here: `Crew` and `next_actions`, which looks at the whole each time and says what is missing. What must not: I/O,
clocks. The zygote carries the actions out and notes what became of them; a test drives it without a process.

A worker: BOOTING, then IDLE (ready, on the private listener alone), SERVING or PARKED as the crew is told to be, at last
LEAVING (drains). Who is `retiring` serves on until others are there for it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

_BACKOFF_FIRST_S = 0.2
_BACKOFF_LONGEST_S = 30.0
_SHORT_LIFE_S = 1.0  # a worker that ends sooner after it was ready counts as one that did not boot


class Aim(enum.Enum):
    """What the crew as a whole is to do. PROVE: be ready, on private listeners only."""

    PROVE = "prove"
    SERVE = "serve"
    PARK = "park"
    LEAVE = "leave"


class At(enum.Enum):
    """Where one worker is."""

    BOOTING = "booting"
    IDLE = "idle"
    SERVING = "serving"
    PARKED = "parked"
    LEAVING = "leaving"


@dataclass(slots=True)
class Member:
    """told: the last thing it was asked to be, so that nothing is said twice."""

    slot: int
    pid: int
    begun_s: float
    at: At = At.BOOTING
    told: At | None = None
    retiring: str = ""  # why
    ready_s: float = 0.0
    killed: str = ""  # why we killed it
    has_left: bool = False  # it drains, and accepts nothing any more


@dataclass(slots=True)
class Crew:
    """count: how many are to work. failures: boots in a row that came to nothing."""

    count: int
    slots: int
    aim: Aim = Aim.PROVE
    members: dict[int, Member] = field(default_factory=dict)
    failures: int = 0
    not_before_s: float = 0.0
    was_proven: bool = False

    def of_pid(self, pid: int) -> Member | None:
        return next((member for member in self.members.values() if member.pid == pid), None)

    @property
    def staying(self) -> list[Member]:
        """Who counts as one of the workers that there are to be."""
        return [one for one in self.members.values() if one.at is not At.LEAVING and not one.retiring]

    @property
    def is_proven(self) -> bool:
        return len([one for one in self.staying if one.at is not At.BOOTING]) >= self.count

    def all_are(self, at: At) -> bool:
        """Whether as many as there are to be are there, and nobody who leaves or retires matters."""
        return len([one for one in self.staying if one.at is at]) >= self.count

    @property
    def nobody_accepts(self) -> bool:
        """Whether all drain and have said that they accept nothing any more; those that boot are only ended."""
        return self.aim is Aim.LEAVE and all(one.has_left or not one.ready_s for one in self.members.values())


@dataclass(frozen=True, slots=True)
class Fork:
    slot: int


@dataclass(frozen=True, slots=True)
class Tell:
    """The worker in `slot` is asked to be SERVING, PARKED or LEAVING."""

    slot: int
    to_be: At


Action = Fork | Tell


def began(crew: Crew, slot: int, pid: int, now_s: float) -> None:
    """A worker was forked."""
    crew.members[slot] = Member(slot, pid, now_s)


def became(crew: Crew, slot: int, at: At, now_s: float) -> None:
    """A worker said where it is. What comes late is passed over: who leaves does not come back."""
    member = crew.members.get(slot)
    if member is None or member.at is At.LEAVING:
        return
    if member.at is At.BOOTING:
        member.ready_s = now_s
    member.at = at
    if crew.is_proven:
        crew.was_proven = True


def leaves(crew: Crew, slot: int) -> None:
    """A worker drains by itself, because somebody signalled it."""
    if member := crew.members.get(slot):
        member.at = member.told = At.LEAVING


def ended(crew: Crew, slot: int, now_s: float) -> Member | None:
    """A worker is gone. Whether the next may begin at once depends on how this one ended."""
    member = crew.members.pop(slot, None)
    if member is None or member.at is At.LEAVING or member.retiring:
        return member
    if member.at is At.BOOTING or now_s - member.ready_s < _SHORT_LIFE_S:
        crew.failures += 1
        if crew.failures > 1 or member.at is At.BOOTING:
            crew.not_before_s = now_s + min(_BACKOFF_LONGEST_S, _BACKOFF_FIRST_S * 2 ** min(crew.failures, 12))
    else:
        crew.failures = 0
        crew.not_before_s = 0.0
    return member


def settled(crew: Crew, now_s: float) -> None:
    """Notes that workers that have lived for a while are no failures."""
    if crew.failures and crew.is_proven and all(now_s - one.ready_s >= _SHORT_LIFE_S for one in crew.staying):
        crew.failures = 0


def next_actions(crew: Crew, now_s: float) -> list[Action]:
    """What is missing. Ask again whenever something changed, and at `wake_s`."""
    if crew.aim is Aim.LEAVE:
        return [Tell(one.slot, At.LEAVING) for one in crew.members.values() if one.told is not At.LEAVING]
    return [*_forks(crew, now_s), *_surplus(crew), *_retiring(crew), *_lagging(crew)]


def wake_s(crew: Crew, now_s: float) -> float | None:
    """When time alone will bring something to do; None: never."""
    waits = crew.aim is not Aim.LEAVE and len(crew.staying) < crew.count
    return crew.not_before_s if waits and crew.not_before_s > now_s else None


def _forks(crew: Crew, now_s: float) -> list[Action]:
    missing = crew.count - len(crew.staying)
    if missing <= 0 or now_s < crew.not_before_s:
        return []
    free = [slot for slot in range(crew.slots) if slot not in crew.members]
    return [Fork(slot) for slot in free[:missing]]


def _surplus(crew: Crew) -> list[Action]:
    over = sorted(crew.staying, key=lambda one: one.slot)[crew.count :]
    return [Tell(one.slot, At.LEAVING) for one in over]


def _retiring(crew: Crew) -> list[Action]:
    """One may leave when the others are enough without it."""
    if not crew.all_are(_WORKING[crew.aim]):
        return []
    return [Tell(one.slot, At.LEAVING) for one in crew.members.values() if one.retiring and one.at is not At.LEAVING]


def _lagging(crew: Crew) -> list[Action]:
    wanted = _WORKING[crew.aim]
    if wanted is At.IDLE:
        return []
    found: list[Action] = []
    for one in crew.members.values():
        if one.at not in (At.BOOTING, At.LEAVING) and one.told is not wanted:
            found.append(Tell(one.slot, wanted))
    return found


_WORKING = {Aim.PROVE: At.IDLE, Aim.SERVE: At.SERVING, Aim.PARK: At.PARKED}
