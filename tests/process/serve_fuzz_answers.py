"""Answers that an app may give, good and bad, by number; the same one for WSGI and for ASGI.

What must not live here: servers, verdicts (`test_serve_fuzz.py`).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

CODES = [200] * 8 + [204, 204, 304, 304, 404, 503, 205, 599, 100, 101, 199, 99, 0, 1000]
REASONS = ["OK"] * 6 + ["", "Oh\r\nInjected: 1", "a\nInjected: 1", "a\rb", "\0", "caf\xe9", "\u20ac"]
NAMES = ["X-A", "x-b", "Content-Type", "Set-Cookie", "Content-Length", "content-length", "CONTENT-LENGTH"] * 2 + [
    *(
        "Transfer-Encoding",
        "transfer-encoding",
        "Connection",
        "Keep-Alive",
        "Upgrade",
        "Trailer",
        "TE",
        "Date",
        "Server",
    ),
    *(
        "X A",
        "X:",
        "",
        "X\r\nInjected",
        "X: 1\r\nInjected",
        "\xe9",
        "X\0",
        "X\n",
        "Proxy-Connection",
        "Content-Length ",
    ),
]
VALUES = ["ok", "text/plain", "5", "0", "3", "100"] * 2 + [
    *(
        "3, 3",
        "chunked",
        "gzip",
        "identity",
        "close",
        "keep-alive",
        "a\r\nInjected: 1",
        "a\nInjected: 1",
        "a\rInjected: 1",
    ),
    *(
        "a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "\0",
        "\xe9",
        "\u20ac",
        " 5",
        "5 ",
        "\t5",
        "-1",
        "+5",
        "0x5",
    ),
    *("99999999999999999999", "", "\x0b", "\x85", "5\x0b", "5_0", "\u0665"),
]
PARTS: list[Any] = [b"hello", b"", b"abc", b"0123456789", b"x" * 70_000, b"0\r\n\r\n", b"5\r\nhello\r\n"] * 2 + [
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "text",
    None,
    bytearray(b"array"),
    7,
]


class Upset(Exception):
    """What the app raises."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the app gives in answer to one request. way: how it hands it over; fails_at: the part before which it raises."""

    code: int
    reason: str
    headers: list[tuple[Any, Any]]
    parts: list[Any]
    way: int
    fails_at: int | None
    method: str
    version: str

    @property
    def names(self) -> set[str]:
        texts = [name.decode() if isinstance(name, bytes) else name for name, _ in self.headers]
        return {text.lower() for text in texts if text}

    @property
    def body(self) -> bytes:
        return b"".join(bytes(part) for part in self.parts if isinstance(part, bytes | bytearray))

    @property
    def bodiless(self) -> bool:
        return self.method == "HEAD" or self.code in (204, 304)

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong with it, so that it has to arrive."""
        return (
            self.code in (200, 204, 304, 404, 503)
            and self.reason == "OK"
            and self.fails_at is None
            and self.way != 3
            and all(isinstance(part, bytes) for part in self.parts)
            and all(name in ("X-A", "x-b", "Content-Type") and value in ("ok", "5") for name, value in self.headers)
        )

    @property
    def status(self) -> str:
        return f"{self.code} {self.reason}" if self.reason or self.way % 2 else str(self.code)


def make(number: int) -> Given:
    chance = random.Random(number)
    pick = chance.choice
    parts = [pick(PARTS) for _ in range(pick((0, 1, 1, 1, 2, 3)))]
    headers: list[tuple[Any, Any]] = [(pick(NAMES), pick(VALUES)) for _ in range(pick((0, 1, 1, 2, 2, 4)))]
    if chance.random() < 0.3:
        size = sum(len(part) for part in parts if isinstance(part, bytes | str)) + pick((0, 0, 0, 0, -1, 1, 9))
        headers.append(("Content-Length", str(size)))
    if chance.random() < 0.03:
        headers.append(pick([(b"X", "y"), ("X", 5), ("X", None), (None, "x"), ("X", b"y")]))
    fails_at = chance.randrange(4) if chance.random() < 0.1 else None
    method = pick(("GET", "GET", "GET", "HEAD", "POST"))
    reason = pick(REASONS) if chance.random() < 0.3 else "OK"
    return Given(
        pick(CODES), reason, headers, parts, chance.randrange(8), fails_at, method, pick(("1.1", "1.1", "1.1", "1.0"))
    )


# ---- WSGI


def wsgi(given: Given, start_response: Callable[..., Any]) -> Any:
    if given.way == 7 and given.fails_at is None:
        try:
            start_response("200 OK", [("X-First", "1")])
            raise Upset
        except Upset:
            write = start_response(given.status, given.headers, sys.exc_info())
    elif given.way == 6 and given.fails_at == 0:
        return given.parts  # start_response was never called
    else:
        write = start_response(given.status, given.headers)
    if given.way in (0, 1):
        _maybe_fail(given, 0)
        return list(given.parts) if given.way else tuple(given.parts)
    if given.way == 2:
        for at, part in enumerate(given.parts):
            _maybe_fail(given, at)
            write(part)
        return []
    if given.way == 3 and given.parts:
        return given.parts[0]  # no list: an iterable of ints or characters, or nothing of the kind
    return _iterate(given)


def _iterate(given: Given) -> Iterator[Any]:
    for at, part in enumerate(given.parts):
        _maybe_fail(given, at)
        yield part
    _maybe_fail(given, len(given.parts))


def _maybe_fail(given: Given, at: int) -> None:
    if given.fails_at == at:
        raise Upset(f"before part {at}")


# ---- ASGI


async def asgi(given: Given, send: Callable[[Any], Any]) -> None:
    headers = [(_bytes(name), _bytes(value)) for name, value in given.headers]
    start = {"type": "http.response.start", "status": given.code, "headers": headers}
    if given.way == 6 and given.fails_at == 0:
        await send({"type": "http.response.body", "body": b"no start"})
    await send(start)
    if given.way == 5 and given.fails_at == 1:
        await send(start)
    last = len(given.parts) - 1
    for at, part in enumerate(given.parts):
        _maybe_fail(given, at)
        await send({"type": "http.response.body", "body": part, "more_body": at < last or given.way > 3})
    if given.way > 3 or not given.parts:
        _maybe_fail(given, len(given.parts))
        if given.way == 4 and given.fails_at is not None:
            return  # without an end
        await send({"type": "http.response.body", "body": b""})
    if given.way == 2 and given.fails_at is not None:
        await send({"type": "http.response.body", "body": b"behind the end"})


def _bytes(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text
