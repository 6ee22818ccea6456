"""The HTTP layer under damaged requests and bad answers: WSGI (inline and with threads) and ASGI against h11, and each other.

Requests: streams, whole and damaged, go to all servers in pieces. Each request that an app was given, h11 must have found
at the same place with the same method, target, fields and body, or two programs in a row would see different requests. (We
may refuse what h11 takes, not the other way round.) What the two servers make of a stream may differ in the listed ways only.
Answers: apps give headers, lengths and bodies that do not fit. The client must find the answer to the *next* request whole
and in its place, or the end of the connection; no header that the app did not name; no answer that is framed in two ways.

By default the same streams each time. MIDSTREAM_FUZZ_S: so many seconds of others, a fifth of it for answers;
MIDSTREAM_FUZZ_FROM: from this number on. A run of the whole half hour collects what it finds, and fails at its end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

h11 = pytest.importorskip("h11")
uvloop = pytest.importorskip("uvloop")
pytest.importorskip("httptools")

import serve_fuzz_answers as answers  # noqa: E402
import serve_fuzz_streams as streams  # noqa: E402
from serve_fuzz_peers import Asgi, Fuzzed, Reading, Wsgi, by_h11, take_answer  # noqa: E402
from serve_fuzz_streams import Stream  # noqa: E402

BUDGET_S = float(os.environ.get("MIDSTREAM_FUZZ_S", "0"))
ENOUGH = 10  # failures
FROM = int(os.environ.get("MIDSTREAM_FUZZ_FROM", "0") or time.time_ns() // 1000 if BUDGET_S else "0")
STREAMS, ANSWERS = 300, 300  # by default

# What one of our servers refuses and the other takes, as h11 does. llhttp, which ASGI gives bodies too, passes over chunk
# extensions without a name.
CLOSES = re.compile(rb"\r\nconnection: close\r\n", re.IGNORECASE)
ONLY_ASGI_TAKES = ("the extension of a chunk is malformed",)
# llhttp reads trailers as fields, and one that says `Connection: close` ends the connection: ASGI then takes fewer.
CLOSING_TRAILER = re.compile(rb"\n0+(;[^\r\n]*)?\r\n([^\r\n]+\r\n)*connection:[^\r\n]*close", re.IGNORECASE)
# h11 takes twenty digits of a chunk's size, we any number of zeros before fifteen.
MANY_ZEROS = re.compile(rb"(?<=\r\n)0+(?=[0-9A-Fa-f]{15}[;\r])")


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    logging.disable(logging.CRITICAL)  # of each bad answer
    yield loop
    logging.disable(logging.NOTSET)
    loop.close()


@pytest.fixture(scope="module")
def servers(loop: asyncio.AbstractEventLoop) -> Iterator[list[Fuzzed]]:
    all_of_them: list[Fuzzed] = [Wsgi(), Asgi(), Wsgi(threads=2)]
    for each in all_of_them:
        loop.run_until_complete(each.start())
    yield all_of_them
    for each in all_of_them:
        loop.run_until_complete(each.close())


def numbers(count: int, share: float) -> Iterator[int]:
    """So many; or as many as there is time for in that share of the budget."""
    until_s = time.monotonic() + BUDGET_S * share
    number = FROM
    while time.monotonic() < until_s if BUDGET_S else number < count:
        yield number
        number += 1


# ---- requests


def fault(stream: Stream, loop: Any, servers: list[Fuzzed]) -> tuple[str, int]:
    """What is wrong with the readings of this stream, "" for nothing; and how many requests were accepted."""
    theirs = by_h11(MANY_ZEROS.sub(b"", stream.data))
    readings: list[Reading] = []
    for server in servers:
        try:
            reading = loop.run_until_complete(server.read(stream))
        except AssertionError as error:
            return f"{type(server).__name__}: {error}", 0
        readings.append(reading)
        if wrong := alone(reading, theirs, may_reset=server.threads > 1):
            return f"{type(server).__name__} {wrong}: {reading.requests}, h11: {theirs}, answers: {reading.raw!r}", 0
    return together(stream, *readings), sum(len(reading.requests) for reading in readings)


def alone(reading: Reading, theirs: list[Any], *, may_reset: bool) -> str:
    """One server against h11. may_reset: an app thread closes a connection that its client wants closed; what the client
    sends behind that, against its word, is answered by a reset."""
    if reading.requests != theirs[: len(reading.requests)]:
        return "reads what h11 does not"
    if reading.switched:
        return ""
    if not reading.whole:
        return "does not answer to the end"
    if reading.reset and not (may_reset and reading.refusal is None and CLOSES.search(reading.raw)):
        return "is reset"
    expected = [(200, b"" if one.method == "HEAD" else one.mark.encode()) for one in reading.requests]
    if reading.answers[: len(expected)] != expected:
        return "does not answer each request in its turn"
    if len(reading.answers) > len(expected) + 1:
        return "answers more than was asked"
    if reading.refusal is not None and not (400 <= reading.refusal[0] < 500 or reading.refusal[0] in (501, 505)):
        return "fails"
    return ""


def together(stream: Stream, wsgi: Reading, asgi: Reading, threads: Reading) -> str:
    """All found the same; and where one stops, there is a reason."""
    if threads.requests != wsgi.requests:  # which fault of a bad head is seen first is a matter of how it comes
        return f"with threads: {threads.requests}, {threads.refusal}; inline: {wsgi.requests}, {wsgi.refusal}"
    if asgi.switched:
        return ""
    count = min(len(wsgi.requests), len(asgi.requests))
    if wsgi.requests[:count] != asgi.requests[:count]:
        return f"they differ: {wsgi.requests}, {asgi.requests}"
    if len(wsgi.requests) < len(asgi.requests):
        why = wsgi.refusal[1] if wsgi.refusal else "nothing"
        return "" if why.endswith(ONLY_ASGI_TAKES) else f"only ASGI takes it, WSGI says {why}: {asgi.requests[count:]}"
    if len(asgi.requests) < len(wsgi.requests):
        if asgi.refusal is None and CLOSING_TRAILER.search(stream.data):
            return ""
        return f"only WSGI takes it, ASGI says {asgi.refusal}: {wsgi.requests[count:]}"
    return ""


def test_what_is_accepted_is_what_h11_reads(loop: Any, servers: list[Fuzzed]) -> None:
    accepted = count = 0
    found: list[str] = []
    for number in numbers(STREAMS, 0.8):
        stream = streams.make(number)
        wrong, requests = fault(stream, loop, servers)
        if wrong:
            least = streams.smallest(stream, lambda less: bool(fault(less, loop, servers)[0]))
            found.append(f"stream {number}, {least}: {fault(least, loop, servers)[0]}")
            if len(found) == ENOUGH:
                break
        accepted += requests
        count += 1
    print(f"{count} streams, {accepted} requests accepted, {len(found)} differences", flush=True)
    assert not found, "\n\n".join(found)
    assert accepted > count / 2


@pytest.mark.parametrize("seed", streams.SEEDS, ids=range(len(streams.SEEDS)))
def test_what_the_streams_are_made_of_is_accepted(loop: Any, servers: list[Fuzzed], seed: bytes) -> None:
    """One request each, by all, in one piece and byte by byte."""
    for stream in (Stream(seed), Stream(seed, tuple(range(1, len(seed))))):
        assert fault(stream, loop, servers) == ("", 3)


# Found by fuzzing, and mended. Each is followed by how many requests WSGI and ASGI accept of it.
FOUND = {
    "blanks behind a value are no part of it": (
        Stream(b"PUT / HTTP/1.1\r\nHost: t\r\nExpect: 100-continue \t\r\nX: y \r\n\r\n"),
        (1, 1),
    ),
    "a trailer's name has no blank in it": (
        Stream(b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nGET htt: close\r\n\r\n"),
        (0, 0),
    ),
    "a whole URL does not replace the Host field": (Stream(b"GET http://t/x HTTP/1.1\r\n\r\n"), (0, 0)),
    "nor excuse a malformed one": (Stream(b"GET http://t/x HTTP/1.1\r\nHost: t: x\r\n\r\n"), (0, 0)),
    "an empty line that is cut in two": (Stream(b"\r\nGET / HTTP/1.1\r\nHost: t\r\n\r\n", (1,)), (1, 1)),
    "a second empty line": (Stream(b"\r\n\r\nGET / HTTP/1.1\r\nHost: t\r\n\r\n", (1, 2, 3)), (0, 0)),
    "garbage behind the last of pipelined requests": (
        Stream(b"GET /1 HTTP/1.1\r\nHost: t\r\n\r\n" * 4 + b"X-Forwarded-For: 5.6.7.8\r\n\r\n"),
        (4, 4),
    ),
    "a part of a request behind pipelined ones, then the end": (
        Stream(b"GET /1 HTTP/1.1\r\nHost: t\r\n\r\n" * 4 + b"GET /2 HT"),
        (4, 4),
    ),
    "a part of a body behind pipelined requests, then the end": (
        Stream(
            b"GET /1 HTTP/1.1\r\nHost: t\r\n\r\n" * 4 + b"PUT / HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\nabc"
        ),
        (4, 4),
    ),
    "more behind a request that closes": (
        Stream(
            b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: t\r\n\r\n", (49, 50, 51)
        ),
        (1, 1),
    ),
    "what follows a quoted chunk extension": (
        Stream(b'POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3;a="d;e"x\r\nabc\r\n0\r\n\r\n'),
        (0, 0),
    ),
    "framing among the trailers": (
        Stream(b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 3\r\n\r\nabc"),
        (0, 0),
    ),
    "an expectation of HTTP/1.0 is none": (Stream(b"PUT / HTTP/1.0\r\nExpect:\r\n\r\n"), (1, 1)),
    "an expectation said twice": (
        Stream(b"GET / HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nExpect: 100-Continue\r\n\r\n"),
        (1, 1),
    ),
    "RTSP is not HTTP": (Stream(b"ANNOUNCE / RTSP/1.0\r\n\r\n"), (0, 0)),
    "a length of many zeros": (Stream(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 000\r\n\r\n"), (1, 1)),
    "a chunk extension without a name": (
        Stream(b'POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3;=;=""\r\nabc\r\n0;t\r\n\r\n'),
        (0, 1),
    ),
    "credentials given twice": (
        Stream(b"GET / HTTP/1.1\r\nHost: t\r\nAuthorization: Basic a\r\nAuthorization: Basic b\r\n\r\n"),
        (0, 0),
    ),
    "kept alive and closed in one head of HTTP/1.0": (
        Stream(
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\nHost: t\r\n\r\n"
        ),
        (1, 1),
    ),
    "no blank of HTTP around an expectation": (
        Stream(b"PUT / HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\x85\r\n\r\n"),
        (0, 0),
    ),
    "no blank of HTTP after keep-alive": (
        Stream(b"GET / HTTP/1.0\r\nConnection: keep-alive\x85\r\n\r\nGET / HTTP/1.1\r\nHost: t\r\n\r\n"),
        (1, 1),
    ),
    "the host of a whole URL where no Host is": (Stream(b"GET http://t/ HTTP/1.0\r\n\r\n"), (1, 1)),
    "a chunk's size of more zeros than h11 takes": (
        Stream(
            b"PUT / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n000000000000000000000A\r\n0123456789\r\n0\r\n\r\n"
        ),
        (1, 1),
    ),
    "a chunk's size of many zeros": (
        Stream(b"PUT / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0000000000000000\r\n\r\n"),
        (1, 1),
    ),
    "two blanks in the request line": (Stream(b"GET  / HTTP/1.1\r\nHost: t\r\n\r\n"), (0, 0)),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(loop: Any, servers: list[Fuzzed], name: str) -> None:
    stream, accepted = FOUND[name]
    assert fault(stream, loop, servers) == ("", sum(accepted) + accepted[0])
    assert tuple(len(server.reading.requests) for server in servers[:2]) == accepted


# ---- answers


class WsgiAnswers(Wsgi):
    given: answers.Given

    def app(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/second":
            start_response("200 OK", [("Content-Length", "6")])
            return [b"second"]
        return answers.wsgi(self.given, start_response)


class AsgiAnswers(Asgi):
    given: answers.Given

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/second":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
            await send({"type": "http.response.body", "body": b"second"})
            return
        await answers.asgi(self.given, send)


@pytest.fixture(scope="module")
def answering(loop: asyncio.AbstractEventLoop) -> Iterator[list[Any]]:
    all_of_them: list[Any] = [WsgiAnswers(), AsgiAnswers(), WsgiAnswers(threads=2)]
    for each in all_of_them:
        loop.run_until_complete(each.start())
    yield all_of_them
    for each in all_of_them:
        loop.run_until_complete(each.close())


OURS = {"date", "content-length", "transfer-encoding", "connection", "content-type"}


def wrong_answer(given: answers.Given, raw: bytes) -> str:
    """What is wrong with the bytes that answer the request for `given` and then one for "second"; "" for nothing."""
    try:
        first = take_answer(raw, given.method)
        second = take_answer(first[2], "GET") if first and first[2] else None
    except h11.RemoteProtocolError as error:
        first = None
        if "closed connection without" not in str(error):
            return f"it is no answer: {error}"
    if first is None:
        return "it is cut, for no reason" if given.is_good else ""
    answer, body, rest = first
    names = [name.decode() for name, _ in answer.headers]
    if extra := set(names) - given.names - OURS:
        return f"{extra} were not given"
    if answer.status_code not in (given.code, 500):
        return f"the status is {answer.status_code}"
    if names.count("content-length") + names.count("transfer-encoding") > 1:
        return "it is framed twice"
    if given.version == "1.0" and "transfer-encoding" in names:
        return "it is chunked for HTTP/1.0"
    if answer.status_code == given.code and not given.body.startswith(body):
        return "the body is another"
    if given.is_good and (answer.status_code != given.code or (body != given.body and not given.bodiless)):
        return "a good answer does not arrive"
    closes = (b"connection", b"close") in answer.headers
    if not rest:
        return "the next request has no answer" if given.is_good and given.version == "1.1" and not closes else ""
    if second is None or second[0].status_code != 200 or second[1] != b"second" or second[2]:
        return "the next answer is not where it should be"
    return "it goes on behind a last answer" if closes else ""


def test_no_answer_of_an_app_comes_in_the_way_of_the_next(loop: Any, answering: list[Any]) -> None:
    whole = count = 0
    found: list[str] = []
    for number in numbers(ANSWERS, 0.2):
        given = answers.make(number)
        asks = f"{given.method} /first HTTP/{given.version}\r\nHost: t\r\n"
        asks += "Connection: keep-alive\r\n" if given.version == "1.0" and number % 2 else ""
        stream = Stream(f"{asks}\r\nGET /second HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        for server in answering:
            server.given = given
            raw = loop.run_until_complete(server.read(stream)).raw
            wrong = wrong_answer(given, raw)
            if wrong and len(found) < ENOUGH:
                found.append(f"answer {number}, {type(server).__name__}: {wrong}: {given}, {raw[:500]!r}")
            whole += raw.endswith(b"second")
            count += 1
    print(f"{count} answers, {whole} followed by another, {len(found)} wrong", flush=True)
    assert not found, "\n\n".join(found)
    assert whole > count / 3
