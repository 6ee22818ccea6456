"""Our WSGI and ASGI servers in this process, and h11: three readers of the same stream, and how to compare them.

Each reading is the list of requests that were read whole, in one shape: `Seen`. What must not live here: how streams
are made (`serve_fuzz_streams.py`), which differences are allowed (`test_serve_fuzz.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
from dataclasses import dataclass, field
from typing import Any

import h11
from serve_fuzz_streams import Stream
from serve_wsgi_runner import CountingSeat, ListedLog

from midstream.serve.asgi import AsgiServer
from midstream.serve.contract import Identity, Listener
from midstream.serve.settings import Settings
from midstream.serve.wsgi import WsgiServer

HANGS_S = 20.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_REQUEST_LINE = re.compile(rb"([!-~]+) +([!-~\x80-\xff]+) +(HTTP/1\.[01])(?=\r\n)")
OURS_ALONE = ("content-length", "transfer-encoding", "proxy")  # framing the app needs not know; Proxy it must not

Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as a program reads it. target: path and query. fields: names in small letters, lines of one name joined
    as WSGI has it; without the Host, which a whole URL replaces."""

    method: str
    path: str
    query: str
    host: str
    fields: Fields
    body: bytes

    @property
    def mark(self) -> str:
        return hashlib.sha1(repr(self).encode()).hexdigest()[:12]


@dataclass(slots=True)
class Reading:
    """What a server made of one stream. answers: of their answers what h11, as the client, reads: status and body."""

    requests: list[Seen] = field(default_factory=list)
    switched: bool = False  # it became a WebSocket
    raw: bytes = b""
    answers: list[tuple[int, bytes]] = field(default_factory=list)
    whole: bool = True  # the bytes are answers from the first to the last
    reset: bool = False  # at the end

    @property
    def refusal(self) -> tuple[int, str] | None:
        """Status and reason of the last answer, when no request belongs to it."""
        if len(self.answers) <= len(self.requests):
            return None
        status, body = self.answers[-1]
        return status, body.decode("latin-1").strip()


def seen(method: str, target: str, pairs: list[tuple[str, str]], body: bytes) -> Seen:
    """pairs: names in small letters. target: as it came. A whole URL is taken apart, as RFC 9112 3.2.2 wants it."""
    fields: dict[str, str] = {}
    for name, value in pairs:
        if "_" in name or name in OURS_ALONE:
            continue
        fields[name] = fields[name] + ("; " if name == "cookie" else ",") + value if name in fields else value
    host = fields.pop("host", "")
    path, _, query = target.partition("?")
    if not path.startswith("/") and path != "*":
        host, _, rest = path.partition("://")[2].partition("/")
        path = "/" + rest
    return Seen(method, path, query, host, tuple(sorted(fields.items())), body)


# ---- h11


def by_h11(stream: bytes) -> list[Seen]:
    """The requests up to the first that h11 refuses or that is the connection's last; an unfinished body is none."""
    found: list[Seen] = []
    while stream := stream.lstrip(b"\r\n"):  # empty lines before a request are forgiven (RFC 9112 2.2)
        line = _REQUEST_LINE.match(stream)
        if line is not None:  # several blanks within it may be forgiven (RFC 9112 3)
            stream = b" ".join(line.groups()) + stream[line.end() :]
        reader = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        reader.receive_data(stream)
        reader.receive_data(b"")
        try:
            request = reader.next_event()
            if not isinstance(request, h11.Request):
                break
            body = b""
            while isinstance(part := reader.next_event(), h11.Data):
                body += bytes(part.data)
        except h11.RemoteProtocolError:
            break
        if not isinstance(part, h11.EndOfMessage):
            break
        pairs = [(name.decode(), value.decode("latin-1")) for name, value in request.headers]
        found.append(seen(request.method.decode(), request.target.decode("latin-1"), pairs, body))
        words = {word.strip().lower() for name, value in pairs if name == "connection" for word in value.split(",")}
        if "close" in words or (request.http_version == b"1.0" and "keep-alive" not in words):
            break
        stream = reader.trailing_data[0]
    return found


def take_answer(raw: bytes, method: str) -> tuple[h11.Response, bytes, bytes] | None:
    """The first answer as the client of that request reads it, its body, and what comes behind it. None: the bytes end
    before it does. Raises h11.RemoteProtocolError when they are no answer."""
    reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    reader.send(h11.Request(method=method, target="/", headers=[("Host", "t"), ("Content-Length", "0")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(raw)
    reader.receive_data(b"")
    while isinstance(answer := reader.next_event(), h11.InformationalResponse):
        pass
    if not isinstance(answer, h11.Response):
        return None
    body = b""
    while isinstance(part := reader.next_event(), h11.Data):
        body += bytes(part.data)
    return (answer, body, reader.trailing_data[0]) if isinstance(part, h11.EndOfMessage) else None


def read_answers(reading: Reading) -> None:
    """Takes the answers apart, each as the client of its request would."""
    rest = reading.raw.removesuffix(CONTINUE)  # the body that it asks for has not come
    while rest:
        number = len(reading.answers)
        try:
            taken = take_answer(rest, reading.requests[number].method if number < len(reading.requests) else "GET")
        except h11.RemoteProtocolError:
            taken = None
        if taken is None:
            reading.whole = False
            return
        answer, body, rest = taken
        reading.answers.append((answer.status_code, body))


# ---- ours


class Fuzzed:
    """One of our servers, listening on loopback, on the loop it is made on. Its app answers each request with a mark of
    what it saw."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.reading = Reading()
        self.server: Any = None

    async def start(self) -> None:
        """Makes the server, and accepts."""
        self.server = self.make(Settings(threads=self.threads, lifespan="off"))
        await self.server.start([Listener(self.listening, "fuzz", private=True)])

    def make(self, settings: Settings) -> Any:
        raise NotImplementedError

    async def read(self, stream: Stream) -> Reading:
        """Sends the stream by one connection, ends it, and reads all that comes. Raises AssertionError when it hangs."""
        self.reading = reading = Reading()
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(sock, self.listening.getsockname())
            try:
                for piece in stream.pieces():
                    await loop.sock_sendall(sock, piece)
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has refused and closed
            try:
                async with asyncio.timeout(HANGS_S):
                    while data := await loop.sock_recv(sock, 65536):
                        reading.raw += data
            except TimeoutError:
                raise AssertionError("no end of the connection") from None
            except OSError:
                reading.reset = True
        finally:
            sock.close()
        if not reading.switched:
            read_answers(reading)
        return reading

    async def close(self) -> None:
        await self.server.stop()
        self.listening.close()


class Wsgi(Fuzzed):
    def make(self, settings: Settings) -> Any:
        return WsgiServer(self.app, settings, Identity(0, 1, "", 0), CountingSeat(), ListedLog(False))

    def app(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        pairs = [
            (key.removeprefix("HTTP_").replace("_", "-").lower(), value)
            for key, value in environ.items()
            if key.startswith("HTTP_") or key == "CONTENT_TYPE"
        ]
        body = environ["wsgi.input"].read()
        assert environ.get("CONTENT_LENGTH", "0") == str(len(body))
        request = seen(environ["REQUEST_METHOD"], environ["RAW_URI"], [(n, v) for n, v in pairs], body)
        self.reading.requests.append(request)
        start_response("200 OK", [("X-Mark", request.mark)])
        return [request.mark.encode()]


class Asgi(Fuzzed):
    def make(self, settings: Settings) -> Any:
        return AsgiServer(self.app, settings, Identity(0, 1, "", 0), CountingSeat(), ListedLog(False))

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        reading = self.reading
        if scope["type"] == "websocket":
            reading.switched = True
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        query = scope["query_string"].decode("latin-1")
        target = scope["raw_path"].decode("latin-1") + ("?" + query if query else "")
        pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        request = seen(scope["method"], target, pairs, body)
        reading.requests.append(request)
        text = request.mark.encode()
        head = [(b"x-mark", text), (b"content-length", b"%d" % len(text))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": text})
