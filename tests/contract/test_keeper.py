"""What the agent may rely on, of the keeper in memory and of the real one: the same stories told to both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from midstream.agent.keeper_link import KeeperCommand, KeeperLink, KeeperLost, KeeperRefused, Supply, start_keeper
from midstream.core.messages import (
    REPLIES,
    REQUESTS,
    SLOTS_MAX,
    FdPlacement,
    Held,
    ListenerSpec,
    ProcessEntry,
    ProcessKind,
    ProcessState,
    Refusal,
    SlotOpening,
    SpawnSpec,
    StandingOrder,
)
from midstream.testing.fake_keeper import ExecFailure, FakeKeeper
from midstream.testing.keeper_host import PATIENCE_S, KeeperHost, spec

WEB = "app/web/1/0/1"


class World:
    """One keeper and what the test may do to the world around it. `link` is an attached agent's."""

    link: KeeperLink

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.lost = asyncio.Event()

    async def attach(self) -> KeeperLink:
        """A new agent: the newest hello wins."""
        raise NotImplementedError

    def waiting(self, key: str, **more: object) -> SpawnSpec:
        """A process that runs until `end`."""
        raise NotImplementedError

    async def end(self, key: str, code: int) -> None:
        """The process exits with this code."""
        raise NotImplementedError

    async def write(self, channel: str, data: bytes) -> None:
        raise NotImplementedError

    async def say(self, notify: str, text: str) -> None:
        raise NotImplementedError

    async def wait(self, seconds: float) -> None:
        """Let that much of the keeper's time pass."""
        raise NotImplementedError

    async def vanish(self) -> None:
        """kill -9 the keeper."""
        raise NotImplementedError

    async def come_back(self) -> None:
        """Start the next one."""
        raise NotImplementedError

    def detach(self) -> None:
        """The agent is gone, the keeper is alone."""
        self.link.close()

    async def until(self, claim: Callable[[dict[str, ProcessEntry]], bool]) -> dict[str, ProcessEntry]:
        """All entries, once the claim holds; woken by `on_changed` only."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                self.changed.clear()
                entries, _ = await self.link.pull_all()
                found = {entry.key: entry for entry in entries}
                if claim(found):
                    return found
                await self.changed.wait()

    async def until_state(self, key: str, *states: ProcessState) -> ProcessEntry:
        return (await self.until(lambda found: key in found and found[key].state in states))[key]

    async def running(self, *keys: str, **more: object) -> None:
        """Start processes that run until they are ended."""
        results = await self.link.spawn([self.waiting(key, **more) for key in keys])
        assert all(result.ok and not result.known for result in results)
        for key in keys:
            await self.until_state(key, ProcessState.RUNNING)


class FakeWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.keeper = FakeKeeper()
        self.keeper.programs["no-such-program"] = ExecFailure()

    async def attach(self) -> KeeperLink:
        self.link = self.keeper.link(lambda _seq: self.changed.set(), self.lost.set)
        await self.link.connect()
        return self.link

    def waiting(self, key: str, **more: object) -> SpawnSpec:
        return spec(key, "sleep", "1000", **more)

    async def end(self, key: str, code: int) -> None:
        self.keeper.end(key, code=code)

    async def write(self, channel: str, data: bytes) -> None:
        self.keeper.write(channel, data)

    async def say(self, notify: str, text: str) -> None:
        self.keeper.say(notify, text, os.getpid(), os.geteuid())

    async def wait(self, seconds: float) -> None:
        self.keeper.advance(seconds)
        await asyncio.sleep(0)

    async def vanish(self) -> None:
        self.keeper.vanish()

    async def come_back(self) -> None:
        self.keeper.come_back()


class RealWorld(World):
    def __init__(self, host: KeeperHost) -> None:
        super().__init__()
        self.host = host
        self.command = KeeperCommand(host.image, host.state, host.runtime, ())
        self.pid = 0

    async def attach(self) -> KeeperLink:
        self.link = KeeperLink(lambda _seq: self.changed.set(), self.lost.set)
        self.pid = (await self.link.connect(self.host.socket_path)).pid
        return self.link

    def waiting(self, key: str, **more: object) -> SpawnSpec:
        """It waits for a writer on a FIFO of its own, which the end of the test takes away with the folder."""
        fifo = self._fifo(key)
        if not os.path.exists(fifo):
            os.mkfifo(fifo)
        return spec(key, "sh", "-c", 'read x < "$0"; exit 7', fifo, **more)

    def _fifo(self, key: str) -> str:
        return f"{self.host.folder}/{key.rpartition('/')[0].replace('/', ':')}"

    async def end(self, key: str, code: int) -> None:
        assert code == 7
        async with asyncio.timeout(PATIENCE_S):
            os.close(await asyncio.to_thread(os.open, self._fifo(key), os.O_WRONLY))  # opens when it has come to read

    async def write(self, channel: str, data: bytes) -> None:
        Path(self.host.runtime, "out", channel.replace("/", ":")).write_bytes(data)
        await self._read_up()

    async def say(self, notify: str, text: str) -> None:
        reader = self.host.client(hello=False)
        (path,) = [item.address for item in self.items(reader) if item.kind is Held.NOTIFY and item.name == notify]
        reader.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(text.encode(), path)
        await self._read_up()

    def items(self, reader: object) -> tuple[object, ...]:
        from midstream.core.messages import InventoryRequest

        return reader.do("inventory", InventoryRequest()).items

    async def _read_up(self) -> None:
        """The keeper reads what is there when its turn comes: a later request is answered in a later turn."""
        reader = self.host.client(hello=False)
        for _ in range(3):
            reader.entries()
        reader.close()

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def vanish(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    async def come_back(self) -> None:
        await start_keeper(self.command)


@contextlib.asynccontextmanager
async def world_of(kind: str) -> AsyncIterator[World]:
    world: World
    if kind == "fake":
        world = FakeWorld()
        try:
            await world.attach()
            yield world
        finally:
            world.link.close()
            world.keeper.close()
        return
    with KeeperHost() as host:
        world = RealWorld(host)
        await start_keeper(world.command)
        try:
            await world.attach()
            yield world
        finally:
            world.link.close()


@pytest.fixture(params=["fake", "real"])
def play(request: pytest.FixtureRequest) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    """Run a story in a world of each kind."""

    def run(story: Callable[[World], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with world_of(request.param) as world:
                await story(world)

        asyncio.run(whole())

    return run


def test_every_operation_has_a_request_a_reply_and_an_answer_in_both():
    from midstream.keeper.operations import _OPERATIONS

    assert set(REQUESTS) == set(REPLIES) == set(_OPERATIONS)
    assert set(FakeKeeper()._op) | {"hello"} == set(REQUESTS)


def test_a_process_runs_and_ends_and_each_change_is_told(play):
    async def story(world: World) -> None:
        await world.running(WEB)
        entry = await world.until_state(WEB, ProcessState.RUNNING)
        assert entry.pid > 0 and entry.by == "agent" and entry.kind is ProcessKind.INSTANCE
        await world.end(WEB, 7)
        ended = await world.until_state(WEB, ProcessState.EXITED)
        assert (ended.code, ended.signum) == (7, None)
        assert ended.seq > entry.seq and ended.ended_s >= entry.started_s

    play(story)


def test_a_key_is_spawned_once(play):
    async def story(world: World) -> None:
        await world.running(WEB)
        (again,) = await world.link.spawn([world.waiting(WEB)])
        assert again.ok and again.known
        entries, _ = await world.link.pull_all()
        assert len(entries) == 1 and entries[0].pid == again.pid

    play(story)


def test_an_end_is_kept_until_it_is_acknowledged_and_what_runs_is_kept(play):
    async def story(world: World) -> None:
        await world.running(WEB, "app/web/1/1/1")
        await world.end(WEB, 7)
        await world.until_state(WEB, ProcessState.EXITED)
        assert await world.link.ack([WEB, "app/web/1/1/1", "app/never/1/1/1"]) == ("app/web/1/1/1",)
        entries, _ = await world.link.pull_all()
        assert [entry.key for entry in entries] == ["app/web/1/1/1"]
        (again,) = await world.link.spawn([world.waiting(WEB)])
        assert not again.known, "what was acknowledged is forgotten"

    play(story)


def test_only_changes_are_pulled_in_order(play):
    async def story(world: World) -> None:
        keys = [f"app/web/1/{slot}/1" for slot in range(5)]
        await world.running(*keys)
        page = await world.link.pull(0, limit=2)
        assert len(page.entries) == 2 and page.more
        entries, seq = await world.link.pull_all()
        assert [entry.seq for entry in entries] == sorted(entry.seq for entry in entries)
        assert (await world.link.pull(seq)).entries == ()
        await world.end(keys[0], 7)
        await world.until_state(keys[0], ProcessState.EXITED)
        assert [entry.key for entry in (await world.link.pull(seq)).entries] == [keys[0]]

    play(story)


def test_a_program_that_is_not_there_fails_with_its_stage(play):
    async def story(world: World) -> None:
        (result,) = await world.link.spawn([spec(WEB, "no-such-program")])
        assert result.ok, "the fork succeeded; what came of it is in the table"
        entry = await world.until_state(WEB, ProcessState.FAILED)
        assert entry.error_stage == "exec" and entry.error.startswith("ENOENT")

    play(story)


@pytest.mark.parametrize(
    "wrong",
    [
        spec("nonsense", "true"),
        spec(WEB),
        spec(WEB, "true", cwd="relative"),
        spec(WEB, "true", uid=1),
        spec(WEB, "true", fds=[FdPlacement(3, "listener:none")]),
        spec(WEB, "true", fds=[FdPlacement(3, "passed:0")]),
        spec(WEB, "true", fds=[FdPlacement(3, "order:x")]),
        spec(WEB, "true", notify="none"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_and_starts_nothing(play, wrong):
    async def story(world: World) -> None:
        good, bad = await world.link.spawn([spec("app/web/1/9/1", "true"), wrong])
        assert good.ok and not bad.ok and bad.error
        entries, _ = await world.link.pull_all()
        assert [entry.key for entry in entries] == ["app/web/1/9/1"]

    play(story)


def test_signals_end_processes_and_reach_only_what_lives(play):
    async def story(world: World) -> None:
        await world.running(WEB, "app/web/1/1/1", "app/web/1/2/1")
        assert await world.link.signal(WEB, 0) == 1
        assert await world.link.signal(WEB, signal.SIGKILL) == 1
        assert (await world.until_state(WEB, ProcessState.EXITED)).signum == signal.SIGKILL
        assert await world.link.signal(WEB, signal.SIGKILL) == 0
        assert await world.link.signal("app/web/1/1/1", signal.SIGKILL, tree=True) >= 1
        assert (await world.link.kill_tree("app/web/1/2/1")).killed >= 1
        await world.until_state("app/web/1/1/1", ProcessState.EXITED)
        assert (await world.until_state("app/web/1/2/1", ProcessState.EXITED)).signum == signal.SIGKILL
        with pytest.raises(KeeperRefused) as refused:
            await world.link.signal("app/never/1/1/1", signal.SIGTERM)
        assert refused.value.refusal is Refusal.UNKNOWN
        with pytest.raises(KeeperRefused) as refused:
            await world.link.signal("app/web/1/2/1", 999)
        assert refused.value.refusal is Refusal.BAD_REQUEST

    play(story)


def test_the_newest_agent_wins_and_the_older_is_refused(play):
    async def story(world: World) -> None:
        older = world.link
        newer = await world.attach()
        assert newer.epoch > older.epoch
        for asked in (
            older.spawn([world.waiting(WEB)]),
            older.channel("log"),
            older.ack([WEB]),
            older.orders(revoke=["a/b/0"]),
        ):
            with pytest.raises(KeeperRefused) as refused:
                await asked
            assert refused.value.refusal is Refusal.STALE_EPOCH
        entries, _ = await older.pull_all()
        assert entries == (), "reading is for everybody"
        older.close()
        await world.running(WEB)

    play(story)


def test_a_listener_is_one_socket_however_often_it_is_asked_for(play):
    async def story(world: World) -> None:
        wanted = ListenerSpec("web", "tcp://127.0.0.1:0")
        first, second = await world.link.listen(wanted), await world.link.listen(wanted)
        assert first.inode == second.inode and first.address == second.address
        assert first.fd != second.fd, "each its own descriptor"
        with pytest.raises(KeeperRefused) as refused:
            await world.link.listen(ListenerSpec("web", "tcp://127.0.0.1:1"))
        assert refused.value.refusal is Refusal.TAKEN
        with pytest.raises(KeeperRefused) as refused:
            await world.link.listen(ListenerSpec("other", "http://x"))
        assert refused.value.refusal is Refusal.BAD_REQUEST
        host, _, port = first.address.removeprefix("tcp://").rpartition(":")
        socket.create_connection((host, int(port)), PATIENCE_S).close()
        taken = await world.link.take(Held.LISTENER, ["web", "nobody"])
        assert list(taken) == ["web"] and os.fstat(taken["web"]).st_ino == first.inode
        await world.running(WEB, fds=[FdPlacement(3, "listener:web")])
        await world.link.unlisten("web")
        await world.link.unlisten("web")
        assert await world.link.take(Held.LISTENER, ["web"]) == {}
        for fd in (first.fd, second.fd, taken["web"]):
            os.close(fd)

    play(story)


def test_an_address_in_use_is_refused_with_its_errno(play):
    async def story(world: World) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(KeeperRefused) as refused:
            await world.link.listen(ListenerSpec("web", f"tcp://127.0.0.1:{other.getsockname()[1]}"))
        assert (refused.value.refusal, refused.value.errno) == (Refusal.OS, "EADDRINUSE")

    play(story)


def test_many_slots_are_opened_in_one_message(play):
    """In the order asked, readiness only where asked; what is open already is given again."""

    async def story(world: World) -> None:
        again = await world.link.channel("app/web/7")
        names = [f"app/web/{slot}" for slot in range(SLOTS_MAX + 2)]
        opened = await world.link.slots([SlotOpening(name, ready=name.endswith("7")) for name in names])
        try:
            assert [len(found) for found in opened] == [3 if name.endswith("7") else 2 for name in names]
            for name, (output, notify, *ready) in list(zip(names, opened, strict=True))[6:9]:
                await world.write(name, b"hello")
                assert os.read(output, 100) == b"hello"
                await world.say(name, "READY=1")
                assert b"READY=1" in os.read(notify, 100)
                for fd in ready:
                    await world.write(f"{name}/ready", b"\n")
                    assert os.read(fd, 100) == b"\n"
            held = {(item.kind, item.name) for item in await world.link.inventory()}
            assert len(held) == 2 * len(names) + sum(name.endswith("7") for name in names)
        finally:
            for fd in (again.fd, *(fd for found in opened for fd in found)):
                os.close(fd)

    play(story)


def test_a_channel_and_a_notify_socket_are_opened_once_and_listed(play):
    async def story(world: World) -> None:
        log = await world.link.channel("app/web/0")
        same = await world.link.channel("app/web/0")
        assert same.path == log.path
        notify = await world.link.notify("app/web/0")
        await world.link.listen(ListenerSpec("web", "tcp://127.0.0.1:0"))
        await world.link.orders(set=[StandingOrder("app/web/0", world.waiting(WEB))])
        listed = [(item.kind, item.name, item.held) for item in await world.link.inventory()]
        assert listed == [
            (Held.CHANNEL, "app/web/0", True),
            (Held.LISTENER, "web", True),
            (Held.NOTIFY, "app/web/0", True),
            (Held.ORDER, "app/web/0", True),
        ]
        await world.write("app/web/0", b"said\n")
        assert os.read(log.fd, 100) == b"said\n"
        await world.say("app/web/0", "READY=1")
        assert os.read(notify.fd, 100) == b"READY=1"
        with pytest.raises(BlockingIOError):
            os.read(notify.fd, 100)
        await world.link.unchannel("app/web/0")
        await world.link.unnotify("app/web/0")
        assert [item.kind for item in await world.link.inventory()] == [Held.LISTENER, Held.ORDER]

    play(story)


def test_what_is_said_while_there_is_no_agent_waits_for_the_next(play):
    async def story(world: World) -> None:
        log = await world.link.channel("log")
        notify = await world.link.notify("app/web/0")
        world.detach()
        await world.write("log", b"while you were out\n")
        await world.say("app/web/0", "READY=1\nSTATUS=one")
        await world.say("app/web/0", "STATUS=two")
        link = await world.attach()
        spooled = await link.spool("log")
        assert (spooled.data, spooled.dropped_bytes) == (b"while you were out\n", 0)
        assert (await link.spool("log")).data, "it stays until it is cleared"
        await link.clear_spool("log")
        assert (await link.spool("log")).data == b""
        (item,) = await link.notices()
        assert item.name == "app/web/0"
        assert {notice.variable: notice.value for notice in item.notices} == {"READY": "1", "STATUS": "two"}
        assert {notice.pid for notice in item.notices} == {os.getpid()}
        assert await link.clear_notices(["app/web/0"]) == ()
        with pytest.raises(KeeperRefused):
            await link.spool("nobody")
        os.close(log.fd)
        os.close(notify.fd)

    play(story)


def test_a_standing_order_is_carried_out_only_without_an_agent(play):
    async def story(world: World) -> None:
        await world.running(WEB, "app/web/1/1/1")
        orders = [
            StandingOrder("app/web/0", world.waiting(WEB)),
            StandingOrder("app/web/1", world.waiting("app/web/1/1/1")),
        ]
        await world.link.orders(set=orders)
        await world.link.orders(revoke=["app/web/1"])
        world.detach()
        await world.end(WEB, 7)
        await world.end("app/web/1/1/1", 7)
        await world.wait(1.2)
        await world.attach()
        found = await world.until(lambda entries: entries.get("app/web/1/0/2") is not None)
        assert found["app/web/1/0/2"].by == "order"
        assert "app/web/1/1/2" not in found
        await world.until_state("app/web/1/0/2", ProcessState.RUNNING)
        await world.end("app/web/1/0/2", 7)
        await world.until_state("app/web/1/0/2", ProcessState.EXITED)
        await world.wait(1.2)
        entries, _ = await world.link.pull_all()
        assert {entry.key for entry in entries} == {WEB, "app/web/1/1/1", "app/web/1/0/2"}

    play(story)


def test_the_first_crash_is_answered_at_once_where_the_order_says_so_and_the_next_is_the_agents(play):
    async def story(world: World) -> None:
        await world.running(WEB, "app/web/1/1/1")
        orders = [
            StandingOrder("app/web/0", world.waiting(WEB), at_once=True),
            StandingOrder("app/web/1", world.waiting("app/web/1/1/1")),
        ]
        await world.link.orders(set=orders)
        await world.wait(1.2)
        for key in (WEB, "app/web/1/1/1"):
            await world.end(key, 7)
        entry = await world.until_state("app/web/1/0/2", ProcessState.RUNNING)
        assert entry.by == "order"
        await world.wait(1.2)
        await world.end("app/web/1/0/2", 7)
        await world.until_state("app/web/1/0/2", ProcessState.EXITED)
        await world.wait(1.2)
        entries, _ = await world.link.pull_all()
        assert {entry.key for entry in entries} == {WEB, "app/web/1/1/1", "app/web/1/0/2"}

    play(story)


def test_a_stop_starts_nothing_again_at_once(play):
    async def story(world: World) -> None:
        await world.running(WEB)
        await world.link.orders(set=[StandingOrder("app/web/0", world.waiting(WEB), at_once=True)])
        await world.wait(1.2)
        await world.link.shutdown(0.5)
        await world.until_state(WEB, ProcessState.EXITED)
        entries, _ = await world.link.pull_all()
        assert {entry.key for entry in entries} == {WEB}

    play(story)


def test_an_order_that_needs_what_does_not_last_is_refused_whole(play):
    async def story(world: World) -> None:
        good = StandingOrder("app/web/1", world.waiting("app/web/1/1/1"))
        for bad in (
            StandingOrder("app/web/0", world.waiting(WEB, fds=[FdPlacement(3, "passed:0")])),
            StandingOrder("app/web/9", world.waiting(WEB)),
        ):
            with pytest.raises(KeeperRefused):
                await world.link.orders(set=[good, bad])
        assert await world.link.inventory() == ()

    play(story)


def test_a_keeper_that_is_killed_is_lost_once_and_its_next_knows_everything(play):
    async def story(world: World) -> None:
        await world.running(WEB, "app/web/1/1/1")
        await world.end("app/web/1/1/1", 7)
        await world.until_state("app/web/1/1/1", ProcessState.EXITED)
        await world.link.channel("log")
        notify = await world.link.notify("app/web/0")
        listener = await world.link.listen(ListenerSpec("web", "tcp://127.0.0.1:0"))
        entries, _ = await world.link.pull_all()
        before = {entry.key: entry.pid for entry in entries}
        instance = world.link.hello.instance
        await world.vanish()
        async with asyncio.timeout(PATIENCE_S):
            await world.lost.wait()
        assert not world.link.is_connected
        with pytest.raises(KeeperLost):
            await world.link.ping()
        await world.come_back()
        link = await world.attach()
        assert link.hello.instance != instance
        found = {entry.key: entry for entry in (await link.pull_all())[0]}
        assert {key: entry.pid for key, entry in found.items()} == before
        assert found[WEB].state is ProcessState.RUNNING
        assert (found["app/web/1/1/1"].state, found["app/web/1/1/1"].code) == (ProcessState.EXITED, 7)
        held = [
            Supply(Held.LISTENER, "web", listener.fd, ListenerSpec("web", "tcp://127.0.0.1:0")),
            Supply(Held.NOTIFY, "app/web/0", notify.fd),
        ]
        assert set(await link.supply(held)) == {"web", "app/web/0"}
        assert await link.supply(held) == (), "what it has it is not given again"
        assert {(item.kind, item.name) for item in await link.inventory() if item.held} == {
            (Held.CHANNEL, "log"),
            (Held.LISTENER, "web"),
            (Held.NOTIFY, "app/web/0"),
        }
        assert (await link.listen(ListenerSpec("web", "tcp://127.0.0.1:0"))).inode == listener.inode
        (again,) = await link.spawn([world.waiting(WEB)])
        assert again.known, "never a second copy"

    play(story)


def test_a_stop_refuses_new_work_and_ends_what_runs(play):
    async def story(world: World) -> None:
        await world.running(WEB)
        await world.link.shutdown(0.5)
        with pytest.raises(KeeperRefused) as refused:
            await world.link.spawn([world.waiting("app/web/1/1/1")])
        assert refused.value.refusal is Refusal.STOPPING
        await world.until_state(WEB, ProcessState.EXITED)
        assert world.link.is_stopping, "so that the agent starts no next keeper"

    play(story)


def test_requests_made_at_the_same_time_are_answered_each_with_its_own(play):
    async def story(world: World) -> None:
        names = [f"log{number}" for number in range(20)]
        opened = await asyncio.gather(*(world.link.channel(name) for name in names))
        for name, found in zip(names, opened, strict=True):
            assert found.path.endswith(name)
            os.close(found.fd)

    play(story)


def test_a_caller_that_is_cancelled_does_not_disturb_the_next(play):
    async def story(world: World) -> None:
        asking = [asyncio.ensure_future(world.link.channel(f"log{number}")) for number in range(10)]
        await asyncio.sleep(0)
        for task in asking[::2]:
            task.cancel()
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert all(result.path.endswith(f"log{number}") for number, result in enumerate(results) if number % 2)
        assert (await world.link.channel("later")).path.endswith("later")
        await world.running(WEB)

    play(story)
