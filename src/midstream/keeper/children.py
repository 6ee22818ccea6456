"""Starting processes and learning how they end: own children by SIGCHLD, adopted ones by pidfd.

Must not live here: when to start something again (`orders`).
"""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace

from midstream.core.messages import (
    Held,
    ProcessKind,
    ProcessState,
    Refusal,
    SpawnResult,
    SpawnSpec,
    StandingOrder,
)
from midstream.core.names import SpawnKey, parse_key
from midstream.keeper.held import Holdings
from midstream.keeper.layout import Layout
from midstream.keeper.loop import Loop
from midstream.keeper.orders import Orders
from midstream.keeper.refusal import Refused
from midstream.keeper.table import Row, Table
from midstream.linux import cgroup, process, spawn, tree
from midstream.linux.spawn import RLIMITS, Launch, Placement

HANDLED_SIGNALS = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE})

TELL_LATER_S = 0.02


class Inherited:
    """What the keeper itself was started with, to be given back to its children."""

    def __init__(self, nofile: tuple[int, int], umask: int) -> None:
        self.nofile = nofile
        self.umask = umask
        changed = {
            signum
            for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
            if signal.getsignal(signum) not in (signal.SIG_DFL, None)
        }
        # Ours too: a handler that ran in a child before its exec would write to the wake-up pipe it shares with us.
        self.reset_signals = tuple(sorted(changed | HANDLED_SIGNALS))


class Children:
    """Every process of the table: started here, or adopted."""

    def __init__(
        self,
        layout: Layout,
        loop: Loop,
        table: Table,
        held: Holdings,
        inherited: Inherited,
        cgroup_root: str | None,
    ) -> None:
        self._layout = layout
        self._loop = loop
        self._table = table
        self._held = held
        self._inherited = inherited
        self._cgroup_root = cgroup_root
        self._emptying: dict[str, tuple[int, Row | None]] = {}  # cgroup folder -> its cgroup.events, and whose it is
        self.tell_from_s = 0.0  # the agent is told of changes from then on
        self.keeper_id = layout.keeper_id
        self.orders = Orders(layout, loop, table, self._start_ordered)
        self.on_ended: Callable[[Row], None] = lambda row: None

    # Starting

    def spawn(self, spec: SpawnSpec, passed: Sequence[int], by: str = "agent") -> SpawnResult:
        """Start one process unless its key is known. Never raises: what is wrong is in the result."""
        known = self._table.rows.get(spec.key)
        if known is not None:
            return SpawnResult(spec.key, ok=known.state is not ProcessState.FAILED, known=True, pid=known.pid)
        try:
            self._check(spec)
            row = Row(spec.key, spec.kind, by, self._cgroup_for(spec))
            launch = self._launch(spec, row, passed)
        except Refused as error:
            return SpawnResult(spec.key[:200], ok=False, error=error.what[:300])
        try:
            child = spawn.launch(launch)
        except OSError as error:
            row.error, row.error_stage = os.strerror(error.errno or 0), "fork"
            self._table.ended(row, ProcessState.FAILED)
            return SpawnResult(spec.key, ok=False, error=f"fork: {row.error}")
        stat = process.read_stat(child.pid)
        row.report_fd = child.report_fd
        self._table.started(row, child.pid, stat.start_ticks if stat is not None else 0)
        self.watch_report(row)
        return SpawnResult(spec.key, pid=child.pid)

    def _check(self, spec: SpawnSpec) -> SpawnKey:
        try:
            key = parse_key(spec.key)
        except ValueError as error:
            raise Refused(Refusal.BAD_REQUEST, str(error)) from None
        if not spec.argv or not spec.argv[0]:
            raise Refused(Refusal.BAD_REQUEST, f"{spec.key}: argv is empty")
        if not spec.cwd.startswith("/"):
            raise Refused(Refusal.BAD_REQUEST, f"{spec.key}: cwd is not absolute: {spec.cwd!r}")
        if (spec.uid is None) != (spec.gid is None):
            raise Refused(Refusal.BAD_REQUEST, f"{spec.key}: uid and gid go together: one alone keeps rights")
        texts = (*spec.argv, *spec.env, *spec.env.values(), spec.cwd)
        if any("\0" in text for text in texts) or any("=" in name or not name for name in spec.env):
            raise Refused(Refusal.BAD_REQUEST, f"{spec.key}: a NUL byte, or a variable with = in its name")
        unknown = [name for name in spec.rlimits if name not in RLIMITS]
        if unknown:
            raise Refused(Refusal.BAD_REQUEST, f"{spec.key}: unknown limit {unknown[0]!r}")
        for placement in spec.fds:
            if not 0 <= placement.target < 1024:
                raise Refused(Refusal.BAD_REQUEST, f"{spec.key}: cannot place fd {placement.target}")
        if len({placement.target for placement in spec.fds}) != len(spec.fds):
            raise Refused(Refusal.BAD_REQUEST, f"{spec.key}: one fd is placed twice")
        return key

    def _launch(self, spec: SpawnSpec, row: Row, passed: Sequence[int]) -> Launch:
        env = dict(spec.env)
        env[tree.KEY_VARIABLE] = spec.key
        env[tree.KEEPER_VARIABLE] = self.keeper_id
        if spec.notify is not None:
            env["NOTIFY_SOCKET"] = self._held.notify_path(spec.notify)
        limits = {RLIMITS["nofile"]: self._inherited.nofile}
        limits.update({RLIMITS[name]: pair for name, pair in spec.rlimits.items()})
        return Launch(
            argv=spec.argv,
            env=env,
            cwd=spec.cwd,
            uid=spec.uid,
            gid=spec.gid,
            groups=spec.groups,
            umask=self._inherited.umask if spec.umask is None else spec.umask,
            nice=spec.nice,
            rlimits=tuple((number, *pair) for number, pair in limits.items()),
            no_new_privileges=spec.no_new_privileges,
            cgroup=row.cgroup,
            placements=tuple(self._placement(spec, item.target, item.source, passed) for item in spec.fds),
            listen_pid=spec.listen_pid,
            record=self._table.record_of(row),
            reset_signals=self._inherited.reset_signals,
        )

    def _placement(self, spec: SpawnSpec, target: int, source: str, passed: Sequence[int]) -> Placement:
        if source == "null":
            return Placement(target, None)
        word, _, name = source.partition(":")
        if word == "passed":
            if not name.isdecimal() or int(name) >= len(passed):
                raise Refused(Refusal.BAD_REQUEST, f"{spec.key}: {source}: no such descriptor came along")
            return Placement(target, passed[int(name)])
        try:
            kind = Held(word)
        except ValueError:
            raise Refused(Refusal.BAD_REQUEST, f"{spec.key}: unknown source {source!r}") from None
        fd = self._held.fd_of(kind, name)
        if fd is None and kind is Held.LISTENER and name in self._held.lost_listeners:
            fd = self._held.listen(self._held.lost_listeners[name]).fd
        if fd is None:
            raise Refused(Refusal.UNKNOWN, f"{spec.key}: {source} is not held")
        return Placement(target, fd, reopen=kind is Held.CHANNEL)

    def _cgroup_for(self, spec: SpawnSpec) -> str | None:
        if self._cgroup_root is None or spec.cgroup is None:
            return None
        if not spec.cgroup or "/" in spec.cgroup or spec.cgroup.startswith((".", "cgroup.")):
            raise Refused(Refusal.BAD_REQUEST, f"{spec.key}: not a cgroup folder name: {spec.cgroup!r}")
        try:
            # One folder an attempt: what is left of the last one must not be taken for this one's, nor ended with it.
            return cgroup.make(self._cgroup_root, f"{spec.cgroup}.{parse_key(spec.key).attempt}")
        except OSError as error:
            self._layout.note(f"no cgroup for {spec.key}: {error.strerror}; its tree is found by scanning /proc")
            return None

    # Learning what became of them

    def watch_report(self, row: Row) -> None:
        self._loop.add(row.report_fd, lambda _events: self._reported(row))

    def _reported(self, row: Row) -> None:
        """The report pipe has something: an error before the exec, or its end, which means that the program runs."""
        report = spawn.read_report(row.report_fd)
        if report is None:
            return
        self._close_report(row)
        stage, number = report
        if stage:
            row.error_stage, row.error = stage, f"{errno.errorcode.get(number, number)}: {os.strerror(number)}"
        elif row.state is ProcessState.STARTING:
            row.state = ProcessState.RUNNING
            self._table.changed(row)

    def _close_report(self, row: Row) -> None:
        if row.report_fd >= 0:
            self._loop.remove(row.report_fd)
            os.close(row.report_fd)
            row.report_fd = -1

    def reaped(self, pid: int, status: int) -> bool:
        """Our child has ended. False when it is not of the table."""
        row = self._table.by_pid.get(pid)
        if row is None:
            return False
        if row.report_fd >= 0:
            self._reported(row)
            self._close_report(row)
        self._close_pidfd(row)
        if row.error_stage:
            self._finish(row, ProcessState.FAILED)
        else:
            row.set_status(status)
            self._finish(row, ProcessState.EXITED)
        return True

    def watch_adopted(self, row: Row) -> None:
        """Follow a process that is not our child through `row.pidfd`."""
        self._loop.add(row.pidfd, lambda events: self._adopted_changed(row, events))

    def _adopted_changed(self, row: Row, events: int) -> None:
        """Readable: a zombie, or reaped by its parent. One or the other tells the status, seldom neither."""
        status = process.exit_status(row.pidfd)
        if status is None:
            status = process.zombie_status(row.pid, row.start_ticks)
        if status is None and not events & select.EPOLLHUP and process.exit_status_follows(row.pidfd):
            self._loop.add(row.pidfd, lambda later: self._adopted_changed(row, later), select.EPOLLHUP)
            return
        self._close_pidfd(row)
        if status is not None:
            row.set_status(status)
        self._finish(row, ProcessState.EXITED if status is not None else ProcessState.LOST)

    def _close_pidfd(self, row: Row) -> None:
        if row.pidfd >= 0:
            self._loop.remove(row.pidfd)
            os.close(row.pidfd)
            row.pidfd = -1

    def _finish(self, row: Row, state: ProcessState) -> None:
        self._table.ended(row, state)
        self.orders.process_ended(row)  # first: what is swept waits, who is served does not
        if row.cgroup is not None:
            self._sweep_cgroup(row.cgroup, row)
        self.on_ended(row)

    def _sweep_cgroup(self, path: str, row: Row | None) -> None:
        """Remove the folder when its last process is gone: now, or when the kernel says so (cgroup.events)."""
        if path in self._emptying or any(other.cgroup == path for other in self._table.by_pid.values()):
            return
        try:
            if cgroup.remove(path):
                if row is not None:
                    row.is_swept = True
                return
            events_fd = cgroup.open_events(path)
        except OSError as error:
            self._layout.note(f"cannot remove cgroup {path}: {error.strerror}")
            return
        self._emptying[path] = (events_fd, row)
        self._loop.add(events_fd, lambda _events: self._cgroup_changed(path), select.EPOLLPRI)

    def sweep_cgroups(self) -> None:
        """Folders that were waiting to become empty when the keeper before this one ended."""
        for path in cgroup.children(self._cgroup_root) if self._cgroup_root is not None else ():
            self._sweep_cgroup(path, None)

    def _cgroup_changed(self, path: str) -> None:
        events_fd, row = self._emptying[path]
        if cgroup.is_populated(events_fd):
            return
        self._loop.remove(events_fd)
        os.close(events_fd)
        del self._emptying[path]
        self._sweep_cgroup(path, row)

    # Signalling

    def row(self, key: str) -> Row:
        row = self._table.rows.get(key)
        if row is None:
            raise Refused(Refusal.UNKNOWN, f"no process {key} is known")
        return row

    def signal(self, key: str, signum: int, whole_tree: bool) -> int:
        """Send it; returns how many processes got it. Raises Refused."""
        row = self.row(key)
        if signum != 0 and signum not in signal.valid_signals():
            raise Refused(Refusal.BAD_REQUEST, f"{signum} is not a signal")
        if whole_tree:
            return 0 if row.is_swept else tree.send(row.mark(self.keeper_id), signum)
        return self.send(row, signum)

    def send(self, row: Row, signum: int) -> int:
        """To the first process alone. An own child that was not reaped yet keeps its number, so kill(2) is safe."""
        if not row.is_live:
            return 0
        if row.pidfd >= 0:
            return int(process.send_by_pidfd(row.pidfd, signum))
        try:
            os.kill(row.pid, signum)
        except ProcessLookupError:
            return 0
        return 1

    def kill_tree(self, key: str) -> tree.KillReport:
        """SIGKILL the tree. Of one whose cgroup is gone nothing is looked for: that would be a scan of all of /proc, for
        each process that ended, while everybody waits."""
        row = self.row(key)
        return tree.KillReport(0, ()) if row.is_swept else tree.kill(row.mark(self.keeper_id))

    def strangers(self, agent_pid: int) -> tuple[int, ...]:
        """Orphans below us that no key explains."""
        return tuple(pid for pid in tree.strangers(self._table.by_pid, self.keeper_id) if pid != agent_pid)

    # Standing orders

    def _start_ordered(self, order: StandingOrder, key: str) -> SpawnResult:
        """The agent has nothing to do about it, so it is told a little later: woken now, it would compete with the child
        for the processor, and the service would be back a millisecond later."""
        now_s = self._loop.now_s
        if now_s >= self.tell_from_s:
            self.tell_from_s = now_s + TELL_LATER_S
            self._loop.after(TELL_LATER_S, lambda: None)  # the end of that turn tells
        return self.spawn(replace(order.spec, key=key), (), by="order")

    def check_order(self, order: StandingOrder) -> None:
        """Raises Refused for an order that could not be carried out without an agent."""
        key = self._check(order.spec)
        if str(key.slot_name) != order.slot or order.spec.kind is not ProcessKind.INSTANCE:
            raise Refused(Refusal.BAD_REQUEST, f"order for {order.slot}: spec is for {order.spec.key}")
        if any(placement.source.startswith("passed:") for placement in order.spec.fds):
            raise Refused(Refusal.BAD_REQUEST, f"order for {order.slot}: passed descriptors do not last")
