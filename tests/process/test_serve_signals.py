"""Every row of the tables of `midstream serve` in SIGNALS.md: what a signal does to master, zygote and workers."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
from tests.process.serving import LIMIT_S, Server, make_release, point, running, wait_for_end_of

from midstream.serve.signals import ALONE, DIALECTS, WORKER, WorkerAct

ENDS = [
    ("midstream", "TERM", True),
    ("midstream", "QUIT", True),
    ("midstream", "INT", False),
    ("unicorn", "QUIT", True),
    ("unicorn", "TERM", False),
    ("unicorn", "INT", False),
    ("gunicorn", "TERM", True),
    ("gunicorn", "QUIT", False),
    ("gunicorn", "INT", False),
]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    point(tmp_path, make_release(tmp_path, "one"))
    make_release(tmp_path, "two")
    return tmp_path


class Asked:
    """One request that the app holds until `gate` is there."""

    def __init__(self, server: Server, gate: Path) -> None:
        self.gate = gate
        self.answer = ""
        self.pid = 0
        self._thread = threading.Thread(target=self._ask, args=(server,), daemon=True)
        self._thread.start()
        server.until("the request has reached the app", Path(f"{gate}.began").exists)

    def _ask(self, server: Server) -> None:
        try:
            reply = server.get(f"/wait?{self.gate}")
            self.answer, self.pid = reply.release, reply.pid
        except OSError as error:
            self.answer = type(error).__name__
        except Exception as error:
            self.answer = type(error).__name__

    def end(self) -> str:
        self._thread.join(LIMIT_S)
        return self.answer


@pytest.mark.parametrize(("dialect", "name", "graceful"), ENDS)
def test_how_the_master_ends(app: Path, dialect: str, name: str, graceful: bool) -> None:
    """Graceful: what is in hand is answered before it ends. Quick: it is not waited for."""
    with running(app, "--signals", dialect) as server:
        request = Asked(server, app / "go")
        server.signal(getattr(signal, f"SIG{name}"))
        server.line(f"SIG{name}: " + ("drains and ends" if graceful else "ends at once"))
        if graceful:
            assert server.process.poll() is None
            request.gate.touch()
        assert server.ends() == 0
        assert request.end() == ("one" if graceful else request.answer)
        assert graceful or request.answer != "one"
        assert server.left() == []
        server.said("STOPPING=1")


def test_ttin_ttou_and_winch_change_the_number_of_workers(app: Path) -> None:
    with running(app) as server:
        server.signal(signal.SIGTTIN)
        server.until("three workers", lambda: len(server.workers()) == 3)
        server.signal(signal.SIGTTOU)
        server.until("two workers", lambda: len(server.workers()) == 2)
        server.signal(signal.SIGTTOU)
        server.until("one worker", lambda: len(server.workers()) == 1)
        server.signal(signal.SIGTTOU)
        server.line("1 workers from now on")
        assert len(server.workers()) == 1
        server.signal(signal.SIGWINCH)
        server.until("no worker", lambda: server.workers() == [])
        server.signal(signal.SIGTTIN)
        server.until("one worker again", lambda: len(server.workers()) == 1)
        assert server.get().release == "one"
        server.signal(signal.SIGWINCH)
        server.until("no worker", lambda: server.workers() == [])
        assert server.reload().ok  # as Unicorn's HUP after WINCH: all of them
        server.until("two workers", lambda: len(server.workers()) == 2)


def test_what_is_added_by_ttin_stays_after_an_upgrade(app: Path) -> None:
    with running(app) as server:
        server.signal(signal.SIGTTIN)
        server.until("three workers", lambda: len(server.workers()) == 3)
        server.signal(signal.SIGUSR2)
        server.line("generation 2 .*serves")
        server.until("three workers", lambda: server.serving()["number"] == 2 and len(server.workers()) == 3)


def test_usr1_opens_the_logs_of_all_processes_anew(app: Path) -> None:
    log, errors = app / "access.log", app / "error.log"
    with running(app, "--access-log", str(log), "--error-log", str(errors)) as server:
        server.get("/first")
        server.until("the line is written", lambda: "/first" in log.read_text())
        log.rename(app / "access.log.1")
        errors.rename(app / "error.log.1")
        server.signal(signal.SIGUSR1)
        server.until("both are made anew", lambda: log.exists() and errors.exists())
        server.get("/second")
        server.until("the line is in the new file", lambda: "/second" in log.read_text())
        server.signal(signal.SIGKILL, server.workers()[0])
        server.until("the zygote writes to the new file", lambda: "was killed by signal KILL" in errors.read_text())
        server.signal(signal.SIGTTIN)
        server.until("the master, too", lambda: "workers from now on" in errors.read_text())
        assert "/second" not in (app / "access.log.1").read_text()


def test_what_is_for_all_is_nothing_to_one_worker(app: Path) -> None:
    with running(app, "--workers", "1") as server:
        worker = server.workers()[0]
        for number, act in WORKER["midstream"].items():
            if act in (WorkerAct.NOTHING, WorkerAct.REOPEN):
                server.signal(number, worker)
                assert server.get().pid == worker


@pytest.mark.parametrize(("dialect", "name"), [("midstream", "TERM"), ("midstream", "INT"), ("unicorn", "TERM")])
def test_a_worker_that_is_told_to_end_has_a_successor(app: Path, dialect: str, name: str) -> None:
    """Graceful: it answers what it has."""
    number = getattr(signal, f"SIG{name}")
    graceful = WORKER[dialect][number] is WorkerAct.GRACEFUL
    with running(app, "--signals", dialect, "--workers", "1") as server:
        worker = server.workers()[0]
        request = Asked(server, app / "go")
        server.signal(number, worker)
        server.line(rf"worker 0 \({worker}\) ends, because it was sent a signal")
        server.until("another worker", lambda: any(pid != worker for pid in server.workers()))
        if graceful:
            assert worker in server.workers()
            request.gate.touch()
        wait_for_end_of(worker)
        assert (request.end() == "one") is graceful
        assert server.get().pid != worker


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_zygote_that_is_told_to_end_is_replaced_first(app: Path, name: str) -> None:
    with running(app) as server:
        before = server.workers()
        point(app, app / "releases/two")  # nobody asked for an upgrade: the committed release comes again
        server.signal(getattr(signal, f"SIG{name}"), server.zygote())
        server.line("it is replaced by a fresh one")
        server.line(r"generation 2 \(one\): serves")
        server.line("generation 1 .*has drained")
        assert not set(before) & set(server.left())
        assert server.get().release == "one"


def test_other_signals_to_the_zygote_are_passed_on_to_the_master(app: Path) -> None:
    with running(app) as server:
        server.signal(signal.SIGTTIN, server.zygote())
        server.until("three workers", lambda: len(server.workers()) == 3)
        server.signal(signal.SIGTTOU, server.zygote())
        server.until("two workers", lambda: len(server.workers()) == 2)
        server.signal(signal.SIGUSR1, server.zygote())
        point(app, app / "releases/two")
        server.signal(signal.SIGHUP, server.zygote())
        server.line(r"generation 2 \(two\): serves")
        server.signal(signal.SIGWINCH, server.zygote())
        server.until("no workers", lambda: server.workers() == [])


def test_a_zygote_without_a_master_obeys_by_itself(app: Path) -> None:
    with running(app) as server:
        zygote = server.zygote()
        server.signal(signal.SIGKILL)
        server.line("the master is gone")
        request = Asked(server, app / "go")
        server.signal(signal.SIGUSR2, zygote)
        server.line("nothing is upgraded while there is no master")
        server.signal(signal.SIGTTIN, zygote)
        server.until("three workers", lambda: len(server.left()) == 4)
        server.signal(signal.SIGTERM, zygote)
        request.gate.touch()
        assert request.end() == "one"
        wait_for_end_of(zygote)
        server.until("nothing is left", lambda: server.left() == [])


def test_signals_md_says_what_the_tables_say() -> None:
    page = (Path(__file__).parents[2] / "SIGNALS.md").read_text()
    for table in (*DIALECTS.values(), ALONE):
        for number, act in table.items():
            assert number.name.removeprefix("SIG") in page and act.value in page
    for table in WORKER.values():
        for act in table.values():
            assert act.value in page
