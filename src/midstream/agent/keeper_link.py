"""The agent's end of the keeper's socket: one coroutine an operation, typed by `core.messages`.

Runs in the agent, on its event loop; nothing blocks. Requests go out one at a time, in the order they were made. When
the connection is gone every waiting call raises KeeperLost and `on_lost` is called once; connect again (or start the
next keeper, `start_keeper`), then `supply` what it lacks and pull from 0.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from midstream import __version__
from midstream.core.messages import (
    FDS_MAX,
    MESSAGE_MAX_BYTES,
    PROTOCOL,
    READING,
    REPLIES,
    SLOTS_MAX,
    Acked,
    AckRequest,
    AgentCommandRequest,
    ChannelRequest,
    Given,
    GiveRequest,
    Held,
    HeldItem,
    Hello,
    HelloRequest,
    Inventory,
    InventoryRequest,
    KillTreeRequest,
    ListenerSpec,
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
    ProcessEntry,
    PullRequest,
    Refusal,
    ShutdownRequest,
    Signalled,
    SignalRequest,
    SlotOpening,
    SlotsRequest,
    Spawned,
    SpawnRequest,
    SpawnResult,
    SpawnSpec,
    Spool,
    SpoolRequest,
    StandingOrder,
    Taken,
    TakeRequest,
    TreeKilled,
    Upgraded,
    UpgradeRequest,
)
from midstream.core.wire import from_wire, to_wire
from midstream.errors import EXIT_LOCKED, HostError
from midstream.linux import fds

T = TypeVar("T")
_BATCH_BYTES = MESSAGE_MAX_BYTES - 4096
_BATCH_ITEMS = 32


class KeeperRefused(HostError):
    """The keeper refused and changed nothing. `refusal` says why, `errno` and `holder` where it knows them."""

    code = "keeper_refused"

    def __init__(self, refusal: Refusal, what: str, *, errno: str = "", holder: str = "") -> None:
        super().__init__(what)
        self.refusal = refusal
        self.errno = errno
        self.holder = holder


class KeeperLost(HostError):
    """The connection to the keeper is gone; what was asked may or may not have been done."""

    code = "keeper_lost"


@dataclass(frozen=True, slots=True)
class HeldListener:
    """A duplicate of a listener; `fd` is the caller's to close."""

    fd: int
    address: str
    inode: int


@dataclass(frozen=True, slots=True)
class HeldPath:
    """A duplicate of a channel or notify socket with its path; `fd` is the caller's to close."""

    fd: int
    path: str


@dataclass(frozen=True, slots=True)
class Spooled:
    """What a channel said while no agent was attached."""

    data: bytes
    dropped_bytes: int


@dataclass(frozen=True, slots=True)
class Supply:
    """One descriptor that the agent holds a duplicate of, for a keeper that may lack it."""

    kind: Held
    name: str
    fd: int
    listener: ListenerSpec | None = None


@dataclass(frozen=True, slots=True)
class KeeperCommand:
    """How to start a keeper. `image`: what `keeper.image.build` made. All paths absolute."""

    image: str
    state: str
    runtime: str
    agent_argv: tuple[str, ...]
    main: str = ""
    stop_timeout_s: float = 30.0

    def argv(self) -> list[str]:
        """The command of a keeper in the foreground."""
        words = [sys.executable, "-I", "-S", self.image, "--state", self.state, "--runtime", self.runtime]
        words += ["--agent-argv", json.dumps(list(self.agent_argv)), "--stop-timeout", str(self.stop_timeout_s)]
        return words + (["--main", self.main] if self.main else [])


async def start_keeper(command: KeeperCommand) -> None:
    """Start the next keeper, detached, and wait until its socket is open. When another one is running already, that one
    stays (the lock decides), and this returns too: connect to whichever serves. Raises HostError when none could start.
    """
    os.makedirs(command.state, mode=0o700, exist_ok=True)
    said_fd = os.memfd_create("keeper-start", os.MFD_CLOEXEC)
    try:
        pid = os.posix_spawn(
            sys.executable,
            [*command.argv(), "--detach", f"{command.state}/keeper.log"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, said_fd, 1), (os.POSIX_SPAWN_DUP2, said_fd, 2)],
        )
        code = await _exit_code(pid)
        said = fds.read_file(said_fd).decode("utf-8", "replace")
    finally:
        os.close(said_fd)
    if code not in (0, EXIT_LOCKED):
        raise HostError(
            "the keeper cannot start",
            where=f"state {command.state}, runtime {command.runtime}",
            detail=said or f"exit code {code}; see {command.state}/keeper.log",
            serving="the services that run go on; nothing restarts them until a keeper is back",
            remedy="remove the cause and start the agent again",
        )


async def _exit_code(pid: int) -> int:
    """Wait for a child of ours without blocking the loop."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    pidfd = os.pidfd_open(pid, 0)
    loop.add_reader(pidfd, _resolve, ended)
    try:
        await ended
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class KeeperLink:
    """`on_changed(seq)`: something is to be pulled. `on_lost()`: the connection is gone (not after `close`)."""

    def __init__(
        self,
        on_changed: Callable[[int], None] = lambda seq: None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.on_changed = on_changed
        self.on_lost = on_lost
        self.hello: Hello | None = None
        self.is_stopping = False  # the ordered stop has begun: when the keeper is gone, no next one is wanted
        self._sock: socket.socket | None = None
        self._buffer = bytearray(MESSAGE_MAX_BYTES)
        self._number = 0
        self._turn = asyncio.Lock()
        self._reply: asyncio.Future[tuple[dict[str, Any], list[int]]] | None = None

    @property
    def epoch(self) -> int:
        """The epoch of this attachment; 0 before `connect`."""
        return self.hello.epoch if self.hello is not None else 0

    @property
    def is_connected(self) -> bool:
        return self._sock is not None

    # The connection

    async def connect(self, path: str) -> Hello:
        """Connect to `keeper.sock` and attach. Raises OSError when nobody listens, KeeperRefused, KeeperLost."""
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MESSAGE_MAX_BYTES)
            await loop.sock_connect(sock, path)
        except BaseException:
            sock.close()
            raise
        self._sock = sock
        self.hello = None
        self.is_stopping = False
        loop.add_reader(sock.fileno(), self._readable)
        try:
            self.hello = await self._ask(Hello, "hello", HelloRequest(PROTOCOL, __version__))
        except BaseException:
            self._drop("it did not answer hello")
            raise
        return self.hello

    def close(self) -> None:
        """Detach, without calling `on_lost`."""
        self._drop("the connection was closed")

    def _drop(self, why: str) -> None:
        if self._sock is None:
            return
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        asyncio.get_running_loop().remove_writer(self._sock.fileno())
        self._sock.close()
        self._sock = None
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(KeeperLost(f"the keeper is gone: {why}"))

    def _lost(self, why: str) -> None:
        if self._sock is not None:
            self._drop(why)
            if self.hello is not None:  # else it is `connect` that fails
                self.on_lost()

    def _readable(self) -> None:
        while self._sock is not None:
            try:
                packet = fds.receive(self._sock, self._buffer)
            except OSError as error:
                self._lost(str(error))
                return
            if packet is None:
                return
            if not packet.data:
                self._lost("it closed the connection")
                return
            message = json.loads(packet.data)
            if "changed" in message:
                self.on_changed(message["changed"])
            elif "stopping" in message:
                self.is_stopping = True
            elif self._reply is not None and not self._reply.done():
                self._reply.set_result((message, packet.fds))
            else:
                fds.close_all(packet.fds)  # the caller was cancelled while it waited

    async def _send(self, data: bytes, passed: Sequence[int]) -> None:
        while True:
            if self._sock is None:
                raise KeeperLost("the keeper is not connected")
            try:
                if fds.send(self._sock, data, passed):
                    return
            except OSError as error:
                self._lost(str(error))
                raise KeeperLost(f"the keeper is gone: {error}") from error
            loop = asyncio.get_running_loop()
            writable: asyncio.Future[None] = loop.create_future()
            fileno = self._sock.fileno()
            loop.add_writer(fileno, _resolve, writable)
            try:
                await writable
            finally:
                loop.remove_writer(fileno)

    async def _ask_with_fds(
        self, reply: type[T], op: str, request: Any, passed: Sequence[int] = (), encoded: str = ""
    ) -> tuple[T, list[int]]:
        """A caller that is cancelled does not cancel what was asked: the reply is taken, its descriptors are closed.
        encoded: the request as JSON, where it was made already."""
        asking = asyncio.ensure_future(self._ask_now(reply, op, request, tuple(passed), encoded))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(_discard)
            raise

    async def _ask_now(
        self, reply: type[T], op: str, request: Any, passed: Sequence[int], encoded: str
    ) -> tuple[T, list[int]]:
        assert REPLIES[op] is reply
        async with self._turn:
            self._number += 1
            head: dict[str, Any] = {"id": self._number, "op": op}
            if op not in READING:
                head["epoch"] = self.epoch
            message = _joined(_json(head), encoded or _json(to_wire(request)))
            self._reply = asyncio.get_running_loop().create_future()
            try:
                await self._send(message.encode(), passed)
                answer, received = await self._reply
            except asyncio.CancelledError:
                # The reply to this request would be taken for the next one's: give the connection up.
                self._lost("a request was cancelled")
                raise
            finally:
                self._reply = None
        if "error" in answer:
            fds.close_all(received)
            error = answer["error"]
            raise KeeperRefused(
                Refusal(error["code"]),
                error["what"],
                errno=error.get("errno", ""),
                holder=error.get("holder", ""),
            )
        return from_wire(reply, answer["ok"]), received

    async def _ask(self, reply: type[T], op: str, request: Any, passed: Sequence[int] = (), encoded: str = "") -> T:
        value, received = await self._ask_with_fds(reply, op, request, passed, encoded)
        fds.close_all(received)
        return value

    # Processes

    async def ping(self) -> None:
        """A sign of life; due every 20 s."""
        await self._ask(REPLIES["ping"], "ping", PingRequest())

    async def pull(self, after: int = 0, limit: int = 500) -> Page:
        """One page of entries changed after `after`, ascending."""
        return await self._ask(Page, "pull", PullRequest(after, limit))

    async def pull_all(self, after: int = 0) -> tuple[tuple[ProcessEntry, ...], int]:
        """All entries changed after `after`, and the seq to go on from."""
        found: list[ProcessEntry] = []
        while True:
            page = await self.pull(after)
            found.extend(page.entries)
            if not page.more:
                return tuple(found), page.seq
            after = page.entries[-1].seq

    async def spawn(self, specs: Sequence[SpawnSpec], passed: Sequence[int] = ()) -> tuple[SpawnResult, ...]:
        """Start each, idempotent by key; as many messages as needed, each with all of `passed`."""
        results: list[SpawnResult] = []
        for batch, texts in _batches(specs):
            encoded = f'{{"specs":[{texts}]}}'
            spawned = await self._ask(Spawned, "spawn", SpawnRequest(tuple(batch)), passed, encoded)
            results.extend(spawned.results)
        return tuple(results)

    async def signal(self, key: str, signum: int, tree: bool = False) -> int:
        """How many processes got it; 0 when it has ended."""
        return (await self._ask(Signalled, "signal", SignalRequest(key, signum, tree))).count

    async def kill_tree(self, key: str) -> TreeKilled:
        """SIGKILL to the whole tree."""
        return await self._ask(TreeKilled, "kill_tree", KillTreeRequest(key))

    async def ack(self, keys: Sequence[str]) -> tuple[str, ...]:
        """Forget ended entries; returns the keys of those that have not ended."""
        kept: list[str] = []
        for start in range(0, len(keys), 500):
            kept += (await self._ask(Acked, "ack", AckRequest(tuple(keys[start : start + 500])))).kept
        return tuple(kept)

    # What is held by name

    async def listen(self, listener: ListenerSpec) -> HeldListener:
        """Bind and hold. KeeperRefused with errno EADDRINUSE names the holder."""
        value, received = await self._ask_with_fds(Listening, "listen", ListenRequest(listener))
        return HeldListener(received[0], value.address, value.inode)

    async def unlisten(self, name: str) -> None:
        await self._ask(REPLIES["unlisten"], "unlisten", NameRequest(name))

    async def take(self, kind: Held, names: Sequence[str]) -> dict[str, int]:
        """Duplicates of what is held, by name; names that are not held are left out."""
        found: dict[str, int] = {}
        for start in range(0, len(names), FDS_MAX):
            request = TakeRequest(kind, tuple(names[start : start + FDS_MAX]))
            value, received = await self._ask_with_fds(Taken, "take", request)
            found.update(zip(value.names, received, strict=True))
        return found

    async def give(
        self,
        kind: Held,
        name: str,
        fd: int,
        *,
        listener: ListenerSpec | None = None,
        uid: int | None = None,
        gid: int | None = None,
    ) -> bool:
        """Hand over a duplicate of `fd`; False when the keeper held one already."""
        request = GiveRequest(kind, name, listener, uid, gid)
        return not (await self._ask(Given, "give", request, [fd])).known

    async def supply(self, held: Sequence[Supply]) -> tuple[str, ...]:
        """Give a new keeper what it lacks of these; returns the names it had not. What it lacks and the agent does not
        hold either stays `held=False` in the inventory: listen or notify again."""
        theirs = {(item.kind, item.name) for item in await self.inventory() if item.held}
        lacking = [item for item in held if (item.kind, item.name) not in theirs]
        for item in lacking:
            await self.give(item.kind, item.name, item.fd, listener=item.listener)
        return tuple(item.name for item in lacking)

    async def inventory(self) -> tuple[HeldItem, ...]:
        """Everything held by name, standing orders included."""
        found: list[HeldItem] = []
        after = ""
        while True:
            page = await self._ask(Inventory, "inventory", InventoryRequest(after))
            found.extend(page.items)
            if not page.more:
                return tuple(found)
            after = f"{page.items[-1].kind.value} {page.items[-1].name}"

    async def channel(self, name: str, uid: int | None = None, gid: int | None = None) -> HeldPath:
        """A log FIFO that the uid may write to. The descriptor does not block."""
        value, received = await self._ask_with_fds(Opened, "channel", ChannelRequest(name, uid, gid))
        return HeldPath(received[0], value.path)

    async def unchannel(self, name: str) -> None:
        await self._ask(REPLIES["unchannel"], "unchannel", NameRequest(name))

    async def notify(self, name: str, uid: int | None = None, gid: int | None = None) -> HeldPath:
        """A notify socket that the uid may send to. The descriptor does not block."""
        value, received = await self._ask_with_fds(Opened, "notify", NotifyRequest(name, uid, gid))
        return HeldPath(received[0], value.path)

    async def unnotify(self, name: str) -> None:
        await self._ask(REPLIES["unnotify"], "unnotify", NameRequest(name))

    async def slots(self, slots: Sequence[SlotOpening]) -> list[tuple[int, ...]]:
        """For each slot the descriptors of its channel, its notify socket and, where it asks, its readiness channel. They
        do not block. As many messages as needed."""
        found: list[tuple[int, ...]] = []
        for start in range(0, len(slots), SLOTS_MAX):
            batch = slots[start : start + SLOTS_MAX]
            _, received = await self._ask_with_fds(REPLIES["slots"], "slots", SlotsRequest(tuple(batch)))
            each = iter(received)
            found += [tuple(next(each) for _ in range(3 if slot.ready else 2)) for slot in batch]
        return found

    async def notices(self) -> tuple[NoticesOf, ...]:
        """What was said on notify sockets while no agent was attached. Stays until `clear_notices`."""
        return (await self._ask(Notices, "notices", NoticesRequest())).items

    async def clear_notices(self, names: Sequence[str]) -> tuple[NoticesOf, ...]:
        """Forget the notices of these sockets; returns those that are left (the next page)."""
        return (await self._ask(Notices, "notices", NoticesRequest(tuple(names)))).items

    async def spool(self, name: str) -> Spooled:
        """What a channel said while no agent was attached, before what is in the FIFO now; until `clear_spool`."""
        value, received = await self._ask_with_fds(Spool, "spool", SpoolRequest(name))
        try:
            data = fds.read_file(received[0]) if received else b""
        finally:
            fds.close_all(received)
        return Spooled(data, value.dropped_bytes)

    async def clear_spool(self, name: str) -> None:
        """Forget it: it has been written where it belongs."""
        await self._ask(Spool, "spool", SpoolRequest(name, clear=True))

    # The keeper itself

    async def orders(self, set: Sequence[StandingOrder] = (), revoke: Sequence[str] = ()) -> None:
        """Revoke, then set; in force when this returns."""
        for start in range(0, len(revoke), 500):
            request = OrdersRequest(revoke=tuple(revoke[start : start + 500]))
            await self._ask(REPLIES["orders"], "orders", request)
        for batch, texts in _batches(set):
            encoded = f'{{"set":[{texts}]}}'
            await self._ask(REPLIES["orders"], "orders", OrdersRequest(set=tuple(batch)), encoded=encoded)

    async def agent_command(self, argv: Sequence[str]) -> None:
        """What the keeper starts when the agent is gone, from now on."""
        await self._ask(REPLIES["agent_command"], "agent_command", AgentCommandRequest(tuple(argv)))

    async def upgrade(self, path: str) -> str:
        """Become the keeper image at `path`; returns its version. KeeperRefused with the reason otherwise."""
        return (await self._ask(Upgraded, "upgrade", UpgradeRequest(path))).version

    async def shutdown(self, timeout_s: float = 30.0) -> None:
        """Begin the ordered stop of everything, this agent included."""
        await self._ask(REPLIES["shutdown"], "shutdown", ShutdownRequest(timeout_s))


def _discard(asked: asyncio.Future[tuple[Any, list[int]]]) -> None:
    if not asked.cancelled() and asked.exception() is None:
        fds.close_all(asked.result()[1])


def _resolve(writable: asyncio.Future[None]) -> None:
    if not writable.done():
        writable.set_result(None)


def _batches(items: Sequence[T]) -> Iterator[tuple[list[T], str]]:
    """Runs of items that fit in one message each, with their JSON, separated by commas. Short runs: what one message
    takes to decode is what the keeper's heap grows to for good."""
    batch: list[T] = []
    texts: list[str] = []
    size = 0
    for item in items:
        text = _json(to_wire(item))
        length = len(text) + 1  # ASCII
        if batch and (size + length > _BATCH_BYTES or len(batch) == _BATCH_ITEMS):
            yield batch, ",".join(texts)
            batch, texts, size = [], [], 0
        batch.append(item)
        texts.append(text)
        size += length
    if batch:
        yield batch, ",".join(texts)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _joined(head: str, fields: str) -> str:
    """One JSON object from two."""
    return head if fields == "{}" else f"{head[:-1]},{fields[1:]}"
