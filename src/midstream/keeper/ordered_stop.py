"""The ordered stop: TERM to every tree, KILL when the time is over, then the agent, then the end.

What a service leaves behind (a daemonised child, one that was being forked when the signals went out) gets TERM too,
and is waited for like the rest. Nothing is waited for beyond the time-out but what SIGKILL needs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from midstream.linux import process, tree
from midstream.linux.process import ProcStat
from midstream.linux.timers import Timer

if TYPE_CHECKING:
    from midstream.keeper.keeper import Keeper

_AGENT_S = 5.0
_AFTER_KILL_S = 5.0  # for a process in uninterruptible sleep; the kernel ends it when it wakes


class OrderedStop:
    """`over` is called once, at the end. Before `begin` nothing here does anything."""

    def __init__(self, keeper: Keeper, over: Callable[[], None]) -> None:
        self._keeper = keeper
        self._over = over
        self.active = False
        self._killing = False
        self._agent_asked = False
        self._ended = False
        self._timer: Timer | None = None
        self._leftovers: dict[int, int] = {}  # pid -> pidfd

    def begin(self, timeout_s: float) -> None:
        """Begin, or set a new time-out (0: KILL at once)."""
        first = not self.active
        self.active = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._keeper.loop.after(timeout_s, self._kill)
        if first:
            self._signal(self._members(), signal.SIGTERM)
            self.check()

    def check(self) -> None:
        """Something has ended: go on when that was the last of its kind."""
        if not self.active or self._ended or self._keeper.table.by_pid or self._wait_for_leftovers():
            return
        watch = self._keeper.agent
        waiting = [pid for pid in watch.pids if pid == watch.pid or watch.attached or watch.is_agent(pid)]
        if not waiting:
            self._end()
        elif not self._agent_asked:
            self._agent_asked = True
            for pid in waiting:
                if pid == watch.pid or watch.is_agent(pid):
                    watch.send(pid, signal.SIGTERM)
            self._keeper.loop.after(_AGENT_S, self._end)

    def _members(self) -> list[ProcStat]:
        keeper_id = self._keeper.children.keeper_id
        marks = [row.mark(keeper_id) for row in self._keeper.table.by_pid.values()]
        agents = self._keeper.agent.pids
        return [stat for stat in tree.members_of_keeper(keeper_id, marks).values() if stat.pid not in agents]

    def _signal(self, stats: list[ProcStat], signum: int) -> int:
        sent = 0
        for stat in stats:
            try:
                sent += process.send_signal(stat.pid, stat.start_ticks, signum)
            except PermissionError:
                self._keeper.layout.note(f"may not signal pid {stat.pid}")
        return sent

    def _wait_for_leftovers(self) -> bool:
        """Whether anything of a tree lives though its first process has ended; the end of each calls `check` again."""
        stats = self._members()
        for stat in stats:
            if stat.pid in self._leftovers:
                continue
            self._signal([stat], signal.SIGKILL if self._killing else signal.SIGTERM)
            pidfd = process.open_pidfd(stat.pid, stat.start_ticks)
            if pidfd is not None:
                self._leftovers[stat.pid] = pidfd
                self._keeper.loop.add(pidfd, self._leftover_ended(stat.pid))
        return bool(self._leftovers)

    def _leftover_ended(self, pid: int) -> Callable[[int], None]:
        def ended(_events: int) -> None:
            pidfd = self._leftovers.pop(pid)
            self._keeper.loop.remove(pidfd)
            os.close(pidfd)
            self.check()

        return ended

    def _kill(self) -> None:
        """To a fixpoint: what was forked between two looks is found by the next."""
        self._killing = True
        frozen: set[int] = set()
        while fresh := [stat for stat in self._members() if stat.pid not in frozen]:
            self._signal(fresh, signal.SIGSTOP)
            frozen |= {stat.pid for stat in fresh}
        self._signal([stat for stat in self._members() if stat.pid in frozen], signal.SIGKILL)
        self._keeper.loop.after(_AFTER_KILL_S, self._end)
        self.check()

    def _end(self) -> None:
        """Our own agent is killed when it would not go; another program that attached is left alone."""
        if not self._ended:
            self._ended = True
            self._keeper.agent.send(self._keeper.agent.pid, signal.SIGKILL)
            self._over()
