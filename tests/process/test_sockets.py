"""Who holds which socket, asked of the kernel with real sockets and processes."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from profile_servers import Yard, eventually, listener_at, yard_in

from midstream.linux import sockets
from midstream.linux.sockets import (
    HeldSockets,
    inode_of,
    listeners_of,
    peer_inode,
    sockets_of,
    sockets_of_tree,
    watches,
    who_has,
    who_listens,
    who_listens_unix,
)

NOBODY = 65534


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    with yard_in(tmp_path) as found:
        yield found


def as_nobody(ask: Callable[[], object]) -> str:
    """repr of what `ask` returns in a child that is not root."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(into, repr(ask()).encode())
        except BaseException as error:
            os.write(into, f"raised {error!r}".encode())
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out) as said:
        text = said.read()
    os.waitpid(pid, 0)
    return text


def pair_over(kind: str, tmp_path: Path) -> tuple[socket.socket, socket.socket]:
    """A listener and a client connected to it, not yet accepted."""
    if kind == "unix":
        listener = listener_at(str(tmp_path / "a socket"))
        client = socket.socket(socket.AF_UNIX)
        client.connect(listener.getsockname())
        return listener, client
    if kind == "mapped":
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        return listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1]))
    listener = listener_at(("127.0.0.1" if kind == "tcp4" else "::1", 0))
    return listener, socket.create_connection(listener.getsockname()[:2])


@pytest.mark.parametrize("kind", ["tcp4", "tcp6", "mapped", "unix"])
def test_the_other_end_is_known_once_it_is_accepted(kind: str, tmp_path: Path) -> None:
    listener, client = pair_over(kind, tmp_path)
    with listener, client:
        assert peer_inode(client) is None
        accepted, _ = listener.accept()
        with accepted:
            assert peer_inode(client) == inode_of(accepted.fileno())
            assert peer_inode(accepted) == inode_of(client.fileno())
        eventually("it is forgotten", lambda: peer_inode(client) is None)


@pytest.mark.parametrize("kind", ["tcp4", "tcp6", "mapped"])
def test_the_tables_of_proc_give_the_same_answer(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sock_diag cannot be asked."""
    monkeypatch.setattr(sockets, "_sock_diag", lambda payload: None)
    listener, client = pair_over(kind, tmp_path)
    with listener, client:
        assert peer_inode(client) is None
        accepted, _ = listener.accept()
        with accepted:
            assert peer_inode(client) == inode_of(accepted.fileno())


def test_an_unconnected_socket_has_no_other_end() -> None:
    with socket.socket() as lonely:
        assert peer_inode(lonely) is None
    with socket.socket(socket.AF_UNIX) as lonely:
        assert peer_inode(lonely) is None


def test_the_process_that_accepted_is_told_from_its_sibling(yard: Yard) -> None:
    """Two processes share a listener; the accepted socket is in the tree of one of them."""
    with listener_at() as shared:
        first = yard.drain_server({"web": shared}, release="1")
        second = yard.drain_server({"web": shared}, release="2")
        with socket.create_connection(shared.getsockname()) as client:
            inode = int(str(eventually("one of them accepts", lambda: peer_inode(client))))
            found = [sockets_of_tree(child.tree()).holds(inode) for child in (first, second)]
            assert sorted(found) == [False, True]  # type: ignore[type-var]


def test_who_listens_names_process_and_command(yard: Yard, tmp_path: Path) -> None:
    path = str(tmp_path / "with a space.sock")
    with listener_at() as tcp, listener_at(path) as unix:
        child = yard.drain_server({"web": tcp, "local": unix}, release="1")
        inodes = {inode_of(tcp.fileno()), inode_of(unix.fileno())}
        eventually("it has taken both", lambda: inodes <= set(listeners_of({child.pid})))
        port = tcp.getsockname()[1]
        pids = {os.getpid(), child.pid}
        assert {holder.pid for holder in who_listens(port)} == pids
        assert {holder.pid for holder in who_listens_unix(path)} == pids
        assert all(holder.comm for holder in who_listens(port))
        assert listeners_of({child.pid}) == {
            inode_of(tcp.fileno()): f"tcp://127.0.0.1:{port}",
            inode_of(unix.fileno()): f"unix://{path}",
        }
    assert who_listens_unix(path + "x") == ()


def test_a_connection_on_a_port_is_no_listener() -> None:
    with listener_at() as listener:
        client = socket.create_connection(listener.getsockname())
        with client:
            assert who_listens(client.getsockname()[1]) == ()


def test_an_epoll_watch_is_seen_and_its_end_too() -> None:
    me = {os.getpid()}
    with listener_at() as listener, listener_at() as other, select.epoll() as poll:
        inode = inode_of(listener.fileno())
        poll.register(other.fileno())
        assert watches(me, inode) is False
        poll.register(listener.fileno(), select.EPOLLIN)
        assert watches(me, inode) is True
        poll.unregister(listener.fileno())
        assert watches(me, inode) is False


def test_a_watch_left_behind_by_a_closed_descriptor_does_not_count(yard: Yard) -> None:
    """epoll(7) Q6: closing a descriptor removes nothing while another process holds the socket."""
    listener = listener_at()
    with select.epoll() as poll:
        inode = inode_of(listener.fileno())
        poll.register(listener.fileno(), select.EPOLLIN)
        yard.drain_server({"web": listener})
        eventually("the other one holds it", lambda: len(who_has({inode})) == 2)
        listener.close()
        assert watches({os.getpid()}, inode) is False


def test_a_process_that_is_gone_holds_nothing() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert sockets_of(pid) == frozenset()
    assert watches({pid}, 1) is False
    assert sockets_of_tree({pid}) == HeldSockets({})


def test_a_process_that_may_not_be_read_is_unknown_not_empty(yard: Yard) -> None:
    with listener_at() as listener:
        child = yard.drain_server({"web": listener})
        inode = inode_of(listener.fileno())
        assert as_nobody(lambda: sockets_of(child.pid)) == "None"
        assert as_nobody(lambda: sockets_of_tree({child.pid}).holds(inode)) == "None"
        assert as_nobody(lambda: watches({child.pid}, inode)) == "None"
        assert f"pid={child.pid}," not in as_nobody(lambda: who_listens(listener.getsockname()[1]))
