"""The listening sockets of services: opened once by the keeper, named by service and address, duplicated here.

A listener belongs to the service, not to a process: it outlives generations, agent and keeper. Each side holds every
descriptor, so that the survivor supplies the other. Private listeners (for proofs) belong to one instance of a generation.
Runs in the agent.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from midstream.agent.accounts import Account, account_named, gid_named
from midstream.agent.health import Address, parse_address
from midstream.agent.keeper_link import HeldListener, KeeperLink, KeeperRefused
from midstream.agent.plans import plan_of, profile_of
from midstream.agent.spawning import Listeners, account_for, address_of, listen_names, listener_key
from midstream.agent.store import GenerationRecord
from midstream.core.instance import THROWAWAY_SLOT
from midstream.core.messages import Held, HeldItem, ListenerSpec
from midstream.core.spec import AppSpec, ListenSpec, ServiceSpec
from midstream.errors import HostError, OperatorError
from midstream.profiles.profile import Proof

_DEFAULT_MODE = 0o666  # as gunicorn and Unicorn leave it: the folder decides who gets there


@dataclass(frozen=True, slots=True)
class _Open:
    held: HeldListener
    spec: ListenerSpec


class ListenerTable:
    """`link` gives the keeper link, waiting for one that is away. Raises KeeperLost."""

    def __init__(self, link: Callable[[], Awaitable[KeeperLink]], uid: int) -> None:
        self._link = link
        self._uid = uid
        self._open: dict[str, _Open] = {}

    def addresses(self, app: str, service: str) -> list[tuple[str, str]]:
        """(keeper's name, address as bound) of the service's listeners, private ones left out."""
        front = f"{app}/{service}/"
        return [
            (name, item.held.address)
            for name, item in sorted(self._open.items())
            if name.startswith(front) and not name.removeprefix(front).split("/")[0].isdecimal()
        ]

    async def open_service(self, spec: AppSpec, service: ServiceSpec, owner_uid: int) -> None:
        """Binds what the service listens on and is not bound yet. Raises HostError (in use: by whom), OperatorError."""
        account = account_for(spec, owner_uid, self._uid, service)
        actor = account_for(spec, owner_uid, self._uid)
        for listen in service.listen:
            listener = _listener_spec(spec, service, listen, account, actor)
            if self._uid != 0:
                listener = replace(listener, uid=None, gid=None, as_uid=None, as_gid=None)
            await self._bind(listener, service.name)

    async def for_instance(
        self, record: GenerationRecord, service: ServiceSpec, slot: int, owner_uid: int
    ) -> Listeners:
        """What an instance of the generation is to be given; opens what is not open yet."""
        spec = record.spec
        names = listen_names(service)
        if slot >= THROWAWAY_SLOT:
            private = {}
            for name, listen in names.items():
                key = _private_name(spec.app, service.name, record.number, slot, name)
                private[name] = key
                await self._bind(_private_spec(key, listen), service.name)
            return Listeners(private)
        await self.open_service(spec, service, owner_uid)
        shared = {
            name: listener_key(spec.app, service.name, address_of(spec, listen)) for name, listen in names.items()
        }
        second = None
        if names and _wants_second(service):
            second = _private_name(spec.app, service.name, record.number, slot, "second")
            await self._bind(_private_spec(second, next(iter(names.values()))), service.name)
        return Listeners(shared, second)

    def shared_of(self, spec: AppSpec, service: ServiceSpec, owner_uid: int) -> dict[int, Address]:
        """inode -> address of the service's listeners that are open; the one that the check asks for first."""
        account = account_for(spec, owner_uid, self._uid, service)
        actor = account_for(spec, owner_uid, self._uid)
        found: dict[int, Address] = {}
        asked = service.health.listener if service.health else ""
        items = sorted(listen_names(service).items(), key=lambda item: item[0] != asked)
        for _, listen in items:
            item = self._open.get(listener_key(spec.app, service.name, address_of(spec, listen)))
            if item is None:
                continue
            address = parse_address(item.held.address)
            if self._uid == 0 and owner_uid != 0 and address.path:
                made = _listener_spec(spec, service, listen, account, actor)
                address = replace(address, owners=frozenset({actor.uid} if made.uid is None else {made.uid}))
            found[item.held.inode] = address
        return found

    def private_of(self, record: GenerationRecord, service: ServiceSpec, slot: int) -> tuple[Address, int] | None:
        """Where only this instance can answer, if it was given such a listener."""
        names = list(listen_names(service))
        asked = service.health.listener if service.health and service.health.listener in names else ""
        name = (asked or names[0] if names else "") if slot >= THROWAWAY_SLOT else "second"
        item = self._open.get(_private_name(record.spec.app, service.name, record.number, slot, name))
        return (parse_address(item.held.address), item.held.inode) if item else None

    async def drop(self, keep: Callable[[str], bool]) -> None:
        """Closes every listener whose name `keep` refuses: it belonged to something that is gone for good."""
        for name in [name for name in self._open if not keep(name)]:
            item = self._open.pop(name)
            os.close(item.held.fd)
            try:
                await (await self._link()).unlisten(name)
            except KeeperRefused:
                pass  # a keeper that never had it

    async def recover(self, inventory: Iterable[HeldItem]) -> None:
        """After connecting: takes what the keeper holds by its inventory, gives what only we hold. Raises KeeperLost."""
        link = await self._link()
        theirs = {item.name: item for item in inventory if item.kind is Held.LISTENER and item.held}
        for name, ours in self._open.items():
            if name not in theirs:
                await link.give(Held.LISTENER, name, ours.held.fd, listener=ours.spec)
        missing = [name for name in theirs if name not in self._open]
        taken = await link.take(Held.LISTENER, missing)
        for name, fd in taken.items():
            item = theirs[name]
            held = HeldListener(fd, item.address, item.inode or os.fstat(fd).st_ino)
            self._open[name] = _Open(held, ListenerSpec(name, item.address))

    async def _bind(self, listener: ListenerSpec, service: str) -> None:
        if listener.name in self._open:
            return
        link = await self._link()
        try:
            held = await link.listen(listener)
        except KeeperRefused as error:
            raise _translated(error, listener, service) from error
        self._open[listener.name] = _Open(held, listener)


def _translated(error: KeeperRefused, listener: ListenerSpec, service: str) -> HostError | OperatorError:
    where = f"services.{service}.listen"
    if error.errno == "EADDRINUSE":
        holder = f" by {error.holder}" if error.holder else ""
        return HostError(
            f"{listener.address} is in use{holder}",
            where=where,
            remedy="stop that program, or let the service listen elsewhere",
        )
    if error.errno in ("EACCES", "EPERM"):
        return OperatorError(
            f"{listener.address} may not be bound here: {error.what}",
            where=where,
            remedy="use a port of 1024 or more, or run the agent as root",
        )
    return HostError(
        f"{listener.address} cannot be bound: {error.what}",
        where=where,
        remedy="free the address, or choose another one in `listen`",
    )


def _wants_second(service: ServiceSpec) -> bool:
    profile = profile_of(service)
    return plan_of(service).throwaway and profile.proof is Proof.SECOND and service.health is not None


def _private_name(app: str, service: str, generation: int, slot: int, name: str) -> str:
    return f"{app}/{service}/{generation}/{slot}/{name}"


def _private_spec(name: str, like: ListenSpec) -> ListenerSpec:
    """A listener of the same family that nobody else knows of."""
    if like.address.startswith("unix://"):
        return ListenerSpec(name, "private", backlog=like.backlog, mode=0o600)
    host = "[::1]" if like.address.startswith("tcp://[") else "127.0.0.1"
    return ListenerSpec(name, f"tcp://{host}:0", backlog=like.backlog)


def _listener_spec(
    spec: AppSpec, service: ServiceSpec, listen: ListenSpec, account: Account, actor: Account
) -> ListenerSpec:
    """account: whose socket it is; actor: who chose the path, so whose rights apply there."""
    address = address_of(spec, listen)
    name = listener_key(spec.app, service.name, address)
    if not address.startswith("unix://"):
        return ListenerSpec(name, address, listen.backlog)
    user, _, group = listen.owner.partition(":")
    where = f"services.{service.name}.listen"
    return ListenerSpec(
        name,
        address,
        listen.backlog,
        mode=_DEFAULT_MODE if listen.mode is None else listen.mode,
        uid=account_named(user, where).uid if user else account.uid,
        gid=gid_named(group, where) if group else account.gid,
        as_uid=actor.uid,
        as_gid=actor.gid,
    )
