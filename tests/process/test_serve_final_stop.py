"""A stop that nobody takes over from: new connections are refused at once, those that wait already are answered.

Real masters, zygotes and workers, real sockets; the workers are stopped (SIGSTOP) while connections queue up.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving

pytest.importorskip("uvloop")

ASGI = """
import os
RELEASE = "r1"

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/wait":
        import asyncio
        began = scope["query_string"].decode()
        open(began + ".began", "w").close()
        while not os.path.exists(began):
            await asyncio.sleep(0.01)
    body = b"r1 %d" % os.getpid()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""
REQUEST = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"


@pytest.fixture(params=["wsgi", "asgi"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    release = serving.make_release(tmp_path, "r1", app=None if request.param == "wsgi" else ASGI)
    serving.point(tmp_path, release)
    return tmp_path


def is_refused(address: str | tuple[str, int]) -> bool:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
        try:
            sock.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        return False


def answer_of(sock: socket.socket) -> http.client.HTTPResponse:
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    assert answer.read().startswith(b"r1")
    return answer


class Held:
    """A request in hand, which keeps the server from its end until it is let go."""

    def __init__(self, server: serving.Server) -> None:
        self._gate = server.folder / "gate"
        self.sock = socket.create_connection(("127.0.0.1", server.port), timeout=serving.LIMIT_S)
        self.sock.sendall(f"GET /wait?{self._gate} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        server.until("the request is in hand", lambda: Path(f"{self._gate}.began").exists())

    def let_go(self) -> None:
        self._gate.touch()
        assert answer_of(self.sock).status == 200
        self.sock.close()


def test_who_comes_while_the_last_requests_are_answered_is_refused_at_once(folder: Path) -> None:
    with serving.running(folder) as server:
        held = Held(server)
        server.signal(signal.SIGTERM)
        server.until("nobody listens", lambda: is_refused(("127.0.0.1", server.port)))
        assert server.process.poll() is None  # the drain goes on
        held.let_go()
        assert server.ends() == 0


@pytest.fixture
def frozen(folder: Path) -> Iterator[serving.Server]:
    """Its workers do not run: whoever connects waits to be accepted."""
    with serving.running(folder) as server:
        for pid in server.workers():
            os.kill(pid, signal.SIGSTOP)
        yield server


def test_who_waits_to_be_accepted_at_the_stop_is_answered(frozen: serving.Server) -> None:
    workers = frozen.workers()
    waiting = [socket.create_connection(("127.0.0.1", frozen.port), timeout=serving.LIMIT_S) for _ in range(30)]
    for sock in waiting:
        sock.sendall(REQUEST)
    frozen.signal(signal.SIGTERM)
    frozen.line("drains and ends")
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    assert [answer_of(sock).status for sock in waiting] == [200] * 30
    for sock in waiting:
        sock.close()
    assert frozen.ends() == 0


def test_a_path_is_gone_at_once_and_is_the_next_servers(folder: Path) -> None:
    """A server that ends must not remove the path that another one has bound meanwhile."""
    path = folder / "web.sock"
    with serving.running(folder, "--bind", f"unix:{path}") as server:
        held = Held(server)
        server.signal(signal.SIGTERM)
        server.until("nobody listens", lambda: is_refused(str(path)))
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            held.let_go()
            assert server.ends() == 0
            assert path.exists()


def idle_connection(server: serving.Server) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=serving.LIMIT_S)
    sock.sendall(REQUEST)
    answer_of(sock)
    return sock


@pytest.mark.parametrize("since", ["upgrade", "signal to the worker"])
def test_what_drains_already_is_not_waited_for_longer_than_what_serves(folder: Path, since: str) -> None:
    """Its idle connections had ten minutes; nobody takes over, so they have as little time as all others."""
    with serving.running(folder, "--linger", "600", "--graceful-timeout", "300", "--workers", "1") as server:
        before = server.workers()
        with idle_connection(server) as idle:
            if since == "upgrade":
                assert server.reload().ok
            else:
                server.signal(signal.SIGTERM, before[0])
                server.until("another worker", lambda: any(pid not in before for pid in server.workers()))
            assert set(before) <= set(server.left())
            server.signal(signal.SIGTERM)
            assert idle.recv(1) == b""
        assert server.ends() == 0


class Given(serving.Server):
    """Started with a socket in LISTEN_FDS, which the test keeps as well."""

    def __init__(self, folder: Path, listener: socket.socket) -> None:
        self._listener = listener
        words = "import os, sys; fd = int(sys.argv[1]); os.dup2(fd, 3); os.set_inheritable(fd, fd == 3); "
        words += "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
        program = (sys.executable, "-c", words, str(listener.fileno()), sys.executable, "-m", "midstream")
        super().__init__(folder, ["--chdir", str(folder / "current")], {}, listener.getsockname()[1], program)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*self.program, "serve", "app:app", *self._arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(self._listener.fileno(),),
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        return process

    def left_with(self, sock: socket.socket) -> list[int]:
        """Its processes that have this socket open."""
        wanted = os.fstat(sock.fileno()).st_ino
        return [pid for pid in self.left() if wanted in inodes_of(pid)]


def inodes_of(pid: int) -> set[int]:
    """Of what it has open; nothing, once it has ended."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.stat(f"/proc/{pid}/fd/{name}").st_ino)
    return found


def test_a_socket_that_somebody_else_holds_keeps_its_queue(folder: Path) -> None:
    """A .socket unit of systemd: who comes meanwhile is the next server's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Given(folder, listener)
        try:
            server.said("READY=1")
            held = Held(server)
            server.signal(signal.SIGTERM)
            server.until("nobody but this test has the socket", lambda: not server.left_with(listener))
            held.let_go()
            with socket.create_connection(("127.0.0.1", server.port), timeout=serving.LIMIT_S):
                assert server.ends() == 0
                listener.settimeout(serving.LIMIT_S)
                listener.accept()[0].close()
        finally:
            server.close()
