"""Health checks: ask a service over HTTP or TCP, and say in the operator's words what came back.

What lives here: one check, from connect to verdict. What must not: how often to check and what follows from
it (the core's), spawning (a command check is returned as a request to spawn), TLS. Runs in the agent.
Everything is bounded: 64 KiB of headers, 64 KiB of body, the check's own time-out. HTTP is written by hand,
HTTP/1.1 with `Connection: close`, because the agent keeps `http.client` and `ssl` out of its memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from midstream.core.spec import HealthSpec

BODY_MAX_BYTES = 64 * 1024
HEAD_MAX_BYTES = 64 * 1024
_FIRST_LINES = 5


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect: a unix socket's path, or host and port. owners: of a unix socket, who its file must belong to; the
    path is one of an app, and an agent that is root must not be led to a socket of somebody else's. Empty: anybody."""

    path: str = ""
    host: str = ""
    port: int = 0
    owners: frozenset[int] = frozenset()

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`unix:///run/x.sock`, `tcp://127.0.0.1:8000`, `tcp://[::1]:8000`. A wildcard host becomes the loopback
    of its family. Raises ValueError for anything else."""
    if text.startswith("unix://") and len(text) > 7:
        return Address(path=text[7:])
    host, colon, port = text.removeprefix("tcp://").rpartition(":")
    if not text.startswith("tcp://") or not colon or not port.isdecimal():
        raise ValueError(f"not an address: {text!r} (tcp://HOST:PORT or unix:///PATH)")
    host = host.removeprefix("[").removesuffix("]")
    return Address(
        host={"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port=int(port)
    )


def address_of(listener: socket.socket) -> Address:
    """Where a listening socket is reached from this machine."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return Address(path=name)
    return parse_address(f"tcp://[{name[0]}]:{name[1]}")


@dataclass(frozen=True, slots=True)
class HealthResult:
    """One check's outcome. reason: for a bad one, what was wrong and what to change; for a good one, what was
    seen. status: the HTTP status, 0 for none. seconds: from connect to verdict. headers: those worth showing,
    lower case. answered: whether a complete answer came, whatever it said."""

    ok: bool
    reason: str
    status: int = 0
    seconds: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    answered: bool = False


@dataclass(frozen=True, slots=True)
class CommandCheck:
    """A check that has to be spawned by the keeper: exit 0 within `timeout_s` is healthy."""

    argv: tuple[str, ...]
    timeout_s: float


def command_check(spec: HealthSpec) -> CommandCheck | None:
    """What has to be spawned for this check; None when it is one that `check` does."""
    return CommandCheck(spec.command, spec.timeout_s) if spec.command else None


def request_bytes(spec: HealthSpec, address: Address) -> bytes:
    """The request of an HTTP check. Its last byte completes it, so that all but the last may be sent
    ahead."""
    headers = {"host": spec.host or default_host(address), "user-agent": "midstream-health", "accept": "*/*"}
    headers.update({name.lower(): value for name, value in spec.headers.items()})
    headers["connection"] = "close"
    if spec.method not in ("GET", "HEAD", "OPTIONS"):
        headers.setdefault("content-length", "0")
    head = [f"{spec.method} {spec.http} HTTP/1.1", *(f"{_title(name)}: {value}" for name, value in headers.items())]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1", "replace")


def default_host(address: Address) -> str:
    """The Host header when none is configured: the listener's own address."""
    if address.path:
        return "localhost"
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"


def _title(name: str) -> str:
    return "-".join(part.capitalize() for part in name.split("-"))


async def check(spec: HealthSpec, address: Address | str) -> HealthResult:
    """One check of `address` (the listener's, or a private one), within `spec.timeout_s`. Never raises for
    what the service does; raises ValueError for a spec with a command (see `command_check`) or an address
    that is none."""
    if spec.command:
        raise ValueError("a command check is spawned, not asked")
    where = parse_address(address) if isinstance(address, str) else address
    begun = time.monotonic()
    try:
        async with asyncio.timeout(spec.timeout_s):
            result = await _ask(spec, where)
    except TimeoutError:
        result = HealthResult(False, f"{_what(spec)} at {where} was not answered within {spec.timeout_s:g} s")
    except (OSError, asyncio.IncompleteReadError) as error:
        result = HealthResult(False, connect_reason(error, where))
    return _timed(result, time.monotonic() - begun)


def _timed(result: HealthResult, seconds: float) -> HealthResult:
    return HealthResult(result.ok, result.reason, result.status, seconds, result.headers, result.answered)


def _what(spec: HealthSpec) -> str:
    return f"{spec.method} {spec.http}" if spec.http else "the connection"


async def _ask(spec: HealthSpec, address: Address) -> HealthResult:
    connection = await connect(address)
    with connection:
        if not spec.http:
            return HealthResult(True, f"{address} accepts connections", answered=True)
        await asyncio.get_running_loop().sock_sendall(connection, request_bytes(spec, address))
        return await read_verdict(spec, address, connection)


async def connect(address: Address) -> socket.socket:
    """A connected, non-blocking socket. Raises OSError, never waits longer than the caller's time-out."""
    family, target = (socket.AF_UNIX, ("", 0)) if address.path else await _resolved(address)
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        if address.path:
            await _connect_unix(connection, address)
        else:
            await asyncio.get_running_loop().sock_connect(connection, target)
    except BaseException:
        connection.close()
        raise
    return connection


async def _resolved(address: Address) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Family and first address. Numbers, the usual case, need no resolver and so no thread of it."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, address.host.partition("%")[0])
            return family, (address.host, address.port)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return found[0][0], (str(found[0][4][0]), address.port)


async def _connect_unix(connection: socket.socket, address: Address) -> None:
    """A full queue of a unix listener gives EAGAIN and no event tells when there is room (unix(7)), where TCP
    would wait; asyncio's own sock_connect takes that EAGAIN for success."""
    fd = _open_socket_file(address) if address.owners else -1
    path = f"/proc/self/fd/{fd}" if address.owners else address.path
    try:
        while True:
            try:
                connection.connect(path)
                return
            except BlockingIOError:
                await asyncio.sleep(0.02)
    finally:
        if fd >= 0:
            os.close(fd)


def _open_socket_file(address: Address) -> int:
    """The file itself, so that what was looked at is what is connected to."""
    fd = os.open(address.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(fd)
    if stat.S_ISSOCK(found.st_mode) and found.st_uid in address.owners:
        return fd
    os.close(fd)
    raise PermissionError(
        errno.EPERM, f"is not the socket that was made there (it belongs to uid {found.st_uid})", address.path
    )


async def read_verdict(spec: HealthSpec, address: Address, connection: socket.socket) -> HealthResult:
    """Reads the answer on `connection` and judges it. Raises OSError where the connection breaks."""
    received = b""
    while True:
        head, received, trouble = await _read_head(connection, received)
        if trouble:
            return HealthResult(False, f"{address} {trouble} ({_what(spec)})")
        parsed = parse_head(head)
        if parsed is None:
            return HealthResult(False, f"{address} does not speak HTTP: it said {_quote(head)}")
        status, headers = parsed
        if not 100 <= status < 200:  # interim answers, e.g. 103 Early Hints, come before the real one
            break
    body, complete = await _read_body(spec, connection, received, headers)
    return judge(spec, address, status, headers, body, complete=complete)


async def _read_head(connection: socket.socket, received: bytes) -> tuple[bytes, bytes, str]:
    """The next header block, what came after it, and what went wrong, if anything."""
    loop = asyncio.get_running_loop()
    while b"\r\n\r\n" not in received:
        if len(received) > HEAD_MAX_BYTES:
            return b"", b"", f"sent more than {HEAD_MAX_BYTES // 1024} KiB of headers"
        chunk = await loop.sock_recv(connection, 16384)
        if not chunk:
            said = f" within its answer; it said {_quote(received)}" if received else " without an answer"
            return b"", b"", f"closed the connection{said}"
        received += chunk
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest, ""


async def _read_body(
    spec: HealthSpec, connection: socket.socket, body: bytes, headers: Mapping[str, str]
) -> tuple[bytes, bool]:
    """The first 64 KiB of the body, and whether it was whole as far as we read. A server that keeps the
    connection open in spite of `Connection: close` ends it by its length."""
    if spec.method == "HEAD":
        return b"", True
    stated = headers.get("content-length", "")
    length = int(stated) if stated.isdecimal() and len(stated) < 20 else None
    chunked = "chunked" in headers.get("transfer-encoding", "").lower()
    loop = asyncio.get_running_loop()
    while len(body) < BODY_MAX_BYTES:
        if chunked and (whole := _dechunk(body)) is not None:
            return whole, True
        if not chunked and length is not None and len(body) >= length:
            return body[:length], True
        chunk = await loop.sock_recv(connection, 16384)
        if not chunk:
            return body, length is None and not chunked
        body += chunk
    return (_dechunk(body, partial=True) or b"" if chunked else body), True


def _dechunk(body: bytes, partial: bool = False) -> bytes | None:
    """The decoded body once its last chunk is there (RFC 9112, 7.1), else None; `partial`: as far as it
    goes."""
    out = bytearray()
    at = 0
    while True:
        end = body.find(b"\r\n", at)
        size = body[at:end].split(b";")[0].strip() if end >= 0 else b""
        if end < 0 or not size or any(byte not in b"0123456789abcdefABCDEF" for byte in size):
            return bytes(out) if partial else None
        count = int(size, 16)
        if count == 0:
            return bytes(out)
        out += body[end + 2 : end + 2 + count]
        at = end + 2 + count + 2
        if at > len(body):
            return bytes(out) if partial else None


def parse_head(head: bytes) -> tuple[int, dict[str, str]] | None:
    """Status and headers (names in lower case, the last of several wins); None for what is no HTTP/1.x
    answer."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal() or len(words[1]) != 3:
        return None
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return int(words[1]), headers


_SHOWN = ("location", "server", "content-type", "content-length", "retry-after", "x-request-id")


def judge(
    spec: HealthSpec, address: Address, status: int, headers: Mapping[str, str], body: bytes, *, complete: bool = True
) -> HealthResult:
    """The verdict on an answer, with a reason that names the cure where the cause is a usual one."""
    shown = {name: headers[name] for name in _SHOWN if name in headers}
    accepted = status in spec.status if spec.status else 200 <= status < 300
    if not accepted:
        return HealthResult(False, _status_reason(spec, address, status, headers, body), status, 0.0, shown, True)
    if not complete:
        return HealthResult(
            False, f"{_what(spec)} answered {status}, but its body broke off", status, 0.0, shown, False
        )
    if spec.contains and spec.contains not in body.decode("utf-8", "replace"):
        reason = f"{_what(spec)} answered {status} without {spec.contains!r}; it begins {_quote(body)}"
        return HealthResult(False, reason, status, 0.0, shown, True)
    return HealthResult(True, f"{_what(spec)} answered {status}", status, 0.0, shown, True)


def _status_reason(spec: HealthSpec, address: Address, status: int, headers: Mapping[str, str], body: bytes) -> str:
    said = f"{_what(spec)} answered {status}"
    if status in (301, 302, 303, 307, 308):
        return f"{said}, redirecting to {headers.get('location', '(nowhere)')}; {_redirect_cure(spec, headers)}"
    if status == 400:
        host = spec.host or default_host(address)
        return (
            f"{said} to Host {host}: if the app checks the host name (Django's ALLOWED_HOSTS), set "
            f'health = {{ http = "{spec.http}", host = "NAME.IT.SERVES" }}{_lines(body)}'
        )
    if status == 404:
        return f"{said}: there is nothing at the path {spec.http}; name one that the app answers in health.http"
    if status in (401, 403):
        return f"{said}: the check is not let in; name a path that needs no login, or send health.headers"
    if status >= 500:
        return f"{said}{_lines(body)}"
    return f"{said}, expected {', '.join(map(str, spec.status)) or '2xx'}{_lines(body)}"


def _redirect_cure(spec: HealthSpec, headers: Mapping[str, str]) -> str:
    if headers.get("location", "").startswith("https:") and "x-forwarded-proto" not in {
        name.lower() for name in spec.headers
    }:
        return (
            'the app wants https, which your proxy speaks: set health.headers = { X-Forwarded-Proto = "https" } '
            "(and health.host to the name that it serves)"
        )
    return "name the path that it redirects to in health.http, or accept it with health.status"


def _lines(body: bytes) -> str:
    """The first lines of a body, to be put behind a sentence."""
    lines = [line.rstrip() for line in body[:4096].decode("utf-8", "replace").splitlines() if line.strip()]
    shown = [line[:200] for line in lines[:_FIRST_LINES]]
    return "".join(f"\n  | {line}" for line in shown)


def _quote(data: bytes) -> str:
    return repr(data[:80].decode("latin-1"))


def connect_reason(error: Exception, address: Address) -> str:
    """What an error of the connection means."""
    code = getattr(error, "errno", None)
    if code == errno.ECONNREFUSED:
        return f"{address} refuses connections: nothing listens there"
    if code == errno.ENOENT:
        return f"{address} is not there: no such socket"
    if code == errno.EACCES:
        return f"{address} may not be opened by the agent: see `mode` and `owner` of the listener"
    if code in (errno.ECONNRESET, errno.EPIPE):
        return f"{address} broke the connection off before it answered"
    return f"{address} cannot be reached: {error}"
