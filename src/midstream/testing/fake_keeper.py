"""A keeper in memory with the interface of `KeeperLink`. No process is started; the test decides what ends, and when.

For tests of the agent and for a team's own. `FakeKeeper.link()` is what the agent gets instead of a `KeeperLink`; it is
one, with the socket exchanged for a call, so it has exactly its methods. `tests/contract/test_keeper.py` holds this and
the real keeper to the same promises. Descriptors are real: a pipe, a socket pair, a loopback listener.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from midstream import __version__
from midstream.agent.keeper_link import KeeperLink, KeeperLost, KeeperRefused, T
from midstream.core.messages import (
    PROTOCOL,
    READING,
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
    Notice,
    Notices,
    NoticesOf,
    NoticesRequest,
    NotifyRequest,
    Opened,
    OrdersRequest,
    Page,
    ProcessEntry,
    ProcessState,
    PullRequest,
    Refusal,
    ShutdownRequest,
    Signalled,
    SignalRequest,
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
from midstream.core.names import parse_key
from midstream.linux import fds, listen

_LIVE = (ProcessState.STARTING, ProcessState.RUNNING)
_SOURCES = ("listener", "channel", "notify")
_ENDING = frozenset({signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})


@dataclass(frozen=True, slots=True)
class ExecFailure:
    """What a program may do instead of running: fail at a stage before the exec."""

    stage: str = "exec"
    error: str = "ENOENT: No such file or directory"


@dataclass(slots=True)
class _HeldThing:
    """`fd` is what is handed out; `other` the far end (of a channel's pipe, of a notify socket's pair)."""

    fd: int
    address: str
    spec_address: str = ""
    other: int = -1
    spool: bytes = b""
    notices: dict[str, Notice] = field(default_factory=dict)


class FakeLink(KeeperLink):
    """A KeeperLink whose requests are answered by a FakeKeeper in the same process."""

    def __init__(
        self,
        keeper: FakeKeeper,
        on_changed: Callable[[int], None] = lambda seq: None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(on_changed, on_lost)
        self._keeper = keeper
        self._connected = False

    @property
    def is_connected(self) -> bool:
        return self._connected

    async def connect(self, path: str = "") -> Hello:
        """Attach. Raises ConnectionRefusedError when the keeper is gone."""
        if self._keeper.is_gone:
            raise ConnectionRefusedError("the fake keeper is gone")
        self._connected = True
        self._keeper.links.append(self)
        self.hello = await self._ask(Hello, "hello", HelloRequest(PROTOCOL, __version__))
        return self.hello

    def close(self) -> None:
        if self._connected:
            self._connected = False
            self._keeper.hang_up(self)

    def lost(self) -> None:
        """The keeper is gone: what the socket's end of file does."""
        if self._connected:
            self._connected = False
            self._keeper.hang_up(self)
            self.on_lost()

    async def _ask_with_fds(
        self, reply: type[T], op: str, request: Any, passed: Sequence[int] = (), encoded: str = ""
    ) -> tuple[T, list[int]]:
        await asyncio.sleep(0)  # as with the socket, others run in between
        if not self._connected:
            raise KeeperLost("the keeper is not connected")
        value, sent = self._keeper.answer(self, op, request, list(passed))
        assert isinstance(value, reply)
        return value, [os.dup(fd) for fd in sent]


class FakeKeeper:
    """The world of one keeper. Its clock stands still until `advance`; processes run until `end` or a signal."""

    def __init__(self) -> None:
        self.links: list[FakeLink] = []
        self.attached: FakeLink | None = None
        self.epoch = 0
        self.seq = 0
        self.now_s = 1000.0
        self.is_gone = False
        self.stopping = False
        self.instance = 1
        self.entries: dict[str, ProcessEntry] = {}
        self.specs: dict[str, SpawnSpec] = {}
        self.orders: dict[str, StandingOrder] = {}
        self.held: dict[tuple[Held, str], _HeldThing] = {}
        self.agent_argv: tuple[str, ...] = ()
        self.signals: list[tuple[str, int]] = []  # every signal that reached a process
        self.programs: dict[str, int | ExecFailure] = {"true": 0, "false": 1}  # by argv[0]: what it does but run
        self._ordered_at_s: dict[str, float] = {}
        self._at_once: set[str] = set()  # slots whose order may be carried out with an agent attached, once
        self._told = False
        self._next_pid = 10_000
        self._op: dict[str, Callable[[Any, list[int]], tuple[Any, list[int]]]] = {
            "ping": lambda _request, _passed: (Done(), []),
            "pull": self._pull,
            "spawn": self._spawn,
            "signal": self._signal,
            "kill_tree": self._kill_tree,
            "ack": self._ack,
            "listen": self._listen,
            "unlisten": lambda request, _passed: self._release(Held.LISTENER, request),
            "take": self._take,
            "give": self._give,
            "inventory": self._inventory,
            "channel": self._channel,
            "unchannel": lambda request, _passed: self._release(Held.CHANNEL, request),
            "notify": self._notify,
            "unnotify": lambda request, _passed: self._release(Held.NOTIFY, request),
            "slots": self._slots,
            "notices": self._notices,
            "spool": self._spool,
            "orders": self._orders,
            "agent_command": self._agent_command,
            "upgrade": self._upgrade,
            "shutdown": self._shutdown,
        }

    # What the test does

    def link(
        self, on_changed: Callable[[int], None] = lambda seq: None, on_lost: Callable[[], None] = lambda: None
    ) -> FakeLink:
        """A link that is not connected yet."""
        return FakeLink(self, on_changed, on_lost)

    def end(self, key: str, *, code: int | None = None, signum: int | None = None) -> None:
        """The process ends: with an exit code, by a signal, or (neither) nobody saw how."""
        entry = self.entries[key]
        if entry.state not in _LIVE:
            raise AssertionError(f"{key} has ended already: {entry.state.value}")
        state = ProcessState.EXITED if code is not None or signum is not None else ProcessState.LOST
        self._change(replace(entry, state=state, code=code, signum=signum, ended_s=self.now_s))
        self._answer_at_once(entry)
        self._carry_out_orders()

    def advance(self, seconds: float) -> None:
        """Let time pass; standing orders that are due are carried out."""
        self.now_s += seconds
        self._carry_out_orders()

    def write(self, channel: str, data: bytes) -> None:
        """A service writes to its output: into the FIFO, or the spool while no agent is attached."""
        thing = self.held[Held.CHANNEL, channel]
        if self.attached is None:
            thing.spool += data
        else:
            os.write(thing.other, data)

    def say(self, notify: str, text: str, pid: int = 0, uid: int = 0) -> None:
        """A service sends a notification: to the agent's descriptor, or kept while no agent is attached."""
        thing = self.held[Held.NOTIFY, notify]
        if self.attached is not None:
            os.write(thing.other, text.encode())
            return
        for line in text.splitlines():
            variable, _, value = line.partition("=")
            thing.notices[variable] = Notice(variable, value, pid, uid, self.now_s)

    def vanish(self) -> None:
        """kill -9: every link is lost, nobody can connect. Processes go on."""
        self.is_gone = True
        for link in list(self.links):
            link.lost()

    def come_back(self) -> None:
        """The next keeper: it has adopted what runs and kept what had ended; it lacks listeners and notify sockets."""
        self.is_gone = False
        self.instance += 1
        for place in [place for place in self.held if place[0] in (Held.LISTENER, Held.NOTIFY)]:
            self._drop(place)

    def close(self) -> None:
        """Give every descriptor back."""
        for place in list(self.held):
            self._drop(place)

    # The door

    def hang_up(self, link: FakeLink) -> None:
        self.links.remove(link)
        if link is self.attached:
            self.attached = None
            self._carry_out_orders()

    def answer(self, link: FakeLink, op: str, request: Any, passed: list[int]) -> tuple[Any, list[int]]:
        """What the keeper says to one request. Raises KeeperRefused."""
        if op == "hello":
            return self._hello(link, request), []
        if op not in READING and link is not self.attached:
            raise KeeperRefused(Refusal.STALE_EPOCH, f"{op}: epoch {link.epoch} is not the one in force ({self.epoch})")
        if self.stopping and op in ("spawn", "listen", "orders", "upgrade"):
            raise KeeperRefused(Refusal.STOPPING, f"{op}: the keeper is stopping everything")
        return self._op[op](request, passed)

    def _hello(self, link: FakeLink, request: HelloRequest) -> Hello:
        if request.protocol != PROTOCOL:
            raise KeeperRefused(Refusal.PROTOCOL, f"this keeper speaks protocol {PROTOCOL}")
        self.epoch += 1
        self.attached = link
        self._told = False
        return Hello(
            protocol=PROTOCOL,
            version=__version__,
            epoch=self.epoch,
            pid=9999,
            boot_id="fake-boot",
            seq=self.seq,
            uid=os.geteuid(),
            instance=f"fake.{self.instance}",
            keeper_id="fake",
        )

    def _change(self, entry: ProcessEntry) -> None:
        self.seq += 1
        self.entries.pop(entry.key, None)
        self.entries[entry.key] = replace(entry, seq=self.seq)
        if self.attached is not None and not self._told:
            self._told = True
            asyncio.get_running_loop().call_soon(self._tell, self.attached, self.seq)

    def _tell(self, link: FakeLink, seq: int) -> None:
        if link is self.attached:
            link.on_changed(seq)

    # Processes

    def _pull(self, request: PullRequest, _passed: list[int]) -> tuple[Page, list[int]]:
        self._told = False
        found = [entry for entry in self.entries.values() if entry.seq > request.after]
        return Page(tuple(found[: request.limit]), self.seq, more=len(found) > request.limit), []

    def _spawn(self, request: SpawnRequest, passed: list[int]) -> tuple[Spawned, list[int]]:
        return Spawned(tuple(self._start(spec, len(passed), "agent") for spec in request.specs)), []

    def _start(self, spec: SpawnSpec, passed: int, by: str) -> SpawnResult:
        known = self.entries.get(spec.key)
        if known is not None:
            return SpawnResult(spec.key, ok=known.state is not ProcessState.FAILED, known=True, pid=known.pid)
        wrong = self._mistake_in(spec, passed)
        if wrong:
            return SpawnResult(spec.key, ok=False, error=wrong)
        self._next_pid += 1
        self.specs[spec.key] = spec
        entry = ProcessEntry(
            spec.key, spec.kind, ProcessState.STARTING, 0, self._next_pid, start_ticks=1, by=by, started_s=self.now_s
        )
        self._change(entry)
        asyncio.get_running_loop().call_soon(self._run, spec.key)
        return SpawnResult(spec.key, pid=entry.pid)

    def _run(self, key: str) -> None:
        """A moment later the child has got to its program, or not."""
        entry = self.entries.get(key)
        if entry is None or entry.state is not ProcessState.STARTING:
            return
        does = self.programs.get(self.specs[key].argv[0])
        if isinstance(does, ExecFailure):
            self._change(
                replace(
                    entry,
                    state=ProcessState.FAILED,
                    error=does.error,
                    error_stage=does.stage,
                    ended_s=self.now_s,
                )
            )
            self._carry_out_orders()
            return
        self._change(replace(entry, state=ProcessState.RUNNING))
        if does is not None:
            self.end(key, code=does)

    def _mistake_in(self, spec: SpawnSpec, passed: int) -> str:
        try:
            parse_key(spec.key)
        except ValueError as error:
            return str(error)
        if not spec.argv or not spec.cwd.startswith("/") or (spec.uid is None) != (spec.gid is None):
            return f"{spec.key}: argv is empty, cwd is relative, or uid and gid do not go together"
        for placement in spec.fds:
            word, _, name = placement.source.partition(":")
            if word == "passed" and name.isdecimal() and int(name) < passed:
                continue
            if placement.source != "null" and not (word in _SOURCES and (Held(word), name) in self.held):
                return f"{spec.key}: {placement.source} is not held"
        if spec.notify is not None and (Held.NOTIFY, spec.notify) not in self.held:
            return f"{spec.key}: no notify socket {spec.notify!r} is held"
        return ""

    def _known(self, key: str) -> ProcessEntry:
        if key not in self.entries:
            raise KeeperRefused(Refusal.UNKNOWN, f"no process {key} is known")
        return self.entries[key]

    def _signal(self, request: SignalRequest, _passed: list[int]) -> tuple[Signalled, list[int]]:
        entry = self._known(request.key)
        if request.signum and request.signum not in signal.valid_signals():
            raise KeeperRefused(Refusal.BAD_REQUEST, f"{request.signum} is not a signal")
        if entry.state not in _LIVE:
            return Signalled(0), []
        if request.signum:
            self.signals.append((request.key, request.signum))
        if request.signum in _ENDING:
            self.end(request.key, signum=request.signum)
        return Signalled(1), []

    def _kill_tree(self, request: KillTreeRequest, _passed: list[int]) -> tuple[TreeKilled, list[int]]:
        live = self._known(request.key).state in _LIVE
        if live:
            self.signals.append((request.key, signal.SIGKILL))
            self.end(request.key, signum=signal.SIGKILL)
        return TreeKilled(int(live)), []

    def _ack(self, request: AckRequest, _passed: list[int]) -> tuple[Acked, list[int]]:
        known = [self.entries[key] for key in request.keys if key in self.entries]
        for entry in known:
            if entry.state not in _LIVE:
                del self.entries[entry.key]
        return Acked(tuple(entry.key for entry in known if entry.state in _LIVE)), []

    # What is held

    def _hold(self, kind: Held, name: str, thing: _HeldThing) -> _HeldThing:
        self.held[kind, name] = thing
        return thing

    def _drop(self, place: tuple[Held, str]) -> None:
        thing = self.held.pop(place, None)
        if thing is not None:
            fds.close_all([fd for fd in (thing.fd, thing.other) if fd >= 0])

    def _release(self, kind: Held, request: NameRequest) -> tuple[Done, list[int]]:
        self._drop((kind, request.name))
        return Done(), []

    def _listen(self, request: ListenRequest, _passed: list[int]) -> tuple[Listening, list[int]]:
        spec = request.listener
        thing = self.held.get((Held.LISTENER, spec.name))
        if thing is not None and thing.spec_address != spec.address:
            raise KeeperRefused(Refusal.TAKEN, f"listener {spec.name} is held for {thing.spec_address}")
        if thing is None:
            thing = self._hold(Held.LISTENER, spec.name, self._bound(spec.address, spec.backlog))
        return Listening(thing.address, fds.socket_inode(thing.fd)), [thing.fd]

    def _bound(self, address: str, backlog: int) -> _HeldThing:
        """TCP is bound for real (tests use port 0); a unix path is not: the socket has an abstract name."""
        if not address.startswith("tcp://"):
            if address != "private":
                self._parsed(address)
            sock = socket.socket(socket.AF_UNIX)
            sock.bind("")
            sock.listen(backlog)
            return _HeldThing(sock.detach(), address, address)
        try:
            sock = listen.bind_listener(self._parsed(address), backlog)
        except OSError as error:
            raise KeeperRefused(Refusal.OS, f"cannot listen on {address}: {error}", errno="EADDRINUSE") from None
        bound = listen.text_of(sock)
        return _HeldThing(sock.detach(), bound, address)

    @staticmethod
    def _parsed(address: str) -> listen.Address:
        try:
            return listen.parse(address)
        except ValueError as error:
            raise KeeperRefused(Refusal.BAD_REQUEST, str(error)) from None

    def _take(self, request: TakeRequest, _passed: list[int]) -> tuple[Taken, list[int]]:
        names = tuple(name for name in request.names if (request.kind, name) in self.held)
        missing = tuple(name for name in request.names if name not in names)
        return Taken(names, missing), [self.held[request.kind, name].fd for name in names]

    def _give(self, request: GiveRequest, passed: list[int]) -> tuple[Given, list[int]]:
        if len(passed) != 1:
            raise KeeperRefused(Refusal.BAD_REQUEST, "give: exactly one descriptor comes along")
        if (request.kind, request.name) in self.held:
            return Given(known=True), []
        address = request.listener.address if request.listener is not None else request.name
        self._hold(request.kind, request.name, _HeldThing(os.dup(passed[0]), address, address))
        return Given(), []

    def _inventory(self, request: InventoryRequest, _passed: list[int]) -> tuple[Inventory, list[int]]:
        items = [
            HeldItem(kind, name, thing.address, spooled=len(thing.spool) or int(bool(thing.notices)))
            for (kind, name), thing in self.held.items()
        ]
        items += [HeldItem(Held.ORDER, slot) for slot in self.orders]
        items.sort(key=lambda item: (item.kind.value, item.name))
        return Inventory(tuple(item for item in items if f"{item.kind.value} {item.name}" > request.after)), []

    def _channel(self, request: ChannelRequest, _passed: list[int]) -> tuple[Opened, list[int]]:
        thing = self.held.get((Held.CHANNEL, request.name))
        if thing is None:
            read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            thing = _HeldThing(read_fd, f"/fake/out/{request.name}", other=write_fd)
            self._hold(Held.CHANNEL, request.name, thing)
        return Opened(thing.address), [thing.fd]

    def _notify(self, request: NotifyRequest, _passed: list[int]) -> tuple[Opened, list[int]]:
        thing = self.held.get((Held.NOTIFY, request.name))
        if thing is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            ours.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            thing = _HeldThing(ours.detach(), f"/fake/n/{request.name}", other=theirs.detach())
            self._hold(Held.NOTIFY, request.name, thing)
        return Opened(thing.address), [thing.fd]

    def _slots(self, request: SlotsRequest, passed: list[int]) -> tuple[Done, list[int]]:
        found = []
        for slot in request.slots:
            found += self._channel(ChannelRequest(slot.name, slot.uid, slot.gid), passed)[1]
            found += self._notify(NotifyRequest(slot.name, slot.uid, slot.gid), passed)[1]
            if slot.ready:
                found += self._channel(ChannelRequest(f"{slot.name}/ready", slot.uid, slot.gid), passed)[1]
        return Done(), found

    def _notices(self, request: NoticesRequest, _passed: list[int]) -> tuple[Notices, list[int]]:
        for name in request.clear:
            if (Held.NOTIFY, name) in self.held:
                self.held[Held.NOTIFY, name].notices = {}
        items = [
            NoticesOf(name, tuple(thing.notices.values()))
            for (kind, name), thing in self.held.items()
            if kind is Held.NOTIFY and thing.notices
        ]
        return Notices(tuple(items)), []

    def _spool(self, request: SpoolRequest, _passed: list[int]) -> tuple[Spool, list[int]]:
        thing = self.held.get((Held.CHANNEL, request.name))
        if thing is None:
            raise KeeperRefused(Refusal.UNKNOWN, f"no channel {request.name} is held")
        if request.clear:
            thing.spool = b""
        if not thing.spool:
            return Spool(0), []
        memfd = fds.sealed_memfd("spool", thing.spool)
        asyncio.get_running_loop().call_soon(os.close, memfd)
        return Spool(len(thing.spool)), [memfd]

    # The keeper itself

    def _orders(self, request: OrdersRequest, _passed: list[int]) -> tuple[Done, list[int]]:
        for order in request.set:
            slot = str(parse_key(order.spec.key).slot_name)
            if slot != order.slot or any(item.source.startswith("passed:") for item in order.spec.fds):
                raise KeeperRefused(
                    Refusal.BAD_REQUEST, f"order for {order.slot}: not one that can be carried out alone"
                )
        for slot in request.revoke:
            self.orders.pop(slot, None)
        for order in request.set:
            self.orders[order.slot] = order
            (self._at_once.add if order.at_once else self._at_once.discard)(order.slot)
        return Done(), []

    def _answer_at_once(self, entry: ProcessEntry) -> None:
        slot = str(parse_key(entry.key).slot_name)
        order = self.orders.get(slot)
        same_place = order is not None and order.spec.key.rpartition("/")[0] == entry.key.rpartition("/")[0]
        ran_s = self.now_s - entry.started_s
        if self.attached is not None and not self.stopping and slot in self._at_once and same_place and ran_s > 1.0:
            self._at_once.discard(slot)
            self._start_next(slot)

    def _carry_out_orders(self) -> None:
        """While no agent is attached: start what is dead, at most once a second for each slot."""
        if self.attached is not None or self.stopping:
            return
        for slot, order in list(self.orders.items()):
            place = order.spec.key.rpartition("/")[0]
            live = any(entry.state in _LIVE for key, entry in self.entries.items() if key.rpartition("/")[0] == place)
            if not live and self.now_s >= self._ordered_at_s.get(slot, float("-inf")) + 1.0:
                self._start_next(slot)

    def _start_next(self, slot: str) -> None:
        order = self.orders[slot]
        place = order.spec.key.rpartition("/")[0]
        known = [parse_key(key).attempt for key in self.entries if key.rpartition("/")[0] == place]
        attempt = max([parse_key(order.spec.key).attempt, *known]) + 1
        self._ordered_at_s[slot] = self.now_s
        self._start(replace(order.spec, key=f"{place}/{attempt}"), 0, "order")

    def _agent_command(self, request: AgentCommandRequest, _passed: list[int]) -> tuple[Done, list[int]]:
        self.agent_argv = request.argv
        return Done(), []

    def _upgrade(self, request: UpgradeRequest, _passed: list[int]) -> tuple[Upgraded, list[int]]:
        if not request.path.startswith("/"):
            raise KeeperRefused(Refusal.IMAGE, f"{request.path}: not an absolute path of a file")
        return Upgraded(__version__), []

    def _shutdown(self, _request: ShutdownRequest, _passed: list[int]) -> tuple[Done, list[int]]:
        self.stopping = True
        self.orders.clear()
        for link in self.links:
            link.is_stopping = True
        for key, entry in list(self.entries.items()):
            if entry.state in _LIVE:
                self.end(key, signum=signal.SIGTERM)
        return Done(), []
