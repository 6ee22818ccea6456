"""`midstream serve` standalone under real supervisors, as their manuals say: runit, supervisord, and systemd's protocol.

Under load (keep-alive, closing, slow uploads; TCP, unix, nginx and HAProxy in front) upgrades alternate code and virtualenv,
with MIDSTREAM_SECOND_PYTHON=/path/to/python the version of Python too: no request fails, and the pid that the supervisor knows
stays. MIDSTREAM_UPGRADES says how many (2).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from nginx_haproxy import IDLE_S, proxy
from tests.process.serving import free_port, point, wait_for_end_of
from traffic import Clients, record, traffic

import midstream
from midstream.serve import control

UPGRADES = int(os.environ.get("MIDSTREAM_UPGRADES", "2"))
SECOND_PYTHON = os.environ.get("MIDSTREAM_SECOND_PYTHON", "")
LIMIT_S = 60.0
SOURCE = str(Path(midstream.__file__).parents[1])
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
ENVIRONMENT = {**os.environ, "PATH": PATH, "PYTHONPATH": ""}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180 + 10 * UPGRADES)]

APP = """
import json, os, platform, sys, time
import only_here

def app(environ, start_response):
    length = len(environ["wsgi.input"].read())
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.3)
    body = json.dumps([only_here.NAME, sys.prefix, platform.python_version(), length]).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
"""


@dataclass(frozen=True)
class Site:
    """`current` and two releases, each with a virtualenv of its own, in which alone a module is that the app needs."""

    folder: Path

    @property
    def current(self) -> Path:
        return self.folder / "current"

    def release(self, name: str, python: str = "") -> None:
        release = self.folder / "releases" / name
        release.mkdir(parents=True)
        (release / "app.py").write_text(APP)
        home = release / ".venv"
        subprocess.run(
            [python or sys.executable, "-m", "venv", *([] if python else ["--without-pip"]), home], check=True
        )
        [packages] = home.glob("lib/python3.*/site-packages")
        (packages / "only_here.py").write_text(f"NAME = {name!r}\n")
        paths = [SOURCE] if python else [SOURCE, sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
        (packages / "midstream.pth").write_text("\n".join(paths) + "\n")
        if python:
            subprocess.run([home / "bin/python", "-m", "pip", "install", "-q", "httptools", "uvloop"], check=True)

    def point(self, name: str) -> None:
        point(self.folder, self.folder / "releases" / name)

    def command(self, *binds: str) -> list[str]:
        """As an operator would write it."""
        named = [word for bind in binds for word in ("--bind", bind)]
        times = ["--linger", str(3 * IDLE_S), "--keep-alive", str(4 * IDLE_S)]
        return [
            sys.executable,
            "-m",
            "midstream",
            "serve",
            "app:app",
            "--chdir",
            str(self.current),
            "-w",
            "2",
            *named,
            *times,
        ]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.release("one")
    made.release("two", SECOND_PYTHON)
    made.point("one")
    return made


def until(what: str, true: Callable[[], bool]) -> None:
    """Asks again until it is so: for what nobody announces to a test."""
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)


def status(pid: int) -> dict[str, list[str]]:
    """Releases by the state of their generation; {} while nobody answers."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(midstream.errors.MidstreamError):
        for one in control.ask("status", pid=pid, limit_s=LIMIT_S).body["generations"]:
            found.setdefault(one["state"], []).append(one["release"])
    return found


def serves(pid: int, release: str) -> bool:
    """And nothing else does: while the phase is "leaving", workers of the former release may still accept."""
    with contextlib.suppress(midstream.errors.MidstreamError):
        told = control.ask("status", pid=pid, limit_s=LIMIT_S).body
        serving = [one["release"] for one in told["generations"] if one["state"] == "serving"]
        return serving == [release] and told["phase"] == "steady"
    return False


def serving_number(pid: int) -> int:
    generations = control.ask("status", pid=pid, limit_s=LIMIT_S).body["generations"]
    return max(int(one["number"]) for one in generations if one["state"] == "serving")


def ask(port: int) -> list[str]:
    """(release, prefix, Python) that answers."""
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with sock.makefile("rb") as answer:
            return json.loads(answer.read().split(b"\r\n\r\n", 1)[1])  # type: ignore[no-any-return]


def upgrade_under_load(site: Site, name: str, pid: int, port: int, unix: str, tell: Callable[[], None]) -> None:
    """tell: has the supervisor send the signal. The pid is the master's and stays it."""
    services = {"web": f"tcp://127.0.0.1:{port}"}
    with (
        proxy("nginx", site.folder / "nginx", services) as behind_nginx,
        proxy("haproxy", site.folder / "haproxy", services) as behind_haproxy,
        traffic(
            site.folder,
            Clients("tcp", services["web"], keep_alive=3, closing=2),
            Clients("unix", unix, keep_alive=2, closing=1),
            Clients("slow", services["web"], keep_alive=1, closing=1, path="/slow", timed=False),
            Clients("upload", services["web"], closing=2, method="POST", body_bytes=200_000, upload_s=0.3, timed=False),
            Clients("nginx", behind_nginx["web"], keep_alive=2),
            Clients("nginx POST", behind_nginx["web"], keep_alive=1, method="POST", body_bytes=1000),
            Clients("haproxy", behind_haproxy["web"], keep_alive=2),
        ) as load,
    ):
        prefixes = set()
        for number in range(UPGRADES):
            release = ("two", "one")[number % 2]
            site.point(release)
            with load.handover():
                tell()
                until(f"{release} serves", lambda release=release: serves(pid, release))
            answered = ask(port)
            assert answered[0] == release
            prefixes.add(answered[1])
            until("room for the next", lambda: len(status(pid).get("draining", [])) < 3)
        load.stop()
        assert load.failures == {} and load.failed == 0
        seen = load.stop()
        assert {release for one in seen.values() for release in one.releases} == {"one", "two"}
        record(f"midstream serve under {name}", load.figures())
    assert len(prefixes) == 2, "each release ran on its own virtualenv"


@pytest.mark.server("runsv", "sv", "nginx", "haproxy")
def test_under_runit_sv_2_upgrades_and_the_pid_stays(site: Site) -> None:
    port, unix = free_port(), f"{site.folder}/web.sock"
    service = site.folder / "service"
    service.mkdir()
    command = " ".join(site.command(f"127.0.0.1:{port}", f"unix:{unix}"))
    (service / "run").write_text(f"#!/bin/sh\nexec 2>&1\nexec {command}\n")
    (service / "finish").write_text(f"#!/bin/sh\necho $1 $2 >>{site.folder}/ends\n")
    for name in ("run", "finish"):
        (service / name).chmod(0o755)
    with (site.folder / "log").open("wb") as log:
        runsv = subprocess.Popen(["runsv", service], stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True)
    try:
        until("runsv has begun", (service / "supervise/ok").exists)

        def sv(*words: str) -> str:
            done = subprocess.run(["sv", *words, service], capture_output=True, text=True, env=ENVIRONMENT, check=False)
            return done.stdout

        def pid() -> int:
            return int((service / "supervise/pid").read_text() or 0)

        until("it serves", lambda: bool(pid() and status(pid()).get("serving")))
        first = pid()
        upgrade_under_load(site, "runit", first, port, f"unix://{unix}", lambda: (sv("2"), None)[1])
        assert pid() == first and not (site.folder / "ends").exists()
        number = serving_number(first)
        sv("hup")
        until("hup upgrades too", lambda: serving_number(first) == number + 1)
        ends_by_itself = os.pidfd_open(first)
        sv("term")  # runit starts it again
        select.select([ends_by_itself], [], [], LIMIT_S)
        os.close(ends_by_itself)
        until("the next one serves", lambda: bool(pid() not in (0, first) and status(pid()).get("serving")))
        assert (site.folder / "ends").read_text() == "0 0\n"
        second = pid()
        assert "ok: down" in sv("-w", "60", "down")
        assert (site.folder / "ends").read_text() == "0 0\n0 0\n"
        wait_for_end_of(second)
        assert not Path(unix).exists()
    finally:
        subprocess.run(
            ["sv", "-w", "20", "force-shutdown", service], env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=False
        )
        runsv.wait(LIMIT_S)


@pytest.mark.server("supervisord", "supervisorctl", "nginx", "haproxy")
def test_under_supervisord_a_signal_upgrades_and_stop_is_graceful(site: Site) -> None:
    port, unix = free_port(), f"{site.folder}/web.sock"
    conf = site.folder / "supervisord.conf"
    conf.write_text(
        f"""
[supervisord]
nodaemon = true
user = {os.environ.get("USER") or "root"}
logfile = {site.folder}/supervisord.log
pidfile = {site.folder}/supervisord.pid
[unix_http_server]
file = {site.folder}/ctl
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl = unix://{site.folder}/ctl
[program:web]
command = {" ".join(site.command(f"127.0.0.1:{port}", f"unix:{unix}"))}
redirect_stderr = true
stdout_logfile = {site.folder}/web.log
stopwaitsecs = 60
"""
    )
    with (site.folder / "out").open("wb") as out:
        daemon = subprocess.Popen(["supervisord", "-c", conf], stdout=out, stderr=out, env=ENVIRONMENT)
    try:

        def ctl(*words: str) -> str:
            argv = ["supervisorctl", "-c", str(conf), *words]
            return subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT, check=False).stdout

        def pid() -> int:
            text = ctl("pid", "web").strip()
            return int(text) if text.isdecimal() else 0

        until("it serves", lambda: bool(pid() and status(pid()).get("serving")))
        first = pid()
        upgrade_under_load(
            site, "supervisord", first, port, f"unix://{unix}", lambda: (ctl("signal", "USR2", "web"), None)[1]
        )
        assert pid() == first
        assert "stopped" in ctl("stop", "web")
        assert "exit status 0" in (site.folder / "supervisord.log").read_text()
        wait_for_end_of(first)
    finally:
        daemon.terminate()
        daemon.wait(LIMIT_S)


# ---- systemd's protocol


class Manager:
    """What systemd does for a unit of Type=notify-reload, NotifyAccess=main, with a .socket unit and a watchdog."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.path = folder / "web.sock"
        self.unix = socket.create_server(str(self.path), family=socket.AF_UNIX)
        self.told: list[str] = []
        self.inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.inbox.bind(str(folder / "notify"))
        self.inbox.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, command: list[str]) -> int:
        """The main pid. It gets the listeners as descriptors 3 and 4, as sd_listen_fds(3) says."""
        self.told.clear()
        passed = (self.listener.fileno(), self.unix.fileno())
        assert passed[1] != 3
        shell = (
            f"exec 3<&{passed[0]} 4<&{passed[1]} && LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:web "
            f"NOTIFY_SOCKET={self.folder}/notify WATCHDOG_PID=$$ WATCHDOG_USEC=1000000 exec {' '.join(command)}"
        )
        self.process = subprocess.Popen(
            ["/bin/bash", "-c", shell], env=ENVIRONMENT, pass_fds=passed, start_new_session=True
        )
        return self.process.pid

    def wait_for(self, word: str) -> int:
        """The number of datagrams read until one has that line; what a process other than the main one sent is an error."""
        assert self.process is not None
        end = time.monotonic() + LIMIT_S
        while word not in self.told:
            assert select.select([self.inbox], [], [], max(0.0, end - time.monotonic()))[0], f"no {word} in {self.told}"
            data, ancillary, _, _ = self.inbox.recvmsg(4096, 1024)
            [(_, _, credentials)] = ancillary
            assert struct.unpack("=iII", credentials)[0] == self.process.pid, "NotifyAccess=main would drop that"
            self.told += data.decode().splitlines()
        return self.told.index(word)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # not KILL: its zygotes would serve on
            self.process.wait(LIMIT_S)
        for sock in (self.listener, self.unix, self.inbox):
            sock.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


@pytest.mark.server("nginx", "haproxy")
def test_systemds_protocol_from_start_to_stop(site: Site, manager: Manager) -> None:
    early = socket.create_connection(("127.0.0.1", manager.port), LIMIT_S)  # before there is anything
    early.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    main = manager.start(site.command("127.0.0.1:1"))  # --bind does not count where sockets are given
    manager.wait_for("READY=1")
    assert b'["one"' in early.recv(4096)
    early.close()
    manager.told.clear()
    manager.wait_for("WATCHDOG=1")

    def reload() -> None:
        while _read_more(manager):
            continue
        manager.told.clear()
        os.kill(main, signal.SIGHUP)  # ExecReload, or notify-reload itself
        begun = manager.wait_for("RELOADING=1")
        assert any(line.startswith("MONOTONIC_USEC=") for line in manager.told[begun:])
        assert manager.wait_for("READY=1") > begun

    upgrade_under_load(site, "systemd's protocol", main, manager.port, f"unix://{manager.path}", reload)
    assert manager.process is not None and manager.process.poll() is None
    site.point("two")
    reload()
    assert ask(manager.port)[0] == "two"

    (site.folder / "releases/one/app.py").write_text("import nothing_like_it")
    site.point("one")
    manager.told.clear()
    os.kill(main, signal.SIGHUP)
    manager.wait_for("RELOADING=1")
    manager.wait_for("READY=1")  # the reload is over, and what it came to is in the status
    until("it is said", lambda: _says(manager, "nothing_like_it"))
    assert ask(manager.port)[0] == "two"

    os.kill(main, signal.SIGTERM)
    manager.wait_for("STOPPING=1")
    assert manager.process is not None and manager.process.wait(LIMIT_S) == 0

    site.point("two")
    between = socket.create_connection(
        ("127.0.0.1", manager.port), LIMIT_S
    )  # systemd holds the socket: nobody is refused
    between.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    manager.start(site.command("127.0.0.1:1"))
    assert b'["two"' in between.recv(4096)
    between.close()


def _says(manager: Manager, words: str) -> bool:
    while _read_more(manager):
        continue
    return any(words in line for line in manager.told)


def _read_more(manager: Manager) -> bool:
    """Reads one more datagram, if there is one."""
    if not select.select([manager.inbox], [], [], 0)[0]:
        return False
    manager.told += manager.inbox.recv(4096).decode().splitlines()
    return True
