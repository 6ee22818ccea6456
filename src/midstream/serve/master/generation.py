"""One generation as the master sees it: a zygote, alive or not, and the workers that it left behind.

What lives here: its state and its two kinds of end. What must not: what follows from them (`master.py`).
"""

from __future__ import annotations

import enum
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from midstream.errors import MidstreamError
from midstream.linux import process
from midstream.linux.timers import Timer
from midstream.serve.board import Board
from midstream.serve.contract import Traffic
from midstream.serve.interpreter import Source
from midstream.serve.loop import Loop, Talk
from midstream.serve.master.beat import Beat
from midstream.serve.master.spawning import Spawned
from midstream.serve.settings import Settings


class State(enum.Enum):
    BOOTING = "booting"
    PROVEN = "proven"
    SERVING = "serving"
    DRAINING = "draining"
    ENDING = "ending"  # at once
    GONE = "gone"


@dataclass(slots=True)
class Orphan:
    """A worker whose zygote is gone."""

    pid: int
    pidfd: int


@dataclass(slots=True)
class Generation:
    """pid 0: there is no zygote any more. spawned: None for one that an earlier master started."""

    number: int
    settings: Settings
    source: Source
    pid: int
    talk: Talk
    private: socket.socket | None = None
    spawned: Spawned | None = None
    pidfd: int = -1
    state: State = State.BOOTING
    board: Board | None = None
    worker_pids: list[int] = field(default_factory=list)
    orphans: dict[int, Orphan] = field(default_factory=dict)
    failure: MidstreamError | None = None
    timer: Timer | None = None
    cuts: tuple[int, int] = (0, 0)  # requests, WebSockets
    leaving_since_s: float = 0.0
    zygote_lost: bool = False
    answers: bool = False  # a zygote of this version: it says whether its loop turns
    beat: Beat | None = None

    @property
    def name(self) -> str:
        return f"generation {self.number} ({self.source.release})"

    @property
    def is_gone(self) -> bool:
        return self.pid == 0 and not self.orphans

    def traffic(self) -> Traffic:
        return self.board.traffic() if self.board is not None else Traffic()

    def set_timer(self, loop: Loop, delay_s: float, act: Callable[[], None]) -> None:
        self.cancel_timer()
        self.timer = loop.after(delay_s, act)

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def watch(self, loop: Loop, hangs: Callable[[float], None]) -> None:
        """From when it is there to do things; not while it loads the app. Idempotent."""
        if self.answers and self.beat is None and self.pid:
            self.beat = Beat(loop, self.settings.timeout_s, lambda: self.talk.send("ask"), hangs)

    def close_beat(self) -> None:
        if self.beat is not None:
            self.beat.close()

    def kill_zygote(self) -> None:
        """It alone: its workers serve on."""
        if self.pidfd >= 0:
            process.send_by_pidfd(self.pidfd, signal.SIGKILL)
        elif self.pid:
            os.kill(self.pid, signal.SIGKILL)  # our child, not reaped yet: the number is its own

    def close_private(self) -> None:
        """The health check is over: nobody else was told the address."""
        if self.private is not None:
            self.private.close()
            self.private = None

    def kill_all(self) -> None:
        """The zygote with all that it forked: they are its session and process group."""
        if self.pid:
            _kill_group(self.pid)
        for orphan in self.orphans.values():
            process.send_by_pidfd(orphan.pidfd, signal.SIGKILL)

    def signal_orphans(self, number: int) -> None:
        for orphan in self.orphans.values():
            process.send_by_pidfd(orphan.pidfd, number)

    def orphaned(self) -> list[Orphan]:
        """After the zygote's death: its workers that live. A number that is somebody else's by now is not of its session."""
        zygote, self.pid = self.pid, 0
        self.close_beat()
        for pid in self.worker_pids:
            pidfd = process.open_pidfd(pid)
            stat = process.read_stat(pid)
            if pidfd is None:
                continue
            if stat is None or stat.sid != zygote or not stat.is_live:
                os.close(pidfd)
                continue
            self.orphans[pid] = Orphan(pid, pidfd)
        self.worker_pids = []
        return list(self.orphans.values())

    def close(self) -> None:
        """When it is gone."""
        self.state = State.GONE
        self.cancel_timer()
        self.close_beat()
        self.close_private()
        self.talk.close()
        if self.board is not None:
            self.board.close()
            self.board = None
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
