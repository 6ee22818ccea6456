"""HTTP/1.1 of the WSGI server by raw sockets: what is accepted, what is refused and with which status."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_wsgi_process import Client, Served, serve

pytest.importorskip("httptools")
pytest.importorskip("uvloop")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = serve(tmp_path_factory.mktemp("http"), limit_body_bytes=100_000, body_memory_bytes=10_000)
    yield served
    served.close()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    client = served.client()
    yield client
    client.close()


H = b"Host: t\r\n"
GET = b"GET / HTTP/1.1\r\n"
POST = b"POST /echo HTTP/1.1\r\n" + H
TE = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        # the request line
        (b"GET / HTTP/1.1\r\nHost: t\r\n\r\n", 200),
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"\r\nGET / HTTP/1.1\r\nHost: t\r\n\r\n", 200),
        (b"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: t\r\n\r\n", 505),
        (b"GET / HTTP/1.2\r\nHost: t\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\nHost: t\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"GET / HTTP/1.1 \r\nHost: t\r\n\r\n", 400),
        (b" GET / HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"GET\t/ HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"GET / http/1.1\r\nHost: t\r\n\r\n", 400),
        (b"GET / RTSP/1.0\r\nHost: t\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\nHost: t\r\n\r\n", 501),
        (b"BREW / HTTP/1.1\r\nHost: t\r\n\r\n", 501),
        (b"CONNECT t:80 HTTP/1.1\r\nHost: t\r\n\r\n", 501),
        (b"GET /a\x01b HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"GET /a\xffb HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"GET /a#b HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"GET a HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n", 200),
        (b"GET http://t/x HTTP/1.1\r\nHost: other\r\n\r\n", 200),
        (b"GET http:///x HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"GET ftp://t/x HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),  # TLS spoken to a plain port
        # line ends, folding, blanks
        (b"GET / HTTP/1.1\nHost: t\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: t\n\r\n", 400),
        (GET + H + b"X: a\rb\r\n\r\n", 400),
        (GET + H + b"X: a\nY: b\r\n\r\n", 400),
        (GET + H + b"X: a\r\n b\r\n\r\n", 400),
        (GET + H + b"X: a\r\n\tb\r\n\r\n", 400),
        (GET + b" Host: t\r\n\r\n", 400),
        (GET + H + b"X : a\r\n\r\n", 400),
        (GET + H + b"X\r\n\r\n", 400),
        (GET + H + b": a\r\n\r\n", 400),
        (GET + H + b"X(: a\r\n\r\n", 400),
        (GET + H + b"X: a\0b\r\n\r\n", 400),
        (GET + H + b"X: a\x01b\r\n\r\n", 400),
        (GET + H + b"X: a\xe9b\r\n\r\n", 200),
        (GET + H + b"X:\r\n\r\n", 200),
        # Host
        (GET + b"\r\n", 400),
        (GET + H + H + b"\r\n", 400),
        (GET + b"Host: t\r\nhost: u\r\n\r\n", 400),
        (GET + b"Host:\r\n\r\n", 400),
        (GET + b"Host: a b\r\n\r\n", 400),
        (GET + b"Host: a/b\r\n\r\n", 400),
        (GET + b"Host: user@a\r\n\r\n", 400),
        (GET + b"Host: a:b\r\n\r\n", 400),
        (GET + b"Host: [::1]:80\r\n\r\n", 200),
        (GET + b"Host: t:8000\r\n\r\n", 200),
        # framing
        (POST + b"Content-Length: 5\r\n\r\nhello", 200),
        (POST + b"Content-Length: 0\r\n\r\n", 200),
        (POST + b"\r\n", 200),
        (POST + b"Content-Length: +5\r\n\r\nhello", 400),
        (POST + b"Content-Length: -5\r\n\r\nhello", 400),
        (POST + b"Content-Length: 0x5\r\n\r\nhello", 400),
        (POST + b"Content-Length: 5, 5\r\n\r\nhello", 400),
        (POST + b"Content-Length: 5 5\r\n\r\nhello", 400),
        (POST + b"Content-Length:\r\n\r\nhello", 400),
        (POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (POST + b"Content-Length: 99999999999999999999\r\n\r\n", 400),
        (POST + b"Content-Length: 5\r\n" + TE + b"\r\n0\r\n\r\n", 400),
        (POST + TE + b"Content-Length: 5\r\n\r\n0\r\n\r\n", 400),
        (POST + TE + TE + b"\r\n0\r\n\r\n", 400),
        (b"POST /echo HTTP/1.0\r\n" + TE + b"\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: identity\r\n\r\n", (400, 501)),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", (400, 501)),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", (400, 501)),
        (POST + b"Transfer-Encoding: chunked;x=1\r\n\r\n0\r\n\r\n", (400, 501)),
        (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", 200),
        # chunks
        (POST + TE + b"\r\n5\r\nhello\r\n0\r\n\r\n", 200),
        (POST + TE + b"\r\n5;name=value\r\nhello\r\n0;x\r\nTrailer: y\r\n\r\n", 200),
        (POST + TE + b"\r\n00005\r\nhello\r\n0\r\n\r\n", 200),
        (POST + TE + b"\r\n5\nhello\r\n0\r\n\r\n", 400),
        (POST + TE + b"\r\n5\r\nhello\n0\r\n\r\n", 400),
        (POST + TE + b"\r\n5\r\nhello0\r\n\r\n", 400),
        (POST + TE + b"\r\n5\r\nhellooo\r\n0\r\n\r\n", 400),
        (POST + TE + b"\r\n0x5\r\nhello\r\n0\r\n\r\n", 400),
        (POST + TE + b"\r\n 5\r\nhello\r\n0\r\n\r\n", 400),
        (POST + TE + b"\r\n5 \r\nhello\r\n0\r\n\r\n", 400),
        (POST + TE + b"\r\n-5\r\nhello\r\n0\r\n\r\n", 400),
        (POST + TE + b"\r\n\r\nhello\r\n0\r\n\r\n", 400),
        (POST + TE + b"\r\n5\r\r\nhello\r\n0\r\n\r\n", 400),
        (POST + TE + b"\r\nFFFFFFFFFFFFFFFFF\r\n", 400),
        (POST + TE + b"\r\n5;" + b"x" * 2000, 400),
        (POST + TE + b"\r\n0\r\n" + b"T: " + b"x" * 9000, 400),
        (POST + TE + b"\r\n0\r\nno colon\r\n\r\n", 400),
        (POST + TE + b"\r\n" + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n", 200),
        (POST + TE + b"\r\n" + (b"1;" + b"e" * 900 + b"\r\nx\r\n") * 100, 400),
        # limits
        (b"GET /" + b"a" * 8100 + b" HTTP/1.1\r\nHost: t\r\n\r\n", 200),
        (b"GET /" + b"a" * 8300 + b" HTTP/1.1\r\nHost: t\r\n\r\n", 414),
        (b"GET /" + b"a" * 20000, 414),
        (GET + H + b"X: " + b"a" * 8100 + b"\r\n\r\n", 200),
        (GET + H + b"X: " + b"a" * 8300 + b"\r\n\r\n", 431),
        (GET + H + b"X: a\r\n" * 99 + b"\r\n", 200),
        (GET + H + b"X: a\r\n" * 100 + b"\r\n", 431),
        (GET + H + b"".join(b"X%d: %b\r\n" % (n, b"a" * 8000) for n in range(9)) + b"\r\n", 431),
        (GET + H + b"".join(b"X%d: %b\r\n" % (n, b"a" * 8000) for n in range(20)), 431),
        (POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000, 200),
        (POST + b"Content-Length: 100001\r\n\r\n", 413),
        (POST + TE + b"\r\n186A1\r\n" + b"x" * 100_001, 413),
        # expectations
        (POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello", 200),
        (POST + b"Content-Length: 100001\r\nExpect: 100-continue\r\n\r\n", 413),
        (POST + b"Content-Length: 5\r\nExpect: a-miracle\r\n\r\nhello", 417),
    ],
)
def test_status(client: Client, request_bytes: bytes, status: int | tuple[int, ...]) -> None:
    """Each refusal is followed by the end of the connection: nothing behind it is taken for a request."""
    client.send(request_bytes)
    found = client.answer()
    assert found.status in (status if isinstance(status, tuple) else (status,)), found
    if found.status >= 400:
        assert found["Connection"] == "close"
        assert client.ends()


@pytest.mark.parametrize(
    "smuggled",
    [
        b"POST /echo HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 36\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: t\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 36\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 36\r\n\r\n",
    ],
)
def test_body_is_never_taken_for_a_request(client: Client, smuggled: bytes) -> None:
    """An Upgrade that is not taken changes nothing about the body."""
    inner = b"GET /evil HTTP/1.1\r\nHost: evil\r\n\r\n\r\n"
    assert len(inner) == 36
    client.send(smuggled + inner + b"GET /hello HTTP/1.1\r\nHost: t\r\n\r\n")
    assert client.answer().body == inner
    assert client.answer().body == b"hello"


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_bytes_may_come_in_any_pieces(client: Client, cut: int) -> None:
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = (
        POST + TE + b"\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nT: x\r\n\r\n" + POST + b"Content-Length: 3\r\n\r\nabc"
    )
    for at in range(0, len(stream), cut):
        client.send(stream[at : at + cut])
    assert client.answer().body == b"hello world"
    assert client.answer().body == b"abc"


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    client.send(b"".join(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\n%03d" % n for n in range(300)))
    assert [client.answer().body for _ in range(300)] == [b"%03d" % n for n in range(300)]


def test_more_may_be_pipelined_than_is_read_ahead(client: Client) -> None:
    """Reading stops at the limit and goes on: with bodies, so that a request lies across each border."""
    import threading

    one = b"POST /digest HTTP/1.1\r\nHost: t\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000
    sender = threading.Thread(target=client.send, args=(one * 60,))
    sender.start()
    assert {client.answer().json()["size"] for _ in range(60)} == {9000}
    sender.join()


def test_continue_is_said_once_and_only_when_waited_for(client: Client) -> None:
    client.send(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert client._until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"hello")
    assert client.answer().body == b"hello"
    client.send(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello")
    assert b"100 Continue" not in client._until(b"hello")


@pytest.mark.parametrize(
    ("first", "kept"),
    [
        (b"GET / HTTP/1.1\r\nHost: t\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: t\r\nConnection: TE, Close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
        (b"GET /stream/3 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
        (b"HEAD / HTTP/1.1\r\nHost: t\r\n\r\n", True),
        (b"GET /boom HTTP/1.1\r\nHost: t\r\n\r\n", True),
    ],
)
def test_keep_alive(client: Client, first: bytes, kept: bool) -> None:
    client.send(first)
    answer = client.answer(head_only=first.startswith(b"HEAD"))
    assert (answer["Connection"] != "close") is kept
    if kept:
        assert client.get("/").body == b"hello"
    else:
        assert client.ends()


def test_answer_after_the_client_has_shut_its_end(client: Client) -> None:
    client.send(b"GET /sleep/0.05 HTTP/1.1\r\nHost: t\r\n\r\n")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.answer().body == b"slept"
    assert client.ends()


def test_head_has_the_headers_and_no_body(client: Client) -> None:
    head = client.get("/large/1000", method="HEAD")
    assert head["Content-Length"] == "1000"
    assert client.get("/").body == b"hello"


@pytest.mark.parametrize(("status", "length"), [("204_No_Content", ""), ("304_Not_Modified", ""), ("200_OK", "0")])
def test_statuses_without_body(client: Client, status: str, length: str) -> None:
    assert client.get(f"/status/{status}")["Content-Length"] == length
    assert client.get("/").body == b"hello"


def test_chunked_to_1_1_and_until_the_end_to_1_0(served: Served, client: Client) -> None:
    wanted = b"".join(b"piece %d\n" % n for n in range(50))
    answer = client.get("/stream/50")
    assert (answer["Transfer-Encoding"], answer.body) == ("chunked", wanted)
    old = served.client()
    old.send(b"GET /stream/50 HTTP/1.0\r\n\r\n")
    answer = old.answer()
    assert (answer["Transfer-Encoding"], answer["Content-Length"], answer.body) == ("", "", wanted)


def test_environ(client: Client) -> None:
    environ = client.get(
        "/environ/a%20b%C3%A9//c?x=%20y&z",
        "X-Thing: one ",
        "x-thing: two",
        "Cookie: a=1",
        "Cookie: b=2",
        "X_Thing: evil",
        "X-Forwarded_For: 6.6.6.6",
        "Proxy: http://evil",
        "Content-Type: text/x",
    ).json()
    assert environ["PATH_INFO"] == "/environ/a b\xc3\xa9//c"
    assert environ["QUERY_STRING"] == "x=%20y&z"
    assert environ["RAW_URI"] == "/environ/a%20b%C3%A9//c?x=%20y&z"
    assert environ["HTTP_X_THING"] == "one,two"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert environ["CONTENT_TYPE"] == "text/x"
    assert not {key for key in environ if "evil" in str(environ[key]) or "FORWARDED" in key or key == ""}
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["wsgi.multithread"] is True
    assert "CONTENT_LENGTH" not in environ


def test_absolute_target_names_the_host(client: Client) -> None:
    environ = client.get("http://example.com:81/environ?q").json()
    assert (environ["HTTP_HOST"], environ["PATH_INFO"]) == ("example.com:81", "/environ")


def test_chunked_body_has_its_length_and_no_coding(client: Client) -> None:
    client.send(b"POST /environ HTTP/1.1\r\nHost: t\r\n" + TE + b"\r\n5\r\nhello\r\n0\r\n\r\n")
    environ = client.answer().json()
    assert environ["CONTENT_LENGTH"] == "5"
    assert "HTTP_TRANSFER_ENCODING" not in environ


def test_refusals_and_answers_are_counted(tmp_path: Path) -> None:
    served = serve(tmp_path)
    try:
        for request in (b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: t\r\n\r\n", b"GET /" + b"a" * 9000):
            client = served.client()
            client.send(request)
            client.answer()
            client.close()
        probe = served.client(served.private)
        assert probe.get("/").status == 200
        while len(served.ask("log")["lines"]) < 4:  # an answer is logged just after it is sent
            pass
        seat = served.ask("seat")
        assert seat["counted"] == {"200": 1}  # the private listener's are no traffic
        assert seat["refusals"] == {"400": 1, "414": 1}
        assert seat["bytes_sent"] == 5
        lines = served.ask("log")["lines"]
        assert sorted((line["method"], line["status"]) for line in lines) == [
            ("-", 414),
            ("GET", 200),
            ("GET", 200),
            ("GET", 400),
        ]
    finally:
        served.close()
