"""Control sockets when no descriptor is left: who waits there must not turn the loop round and round, and is let in later."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tests.process.limits import no_descriptor_left

from midstream.keeper import door as keeper_door
from midstream.keeper import loop as keeper_loop
from midstream.linux import accepting
from midstream.serve import loop as serve_loop
from midstream.serve import metrics, orphan, takeover, zygote_under_master
from midstream.serve.channel import Channel
from midstream.serve.contract import Identity, Listener
from midstream.serve.master import asking
from midstream.serve.settings import Settings

TURNS = 100
FEW = 5  # one; one more for each second that a busy machine makes of so many turns


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def address_of(sock: socket.socket) -> str:
    return "tcp://{}:{}".format(*sock.getsockname())


def client_of(role: str, address: str) -> tuple[socket.socket, Callable[[], None]]:
    """A socket, and what connects it to the takeover name."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return sock, lambda: sock.connect(takeover.name_of(address, role, os.getpid()))


class Knocks:
    """Counts how often a module tries to accept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
        self.count = 0
        monkeypatch.setattr(module, "accept", self._accept)

    def _accept(self, door: socket.socket, rest: Callable[[], None]) -> socket.socket | None:
        self.count += 1
        return accepting.accept(door, rest)


def turns(loop: Any) -> None:
    for _ in range(TURNS):
        loop.after(0.0, lambda: None)
        loop.turn()


def readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def master_door(loop: serve_loop.Loop, listener: socket.socket) -> tuple[socket.socket, Callable[[], None], Any]:
    askers = asking.Askers(loop, lambda: None, lambda: {"pid": 7})
    askers.open([address_of(listener)])
    sock, connect = client_of("master", address_of(listener))

    def ask() -> None:
        connect()
        Channel(sock).send("status")

    return sock, ask, askers.close


def zygote_door(loop: serve_loop.Loop, listener: socket.socket) -> tuple[socket.socket, Callable[[], None], Any]:
    """The door alone: its process has no more to do with it than this loop."""
    below: Any = object.__new__(zygote_under_master._Below)
    below.zygote, below.takers, below.is_alone = SimpleNamespace(loop=loop), [], False
    below.talk = SimpleNamespace(channel=SimpleNamespace(sock=SimpleNamespace(fileno=lambda: -1)))
    below.master_pid = 7
    (door,) = takeover.listen([address_of(listener)], "zygote")
    loop.watch(door.fileno(), partial(below._knock, door))
    sock, connect = client_of("zygote", address_of(listener))

    def ask() -> None:
        connect()
        Channel(sock).send("take", version=zygote_under_master.messages.VERSION)

    def close() -> None:
        loop.forget(door.fileno())
        door.close()

    return sock, ask, close


def metrics_door(loop: serve_loop.Loop, listener: socket.socket) -> tuple[socket.socket, Callable[[], None], Any]:
    listener.close()
    with socket.create_server(("127.0.0.1", 0)) as free:
        name = free.getsockname()
    door = metrics.Door(loop, lambda: "page\n", lambda _: None)
    door.open("tcp://{}:{}".format(*name))
    sock = socket.socket()

    def ask() -> None:
        sock.connect(name)
        sock.send(b"GET /metrics HTTP/1.0\r\n\r\n")

    return sock, ask, door.close


@pytest.mark.parametrize(
    ("module", "opened"), [(asking, master_door), (zygote_under_master, zygote_door), (metrics, metrics_door)]
)
def test_doors_of_masters_and_zygotes_rest(
    module: ModuleType, opened: Callable[..., Any], listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    knocks = Knocks(monkeypatch, module)
    loop = serve_loop.Loop()
    sock, ask, close = opened(loop, listener)
    try:
        with no_descriptor_left():
            ask()
            turns(loop)
            assert 1 <= knocks.count <= FEW
        while not readable(sock):
            loop.turn()
        assert sock.recv(4096)
    finally:
        close()
        sock.close()


def test_a_door_that_rests_is_watched_no_more_when_it_is_closed(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number may be another's by then."""
    monkeypatch.setattr(serve_loop, "REST_S", 0.2)
    loop = serve_loop.Loop()
    sock, ask, close = master_door(loop, listener)
    with sock:
        with no_descriptor_left():
            ask()
            turns(loop)
        assert loop._resting
        close()
        assert not loop._resting
        loop.after(0.2, lambda: setattr(loop, "done", True))
        loop.run()
        assert not loop._readers


def test_the_door_of_an_orphan_rests(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    knocks = Knocks(monkeypatch, orphan)
    monkeypatch.setattr(orphan, "REST_S", 0.2)

    async def story() -> None:
        public = Listener(listener, address_of(listener))
        one = orphan.Orphan(Identity(1, 1, "r1", 1), Settings(app="a:b"), [public])
        sock, connect = client_of("worker", address_of(listener))
        with sock:
            with no_descriptor_left():
                connect()
                Channel(sock).send("take", version=orphan.messages.VERSION)
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                assert 1 <= knocks.count <= FEW
            while not readable(sock):
                await asyncio.sleep(0.01)
            assert b"taken" in sock.recv(65536)
        one.close()

    asyncio.run(story())


def keeper_at(path: Path) -> tuple[keeper_loop.Loop, keeper_door.Door]:
    loop = keeper_loop.Loop()
    return loop, keeper_door.Door(loop, keeper_door.bind_door(str(path)), lambda *_: ({}, ()), lambda _: None)


def test_the_keeper_turns_away_whom_it_cannot_take(tmp_path: Path) -> None:
    loop, door = keeper_at(tmp_path / "door")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, door.sock:
        with no_descriptor_left():
            sock.connect(str(tmp_path / "door"))
            turns(loop)
            assert sock.recv(10) == b""
        assert not door.connections
    os.close(door._spare_fd)


def test_where_not_even_that_is_possible_the_keepers_door_rests_and_opens_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is closed that has been given the number of the spare descriptor since."""
    knocks = Knocks(monkeypatch, keeper_door)
    monkeypatch.setattr(keeper_door, "REST_S", 0.2)
    loop, door = keeper_at(tmp_path / "door")
    first, second = (socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    with first, second, door.sock:
        with no_descriptor_left(3):
            first.connect(str(tmp_path / "door"))
            turns(loop)
            assert 1 <= knocks.count <= 2 * FEW
        others = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
        while not door.connections:
            loop.turn()
        with no_descriptor_left(3):
            second.connect(str(tmp_path / "door"))
            turns(loop)
        for fd in others:
            os.close(fd)  # raises for one that somebody closed
        while len(door.connections) < 2:
            loop.turn()
        for connection in list(door.connections):
            door.close(connection)
    if door._spare_fd >= 0:
        os.close(door._spare_fd)
