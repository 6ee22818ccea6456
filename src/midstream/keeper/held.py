"""What the keeper holds by name, for life: listeners, log channels, notify sockets.

While an agent is attached nothing here is read. While there is none, channels are spooled and notify sockets drained,
so that no writer ever waits: the last word of each variable is kept of a notify socket, and of a channel the newest
bytes up to a bound, with a count of what was dropped.
"""

from __future__ import annotations

import binascii
import errno
import json
import os
import re
import socket
import stat
import struct
import sys
from collections.abc import Sequence

from midstream.core.messages import Held, HeldItem, ListenerSpec, Notice, Refusal, SlotOpening
from midstream.core.wire import to_wire
from midstream.keeper.layout import Layout
from midstream.keeper.loop import Loop
from midstream.keeper.refusal import Refused, os_refusal
from midstream.keeper.snapshot import ChannelState
from midstream.linux import fds, listen
from midstream.linux.clock import boottime_s
from midstream.linux.file_identity import FileUser

_NAME = re.compile(r"[A-Za-z0-9_+@-][A-Za-z0-9_.+@/-]{0,179}\Z")
SPOOL_MAX_BYTES = 256 * 1024
SPOOL_ALL_MAX_BYTES = 16 * 1024 * 1024
_NOTICES_MAX = 16  # variables for each socket
_VALUE_MAX = 256
_ID_MAX = 2**32 - 1  # the last is -1: "leave it as it is"
_BACKLOG_MAX = 2**31 - 1
_CREDENTIALS = struct.Struct("=iII")


def check_name(name: str) -> str:
    if not _NAME.match(name):
        raise Refused(Refusal.BAD_REQUEST, f"not a name for something held: {name[:200]!r}")
    return name


def _check_ids(*ids: int | None) -> None:
    for number in ids:
        if number is not None and not 0 <= number < _ID_MAX:
            raise Refused(Refusal.BAD_REQUEST, f"not a user, group or mode: {number}")


def _actor(spec: ListenerSpec) -> FileUser | None:
    """Whose rights apply on the way to a unix socket."""
    if spec.as_uid is None:
        return None
    return FileUser(spec.as_uid, spec.as_uid if spec.as_gid is None else spec.as_gid)


class Listener:
    __slots__ = ("address", "fd", "inode", "spec")

    def __init__(self, spec: ListenerSpec, fd: int, address: str, inode: int) -> None:
        self.spec = spec
        self.fd = fd
        self.address = address
        self.inode = inode


class Channel:
    """There are thousands: what most have not is made when it is needed."""

    __slots__ = ("dropped", "fd", "name", "spool")

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.spool: bytes | bytearray = b""  # a bytearray as soon as there is something
        self.dropped = 0


class NotifySocket:
    __slots__ = ("_notices", "fd", "name")

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self._notices: dict[str, Notice] | None = None

    @property
    def notices(self) -> tuple[Notice, ...]:
        """The last word of each variable."""
        return tuple(self._notices.values()) if self._notices else ()

    def keep(self, notices: Sequence[Notice]) -> None:
        """Instead of those that it has of these variables; of new variables only as many as there may be."""
        kept = self._notices or {}
        for notice in notices:
            if notice.variable in kept or len(kept) < _NOTICES_MAX:
                kept[notice.variable] = notice
        self._notices = kept or None

    def forget(self) -> None:
        self._notices = None


class Holdings:
    """All of them. `draining` says whether there is no agent to read."""

    def __init__(self, layout: Layout, loop: Loop) -> None:
        self._layout = layout
        self._loop = loop
        self.listeners: dict[str, Listener] = {}
        self.lost_listeners: dict[str, ListenerSpec] = {}  # known from the last keeper, not recovered yet
        self.channels: dict[str, Channel] = {}
        self.notify_sockets: dict[str, NotifySocket] = {}
        self.lost_notify: set[str] = set()
        self.draining = False
        self._spooled_bytes = 0

    # Listeners

    def listen(self, spec: ListenerSpec) -> Listener:
        """Bind it, or return the one that is held under this name. Raises Refused."""
        check_name(spec.name)
        _check_ids(spec.uid, spec.gid, spec.mode, spec.as_uid, spec.as_gid)
        if not 0 < spec.backlog <= _BACKLOG_MAX or (spec.mode is not None and spec.mode > 0o7777):
            raise Refused(Refusal.BAD_REQUEST, f"listener {spec.name}: not a backlog or not a mode")
        held = self.listeners.get(spec.name)
        if held is not None:
            if held.spec.address != spec.address:
                raise Refused(Refusal.TAKEN, f"listener {spec.name} is held for {held.address}, not {spec.address}")
            return held
        private = spec.address == "private"
        try:
            address = listen.parse(f"unix://{self._layout.private_path(spec.name)}" if private else spec.address)
        except ValueError as error:
            raise Refused(Refusal.BAD_REQUEST, str(error)) from None
        mode = 0o600 if private and spec.mode is None else spec.mode
        try:
            sock = listen.bind_listener(address, spec.backlog, mode, spec.uid, spec.gid, _actor(spec))
        except OSError as error:
            holder = listen.holder_of(address) if error.errno == errno.EADDRINUSE else None
            raise os_refusal(error, f"cannot listen on {spec.address}", holder=str(holder) if holder else "") from None
        return self.hold_listener(spec, sock.detach())

    def hold_listener(self, spec: ListenerSpec, fd: int) -> Listener:
        """Take over a listening socket. Raises Refused when it is none; the descriptor is then the caller's."""
        try:
            sock = socket.socket(fileno=fd)
            try:
                if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    raise Refused(Refusal.BAD_REQUEST, f"listener {spec.name}: the socket does not listen")
                address = listen.text_of(sock)
            finally:
                sock.detach()
        except OSError as error:
            raise os_refusal(error, f"listener {spec.name}: not a listening socket") from None
        held = Listener(spec, fd, address, fds.socket_inode(fd))
        self.listeners[spec.name] = held
        self.lost_listeners.pop(spec.name, None)
        record = {"spec": to_wire(spec), "inode": held.inode, "address": address}
        self._layout.write(self._layout.held_record("listener", spec.name), json.dumps(record).encode())
        return held

    def unlisten(self, name: str) -> None:
        check_name(name)
        self.lost_listeners.pop(name, None)
        self._layout.unlink(self._layout.held_record("listener", name))
        held = self.listeners.pop(name, None)
        if held is not None:
            os.close(held.fd)
            if held.address.startswith("unix://"):
                listen.remove_path(held.address.removeprefix("unix://"), _actor(held.spec))

    # Channels

    def open_channel(self, name: str, uid: int | None, gid: int | None) -> Channel:
        """The FIFO of this name, made or found. Raises Refused."""
        _check_ids(uid, gid)
        held = self.channels.get(check_name(name))
        if held is not None:
            return held
        path = self._layout.channel_path(name)
        try:
            try:
                os.mkfifo(path, 0o600)
            except FileExistsError:
                pass  # of the last keeper: its data is still in it as long as a writer holds it
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                    raise FileExistsError(errno.EEXIST, "is not a FIFO", path)
                os.fchown(fd, -1 if uid is None else uid, -1 if gid is None else gid)
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            raise os_refusal(error, f"cannot open channel {name}") from None
        return self.hold_channel(name, fd)

    def hold_channel(self, name: str, fd: int) -> Channel:
        name = sys.intern(check_name(name))  # the table has it too
        held = Channel(name, fd)
        self.channels[name] = held
        if self.draining:
            self._watch_channel(held)
        return held

    def restore_channel(self, saved: ChannelState) -> None:
        """A channel of the former image of this process."""
        held = self.hold_channel(saved.name, saved.fd)
        held.spool = bytearray(binascii.a2b_base64(saved.spool))
        held.dropped = saved.dropped
        self._spooled_bytes += len(held.spool)

    def close_channel(self, name: str) -> None:
        held = self.channels.pop(name, None)
        if held is not None:
            self._loop.remove(held.fd)
            self._spooled_bytes -= len(held.spool)
            os.close(held.fd)
            self._layout.unlink(self._layout.channel_path(name))

    def clear_spool(self, channel: Channel) -> None:
        self._spooled_bytes -= len(channel.spool)
        channel.spool = b""
        channel.dropped = 0

    # Notify sockets

    def open_notify(self, name: str, uid: int | None, gid: int | None) -> NotifySocket:
        """The notify socket of this name, made or found. Raises Refused."""
        _check_ids(uid, gid)
        held = self.notify_sockets.get(check_name(name))
        if held is not None:
            return held
        try:
            sock = listen.bind_datagrams(self._layout.notify_path(name), uid, gid)
        except OSError as error:
            raise os_refusal(error, f"cannot open notify socket {name}") from None
        return self.hold_notify(name, sock.detach())

    def hold_notify(self, name: str, fd: int) -> NotifySocket:
        name = sys.intern(check_name(name))
        held = NotifySocket(name, fd)
        self.notify_sockets[name] = held
        self.lost_notify.discard(name)
        self._layout.write(self._layout.held_record("notify", name), json.dumps({"name": name}).encode())
        if self.draining:
            self._watch_notify(held)
        return held

    def close_notify(self, name: str) -> None:
        check_name(name)
        self.lost_notify.discard(name)
        self._layout.unlink(self._layout.held_record("notify", name))
        held = self.notify_sockets.pop(name, None)
        if held is not None:
            self._loop.remove(held.fd)
            os.close(held.fd)
            self._layout.unlink(self._layout.notify_path(name))

    def notify_path(self, name: str) -> str:
        """Where a child sends its notifications. Raises Refused when no such socket is held.

        One that was the last keeper's is the agent's to supply; its path is good meanwhile.
        """
        held = self.notify_sockets.get(name)
        if held is None and name not in self.lost_notify:
            raise Refused(Refusal.UNKNOWN, f"no notify socket {name!r} is held")
        return self._layout.notify_path(name)

    def open_slots(self, slots: Sequence[SlotOpening]) -> list[int]:
        """For each slot the descriptors of its channel, notify socket and (where asked) readiness channel, in this order.
        Raises Refused, and then has opened none of them."""
        channels, sockets = set(self.channels), set(self.notify_sockets)
        found = []
        try:
            for slot in slots:
                found.append(self.open_channel(slot.name, slot.uid, slot.gid).fd)
                found.append(self.open_notify(slot.name, slot.uid, slot.gid).fd)
                if slot.ready:
                    found.append(self.open_channel(f"{slot.name}/ready", slot.uid, slot.gid).fd)
        except Refused:
            for name in self.channels.keys() - channels:
                self.close_channel(name)
            for name in self.notify_sockets.keys() - sockets:
                self.close_notify(name)
            raise
        return found

    # While there is no agent

    def drain(self, draining: bool) -> None:
        """Read everything ourselves, or leave it to the agent."""
        if draining == self.draining:
            return
        self.draining = draining
        for channel in self.channels.values():
            self._watch_channel(channel) if draining else self._loop.remove(channel.fd)
        for notify in self.notify_sockets.values():
            self._watch_notify(notify) if draining else self._loop.remove(notify.fd)

    def _watch_channel(self, channel: Channel) -> None:
        self._loop.add(channel.fd, lambda _events: self._spool(channel))

    def _watch_notify(self, notify: NotifySocket) -> None:
        self._loop.add(notify.fd, lambda _events: self._collect(notify))

    def _spool(self, channel: Channel) -> None:
        try:
            data = os.read(channel.fd, 65536)
        except BlockingIOError:
            return
        spool = channel.spool if isinstance(channel.spool, bytearray) else bytearray()
        spool += data
        channel.spool = spool
        self._spooled_bytes += len(data)
        excess = max(
            len(spool) - SPOOL_MAX_BYTES,
            min(len(spool), self._spooled_bytes - SPOOL_ALL_MAX_BYTES),
        )
        if excess > 0:  # the oldest go: what a crashing service said last is what is looked for
            del spool[:excess]
            channel.dropped += excess
            self._spooled_bytes -= excess

    def _collect(self, notify: NotifySocket) -> None:
        sock = socket.socket(fileno=notify.fd)
        try:
            # No room for descriptors: the kernel closes them, which is what answers BARRIER=1.
            data, control, _, _ = sock.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size), socket.MSG_DONTWAIT)
        except OSError:
            return
        finally:
            sock.detach()
        pid, uid = 0, -1
        for level, kind, value in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid, uid, _ = _CREDENTIALS.unpack(value[: _CREDENTIALS.size])
        for line in data.decode("utf-8", "replace").splitlines():
            variable, equals, text = line.partition("=")
            if not equals or not variable:
                continue
            notify.keep((Notice(variable[:64], text[:_VALUE_MAX], pid, uid, boottime_s()),))

    def remove_paths(self) -> None:
        """At the very end: nothing listens any more, so no path may say that something does."""
        for name in list(self.listeners):
            self.unlisten(name)

    # What there is

    def fd_of(self, kind: Held, name: str) -> int | None:
        found: Listener | Channel | NotifySocket | None = None
        if kind is Held.LISTENER:
            found = self.listeners.get(name)
        elif kind is Held.CHANNEL:
            found = self.channels.get(name)
        elif kind is Held.NOTIFY:
            found = self.notify_sockets.get(name)
        return found.fd if found is not None else None

    def items(self) -> list[HeldItem]:
        found = [HeldItem(Held.LISTENER, name, held.address, held.inode) for name, held in self.listeners.items()]
        found += [HeldItem(Held.LISTENER, name, spec.address, held=False) for name, spec in self.lost_listeners.items()]
        found += [HeldItem(Held.NOTIFY, name, self._layout.notify_path(name), held=False) for name in self.lost_notify]
        found += [
            HeldItem(
                Held.CHANNEL, name, self._layout.channel_path(name), spooled=len(channel.spool), dropped=channel.dropped
            )
            for name, channel in self.channels.items()
        ]
        found += [
            HeldItem(Held.NOTIFY, name, self._layout.notify_path(name), spooled=int(bool(notify.notices)))
            for name, notify in self.notify_sockets.items()
        ]
        return found
