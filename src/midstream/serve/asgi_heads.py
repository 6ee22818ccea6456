"""What the head of a request to an ASGI app must be like, beyond what the parser holds: version, Host, framing, Expect.

Pure: a head in, a verdict out. What must not live here: I/O, the parser. Runs in the workers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from midstream.serve.limits import Refused, exceeded

_REQUEST_LINE = re.compile(rb"^[!-~]+ [!-~]+ HTTP/([0-9]\.[0-9])\r?$", re.MULTILINE)
_ONCE = frozenset({b"content-type", b"authorization"})  # given twice, one program takes the first, another the last


@dataclass(frozen=True, slots=True)
class Verdict:
    """body_size: bytes by Content-Length; None: chunked. websocket: it asks to become one. closes: it says `close`, whatever
    else it says of the connection (RFC 9112 9.3; llhttp lets `keep-alive` win in HTTP/1.0)."""

    body_size: int | None
    expects_continue: bool
    websocket: bool
    closes: bool

    @property
    def has_body(self) -> bool:
        return self.body_size != 0


_BODILESS = Verdict(0, False, False, False)
_BODILESS_LAST = Verdict(0, False, False, True)


def judge(
    method: str,
    version: str,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    host_allowed: Callable[[str], bool],
    limit_body_bytes: int,
) -> Verdict:
    """headers: names in small letters. Raises Refused. RFC 9110 7.2, 10.1.1; RFC 9112 3.2, 6.1; RFC 6455 4.1. Two lengths,
    a length beside an encoding, and lengths that are no digits have been refused by the parser."""
    if version not in ("1.1", "1.0"):
        raise Refused(505, "HTTP/1.1 and HTTP/1.0 are spoken here")
    if method == "CONNECT":
        raise Refused(501, "this is no proxy")
    hosts: list[bytes] = []
    size: int | None = 0
    expects = False
    upgrade = b""
    connection: list[bytes] = []
    once: list[bytes] = []
    encodings: list[bytes] = []
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            size = int(value)
            if limit_body_bytes and size > limit_body_bytes:
                raise exceeded("limit_body_bytes")
        elif name == b"transfer-encoding":
            encodings.append(value)
            size = None
        elif name == b"expect":
            if version == "1.1" and any(word.strip() != b"100-continue" for word in value.lower().split(b",")):
                raise Refused(417, "nothing but 100-continue can be expected")
            expects = version == "1.1"
        elif name == b"upgrade":
            upgrade = value.strip().lower()
        elif name == b"connection":
            connection += [token.strip() for token in value.lower().split(b",")]
        elif name in _ONCE:
            if name in once:
                raise Refused(400, f"{name.decode().title()} is given twice")
            once.append(name)
    if encodings:
        _check_encoding(encodings, version)
    _check_host(hosts, version, host_allowed)
    websocket = upgrade == b"websocket" and b"upgrade" in connection and version == "1.1"
    if websocket and size != 0:
        raise Refused(400, "a WebSocket begins without a body")
    closes = b"close" in connection
    if size == 0 and not websocket:
        return _BODILESS_LAST if closes else _BODILESS
    return Verdict(size, expects and size != 0, websocket, closes)


def misread(data: bytes, *, method_is_unknown: bool) -> Refused:
    """What to say to bytes that the parser does not take for HTTP/1. data: what came last."""
    line = _REQUEST_LINE.search(data)
    if line is not None and line[1] not in (b"1.1", b"1.0"):
        return Refused(505, "HTTP/1.1 and HTTP/1.0 are spoken here")
    if line is not None and method_is_unknown:
        return Refused(501, "the method is not known")
    return Refused(400, "this is no well-formed HTTP/1.1 request")


def split_target(method: str, target: bytes) -> tuple[bytes, bytes, bytes]:
    """Path, query and the host of a whole URL, which counts instead of the Host field (RFC 9112 3.2); b"": no whole URL.
    Raises Refused."""
    if b"#" in target:
        raise Refused(400, "a request target has no fragment")
    path, _, query = target.partition(b"?")
    if path.startswith(b"/"):
        return path, query, b""
    if path == b"*":
        if method != "OPTIONS":
            raise Refused(400, "the request target * is for OPTIONS")
        return path, query, b""
    scheme, _, rest = path.partition(b"://")
    host, _, path = rest.partition(b"/")
    if scheme.lower() not in (b"http", b"https") or not host:
        raise Refused(400, "the request target is neither a path nor an http URL with a host")
    return b"/" + path, query, host


def _check_encoding(values: list[bytes], version: str) -> None:
    if version == "1.0" or len(values) > 1:
        raise Refused(400, "this Transfer-Encoding is not allowed")
    if values[0].strip().lower() != b"chunked":
        raise Refused(501, "chunked is the only Transfer-Encoding here")


def _check_host(hosts: list[bytes], version: str, host_allowed: Callable[[str], bool]) -> None:
    if not hosts and version == "1.0":
        return
    if len(hosts) != 1:
        raise Refused(400, "there must be one Host")
    if not host_allowed(hosts[0].decode("latin-1")):
        raise Refused(400, "this Host is not served here")
