"""HTTP/1.1 of the ASGI server by the table of the WSGI server: the same bytes get the same status."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import test_serve_http
from serve_asgi_run import Running

[TABLE] = [
    mark.args[1]
    for mark in test_serve_http.test_status.pytestmark
    if mark.name == "parametrize"  # type: ignore[attr-defined]
]

# Framing around a body is bounded over several reads, not within the first (test_serve_asgi.py: endless trailers and chunk
# extensions).
OTHERWISE = (b"5;xxx", b"0\r\nT: xxx", b"1;eee")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(limit_body_bytes=100_000) as running:
        yield running


@pytest.mark.parametrize(("request_bytes", "status"), TABLE)
def test_status(server: Running, request_bytes: bytes, status: int | tuple[int, ...]) -> None:
    if any(piece in request_bytes for piece in OTHERWISE):
        pytest.skip("bounded over several reads")
    with server.connect() as client:
        found = client.raw(request_bytes).answer()
        assert found.status in (status if isinstance(status, tuple) else (status,)), found
        if found.status >= 400:
            assert found.headers["connection"] == "close"
            assert client.rest() == b""


def test_bytes_may_come_in_any_pieces(server: Running) -> None:
    post = b"POST /echo HTTP/1.1\r\nHost: t\r\n"
    stream = post + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nT: x\r\n\r\n"
    stream += post + b"Content-Length: 3\r\n\r\nabc"
    for cut in (1, 3, 7):
        with server.connect() as client:
            for at in range(0, len(stream), cut):
                client.raw(stream[at : at + cut])
            assert client.answer().body == b"hello world"
            assert client.answer().body == b"abc"
