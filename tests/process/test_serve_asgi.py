"""HTTP to an ASGI app: answers, streaming both ways, limits, refusals; the server alone in a process of its own."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from serve_asgi_run import Client, Running

IDLE_TASKS = 2  # the runner's own and the lifespan's
HEAD = b"GET / HTTP/1.1\r\nHost: example.com\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(
        limit_request_line=200,
        limit_request_fields=10,
        limit_request_field_size=100,
        limit_header_bytes=400,
        limit_body_bytes=300_000,
        hosts=["example.com"],
    ) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    with server.connect() as client:
        yield client


def test_a_connection_is_kept(client: Client) -> None:
    for _ in range(3):
        answer = client.ask()
        assert (answer.status, answer.body) == (200, b"hello")
        assert "connection" not in answer.headers
    assert answer.headers["x-release"] == "20260102030405"
    assert "server" not in answer.headers and answer.headers["date"].endswith("GMT")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_both_loops_serve(loop: str) -> None:
    with Running(loop=loop) as server, server.connect() as client:
        assert client.ask("/echo", method="POST", body=bytes(200_000)).body == bytes(200_000)
        assert client.ask("/", "Connection: close").headers["connection"] == "close"
        assert client.rest() == b""


def test_the_scope_is_what_was_asked_for(client: Client) -> None:
    told = json.loads(client.ask("/tell?a=%20b", "X-A: 1", "X_Forged: 1").body)
    assert told["path"] == "/tell" and told["query"] == "a=%20b" and told["method"] == "GET"
    assert told["headers"] == [["host", "example.com"], ["x-a", "1"]]  # underscore: dropped
    assert told["state"] == {"greeting": "from the lifespan"}
    assert told["client"][0] == "127.0.0.1" and told["scheme"] == "http"


def test_paths_are_decoded_once_and_absolute_targets_are_understood() -> None:
    with Running("tell") as telling, telling.connect() as teller:
        assert json.loads(teller.ask("/%C3%A4%2525/x").body)["path"] == "/ä%25/x"
        told = json.loads(teller.ask("http://other.example/b?c").body)
        assert told["path"] == "/b" and told["headers"] == [["host", "other.example"]]  # RFC 9112 3.2.2
        assert json.loads(teller.ask("http://example.com").body)["path"] == "/"
        assert json.loads(teller.ask("*", method="OPTIONS").body)["path"] == "*"


def test_proxy_headers_count_from_named_peers_only() -> None:
    lines = ("X-Forwarded-For: 6.6.6.6, 10.0.0.9", "X-Forwarded-Proto: https")
    with Running(forwarded_allow_ips=["127.0.0.1"]) as server, server.connect() as client:
        told = json.loads(client.ask("/tell", *lines).body)
        assert told["client"] == ["10.0.0.9", 0] and told["scheme"] == "https"
    with Running(forwarded_allow_ips=["10.0.0.0/8"]) as server, server.connect() as client:
        told = json.loads(client.ask("/tell", *lines).body)
        assert told["client"][0] == "127.0.0.1" and told["scheme"] == "http"


def test_a_unix_socket_serves(tmp_path: object) -> None:
    with Running("tell", unix=f"{tmp_path}/s", script_name="/shop") as server, server.connect() as client:
        told = json.loads(client.ask("/x", "X-Forwarded-For: 10.0.0.9").body)
        assert told["client"] == ["10.0.0.9", 0] and told["root_path"] == "/shop" and told["path"] == "/shop/x"
        assert json.loads(client.ask("/shop/x").body)["path"] == "/shop/x"  # the proxy has left it
        assert json.loads(client.ask("/x").body)["client"] is None


def test_streams_go_both_ways_part_by_part(client: Client) -> None:
    client.send("/stream", "Transfer-Encoding: chunked", method="POST")
    assert client.head().headers["transfer-encoding"] == "chunked"
    for part in (b"one", b"two"):
        client.raw(b"%x\r\n%b\r\n" % (len(part), part))
        assert client.chunk() == part  # before the rest is sent
    client.raw(b"0\r\nTrailer: x\r\n\r\n")
    assert client.chunk() == b""
    assert client.ask().body == b"hello"


def test_answers_without_a_length_are_chunked_and_headers_keep_their_order(client: Client) -> None:
    answer = client.ask("/chunks")
    assert answer.headers["x-many"] == "1, 2"
    assert answer.parts == [b"one ", b"two ", bytes(40000), b"end"]
    head = client.ask("/chunks", method="HEAD")
    assert head.body == b"" and "transfer-encoding" not in head.headers
    assert client.ask("/no-content").status == 204
    assert client.ask().body == b"hello"


def test_http_1_0_gets_no_chunks(server: Running) -> None:
    with server.connect() as client:
        answer = client.ask("/chunks", version="1.0")
        assert "transfer-encoding" not in answer.headers and answer.body.endswith(b"end")
    with server.connect() as client:
        assert client.ask("/", "Connection: keep-alive", version="1.0").headers["connection"] == "keep-alive"
        assert client.ask("/", version="1.0").headers["connection"] == "close"
        assert client.rest() == b""


def test_pipelined_requests_are_answered_in_their_order(client: Client) -> None:
    client.raw(
        b"".join(b"POST /echo HTTP/1.1\r\nHost: example.com\r\nContent-Length: 1\r\n\r\n%d" % n for n in range(5))
    )
    assert [client.answer().body for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_long_row_of_requests_before_a_body_is_no_framing_of_it(client: Client) -> None:
    row = (HEAD + b"\r\n") * 2000
    client.raw(row + b"POST /echo HTTP/1.1\r\nHost: example.com\r\nContent-Length: 3\r\n\r\n")
    for _ in range(2000):
        assert client.answer().body == b"hello"
    assert client.raw(b"abc").answer().body == b"abc"


def test_a_body_that_the_app_does_not_read_holds_its_client_back() -> None:
    """Back-pressure: 64 KiB and what the kernel holds, not the whole body; then it goes on."""
    with Running() as server, server.connect() as client:
        size = 30_000_000
        client.raw(b"POST /sip HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        client.sock.settimeout(0.3)
        sent = 0
        with pytest.raises(TimeoutError):
            while True:
                sent += client.sock.send(bytes(min(1 << 20, size - sent)))
        assert sent < size
        client.sock.settimeout(20)
        server.ask("set", "sip")
        client.raw(bytes(size - sent))
        assert client.answer().body == b"%d" % size


def test_a_client_that_does_not_read_holds_its_app_back_and_is_closed_in_the_end() -> None:
    with Running(write_timeout_s=1.0) as server, server.connect() as client:
        client.send("/flood")
        server.until("counted", [200])
        told = server.until("tasks", IDLE_TASKS)
        assert told["log"][0]["bytes_sent"] < 40_000_000


def test_requests_sent_ahead_are_not_read_without_end() -> None:
    with Running() as server, server.connect() as client:
        client.send("/wait")
        client.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            for _ in range(100):
                client.raw((HEAD + b"\r\n") * 5000)
        assert server.ask("tell")["traffic"]["in_flight"] < 400


def test_requests_sent_ahead_are_all_answered_in_the_end() -> None:
    """Also when the client has ended its sending behind them, and when the server drains."""
    for ending in ("", "eof", "drain"):
        with Running() as server, server.connect() as client:
            client.send("/wait").raw((HEAD + b"\r\n") * 3000 + HEAD + b"X: last\r\n\r\n")
            server.until("seen", ["waits"])
            if ending == "eof":
                client.sock.shutdown(socket.SHUT_WR)
            elif ending == "drain":
                server.ask("drain", 20, 0)
            server.ask("set", "go")
            answers = [client.answer() for _ in range(3002)]
            assert answers[0].body == b"waited" and {answer.body for answer in answers[1:]} == {b"hello"}
            if ending:
                assert client.rest() == b""


def test_a_refused_upload_sees_its_answer_and_no_reset(server: Running) -> None:
    """What is on its way when we close would be answered by a reset, and that can overtake the answer."""
    for _ in range(5):
        with server.connect() as client:
            client.send("/echo", "Content-Length: 900000", method="POST").raw(bytes(900_000))
            assert client.answer().status == 413
            assert client.rest() == b""


def test_expect_continue_is_answered_when_the_app_reads(client: Client) -> None:
    client.send("/echo", "Expect: 100-continue", "Content-Length: 3", method="POST")
    assert client.take_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert client.raw(b"abc").answer().body == b"abc"
    answer = client.ask("/", "Expect: 100-continue", "Content-Length: 3", method="POST")
    assert answer.body == b"hello" and answer.headers["connection"] == "close"  # its body may come, or not


REFUSED = [
    (b"GET /%b HTTP/1.1\r\nHost: example.com\r\n\r\n" % (b"a" * 200), 414),
    (HEAD + b"X: %b\r\n\r\n" % (b"a" * 100), 431),
    (HEAD + b"X: 1\r\n" * 10 + b"\r\n", 431),
    (HEAD + (b"X: %b\r\n" % (b"a" * 60)) * 7 + b"\r\n", 431),
    (b"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 300001\r\n\r\n", 413),
    (HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
    (HEAD + b"Content-Length: +3\r\n\r\nabc", 400),
    (HEAD + b"Content-Length: 3, 3\r\n\r\nabc", 400),
    (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    (HEAD + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n", 501),
    (HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (HEAD + b"X: a\r\n b\r\n\r\n", 400),
    (HEAD + b"X : a\r\n\r\n", 400),
    (HEAD + b"X: a\rb\r\n\r\n", 400),
    (HEAD + b"X: a\x00b\r\n\r\n", 400),
    (HEAD + b"X: a\n\r\n", 400),
    (b"GET / HTTP/1.1\n\n", 400),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (HEAD + b"Host: example.com\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    (b"GET / HTTP/2.0\r\nHost: example.com\r\n\r\n", 505),
    (b"GET /\xc3\xa4 HTTP/1.1\r\nHost: example.com\r\n\r\n", 400),
    (b"CONNECT example.com:80 HTTP/1.1\r\nHost: example.com\r\n\r\n", 501),
    (HEAD + b"Expect: tea\r\n\r\n", 417),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"NONSENSE\r\n\r\n", 400),
    (HEAD + b"Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 3\r\n\r\nabc", 400),
]


@pytest.mark.parametrize(("request_", "status"), REFUSED)
def test_what_is_refused_and_how(client: Client, server: Running, request_: bytes, status: int) -> None:
    """Each by its own status, and the connection ends: the app sees nothing of it."""
    counted = len(server.ask("tell")["counted"])
    answer = client.raw(request_).answer()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert client.rest() == b""
    told = server.ask("tell")
    assert told["refused"][-1] == status and len(told["counted"]) == counted
    assert told["log"][-1]["status"] == status


@pytest.mark.parametrize(("request_", "status"), REFUSED[:4])
def test_a_refusal_waits_for_the_answers_before_it(client: Client, request_: bytes, status: int) -> None:
    client.raw(HEAD + b"\r\n" + request_)
    assert client.answer().body == b"hello"
    assert client.answer().status == status
    assert client.rest() == b""


def test_a_broken_body_of_a_request_that_waits_is_refused_in_its_turn() -> None:
    with Running() as server, server.connect() as client:
        client.send("/wait").send("/echo", "Transfer-Encoding: chunked", method="POST").raw(b"3\r\nabcX")
        server.until("traffic.in_flight", 1)
        assert client.is_open(0.1)
        server.ask("set", "go")
        assert client.answer().body == b"waited"
        assert client.answer().status == 400
        assert client.rest() == b""


def test_an_endless_head_is_refused_while_it_comes(client: Client) -> None:
    client.raw(HEAD + b"X: ")
    for _ in range(100):
        try:
            client.raw(b"a" * 100)
        except OSError:
            break
    assert client.answer().status == 431


def test_a_chunked_body_beyond_the_limit_is_refused(client: Client) -> None:
    client.send("/echo", "Transfer-Encoding: chunked", method="POST")
    for _ in range(4):
        client.raw(b"186a0\r\n" + bytes(100_000) + b"\r\n")
    assert client.answer().status == 413
    assert client.rest() == b""


@pytest.mark.parametrize("start", [b"0\r\nTrailer: ", b"3;", b"0\r\n"])
def test_endless_trailers_and_chunk_extensions_are_refused(client: Client, start: bytes) -> None:
    client.send("/echo", "Transfer-Encoding: chunked", method="POST").raw(start)
    piece = b"T: a\r\n" * 500 if start.endswith(b"\n") else b"a" * 3000
    for _ in range(2000):
        try:
            client.raw(piece)
        except OSError:
            break
        if not client.is_open():
            break
    assert client.answer().status == 400


def test_connections_beyond_the_limit_wait_for_one_to_close() -> None:
    with Running(worker_connections=2) as server, server.connect() as one, server.connect() as two:
        assert one.ask().body == two.ask().body == b"hello"
        with server.connect() as three, server.connect(private=True) as private:
            three.send()
            assert private.ask().body == b"hello"  # the health check is answered all the same
            assert three.is_open(0.2)
            one.sock.close()
            private.sock.close()
            assert three.answer().body == b"hello"


def test_a_broken_chunk_is_refused_and_the_app_sees_a_disconnect(client: Client, server: Running) -> None:
    seen = server.ask("tell")["seen"].count("disconnect")
    client.send("/echo", "Transfer-Encoding: chunked", method="POST").raw(b"3\r\nabcX")
    assert client.answer().status == 400
    assert server.until("tasks", IDLE_TASKS)["seen"].count("disconnect") == seen + 1


def test_a_body_is_not_taken_for_a_request_because_of_an_upgrade(client: Client) -> None:
    """As Java's client asks for HTTP/2: the body comes all the same, and what is in it is no request."""
    inner = b"GET /smuggled HTTP/1.1\r\nHost: example.com\r\n\r\n"
    lines = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ")
    assert client.ask("/echo", *lines, method="POST", body=inner).body == inner
    assert client.ask("/echo", method="POST", body=b"next").body == b"next"
    client.send("/echo", *lines, "Transfer-Encoding: chunked", method="POST").raw(b"2\r\nhi\r\n0\r\n\r\n")
    assert client.answer().body == b"hi"
    client.send("/", *lines)
    assert client.answer().body == b"hello"
    assert client.ask().body == b"hello"


def test_what_follows_the_last_request_is_not_read(client: Client, server: Running) -> None:
    counted = server.ask("tell")["counted"]
    client.raw(HEAD + b"Connection: close\r\n\r\n" + HEAD + b"\r\n")
    assert client.answer().headers["connection"] == "close"
    assert client.rest() == b""
    server.until("traffic.idle", 0)
    assert server.ask("tell")["counted"] == [*counted, 200]


def test_a_client_that_has_ended_its_sending_gets_its_answer() -> None:
    with Running() as server, server.connect() as client:
        client.send("/wait").send("/echo", method="POST", body=b"abc")
        client.sock.shutdown(socket.SHUT_WR)
        assert client.is_open(0.1)
        server.ask("set", "go")
        assert client.answer().body == b"waited"
        answer = client.answer()
        assert answer.body == b"abc" and client.rest() == b""


def test_the_app_is_told_that_its_client_has_ended_its_sending() -> None:
    with Running() as server, server.connect() as client:
        client.send("/listens", method="POST", body=b"abc")
        assert client.is_open(0.1)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.answer().body == b"you have left"


def test_the_app_sees_that_its_client_is_gone(server: Running) -> None:
    seen = server.ask("tell")["seen"].count("disconnect")
    with server.connect() as client:
        client.send("/stream", "Content-Length: 10", method="POST").raw(b"abc").head()
    assert server.until("tasks", IDLE_TASKS)["seen"].count("disconnect") == seen + 1


def test_mistakes_of_the_app(server: Running) -> None:
    with server.connect() as client:
        assert client.ask("/broken").status == 500
        assert client.rest() == b""
    with server.connect() as client:
        client.send("/broken-late").head()
        assert client.chunk() == b"so far"
        assert client.rest() == b""  # no last chunk: the client sees that it is not whole


def test_late_heads_and_bodies_get_408_and_idle_connections_end() -> None:
    with (
        Running(header_timeout_s=0.5, body_timeout_s=0.5, keep_alive_s=0.5) as server,
        server.connect() as slow,
        server.connect() as body,
        server.connect() as idle,
        server.connect() as used,
    ):
        slow.raw(b"GET / HT")
        body.send("/echo", "Content-Length: 10", method="POST").raw(b"abc")
        assert used.ask().body == b"hello"
        assert slow.answer().status == 408 and body.answer().status == 408
        assert idle.rest() == b"" and used.rest() == b""


def test_seat_and_log_are_told() -> None:
    with Running() as server, server.connect() as client, server.connect(private=True) as checker:
        assert checker.ask().body == b"hello"  # the health check: not traffic
        client.ask("/echo?x", "Referer: r", "User-Agent: u", "X-Request-Id: i", method="POST", body=b"abc")
        client.send("/wait")
        server.until("traffic.in_flight", 1)
        told = server.until("shown.in_flight", 1)
        assert told["counted"] == [200]
        line = told["log"][0]
        assert (line["method"], line["target"], line["status"], line["bytes_sent"]) == ("POST", "/echo?x", 200, 3)
        assert (line["referer"], line["user_agent"], line["request_id"]) == ("r", "u", "i")
        assert (line["host"], line["version"], line["client"]) == ("example.com", "1.1", "127.0.0.1")
        server.ask("set", "go")
        assert client.answer().body == b"waited"
        assert server.until("traffic.idle", 1)["traffic"]["in_flight"] == 0


def test_a_parked_server_answers_what_it_has_and_accepts_private_ones_only() -> None:
    with Running() as server, server.connect() as kept:
        assert kept.ask().body == b"hello"
        server.ask("pause")
        with server.connect() as late, server.connect(private=True) as private:
            late.send()
            assert private.ask().body == b"hello" and kept.ask().body == b"hello"
            assert late.is_open(0.2)
            server.ask("resume")
            assert late.answer().body == b"hello"
