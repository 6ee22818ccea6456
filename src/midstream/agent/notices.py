"""What an instance says about itself: sd_notify datagrams, read, authorised and turned into values. Runs in the agent.

Source: sd_notify(3) and sd_pid_notify_with_fds(3). One socket per instance, bound and held by the keeper with
SO_PASSCRED; so *who* speaks is known by the socket, and the credentials only say whether it may: a process of the
instance's own tree. What becomes of a notice is decided in `core`, not here.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from midstream.agent.readers import Readers

DATAGRAM_MAX_BYTES = 64 * 1024
STATUS_MAX_CHARS = 1024
_FDS_MAX = 253  # SCM_MAX_FD of the kernel: no message carries more
_BATCH = 64
_BUDGET = 200  # datagrams of one instance
_BUDGET_S = 1.0
_NEVER_S = float("-inf")
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Notice:
    """One datagram. Fields that it did not name are None or False. Durations are seconds.

    barrier: the sender waits until all its earlier notices have been dealt with. pid, uid: of the sender; 0 when the
    kernel could not say. descriptors: how many were sent along; they are closed, we keep no fd store.
    """

    ready: bool = False
    reloading: bool = False
    stopping: bool = False
    status: str | None = None
    errno: int | None = None
    main_pid: int | None = None
    watchdog: bool = False
    watchdog_trigger: bool = False
    watchdog_s: float | None = None
    extend_timeout_s: float | None = None
    monotonic_s: float | None = None
    barrier: bool = False
    pid: int = 0
    uid: int = -1
    descriptors: int = 0


def parse(data: bytes, *, pid: int = 0, uid: int = -1, descriptors: int = 0) -> Notice:
    """The notice in a datagram. Unknown variables, and known ones with a value that makes no sense, are passed over,
    as the protocol asks: new variables may come with any sender."""
    found: dict[str, object] = {}
    for line in data.decode("utf-8", "backslashreplace").split("\n"):
        name, separator, value = line.partition("=")
        if separator:
            found.update(_field(name, value))
    return Notice(pid=pid, uid=uid, descriptors=descriptors, **found)  # type: ignore[arg-type]


_FLAGS = {"READY": "ready", "RELOADING": "reloading", "STOPPING": "stopping", "BARRIER": "barrier"}
_WATCHDOG = {"1": "watchdog", "trigger": "watchdog_trigger"}
_MICROSECONDS = {
    "WATCHDOG_USEC": "watchdog_s",
    "EXTEND_TIMEOUT_USEC": "extend_timeout_s",
    "MONOTONIC_USEC": "monotonic_s",
}


def _field(name: str, value: str) -> dict[str, object]:
    if name in _FLAGS:
        return {_FLAGS[name]: True} if value == "1" else {}
    if name == "STATUS":
        return {"status": value[:STATUS_MAX_CHARS]}
    if name == "WATCHDOG":
        return {_WATCHDOG[value]: True} if value in _WATCHDOG else {}
    if not (value.isascii() and value.isdigit()) or len(value) > 18:
        return {}
    number = int(value)
    if name in _MICROSECONDS:
        return {_MICROSECONDS[name]: number / 1_000_000}
    if name == "ERRNO":
        return {"errno": number}
    if name == "MAINPID" and number > 0:
        return {"main_pid": number}
    return {}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A notice that was not believed, or not all of it, and why."""

    notice: Notice
    reason: str


@dataclass(frozen=True, slots=True)
class Authority:
    """Who may speak for an instance. in_tree: True or False, or None for a pid that is gone already: such a sender
    (`systemd-notify --ready` in a script) is judged by its uid, which must be one of `uids`."""

    in_tree: Callable[[int], bool | None]
    uids: frozenset[int]

    def judge(self, notice: Notice) -> tuple[Notice | None, Refusal | None]:
        """What of the notice may be believed, and what was refused. A MAINPID outside the tree is refused alone."""
        inside = self.in_tree(notice.pid) if notice.pid > 0 else None
        if inside is False:
            return None, Refusal(notice, f"pid {notice.pid} is not of this instance")
        if inside is None and notice.uid not in self.uids:
            return None, Refusal(notice, f"pid {notice.pid} is gone and uid {notice.uid} is not the service's")
        if notice.main_pid is not None and self.in_tree(notice.main_pid) is not True:
            refusal = Refusal(notice, f"MAINPID={notice.main_pid} is not of this instance")
            return replace(notice, main_pid=None), refusal
        return notice, None


class Hearer(Protocol):
    """What an instance says goes to one of these. on_notice and on_refusal are called synchronously, in the order of
    sending."""

    @property
    def authority(self) -> Authority: ...

    def on_notice(self, notice: Notice, /) -> None: ...

    def on_refusal(self, refusal: Refusal, /) -> None: ...


class NoticeSocket:
    """Reads one instance's notify socket by `readers`, which are to call `read`. `fd` becomes ours and is closed by `close`.

    A barrier is lifted after on_notice has seen all that came before it. A sender is heard at most 200 times in a second,
    and of refusals one is told in a second.
    """

    __slots__ = ("_hearer", "_loop", "_pause", "_readers", "_refused_s", "_since_s", "_socket", "_spent")

    def __init__(self, fd: int, hearer: Hearer, readers: Readers[NoticeSocket]) -> None:
        self._socket = socket.socket(fileno=fd)
        self._hearer = hearer
        self._readers = readers
        self._loop = asyncio.get_running_loop()
        self._since_s = 0.0  # when this second of the budget began
        self._spent = 0
        self._refused_s = _NEVER_S
        self._pause: asyncio.TimerHandle | None = None
        readers.add(self._socket.fileno(), self)

    def read(self) -> None:
        """Take what is there, at most a batch; the loop calls again for the rest. A sender beyond his budget waits: his
        socket is full, and all other services are heard."""
        for _ in range(_BATCH):
            if self._socket.fileno() < 0:
                return  # closed by what a notice led to
            if self._over_budget():
                return
            try:
                notice, barriers = receive(self._socket)
            except BlockingIOError:
                return
            self._spent += 1
            try:
                self._judge(notice)
            finally:
                _close_all(barriers)

    def _over_budget(self) -> bool:
        now_s = self._loop.time()
        if now_s - self._since_s >= _BUDGET_S:
            self._since_s, self._spent = now_s, 0
        if self._spent < _BUDGET:
            return False
        self._readers.remove(self._socket.fileno())
        self._pause = self._loop.call_at(self._since_s + _BUDGET_S, self._resume)
        return True

    def _resume(self) -> None:
        self._pause = None
        if self._socket.fileno() >= 0:
            self._readers.add(self._socket.fileno(), self)

    def replay(self, data: bytes, *, pid: int, uid: int) -> None:
        """Take a datagram that the keeper drained while there was no agent."""
        self._judge(parse(data, pid=pid, uid=uid))

    def _judge(self, notice: Notice) -> None:
        believed, refusal = self._hearer.authority.judge(notice)
        if refusal is not None and self._loop.time() - self._refused_s >= _BUDGET_S:
            self._refused_s = self._loop.time()
            self._hearer.on_refusal(refusal)
        if believed is not None:
            self._hearer.on_notice(believed)

    def close(self) -> None:
        """Stop reading and close our descriptor; the keeper's stays. May be called twice."""
        if self._pause is not None:
            self._pause.cancel()
        if self._socket.fileno() >= 0:
            self._readers.remove(self._socket.fileno())
            self._socket.close()


def receive(notify: socket.socket) -> tuple[Notice, tuple[int, ...]]:
    """One datagram from a socket with SO_PASSCRED, never blocking (MSG_DONTWAIT: the keeper shares the open file).
    Returns the notice and the descriptors to be closed once it has been dealt with: that lifts a barrier.
    Raises BlockingIOError when there is none."""
    space = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(_FDS_MAX * 4)
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    data, ancillary, _, _ = notify.recvmsg(DATAGRAM_MAX_BYTES, space, flags)
    pid, uid, descriptors = 0, -1, array.array("i")
    for level, kind, content in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        elif kind == socket.SCM_CREDENTIALS and len(content) >= _CREDENTIALS.size:
            pid, uid, _ = _CREDENTIALS.unpack_from(content)
    notice = parse(data, pid=pid, uid=uid, descriptors=len(descriptors))
    if notice.barrier and len(descriptors) == 1:
        return notice, tuple(descriptors)
    _close_all(descriptors)
    return notice, ()


def _close_all(descriptors: Iterable[int]) -> None:
    for fd in descriptors:
        os.close(fd)
