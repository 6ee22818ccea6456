"""Listeners of `midstream serve`, its user, what a service manager is told; and the zygote alone, as under the agent."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.process.serving import LIMIT_S, Server, make_release, point, running
from tests.process.test_serve_signals import Asked


@pytest.fixture
def app(tmp_path: Path) -> Path:
    point(tmp_path, make_release(tmp_path, "one"))
    make_release(tmp_path, "two")
    return tmp_path


def get_by(sock: socket.socket, path: str = "/") -> str:
    """One request on a connected socket; the body."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = sock
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Connection": "close"})
        return connection.getresponse().read().decode()


def by_unix(path: Path) -> str:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(LIMIT_S)
    sock.connect(str(path))
    return get_by(sock)


def test_it_listens_on_several_addresses_and_removes_its_socket_file_at_the_end(app: Path) -> None:
    path = app / "web.sock"
    with running(app, "--bind", f"unix:{path}") as server:
        assert server.get().release == "one"
        assert by_unix(path).startswith("one ")
        assert server.reload().ok
        assert by_unix(path).startswith("one ")
        server.signal(signal.SIGTERM)
        assert server.ends() == 0
        assert not path.exists()


def test_a_unix_socket_survives_its_master(app: Path) -> None:
    path = app / "web.sock"
    with running(app, "--bind", f"unix:{path}") as server:
        inode = path.stat().st_ino
        server.signal(signal.SIGKILL)
        server.line("the master is gone")
        assert by_unix(path).startswith("one ")
        mark = server.mark()
        server.start_again()
        server.line("generation 2 .*serves", mark)
        assert by_unix(path).startswith("one ")
        assert path.stat().st_ino == inode


def python_for_nobody() -> dict[str, str]:
    """The environment in which nobody can run a Python with what serve needs; skips where there is none."""
    import midstream

    packages = [os.path.dirname(os.path.dirname(str(module.__file__))) for module in (midstream, pytest)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(packages)}
    tried = ["/usr/bin/python3", "-c", "import midstream.serve.wsgi, uvloop"]
    with contextlib.suppress(OSError):
        if not subprocess.run(
            tried, user="nobody", group="nogroup", extra_groups=[], env=environment, cwd="/"
        ).returncode:
            return environment
    pytest.skip("nobody can run no Python with httptools and uvloop here")


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
def test_zygote_and_workers_run_as_the_user_with_his_groups_and_umask(app: Path) -> None:
    for folder in (app, *app.parents):
        if str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    nobody = pwd.getpwnam("nobody")
    path = app / "web.sock"
    arguments = ("--user", "nobody", "--umask", "027", "--bind", f"unix:{path}", "--python", "/usr/bin/python3")
    with running(app, *arguments, environment=python_for_nobody()) as server:
        for pid in (server.zygote(), *server.workers()):
            status = dict(
                line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
            )
            assert set(status["Uid"].split()) == {str(nobody.pw_uid)}
            assert set(status["Gid"].split()) == {str(nobody.pw_gid)}
            assert status["Groups"].split() == [str(nobody.pw_gid)]
            assert status["Umask"] == "0027"
            assert b"HOME=" + nobody.pw_dir.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        assert path.stat().st_uid == nobody.pw_uid
        assert os.stat(f"/proc/{server.pid}").st_uid == 0
        server.signal(signal.SIGKILL)  # root's next master takes over from the user's zygote
        server.line("the master is gone")
        mark = server.mark()
        server.start_again()
        server.line("took over generation 1", mark)
        server.line("generation 2 .*serves", mark)


def test_the_pid_file_names_the_master_until_its_end(app: Path) -> None:
    path = app / "run.pid"
    with running(app, "--pid", str(path)) as server:
        assert path.read_text() == f"{server.pid}\n"
        assert server.reload().ok
        assert path.read_text() == f"{server.pid}\n"
        server.signal(signal.SIGTERM)
        server.ends()
        assert not path.exists()


def test_what_a_service_manager_is_told(app: Path) -> None:
    with running(app, environment={"WATCHDOG_USEC": "400000"}) as server:
        server.said("WATCHDOG=1")
        server.said(r"STATUS=serving one \(#1\); 0 in flight, 0 idle")
        mark = len(server.told)
        point(app, app / "releases/two")
        server.signal(signal.SIGHUP)
        server.said("RELOADING=1", mark)
        server.said(r"MONOTONIC_USEC=\d+", mark)
        server.said(r"STATUS=.*upgrade to two: booting", mark)
        server.said("READY=1", mark)
        server.said(r"STATUS=serving two \(#2\)", mark)
        environ = Path(f"/proc/{server.zygote()}/environ").read_bytes()
        assert b"NOTIFY_SOCKET" not in environ and b"WATCHDOG_USEC" not in environ


class Given:
    """A program started with LISTEN_FDS, as systemd, s6 or the agent does it."""

    def __init__(self, app: Path, names: list[str], *arguments: str, environment: dict[str, str]) -> None:
        self.sockets = [socket.create_server(("127.0.0.1", 0), backlog=5) for _ in names]
        numbers = [sock.fileno() for sock in self.sockets]
        place = "".join(f"os.dup2(os.dup({fd}), {100 + i}); " for i, fd in enumerate(numbers))
        place += "".join(f"os.dup2({100 + i}, {3 + i}, inheritable=True); " for i in range(len(numbers)))
        code = (
            f"import os, sys; {place}os.environ['LISTEN_PID'] = str(os.getpid()); "
            f"os.execv(sys.executable, {self._argv(app, arguments)!r})"
        )
        self.environment = {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names), **environment}
        self.command = [sys.executable, "-c", code]

    @staticmethod
    def _argv(app: Path, arguments: tuple[str, ...]) -> list[str]:
        chdir = ["--chdir", str(app / "current"), "--linger", "1"]
        return [sys.executable, "-m", "midstream", "serve", "app:app", *chdir, *arguments]

    def get(self, index: int) -> str:
        return get_by(socket.create_connection(self.sockets[index].getsockname(), LIMIT_S))

    def refuses(self, index: int) -> bool:
        """Nobody accepts there now: the connection waits in the queue."""
        with socket.create_connection(self.sockets[index].getsockname(), LIMIT_S) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            sock.settimeout(0.3)
            try:
                return not sock.recv(1)
            except TimeoutError:
                return True


@contextlib.contextmanager
def given(
    app: Path, names: list[str], *arguments: str, environment: dict[str, str] | None = None
) -> Iterator[tuple[Given, Server]]:
    how = Given(app, names, *arguments, environment=environment or {})
    passed = [sock.fileno() for sock in how.sockets]

    class Started(Server):
        def _start(self) -> subprocess.Popen[bytes]:
            import threading

            process = subprocess.Popen(
                how.command,
                env={**self._environment, **how.environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=passed,
                start_new_session=True,
            )
            threading.Thread(target=self._read, args=(process,), daemon=True).start()
            return process

    server = Started(app, [], {}, how.sockets[0].getsockname()[1])
    try:
        server.said("READY=1")
        yield how, server
    finally:
        server.close()
        for sock in how.sockets:
            sock.close()


def backlog_of(sock: socket.socket) -> int:
    """What listen(2) was told last: the column Send-Q of ss(8) for a listener."""
    port = sock.getsockname()[1]
    out = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return int(out.split()[2])


def test_sockets_that_are_given_take_the_place_of_binds_and_get_their_backlog(app: Path) -> None:
    with given(app, ["web", "admin"], "--bind", "127.0.0.1:1", "--backlog", "77") as (how, server):
        assert how.get(0).startswith("one ") and how.get(1).startswith("one ")
        assert backlog_of(how.sockets[0]) == 77
        assert not os.get_blocking(how.sockets[0].fileno())
        point(app, app / "releases/two")
        server.signal(signal.SIGHUP)
        server.line(r"generation 2 \(two\): serves")
        assert how.get(1).startswith("two ")


ALONE = {"MIDSTREAM_GENERATION": "42", "MIDSTREAM_RELEASE": "20261121190501", "MIDSTREAM_SERVICE": "web"}


def test_alone_it_takes_the_agents_listeners_parks_and_comes_back_and_drains(app: Path) -> None:
    with given(app, ["http", "private"], environment=ALONE) as (how, server):
        assert how.get(0).startswith("one ") and how.get(1).startswith("one ")
        title = Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert title.startswith(b"midstream serve: zygote [app:app] 20261121190501 #42")
        assert len(server.left()) == 2  # itself and one worker: nobody above it
        mark = len(server.told)
        server.signal(signal.SIGWINCH)
        server.said("STATUS=parked", mark)
        assert how.refuses(0)
        assert how.get(1).startswith("one ")  # the agent may still ask
        mark = len(server.told)
        server.signal(signal.SIGTTIN)
        server.said("STATUS=serving", mark)
        assert how.get(0).startswith("one ")
        server.signal(signal.SIGTERM)
        server.said("STOPPING=1")
        assert server.ends() == 0
        assert server.left() == []


def test_alone_a_signal_for_an_upgrade_is_the_agents(app: Path) -> None:
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    agent.bind(str(app / "agent.sock"))
    agent.listen(5)
    agent.settimeout(LIMIT_S)
    environment = {**ALONE, "MIDSTREAM_APP": "shop", "MIDSTREAM_AGENT_SOCKET": str(app / "agent.sock")}
    with contextlib.closing(agent), given(app, ["http"], environment=environment) as (_, server):
        for number in (signal.SIGUSR2, signal.SIGHUP):
            mark = server.mark()
            server.signal(number)
            connection, _address = agent.accept()
            with connection, connection.makefile("rw") as lines:
                call = json.loads(lines.readline())
                assert (call["method"], call["params"]) == ("restart", {"app": "shop", "services": ["web"]})
                lines.write('{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"web is held"}}\n')
                lines.flush()
                server.line("the agent refused the handover: web is held", mark)
        assert server.process.poll() is None


@pytest.mark.parametrize(("number", "graceful"), [(signal.SIGQUIT, True), (signal.SIGINT, False)])
def test_alone_quit_answers_what_is_in_hand_and_int_does_not(app: Path, number: signal.Signals, graceful: bool) -> None:
    """And before that TTOU is nothing, USR1 opens the logs anew."""
    log = app / "access.log"
    arguments = ("--access-log", str(log), "--graceful-timeout", "300")
    with given(app, ["http"], *arguments, environment=ALONE) as (how, server):
        before = sorted(server.left())
        log.rename(app / "access.log.1")
        server.signal(signal.SIGTTOU)
        server.signal(signal.SIGUSR1)
        server.until("it is made anew", log.exists)
        assert how.get(0).startswith("one ")
        assert sorted(server.left()) == before
        request = Asked(server, app / "go")
        server.signal(number)
        server.said("STOPPING=1")
        if graceful:
            assert server.process.poll() is None
            request.gate.touch()
        assert server.ends() == 0
        assert (request.end() == "one") is graceful
        assert server.left() == []


def test_alone_a_release_that_does_not_boot_ends_with_status_1_and_says_why(app: Path) -> None:
    point(app, make_release(app, "bad", "import no_such_module_at_all"))
    command = [
        sys.executable,
        "-m",
        "midstream",
        "serve",
        "app:app",
        "--bind",
        "127.0.0.1:0",
        "--chdir",
        str(app / "current"),
    ]
    found = subprocess.run(command, env={**os.environ, **ALONE}, capture_output=True, text=True, timeout=LIMIT_S)
    assert found.returncode == 1
    assert "the app does not start: app cannot be imported: ModuleNotFoundError" in found.stderr
