"""A zygote that hangs after its boot (stopped by SIGSTOP: it lives, and does nothing): the master notices, nobody loses."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.process.serving import Server, make_release, point, running
from tests.process.test_serve_master import InHand, Load


@pytest.fixture
def app(tmp_path: Path) -> Path:
    point(tmp_path, make_release(tmp_path, "one"))
    make_release(tmp_path, "two")
    return tmp_path


def test_it_is_killed_and_another_one_of_its_release_takes_its_place(app: Path) -> None:
    with running(app, "--timeout", "2") as server, InHand(server, app / "go") as request, Load(server.port) as load:
        before, zygote = server.workers(), server.zygote()
        point(app, app / "releases/two")  # not asked for: the committed release comes back
        server.signal(signal.SIGSTOP, zygote)
        server.line(rf"generation 1 \(one\): the zygote {zygote} hangs: it has not answered for 2 s")
        server.line("2 workers serve on, and a zygote of the same release takes their place")
        server.line(r"generation 2 \(one\): serves")
        request.let_go()
        assert request.answer().startswith("one ")
        server.line("generation 1 .*has drained")
        load.more_answers(20)
        assert not {zygote, *before} & set(server.left())
    assert load.failed == []


def test_one_that_is_only_slow_is_left_alone(app: Path) -> None:
    with running(app, "--timeout", "10") as server:
        zygote = server.zygote()
        server.signal(signal.SIGSTOP, zygote)
        server.signal(signal.SIGKILL, server.workers()[0])  # its end is noticed when the zygote goes on
        server.until("the request for it to end", lambda: len(load_of(server)) < 2)
        server.signal(signal.SIGCONT, zygote)
        server.until("two workers again", lambda: len(server.workers()) == 2)
        assert server.zygote() == zygote


def load_of(server: Server) -> list[int]:
    """The workers that are there to serve, whatever the zygote has noticed."""
    return [pid for pid in server.workers() if b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()]


def test_the_next_master_takes_over_the_workers_of_one_that_hangs(app: Path) -> None:
    """Without a master nobody has killed it; it holds the address and answers nobody."""
    with running(app) as server, Load(server.port) as load:
        before, zygote = server.workers(), server.zygote()
        server.signal(signal.SIGSTOP, zygote)
        server.signal(signal.SIGKILL)
        mark = server.mark()
        server.start_again()
        for pid in before:
            server.line(rf"took over worker {pid} of generation 1 \(one\)", mark)
        server.line(r"generation 2 \(one\): serves", mark)
        load.more_answers(20)
        server.line("generation 1 .*has drained", mark)
        assert not {zygote, *before} & set(server.left())
    assert load.failed == []


def test_an_upgrade_drains_the_workers_of_one_that_hangs(app: Path) -> None:
    """It would tell them nothing; they are told without it, and answer what they have."""
    arguments = ("--timeout", "0")  # it is not asked from time to time
    with running(app, *arguments) as server, InHand(server, app / "go") as request, Load(server.port) as load:
        zygote = server.zygote()
        server.signal(signal.SIGSTOP, zygote)
        point(app, app / "releases/two")
        assert server.reload().ok
        assert server.get().release in ("one", "two")  # the old workers accept until they are told
        server.line(rf"generation 1 \(one\): the zygote {zygote} hangs")
        request.let_go()
        assert request.answer().startswith("one ")
        server.line(r"generation 1 \(one\): has drained in .*; nothing was cut")
        load.more_answers(20)
        assert server.get().release == "two"
    assert load.failed == []
