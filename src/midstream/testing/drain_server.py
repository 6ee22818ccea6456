"""A small HTTP server that drains properly: the service that Midstream's own tests and demo deploy.

What lives here: one self-contained program, `python drain_server.py`, that needs nothing but Python, so that
it can be copied into a release. What must not: imports of midstream. It runs as an instance under the keeper.

Listeners: LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES (sd_listen_fds(3)); without them it binds $HOST:$PORT.
Readiness: READY=1 to $NOTIFY_SOCKET. Signals: TERM and QUIT drain, INT stops at once, WINCH pauses (accepts
nothing, answers what it has), TTIN resumes. A drain: accept nothing new; finish requests in hand; answer late
requests on kept-alive connections with `Connection: close`; keep idle ones open for $LINGER_S (default 2);
then close them by SHUT_WR and a bounded discard.

Routes: `/` the release, `/up` ok, `/pid`, `/slow?ms=N`, `/env?name=N`, `/echo` (POST: the body). Every answer
has the headers X-Release and X-Pid.

To see how a handover fails, it can misbehave; words in $MISBEHAVE or in a file `misbehave` in the working
folder, by spaces: `unhealthy` (500 at /up), `redirect` (/up to https), `picky` (400 for Host other than
$GOOD_HOST), `never-ready` (neither accepts nor says ready), `exit` (ends with code 3 at once), `exit-soon`
(ends with code 3 after READY and $EXIT_AFTER_S, default 0.3), `hang` (ignores TERM, QUIT and INT), `own-port`
(leaves its listeners alone and binds a port of its own), `slow-start` (waits $START_S, default 1, before it
is ready).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import urllib.parse
from dataclasses import dataclass, field

HEAD_MAX_BYTES = 64 * 1024
BODY_MAX_BYTES = 16 * 1024 * 1024
IDLE_S = 75.0
DISCARD_S = 1.0
REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 404: "Not Found", 411: "Length Required", 500: "Server Error"}


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


@dataclass(slots=True, eq=False)
class Connection:
    """One accepted connection; idle while it is `waiting`."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    waiting: asyncio.Future[bytes] | None = None  # for the first byte of a request


@dataclass(slots=True)
class Server:
    release: str
    misbehave: frozenset[str]
    linger_s: float
    listeners: list[tuple[str, socket.socket]] = field(default_factory=list)
    connections: set[Connection] = field(default_factory=set)
    draining: bool = False
    empty: asyncio.Event = field(default_factory=asyncio.Event)  # no connection is open
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def accept_all(self) -> None:
        loop = asyncio.get_running_loop()
        for _, listener in self.listeners:
            loop.add_reader(listener.fileno(), self._accept, listener)

    def accept_nothing(self, keep_private: bool = False) -> None:
        loop = asyncio.get_running_loop()
        for name, listener in self.listeners:
            if not (keep_private and name == "private"):
                loop.remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        """One at a time, so that siblings on the shared listener get their share."""
        try:
            accepted, _ = listener.accept()
        except OSError:  # a sibling was faster
            return
        accepted.setblocking(False)
        self._keep(asyncio.ensure_future(self._serve(accepted)))

    def _keep(self, task: asyncio.Future[None]) -> None:
        assert isinstance(task, asyncio.Task)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=HEAD_MAX_BYTES)
        transport, protocol = await loop.connect_accepted_socket(lambda: asyncio.StreamReaderProtocol(reader), accepted)
        connection = Connection(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
        self.connections.add(connection)
        self.empty.clear()
        try:
            while await self._one_request(connection):
                pass
            await close_gently(connection)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            pass
        finally:
            connection.writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(DISCARD_S):
                    await connection.writer.wait_closed()
            self.connections.discard(connection)
            if not self.connections:
                self.empty.set()

    async def _one_request(self, connection: Connection) -> bool:
        """Reads and answers one request; whether another may follow."""
        first = await self._first_byte(connection)
        if not first:
            return False
        request = await read_request(connection.reader, first)
        status, text, more = await self.respond(request)
        keep = request.keep_alive and not self.draining
        connection.writer.write(self.encode(request, status, text, more, keep))
        await connection.writer.drain()
        return keep

    async def _first_byte(self, connection: Connection) -> bytes:
        """The next request's first byte; b"" when none came: the client left, was idle too long, or the
        linger is over."""
        connection.waiting = asyncio.ensure_future(connection.reader.read(1))
        done, _ = await asyncio.wait([connection.waiting], timeout=IDLE_S)
        if not done:
            connection.waiting.cancel()
        first = b"" if not done or connection.waiting.cancelled() else connection.waiting.result()
        connection.waiting = None
        return first

    async def respond(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        if request.method == "":
            return 400, b"not a request\n", {}
        if request.path == "/up":
            return self._up(request)
        if request.path == "/":
            return 200, self.release.encode() + b"\n", {}
        if request.path == "/pid":
            return 200, b"%d\n" % os.getpid(), {}
        if request.path == "/env":
            return 200, os.environ.get(request.query.get("name", ""), "").encode() + b"\n", {}
        if request.path == "/echo":
            return 200, request.body, {}
        if request.path == "/slow":
            await asyncio.sleep(min(600_000, int(request.query.get("ms", "100"))) / 1000)
            return 200, self.release.encode() + b"\n", {}
        return 404, b"no such page\n", {}

    def _up(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        if "unhealthy" in self.misbehave:
            return 500, b"Traceback (most recent call last):\n  the database is not there\n", {}
        if "redirect" in self.misbehave and request.headers.get("x-forwarded-proto") != "https":
            return 302, b"", {"Location": f"https://{request.headers.get('host', '')}/up"}
        if "picky" in self.misbehave and request.headers.get("host") != os.environ.get("GOOD_HOST", "shop.test"):
            return 400, b"Invalid HTTP_HOST header\n", {}
        return 200, b"ok\n", {}

    def encode(self, request: Request, status: int, body: bytes, more: dict[str, str], keep: bool) -> bytes:
        head = [
            f"HTTP/1.1 {status} {REASONS[status]}",
            f"Content-Length: {len(body)}",
            "Content-Type: text/plain; charset=utf-8",
            f"X-Release: {self.release}",
            f"X-Pid: {os.getpid()}",
            f"Connection: {'keep-alive' if keep else 'close'}",
            *(f"{name}: {value}" for name, value in more.items()),
        ]
        return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + (b"" if request.method == "HEAD" else body)

    def pause(self) -> None:
        self.accept_nothing(keep_private=True)
        notify("STATUS=paused")

    def resume(self) -> None:
        if not self.draining:
            self.accept_all()
            notify("STATUS=accepting")

    def drain(self) -> None:
        if "hang" in self.misbehave or self.draining:
            return
        self.draining = True
        self.accept_nothing()
        notify("STOPPING=1\nSTATUS=draining")
        self._keep(asyncio.ensure_future(self._drain()))

    async def _drain(self) -> None:
        """Idle connections linger: a client or proxy may be sending on one right now."""
        if not self.connections:
            self.empty.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.linger_s):
                await self.empty.wait()
        for connection in list(self.connections):
            if connection.waiting is not None:
                connection.waiting.cancel()
        await self.empty.wait()
        self.stopped.set()

    def quit(self) -> None:
        if "hang" not in self.misbehave:
            self.stopped.set()


async def close_gently(connection: Connection) -> None:
    """SHUT_WR, then read on for a moment: closing with unread input would reset the connection and could
    destroy the answer on its way."""
    if connection.writer.can_write_eof():
        connection.writer.write_eof()
    reader = connection.reader
    if reader.at_eof():
        return
    async with asyncio.timeout(DISCARD_S):
        while await reader.read(16384):
            pass


async def read_request(reader: asyncio.StreamReader, first: bytes) -> Request:
    """The request that begins with `first`. What is none has an empty method. Raises IncompleteReadError
    where the client went away, LimitOverrunError for more than 64 KiB of headers."""
    head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = head.rstrip("\r\n").split("\r\n")
    words = lines[0].split(" ")
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = headers.get("content-length", "0")
    if len(words) != 3 or "transfer-encoding" in headers or not length.isdecimal() or len(length) > 8:
        return Request("", "", {}, headers, b"", False)
    body = await reader.readexactly(min(int(length), BODY_MAX_BYTES))
    target = urllib.parse.urlsplit(words[1])
    wanted = headers.get("connection", "").lower()
    keep = wanted != "close" if words[2] == "HTTP/1.1" else wanted == "keep-alive"
    return Request(words[0], target.path, dict(urllib.parse.parse_qsl(target.query)), headers, body, keep)


def notify(message: str) -> None:
    """sd_notify(3). A supervisor that is not there is no reason to fail."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            channel.connect("\0" + path[1:] if path.startswith("@") else path)
            channel.send(message.encode())
        except OSError as error:
            print(f"notify: {error}", file=sys.stderr, flush=True)


def take_listeners(misbehave: frozenset[str]) -> list[tuple[str, socket.socket]]:
    """(name, listener) for each that was passed; else one of our own."""
    if "own-port" not in misbehave and os.environ.get("LISTEN_PID") == str(os.getpid()):
        count = int(os.environ.get("LISTEN_FDS", "0"))
        names = os.environ.get("LISTEN_FDNAMES", "").split(":")
        taken = [(names[i] if i < len(names) else "", socket.socket(fileno=3 + i)) for i in range(count)]
        for _, listener in taken:
            listener.setblocking(False)
        if taken:
            return taken
    port = 0 if "own-port" in misbehave else int(os.environ.get("PORT", "8000"))
    own = socket.create_server((os.environ.get("HOST", "127.0.0.1"), port), backlog=1024)
    own.setblocking(False)
    return [("own", own)]


def misbehaviour() -> frozenset[str]:
    words = os.environ.get("MISBEHAVE", "").split()
    try:
        with open("misbehave", encoding="utf-8") as file:
            words += file.read().split()
    except FileNotFoundError:
        pass
    return frozenset(words)


async def main() -> int:
    misbehave = misbehaviour()
    server = Server(os.environ.get("MIDSTREAM_RELEASE", ""), misbehave, float(os.environ.get("LINGER_S", "2")))
    loop = asyncio.get_running_loop()
    for signum, action in (
        (signal.SIGTERM, server.drain),
        (signal.SIGQUIT, server.drain),
        (signal.SIGINT, server.quit),
        (signal.SIGWINCH, server.pause),
        (signal.SIGTTIN, server.resume),
    ):
        loop.add_signal_handler(signum, action)
    print(f"starting release {server.release} as {os.getpid()}", flush=True)
    if "exit" in misbehave:
        print("cannot start: told to misbehave", file=sys.stderr, flush=True)
        return 3
    if "slow-start" in misbehave:
        await asyncio.sleep(float(os.environ.get("START_S", "1")))
    server.listeners = take_listeners(misbehave)
    if "never-ready" not in misbehave:
        server.accept_all()
        notify(f"READY=1\nSTATUS=serving release {server.release}")
    if "exit-soon" in misbehave:
        await asyncio.sleep(float(os.environ.get("EXIT_AFTER_S", "0.3")))
        return 3
    await server.stopped.wait()
    print(f"stopped release {server.release}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
