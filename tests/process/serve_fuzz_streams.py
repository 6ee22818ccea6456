"""Streams of bytes for a server of HTTP/1.1: valid requests, what random damage makes of them, and heads put together
from parts that fit or do not.

A stream is made from one number, so a failure is told by its number. What must not live here: servers, verdicts.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

# Each is whole and valid. What a browser, a proxy, curl or a probe sends, and what RFC 9110 and 9112 allow.
SEEDS = [
    b"GET / HTTP/1.1\r\nHost: t\r\n\r\n",
    b"GET /a%20b/%2e%00?q=1&r=%0d HTTP/1.1\r\nHost: t:8000\r\nAccept: */*\r\nUser-Agent: x/1 (y; z)\r\n\r\n",
    b"HEAD /h HTTP/1.1\r\nHost: [::1]:80\r\nAccept-Encoding: gzip, br\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n",
    b"GET http://u.example/x?y HTTP/1.1\r\nHost: t\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET /k HTTP/1.0\r\nHost: t\r\nConnection: keep-alive\r\n\r\n",
    b"GET /c HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
    b"POST /p HTTP/1.1\r\nHost: t\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /0 HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n",
    b"PUT /n HTTP/1.1\r\nHost: t\r\nContent-Length: 39\r\n\r\nGET /inner HTTP/1.1\r\nHost: smuggled\r\n\r\n",
    b"DELETE /d HTTP/1.1\r\nHost: t\r\nCookie: a=b\r\nCookie: c=d\r\n\r\n",
    b"POST /t HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST /T HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: Chunked\r\n\r\n00A\r\n0123456789\r\n1\r\n!\r\n000\r\n\r\n",
    b'POST /e HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b;c="d;e"\r\nabc\r\n0;last\r\n\r\n',
    b"POST /f HTTP/1.1\r\nHost: t\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1\r\na\r\n0\r\nX-Sum: 9\r\nX-Other: y\r\n\r\n",
    b"PUT /x HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"PUT /y HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    b"GET /u HTTP/1.1\r\nHost: t\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    b"POST /v HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /w HTTP/1.1\r\nHost: t\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET /m HTTP/1.1\r\nHost: t\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\nAccept: a\r\naccept: b\r\n\r\n",
    b"GET /o HTTP/1.1\r\nHost: t\r\nX-Empty:\r\nX-Blank: \t \r\nX-Text: caf\xc3\xa9 \xff\r\nX-In: a \t b \t\r\n\r\n",
    b"GET /r HTTP/1.1\r\nHost: t\r\nX_Under: 1\r\nProxy: evil\r\nAuthorization: Basic dDp0\r\n\r\n",
    b"PATCH /z HTTP/1.1\r\nHOST: T\r\ncontent-length: 2\r\nX: y\r\n\r\nok",
    b"\r\nGET /l HTTP/1.1\r\nHost: t\r\n\r\n",
]

# What is put where it does not belong: line ends and blanks of every kind, framing, and beginnings of requests.
TOKENS = [
    *(bytes([byte]) for byte in b'\r\n\0 \t:;,"=_-+%#?/\\0159aAfFxX\x0b\x0c\x1f\x7f\x80\x85\xa0\xff'),
    *(b"\r\n", b"\n\n", b"\r\r\n", b"\r\n ", b"\r\n\t", b"\r\n\r\n", b" \r\n", b"\n\r\n", b"\r\n\r\n\r\n"),
    *(
        b"0\r\n\r\n",
        b"0\r\n",
        b"5\r\nhello\r\n",
        b"1;x\r\n",
        b"-1\r\n",
        b"0x5\r\n",
        b"FFFFFFFFFFFFFFFF\r\n",
        b"10000000000000000\r\n",
    ),
    *(
        b"chunked",
        b"identity",
        b"gzip, chunked",
        b"chunked, chunked",
        b", chunked",
        b"close",
        b"keep-alive",
        b"upgrade",
    ),
    *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: 5, 5\r\n", b"Content-Length: +5\r\n"),
    *(b"Content-Length : 5\r\n", b"Content_Length: 5\r\n", b"Content-Length:\r\n", b"\r\nContent-Length: 7"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding:\tchunked\r\n", b"Transfer-Encoding : chunked\r\n"),
    *(b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding: xchunked\r\n", b"Transfer-Encoding:\r\n chunked\r\n"),
    *(b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    *(
        b"Expect: 100-continue\r\n",
        b"Expect: 200-ok\r\n",
        b"Trailer: X\r\n",
        b"Host: evil\r\n",
        b"Host:\r\n",
        b" folded\r\n",
    ),
    *(
        b"GET /evil HTTP/1.1\r\n",
        b"GET /evil HTTP/1.1\r\nHost: evil\r\n\r\n",
        b" HTTP/1.1\r\n",
        b"HTTP/1.1",
        b"HTTP/1.0",
    ),
    *(
        b"HTTP/1.2",
        b"HTTP/2.0",
        b"HTTP/11",
        b"http/1.1",
        b"CONNECT ",
        b"HEAD ",
        b"get ",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ),
    *(b"http://", b"//", b"@", b"[", b"*", b"\xc3\xa9", b"\xef\xbb\xbf", b"\xe2\x80\xa8"),
]

# Parts of heads that are put together at random.
METHODS = (
    ["GET"] * 4 + ["POST"] * 4 + ["HEAD", "PUT", "OPTIONS", "DELETE", "CONNECT", "TRACE", "get", "BREW", "G T", ""]
)
TARGETS = ["/"] * 5 + [
    "/a?b=c",
    "/%2e%00",
    "*",
    "http://t/x?y",
    "/a b",
    "//x",
    "/#f",
    "",
    "/\xe9",
    "\\",
    "http://u@h/",
    "h:80",
]
VERSIONS = ["HTTP/1.1"] * 12 + ["HTTP/1.0", "HTTP/1.2", "http/1.1", "HTTP/2.0", "HTTP/1.1 ", "HTTP/11", ""]
NAMES = [
    *("Host", "X-A", "x-a", "Content-Length", "Content-Length", "Transfer-Encoding", "Transfer-Encoding", "Connection"),
    *("Expect", "Upgrade", "Cookie", "X_A", "TE", "Content-Length ", " X", "X\t", "X\0", "Trailer", "Content-length"),
    *(
        "HOST",
        "",
        "Content-Type",
        "Authorization",
        "transfer-encoding",
        "Transfer_Encoding",
        "Proxy",
        "X-Forwarded-For",
    ),
]
VALUES = [
    *("t", "5", "0", "chunked", "Chunked", "gzip, chunked", "chunked, chunked", "identity", "close", "keep-alive"),
    *(
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
        "\xe9",
    ),
    *(
        "chunked\x0b",
        "1e1",
        "05",
        "a\0b",
        "a\x7fb",
        "a\rb",
        "a\nX-B: c",
        "99999999999999999999",
        "chunked;q=1",
        ",chunked",
    ),
]
LINE_ENDS = ["\r\n"] * 40 + ["\n", "\r", "\r\r\n", "\n\r\n"]
BODIES = [
    *(
        "",
        "hello",
        "5\r\nhello\r\n0\r\n\r\n",
        "5;a=b\r\nhello\r\n0\r\nT: x\r\n\r\n",
        "GET /evil HTTP/1.1\r\nHost: t\r\n\r\n",
    ),
    *(
        "0\r\n\r\n",
        "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\nhello\n0\n\n",
        "05\r\nhello\r\n00\r\n\r\n",
    ),
]


@dataclass(frozen=True, slots=True)
class Stream:
    """data, sent in pieces that end at the places of cuts."""

    data: bytes
    cuts: tuple[int, ...] = ()

    def pieces(self) -> list[bytes]:
        ends = [0, *sorted({cut for cut in self.cuts if 0 < cut < len(self.data)}), len(self.data)]
        return [self.data[begin:end] for begin, end in pairwise(ends)]


def make(number: int, seeds: list[bytes] = SEEDS) -> Stream:
    """The stream of this number: up to five requests of the corpus, damaged or not, cut anywhere."""
    chance = random.Random(number)
    count = chance.choice((1, 1, 2, 2, 3, 5))
    data = b"".join(_built(chance) if chance.random() < 0.2 else chance.choice(seeds) for _ in range(count))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 6))):
        data = chance.choice(DAMAGES)(data, chance)
    kind = chance.randrange(4)
    if kind == 0:
        cuts: tuple[int, ...] = ()
    elif kind == 1:
        cuts = tuple(range(1, len(data)))[:400]
    else:
        cuts = tuple(chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, 8)))
    return Stream(data, cuts)


def _built(chance: random.Random) -> bytes:
    pick = chance.choice
    text = f"{pick(METHODS)} {pick(TARGETS)} {pick(VERSIONS)}{pick(LINE_ENDS)}"
    if chance.randrange(10):
        text += "Host: t\r\n"
    for _ in range(chance.randrange(5)):
        text += f"{pick(NAMES)}:{pick((' ', ' ', '', '  ', chr(9)))}{pick(VALUES)}{pick(LINE_ENDS)}"
    return (text + pick(LINE_ENDS) + pick(BODIES)).encode("latin-1")


def _insert(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.choice(TOKENS) + data[at:]


def _insert_at_line(data: bytes, chance: random.Random) -> bytes:
    """Where most of it has a meaning."""
    lines = data.split(b"\r\n")
    at = chance.randrange(len(lines))
    lines[at] = chance.choice(TOKENS) + lines[at] if chance.random() < 0.5 else lines[at] + chance.choice(TOKENS)
    return b"\r\n".join(lines)


def _replace(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    token = chance.choice(TOKENS)
    return data[:at] + token + data[at + len(token) :]


def _flip(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]


def _delete(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at + chance.choice((1, 1, 1, 2, 4, 9)) :]


def _repeat(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    size = chance.choice((1, 2, 5, 20))
    return data[:at] + data[at : at + size] * chance.choice((2, 2, 3, 40)) + data[at + size :]


def _line(data: bytes, chance: random.Random) -> bytes:
    """A line more than once, elsewhere, not at all, or in other letters."""
    lines = data.split(b"\r\n")
    at = chance.randrange(len(lines))
    what = chance.randrange(4)
    if what == 0:
        lines.insert(chance.randrange(len(lines) + 1), lines[at])
    elif what == 1:
        lines.insert(chance.randrange(len(lines)), lines.pop(at))
    elif what == 2:
        del lines[at]
    else:
        lines[at] = lines[at].swapcase()
    return b"\r\n".join(lines)


def _line_end(data: bytes, chance: random.Random) -> bytes:
    places = [at for at in range(len(data)) if data.startswith(b"\r\n", at)]
    if not places:
        return data
    at = chance.choice(places)
    return (
        data[:at]
        + chance.choice((b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b"", b"\r\n\t", b"\0\r\n"))
        + data[at + 2 :]
    )


def _splice(data: bytes, chance: random.Random) -> bytes:
    other = chance.choice(SEEDS)
    at, end = chance.randrange(len(data) + 1), chance.randrange(len(other) + 1)
    return data[:at] + other[end:]


def _end(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [
    *(_insert, _insert_at_line, _insert_at_line, _insert_at_line, _replace, _flip, _delete, _repeat, _line, _line),
    *(_line_end, _splice, _end),
]


def smallest(stream: Stream, fails: Callable[[Stream], bool]) -> Stream:
    """A part of the stream that fails as well, as small as taking away pieces makes it."""
    if fails(Stream(stream.data)):
        stream = Stream(stream.data)
    size = len(stream.data) // 2
    while size:
        at = 0
        while at < len(stream.data):
            less = Stream(stream.data[:at] + stream.data[at + size :], _without(stream.cuts, at, size))
            if less.data and fails(less):
                stream = less
            else:
                at += size
        size //= 2
    for cut in stream.cuts:
        less = Stream(stream.data, tuple(each for each in stream.cuts if each != cut))
        if fails(less):
            stream = less
    return stream


def _without(cuts: tuple[int, ...], at: int, size: int) -> tuple[int, ...]:
    return tuple(cut if cut <= at else max(at, cut - size) for cut in cuts)
