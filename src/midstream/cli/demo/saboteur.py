"""Kills the worker with SIGKILL at random moments, and once in the middle of each handover; and, on request, the agent.

It kills only instances of committed generations: a new generation that dies on probation is put back, which is another
story. Runs in the demo.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable

from midstream.cli.demo.board import Board, Kill
from midstream.cli.demo.place import is_of
from midstream.cli.demo.watch import Watch

PAUSE_S = (2.5, 6.0)
WORKER = "jobs"


class Saboteur:
    """pause_s: between two kills, at least and at most."""

    def __init__(self, board: Board, watch: Watch, luck: random.Random, pause_s: tuple[float, float] = PAUSE_S) -> None:
        self._board = board
        self._watch = watch
        self._luck = luck
        self._pause_s = pause_s
        self._task: asyncio.Task[None] | None = None
        self._soon: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._go_on())

    async def end(self) -> None:
        tasks = [task for task in (self._task, *self._soon) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def handover_began(self) -> None:
        """A kill at a random moment of the handover that has just begun."""
        self._later(self._kill_worker, self._luck.uniform(0.0, 0.6))

    def kill_agent_soon(self) -> None:
        """While the new generation boots: a handover as a whole takes half a second."""
        self._later(self._kill_agent, self._luck.uniform(0.02, 0.2))

    def _later(self, act: Callable[[], None], delay_s: float) -> None:
        async def wait() -> None:
            await asyncio.sleep(delay_s)
            act()

        task = asyncio.create_task(wait())
        self._soon.add(task)
        task.add_done_callback(self._soon.discard)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(self._luck.uniform(*self._pause_s))
            self._kill_worker()

    def _kill_worker(self) -> None:
        victims = [one for one in self._board.processes if one.service == WORKER and one.state == "committed"]
        if victims:
            victim = self._luck.choice(victims)
            if _kill(victim.pid, self._board.folder):
                self._record(victim.pid, "worker", victim.release)

    def _kill_agent(self) -> None:
        if _kill(self._watch.agent_pid, self._board.folder):
            self._record(self._watch.agent_pid, "agent", "")

    def _record(self, pid: int, what: str, release: str) -> None:
        self._board.kills.append(Kill(time.monotonic(), pid, what, release))
        of = f" of {self._board.label(release)}" if release else ""
        self._board.say(f"kill -9 {pid}: the {what}{of}", "magenta")


def _kill(pid: int, folder: str) -> bool:
    """Whether a process of the demo was killed. The pid is checked once it cannot become somebody else's any more."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not is_of(pid, folder):
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True
