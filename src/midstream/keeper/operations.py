"""What may be asked of the keeper: one function an operation, one table of them all.

Each takes the keeper, the connection, its decoded request and the descriptors that came along, and returns the reply's
value and the descriptors to send. A descriptor that is kept is taken out of the list. What is refused changes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from midstream import __version__
from midstream.core.messages import (
    FDS_MAX,
    MESSAGE_MAX_BYTES,
    PROTOCOL,
    READING,
    REQUESTS,
    SLOTS_MAX,
    SPECS_MAX,
    Acked,
    AckRequest,
    AgentCommandRequest,
    ChannelRequest,
    Done,
    Given,
    GiveRequest,
    Held,
    HeldItem,
    Hello,
    HelloRequest,
    Inventory,
    InventoryRequest,
    KillTreeRequest,
    Listening,
    ListenRequest,
    NameRequest,
    Notices,
    NoticesOf,
    NoticesRequest,
    NotifyRequest,
    Opened,
    OrdersRequest,
    Page,
    PingRequest,
    PullRequest,
    Refusal,
    ShutdownRequest,
    Signalled,
    SignalRequest,
    SlotsRequest,
    Spawned,
    SpawnRequest,
    Spool,
    SpoolRequest,
    Taken,
    TakeRequest,
    TreeKilled,
    UpgradeRequest,
)
from midstream.core.wire import WireError, from_wire, to_wire
from midstream.keeper.door import Connection
from midstream.keeper.refusal import Refused, os_refusal
from midstream.linux import fds

if TYPE_CHECKING:
    from midstream.keeper.keeper import Keeper

Reply = tuple[Any, Sequence[int]]
_PAGE_BYTES = MESSAGE_MAX_BYTES - 4096
_PIDS_MAX = 1000
_TIMEOUT_MAX_S = 7 * 86400.0
_STOPPED = frozenset({"spawn", "listen", "orders", "upgrade"})


def answer(keeper: Keeper, connection: Connection, message: dict[str, Any], passed: list[int]) -> Reply | None:
    """Check operation, epoch and types, then do it. None: the reply comes later. Raises Refused."""
    op = message.pop("op", None)
    request = REQUESTS.get(op) if isinstance(op, str) else None
    if request is None or not isinstance(op, str):
        raise Refused(Refusal.BAD_REQUEST, f"unknown operation {op!r}")
    epoch = message.pop("epoch", None)
    if connection.epoch == keeper.agent.epoch:
        keeper.agent.heard()
    if op not in READING and (epoch != keeper.agent.epoch or connection.epoch != epoch):
        raise Refused(Refusal.STALE_EPOCH, f"{op}: epoch {epoch} is not the one in force ({keeper.agent.epoch})")
    if keeper.stopping and op in _STOPPED:
        raise Refused(Refusal.STOPPING, f"{op}: the keeper is stopping everything")
    number = message.pop("id")
    try:
        wanted: Any = from_wire(request, message)
    except WireError as error:
        raise Refused(Refusal.BAD_REQUEST, f"{op}: {error}") from None
    if op == "upgrade":
        keeper.upgrade(connection, number, wanted)
        return None
    value, sent = _OPERATIONS[op](keeper, connection, wanted, passed)
    return to_wire(value), sent


def _hello(keeper: Keeper, connection: Connection, wanted: HelloRequest, _passed: list[int]) -> Reply:
    if wanted.protocol != PROTOCOL:
        raise Refused(Refusal.PROTOCOL, f"this keeper speaks protocol {PROTOCOL}, not {wanted.protocol}")
    return (
        Hello(
            protocol=PROTOCOL,
            version=__version__,
            epoch=keeper.attach(connection),
            pid=os.getpid(),
            boot_id=keeper.boot_id,
            seq=keeper.table.seq,
            uid=os.geteuid(),
            instance=keeper.instance,
            keeper_id=keeper.layout.keeper_id,
            cgroup=keeper.cgroup_root,
            notes=tuple(keeper.layout.notes),
        ),
        (),
    )


def _ping(_keeper: Keeper, _connection: Connection, _wanted: PingRequest, _passed: list[int]) -> Reply:
    return Done(), ()


def _pull(keeper: Keeper, connection: Connection, wanted: PullRequest, _passed: list[int]) -> Reply:
    rows = keeper.table.after(wanted.after)
    entries = _fitting(row.entry() for row in rows[: max(1, wanted.limit)])
    connection.told = False
    return Page(tuple(entries), keeper.table.seq, more=len(entries) < len(rows)), ()


def _fitting(items: Any) -> list[Any]:
    """As many as fit in one message."""
    found: list[Any] = []
    size = 0
    for item in items:
        size += len(json.dumps(to_wire(item))) + 1
        if size > _PAGE_BYTES:
            break
        found.append(item)
    return found


def _spawn(keeper: Keeper, _connection: Connection, wanted: SpawnRequest, passed: list[int]) -> Reply:
    if len(wanted.specs) > SPECS_MAX:
        raise Refused(Refusal.BAD_REQUEST, f"spawn: at most {SPECS_MAX} specs at a time")
    return Spawned(tuple(keeper.children.spawn(spec, passed) for spec in wanted.specs)), ()


def _signal(keeper: Keeper, _connection: Connection, wanted: SignalRequest, _passed: list[int]) -> Reply:
    try:
        return Signalled(keeper.children.signal(wanted.key, wanted.signum, wanted.tree)), ()
    except OSError as error:
        raise os_refusal(error, f"cannot signal {wanted.key}") from None


def _kill_tree(keeper: Keeper, _connection: Connection, wanted: KillTreeRequest, _passed: list[int]) -> Reply:
    try:
        report = keeper.children.kill_tree(wanted.key)
    except OSError as error:
        raise os_refusal(error, f"cannot kill {wanted.key}") from None
    strangers = keeper.children.strangers(keeper.agent.pid)
    return TreeKilled(report.killed, tuple(sorted({*report.left, *strangers}))[:_PIDS_MAX]), ()


def _ack(keeper: Keeper, _connection: Connection, wanted: AckRequest, _passed: list[int]) -> Reply:
    return Acked(tuple(keeper.table.forget(wanted.keys))), ()


def _listen(keeper: Keeper, _connection: Connection, wanted: ListenRequest, _passed: list[int]) -> Reply:
    held = keeper.held.listen(wanted.listener)
    return Listening(held.address, held.inode), (held.fd,)


def _unlisten(keeper: Keeper, _connection: Connection, wanted: NameRequest, _passed: list[int]) -> Reply:
    keeper.held.unlisten(wanted.name)
    return Done(), ()


def _take(keeper: Keeper, _connection: Connection, wanted: TakeRequest, _passed: list[int]) -> Reply:
    if len(wanted.names) > FDS_MAX:
        raise Refused(Refusal.BAD_REQUEST, f"take: at most {FDS_MAX} names at a time")
    found = [(name, keeper.held.fd_of(wanted.kind, name)) for name in wanted.names]
    sent = [(name, fd) for name, fd in found if fd is not None]
    missing = tuple(name for name, fd in found if fd is None)
    return Taken(tuple(name for name, _ in sent), missing), [fd for _, fd in sent]


def _give(keeper: Keeper, _connection: Connection, wanted: GiveRequest, passed: list[int]) -> Reply:
    if len(passed) != 1:
        raise Refused(Refusal.BAD_REQUEST, "give: exactly one descriptor comes along")
    if keeper.held.fd_of(wanted.kind, wanted.name) is not None:
        return Given(known=True), ()
    if wanted.kind is Held.LISTENER:
        if wanted.listener is None or wanted.listener.name != wanted.name:
            raise Refused(Refusal.BAD_REQUEST, "give: a listener comes with its spec")
        keeper.held.hold_listener(wanted.listener, passed[0])
    elif wanted.kind is Held.CHANNEL:
        keeper.held.hold_channel(wanted.name, passed[0])
    elif wanted.kind is Held.NOTIFY:
        keeper.held.hold_notify(wanted.name, passed[0])
    else:
        raise Refused(Refusal.BAD_REQUEST, f"give: {wanted.kind.value} is not a descriptor")
    passed.pop()
    return Given(), ()


def _inventory(keeper: Keeper, _connection: Connection, wanted: InventoryRequest, _passed: list[int]) -> Reply:
    items = [*keeper.held.items(), *(HeldItem(Held.ORDER, slot) for slot in keeper.children.orders.by_slot)]
    rest = [(f"{item.kind.value} {item.name}", item) for item in items]
    rest = sorted((place, item) for place, item in rest if place > wanted.after)
    found = _fitting(item for _, item in rest)
    return Inventory(tuple(found), more=len(found) < len(rest)), ()


def _channel(keeper: Keeper, _connection: Connection, wanted: ChannelRequest, _passed: list[int]) -> Reply:
    held = keeper.held.open_channel(wanted.name, wanted.uid, wanted.gid)
    return Opened(keeper.layout.channel_path(held.name)), (held.fd,)


def _unchannel(keeper: Keeper, _connection: Connection, wanted: NameRequest, _passed: list[int]) -> Reply:
    keeper.held.close_channel(wanted.name)
    return Done(), ()


def _notify(keeper: Keeper, _connection: Connection, wanted: NotifyRequest, _passed: list[int]) -> Reply:
    held = keeper.held.open_notify(wanted.name, wanted.uid, wanted.gid)
    return Opened(keeper.layout.notify_path(held.name)), (held.fd,)


def _unnotify(keeper: Keeper, _connection: Connection, wanted: NameRequest, _passed: list[int]) -> Reply:
    keeper.held.close_notify(wanted.name)
    return Done(), ()


def _slots(keeper: Keeper, _connection: Connection, wanted: SlotsRequest, _passed: list[int]) -> Reply:
    if len(wanted.slots) > SLOTS_MAX:
        raise Refused(Refusal.BAD_REQUEST, f"slots: at most {SLOTS_MAX} at a time")
    return Done(), keeper.held.open_slots(wanted.slots)


def _notices(keeper: Keeper, _connection: Connection, wanted: NoticesRequest, _passed: list[int]) -> Reply:
    for name in wanted.clear:
        if name in keeper.held.notify_sockets:
            keeper.held.notify_sockets[name].forget()
    waiting = [NoticesOf(name, held.notices) for name, held in keeper.held.notify_sockets.items() if held.notices]
    found = _fitting(waiting)
    return Notices(tuple(found), more=len(found) < len(waiting)), ()


def _spool(keeper: Keeper, _connection: Connection, wanted: SpoolRequest, _passed: list[int]) -> Reply:
    channel = keeper.held.channels.get(wanted.name)
    if channel is None:
        raise Refused(Refusal.UNKNOWN, f"no channel {wanted.name} is held")
    if wanted.clear:
        keeper.held.clear_spool(channel)
    if not channel.spool:
        return Spool(0, channel.dropped), ()
    try:
        fd = fds.sealed_memfd("spool", bytes(channel.spool))
    except OSError as error:
        raise os_refusal(error, f"cannot hand over what channel {wanted.name} said") from None
    keeper.close_later(fd)
    return Spool(len(channel.spool), channel.dropped), (fd,)


def _orders(keeper: Keeper, _connection: Connection, wanted: OrdersRequest, _passed: list[int]) -> Reply:
    for order in wanted.set:
        keeper.children.check_order(order)
    for slot in wanted.revoke:
        keeper.children.orders.revoke(slot)
    for order in wanted.set:
        keeper.children.orders.set(order)
    return Done(), ()


def _agent_command(keeper: Keeper, _connection: Connection, wanted: AgentCommandRequest, _passed: list[int]) -> Reply:
    if not wanted.argv:
        raise Refused(Refusal.BAD_REQUEST, "agent_command: argv is empty")
    keeper.agent.command(wanted.argv)
    keeper.write_agent()
    return Done(), ()


def _shutdown(keeper: Keeper, _connection: Connection, wanted: ShutdownRequest, _passed: list[int]) -> Reply:
    if not 0 <= wanted.timeout_s <= _TIMEOUT_MAX_S:
        raise Refused(Refusal.BAD_REQUEST, f"shutdown: not a time-out: {wanted.timeout_s}")
    keeper.stop(wanted.timeout_s)
    return Done(), ()


def _upgrade_elsewhere(_keeper: Keeper, _connection: Connection, _wanted: UpgradeRequest, _passed: list[int]) -> Reply:
    raise AssertionError("answered by Keeper.upgrade, after the exec")


_OPERATIONS: dict[str, Callable[[Any, Connection, Any, list[int]], Reply]] = {
    "hello": _hello,
    "ping": _ping,
    "pull": _pull,
    "spawn": _spawn,
    "signal": _signal,
    "kill_tree": _kill_tree,
    "ack": _ack,
    "listen": _listen,
    "unlisten": _unlisten,
    "take": _take,
    "give": _give,
    "inventory": _inventory,
    "channel": _channel,
    "unchannel": _unchannel,
    "notify": _notify,
    "unnotify": _unnotify,
    "slots": _slots,
    "notices": _notices,
    "spool": _spool,
    "orders": _orders,
    "agent_command": _agent_command,
    "upgrade": _upgrade_elsewhere,
    "shutdown": _shutdown,
}
