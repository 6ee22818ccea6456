"""Every row of the tables of `midstream serve` in SIGNALS.md: what a signal does to master, zygote and workers."""

from __future__ import annotations

import re
import signal
import threading
from pathlib import Path

import pytest
from tests.process.serving import LIMIT_S, Server, make_release, point, running, wait_for_end_of

from midstream.serve.signals import ALONE, DIALECTS, WORKER, Act, WorkerAct

PAGE = Path(__file__).parents[2] / "SIGNALS.md"
ENDING = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)
# (dialect, signal, whether what is in hand is answered first): of the master, and of a worker that is sent it
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


@pytest.mark.parametrize("dialect", ["unicorn", "gunicorn"])
def test_what_does_not_end_it_means_the_same_in_each_dialect(app: Path, dialect: str) -> None:
    log = app / "access.log"
    with running(app, "--signals", dialect, "--access-log", str(log)) as server:
        server.signal(signal.SIGTTIN)
        server.until("three workers", lambda: len(server.workers()) == 3)
        server.signal(signal.SIGTTOU)
        server.until("two workers", lambda: len(server.workers()) == 2)
        log.rename(app / "access.log.1")
        server.signal(signal.SIGUSR1)
        server.until("it is made anew", log.exists)
        point(app, app / "releases/two")
        for generation, number in ((2, signal.SIGHUP), (3, signal.SIGUSR2)):
            server.signal(number)
            server.line(rf"generation {generation} \(two\): serves")
        assert server.get().release == "two"
        server.signal(signal.SIGWINCH)
        server.until("no worker", lambda: server.workers() == [])
        assert server.process.poll() is None


def test_the_last_worker_ends_by_ttou_in_unicorns_dialect_alone(app: Path) -> None:
    with running(app, "--signals", "unicorn", "--workers", "1") as server:
        server.signal(signal.SIGTTOU)
        server.until("no worker", lambda: server.workers() == [])
        server.signal(signal.SIGTTOU)
        server.status()  # of signals that wait together the kernel delivers the lowest first; who answers has taken it
        server.signal(signal.SIGTTIN)
        server.until("one worker again", lambda: len(server.workers()) == 1)
        zygote = server.zygote()
        server.signal(signal.SIGKILL)
        server.line("the master is gone")
        server.signal(signal.SIGTTOU, zygote)
        server.until("no worker, without a master either", lambda: server.left() == [zygote])


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


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_worker_that_is_told_to_end_has_a_successor(app: Path, dialect: str) -> None:
    """Graceful: it answers what it has. Quick: it does not."""
    with running(app, "--signals", dialect, "--workers", "1", "--graceful-timeout", "300") as server:
        for number in ENDING:
            [worker] = server.workers()
            request = Asked(server, app / f"go.{number.name}")
            server.signal(number, worker)
            server.line(rf"worker \d+ \({worker}\) ends, because it was sent a signal")
            server.until("another worker", lambda worker=worker: set(server.workers()) - {worker})
            graceful = (dialect, number.name.removeprefix("SIG"), True) in ENDS
            if graceful:
                assert worker in server.workers()
                request.gate.touch()
            wait_for_end_of(worker)
            assert (request.end() == "one") is graceful
            server.until("it alone", lambda worker=worker: worker not in server.workers())
            assert server.get().pid != worker


def test_a_zygote_that_is_told_to_end_is_replaced_first(app: Path) -> None:
    with running(app) as server:
        point(app, app / "releases/two")  # nobody asked for an upgrade: the committed release comes again
        for generation, number in enumerate(ENDING, 1):
            before, zygote = server.workers(), server.zygote()
            server.signal(number, zygote)
            server.line(rf"{number.name} to the zygote {zygote}: it is replaced by a fresh one")
            server.line(rf"generation {generation + 1} \(one\): serves")
            server.line(rf"generation {generation} .*has drained")
            assert not {zygote, *before} & set(server.left())
            assert server.get().release == "one"


def test_other_signals_to_the_zygote_are_passed_on_to_the_master(app: Path) -> None:
    with running(app) as server:
        server.signal(signal.SIGTTIN, server.zygote())
        server.until("three workers", lambda: len(server.workers()) == 3)
        server.signal(signal.SIGTTOU, server.zygote())
        server.until("two workers", lambda: len(server.workers()) == 2)
        point(app, app / "releases/two")
        server.signal(signal.SIGHUP, server.zygote())
        server.line(r"generation 2 \(two\): serves")
        server.signal(signal.SIGUSR2, server.zygote())
        server.line(r"generation 3 \(two\): serves")
        server.signal(signal.SIGWINCH, server.zygote())
        server.until("no workers", lambda: server.workers() == [])


def test_usr1_to_a_worker_or_the_zygote_opens_what_it_writes_anew(app: Path) -> None:
    log, errors = app / "access.log", app / "error.log"
    with running(app, "--workers", "1", "--access-log", str(log), "--error-log", str(errors)) as server:
        for pid in (server.workers()[0], server.zygote()):
            for path in (log, errors):
                path.rename(f"{path}.{pid}")
            server.signal(signal.SIGUSR1, pid)
            server.until("both are made anew", lambda: log.exists() and errors.exists())
            server.get(f"/of-{pid}")
            server.until("the line is in the new file", lambda pid=pid: f"/of-{pid}" in log.read_text())
        server.signal(signal.SIGKILL, server.workers()[0])
        server.until("the zygote writes to the new file", lambda: "was killed by signal KILL" in errors.read_text())


def test_a_zygote_without_a_master_obeys_by_itself(app: Path) -> None:
    with running(app) as server:
        zygote = server.zygote()
        server.signal(signal.SIGKILL)
        server.line("the master is gone")
        request = Asked(server, app / "go")
        before = sorted(server.left())
        for number in (signal.SIGUSR2, signal.SIGHUP, signal.SIGWINCH):
            mark = server.mark()
            server.signal(number, zygote)
            server.line("nothing is upgraded while there is no master", mark)
        assert sorted(server.left()) == before
        server.signal(signal.SIGTTIN, zygote)
        server.until("three workers", lambda: len(server.left()) == 4)
        server.signal(signal.SIGTTOU, zygote)
        server.until("two workers", lambda: len(server.left()) == 3)
        server.signal(signal.SIGTERM, zygote)
        request.gate.touch()
        assert request.end() == "one"
        wait_for_end_of(zygote)
        server.until("nothing is left", lambda: server.left() == [])


# ---- the page


def tables() -> list[dict[str, list[str]]]:
    """The tables of `midstream serve` in SIGNALS.md, in their order: what stands in the first column (each name for itself;
    "zygote TERM" where the second column is the signal's), and the other cells. "the same" is the first of them."""
    section = PAGE.read_text(encoding="utf-8").split("\n## midstream serve\n")[1].split("\n## ")[0]
    found: list[dict[str, list[str]]] = []
    for text in re.split(r"^\|[-|]+\|$", section, flags=re.MULTILINE)[1:]:
        found.append(table := {})
        for line in text.split("\n\n")[0].strip().split("\n"):
            first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            if first in ("zygote", "worker"):
                names = [f"{first} {name}" for name in cells.pop(0).split(", ")]
            else:
                names = first.split(", ")
            for at, cell in enumerate(cells):
                cells[at] = cells[0] if cell == "the same" else cell
            assert not table.keys() & names
            table |= dict.fromkeys(names, cells)
    return found


def says(cell: str, act: Act | WorkerAct) -> bool:
    """Whether the cell begins with it; what follows is more of the same."""
    return re.match(re.escape(act.value) + r"($|[:,])", cell) is not None


def test_signals_md_says_what_the_tables_say() -> None:
    master, others, alone = tables()
    assert {"KILL", *(number.name[3:] for number in DIALECTS["midstream"])} == master.keys()
    for column, table in enumerate(DIALECTS.values()):
        for number, act in table.items():
            assert says(master[number.name[3:]][column], act), (number, act)
    assert alone.keys() == {number.name[3:] for number in ALONE}
    for number, act in ALONE.items():
        assert says(alone[number.name[3:]][0].removeprefix("park: "), act), (number, act)
    for dialect, table_of_workers in WORKER.items():
        for number, worker_act in table_of_workers.items():
            [cell] = others[f"worker {number.name[3:]}"]
            if cell.startswith("as its dialect says"):
                assert worker_act.value == DIALECTS[dialect][number].value in cell
            else:
                assert says(cell, worker_act), (number, worker_act)
    names = {f"{who} {name}" for who in ("zygote", "worker") for name in master}
    assert names == others.keys()


def caught(pid: int) -> set[str]:
    """What a process has handlers for."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.split("SigCgt:")[1].split()[0], 16)
    return {item.name.removeprefix("SIG") for item in signal.Signals if mask >> (item - 1) & 1}


def test_the_running_programs_catch_what_the_page_says(app: Path) -> None:
    master, others, _ = tables()
    with running(app, "--workers", "1") as server:
        assert caught(server.pid) == master.keys() - {"KILL"} | {"CHLD"}
        for who, pid in (("zygote", server.zygote()), ("worker", server.workers()[0])):
            on_page = {name.split()[1] for name in others if name.startswith(who)}
            assert caught(pid) - {"CHLD"} == on_page - {"KILL"}
