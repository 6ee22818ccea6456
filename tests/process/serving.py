"""A real `midstream serve` for tests: started as people start it, watched by its log and its notify socket, asked by HTTP.

Nothing here sleeps to let something happen: everything waits for a line, a datagram, an answer or the end of a process.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from machine import free_port

from midstream.serve import control

__all__ = ["LIMIT_S", "Reply", "Server", "free_port", "make_release", "point", "running", "wait_for_end_of"]

LIMIT_S = 45.0

APP = """
import os, signal, sys, time
RELEASE = {release!r}

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/slow":
        time.sleep(float(environ["QUERY_STRING"] or 1))
    if path == "/wait":  # until the file that the query names is there
        began = environ["QUERY_STRING"]
        open(began + ".began", "w").close()
        while not os.path.exists(began):
            time.sleep(0.01)
    status = "500 Oops" if path == "/up" and os.path.exists(os.path.join(os.path.dirname(__file__), "sick")) else "200 OK"
    body = f"{{RELEASE}} {{os.getpid()}} {{sys.executable}}\\n".encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


def make_release(folder: Path, name: str, more: str = "", app: str | None = None) -> Path:
    """A release that answers with its name; `more` stands in front of the app's code."""
    release = folder / "releases" / name
    release.mkdir(parents=True)
    (release / "app.py").write_text((more + "\n" if more else "") + (APP.format(release=name) if app is None else app))
    return release


def point(folder: Path, release: Path) -> None:
    """`current` leads there from now on."""
    beside = folder / "current.new"
    beside.unlink(missing_ok=True)
    beside.symlink_to(release)
    beside.rename(folder / "current")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Message
    body: str

    @property
    def release(self) -> str:
        return self.body.split()[0]

    @property
    def pid(self) -> int:
        return int(self.body.split()[1])


class Server:
    """One master, and all that comes of it. Use `running`, which ends whatever is left."""

    program: Sequence[str] = (sys.executable, "-m", "midstream")

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        port: int,
        program: Sequence[str] = (),
    ) -> None:
        self.program = program or self.program
        self.folder = folder
        self.port = port
        self.bind = f"tcp://127.0.0.1:{port}"
        self.lines: list[str] = []
        self.told: list[str] = []
        self._news = threading.Condition()
        self._arguments = list(arguments)
        self.stamp = uuid.uuid4().hex
        self._run = Path(tempfile.mkdtemp(prefix="midstream-serve-test-"))
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self._run / "notify"))
        self._environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self._run / "notify"),
            "STAMP_OF_A_TEST": self.stamp,
            **environment,
        }
        threading.Thread(target=self._listen, daemon=True).start()
        self.process: subprocess.Popen[bytes] = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [*self.program, "serve", "app:app", *self._arguments]
        process = subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        return process

    def start_again(self) -> None:
        """The next master, after the former's end."""
        self.process.wait(LIMIT_S)
        self.process = self._start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._news:
                self.lines.append(line.decode(errors="replace").rstrip("\n"))
                self._news.notify_all()

    def _listen(self) -> None:
        while True:
            try:
                data = self._notify.recv(65536)
            except OSError:
                return
            with self._news:
                self.told.extend(data.decode().split("\n"))
                self._news.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    def mark(self) -> int:
        """From here on, for `line(since=...)`."""
        with self._news:
            return len(self.lines)

    def line(self, pattern: str, since: int = 0) -> re.Match[str]:
        """The first line of the log that has it; waits for it."""
        return self._wait_in(self.lines, pattern, since)

    def said(self, pattern: str, since: int = 0) -> re.Match[str]:
        """Likewise, of what it told the service manager."""
        return self._wait_in(self.told, pattern, since)

    def _wait_in(self, lines: list[str], pattern: str, since: int) -> re.Match[str]:
        until = time.monotonic() + LIMIT_S
        with self._news:
            while True:
                for line in lines[since:]:
                    if match := re.search(pattern, line):
                        return match
                if not self._news.wait(max(0.0, until - time.monotonic())):
                    raise AssertionError(f"no {pattern!r} in:\n" + "\n".join([*lines, "----", *self.lines]))

    def signal(self, number: int, pid: int = 0) -> None:
        os.kill(pid or self.pid, number)

    def get(self, path: str = "/", limit_s: float = LIMIT_S) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit_s)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Connection": "close"})
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read().decode())

    def reload(self) -> control.Answer:
        return control.ask("reload", pid=self.pid, limit_s=LIMIT_S)

    def status(self) -> dict[str, object]:
        return control.ask("status", pid=self.pid, limit_s=LIMIT_S).body

    def serving(self) -> dict[str, object]:
        """The generation that serves."""
        generations = self.status()["generations"]
        assert isinstance(generations, list)
        return next(one for one in generations if one["state"] == "serving")

    def workers(self) -> list[int]:
        found = self.serving()["workers"]
        assert isinstance(found, list)
        return sorted(found)

    def zygote(self) -> int:
        found = self.serving()["zygote"]
        assert isinstance(found, int)
        return found

    def until(self, what: str, true: object) -> None:
        """Asks again until it is so: for what nobody announces, such as a count in `status`."""
        assert callable(true)
        until = time.monotonic() + LIMIT_S
        while not true():
            assert time.monotonic() < until, f"never: {what}\n" + "\n".join(self.lines)
            time.sleep(0.02)

    def ends(self) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(LIMIT_S)

    def left(self) -> list[int]:
        """Every process that descends from it and lives."""
        found = []
        for name in os.listdir("/proc"):
            if not name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                stamped = f"STAMP_OF_A_TEST={self.stamp}".encode() in Path(f"/proc/{name}/environ").read_bytes()
                if stamped and b") Z " not in Path(f"/proc/{name}/stat").read_bytes():
                    found.append(int(name))
        return found

    def close(self) -> None:
        try:
            while left := self.left():
                for pid in left:
                    wait_for_end_of(pid, signal.SIGKILL)
            self.process.wait(LIMIT_S)
        finally:
            self._notify.close()
            shutil.rmtree(self._run, ignore_errors=True)


def wait_for_end_of(pid: int, kill_by: int = 0) -> None:
    """Returns when the process is gone; sends it a signal first, if one is given."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            if kill_by:
                signal.pidfd_send_signal(pidfd, kill_by)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(LIMIT_S * 1000), f"{pid} does not end"
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def running(
    folder: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    ready: bool = True,
    program: Sequence[str] = (),
) -> Iterator[Server]:
    """A server of `folder/current`, ready unless it is not to be waited for."""
    port = free_port()
    common = ["--bind", f"127.0.0.1:{port}", "--chdir", str(folder / "current"), "--linger", "1", "--workers", "2"]
    server = Server(folder, [*common, *arguments], environment or {}, port, program)
    try:
        if ready:
            server.said("READY=1")
        yield server
    finally:
        server.close()
