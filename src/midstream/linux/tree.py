"""Finding and ending a whole process tree, daemonised grandchildren included. Any process that may signal them.

A tree is known by four marks: its cgroup folder; ancestry from its first process; that process's session; and the
environment it was stamped with (MIDSTREAM_KEEPER and MIDSTREAM_KEY), which a `setsid` grandchild that was re-parented
still carries. With a cgroup the folder alone decides. Nothing here waits for a process to be gone: SIGKILL that was
delivered cannot be taken back, and a process in uninterruptible sleep would block the caller for ever.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Container, Iterable
from dataclasses import dataclass

from midstream.linux import cgroup, process
from midstream.linux.process import ProcStat

KEY_VARIABLE = "MIDSTREAM_KEY"
KEEPER_VARIABLE = "MIDSTREAM_KEEPER"

_PASSES_MAX = 20  # a fork bomb outruns any number of passes without a cgroup; it is then reported, not chased for ever


@dataclass(frozen=True, slots=True)
class TreeMark:
    """What names a tree. `pid` and `start_ticks` of its first process, which may have ended already."""

    key: str
    keeper_id: str
    pid: int
    start_ticks: int
    cgroup: str | None = None


@dataclass(frozen=True, slots=True)
class KillReport:
    """`killed`: processes that got SIGKILL. `left`: members that were still appearing when the passes ran out."""

    killed: int
    left: tuple[int, ...]


def snapshot() -> dict[int, ProcStat]:
    """Every live process, without zombies."""
    stats = (process.read_stat(pid) for pid in process.all_pids())
    return {stat.pid: stat for stat in stats if stat is not None and stat.is_live}


def stamp_of(pid: int) -> tuple[str, str] | None:
    """(keeper id, key) that `pid` was stamped with, or None."""
    environ = process.read_environ(pid)
    if not environ:
        return None
    keeper = environ.get(KEEPER_VARIABLE.encode())
    key = environ.get(KEY_VARIABLE.encode())
    if keeper is None or key is None:
        return None
    return keeper.decode("utf-8", "replace"), key.decode("utf-8", "replace")


def members(mark: TreeMark) -> dict[int, ProcStat]:
    """The live processes of the tree. With a cgroup: those in its folder; else a scan of /proc."""
    if mark.cgroup is not None and os.path.isdir(mark.cgroup):
        stats = (process.read_stat(pid) for pid in cgroup.members(mark.cgroup))
        return {stat.pid: stat for stat in stats if stat is not None and stat.is_live}
    return _members_by_scan(mark, snapshot())


def _members_by_scan(mark: TreeMark, everything: dict[int, ProcStat]) -> dict[int, ProcStat]:
    first = process.read_stat(mark.pid)
    # The number of a process that has ended may be somebody else's by now; his session and children are not ours.
    number_is_ours = first is None or first.start_ticks == mark.start_ticks
    found: dict[int, ProcStat] = {}
    for stat in everything.values():
        if stat.start_ticks < mark.start_ticks or stat.pid == os.getpid():
            continue
        if stat.pid == mark.pid and number_is_ours:
            found[stat.pid] = stat
            continue
        stamp = stamp_of(stat.pid)
        if stamp == (mark.keeper_id, mark.key) or (
            number_is_ours and stat.sid == mark.pid and (stamp is None or stamp[0] != mark.keeper_id)
        ):
            found[stat.pid] = stat
    _add_descendants(found, everything)
    return found


def _add_descendants(found: dict[int, ProcStat], everything: dict[int, ProcStat]) -> None:
    children: dict[int, list[ProcStat]] = {}
    for stat in everything.values():
        children.setdefault(stat.ppid, []).append(stat)
    waiting = list(found)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child.pid not in found:
                found[child.pid] = child
                waiting.append(child.pid)


def send(mark: TreeMark, signum: int) -> int:
    """Send a signal to every live process of the tree; returns how many got it. Raises PermissionError."""
    return sum(process.send_signal(stat.pid, stat.start_ticks, signum) for stat in members(mark).values())


def members_of_keeper(keeper_id: str, marks: Iterable[TreeMark]) -> dict[int, ProcStat]:
    """The live processes of all these trees and whatever else the keeper stamped, in one scan."""
    everything = snapshot()
    firsts = {mark.pid: mark.start_ticks for mark in marks}
    found: dict[int, ProcStat] = {}
    for stat in everything.values():
        leader = everything.get(stat.sid)
        in_session = leader is not None and firsts.get(leader.pid) == leader.start_ticks
        stamp = stamp_of(stat.pid)
        if in_session or (stamp is not None and stamp[0] == keeper_id):
            found[stat.pid] = stat
    _add_descendants(found, everything)
    found.pop(os.getpid(), None)
    return found


def kill(mark: TreeMark) -> KillReport:
    """SIGKILL the tree to a fixpoint: by cgroup.kill, else freeze, look again until nobody new appears, then kill."""
    if mark.cgroup is not None and os.path.isdir(mark.cgroup):
        inside = members(mark)
        if cgroup.kill(mark.cgroup):
            return KillReport(len(inside), ())
    frozen: dict[int, ProcStat] = {}
    for _ in range(_PASSES_MAX):
        fresh = {pid: stat for pid, stat in members(mark).items() if pid not in frozen}
        if not fresh:
            break
        for stat in fresh.values():
            process.send_signal(stat.pid, stat.start_ticks, signal.SIGSTOP)
        frozen.update(fresh)
    killed = sum(process.send_signal(stat.pid, stat.start_ticks, signal.SIGKILL) for stat in frozen.values())
    left = tuple(sorted(pid for pid in members(mark) if pid not in frozen))
    return KillReport(killed, left)


def strangers(known: Container[int], keeper_id: str) -> tuple[int, ...]:
    """Our live children that we did not start (we are a subreaper) and whose environment does not say whose they are."""
    children = process.own_children()
    if children is None:
        children = [stat.pid for stat in snapshot().values() if stat.ppid == os.getpid()]
    found = []
    for pid in children:
        stat = process.read_stat(pid) if pid not in known else None
        if stat is None or not stat.is_live:
            continue
        stamp = stamp_of(pid)
        if stamp is None or stamp[0] != keeper_id:
            found.append(pid)
    return tuple(sorted(found))
