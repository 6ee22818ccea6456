"""Clients that are more than request and answer: pipelined requests, slow downloads, WebSockets, event streams.

What lives here: the app they ask (`APP`), the plan of the clients, the program that runs them (`python streams.py PLAN
RESULT`, until its stdin ends), and what counts as a failure. Requests that follow each other are `traffic.py`'s.

What an upgrade may and may not do to each:

- **pipelined**: several requests in one write; the answers come in that order, each for its own request. Behind an answer with
  `Connection: close` the rest is asked again on the next connection (RFC 9112, 9.3.2), which is no failure. Any other end of
  the connection with requests on their way is one.
- **download**: a long answer that the client reads slowly. Every byte comes, of one release.
- **websocket**: numbers, several on their way, each sent back. A connection may end by the closing handshake with 1012
  (service restart) alone; numbers that were not answered are sent again on the next one. The app notes the last number that it
  answered (its `send` returned), and the client must have that answer: nothing that was answered is lost.
- **events**: server-sent events, each sent in two parts. A stream may end by the chunk of length 0 between two events alone;
  the client comes again with Last-Event-ID. It gets every number once, and all that the app sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import itertools
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distance import connect
from traffic import begun
from websockets.asyncio.client import connect as connect_websocket
from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

PATIENCE_S = 40.0
BURST = 4  # pipelined requests in one write, and WebSocket messages on their way
DOWNLOAD_PARTS = 64
# Answers: more than there can be on their way.
MORE = {"pipelined": 2 * BURST, "download": 2, "websocket": 50, "events": 50}
PART_BYTES = 65_536
FAILURES_MAX = 50

# One WSGI app and one ASGI app, for a release called {release!r}. Noted: a line "CONNECTION NUMBER" for each WebSocket and
# event stream at its end, in the file that ANSWERED names.
WSGI_APP = """
import os, sys, time
RELEASE = {release!r}
def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    body = environ["wsgi.input"].read() if environ["REQUEST_METHOD"] == "POST" else RELEASE.encode()
    if path == "/slow":
        time.sleep(0.2)
    elif path == "/number":
        body = (query + " " + RELEASE).encode()
    python = "%d.%d" % sys.version_info[:2]
    headers = [("X-Prefix", sys.prefix), ("X-Python", python)]
    if path == "/download":
        start_response("200 OK", [*headers, ("Content-Length", str({parts} * {part_bytes}))])
        return (bytes([65 + number % 26]) * {part_bytes} for number in range({parts}))
    start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
    return [body]
"""

ASGI_APP = """
import asyncio, os, sys
RELEASE = {release!r}
def note(scope, number):
    line = scope["query_string"].decode() + " " + str(number) + "\\n"
    fd = os.open(os.environ["ANSWERED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, line.encode())
    os.close(fd)
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await websocket(scope, receive, send)
    elif scope["type"] == "http" and scope["path"] == "/events":
        await events(scope, send)
    elif scope["type"] == "http":
        python = "%d.%d" % sys.version_info[:2]
        headers = [(b"x-prefix", sys.prefix.encode()), (b"x-python", python.encode())]
        await send({{"type": "http.response.start", "status": 200, "headers": headers}})
        await send({{"type": "http.response.body", "body": RELEASE.encode()}})
    else:
        raise RuntimeError("no lifespan")
async def websocket(scope, receive, send):
    await receive()
    await send({{"type": "websocket.accept"}})
    answered = 0
    try:
        while (message := await receive())["type"] == "websocket.receive":
            await send({{"type": "websocket.send", "text": message["text"] + " " + RELEASE}})
            answered = int(message["text"])
    except OSError:
        pass
    note(scope, answered)
async def events(scope, send):
    number = sent = int(dict(scope["headers"]).get(b"last-event-id", b"0"))
    headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]
    try:
        await send({{"type": "http.response.start", "status": 200, "headers": headers}})
        while True:
            number += 1
            await send({{"type": "http.response.body", "body": b"id: %d\\n" % number, "more_body": True}})
            await asyncio.sleep(0.01)
            rest = b"data: " + RELEASE.encode() + b"\\n\\n"
            await send({{"type": "http.response.body", "body": rest, "more_body": True}})
            sent = number
            await asyncio.sleep(0.02)
    except OSError:
        pass
    note(scope, sent)
"""


def app_of(text: str, release: str) -> str:
    return text.format(release=release, parts=DOWNLOAD_PARTS, part_bytes=PART_BYTES)


@dataclass(frozen=True)
class Streams:
    """So many clients of one kind: `pipelined`, `download`, `websocket`, `events`. address as in `traffic.Clients`."""

    kind: str
    name: str
    address: str
    clients: int = 1


@dataclass
class Seen:
    """What the clients of one name saw. answers: requests, messages, events, downloads. again: asked a second time behind a
    proper end. ends: why connections ended. last: connection -> the last number it received, where the server ended it."""

    answers: int = 0
    again: int = 0
    failures: list[str] = field(default_factory=list)
    failed: int = 0
    releases: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)

    def answered(self, release: str) -> None:
        self.answers += 1
        self.releases[release] = self.releases.get(release, 0) + 1

    def ended(self, why: str) -> None:
        self.ends[why] = self.ends.get(why, 0) + 1

    def fail(self, what: str) -> None:
        self.failed += 1
        if len(self.failures) < FAILURES_MAX:
            self.failures.append(f"{time.monotonic():.3f} {what}")


@dataclass
class Streaming:
    """Running clients."""

    process: subprocess.Popen[str]
    result: Path
    seen: dict[str, Seen] = field(default_factory=dict)

    def stop(self) -> dict[str, Seen]:
        """Waits for some more answers of each kind, so that what serves now was seen by all; lets every request in hand end;
        closes WebSockets and streams."""
        if not self.seen:
            assert self.process.stdin is not None
            self.process.stdin.close()
            assert self.process.wait(90.0) == 0, "the load program failed"
            self.seen = {name: Seen(**data) for name, data in json.loads(self.result.read_text()).items()}
        return self.seen

    @property
    def failures(self) -> dict[str, list[str]]:
        return {name: seen.failures for name, seen in self.stop().items() if seen.failed}

    def figures(self) -> dict[str, Any]:
        everyone = self.stop()
        ends: Counter[str] = Counter()
        for seen in everyone.values():
            ends.update(seen.ends)
        return {
            "answers": {name: seen.answers for name, seen in everyone.items()},
            "failed": {name: seen.failed for name, seen in everyone.items()},
            "asked again": {name: seen.again for name, seen in everyone.items() if seen.again},
            "ends": dict(ends),
        }

    def lost(self, noted: Path) -> list[str]:
        """What the app says it answered on connections that the server ended, and the client did not get."""
        told = {line.split()[0]: int(line.split()[1]) for line in noted.read_text().splitlines()}
        return [
            f"{name}: {connection} has {last}, the app sent up to {told.get(connection, 'nothing that it knows of')}"
            for name, seen in self.stop().items()
            for connection, last in seen.last.items()
            if told.get(connection) != last
        ]


@contextlib.contextmanager
def streams(folder: Path, *plans: Streams) -> Iterator[Streaming]:
    """Clients that have begun; they are stopped in any case. `folder`: for their plan and their result."""
    with begun(__file__, "streams", folder, plans) as (process, result):
        yield Streaming(process, result)


# ---- the program


class Failure(Exception):
    """What a server must not do."""


class Http:
    """One connection: requests written, answers read. Raises OSError, EOFError, Failure."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, address: str) -> Http:
        return cls(*await connect(address))

    def ask(self, target: str, *headers: str) -> None:
        lines = [f"GET {target} HTTP/1.1", "Host: localhost", *headers, "", ""]
        self.writer.write("\r\n".join(lines).encode())

    async def head(self) -> dict[str, str]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = lines[0].split(" ", 2)[1]
        if status != "200":
            raise Failure(f"status {status}")
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}

    def close(self) -> None:
        self.writer.close()


def _says_close(headers: dict[str, str]) -> bool:
    return headers.get("connection", "").lower() == "close"


class Client:
    """What all kinds have in common: another connection after each end, until `stop`."""

    def __init__(self, plan: Streams, seen: Seen, stop: asyncio.Event, number: int) -> None:
        self.plan, self.seen, self.stop = plan, seen, stop
        self.names = (f"{plan.name}/{number}/{count}".replace(" ", "-") for count in itertools.count())
        self.http: Http | None = None

    async def run(self) -> None:
        while not self.stop.is_set() or self.is_owed:
            try:
                await self.turn()
            except (OSError, EOFError, TimeoutError, ValueError, Failure) as error:
                self.seen.fail(f"{type(error).__name__}: {error}")
                self.hang_up()
                await asyncio.sleep(0.1)
        self.hang_up()

    async def turn(self) -> None:
        """A burst, a download, one stream."""
        raise NotImplementedError

    @property
    def is_owed(self) -> bool:
        return False

    async def connected(self) -> Http:
        if self.http is not None and self.http.reader.at_eof():
            self.seen.ended("closed while idle")
            self.hang_up()
        if self.http is None:
            self.http = await Http.open(self.plan.address)
        return self.http

    def hang_up(self) -> None:
        if self.http is not None:
            self.http.close()
            self.http = None


class Pipelined(Client):
    count = 0
    owed: tuple[int, ...] = ()

    @property
    def is_owed(self) -> bool:
        return bool(self.owed) and not self.seen.failed

    async def turn(self) -> None:
        if not self.owed:
            self.owed = tuple(range(self.count + 1, self.count + 1 + BURST))
            self.count += BURST
        http = await self.connected()
        owed, self.owed = self.owed, ()  # a failure ends this burst
        for number in owed:
            http.ask(f"/number?{number}")
        async with asyncio.timeout(PATIENCE_S):
            await self._answers(http, owed)
        await asyncio.sleep(0.02)

    async def _answers(self, http: Http, owed: tuple[int, ...]) -> None:
        for at, number in enumerate(owed):
            headers = await http.head()
            got, _, release = (await http.reader.readexactly(int(headers["content-length"]))).decode().partition(" ")
            if int(got) != number:
                raise Failure(f"the answer to {got} came in place of that to {number}")
            self.seen.answered(release)
            if _says_close(headers):
                self.owed = owed[at + 1 :]
                self.seen.again += len(self.owed)
                self.seen.ended("close")
                self.hang_up()
                break


_WHOLE = hashlib.sha256(
    b"".join(bytes([65 + number % 26]) * PART_BYTES for number in range(DOWNLOAD_PARTS))
).hexdigest()


class Download(Client):
    async def turn(self) -> None:
        http = await self.connected()
        sock: socket.socket = http.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PART_BYTES)
        http.ask("/download")
        async with asyncio.timeout(PATIENCE_S):
            headers = await http.head()
            left, seen = int(headers["content-length"]), hashlib.sha256()
            while left:
                part = await http.reader.readexactly(min(left, PART_BYTES))
                left -= len(part)
                seen.update(part)
                await asyncio.sleep(0.01)
        if seen.hexdigest() != _WHOLE:
            raise Failure("other bytes than the app sent")
        self.seen.answered(headers["x-release"])
        if _says_close(headers):
            self.seen.ended("close")
            self.hang_up()


class Events(Client):
    last = 0

    async def turn(self) -> None:
        """One stream."""
        http, name = await self.connected(), next(self.names)
        http.ask(f"/events?{name}", f"Last-Event-ID: {self.last}", "Accept: text/event-stream")
        headers = await http.head()
        rest = b""
        while chunk := await self._chunk(http):
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                self._take(event)
            if self.stop.is_set():
                self.hang_up()
                return
        if rest:
            raise Failure(f"the stream ended with half an event: {rest!r}")
        self.seen.last[name] = self.last
        self.seen.ended("between two events")
        if _says_close(headers):
            self.hang_up()

    async def _chunk(self, http: Http) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            size = int(await http.reader.readuntil(b"\r\n"), 16)
            return (await http.reader.readexactly(size + 2))[:size]

    def _take(self, event: bytes) -> None:
        fields = dict(line.split(": ", 1) for line in event.decode().split("\n"))
        if int(fields["id"]) != self.last + 1:
            raise Failure(f"event {fields['id']} came after {self.last}")
        self.last += 1
        self.seen.answered(fields["data"])


class WebSocket(Client):
    """`answered`: the last number that came back."""

    answered = 0

    async def turn(self) -> None:
        """One connection."""
        name, before = next(self.names), self.answered
        try:
            async with self._connect(name) as websocket:
                try:
                    await self._talk(websocket)
                    return
                except ConnectionClosed as closed:
                    code = closed.rcvd.code if closed.rcvd is not None else 1006
                    if code != 1012:
                        raise Failure(f"closed with {code}") from closed
        except InvalidHandshake as error:
            raise Failure(f"the handshake failed: {error}") from error
        self.seen.last[name] = self.answered if self.answered > before else 0
        self.seen.ended("1012")

    def _connect(self, name: str) -> Any:
        words: dict[str, Any] = {"ping_interval": None, "compression": None, "open_timeout": PATIENCE_S}
        if self.plan.address.startswith("unix://"):
            return unix_connect(self.plan.address.removeprefix("unix://"), f"ws://localhost/?{name}", **words)
        return connect_websocket(f"ws://{self.plan.address.removeprefix('tcp://')}/?{name}", proxy=None, **words)

    async def _talk(self, websocket: Any) -> None:
        """Until we are to stop. Raises ConnectionClosed when the server ends it, and everything before that is read."""
        sent = self.answered
        while not self.stop.is_set():
            with contextlib.suppress(ConnectionClosed):
                while sent < self.answered + BURST:
                    await websocket.send(str(sent + 1))
                    sent += 1
            try:
                async with asyncio.timeout(PATIENCE_S):
                    number, _, release = (await websocket.recv()).partition(" ")
            except ConnectionClosed:
                self.seen.again += sent - self.answered
                raise
            if int(number) != self.answered + 1:
                raise Failure(f"{number} came back after {self.answered}")
            self.answered += 1
            self.seen.answered(release)
            await asyncio.sleep(0.01)


async def _some_more(plan: Streams, seen: Seen) -> None:
    enough = seen.answers + MORE[plan.kind] * plan.clients
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            while seen.answers < enough and not seen.failed:
                await asyncio.sleep(0.02)


async def _run(plans: list[Streams]) -> dict[str, Any]:
    seen, stop = {plan.name: Seen() for plan in plans}, asyncio.Event()
    kinds = {"pipelined": Pipelined, "download": Download, "websocket": WebSocket, "events": Events}
    tasks = [
        asyncio.create_task(kinds[plan.kind](plan, seen[plan.name], stop, number).run())
        for plan in plans
        for number in range(plan.clients)
    ]
    print("started", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.gather(*(_some_more(plan, seen[plan.name]) for plan in plans))
    stop.set()
    await asyncio.gather(*tasks)
    return {name: dataclasses.asdict(one) for name, one in seen.items()}


if __name__ == "__main__":
    planned = [Streams(**one) for one in json.loads(Path(sys.argv[1]).read_text())]
    Path(sys.argv[2]).write_text(json.dumps(asyncio.run(_run(planned))))
