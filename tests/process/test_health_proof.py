"""The proof that the new generation answers, with two generations on one listener."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from profile_servers import Child, Yard, eventually, get, listener_at, yard_in

from midstream.agent.health import address_of
from midstream.agent.proof import (
    Holding,
    ProofResult,
    Verdict,
    holding,
    identified_check,
    tree_membership,
    why_not_accepting,
)
from midstream.core.spec import HealthSpec
from midstream.linux.sockets import inode_of
from midstream.profiles import GENERIC, profile_named

UP = HealthSpec(http="/up", timeout_s=5.0)


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    with yard_in(tmp_path) as found:
        yield found


@pytest.fixture(params=["tcp", "unix"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    with listener_at() if request.param == "tcp" else listener_at(str(tmp_path / "shared.sock")) as listener:
        yield listener


def proved(listener: socket.socket, new: Child, spec: HealthSpec = UP, attempts: int = 300) -> ProofResult:
    return asyncio.run(
        identified_check(spec, address_of(listener), tree_membership(new.tree), attempts=attempts, timeout_s=20.0)
    )


def accepting(child: Child, listener: socket.socket) -> None:
    inode = inode_of(listener.fileno())
    eventually("it accepts", lambda: holding(child.tree(), inode) is Holding.ACCEPTING)


def test_a_new_generation_beside_an_old_one_is_proved_by_its_own_answer(yard: Yard, shared: socket.socket) -> None:
    old = yard.drain_server({"web": shared}, release="1")
    accepting(old, shared)
    new = yard.drain_server({"web": shared}, release="2")
    accepting(new, shared)
    result = proved(shared, new)
    assert result.verdict is Verdict.PROVED, result
    assert result.health is not None
    assert result.health.ok
    assert result.old == result.probes - 1


def test_a_new_generation_that_answers_badly_is_refuted_though_the_old_one_is_well(
    yard: Yard, shared: socket.socket
) -> None:
    old = yard.drain_server({"web": shared}, release="1")
    accepting(old, shared)
    new = yard.drain_server({"web": shared}, release="2", misbehave="unhealthy")
    accepting(new, shared)
    result = proved(shared, new)
    assert result.verdict is Verdict.REFUTED, result
    assert "the database is not there" in result.reason


def test_a_bad_old_generation_does_not_refute_a_good_new_one(yard: Yard, shared: socket.socket) -> None:
    old = yard.drain_server({"web": shared}, release="1", misbehave="unhealthy")
    accepting(old, shared)
    new = yard.drain_server({"web": shared}, release="2")
    accepting(new, shared)
    assert proved(shared, new).verdict is Verdict.PROVED


def test_answers_of_the_old_generation_alone_prove_nothing(yard: Yard, shared: socket.socket) -> None:
    old = yard.drain_server({"web": shared}, release="1")
    accepting(old, shared)
    new = yard.drain_server({"web": shared}, release="2", misbehave="never-ready")
    result = proved(shared, new, attempts=10)
    assert (result.verdict, result.probes, result.old) == (Verdict.UNDECIDED, 10, 10)
    assert "the old generation answered 10" in result.reason
    assert get(shared.getsockname(), "/").body == b"1\n"


def test_what_the_old_generation_accepted_is_a_whole_request_to_it() -> None:
    """Its access log shows answered checks, never one that broke off."""
    requests: list[bytes] = []
    ends: list[bytes] = []

    def old_generation(listener: socket.socket) -> None:
        for _ in range(3):
            accepted, _ = listener.accept()
            with accepted:
                received = b""
                while not received.endswith(b"\r\n\r\n"):
                    received += accepted.recv(4096)
                requests.append(received)
                accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                ends.append(accepted.recv(1))

    with listener_at() as shared:
        serving = threading.Thread(target=old_generation, args=(shared,))
        serving.start()
        result = asyncio.run(identified_check(UP, address_of(shared), lambda inode: False, attempts=3))
        serving.join()
    assert (result.verdict, result.old) == (Verdict.UNDECIDED, 3)
    assert all(request.startswith(b"GET /up HTTP/1.1\r\n") for request in requests)
    assert ends == [b"", b"", b""], "the answer was read, and then closed in order"


def test_our_own_deadline_refutes_nobody(yard: Yard) -> None:
    """The check may take 20 s and the whole proof half a second: an answer that is still to come is not a bad one."""
    with listener_at() as shared:
        new = yard.drain_server({"web": shared}, release="2")
        accepting(new, shared)
        slow = HealthSpec(http="/slow?ms=60000", timeout_s=20.0)
        result = asyncio.run(
            identified_check(slow, address_of(shared), tree_membership(new.tree), attempts=5, timeout_s=0.5)
        )
        assert result.verdict is Verdict.UNDECIDED


def test_a_new_generation_that_accepts_and_never_answers_is_refuted(yard: Yard, shared: socket.socket) -> None:
    new = yard.drain_server({"web": shared}, release="2")
    accepting(new, shared)
    slow = HealthSpec(http="/slow?ms=60000", timeout_s=0.5)
    result = proved(shared, new, slow)
    assert result.verdict is Verdict.REFUTED
    assert "the new generation accepted a request" in result.reason


def test_when_nobody_accepts_it_is_undecided(yard: Yard, shared: socket.socket) -> None:
    new = yard.drain_server({"web": shared}, release="2", misbehave="never-ready")
    result = proved(shared, new, HealthSpec(http="/up", timeout_s=0.3), attempts=1)
    assert (result.verdict, result.old) == (Verdict.UNDECIDED, 0)
    assert "no answer within" in result.reason


def test_when_nobody_listens_it_is_undecided_and_bounded(yard: Yard) -> None:
    with listener_at() as gone:
        address = address_of(gone)
    result = asyncio.run(identified_check(UP, address, lambda inode: True, attempts=3))
    assert (result.verdict, result.probes) == (Verdict.UNDECIDED, 3)
    assert "refuses connections" in result.reason


def test_a_tree_that_cannot_be_read_leaves_it_undecided(yard: Yard) -> None:
    with listener_at() as shared:
        accepting(yard.drain_server({"web": shared}, release="1"), shared)
        result = asyncio.run(identified_check(UP, address_of(shared), lambda inode: None, attempts=3))
        assert (result.verdict, result.old) == (Verdict.UNDECIDED, 0)


def test_who_is_neither_old_nor_new_is_not_counted_as_old(yard: Yard) -> None:
    with listener_at() as shared:
        accepting(yard.drain_server({"web": shared}, release="1"), shared)
        result = asyncio.run(
            identified_check(UP, address_of(shared), lambda inode: False, is_old=lambda inode: False, attempts=2)
        )
        assert (result.verdict, result.old) == (Verdict.UNDECIDED, 0)


def test_a_tcp_check_is_proved_by_being_accepted(yard: Yard, shared: socket.socket) -> None:
    new = yard.drain_server({"web": shared}, release="2")
    accepting(new, shared)
    assert proved(shared, new, HealthSpec(tcp=True)).verdict is Verdict.PROVED


def test_a_program_that_binds_its_own_port_is_told_so(yard: Yard) -> None:
    with listener_at() as shared:
        inode = inode_of(shared.fileno())
        child = yard.drain_server({"web": shared}, misbehave="own-port")
        told = eventually(
            "it has bound its own",
            lambda: "bound itself" in (said := why_not_accepting(GENERIC, child.argv, child.tree(), {inode})) and said,
        )
        assert "tcp://127.0.0.1:" in str(told)
        assert "LISTEN_FDS" in str(told)
        assert holding(child.tree(), inode) is Holding.HELD


@pytest.mark.parametrize(
    ("profile", "command", "words"),
    [
        ("gunicorn", ("uv", "run", "gunicorn", "a:b"), "`uv run`"),
        ("gunicorn", ("sh", "-c", "gunicorn a:b"), "begin with `exec`"),
        ("uvicorn", ("uvicorn", "a:b"), "--fd {fd}"),
        ("granian", ("granian", "a:b"), "leave `listen` out"),
    ],
)
def test_the_reason_names_the_culprit_and_the_cure(profile: str, command: tuple[str, ...], words: str) -> None:
    assert words in why_not_accepting(profile_named(profile), command, set(), set())


def test_a_parked_generation_holds_the_listener_and_accepts_nothing(yard: Yard) -> None:
    with listener_at() as shared, listener_at() as private:
        child = yard.drain_server({"web": shared}, private=private)
        accepting(child, shared)
        child.signal("WINCH")
        inode = inode_of(shared.fileno())
        eventually("it is parked", lambda: holding(child.tree(), inode) is Holding.HELD)
        assert get(private.getsockname(), "/up").status == 200
        child.signal("TTIN")
        accepting(child, shared)
        assert get(shared.getsockname(), "/up").status == 200
