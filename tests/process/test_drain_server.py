"""The small server that other tests and the demo deploy: it must drain without loss, or they prove nothing."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from profile_servers import DRAIN_SERVER, Child, Client, Yard, eventually, get, listener_at, yard_in

from midstream.linux.sockets import inode_of, listeners_of, watches


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    with yard_in(tmp_path) as found:
        yield found


@pytest.fixture
def shared() -> Iterator[socket.socket]:
    with listener_at() as listener:
        yield listener


@pytest.fixture
def notices(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(40)
        yield channel


def draining(child: Child, shared: socket.socket) -> None:
    child.signal("TERM")
    eventually("it accepts nothing more", lambda: not watches({child.pid}, inode_of(shared.fileno())))


def test_each_route_answers_with_release_and_pid(yard: Yard, shared: socket.socket) -> None:
    child = yard.drain_server({"web": shared}, release="20261121190501", env={"COLOUR": "green"})
    with Client(shared.getsockname()) as client:
        for path, body in (
            ("/", "20261121190501\n"),
            ("/up", "ok\n"),
            ("/pid", f"{child.pid}\n"),
            ("/slow?ms=1", "20261121190501\n"),
            ("/env?name=COLOUR", "green\n"),
        ):
            answer = client.get(path)
            assert (answer.status, answer.body.decode()) == (200, body)
            assert answer.headers["x-release"] == "20261121190501"
            assert answer.headers["x-pid"] == str(child.pid)
        assert client.get("/nowhere").status == 404
        client.send("/echo", method="POST", body=b"x" * 300_000)
        assert client.receive().body == b"x" * 300_000
        client.send("/", method="HEAD")
        assert client.receive("HEAD").headers["content-length"] == "15"
        assert client.get("/up").status == 200
    with Client(shared.getsockname()) as client:
        client.socket.sendall(b"nonsense\r\n\r\n")
        assert client.receive().status == 400
        assert client.socket.recv(1) == b""


def test_a_drain_answers_what_it_has_and_late_requests_then_ends(yard: Yard, shared: socket.socket) -> None:
    child = yard.drain_server({"web": shared}, env={"LINGER_S": "30"})
    address = shared.getsockname()
    with Client(address) as busy, Client(address) as late, Client(address) as idle:
        assert late.get("/up").headers["connection"] == "keep-alive"
        assert idle.get("/up").status == 200
        busy.send("/slow?ms=800")
        draining(child, shared)
        answer = late.get("/up")
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert late.socket.recv(1) == b""
        assert busy.receive().headers["connection"] == "close"
        assert not child.ended(), "an idle connection is waited for"
        assert idle.get("/up").headers["connection"] == "close"
    assert child.wait() == 0


def test_after_the_linger_idle_connections_are_closed_in_order(yard: Yard, shared: socket.socket) -> None:
    child = yard.drain_server({"web": shared}, env={"LINGER_S": "0.2"})
    with Client(shared.getsockname()) as idle:
        assert idle.get("/up").status == 200
        child.signal("TERM")
        assert idle.socket.recv(1) == b"", "an end of file, no reset"
        idle.close()
    assert child.wait() == 0


def test_a_drain_with_nothing_open_ends_at_once(yard: Yard, shared: socket.socket) -> None:
    child = yard.drain_server({"web": shared}, env={"LINGER_S": "600"})
    assert get(shared.getsockname(), "/up").status == 200
    child.signal("QUIT")
    assert child.wait() == 0


def test_connections_in_the_queue_are_left_to_the_next_generation(yard: Yard, shared: socket.socket) -> None:
    """The listener outlives it, so who connects in between waits and is answered."""
    old = yard.drain_server({"web": shared}, release="1")
    assert get(shared.getsockname(), "/").body == b"1\n"
    old.signal("TERM")
    assert old.wait() == 0
    with Client(shared.getsockname()) as waiting:
        waiting.send("/")
        yard.drain_server({"web": shared}, release="2")
        assert waiting.receive().body == b"2\n"


def test_a_pause_accepts_nothing_but_on_the_private_listener(yard: Yard, shared: socket.socket) -> None:
    with listener_at() as private:
        child = yard.drain_server({"web": shared}, private=private)
        with Client(shared.getsockname()) as kept:
            assert kept.get("/up").headers["connection"] == "keep-alive"
            child.signal("WINCH")
            inode = inode_of(shared.fileno())
            eventually("it accepts nothing", lambda: not watches({child.pid}, inode))
            assert kept.get("/up").headers["connection"] == "keep-alive"
            assert get(private.getsockname(), "/up").status == 200
            with Client(shared.getsockname()) as waiting:
                waiting.send("/up")
                child.signal("TTIN")
                assert waiting.receive().status == 200


def test_it_says_when_it_is_ready_and_when_it_stops(yard: Yard, shared: socket.socket, notices: socket.socket) -> None:
    child = yard.drain_server({"web": shared}, release="7", env={"NOTIFY_SOCKET": notices.getsockname()})
    assert notices.recv(4096) == b"READY=1\nSTATUS=serving release 7"
    child.signal("WINCH")
    assert notices.recv(4096) == b"STATUS=paused"
    child.signal("TTIN")
    assert notices.recv(4096) == b"STATUS=accepting"
    child.signal("TERM")
    assert notices.recv(4096) == b"STOPPING=1\nSTATUS=draining"
    assert child.wait() == 0


def test_it_can_be_told_to_exit_at_once(yard: Yard, shared: socket.socket) -> None:
    child = yard.drain_server({"web": shared}, misbehave="exit")
    assert child.wait() == 3
    assert "cannot start" in child.output()


def test_it_can_be_told_to_exit_soon_after_it_was_ready(
    yard: Yard, shared: socket.socket, notices: socket.socket
) -> None:
    env = {"NOTIFY_SOCKET": notices.getsockname()}
    child = yard.drain_server({"web": shared}, misbehave="exit-soon", env=env)
    assert notices.recv(4096).startswith(b"READY=1")
    assert child.wait() == 3


def test_it_can_be_told_to_ignore_signals(yard: Yard, shared: socket.socket) -> None:
    child = yard.drain_server({"web": shared}, misbehave="hang")
    assert get(shared.getsockname(), "/up").status == 200
    for name in ("TERM", "QUIT", "INT"):
        child.signal(name)
    assert get(shared.getsockname(), "/up").status == 200
    child.signal("KILL")
    assert child.wait() == -9


def test_it_can_be_told_never_to_be_ready(yard: Yard, shared: socket.socket, notices: socket.socket) -> None:
    env = {"NOTIFY_SOCKET": notices.getsockname()}
    child = yard.drain_server({"web": shared}, misbehave="never-ready", env=env)
    eventually("it runs", lambda: "starting" in child.output())
    child.signal("TERM")
    assert child.wait() == 0
    assert notices.recv(4096).startswith(b"STOPPING=1"), "and READY never came"


def test_it_can_be_told_to_bind_a_port_of_its_own(yard: Yard, shared: socket.socket) -> None:
    child = yard.drain_server({"web": shared}, misbehave="own-port")
    ours = listeners_of({os.getpid()})  # a child has them all until it execs

    def own() -> list[str]:
        return [address for inode, address in listeners_of({child.pid}).items() if inode not in ours]

    found = eventually("it has bound one", own)
    assert isinstance(found, list)
    port = int(found[0].rpartition(":")[2])
    assert get(("127.0.0.1", port), "/up").status == 200


def test_a_file_in_the_working_folder_makes_it_misbehave_too(yard: Yard, shared: socket.socket) -> None:
    (yard.folder / "misbehave").write_text("unhealthy\n")
    yard.drain_server({"web": shared})
    assert get(shared.getsockname(), "/up").status == 500


def test_it_needs_nothing_but_python() -> None:
    """It is copied into releases as it is."""
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", DRAIN_SERVER.read_text(), re.MULTILINE))
    assert imported <= {"__future__", "asyncio", "contextlib", "dataclasses", "os", "signal", "socket", "sys", "urllib"}
