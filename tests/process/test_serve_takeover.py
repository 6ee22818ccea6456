"""Who is taken over, and by whom: processes of the same user, found by the bind; what is handed over is looked at."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.process.serving import LIMIT_S, Server, make_release, point, running
from tests.process.test_serve_alone import given
from tests.process.test_serve_master import Load

from midstream.serve import channel as messages
from midstream.serve import takeover
from midstream.serve.account import RunAs
from midstream.serve.channel import Channel
from midstream.serve.master import adopting


@pytest.fixture
def app(tmp_path: Path) -> Path:
    point(tmp_path, make_release(tmp_path, "one"))
    make_release(tmp_path, "two")
    return tmp_path


STRANGER = """
import os, socket, sys
os.setgroups([])
os.setuid(int(sys.argv[3]))
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
    sock.settimeout(45)
    sock.connect("\\0" + sys.argv[1])
    try:
        sock.send(sys.argv[2].encode())
        data, ancillary, _, _ = sock.recvmsg(65536, 1024)
    except (BrokenPipeError, ConnectionResetError):
        data, ancillary = b"", []
print(len(data), len(ancillary))
"""


def as_nobody(name: str, words: str) -> str:
    """What comes of these words to that name: bytes and pieces of ancillary data."""
    nobody = str(pwd.getpwnam("nobody").pw_uid)
    argv = [sys.executable, "-I", "-c", STRANGER, name[1:], words, nobody]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=LIMIT_S).stdout


def name_of(server: Server, role: str, pid: int) -> str:
    """ "" as long as it has none: each worker that lost its zygote takes one by itself."""
    return next((one.name for one in takeover.find([server.bind], role) if one.pid == pid), "")


@pytest.mark.skipif(os.geteuid() != 0, reason="being somebody else needs root")
def test_another_user_is_told_nothing_and_handed_nothing(app: Path) -> None:
    asked = {"master": '{"status": {}}', "zygote": '{"take": {"version": 1}}', "worker": '{"take": {"version": 1}}'}
    with running(app) as server:
        pids = {"master": server.pid, "zygote": server.zygote(), "worker": server.workers()[0]}
        assert takeover.find(["tcp://127.0.0.1:1"], "zygote") == []  # of another bind it is nobody's
        for role, words in asked.items():
            server.until(f"the name of {role}", lambda role=role: name_of(server, role, pids[role]))
            assert as_nobody(name_of(server, role, pids[role]), words) == "0 0\n"
            assert server.get().release == "one"
            server.signal(signal.SIGKILL, pids[role])  # the next one by its role has nobody above it
            if role != "worker":
                server.line("the master is gone" if role == "master" else "the zygote is gone")
        mark = server.mark()
        server.start_again()  # and whoever may ask is answered
        server.line("took over worker", mark)


class Liar:
    """Has the name of a zygote for `address`, and hands over the sockets that it is given."""

    def __init__(self, address: str, *sockets: socket.socket) -> None:
        [self._door] = takeover.listen([address], "zygote")
        self._door.setblocking(True)
        self._sockets = sockets
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        sock, _ = self._door.accept()
        with sock:
            sock.recv(4096)
            asked = Channel(sock)
            fds = [0, *(one.fileno() for one in self._sockets)]  # the first is the board
            names = [f"bind{number}" for number in range(len(self._sockets))]
            asked.send("taken", fds, version=messages.VERSION, listeners=names, generation=1)

    def close(self) -> None:
        self._thread.join(LIMIT_S)
        self._door.close()


def test_of_what_is_handed_over_only_a_listener_on_the_very_address_is_kept() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as wanted,
        socket.create_server(("127.0.0.1", 0)) as elsewhere,
        socket.create_connection(wanted.getsockname()),
        wanted.accept()[0] as accepted,  # has that address, and does not listen
    ):
        address = f"tcp://127.0.0.1:{wanted.getsockname()[1]}"
        liar = Liar(address, elsewhere, accepted, wanted)
        [taken] = adopting.take([address], RunAs())
        liar.close()
        assert [(name, where) for name, where, _ in taken.listeners] == [("bind2", address)]
        assert taken.listeners[0][2].getsockname() == wanted.getsockname()
        for _, _, sock in taken.listeners:
            sock.close()
        taken.channel.close()
        os.close(taken.board_fd)


def test_a_queue_that_is_full_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each master that starts beside one that hangs leaves a connection in its queue."""
    monkeypatch.setattr(takeover, "CONNECT_S", 0.1)
    [door] = takeover.listen(["tcp://127.0.0.1:11"], "master")
    found = takeover.Found("master", os.getpid(), takeover.name_of("tcp://127.0.0.1:11", "master", os.getpid()))
    waiting: list[Channel | None] = []
    ended = threading.Event()

    def fill() -> None:
        while (channel := takeover.connect(found, None)) is not None:
            waiting.append(channel)
        ended.set()

    threading.Thread(target=fill, daemon=True).start()
    try:
        assert ended.wait(LIMIT_S), "it waits for ever"
        assert waiting
    finally:
        door.close()
        for channel in waiting:
            assert channel is not None
            channel.close()


HANGS_UP = """
import sys
from midstream.serve import takeover
[door] = takeover.listen([sys.argv[1]], "zygote")
door.setblocking(True)
print(flush=True)
door.accept()[0].close()
sys.stdin.read()
"""


def test_one_that_hangs_up_is_not_one_that_hangs(tmp_path: Path) -> None:
    """Its version does not know ours, or it is just about to end: it serves on with its workers, or its pid is another's."""
    address = "tcp://127.0.0.1:9"
    argv = [sys.executable, "-c", HANGS_UP, address]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as zygote:
        assert zygote.stdout is not None
        zygote.stdout.readline()
        assert adopting.take([address], RunAs()) == []
        zygote.communicate(timeout=LIMIT_S)
    assert zygote.returncode == 0, "killed"


def test_of_three_masters_that_start_at_once_one_takes_over(app: Path) -> None:
    """A zygote that has a master says so, whoever asks."""
    with running(app) as server, Load(server.port) as load:
        [found] = takeover.find([server.bind], "zygote")
        channel = takeover.connect(found, None)
        assert channel is not None
        channel.send("take", version=messages.VERSION)
        channel.sock.setblocking(True)
        channel.sock.settimeout(LIMIT_S)
        assert json.loads(channel.sock.recv(4096)) == {"refused": {"master": server.pid}}
        channel.close()
        server.signal(signal.SIGKILL)
        server.line("the master is gone")
        mark = server.mark()
        server.process.wait(LIMIT_S)
        started = [server._start() for _ in range(3)]
        server.until("two have given up", lambda: [one.poll() for one in started].count(None) == 1)
        [server.process] = [one for one in started if one.poll() is None]
        assert sorted(one.returncode for one in started if one is not server.process) == [1, 1]
        server.line(rf"served already by the master with pid {server.pid}", mark)
        server.line(r"took over generation 1 \(one\)", mark)
        server.line(r"generation 2 \(one\): serves", mark)
        load.more_answers(20)
    assert load.failed == []


def test_a_master_that_is_given_its_sockets_takes_over_too(app: Path) -> None:
    with given(app, ["web"]) as (how, server):
        server.signal(signal.SIGKILL)
        server.line("the master is gone")
        assert how.get(0).startswith("one ")
        point(app, app / "releases/two")
        mark = server.mark()
        server.start_again()
        server.line(r"took over generation 1 \(one\)", mark)
        server.line(r"generation 2 \(two\): serves", mark)
        server.line(r"generation 1 \(one\): has drained", mark)
        assert how.get(0).startswith("two ")
