"""The HTTP layer against h11: what the server gives to the app, h11 reads as the same request.

Streams of requests, whole and damaged, are sent to the server's protocol over a socket pair, in pieces. For each request that
the app was given, h11 must have found the same method, target, fields and body at the same place. (h11 may refuse what
we refuse, and we may refuse what h11 takes; the other way round would be a request that two programs read differently.)
MIDSTREAM_FUZZ_S: how long; 8 s by default.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from serve_wsgi_runner import CountingSeat, ListedLog

h11 = pytest.importorskip("h11")
uvloop = pytest.importorskip("uvloop")
pytest.importorskip("httptools")

from midstream.serve.contract import Identity, Listener  # noqa: E402
from midstream.serve.settings import Settings  # noqa: E402
from midstream.serve.wsgi import WsgiServer  # noqa: E402

BUDGET_S = float(os.environ.get("MIDSTREAM_FUZZ_S", "8"))

Seen = tuple[str, str, list[tuple[str, str]], bytes]

names = st.sampled_from(
    [
        "Host",
        "X-A",
        "x-a",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Expect",
        "Upgrade",
        "Cookie",
        "X_A",
        "TE",
        "Content-Length ",
        " X",
        "X\t",
        "X\x00",
        "Trailer",
        "Content-length",
        "HOST",
        "",
    ]
)
values = st.one_of(
    st.sampled_from(
        [
            "t",
            "5",
            "0",
            "chunked",
            "Chunked",
            "gzip, chunked",
            "chunked, chunked",
            "identity",
            "close",
            "keep-alive",
            "upgrade",
            "websocket",
            "h2c",
            "100-continue",
            "5, 5",
            "+5",
            "0x5",
            "5 ",
            " 5",
            "\tchunked",
            "",
            "a\r\n b",
            "é",
            "chunked\x0b",
            "1e1",
            "05",
            "a\x00b",
            "a\x7fb",
            "a\rb",
            "a\nX-B: c",
        ]
    ),
    st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=6),
)
ends = st.sampled_from(["\r\n"] * 30 + ["\n", "\r", "\r\r\n", "\n\r\n"])
targets = st.sampled_from(
    ["/", "/a?b=c", "/%2e%00", "*", "http://t/x?y", "/a b", "//x", "/#f", "", "/é", "\\", "http://u@h/"]
)
methods = st.sampled_from(["GET", "POST", "HEAD", "PUT", "OPTIONS", "DELETE", "CONNECT", "get", "BREW", "G T", ""])
versions = st.sampled_from(
    ["HTTP/1.1"] * 12 + ["HTTP/1.0", "HTTP/1.2", "http/1.1", "HTTP/2.0", "HTTP/1.1 ", "HTTP/11", ""]
)
bodies = st.one_of(
    st.just(""),
    st.just("hello"),
    st.just("5\r\nhello\r\n0\r\n\r\n"),
    st.just("5;a=b\r\nhello\r\n0\r\nT: x\r\n\r\n"),
    st.just("GET /evil HTTP/1.1\r\nHost: t\r\n\r\n"),
    st.lists(
        st.sampled_from(
            [
                "5\r\n",
                "hello",
                "\r\n",
                "0\r\n",
                "\r\n\r\n",
                "a",
                "5",
                ";x",
                "\n",
                "0",
                "-1\r\n",
                " ",
                "T: x\r\n",
                "0x5\r\n",
                "\r",
            ]
        ),
        max_size=8,
    ).map("".join),
)


@st.composite
def requests(draw: Any) -> bytes:
    text = f"{draw(methods)} {draw(targets)} {draw(versions)}{draw(ends)}"
    if draw(st.integers(0, 9)):
        text += "Host: t\r\n"
    for name, value in draw(st.lists(st.tuples(names, values), max_size=4)):
        text += f"{name}:{draw(st.sampled_from([' ', '', '  ', chr(9)]))}{value}{draw(ends)}"
    return (text + draw(ends) + draw(bodies)).encode("latin-1", "replace")


@st.composite
def simple(draw: Any) -> bytes:
    body = draw(st.binary(max_size=20))
    if draw(st.booleans()):
        framed = b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(
            b"%x\r\n%b\r\n" % (1, body[n : n + 1]) for n in range(len(body))
        )
        return b"POST /p HTTP/1.1\r\nHost: t\r\n" + framed + b"0\r\n\r\n"
    return b"POST /p?q HTTP/1.1\r\nHost: t\r\nX-A: 1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


streams = st.tuples(
    st.lists(st.one_of(requests(), simple()), min_size=1, max_size=4).map(b"".join),
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=2)), max_size=2),  # damage
    st.integers(1, 60),  # size of the pieces
)


class Fuzzed:
    """A server that runs inline in this process, on a loop of its own."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.seen: list[Seen] = []
        self.listening = socket.create_server(("127.0.0.1", 0))
        settings = Settings(threads=1)
        self.server = WsgiServer(self.app, settings, Identity(0, 1, "", 0), CountingSeat(), ListedLog(False))
        self.run(self.server.start([Listener(self.listening, "fuzz", private=True)]))

    def run(self, what: Any) -> Any:
        return self.loop.run_until_complete(what)

    def app(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        fields = sorted(
            (key.removeprefix("HTTP_").replace("_", "-").lower(), value)
            for key, value in environ.items()
            if key.startswith("HTTP_") or key == "CONTENT_TYPE"
        )
        self.seen.append((environ["REQUEST_METHOD"], environ["RAW_URI"], fields, environ["wsgi.input"].read()))
        start_response("200 OK", [])
        return [b""]

    async def feed(self, stream: bytes, size: int) -> bytes:
        reader, writer = await asyncio.open_connection(*self.listening.getsockname())
        try:
            for at in range(0, len(stream), size):
                writer.write(stream[at : at + size])
                await writer.drain()
                if size > 20:
                    await asyncio.sleep(0)
            writer.write_eof()
            return await asyncio.wait_for(reader.read(), 10)
        except (ConnectionError, OSError):
            return b""
        finally:
            writer.close()

    def close(self) -> None:
        self.run(self.server.stop())
        self.loop.close()
        self.listening.close()


def read_by_h11(stream: bytes) -> list[Seen]:
    """The requests of the stream up to the first that h11 refuses; an incomplete body is no request."""
    found: list[Seen] = []
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    reader.receive_data(stream.removeprefix(b"\r\n"))
    reader.receive_data(b"")
    try:
        while isinstance(event := reader.next_event(), h11.Request):
            fields: dict[str, str] = {}
            for raw_name, raw_value in event.headers:
                name, value = raw_name.decode(), raw_value.decode("latin-1")
                if "_" in name or name in ("content-length", "transfer-encoding"):
                    continue
                joint = "; " if name == "cookie" else ","
                fields[name] = fields[name] + joint + value if name in fields else value
            body = b""
            while isinstance(part := reader.next_event(), h11.Data):
                body += bytes(part.data)
            if not isinstance(part, h11.EndOfMessage):
                break
            found.append((event.method.decode(), event.target.decode("latin-1"), sorted(fields.items()), body))
            reader.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            reader.send(h11.EndOfMessage())
            if reader.our_state is not h11.DONE or reader.their_state is not h11.DONE:
                break  # close, or a switch of protocols that we do not make
            rest, _ = reader.trailing_data
            reader.start_next_cycle()
    except h11.RemoteProtocolError:
        pass
    except h11.LocalProtocolError:
        pass
    return found


def same(ours: Seen, theirs: Seen) -> bool:
    """Fields are compared as they arrive at the app: the URL's host replaces the Host field."""
    if ours[0] != theirs[0] or ours[1] != theirs[1] or ours[3] != theirs[3]:
        return False
    if ours[1].startswith("/"):
        return ours[2] == theirs[2]
    without = [[pair for pair in fields if pair[0] != "host"] for fields in (ours[2], theirs[2])]
    return without[0] == without[1]


def test_what_is_accepted_is_what_h11_reads() -> None:
    fuzzed = Fuzzed()
    until_s = time.monotonic() + BUDGET_S
    runs = {"streams": 0, "requests": 0}

    def check(what: tuple[bytes, list[tuple[int, bytes]], int]) -> None:
        if time.monotonic() > until_s:
            return
        stream, damage, size = what
        for at, piece in damage:
            stream = stream[:at] + piece + stream[at + len(piece) :]
        fuzzed.seen.clear()
        answered = fuzzed.run(fuzzed.feed(stream, size))
        theirs = read_by_h11(stream)
        for number, ours in enumerate(fuzzed.seen):
            assert number < len(theirs), (stream, fuzzed.seen, theirs)
            assert same(ours, theirs[number]), (stream, ours, theirs[number])
        assert answered.startswith(b"HTTP/1.1 ") or not answered
        assert b"HTTP/1.1 500" not in answered, stream
        runs["streams"] += 1
        runs["requests"] += len(fuzzed.seen)

    try:
        while time.monotonic() < until_s:
            seeded = seed(time.time_ns())(
                settings(
                    max_examples=500,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                    phases=[Phase.generate, Phase.shrink],
                )(given(streams)(check))
            )
            seeded()
    finally:
        fuzzed.close()
    print(f"{runs['streams']} streams, {runs['requests']} requests accepted")
    assert runs["requests"] > 0
