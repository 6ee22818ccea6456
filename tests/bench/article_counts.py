"""What the records of a run say: which code each Sidekiq was started from, which job began on which code, what was lost.

Nothing here looks at a host or asks a program; all is counted from what the Sidekiqs wrote themselves, the times of the
commits on the same machine's clock, and the list of strikes. Runs in the benchmark, and in its test on made-up histories.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

TICK_S = 0.01  # CLK_TCK is 100 on all that Debian has


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a Sidekiq. what: boot, begin, end. at_s: of a boot the start of the process, else now; epoch seconds."""

    host: str
    what: str
    job: str
    release: str
    revision: str
    at_s: float
    pid: int


@dataclass(frozen=True, slots=True)
class Turn:
    """A deploy as one host lived it. begun_s: its release was made; over_s: committed, or put back (inf: not over)."""

    release: str
    begun_s: float
    over_s: float
    committed: bool


@dataclass(frozen=True, slots=True)
class Strike:
    """A signal that was sent. pid: in the host, 0 for what is not a Sidekiq."""

    host: str
    victim: str
    signal: str
    pid: int
    at_s: float
    phase: str


@dataclass
class History:
    """Of one host: its turns, in order."""

    turns: list[Turn] = field(default_factory=list)

    def committed(self, at_s: float) -> str:
        """The release that is committed at that time; "" before the first."""
        done = [turn for turn in self.turns if turn.committed and turn.over_s <= at_s]
        return max(done, key=lambda turn: turn.over_s).release if done else ""

    def may_run(self, release: str, at_s: float) -> bool:
        """It is committed, or it is being handed over to."""
        if release == self.committed(at_s):
            return True
        return any(turn.release == release and turn.begun_s <= at_s <= turn.over_s for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Counts:
    """strays: processes started from code that was not committed, nor being handed over to. late: jobs begun on such code.
    lost: jobs that never ended, without those in_hand of a Sidekiq that was killed -9. again: begun more than once."""

    boots: int
    jobs: int
    strays: tuple[Line, ...]
    late: tuple[Line, ...]
    lost: tuple[str, ...]
    in_hand: tuple[str, ...]
    again: int
    most_begun: int


def _was_right(line: Line, history: History) -> bool:
    """The kernel counts starts in ticks, cut off: a process may have started up to one later than is said."""
    times = (line.at_s, line.at_s + TICK_S) if line.what == "boot" else (line.at_s,)
    return any(history.may_run(line.release, at_s) for at_s in times)


def count(
    lines: Iterable[Line], histories: Mapping[str, History], strikes: Iterable[Strike], pushed: Mapping[str, float]
) -> Counts:
    """pushed: job -> when it was put into the queue, in that order."""
    lines = sorted(lines, key=lambda line: line.at_s)
    wrong = [line for line in lines if line.what != "end" and not _was_right(line, histories[line.host])]
    begun: dict[str, list[Line]] = {}
    for line in lines:
        if line.what == "begin":
            begun.setdefault(line.job, []).append(line)
    ended = {line.job for line in lines if line.what == "end"}
    killed = {(strike.host, strike.pid): strike.at_s for strike in strikes if strike.pid and strike.signal == "KILL"}
    missing = [job for job in pushed if job not in ended]
    in_hand = tuple(job for job in missing if _was_in_hand(job, begun, killed, pushed))
    return Counts(
        boots=sum(line.what == "boot" for line in lines),
        jobs=len(pushed),
        strays=tuple(line for line in wrong if line.what == "boot"),
        late=tuple(line for line in wrong if line.what == "begin"),
        lost=tuple(job for job in missing if job not in in_hand),
        in_hand=in_hand,
        again=sum(len(times) > 1 for times in begun.values()),
        most_begun=max((len(times) for times in begun.values()), default=0),
    )


def _was_in_hand(
    job: str, begun: Mapping[str, list[Line]], killed: Mapping[tuple[str, int], float], pushed: Mapping[str, float]
) -> bool:
    """A Sidekiq that was killed -9 had it. One that never began was fetched between its neighbours in the queue, by a
    Sidekiq that died before the job's first line."""
    if job in begun:
        last = begun[job][-1]
        return (last.host, last.pid) in killed
    names = list(pushed)
    place = names.index(job)
    before = [begun[name][0].at_s for name in names[max(0, place - 20) : place] if name in begun]
    after = [begun[name][0].at_s for name in names[place + 1 : place + 21] if name in begun]
    earliest = max(before[-3:], default=pushed[job]) - 1.0
    latest = min(after, default=pushed[job]) + 1.0
    return any(earliest <= at_s <= max(latest, earliest + 2.0) for at_s in killed.values())
