"""sd_notify datagrams over real sockets from real processes: what they mean, and whom we believe."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.agent.notices import Authority, Notice, NoticeSocket, Refusal, parse
from midstream.agent.readers import Readers

PATIENCE_S = 30


def test_each_variable_of_the_protocol() -> None:
    notice = parse(
        b"READY=1\nSTATUS=Serving 4 workers = fine\nMAINPID=4711\nWATCHDOG=1\nWATCHDOG_USEC=20000000\nERRNO=2\n"
        b"EXTEND_TIMEOUT_USEC=1500000\nMONOTONIC_USEC=7000001\nX_OWN=1\n",
        pid=12,
        uid=1000,
    )
    assert notice == Notice(
        ready=True,
        status="Serving 4 workers = fine",
        main_pid=4711,
        watchdog=True,
        watchdog_s=20.0,
        errno=2,
        extend_timeout_s=1.5,
        monotonic_s=7.000001,
        pid=12,
        uid=1000,
    )
    assert parse(b"RELOADING=1\nMONOTONIC_USEC=5") == Notice(reloading=True, monotonic_s=0.000005)
    assert parse(b"STOPPING=1") == Notice(stopping=True)
    assert parse(b"WATCHDOG=trigger") == Notice(watchdog_trigger=True)
    assert parse(b"BARRIER=1") == Notice(barrier=True)
    assert parse(b"STATUS=") == Notice(status="")


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"READY",
        b"READY=0",
        b"READY=yes",
        b"MAINPID=0",
        b"MAINPID=-5",
        b"MAINPID=1e3",
        "MAINPID=٣".encode(),
        b"WATCHDOG=2",
        b"WATCHDOG_USEC=",
        b"ERRNO=" + b"9" * 4000,
        b"=1",
        b"\xff\xfe\n\x00",
    ],
)
def test_nonsense_is_passed_over(nonsense: bytes) -> None:
    assert parse(nonsense) == Notice()
    assert parse(nonsense + b"\nREADY=1") == Notice(ready=True)


@given(st.binary(max_size=300))
def test_no_datagram_breaks_the_reader(data: bytes) -> None:
    assert isinstance(parse(data), Notice)


class Listener:
    """A notify socket as the keeper holds it, and what came out of it."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.path = str(folder / "notify")
        self.held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.held.bind(self.path)
        self.notices: list[Notice] = []
        self.refusals: list[Refusal] = []
        self.come = asyncio.Event()
        self.authority = authority
        self.readers = Readers(NoticeSocket.read)
        self.socket = NoticeSocket(os.dup(self.held.fileno()), self, self.readers)

    def on_notice(self, notice: Notice) -> None:
        self.notices.append(notice)
        self.come.set()

    def on_refusal(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)
        self.come.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.notices) + len(self.refusals) < count:
                self.come.clear()
                await self.come.wait()

    def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(self.path)
            socket.send_fds(sender, [data], list(fds))

    def close(self) -> None:
        self.socket.close()
        self.socket.close()
        self.readers.close()
        self.held.close()


ANYONE = Authority(lambda pid: True, frozenset())


def listening(tmp_path: Path, authority: Authority, story: Callable[[Listener], Awaitable[None]]) -> None:
    async def told() -> None:
        listener = Listener(tmp_path, authority)
        try:
            await story(listener)
        finally:
            listener.close()

    asyncio.run(told())


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_notice_carries_who_sent_it(tmp_path: Path) -> None:
    async def story(listener: Listener) -> None:
        listener.send(b"READY=1")
        await listener.until(1)
        assert listener.notices == [Notice(ready=True, pid=os.getpid(), uid=os.geteuid())]

    listening(tmp_path, ANYONE, story)


def test_descriptors_sent_along_are_closed(tmp_path: Path) -> None:
    async def story(listener: Listener) -> None:
        before = open_fds()
        with open("/dev/null", "rb") as null:
            listener.send(b"FDSTORE=1\nFDNAME=web", (null.fileno(),) * 200)
            listener.send(b"BARRIER=1", (null.fileno(), null.fileno()))
        listener.send(b"READY=1")
        await listener.until(3)
        assert [notice.descriptors for notice in listener.notices] == [200, 2, 0]
        assert open_fds() == before

    listening(tmp_path, ANYONE, story)


def test_a_barrier_is_lifted_after_what_came_before_was_dealt_with(tmp_path: Path) -> None:
    async def story(listener: Listener) -> None:
        ours, theirs = os.pipe()
        lifted: list[bool] = []
        seen = listener.on_notice

        def dealt_with(notice: Notice) -> None:
            poll = select.poll()
            poll.register(ours, select.POLLIN)
            lifted.append(bool(poll.poll(0)))
            seen(notice)

        listener.on_notice = dealt_with
        for _ in range(3):
            listener.send(b"STATUS=busy")
        listener.send(b"BARRIER=1", (theirs,))
        os.close(theirs)
        async with asyncio.timeout(PATIENCE_S):
            hung_up = asyncio.Event()
            asyncio.get_running_loop().add_reader(ours, hung_up.set)
            await hung_up.wait()
        asyncio.get_running_loop().remove_reader(ours)
        assert os.read(ours, 1) == b"", "the barrier is lifted by closing it"
        os.close(ours)
        assert lifted == [False] * 4

    listening(tmp_path, ANYONE, story)


def test_a_flood_is_read_in_turns(tmp_path: Path) -> None:
    """A thousand datagrams do not keep the loop from other work, and none is lost."""

    async def story(listener: Listener) -> None:
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            if len(listener.notices) < 1000:
                asyncio.get_running_loop().call_soon(turn)

        def flood() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.connect(listener.path)
                for index in range(1000):
                    sender.send(b"STATUS=%d" % index)

        turn()
        await asyncio.gather(asyncio.to_thread(flood), listener.until(1000))
        assert [notice.status for notice in listener.notices] == [str(index) for index in range(1000)]
        assert turns > 10

    listening(tmp_path, ANYONE, story)


SENDER = """
import os, socket, sys
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sender.sendto(sys.argv[2].encode(), sys.argv[1])
if sys.argv[3:]:
    input()
"""


def sender(path: str, text: str, *, stays: bool = False, user: int | None = None) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-S", "-c", SENDER, path, text, *(["stays"] if stays else [])]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, user=user)


def test_a_stranger_is_not_believed(tmp_path: Path) -> None:
    authority = Authority(lambda pid: pid == os.getpid(), frozenset({os.geteuid()}))

    async def story(listener: Listener) -> None:
        stranger = sender(listener.path, "READY=1", stays=True)
        await listener.until(1)
        stranger.communicate(b"\n", timeout=PATIENCE_S)
        assert listener.notices == []
        assert listener.refusals[0].notice.pid == stranger.pid
        assert str(stranger.pid) in listener.refusals[0].reason

    listening(tmp_path, authority, story)


def test_a_sender_that_is_gone_is_judged_by_its_user(tmp_path: Path) -> None:
    """`systemd-notify --ready` in a start script has often exited before anyone can look at it."""
    gone = Authority(lambda pid: None, frozenset({os.geteuid()}))
    other = Authority(lambda pid: None, frozenset({os.geteuid() + 1}))

    async def believed(listener: Listener) -> None:
        assert sender(listener.path, "READY=1").wait(PATIENCE_S) == 0
        await listener.until(1)
        assert [notice.ready for notice in listener.notices] == [True]

    async def refused(listener: Listener) -> None:
        assert sender(listener.path, "READY=1").wait(PATIENCE_S) == 0
        await listener.until(1)
        assert listener.notices == [] and "uid" in listener.refusals[0].reason

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    listening(tmp_path / "a", gone, believed)
    listening(tmp_path / "b", other, refused)


def test_a_main_pid_outside_the_tree_is_refused_alone(tmp_path: Path) -> None:
    authority = Authority(lambda pid: pid == os.getpid(), frozenset())

    async def story(listener: Listener) -> None:
        listener.send(b"READY=1\nMAINPID=1")
        listener.send(b"MAINPID=%d" % os.getpid())
        await listener.until(3)
        assert [(notice.ready, notice.main_pid) for notice in listener.notices] == [
            (True, None),
            (False, os.getpid()),
        ]
        assert ["MAINPID=1 " in refusal.reason for refusal in listener.refusals] == [True]

    listening(tmp_path, authority, story)


def test_what_the_keeper_drained_is_judged_alike(tmp_path: Path) -> None:
    authority = Authority(lambda pid: pid == 7, frozenset())

    async def story(listener: Listener) -> None:
        listener.socket.replay(b"READY=1", pid=7, uid=0)
        listener.socket.replay(b"STOPPING=1", pid=8, uid=0)
        assert [notice.ready for notice in listener.notices] == [True]
        assert [refusal.notice.stopping for refusal in listener.refusals] == [True]

    listening(tmp_path, authority, story)


def test_a_notice_may_close_its_own_socket(tmp_path: Path) -> None:
    async def story(listener: Listener) -> None:
        listener.send(b"STOPPING=1")
        listener.send(b"STATUS=too late")
        seen = listener.on_notice
        listener.on_notice = lambda notice: (listener.socket.close(), seen(notice))[1]
        await listener.until(1)
        assert [notice.stopping for notice in listener.notices] == [True]

    listening(tmp_path, ANYONE, story)
