"""The whole state of a keeper as one value, for the image that takes its place in the same process.

Format 1. Descriptors are named by number, which execve keeps. A newer keeper reads what an older one wrote: fields are
only ever added, with a default; `read` refuses anything else, and then the upgrade is refused before it begins.
"""

from __future__ import annotations

import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from midstream.core.messages import ListenerSpec, Notice, ProcessEntry
from midstream.core.wire import from_wire, to_wire
from midstream.keeper.table import Row

if TYPE_CHECKING:
    from midstream.keeper.keeper import Keeper

FORMAT = 1


@dataclass(frozen=True, slots=True)
class RowState:
    entry: ProcessEntry
    report_fd: int = -1
    pidfd: int = -1
    cgroup: str | None = None


@dataclass(frozen=True, slots=True)
class ListenerState:
    spec: ListenerSpec
    fd: int


@dataclass(frozen=True, slots=True)
class ChannelState:
    name: str
    fd: int
    spool: str = ""  # base64
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class NotifyState:
    name: str
    fd: int
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class OrderState:
    text: str
    attempt: int
    at_once: bool = False  # not used up yet


@dataclass(frozen=True, slots=True)
class ConnectionState:
    fd: int
    pid: int
    uid: int
    epoch: int
    told: bool = False


@dataclass(frozen=True, slots=True)
class AgentState:
    argv: tuple[str, ...]
    epoch: int
    pid: int = 0
    report_fd: int = -1
    attached_pid: int = 0
    foreign_pid: int = 0
    foreign_pidfd: int = -1


@dataclass(frozen=True, slots=True)
class KeeperState:
    """`request` is the number of the upgrade request that the new image answers on `connection`."""

    format: int
    version: str
    instance: str
    state: str
    runtime: str
    main: str
    stop_timeout_s: float
    nofile: tuple[int, int]
    umask: int
    seq: int
    lock_fd: int
    door_fd: int
    agent: AgentState
    request: int = 0
    main_status: int = 0
    connection: ConnectionState | None = None
    rows: tuple[RowState, ...] = ()
    listeners: tuple[ListenerState, ...] = ()
    lost_listeners: tuple[ListenerSpec, ...] = ()
    channels: tuple[ChannelState, ...] = ()
    notify_sockets: tuple[NotifyState, ...] = ()
    lost_notify: tuple[str, ...] = ()
    orders: tuple[OrderState, ...] = ()
    notes: tuple[str, ...] = ()

    def fds(self) -> list[int]:
        """Every descriptor that must live through the execve."""
        numbers = [self.lock_fd, self.door_fd, self.agent.report_fd, self.agent.foreign_pidfd]
        numbers += [self.connection.fd] if self.connection is not None else []
        numbers += [fd for row in self.rows for fd in (row.report_fd, row.pidfd)]
        numbers += [listener.fd for listener in self.listeners]
        numbers += [channel.fd for channel in self.channels]
        numbers += [notify.fd for notify in self.notify_sockets]
        return [fd for fd in numbers if fd >= 0]


def take(keeper: Keeper, version: str, request: int) -> KeeperState:
    """The state as it is now."""
    held, agent, attached, door = keeper.held, keeper.agent, keeper.attached, keeper.door
    assert door is not None
    return KeeperState(
        format=FORMAT,
        version=version,
        instance=keeper.instance,
        state=keeper.settings.state,
        runtime=keeper.settings.runtime,
        main=keeper.settings.main,
        stop_timeout_s=keeper.settings.stop_timeout_s,
        nofile=keeper.inherited.nofile,
        umask=keeper.inherited.umask,
        seq=keeper.table.seq,
        lock_fd=keeper.lock_fd,
        door_fd=door.sock.fileno(),
        agent=AgentState(
            agent.argv,
            agent.epoch,
            agent.pid,
            agent.report_fd,
            agent.attached_pid,
            agent.foreign_pid,
            agent.foreign_pidfd,
        ),
        request=request,
        main_status=keeper.main_status,
        connection=None
        if attached is None
        else ConnectionState(attached.sock.fileno(), attached.pid, attached.uid, attached.epoch, attached.told),
        rows=tuple(RowState(row.entry(), row.report_fd, row.pidfd, row.cgroup) for row in keeper.table.rows.values()),
        listeners=tuple(ListenerState(item.spec, item.fd) for item in held.listeners.values()),
        lost_listeners=tuple(held.lost_listeners.values()),
        channels=tuple(
            ChannelState(name, item.fd, binascii.b2a_base64(item.spool, newline=False).decode("ascii"), item.dropped)
            for name, item in held.channels.items()
        ),
        notify_sockets=tuple(NotifyState(name, item.fd, item.notices) for name, item in held.notify_sockets.items()),
        lost_notify=tuple(held.lost_notify),
        orders=tuple(
            OrderState(order.text.decode(), order.attempt, order.at_once)
            for order in keeper.children.orders.by_slot.values()
        ),
        notes=tuple(keeper.layout.notes),
    )


def write(state: KeeperState) -> bytes:
    return json.dumps(to_wire(state), separators=(",", ":")).encode()


def read(data: bytes) -> KeeperState:
    """Raises ValueError (WireError included) for a state that this image cannot take over."""
    state = from_wire(KeeperState, json.loads(data))
    if state.format != FORMAT:
        raise ValueError(f"the state has format {state.format}, and this keeper reads {FORMAT}")
    return state


def row_of(saved: RowState) -> Row:
    entry = saved.entry
    row = Row(entry.key, entry.kind, entry.by, saved.cgroup)
    row.state, row.seq, row.pid, row.start_ticks = entry.state, entry.seq, entry.pid, entry.start_ticks
    row.code, row.signum, row.error, row.error_stage = entry.code, entry.signum, entry.error, entry.error_stage
    row.started_s, row.ended_s = entry.started_s, entry.ended_s
    row.report_fd, row.pidfd = saved.report_fd, saved.pidfd
    return row
