"""The whole keeper: its parts, what joins them, and the ordered stop."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable

from midstream.core.messages import UpgradeRequest
from midstream.core.names import parse_key
from midstream.keeper import operations, upgrade
from midstream.keeper.agent_watch import AgentWatch
from midstream.keeper.children import Children, Inherited
from midstream.keeper.door import Connection, Door
from midstream.keeper.held import Holdings
from midstream.keeper.layout import Layout
from midstream.keeper.loop import Loop, Signals
from midstream.keeper.ordered_stop import OrderedStop
from midstream.keeper.table import Row, Table
from midstream.linux import cgroup, fds, process


class Settings:
    """What the keeper was started with."""

    __slots__ = ("agent_argv", "main", "runtime", "state", "stop_timeout_s")

    def __init__(self, state: str, runtime: str, agent_argv: tuple[str, ...], main: str, stop_timeout_s: float) -> None:
        self.state = state
        self.runtime = runtime
        self.agent_argv = agent_argv
        self.main = main
        self.stop_timeout_s = stop_timeout_s


class Keeper:
    """One for a state folder. `run` returns the exit code."""

    def __init__(
        self,
        settings: Settings,
        layout: Layout,
        inherited: Inherited,
        boot_id: str,
        cgroup_root: str | None,
    ) -> None:
        self.settings = settings
        self.layout = layout
        self.boot_id = boot_id
        self.cgroup_root = cgroup_root
        self.inherited = inherited
        self.loop = Loop()
        self.table = Table(layout, boot_id)
        self.held = Holdings(layout, self.loop)
        self.children = Children(layout, self.loop, self.table, self.held, inherited, cgroup_root)
        self.children.on_ended = self._process_ended
        self.ordered_stop = OrderedStop(self, self._stopped)
        self.agent = AgentWatch(layout, self.loop, inherited, self._attachment_changed)
        self.agent.on_gone = self.ordered_stop.check
        self.agent.argv = settings.agent_argv
        self.attached: Connection | None = None
        self.instance = f"{os.getpid()}.{self.table.seq}"
        self.lock_fd = -1
        self.door: Door | None = None
        self._exit_code: int | None = None
        self.main_status = 0
        self.upgrading: upgrade.Upgrade | None = None
        self._close_later: list[int] = []
        self.other_children: dict[int, Callable[[int], None]] = {}  # pid -> what to do with its wait status
        self.loop.after_events.append(self._end_of_turn)

    def open(self, sock: socket.socket) -> None:
        """Serve the socket, take the signals."""
        self.door = Door(self.loop, sock, self._answer, self._connection_closed)
        Signals(
            self.loop,
            {
                signal.SIGCHLD: self._reap,
                signal.SIGTERM: self._stop_asked,
                signal.SIGINT: self._stop_asked,
            },
        )
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def run(self) -> int:
        """Until the ordered stop is complete."""
        self._reap()
        self.children.sweep_cgroups()
        if not self.agent.attached:
            self._attachment_changed(False)
        self.agent.ensure()
        while self._exit_code is None:
            self.loop.turn()
        return self._exit_code

    # Between the parts

    def _answer(self, connection: Connection, message: dict[str, object], passed: list[int]) -> operations.Reply | None:
        return operations.answer(self, connection, message, passed)

    def attach(self, connection: Connection) -> int:
        """An agent said hello on this connection; it gets the epoch in force."""
        connection.epoch = self.agent.attach(connection.pid, connection.sock)
        self.attached = connection
        self.write_agent()
        return connection.epoch

    def _end_of_turn(self) -> None:
        fds.close_all(self._close_later)
        self._close_later.clear()
        if self.attached is not None and self.table.is_dirty and self.loop.now_s >= self.children.tell_from_s:
            self.table.is_dirty = False
            self.door_of().tell_changed(self.attached, self.table.seq)

    def door_of(self) -> Door:
        """The open door; `open` has been called."""
        assert self.door is not None
        return self.door

    def close_later(self, fd: int) -> None:
        """Close it at the end of this turn, when the reply that carries it has been sent."""
        self._close_later.append(fd)

    def _connection_closed(self, connection: Connection) -> None:
        if connection is self.attached:
            self.attached = None
            self.agent.detach()
            self.ordered_stop.check()

    def _attachment_changed(self, attached: bool) -> None:
        self.held.drain(not attached)
        self.children.orders.alone(not attached and not self.stopping)

    def write_agent(self) -> None:
        """So that the next keeper knows the agent's command, and whether that agent lives."""
        pid = self.agent.attached_pid
        stat = process.read_stat(pid) if pid else None
        ticks = stat.start_ticks if stat is not None else 0
        record = {"argv": list(self.agent.argv), "pid": pid, "start_ticks": ticks}
        self.layout.write(f"{self.layout.runtime}/agent.json", json.dumps(record).encode())

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            waiting = self.other_children.pop(pid, None)
            if waiting is not None:
                waiting(status)
            elif not self.agent.reaped(pid, status):
                self.children.reaped(pid, status)  # False: an orphan that was re-parented to us, and is now gone

    def _process_ended(self, row: Row) -> None:
        key = parse_key(row.key)
        if self.settings.main in (key.service, f"{key.app}/{key.service}"):
            self.main_status = row.code if row.code is not None else 128 + (row.signum or 0)
        self.ordered_stop.check()

    # The ordered stop

    @property
    def stopping(self) -> bool:
        return self.ordered_stop.active

    def _stop_asked(self) -> None:
        self.stop(0.0 if self.stopping else self.settings.stop_timeout_s)

    def stop(self, timeout_s: float) -> None:
        """Begin the ordered stop; again: with another time-out."""
        self.agent.stopping = True
        self.children.orders.end()
        if not self.stopping and self.attached is not None:
            self.door_of().tell_stopping(self.attached)
        self.ordered_stop.begin(timeout_s)

    def _stopped(self) -> None:
        self._exit_code = self.main_status
        self.held.remove_paths()
        self.layout.forget_everything()
        if self.cgroup_root is not None:
            cgroup.remove(self.cgroup_root)

    def upgrade(self, connection: Connection, number: int, wanted: UpgradeRequest) -> None:
        """Answered by the next image of this process, or here when it is refused."""
        upgrade.begin(self, connection, number, wanted.path)
