"""Becoming a newer keeper in place: same pid, same children, same descriptors.

1. The new image reads a copy of the state (a sealed memfd) in a child, `--validate FD`, and must exit with 0 in time.
   The loop goes on meanwhile: nothing waits for it.
2. The state is taken again, close-on-exec is cleared on what is kept, and execve replaces this program. Signals stay
   blocked from before the execve until the new image has its handlers, and none is lost: they are pending meanwhile.
3. The new image answers the request, on the connection that it has inherited.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from typing import TYPE_CHECKING

from midstream import __version__
from midstream.core.messages import Refusal, StandingOrder, Upgraded
from midstream.core.wire import from_wire, to_wire
from midstream.keeper import snapshot
from midstream.keeper.door import Connection
from midstream.keeper.refusal import Refused, os_refusal
from midstream.linux import fds, spawn
from midstream.linux.spawn import Launch, Placement
from midstream.linux.timers import Timer

if TYPE_CHECKING:
    from midstream.keeper.keeper import Keeper

VALIDATE_FD = 3
_VALIDATE_MAX_S = 10.0
_WHY_MAX_BYTES = 2000


class Upgrade:
    """One attempt, from the request to the execve or the refusal."""

    def __init__(self, keeper: Keeper, connection: Connection, number: int, path: str) -> None:
        self._keeper = keeper
        self._connection = connection
        self._number = number
        self._path = path
        self._pid = 0
        self._stderr_fd = -1
        self._timer: Timer | None = None
        self._timed_out = False

    def validate(self) -> None:
        """Start the new image on a copy of the state. Raises Refused."""
        _check_image(self._path)
        keeper = self._keeper
        opened: list[int] = []
        try:
            data = snapshot.write(snapshot.take(keeper, __version__, self._number))
            opened.append(fds.sealed_memfd("keeper-state", data))
            self._stderr_fd = os.memfd_create("keeper-validate", os.MFD_CLOEXEC)
            child = spawn.launch(
                Launch(
                    argv=(sys.executable, "-I", "-S", self._path, "--validate", str(VALIDATE_FD)),
                    env=dict(os.environ),
                    placements=(
                        Placement(1, self._stderr_fd),
                        Placement(2, self._stderr_fd),
                        Placement(VALIDATE_FD, opened[0]),
                    ),
                    reset_signals=keeper.inherited.reset_signals,
                )
            )
        except OSError as error:
            fds.close_all([self._stderr_fd] if self._stderr_fd >= 0 else [])
            raise os_refusal(error, f"{self._path}: cannot be tried") from None
        finally:
            fds.close_all(opened)
        os.close(child.report_fd)  # an exec that fails exits with 127, and that refuses it as well
        self._pid = child.pid
        keeper.other_children[child.pid] = self._validated
        self._timer = keeper.loop.after(_VALIDATE_MAX_S, self._give_up)

    def _give_up(self) -> None:
        self._timed_out = True
        os.kill(self._pid, signal.SIGKILL)  # not reaped yet: `_validated` cancels this timer

    def _validated(self, status: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._keeper.upgrading = None
        why = fds.read_file(self._stderr_fd)[-_WHY_MAX_BYTES:].decode("utf-8", "replace").strip()
        os.close(self._stderr_fd)
        code = os.waitstatus_to_exitcode(status)
        if self._timed_out:
            why = f"it did not answer within {_VALIDATE_MAX_S:.0f} s. {why}"
        elif code != 0:
            why = f"exit status {code}. {why}"
        elif self._keeper.stopping:
            why = "the keeper is stopping"
        else:
            why = self._execute()
        refusal = {"code": Refusal.IMAGE.value, "what": f"{self._path} was refused, all is as it was: {why}"}
        self._keeper.door_of().reply(self._connection, {"id": self._number, "error": refusal})

    def _execute(self) -> str:
        """Never returns when it succeeds; else why not."""
        state = snapshot.take(self._keeper, __version__, self._number)
        kept = state.fds()
        former = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
        try:
            memfd = fds.sealed_memfd("keeper-state", snapshot.write(state))
            kept.append(memfd)
            for fd in kept:
                os.set_inheritable(fd, True)
            argv = [sys.executable, "-I", "-S", self._path, "--resume", str(memfd)]
            os.execve(sys.executable, argv, os.environ)
        except OSError as error:
            for fd in kept:
                os.set_inheritable(fd, False)
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
            return str(error)


_HELD_BACK = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP})


def begin(keeper: Keeper, connection: Connection, number: int, path: str) -> None:
    """Answered by the new image, or here with why it was refused. Raises Refused."""
    if keeper.upgrading is not None:
        raise Refused(Refusal.IMAGE, "another upgrade of this keeper is under way")
    attempt = Upgrade(keeper, connection, number, path)
    attempt.validate()
    keeper.upgrading = attempt


def _check_image(path: str) -> None:
    """Only a file that nobody but us and root could have put there."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise os_refusal(error, f"{path}: no such keeper image") from None
    if not path.startswith("/") or not stat.S_ISREG(found.st_mode):
        raise Refused(Refusal.IMAGE, f"{path}: not an absolute path of a file")
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise Refused(Refusal.IMAGE, f"{path}: others may write to it")


# In the new image


def resume(keeper: Keeper, state: snapshot.KeeperState) -> None:
    """Take everything over. The keeper has been made from the same state's settings."""
    for fd in state.fds():
        os.set_inheritable(fd, False)
    keeper.instance, keeper.lock_fd, keeper.main_status = state.instance, state.lock_fd, state.main_status
    for note in state.notes:
        keeper.layout.note(note)
    _resume_rows(keeper, state)
    for listener in state.listeners:
        keeper.held.hold_listener(listener.spec, listener.fd)
    keeper.held.lost_listeners.update({spec.name: spec for spec in state.lost_listeners})
    for channel in state.channels:
        keeper.held.restore_channel(channel)
    for saved in state.notify_sockets:
        keeper.held.hold_notify(saved.name, saved.fd).keep(saved.notices)
    keeper.held.lost_notify.update(state.lost_notify)
    for saved_order in state.orders:
        text = saved_order.text.encode()
        order = from_wire(StandingOrder, json.loads(text))
        keeper.children.orders.put(order, text, saved_order.attempt)
        keeper.children.orders.by_slot[order.slot].at_once = saved_order.at_once
    keeper.agent.restore(state.agent)


def _resume_rows(keeper: Keeper, state: snapshot.KeeperState) -> None:
    for saved in state.rows:
        row = snapshot.row_of(saved)
        keeper.table.restore(row)
        if row.report_fd >= 0:
            keeper.children.watch_report(row)
        if row.pidfd >= 0:
            keeper.children.watch_adopted(row)
    keeper.table.seq = max(keeper.table.seq, state.seq)


def answer(keeper: Keeper, state: snapshot.KeeperState) -> None:
    """The door is open again: tell the agent that asked."""
    saved = state.connection
    if saved is None:
        return
    connection = Connection(socket.socket(fileno=saved.fd), saved.pid, saved.uid)
    connection.epoch, connection.told = saved.epoch, saved.told
    keeper.attached = connection
    keeper.door_of().adopt(connection)
    keeper.door_of().reply(connection, {"id": state.request, "ok": to_wire(Upgraded(__version__))})


def not_salvaged(state: snapshot.KeeperState) -> list[int]:
    """What is of no use to a keeper that begins anew in this process: lock, door, connection, pipes and pidfds."""
    kept = {listener.fd for listener in state.listeners} | {notify.fd for notify in state.notify_sockets}
    return [fd for fd in state.fds() if fd not in kept]


def salvage(keeper: Keeper, state: snapshot.KeeperState) -> None:
    """Hold on to the sockets that this process had open and adoption did not find elsewhere."""
    for listener in state.listeners:
        if listener.spec.name in keeper.held.listeners:
            os.close(listener.fd)
        else:
            keeper.held.hold_listener(listener.spec, listener.fd)
    for saved in state.notify_sockets:
        if saved.name in keeper.held.notify_sockets:
            os.close(saved.fd)
        else:
            keeper.held.hold_notify(saved.name, saved.fd)


def unblock() -> None:
    """The handlers are in place: let the signals in that came meanwhile."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
