"""Settings of `midstream serve` whose work is seen only from outside: what the health check asks, whose group it runs as, how
long it waits for idle clients, what its figures say."""

from __future__ import annotations

import contextlib
import grp
import os
import select
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.process.serving import LIMIT_S, Server, make_release, point, running, wait_for_end_of
from tests.process.test_serve_master import idle_connection
from tests.process.test_serve_program import _certificate

ASKED = """
import gc, os

def app(environ, start_response):
    path, status = environ["PATH_INFO"], "200 OK"
    body = f"one {os.getpid()}\\n"
    if path == "/up":
        asked = [environ.get(name) for name in ("HTTP_HOST", "wsgi.url_scheme", "HTTP_X_CHECK", "HTTP_X_KEY")]
        if asked != ["shop.example", "https", "yes", "a b"]:
            status = "500 Oops"
    elif path == "/frozen":
        body = str(gc.get_freeze_count())
    elif path == "/lazy":
        import lazy
        body = lazy.NAME
    start_response(status, [("Content-Length", str(len(body)))])
    return [body.encode()]
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    release = make_release(tmp_path, "one", app=ASKED)
    (release / "lazy.py").write_text("NAME = 'of one'")
    point(tmp_path, release)
    (make_release(tmp_path, "two") / "lazy.py").write_text("NAME = 'of two'")
    return tmp_path


def test_the_health_check_is_asked_as_it_is_said(app: Path) -> None:
    """And what the app imports late is of its own release; what was loaded is frozen, so that no collection copies it."""
    asked = ("--health-path", "/up", "--health-host", "shop.example", "--health-scheme", "https")
    with running(app, *asked, "--health-header", "X-Check: yes", "--health-header", "X-Key: a b") as server:
        assert server.get("/up").status == 500  # who asks otherwise
        assert int(server.get("/frozen").body) > 1000
        point(app, app / "releases/two")
        assert server.get("/lazy").body == "of one"


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the group needs root")
def test_zygote_workers_and_socket_files_are_of_the_group(app: Path) -> None:
    """And a --chdir that is no symlink is warned of, once there is an upgrade."""
    group = grp.getgrnam("nogroup").gr_gid
    path = app / "web.sock"
    arguments = ("--group", "nogroup", "--bind", f"unix:{path}", "--chdir", str(app / "releases/one"))
    with running(app, *arguments) as server:
        for pid in (server.zygote(), *server.workers()):
            status = Path(f"/proc/{pid}/status").read_text()
            assert set(status.split("\nGid:")[1].split("\n")[0].split()) == {str(group)}
            assert status.split("\nGroups:")[1].split("\n")[0].split() == [str(group)]
        assert path.stat().st_gid == group
        assert server.reload().ok
        server.line(r"--chdir \S+/releases/one is a folder, no symlink to one: the upgrade loads the same folder again")


def test_how_many_requests_and_how_long_a_client_may_stay(app: Path) -> None:
    """With a jitter that makes it all but certain, a worker goes on beyond --max-requests. At a stop that nobody takes over
    from, an idle client is not waited for as long as --linger says."""
    enough = ("--max-requests", "1", "--max-requests-jitter", "1000000")
    with running(app, *enough, "--workers", "1", "--linger", "300") as server:
        [worker] = server.workers()
        assert {server.get().pid for _ in range(20)} == {worker}
        server.signal(signal.SIGTERM, worker)
        server.line(rf"worker 0 \({worker}\) ends, because it was sent a signal")  # after whatever else it had to say
        wait_for_end_of(worker)
        assert not [line for line in server.lines if "is replaced" in line]

        with idle_connection(server.port) as idle:
            server.signal(signal.SIGTERM)
            assert idle.recv(1) == b""
        assert server.ends() == 0


@pytest.mark.server("openssl")
def test_clients_have_to_show_a_certificate_of_the_authorities(app: Path) -> None:
    _certificate(app, "first")
    files = {name: str(app / f"{name}.pem") for name in ("cert", "key")}
    with running(app, "--certfile", files["cert"], "--keyfile", files["key"], "--ca-certs", files["cert"]) as server:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        assert asked_by_tls(server, context) == b""
        context.load_cert_chain(files["cert"], files["key"])
        assert asked_by_tls(server, context).startswith(b"HTTP/1.1 200 ")


def asked_by_tls(server: Server, context: ssl.SSLContext) -> bytes:
    """What is answered; b"": it hangs up."""
    with socket.create_connection(("127.0.0.1", server.port), LIMIT_S) as raw:
        try:
            with context.wrap_socket(raw) as tls:
                tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return tls.recv(1000)
        except OSError:  # ssl.SSLError is one
            return b""


LIVE = """
import asyncio, os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError("none")
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            pass
        return
    while scope["path"] == "/wait" and not os.path.exists(scope["query_string"].decode()):
        await asyncio.sleep(0.01)
    body = b"live %d\\n" % os.getpid()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


def test_websockets_are_counted_and_do_not_all_end_at_once(app: Path) -> None:
    """Within 0.6 of --graceful-timeout, at random. An answer shows that the drain has begun; some are still open then."""
    point(app, make_release(app, "live", app=LIVE))
    gate = app / "gate"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(app, "--workers", "1", "--graceful-timeout", "1000", "--linger", "300"))
        sockets = [stack.enter_context(quiet(server)) for _ in range(4)]
        waiting = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), LIMIT_S))
        waiting.sendall(f"GET /wait?{gate} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        server.until("they are counted", lambda: counted(server) == (1, 4))
        server.until("its age is known", lambda: float(str(server.serving()["oldest_s"])) > 0)
        assert ", 4 WebSockets, oldest " in str(server.status()["text"])
        mark = len(server.told)
        assert server.reload().ok
        server.said(r"STATUS=serving live \(#2\); .*; 1 draining: 1 in flight, 0 idle, \d WebSockets, oldest ", mark)
        gate.touch()
        assert b"connection: close" in waiting.recv(4096).lower()
        ready, _, _ = select.select(sockets, [], [], 0)
        assert len(ready) < len(sockets)


def counted(server: Server) -> tuple[object, object]:
    """Requests in hand and WebSockets of what serves."""
    found = server.serving()
    return found["in_flight"], found["websockets"]


@contextlib.contextmanager
def quiet(server: Server) -> Iterator[socket.socket]:
    """The socket of a WebSocket that says and reads nothing."""
    sock = socket.create_connection(("127.0.0.1", server.port), LIMIT_S)
    with contextlib.closing(sock):
        sock.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        assert head.startswith(b"HTTP/1.1 101 ")
        yield sock
