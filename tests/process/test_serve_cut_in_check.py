"""What befalls `midstream serve` while the health check of a new release waits for its answer: whoever served serves on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.process.serving import LIMIT_S, Server, make_release, point, running, wait_for_end_of
from tests.process.test_serve_master import Load

from midstream.serve import control


@pytest.fixture
def app(tmp_path: Path) -> Path:
    point(tmp_path, make_release(tmp_path, "one"))
    make_release(tmp_path, "two")
    return tmp_path


@pytest.fixture
def server(app: Path) -> Iterator[Server]:
    """Its health check is answered once the gate is open, as it is now."""
    gate(app).touch()
    with running(app, "--health-path", f"/wait?{gate(app)}") as started:
        yield started


def gate(app: Path) -> Path:
    return app / "gate"


def asks(server: Server) -> tuple[int, list[int]]:
    """An upgrade to `two` whose health check has been asked and waits. Its zygote and workers."""
    began = Path(f"{gate(server.folder)}.began")
    gate(server.folder).unlink()
    began.unlink()
    point(server.folder, server.folder / "releases/two")
    server.signal(signal.SIGHUP)
    server.until("the check has reached the app", began.exists)
    generations = server.status()["generations"]
    assert isinstance(generations, list)
    [new] = [one for one in generations if one["state"] == "proven"]
    return int(new["zygote"]), list(new["workers"])


def test_the_end_of_the_new_processes_is_a_failed_upgrade_and_that_of_the_old_zygote_is_none(server: Server) -> None:
    before = server.workers()
    with Load(server.port) as load:
        for kill in ("workers", "zygote"):
            mark = server.mark()
            zygote, workers = asks(server)
            for pid in workers if kill == "workers" else [zygote]:
                server.signal(signal.SIGKILL, pid)
            server.line("upgrade failed", mark)
            wait_for_end_of(zygote)
            assert (server.workers(), server.get().release) == (before, "one")
            gate(server.folder).touch()

        mark = server.mark()
        asks(server)
        server.signal(signal.SIGKILL, server.zygote())
        server.line(r"generation 1 \(one\): the zygote was killed by signal 9; 2 workers serve on", mark)
        assert server.get().release == "one"
        gate(server.folder).touch()
        server.line(r"generation \d+ \(two\): serves", mark)
        server.line(r"generation 1 \(one\): has drained", mark)
        load.more_answers(20)
        assert server.get().release == "two"
    assert load.failed == []


def test_the_master_may_be_killed_or_told_to_end(server: Server) -> None:
    with Load(server.port) as load:
        zygote, workers = asks(server)
        server.signal(signal.SIGKILL)
        for pid in (zygote, *workers):
            wait_for_end_of(pid)  # it has never served, and nobody could tell it to
        load.more_answers(20)
        assert server.get().release == "one"
        gate(server.folder).touch()
        mark = server.mark()
        server.start_again()
        server.line(r"took over generation 1 \(one\)", mark)
        server.line(r"generation \d+ \(two\): serves", mark)
        load.more_answers(20)
    assert load.failed == []

    asks(server)
    answers: list[control.Answer] = []
    asking = threading.Thread(target=lambda: answers.append(server.reload()))
    asking.start()
    server.line("one more follows it", mark)
    server.signal(signal.SIGTERM)
    assert server.ends() == 0
    assert server.left() == []
    asking.join(LIMIT_S)
    assert not answers[0].ok and "told to stop" in answers[0].text
    assert len([line for line in server.lines[mark:] if "(two): serves" in line]) == 1
