"""Starts servers the way the keeper does, for the tests of profiles, sockets, health and proof.

A child gets its listeners as descriptors from 3 on, LISTEN_FDS, LISTEN_FDNAMES, and LISTEN_PID set to its own
pid just before the exec. Nothing here waits by sleeping alone: ends are seen through waitpid, readiness
through answers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from midstream.profiles import Profile, place_listeners, recognise

BOUND_S = 40.0
BIN = Path(sys.executable).parent
DRAIN_SERVER = Path(__file__).parents[2] / "src/midstream/testing/drain_server.py"


def program(name: str) -> str | None:
    """The program beside this Python, else on PATH."""
    beside = BIN / name
    return str(beside) if beside.exists() else shutil.which(name)


def eventually(what: str, ask: Callable[[], object], bound_s: float = BOUND_S) -> object:
    """The first true answer of `ask`; fails the test when there is none within the bound."""
    end_s = time.monotonic() + bound_s
    while True:
        if found := ask():
            return found
        assert time.monotonic() < end_s, f"not within {bound_s:g} s: {what}"
        time.sleep(0.02)


def listener_at(address: str | tuple[str, int] = ("127.0.0.1", 0), backlog: int = 512) -> socket.socket:
    """A listening socket as the keeper makes it."""
    if isinstance(address, str):
        listener = socket.socket(socket.AF_UNIX)
    else:
        listener = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(backlog)
    return listener


@dataclass
class Child:
    """A started server. `pid` leads its own session, so that everything in it can be ended."""

    pid: int
    argv: tuple[str, ...]
    log: Path
    code: int | None = None

    def signal(self, name: str) -> None:
        os.kill(self.pid, getattr(signal, f"SIG{name}"))

    def ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, bound_s: float = BOUND_S) -> int:
        eventually(f"the end of {self.argv}:\n{self.output()}", self.ended, bound_s)
        assert self.code is not None
        return self.code

    def output(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def tree(self) -> set[int]:
        """The pids of its session: enough here, where no server makes a session of its own."""
        found = set()
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with contextlib.suppress(OSError, IndexError):
                    fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self.pid and fields[0] != "Z":
                        found.add(int(name))
        return found

    def destroy(self) -> None:
        while pids := self.tree():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
            self.ended()
        self.ended()


def spawn(
    argv: tuple[str, ...],
    listeners: dict[str, socket.socket],
    log: Path,
    *,
    env: dict[str, str] | None = None,
    cwd: Path | str = "/",
) -> Child:
    """Forks and execs; argv[0] is looked up in PATH."""
    environ = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(log.parent), "LANG": "C.UTF-8", **(env or {})}
    environ["MIDSTREAM_GENERATION"] = environ.get("MIDSTREAM_RELEASE", "")  # as the agent gives it
    if listeners:
        environ["LISTEN_FDS"] = str(len(listeners))
        environ["LISTEN_FDNAMES"] = ":".join(listeners)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            # Out of the way first: a source may have the number that another one has to get.
            moved = [os.dup2(listener.fileno(), 200 + at) for at, listener in enumerate(listeners.values())]
            for at, fd in enumerate(moved):
                os.dup2(fd, 3 + at, inheritable=True)
            os.closerange(3 + len(moved), 256)
            environ["LISTEN_PID"] = str(os.getpid())
            os.chdir(cwd)
            os.execvpe(argv[0], argv, environ)
        except BaseException as error:
            os.write(2, f"{argv[0]}: {error}\n".encode())
        finally:
            os._exit(127)
    os.close(output)
    return Child(pid, argv, log)


@dataclass
class Yard:
    """All children of one test, ended with it."""

    folder: Path
    children: list[Child] = field(default_factory=list)

    def serve(
        self,
        argv: tuple[str, ...],
        listeners: dict[str, socket.socket],
        *,
        private: socket.socket | None = None,
        profile: Profile | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | str | None = None,
    ) -> Child:
        """Starts `argv` as its profile says, with `private` as a second listener where there is one."""
        chosen = profile or recognise(argv)
        fds = {name: 3 + at for at, name in enumerate(listeners)}
        passed = dict(listeners)
        second = None
        if private is not None:
            second = 3 + len(fds)
            passed["private"] = private
        placed = place_listeners(chosen, argv, fds, private=second)
        log = self.folder / f"out-{len(self.children)}.log"
        child = spawn(placed, passed, log, env=env, cwd=cwd or self.folder)
        self.children.append(child)
        return child

    def drain_server(
        self,
        listeners: dict[str, socket.socket],
        *,
        release: str = "1",
        misbehave: str = "",
        env: dict[str, str] | None = None,
        private: socket.socket | None = None,
    ) -> Child:
        given = {"MIDSTREAM_RELEASE": release, "MISBEHAVE": misbehave, "LINGER_S": "1", **(env or {})}
        argv = (sys.executable, "-I", str(DRAIN_SERVER))
        if private is None:
            return self.serve(argv, listeners, env=given)
        return self.serve(argv, {**listeners, "private": private}, env=given)

    def close(self) -> None:
        for child in self.children:
            child.destroy()


@contextlib.contextmanager
def yard_in(folder: Path) -> Iterator[Yard]:
    yard = Yard(folder)
    try:
        yield yard
    finally:
        yard.close()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """A blocking HTTP/1.1 client on one connection, strict enough to see a lost answer."""

    def __init__(self, address: str | tuple[str, int], timeout_s: float = BOUND_S) -> None:
        self.socket = socket.socket(
            socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        )
        self.socket.settimeout(timeout_s)
        self.socket.connect(address)
        self.left = b""

    def send(self, path: str, headers: tuple[str, ...] = (), method: str = "GET", body: bytes = b"") -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def receive(self, method: str = "GET") -> Answer:
        while b"\r\n\r\n" not in self.left:
            self._more()
        head, _, self.left = self.left.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        return Answer(int(lines[0].split()[1]), headers, self._body(headers, method))

    def _body(self, headers: dict[str, str], method: str) -> bytes:
        if method == "HEAD":
            return b""
        if "chunked" in headers.get("transfer-encoding", ""):
            out = b""
            while True:
                while b"\r\n" not in self.left:
                    self._more()
                size, _, self.left = self.left.partition(b"\r\n")
                count = int(size.split(b";")[0], 16)
                while len(self.left) < count + 2:
                    self._more()
                out, self.left = out + self.left[:count], self.left[count + 2 :]
                if not count:
                    return out
        if "content-length" in headers:
            length = int(headers["content-length"])
            while len(self.left) < length:
                self._more()
            body, self.left = self.left[:length], self.left[length:]
            return body
        with contextlib.suppress(ConnectionError):
            while True:
                self._more()
        body, self.left = self.left, b""
        return body

    def _more(self) -> None:
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError("closed without a whole answer")
        self.left += chunk

    def get(self, path: str, *headers: str) -> Answer:
        self.send(path, headers)
        return self.receive()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def get(address: str | tuple[str, int], path: str, timeout_s: float = BOUND_S) -> Answer:
    """One request on a connection of its own."""
    with Client(address, timeout_s) as client:
        return client.get(path, "Connection: close")
