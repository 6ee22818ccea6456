"""`midstream serve` as a whole: upgrades, failures, deaths of each of its processes. Real processes, real HTTP."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.process.serving import LIMIT_S, Server, make_release, point, running, wait_for_end_of

import midstream
from midstream.errors import DriftError
from midstream.serve import control


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A folder with two releases; `current` leads to `one`."""
    point(tmp_path, make_release(tmp_path, "one"))
    make_release(tmp_path, "two")
    return tmp_path


def test_it_serves_with_titles_and_the_release_in_each_answer(app: Path) -> None:
    with running(app) as server:
        reply = server.get()
        assert (reply.release, reply.headers["X-Release"]) == ("one", "one")
        assert reply.pid in server.workers()
        titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode() for pid in server.left()}
        assert titles[server.pid] == "midstream serve: master [app:app] one #1"
        assert titles[server.zygote()] == "midstream serve: zygote [app:app] one #1"
        assert sorted(titles[pid] for pid in server.workers()) == [
            "midstream serve: worker 0 [app:app] one #1",
            "midstream serve: worker 1 [app:app] one #1",
        ]
        assert b"MIDSTREAM_RELEASE=one\0" in Path(f"/proc/{server.zygote()}/environ").read_bytes()


def test_without_titles_all_processes_keep_their_command_line(app: Path) -> None:
    with running(app, "--no-proc-title") as server:
        point(app, app / "releases/two")
        assert server.reload().ok
        for pid in server.left():
            assert b"midstream serve: " not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert server.get().headers["X-Release"] == "two"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_an_upgrade_loads_where_current_leads_now_and_keeps_the_pid(app: Path, number: signal.Signals) -> None:
    with running(app) as server:
        before, pid = server.workers(), server.pid
        point(app, app / "releases/two")
        server.signal(number)
        server.line(r"generation 1 \(one\): has drained in .*; nothing was cut")
        assert server.get().release == "two"
        assert server.pid == pid and server.process.poll() is None
        assert not set(before) & set(server.left())


def test_a_request_in_hand_is_answered_by_the_old_workers(app: Path) -> None:
    with running(app) as server, InHand(server, app / "go") as request:
        point(app, app / "releases/two")
        assert server.reload().ok
        assert server.get().release == "two"
        request.let_go()
        assert request.answer().startswith("one ")
        server.line("generation 1 .*nothing was cut")


@pytest.mark.parametrize("linger", ["20", "0"])
def test_a_late_request_on_an_idle_connection_is_answered_unless_there_is_no_linger(app: Path, linger: str) -> None:
    with running(app, "--linger", linger) as server:
        with idle_connection(server.port) as idle:
            point(app, app / "releases/two")
            assert server.reload().ok
            if linger == "0":
                assert idle.recv(1) == b""
                return
            idle.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while data := idle.recv(65536):
                answer += data
        assert b"connection: close" in answer.lower() and b"\r\n\r\none " in answer


def test_no_request_fails_while_upgrades_follow_each_other(app: Path) -> None:
    with running(app) as server, Load(server.port) as load:
        for name in ("two", "one", "two"):
            point(app, app / "releases" / name)
            assert server.reload().ok
            load.more_answers(50)
    assert load.failed == []
    assert load.answers > 150


# ---- releases that do not come up

BROKEN = {
    "import-error": ("import no_such_module_at_all", "No module named 'no_such_module_at_all'"),
    "syntax-error": ("def broken(:", "SyntaxError"),
    "exit": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by signal 9"),
    "thread": (
        "import threading, time; threading.Thread(target=time.sleep, args=(1000,), daemon=True, name='ticker').start()",
        "thread 'ticker'",
    ),
    "connection": (
        "import socket; a = socket.create_server(('127.0.0.1', 0)); b = socket.create_connection(a.getsockname())",
        r"a connection to 127.0.0.1:\d+ \(descriptor \d+\) of app",
    ),
}


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with a health check and a boot time-out, for all releases that fail."""
    folder = tmp_path_factory.mktemp("broken")
    point(folder, make_release(folder, "good"))
    hooks = folder / "hooks.py"
    hooks.write_text(
        "import os\ndef after_fork(worker):\n    if os.path.exists('exit-in-after-fork'):\n        raise SystemExit(7)\n"
    )
    config = folder / "serve.toml"
    config.write_text('boot_timeout = "60s"')
    arguments = ("--health-path", "/up", "--config", str(config), "--hooks", str(hooks))
    with running(folder, *arguments) as server:
        yield server


def refused(server: Server, words: str) -> str:
    """An upgrade fails, says so everywhere, and what served goes on serving with the same processes: no request fails."""
    with Load(server.port) as load:
        before = server.workers()
        told = len(server.told)
        mark = server.mark()
        load.more_answers(2)
        answer = server.reload()
        assert not answer.ok
        server.line("upgrade failed", mark)
        server.said("STATUS=serving good .*the last upgrade failed", told)
        assert server.workers() == before
        assert server.get().release == "good"
        load.more_answers(4)
    assert load.failed == []
    import re

    assert re.search(words, answer.text), answer.text
    assert "serving: generation" in answer.text
    return answer.text


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_release_that_does_not_boot_changes_nothing(checked: Server, name: str) -> None:
    code, words = BROKEN[name]
    release = make_release(checked.folder, name, code)
    point(checked.folder, release)
    refused(checked, words)


def test_a_release_that_hangs_at_its_start_changes_nothing(checked: Server) -> None:
    point(checked.folder, make_release(checked.folder, "hang", "import time; time.sleep(1000)"))
    (checked.folder / "serve.toml").write_text('boot_timeout = "1s"')
    try:
        refused(checked, "did not get ready within 1 s")
    finally:
        (checked.folder / "serve.toml").write_text('boot_timeout = "60s"')


def test_a_release_that_is_not_there_changes_nothing(checked: Server) -> None:
    point(checked.folder, checked.folder / "releases/removed")
    assert "--chdir" in refused(checked, "there is no folder")


def test_a_hook_that_exits_in_a_worker_changes_nothing(checked: Server) -> None:
    release = make_release(checked.folder, "hooked")
    (release / "exit-in-after-fork").touch()
    point(checked.folder, release)
    refused(checked, "hook after_fork failed: SystemExit: 7")


def test_a_release_that_answers_500_to_its_check_changes_nothing(checked: Server) -> None:
    release = make_release(checked.folder, "sick")
    (release / "sick").touch()
    point(checked.folder, release)
    refused(checked, "GET /up: it answered 500")


def test_a_virtualenv_without_midstream_is_named_with_its_remedy(checked: Server) -> None:
    release = make_release(checked.folder, "bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(release / ".venv")], check=True)
    point(checked.folder, release)
    text = refused(checked, "there is no midstream with `serve` in the release's virtualenv")
    assert "midstream[serve]" in text


def test_a_virtualenv_whose_python_is_gone_is_named(checked: Server) -> None:
    release = make_release(checked.folder, "dangling")
    (release / ".venv/bin").mkdir(parents=True)
    (release / ".venv/bin/python").symlink_to("/nowhere/python3")
    point(checked.folder, release)
    refused(checked, "leads nowhere")


def test_after_all_of_that_a_good_release_comes_up(checked: Server) -> None:
    point(checked.folder, make_release(checked.folder, "good-again"))
    assert checked.reload().ok
    assert checked.get().release == "good-again"


def test_a_first_release_that_does_not_boot_ends_the_server_with_status_1(tmp_path: Path) -> None:
    point(tmp_path, make_release(tmp_path, "bad", "import no_such_module_at_all"))
    with running(tmp_path, ready=False) as server:
        assert server.ends() == 1
        server.line("the app does not start: .*no_such_module_at_all")
        assert server.left() == []


def test_the_old_release_may_be_gone_from_the_disk(app: Path) -> None:
    with running(app) as server:
        point(app, app / "releases/two")
        for path in sorted((app / "releases/one").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (app / "releases/one").rmdir()
        assert server.get().release == "one"
        assert server.reload().ok
        assert server.get().release == "two"


def test_the_masters_own_files_may_be_gone(app: Path, tmp_path: Path) -> None:
    """It has all that it needs in memory: for upgrades that work and that do not, for commands, for its end."""
    copy = tmp_path / "lib/midstream"
    shutil.copytree(Path(midstream.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    config = app / "serve.toml"
    config.write_text("threads = 2")
    program = [sys.executable, "-I", str(copy)]
    with running(app, "--config", str(config), "--metrics", "127.0.0.1:0", program=program) as server:
        assert server.process.args[0] == sys.executable  # type: ignore[index]
        shutil.rmtree(copy)
        point(app, app / "releases/two")
        assert server.reload().ok
        assert server.get().release == "two"
        point(app, make_release(app, "bad", "import no_such_module_at_all"))
        assert "no_such_module_at_all" in server.reload().text
        config.write_text("threds = 2")
        assert "threds" in server.reload().text
        config.write_text("threads = 2")
        server.signal(signal.SIGKILL, server.zygote())
        server.line(r"generation \d+ \(two\): serves", server.mark())
        server.signal(signal.SIGTERM)
        assert server.ends() == 0
        assert not [line for line in server.lines if "ImportError" in line or "FileNotFoundError" in line]


# ---- two at once

SLOW = "import os, time\nopen('loading', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.01)"


def test_two_signals_at_once_and_one_during_the_handover_end_at_the_latest_release(app: Path) -> None:
    slow = make_release(app, "slow", SLOW)
    with running(app) as server:
        point(app, slow)
        server.signal(signal.SIGUSR2)
        server.until("the new zygote loads", (slow / "loading").exists)
        server.signal(signal.SIGUSR2)
        server.line("one more follows it")
        server.signal(signal.SIGUSR2)
        point(app, app / "releases/two")
        (slow / "go").touch()
        server.line(r"generation 3 \(two\): serves")
        assert server.get().release == "two"
        server.line(r"generation 2 \(slow\): has drained")
        assert server.status()["phase"] == "steady"
        assert not [line for line in server.lines if "generation 4" in line]


def test_a_reload_asked_for_during_a_handover_is_answered_by_the_next(app: Path) -> None:
    slow = make_release(app, "slow", SLOW)
    with running(app) as server:
        point(app, slow)
        server.signal(signal.SIGHUP)
        server.until("the new zygote loads", (slow / "loading").exists)
        point(app, app / "releases/two")
        answers: list[control.Answer] = []
        asking = threading.Thread(target=lambda: answers.append(server.reload()))
        asking.start()
        server.line("one more follows it")
        (slow / "go").touch()
        asking.join(LIMIT_S)
        assert answers[0].ok and "(two)" in answers[0].text


def test_term_during_a_handover_discards_the_new_and_drains_the_old(app: Path) -> None:
    slow = make_release(app, "slow", SLOW)
    with running(app) as server:
        point(app, slow)
        server.signal(signal.SIGHUP)
        server.until("the new zygote loads", (slow / "loading").exists)
        server.signal(signal.SIGTERM)
        assert server.ends() == 0
        assert server.left() == []
        assert not [line for line in server.lines if "(slow): serves" in line]


def test_at_most_three_generations_drain_and_the_next_upgrade_waits(app: Path) -> None:
    with running(app, "--linger", "30") as server:
        connections = []
        for _ in range(3):
            connections.append(idle_connection(server.port))
            assert server.reload().ok
        mark = server.mark()
        server.signal(signal.SIGUSR2)
        server.signal(signal.SIGUSR2)
        server.line("3 generations drain: the upgrade waits", mark)
        assert server.serving()["number"] == 4
        connections[0].close()
        server.line(r"generation 5 \(one\): serves", mark)
        for connection in connections:
            connection.close()
        server.line(r"generation 4 .* has drained", mark)
        assert server.serving()["number"] == 5


def test_hup_with_a_broken_configuration_changes_nothing(app: Path) -> None:
    config = app / "serve.toml"
    config.write_text("threads = 2\n")
    with running(app, "--config", str(config)) as server:
        before = server.workers()
        config.write_text('threads = "many"\n')
        answer = server.reload()
        assert not answer.ok and "threads" in answer.text
        assert server.workers() == before
        config.write_text("threads = 8\n")
        assert server.reload().ok


# ---- deaths


def test_a_killed_worker_comes_back_at_once(app: Path) -> None:
    with running(app) as server:
        victim = server.workers()[0]
        server.signal(signal.SIGKILL, victim)
        server.line(rf"worker \d \({victim}\) was killed by signal KILL")
        server.until("two workers again", lambda: len(server.workers()) == 2 and victim not in server.workers())
        assert server.get().release == "one"


def test_a_killed_zygote_is_replaced_and_its_workers_lose_nothing(app: Path) -> None:
    with running(app) as server, InHand(server, app / "go") as request:
        before, zygote = server.workers(), server.zygote()
        point(app, app / "releases/two")  # not asked for: the committed release comes back
        server.signal(signal.SIGKILL, zygote)
        server.line("2 workers serve on, and a zygote of the same release takes their place")
        server.line(r"generation 2 \(one\): serves")
        assert server.get().release == "one"
        request.let_go()
        assert request.answer().startswith("one ")
        server.line("generation 1 .*has drained")
        assert not set(before) & set(server.left())


def test_without_a_master_it_serves_on_and_the_next_one_takes_over(app: Path) -> None:
    with running(app) as server, InHand(server, app / "go") as request, Load(server.port) as load:
        zygote = server.zygote()
        server.signal(signal.SIGKILL)
        server.process.wait(LIMIT_S)
        server.line("the master is gone; this zygote serves on")
        load.more_answers(20)
        point(app, app / "releases/two")
        mark = server.mark()
        server.start_again()
        server.line(rf"took over generation 1 \(one\), zygote {zygote}", mark)
        server.line(r"generation 2 \(two\): serves", mark)
        load.more_answers(20)
        request.let_go()
        assert request.answer().startswith("one ")
        server.line("generation 1 .*has drained", mark)
    assert load.failed == []


def test_workers_without_zygote_and_master_serve_on_and_are_taken_over(app: Path) -> None:
    with running(app) as server, Load(server.port) as load:
        before, zygote = server.workers(), server.zygote()
        server.signal(signal.SIGKILL)
        server.line("the master is gone")
        server.signal(signal.SIGKILL, zygote)
        for _ in before:
            server.line("the zygote is gone; this worker serves on")
        load.more_answers(20)
        mark = server.mark()
        server.start_again()
        for pid in before:
            server.line(rf"took over worker {pid} of generation 1 \(one\)", mark)
        server.line(r"generation 2 \(one\): serves", mark)
        server.line("generation 1 .*has drained", mark)
        load.more_answers(20)
        assert not set(before) & set(server.left())
    assert load.failed == []


def test_the_next_master_keeps_what_serves_when_the_new_release_fails(app: Path) -> None:
    with running(app) as server:
        before = server.workers()
        server.signal(signal.SIGKILL)
        point(app, make_release(app, "bad", "import no_such_module_at_all"))
        mark = server.mark()
        server.start_again()
        server.line("upgrade failed", mark)
        assert server.get().release == "one"
        assert server.workers() == before
        point(app, app / "releases/two")
        assert server.reload().ok
        assert server.get().release == "two"
        server.signal(signal.SIGTERM)
        assert server.ends() == 0
        assert server.left() == []


def test_a_zygote_that_was_not_proven_ends_with_its_master(app: Path) -> None:
    slow = make_release(app, "slow", SLOW)
    with running(app) as server:
        old = server.zygote()
        point(app, slow)
        server.signal(signal.SIGHUP)
        server.until("the new zygote loads", (slow / "loading").exists)
        new = max(server.left())
        server.signal(signal.SIGKILL)
        (slow / "go").touch()
        wait_for_end_of(new)
        server.until("only the old zygote and its workers are left", lambda: len(server.left()) == 3)
        assert old in server.left()
        assert server.get().release == "one"


def test_a_second_master_on_the_same_bind_is_told_who_has_it(app: Path) -> None:
    with running(app) as server:
        command = [sys.executable, "-m", "midstream", "serve", "app:app", "--bind", f"127.0.0.1:{server.port}"]
        second = subprocess.run(
            [*command, "--chdir", str(app / "current")], capture_output=True, text=True, timeout=LIMIT_S
        )
        assert second.returncode == 1
        assert f"served already by the master with pid {server.pid}" in second.stderr
        assert server.get().release == "one"


def test_a_server_that_is_not_there_is_told_so(app: Path) -> None:
    with pytest.raises(DriftError):
        control.ask("status", binds=("tcp://127.0.0.1:1",))


# ---- what the tests above use


class InHand:
    """One request that its worker holds until it is let go."""

    def __init__(self, server: Server, gate: Path) -> None:
        self._gate = gate
        self._server = server
        self._answer: list[str] = []
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        self._answer.append(self._server.get(f"/wait?{self._gate}").body)

    def __enter__(self) -> InHand:
        self._thread.start()
        self._server.until("the request has reached the app", Path(f"{self._gate}.began").exists)
        return self

    def let_go(self) -> None:
        self._gate.touch()

    def answer(self) -> str:
        self._thread.join(LIMIT_S)
        assert self._answer, "it got no answer"
        return self._answer[0]

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self._thread.join(LIMIT_S)


class Load:
    """Two clients that ask all the time: one keeps its connection alive, one makes a new one for each request."""

    def __init__(self, port: int) -> None:
        self.answers = 0
        self.failed: list[str] = []
        self._port = port
        self._stop = False
        self._news = threading.Condition()
        self._threads = [threading.Thread(target=self._ask, args=(keep,), daemon=True) for keep in (True, False)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join(LIMIT_S)

    def more_answers(self, count: int) -> None:
        with self._news:
            wanted = self.answers + count
            assert self._news.wait_for(lambda: self.answers >= wanted, LIMIT_S)

    def _ask(self, keep: bool) -> None:
        import http.client

        connection = None
        while not self._stop:
            try:
                connection = connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=LIMIT_S)
                connection.request("GET", "/", headers={} if keep else {"Connection": "close"})
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    self.failed.append(f"{answer.status} {body!r}")
                if answer.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{'kept' if keep else 'closing'}: {error!r}")
                connection = None
            with self._news:
                self.answers += 1
                self._news.notify_all()
            time.sleep(0.002)


def idle_connection(port: int) -> socket.socket:
    """A kept-alive connection that has had one answer."""
    sock = socket.create_connection(("127.0.0.1", port), LIMIT_S)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    got = b""
    while b"\r\n\r\n" not in got or not got.endswith(b"\n"):
        got += sock.recv(65536)
    return sock
