"""How an instance is heard: its output FIFO, its notify socket, its readiness pipe. One set for each slot of a generation,
held by the keeper, opened here, kept over restarts of the process. Runs in the agent's loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from midstream.agent.accounts import account_of_uid
from midstream.agent.keeper_link import KeeperLost, KeeperRefused
from midstream.agent.logs import ChannelName
from midstream.agent.notices import Authority, Notice, NoticeSocket, Refusal
from midstream.agent.plans import profile_of, readiness_of
from midstream.agent.processes import Name, Place3
from midstream.agent.readers import Readers
from midstream.agent.spawning import account_for, channel_of
from midstream.core.events import Spawned
from midstream.core.messages import NoticesOf, SlotOpening, SpawnSpec
from midstream.core.placeholders import fill
from midstream.core.spec import Readiness, ServiceSpec
from midstream.linux.file_identity import FileUser

if TYPE_CHECKING:
    from midstream.agent.host import Host


@dataclass(frozen=True, slots=True)
class Start:
    """A process that is about to be started."""

    name: Name
    place: Place3
    spec: SpawnSpec
    service: ServiceSpec


class Ears:
    """Where what one slot says goes. One object a slot, and no closures: with a thousand services they were a megabyte."""

    __slots__ = ("_host", "generation", "name", "opening", "slot", "uids")

    def __init__(
        self, host: Host, name: Name, generation: int, slot: int, opening: SlotOpening, uids: frozenset[int]
    ) -> None:
        self._host = host
        self.name = name
        self.generation = generation
        self.slot = slot
        self.opening = opening
        self.uids = uids  # whose word counts when the sender is gone already

    def _place(self) -> Place3 | None:
        found = self._host.processes.instance_at(self.name, self.generation, self.slot)
        return (self.generation, self.slot, found.attempt) if found else None

    @property
    def authority(self) -> Authority:
        return Authority(self.in_tree, self.uids)

    def in_tree(self, pid: int) -> bool | None:
        """Whether the process is of the instance; None when it is gone already."""
        at = self._place()
        live = self._host.processes.get(self.name, at) if at else None
        if live is None or at is None:
            return None
        if pid == live.entry.pid:
            return True
        if not os.path.exists(f"/proc/{pid}"):
            return None
        return pid in self._host.processes.tree_of(self._host.key(self.name, at), live.entry)

    def on_notice(self, notice: Notice) -> None:
        at = self._place()
        if at is not None:
            self._host.processes.notice(self.name, at, notice)

    def on_refusal(self, refusal: Refusal) -> None:
        self._host.note(*self.name, "notify", f"refused: {refusal.reason}", self.generation, self.slot)

    def on_ready_fd(self, fd: int) -> None:
        """Something came on the readiness pipe."""
        try:
            data = os.read(fd, 256)
        except BlockingIOError:
            return
        if b"\n" in data:
            self.on_notice(Notice(ready=True))


class Channels:
    """What is open, by the keeper's name for it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._open: set[str] = set()
        self._sockets: dict[str, NoticeSocket] = {}
        self._readers: Readers[NoticeSocket] | None = None
        self._ready_fds: dict[str, int] = {}
        self._uid_sets: dict[frozenset[int], frozenset[int]] = {}  # one object for all slots that have the same

    async def ensure(self, starts: Sequence[Start]) -> None:
        """Opens what these processes will be given, unless it is open, in as few messages as possible. Raises KeeperLost,
        and KeeperRefused when one of them cannot be opened."""
        wanted: dict[str, Ears] = {}
        for start in starts:
            name, (generation, slot, _) = start.name, start.place
            channel = channel_of(self._host.key(name, start.place))
            if channel not in self._open:
                self.configure_logs(name, start.service)
                wanted[channel] = self._ears(
                    name, generation, slot, channel, start.spec.uid, start.spec.gid, start.service
                )
        await self._attach(list(wanted.values()))

    async def retire(self, name: Name, generation: int) -> None:
        """No process of the generation is left: the keeper lets go too."""
        front = f"{name[0]}/{name[1]}/{generation}/"
        for channel in [item for item in self._open if item.startswith(front)]:
            self.close(name, generation, int(channel.rsplit("/", 1)[1]), channel)
            link = self._host.link
            if link is None:
                continue
            for drop, held in (
                (link.unchannel, channel),
                (link.unnotify, channel),
                (link.unchannel, f"{channel}/ready"),
            ):
                try:
                    await drop(held)
                except KeeperRefused:
                    pass  # it has none of that kind

    async def forget_app(self, app: str) -> None:
        """The app is no more: those of its generations that were never retired go as well."""
        for service, generation in {tuple(item.split("/")[1:3]) for item in self._open if item.startswith(f"{app}/")}:
            await self.retire((app, service), int(generation))

    def _ears(
        self,
        name: Name,
        generation: int,
        slot: int,
        channel: str,
        uid: int | None,
        gid: int | None,
        service: ServiceSpec,
    ) -> Ears:
        ready = readiness_of(service, profile_of(service)) is Readiness.FD
        return Ears(self._host, name, generation, slot, SlotOpening(channel, uid, gid, ready), self._uids(name[0], uid))

    async def _attach(self, wanted: Sequence[Ears]) -> None:
        if not wanted:
            return
        if self._host.link is None:
            raise KeeperLost("the keeper is away")
        opened = await self._host.link.slots([ears.opening for ears in wanted])
        for ears, (output, notify, *ready) in zip(wanted, opened, strict=True):
            channel = ears.opening.name
            self._host.logs.attach(ChannelName(*ears.name, ears.generation, ears.slot), output)
            self._readers = self._readers or Readers(NoticeSocket.read)
            self._sockets[channel] = NoticeSocket(notify, ears, self._readers)
            for fd in ready:
                self._listen_to_ready_fd(ears, fd)
            self._open.add(channel)

    def _uids(self, app: str, uid: int | None) -> frozenset[int]:
        """Whose word counts for a process of this user."""
        owner = self._host.apps[app].owner_uid if app in self._host.apps else self._host.uid
        own = () if uid is None else (uid,)
        uids = frozenset((self._host.uid, owner, *own))
        return self._uid_sets.setdefault(uids, uids)

    def configure_logs(self, name: Name, service: ServiceSpec) -> None:
        app = self._host.apps.get(name[0])
        log = service.log
        if app is not None and log.path:
            words = {"deploy_to": app.deploy_to, "shared": f"{app.deploy_to}/shared"}
            log = replace(log, path=fill(log.path, words))
        if self._host.uid != 0:
            self._host.logs.configure(*name, log)
            return
        owner = account_of_uid(app.owner_uid if app else self._host.uid)
        self._host.logs.configure(*name, log, owner=FileUser(owner.uid, owner.gid), reader_gid=owner.gid)

    def close(self, name: Name, number: int, slot: int, channel: str) -> None:
        self._open.discard(channel)
        self._host.logs.detach(ChannelName(*name, number, slot))
        socket = self._sockets.pop(channel, None)
        if socket is not None:
            socket.close()
        self._forget_ready_fd(channel)

    async def reopen(self, name: Name, seen: Spawned, said: NoticesOf | None) -> None:
        """Listens again to an instance that was there before this agent (or this keeper) was. said: what the keeper took
        from its notify socket meanwhile."""
        channel = channel_of(self._host.key(name, (seen.generation, seen.slot, seen.attempt)))
        record = self._host.record(name[0], seen.generation)
        service = record.spec.services.get(name[1]) if record else None
        if record is None or service is None or self._host.link is None:
            return
        owner = self._host.apps[name[0]].owner_uid if name[0] in self._host.apps else self._host.uid
        account = account_for(record.spec, owner, self._host.uid, service)
        uid, gid = (account.uid, account.gid) if self._host.uid == 0 else (None, None)
        self.configure_logs(name, service)
        if channel in self._open:
            self.close(name, seen.generation, seen.slot, channel)
        log_name = ChannelName(*name, seen.generation, seen.slot)
        try:
            await self._absorb_spool(log_name, channel)
            await self._attach([self._ears(name, seen.generation, seen.slot, channel, uid, gid, service)])
        except KeeperRefused as error:
            self._host.note(*name, "keeper", f"its output cannot be read: {error}", seen.generation, seen.slot)
            return
        # It said READY=1 to an agent that is gone; a process that ran when we came is past its start.
        live = self._host.processes.get(name, (seen.generation, seen.slot, seen.attempt))
        if live is not None and self._host.processes.was_ready(name, seen):
            live.set_ready()
        await self._hear_what_was_said(name, seen, channel, said)

    async def _hear_what_was_said(self, name: Name, seen: Spawned, channel: str, said: NoticesOf | None) -> None:
        """What the keeper took from the instance's notify socket and readiness pipe while there was no agent: READY=1
        comes once, and may have come just then."""
        if self._host.link is None:
            raise KeeperLost("the keeper is away")
        socket = self._sockets.get(channel)
        if said is not None and socket is not None:
            for notice in said.notices:
                socket.replay(f"{notice.variable}={notice.value}".encode(), pid=notice.pid, uid=notice.uid)
            await self._host.link.clear_notices([channel])
        try:
            newline = await self._host.link.spool(f"{channel}/ready")
        except KeeperRefused:  # it has none
            return
        if b"\n" in newline.data:
            place = (seen.generation, seen.slot, seen.attempt)
            self._host.processes.notice(name, place, Notice(ready=True))

    async def _absorb_spool(self, log_name: ChannelName, channel: str) -> None:
        if self._host.link is None:
            raise KeeperLost("the keeper is away")
        try:
            spooled = await self._host.link.spool(channel)
            if spooled.data or spooled.dropped_bytes:
                self._host.logs.absorb(log_name, spooled.data, spooled.dropped_bytes)
                await self._host.link.clear_spool(channel)
        except KeeperRefused:
            pass  # a new keeper: what the old one spooled went with it

    def _listen_to_ready_fd(self, ears: Ears, fd: int) -> None:
        channel = ears.opening.name
        os.set_blocking(fd, False)
        self._forget_ready_fd(channel)
        self._ready_fds[channel] = fd
        asyncio.get_running_loop().add_reader(fd, ears.on_ready_fd, fd)

    def _forget_ready_fd(self, channel: str) -> None:
        fd = self._ready_fds.pop(channel, None)
        if fd is not None:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
