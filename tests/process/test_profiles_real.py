"""The real servers against their profiles: each takes an inherited listener, serves beside another generation, drains.

What a profile states is claimed here, so a new version of a server that behaves otherwise fails a test by name.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from machine import free_port
from profile_servers import Child, Client, Yard, eventually, get, listener_at, program, yard_in
from server_commands import APPS, CASES, OWN_ADDRESS, Case

from midstream.agent.health import address_of, check
from midstream.agent.proof import Holding, Verdict, holding, identified_check, tree_membership, why_not_accepting
from midstream.core.spec import HandoverPolicy, HealthSpec
from midstream.linux.sockets import inode_of, listeners_of, peer_inode, sockets_of_tree, who_listens
from midstream.profiles import Profile, profile_named, recognise

ROOT = HealthSpec(http="/", timeout_s=10.0)
EACH = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.server(case.needs), id=case.profile) for case in CASES]
)


def require(case: Case) -> None:
    if program(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed")
    if case.imports and importlib.util.find_spec(case.imports) is None:
        pytest.skip(f"the module {case.imports} is not installed")


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    """Children of the test, run in a folder of their own that holds the apps."""
    apps = tmp_path / "apps"
    shutil.copytree(APPS, apps, ignore=shutil.ignore_patterns("__pycache__"))
    with yard_in(apps) as found:
        yield found


@pytest.fixture(params=["tcp", "unix"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    listener = listener_at() if request.param == "tcp" else listener_at(str(tmp_path / "shared.sock"))
    with listener:
        yield listener


def private_for(listener: socket.socket, profile: Profile) -> socket.socket | None:
    """A private listener of the same family, where the profile takes two."""
    if not profile.second_listener:
        return None
    name = listener.getsockname()
    return listener_at(f"{name}.private") if isinstance(name, str) else listener_at()


def start(
    yard: Yard,
    case: Case,
    release: str,
    listener: socket.socket,
    private: socket.socket | None = None,
    more: tuple[str, ...] = (),
) -> Child:
    """A generation that is proven to answer."""
    command = (*case.command, *more)
    child = yard.serve(command, {"web": listener}, private=private, env={"MIDSTREAM_RELEASE": release})
    found = asyncio.run(
        identified_check(
            ROOT, address_of(private or listener), tree_membership(child.tree), attempts=2000, timeout_s=30
        )
    )
    assert found.verdict is Verdict.PROVED, f"{found}\n{child.output()}"
    return child


def told(client: Client) -> str:
    """What an answer on this connection says about the next."""
    return client.get("/").headers.get("connection", "keep-alive").lower()


def request_held_by(child: Child, listener: socket.socket, path: str) -> Client:
    """A request that `child`, and not another holder of the listener, has accepted."""

    def attempt() -> Client | None:
        client = Client(listener.getsockname())
        client.send(path, ("Connection: close",))
        inode = eventually("somebody accepts", lambda: peer_inode(client.socket))
        return client if sockets_of_tree(child.tree()).holds(int(str(inode))) else None

    found = eventually("it accepts", attempt)
    assert isinstance(found, Client)
    return found


@EACH
def test_a_server_takes_its_listener_and_is_recognised(yard: Yard, shared: socket.socket, case: Case) -> None:
    require(case)
    profile = recognise(case.command)
    assert profile.name == case.profile
    private = private_for(shared, profile)
    child = yard.serve(case.command, {"web": shared}, private=private, env={"MIDSTREAM_RELEASE": "1"})
    assert get(shared.getsockname(), "/").body == b"1\n"
    assert holding(child.tree(), inode_of(shared.fileno())) in (Holding.HELD, Holding.ACCEPTING)
    if private is not None:
        assert get(private.getsockname(), "/").body == b"1\n"
        assert holding(child.tree(), inode_of(private.fileno())) in (Holding.HELD, Holding.ACCEPTING)
    if profile.non_blocking_listener is not None:
        flags = fcntl.fcntl(shared.fileno(), fcntl.F_GETFL)
        assert bool(flags & os.O_NONBLOCK) == profile.non_blocking_listener


@pytest.mark.parametrize("shared", ["tcp", "unix"] if os.environ.get("MIDSTREAM_CRASH_ALL") else ["tcp"], indirect=True)
@EACH
def test_a_graceful_stop_finishes_requests_while_the_next_generation_serves(
    yard: Yard, shared: socket.socket, case: Case
) -> None:
    require(case)
    profile = profile_named(case.profile)
    private = private_for(shared, profile)
    old = start(yard, case, "1", shared, private)
    new = start(yard, case, "2", shared, private)
    with request_held_by(old, shared, "/slow?ms=700") as in_hand:
        old.signal(profile.drain_signal)
        assert in_hand.receive().body == b"1\n"
    old.wait()
    assert {get(shared.getsockname(), "/").body for _ in range(8)} == {b"2\n"}
    new.signal(profile.drain_signal)
    new.wait()
    name = shared.getsockname()
    assert not isinstance(name, str) or os.path.exists(name), "the server unlinked a socket that is not its own"
    start(yard, case, "3", shared, private)
    assert get(name, "/").body == b"3\n"


def bound(case: Case, listener: socket.socket) -> tuple[str, ...] | None:
    """The command as an operator has it who used the server alone: with the shared address in it."""
    host, port = listener.getsockname()
    option = {
        "gunicorn": ("--bind", f"{host}:{port}"),
        "uvicorn": ("--host", host, "--port", str(port)),
        "hypercorn": (f"--bind={host}:{port}",),
        "uwsgi": ("--http-socket", f"{host}:{port}"),
        "puma": ("-b", f"tcp://{host}:{port}"),
        "unicorn": (f"-l{host}:{port}",),
        "midstream": ("--bind", f"{host}:{port}"),
    }.get(case.profile.split("-")[0])
    return (*case.command, *option) if option else None


@EACH
def test_a_throw_away_on_a_private_listener_leaves_the_shared_address_alone(yard: Yard, case: Case) -> None:
    """Even when the operator's command names it: unproven code must not be able to answer a real request."""
    require(case)
    with listener_at() as shared, listener_at() as private:
        command = bound(case, shared)
        if command is None:
            command = case.command
        child = yard.serve(command, {"web": private}, env={"MIDSTREAM_RELEASE": "1"})
        assert get(private.getsockname(), "/").body == b"1\n", child.output()
        held = sockets_of_tree(child.tree())
        assert held.holds(inode_of(shared.fileno())) is False
        assert {holder.pid for holder in who_listens(shared.getsockname()[1])} == {os.getpid()}
        shared.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            shared.accept()


@pytest.mark.parametrize("name", ["unicorn", "puma"])
def test_a_throw_away_leaves_an_address_in_the_configuration_file_alone(
    yard: Yard, shared: socket.socket, name: str
) -> None:
    """Nearly every unicorn.rb and many a puma.rb names the address, and keeps its meaning for the real instance."""
    case = next(one for one in CASES if one.profile == name)
    require(case)
    address = shared.getsockname()
    plain = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
    url = f"unix://{plain}" if isinstance(address, str) else f"tcp://{plain}"
    line = {"unicorn": f'worker_processes 1\nlisten "{plain}", backlog: 77\n', "puma": f'bind "{url}"\n'}[name]
    (yard.folder / "own.rb").write_text(line)
    command = {"unicorn": ("unicorn", "-c", "own.rb"), "puma": ("puma", "-C", "own.rb")}[name]
    with listener_at() as private:
        trying = yard.serve(command, {"web": private}, env={"MIDSTREAM_RELEASE": "1"})
        assert get(private.getsockname(), "/").body == b"1\n", trying.output()
        assert set(listeners_of(trying.tree())) == {inode_of(private.fileno())}
        real = yard.serve(command, {"web": shared}, private=private, env={"MIDSTREAM_RELEASE": "2"})
        trying.destroy()
        assert get(address, "/").body == b"2\n", real.output()
        assert set(listeners_of(real.tree())) == {inode_of(private.fileno()), inode_of(shared.fileno())}


@EACH
def test_a_quick_stop_ends_it_at_once(yard: Yard, case: Case) -> None:
    require(case)
    profile = profile_named(case.profile)
    with listener_at() as shared:
        child = start(yard, case, "1", shared)
        client = request_held_by(child, shared, "/slow?ms=60000")
        child.signal(profile.quick_signal)
        child.wait(20.0)  # the request in hand takes 60 s, the shortest graceful time-out of them all 30 s
        client.close()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.server(case.needs), id=case.profile)
        for case in CASES
        if profile_named(case.profile).answers_late is not None
    ],
)
def test_what_becomes_of_an_idle_connection_in_a_drain_is_as_the_profile_says(yard: Yard, case: Case) -> None:
    require(case)
    profile = profile_named(case.profile)
    # Long enough that no idle connection ends of itself in the test.
    more = ("--keep-alive", "25") if profile.answers_late else ()
    with listener_at() as shared:
        child = start(yard, case, "1", shared, more=more)
        with Client(shared.getsockname()) as idle, request_held_by(child, shared, "/held?go") as in_hand:
            assert idle.get("/").body == b"1\n"
            child.signal(profile.drain_signal)
            if profile.answers_late:
                # Asked again and again, it is never lost, and in the end told to close.
                eventually("the drain is seen", lambda: told(idle) == "close")
            else:
                assert idle.socket.recv(1) == b""
            (yard.folder / "go").touch()
            assert in_hand.receive().body == b"1\n"
        child.wait()


def test_unicorn_parks_and_comes_back(yard: Yard) -> None:
    """WINCH: the master lives and accepts nothing; TTIN, once for each worker: it serves again."""
    case = next(one for one in CASES if one.profile == "unicorn")
    require(case)
    profile = profile_named("unicorn")
    with listener_at() as shared:
        old = start(yard, case, "1", shared)
        assert len(old.tree()) == 3
        old.signal(profile.park_signal)
        eventually("only the master is left", lambda: old.tree() == {old.pid})
        start(yard, case, "2", shared)
        assert {get(shared.getsockname(), "/").body for _ in range(5)} == {b"2\n"}
        assert profile.unpark_each_worker
        for workers in (1, 2):
            old.signal(profile.unpark_signal)
            eventually("a worker is back", lambda: len(old.tree()) == 1 + workers)  # noqa: B023
        eventually("the old one serves again", lambda: get(shared.getsockname(), "/").body == b"1\n")


@pytest.mark.parametrize("case", OWN_ADDRESS, ids=lambda case: case.profile)
def test_a_server_that_takes_no_listener_is_replaced_on_its_own_address(yard: Yard, case: Case) -> None:
    require(case)
    profile = recognise(case.command)
    assert profile.name == case.profile
    assert profile.policy(True) is HandoverPolicy.REPLACE
    port = free_port()
    command = tuple(word.replace("{port}", str(port)) for word in case.command)
    for release in ("1", "2"):
        child = yard.serve(command, {}, env={"MIDSTREAM_RELEASE": release})
        eventually("it answers", lambda: asyncio.run(check(ROOT, f"tcp://127.0.0.1:{port}")).ok)
        assert get(("127.0.0.1", port), "/").body == release.encode() + b"\n"
        assert {holder.pid for holder in who_listens(port)} & child.tree()
        child.signal(profile.drain_signal)
        child.wait()


def test_waitress_in_a_program_of_ones_own_takes_a_listener(yard: Yard, shared: socket.socket) -> None:
    pytest.importorskip("waitress")
    command = ("python", "waitress_program.py")
    assert recognise(command).name == "generic"
    child = yard.serve(command, {"web": shared}, env={"MIDSTREAM_RELEASE": "1"})
    assert get(shared.getsockname(), "/").body == b"1\n", child.output()


def test_a_wrapper_that_changes_the_pid_is_found_out_and_named(yard: Yard) -> None:
    """LISTEN_PID names the shell, so gunicorn silently binds an address of its own. Its tree has the listener open all
    the same, so only a probe tells; and then the operator is told what was bound instead, and by whose fault."""
    case = next(one for one in CASES if one.profile == "gunicorn")
    require(case)
    port = free_port()
    with listener_at() as shared:
        command = ("sh", "-c", f"gunicorn wsgi_app --bind 127.0.0.1:{port} -w 1; true")
        child = yard.serve(command, {"web": shared}, env={"MIDSTREAM_RELEASE": "1"})
        eventually("it serves, elsewhere", lambda: asyncio.run(check(ROOT, f"tcp://127.0.0.1:{port}")).ok)
        inode = inode_of(shared.fileno())
        assert holding(child.tree(), inode) is Holding.HELD
        spec = HealthSpec(http="/", timeout_s=1.0)
        found = asyncio.run(identified_check(spec, address_of(shared), tree_membership(child.tree), attempts=1))
        assert found.verdict is Verdict.UNDECIDED
        said = why_not_accepting(recognise(command), command, child.tree(), {inode})
        assert f"tcp://127.0.0.1:{port}" in said
        assert "LISTEN_PID" in said
        assert "exec" in said


@EACH
def test_keep_alive_is_as_the_case_says(yard: Yard, case: Case) -> None:
    """The benchmark of losses reads its numbers by this."""
    require(case)
    with listener_at() as shared:
        start(yard, case, "1", shared)
        with Client(shared.getsockname()) as client:
            first = client.get("/")
            kept = first.headers.get("connection", "").lower() != "close"
            if kept:
                try:
                    assert client.get("/").body == b"1\n"
                except ConnectionError:
                    kept = False
            assert kept == case.keeps_alive
