"""The agent as a process: started, watched, started again; and which connection speaks for it.

One agent is attached at a time: the newest that said hello. While none is, the keeper drains what services write and
carries out standing orders. An agent that is attached and silent for 60 s hangs, and is killed; so is one that does not
attach within 60 s of its start. An agent that attaches without having been started here (it outlived the last keeper)
is watched by pidfd, and no other is started while it lives. That holds for a process with the agent's own command line;
any other program that attached is forgotten when its connection ends.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence

from midstream.keeper.children import Inherited
from midstream.keeper.layout import Layout
from midstream.keeper.loop import Loop
from midstream.keeper.snapshot import AgentState
from midstream.linux import fds, process, spawn
from midstream.linux.clock import boottime_us
from midstream.linux.spawn import RLIMITS, Launch, Placement
from midstream.linux.timers import Timer
from midstream.linux.tree import KEEPER_VARIABLE, KEY_VARIABLE

SOCKET_VARIABLE = "MIDSTREAM_KEEPER_SOCKET"
_DELAY_FIRST_S = 0.05
_DELAY_MAX_S = 5.0
_SETTLED_S = 10.0
_SILENCE_MAX_S = 60.0


class AgentWatch:
    """`on_attachment(attached)` is told when an agent comes or the last one goes."""

    def __init__(self, layout: Layout, loop: Loop, inherited: Inherited, on_attachment: Callable[[bool], None]) -> None:
        self._layout = layout
        self._loop = loop
        self._inherited = inherited
        self._on_attachment = on_attachment
        self.argv: tuple[str, ...] = ()
        self.epoch = boottime_us()  # grows over restarts of the keeper, without a file
        self.pid = 0  # our own child
        self.report_fd = -1
        self.started_s = 0.0
        self.foreign_pid = 0
        self.foreign_pidfd = -1
        self.attached_pid = 0  # whoever said the newest hello
        self.stopping = False
        self.on_gone: Callable[[], None] = lambda: None
        self._delay_s = _DELAY_FIRST_S
        self._restart: Timer | None = None
        self._heard_s = loop.now_s
        self._silence: Timer | None = None

    @property
    def attached(self) -> bool:
        return self.attached_pid != 0

    # The process

    def ensure(self) -> None:
        """Start the agent unless one lives or is due."""
        if self.pids or self.stopping or not self.argv or self._restart is not None:
            return
        env = {k: v for k, v in os.environ.items() if k not in (KEY_VARIABLE, KEEPER_VARIABLE)}
        env[SOCKET_VARIABLE] = self._layout.socket_path
        soft, hard = self._inherited.nofile
        launch = Launch(
            argv=self.argv,
            env=env,
            umask=self._inherited.umask,
            rlimits=((RLIMITS["nofile"], soft, hard),),
            placements=(Placement(1, 1), Placement(2, 2)),
            reset_signals=self._inherited.reset_signals,
        )
        self.started_s = self._loop.now_s
        try:
            child = spawn.launch(launch)
        except OSError as error:
            self._layout.note(f"cannot start the agent: {error.strerror}")
            self._start_later()
            return
        self.pid, self.report_fd = child.pid, child.report_fd
        self._heard_s = self._loop.now_s
        self._watch_silence()

    def _start_later(self) -> None:
        if self.stopping or self._restart is not None:
            return
        if self._loop.now_s - self.started_s > _SETTLED_S:
            self._delay_s = _DELAY_FIRST_S
        self._restart = self._loop.after(self._delay_s, self._start_now)
        self._delay_s = min(self._delay_s * 2, _DELAY_MAX_S)

    def _start_now(self) -> None:
        self._restart = None
        self.ensure()

    def reaped(self, pid: int, _status: int) -> bool:
        """Our child has ended. False when it is not the agent."""
        if pid != self.pid or not pid:
            return False
        self.pid = 0
        report = spawn.read_report(self.report_fd)
        os.close(self.report_fd)
        self.report_fd = -1
        if report is not None and report[0]:
            self._layout.note(f"cannot start the agent: {report[0]}: {os.strerror(report[1])}")
        if not self.foreign_pid:
            self._start_later()
        self.on_gone()
        return True

    def _foreign_ended(self, _events: int) -> None:
        self._forget_foreign()
        if not self.pid:
            self._start_later()
        self.on_gone()

    def _forget_foreign(self) -> None:
        if self.foreign_pidfd >= 0:
            self._loop.remove(self.foreign_pidfd)
            os.close(self.foreign_pidfd)
        self.foreign_pid, self.foreign_pidfd = 0, -1

    def command(self, argv: Sequence[str]) -> None:
        """What to start from now on, when the agent is gone."""
        self.argv = tuple(argv)

    def restore(self, saved: AgentState) -> None:
        """The agent of the former image of this process."""
        self.argv, self.epoch = saved.argv, saved.epoch
        self.pid, self.report_fd = saved.pid, saved.report_fd
        self.attached_pid = saved.attached_pid
        self.started_s = self._heard_s = self._loop.now_s
        if saved.foreign_pidfd >= 0:
            self.foreign_pid, self.foreign_pidfd = saved.foreign_pid, saved.foreign_pidfd
            self._loop.add(self.foreign_pidfd, self._foreign_ended)
        self._watch_silence()

    def expect(self, pid: int, start_ticks: int) -> None:
        """An agent that is not our child lives and will attach: start no other unless it dies."""
        pidfd = process.open_pidfd(pid, start_ticks)
        if pidfd is not None:
            self._watch_foreign(pid, pidfd)

    # The attachment

    def attach(self, pid: int, sock: socket.socket) -> int:
        """The agent at the other end of `sock` said hello: it gets the next epoch."""
        self.epoch += 1
        self._heard_s = self._loop.now_s
        was_attached, self.attached_pid = self.attached, pid
        if pid not in self.pids:
            pidfd = fds.peer_pidfd(sock)
            if pidfd is None:
                pidfd = process.open_pidfd(pid)
            if pidfd is not None:
                self._watch_foreign(pid, pidfd)
        if not was_attached:
            self._on_attachment(True)
        self._watch_silence()
        return self.epoch

    def _watch_foreign(self, pid: int, pidfd: int) -> None:
        self._forget_foreign()
        self.foreign_pid, self.foreign_pidfd = pid, pidfd
        self._loop.add(pidfd, self._foreign_ended)
        self._watch_silence()
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None

    def heard(self) -> None:
        """The attached agent has sent something."""
        self._heard_s = self._loop.now_s

    def detach(self) -> None:
        """The connection of the attached agent is gone."""
        if self.attached:
            gone, self.attached_pid = self.attached_pid, 0
            self._heard_s = self._loop.now_s
            if gone == self.foreign_pid and not self.is_agent(gone):
                self._forget_foreign()
                if not self.pid:
                    self._start_later()
            self._on_attachment(False)

    def _watch_silence(self) -> None:
        if self._silence is None:
            self._silence = self._loop.after(_SILENCE_MAX_S, self._check_silence)

    def _check_silence(self) -> None:
        """Kill the agent that has said nothing for too long: the attached one, or the one that never attaches."""
        self._silence = None
        silent = self.attached_pid or self.pid or self.foreign_pid
        if not silent:
            return
        left_s = self._heard_s + _SILENCE_MAX_S - self._loop.now_s
        if left_s > 0:
            self._silence = self._loop.after(left_s, self._check_silence)
            return
        self._layout.note(f"killed agent {silent}: silent for {_SILENCE_MAX_S:.0f} s")
        self.send(silent, signal.SIGKILL)

    def is_agent(self, pid: int) -> bool:
        """Whether that process was started by our agent command: by the last keeper, then."""
        return process.read_argv(pid) == self.argv

    @property
    def pids(self) -> tuple[int, ...]:
        """The agents that live: the one we started, the one that came by itself."""
        return tuple(pid for pid in (self.pid, self.foreign_pid) if pid)

    def send(self, pid: int, signum: int) -> None:
        """Signal one of `pids`; an agent that has gone is no error."""
        if pid and pid == self.foreign_pid:
            process.send_by_pidfd(self.foreign_pidfd, signum)
        elif pid and pid == self.pid:
            os.kill(pid, signum)  # not reaped yet, so the number is still its own
