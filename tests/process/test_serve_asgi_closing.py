"""Connections that are used once have a transport of our own (`asgi_wire.py`); it does what the loop's does."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading

import pytest
from serve_asgi_run import Running

pytest.importorskip("uvloop")
pytest.importorskip("uvicorn")

from midstream.serve.asgi_wire import closes

CLOSE = "Connection: close"
CLIENTS = 4
EACH = 100
IDLE_TASKS = 2  # the runner's own and the lifespan's
# in the pieces in which it is sent, and what is answered
WAYS = [
    ([b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"], b"hello"),
    ([b"GET / HTTP/1.1\r\nHost: t\r\n", b"connection: Close\r\n\r\n"], b"hello"),
    ([b"GET / HTTP/1.0\r\n\r\n"], b"hello"),
    ([b"POST /echo HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: 4\r\n\r\n", b"body"], b"body"),
    ([b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\nmore than one request"], b"hello"),
]


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nCONNECTION: Close\r\nHost: a\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nConnection: close\r\n\r\nabc", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nX: http/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nX: a\r\n\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nConnection: close\r\nUpgrade: websocket\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n", False),
        (b"\r\n\r\nGET", False),
        (b"", False),
    ],
)
def test_which_they_are(head: bytes, found: bool) -> None:
    assert closes(head) is found


def test_each_is_answered_and_none_is_left() -> None:
    wrong: list[object] = []

    def client(server: Running) -> None:
        for pieces, body in itertools.islice(itertools.cycle(WAYS), EACH):
            try:
                with server.connect() as one:
                    for piece in pieces:
                        one.raw(piece)
                    answer = one.answer()
                    if (answer.status, answer.headers["connection"], answer.body, one.rest()) != (
                        200,
                        "close",
                        body,
                        b"",
                    ):
                        wrong.append((pieces, answer))
            except (OSError, AssertionError) as error:
                wrong.append((pieces, error))

    with Running() as server:
        server.ask("tell")  # it has opened all of its own
        before = _descriptors(server)
        threads = [threading.Thread(target=client, args=(server,)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        server.until("traffic", {"in_flight": 0, "idle": 0, "websockets": 0, "oldest_s": 0.0})
        for _ in range(100):
            if _descriptors(server) <= before:
                break
            server.ask("tell")  # a turn of the loop: the last are being closed
        assert _descriptors(server) <= before
        assert server.ask("stop")["stopped"]
        assert server.errors() == ""


def test_both_loops_have_it() -> None:
    with Running(loop="asyncio") as server:
        for _ in range(3):
            with server.connect() as client:
                answer = client.ask("/tell", CLOSE)
                assert b'"path": "/tell"' in answer.body and client.rest() == b""


def test_a_unix_socket_and_any_address_tell_the_app_who_and_where(tmp_path: object) -> None:
    with Running(unix=f"{tmp_path}/s") as server, server.connect() as client:
        assert b'"client": null' in client.ask("/tell", CLOSE).body
    listener = socket.create_server(("0.0.0.0", 0))
    with Running(listener=listener) as server:
        server.address = ("127.0.0.1", server.address[1])
        with server.connect() as client:
            assert b'"client": ["127.0.0.1", ' in client.ask("/tell", CLOSE).body
    listener.close()


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "later"])
def test_large_bodies_go_both_ways(waits: bool) -> None:
    """More than the sockets hold: reading stops while the app does not take it, writing while the client does not."""
    body = os.urandom(4 << 20)
    with Running() as server, server.connect() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        if waits:
            server.until("traffic.idle", 1)
        sender = threading.Thread(target=client.send, args=("/echo", CLOSE), kwargs={"method": "POST", "body": body})
        sender.start()
        assert client.answer().body == body
        sender.join()
        assert client.rest() == b""


def test_one_that_was_silent_at_first_may_be_kept_or_become_a_websocket() -> None:
    with Running() as server, server.connect() as kept, server.connect() as once, server.connect() as websocket:
        server.until("traffic.idle", 3)
        assert kept.ask().body == b"hello"
        assert kept.ask("/tell").status == 200
        assert once.ask("/", CLOSE).body == b"hello" and once.rest() == b""
        key = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
        websocket.send("/ws", *key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
        assert websocket.head().status == 101
        assert server.until("traffic.websockets", 1)["traffic"]["idle"] == 1


def test_parts_of_an_answer_are_sent_at_once() -> None:
    """Accepted sockets inherit it on Linux."""
    with Running() as server:
        assert server.public.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_silent_ones_end_in_time_and_in_a_drain() -> None:
    with Running(keep_alive_s=0.5) as server, server.connect() as client:
        assert client.rest() == b""
    with Running() as server, server.connect() as client:
        server.until("traffic.idle", 1)
        server.ask("drain", 5, 0)
        assert client.rest() == b""
        assert server.until_drained() == {"requests": 0, "websockets": 0, "idle_closed": 1}


def test_a_late_request_of_a_silent_one_is_answered_in_a_drain() -> None:
    with Running() as server, server.connect() as client, server.connect() as once:
        server.until("traffic.idle", 2)
        server.ask("drain", 10, 10)
        assert client.ask().headers["connection"] == "close" and client.rest() == b""
        assert once.ask("/", CLOSE).body == b"hello" and once.rest() == b""
        assert server.until_drained() == {"requests": 0, "websockets": 0, "idle_closed": 0}


def test_the_app_sees_that_its_client_is_gone_or_has_ended() -> None:
    with Running() as server:
        with server.connect() as client:
            client.send("/stream", CLOSE, "Content-Length: 10", method="POST").raw(b"abc").head()
        assert server.until("tasks", IDLE_TASKS)["seen"] == ["disconnect"]
        with server.connect() as client:
            client.send("/listens", CLOSE)
            server.until("traffic.in_flight", 1)
            client.sock.shutdown(socket.SHUT_WR)
            assert client.answer().body == b"you have left"
        with server.connect() as client:
            client.send("/wait", CLOSE)
            server.until("traffic.in_flight", 1)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        server.until("traffic.in_flight", 0)
        server.ask("set", "go")
        server.until("tasks", IDLE_TASKS)
        assert "Fatal" not in server.errors()


def test_one_that_does_not_read_is_closed_in_the_end() -> None:
    with Running(write_timeout_s=1.0) as server, server.connect() as client:
        client.send("/flood", CLOSE)
        server.until("counted", [200])
        assert server.until("tasks", IDLE_TASKS)["log"][0]["bytes_sent"] < 40_000_000


def test_a_drain_cuts_them_and_a_stop_ends_them() -> None:
    with Running() as server, server.connect() as client:
        client.send("/wait", CLOSE)
        server.until("traffic.in_flight", 1)
        server.ask("drain", 0.2, 0)
        assert client.answer().status == 503 and client.rest() == b""
        assert server.until_drained()["requests"] == 1
    with Running() as server, server.connect() as client, server.connect() as silent:
        client.send("/wait", CLOSE)
        server.until("traffic.in_flight", 1)
        server.until("traffic.idle", 1)
        assert server.ask("stop")["stopped"]
        assert client.rest() == b"" and silent.rest() == b""


def _descriptors(server: Running) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))
