"""AsgiServer in a process of its own, and clients for it: raw sockets that see what is really sent."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WAIT_S = 20.0  # for what has to come; nothing is expected to take so long


class Running:
    """One server. Listens on loopback, and on a private listener. Used with `with`."""

    def __init__(
        self,
        app: str = "app",
        *,
        unix: str = "",
        loop: str = "uvloop",
        env: dict[str, str] | None = None,
        listener: socket.socket | None = None,
        **settings: Any,
    ) -> None:
        self.public = listener.dup() if listener is not None else _listener(unix)
        self.private = socket.create_server(("127.0.0.1", 0))
        fds = [self.public.fileno(), self.private.fileno()]
        tls = bool(settings.get("certfile"))
        order = {
            "app": app,
            "settings": settings,
            "loop": loop,
            "sockets": [[fds[0], False, tls], [fds[1], True, False]],
        }
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "serve_asgi_runner.py"), json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=fds,
            env={**os.environ, **(env or {})},
        )
        self.address: Any = self.public.getsockname()
        self.drained: dict[str, int] | None = None
        self.said = b""
        self.first = self._line()

    def __enter__(self) -> Running:
        assert self.first == {"ready": True}, (self.first, self.errors())
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.public.close()
        self.private.close()

    def errors(self) -> str:
        """Ends the process; what it wrote to its log."""
        self.process.kill()
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while b"\n" not in self.said:  # our own buffer: select knows nothing of what a file object has read already
            if not select.select([self.process.stdout], [], [], WAIT_S)[0]:
                raise AssertionError(f"it says nothing; its log: {self.errors()}")
            came = os.read(self.process.stdout.fileno(), 65536)
            if not came:
                raise AssertionError(f"it has ended; its log: {self.errors()}")
            self.said += came
        line, _, self.said = self.said.partition(b"\n")
        return json.loads(line)  # type: ignore[no-any-return]

    def ask(self, *words: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)
        while "drained" in (line := self._line()):
            self.drained = line["drained"]
        return line

    def until_drained(self) -> dict[str, int]:
        while self.drained is None:
            self.drained = self._line()["drained"]
        return self.drained

    def until(self, key: str, value: Any) -> dict[str, Any]:
        """Asks until what it tells has that value; a dotted key goes into it."""
        for _ in range(2000):
            told = self.ask("tell")
            found: Any = told
            for part in key.split("."):
                found = found[part]
            if found == value:
                return told
            select.select([], [], [], 0.01)
        raise AssertionError(f"{key} did not become {value!r}: {told}")

    def connect(self, private: bool = False) -> Client:
        address = self.private.getsockname() if private else self.address
        sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        sock.settimeout(WAIT_S)
        sock.connect(address)
        return Client(sock)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.address[1]}"


def _listener(unix: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    sock.bind(unix or ("127.0.0.1", 0))
    sock.listen(128)
    return sock


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    parts: list[bytes] = field(default_factory=list)  # chunks


class Client:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(
        self, path: str = "/", *lines: str, method: str = "GET", body: bytes = b"", version: str = "1.1"
    ) -> Client:
        head = [f"{method} {path} HTTP/{version}", "Host: example.com", *lines]
        if body:
            head.append(f"Content-Length: {len(body)}")
        self.raw("\r\n".join([*head, "", ""]).encode() + body)
        return self

    def raw(self, data: bytes) -> Client:
        self.sock.sendall(data)
        return self

    def more(self) -> bool:
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            assert self.more(), f"ended at {self.buffer!r}"
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def take_until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            assert self.more(), f"ended at {self.buffer!r}"
        return self.take(self.buffer.index(mark) + len(mark))

    def head(self) -> Answer:
        first, *lines = self.take_until(b"\r\n\r\n").decode("latin-1").strip().split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return Answer(int(first.split()[1]), headers, b"")

    def chunk(self) -> bytes:
        size = int(self.take_until(b"\r\n"), 16)
        return self.take(size + 2)[:-2]

    def answer(self, *, bodiless: bool = False) -> Answer:
        """One whole answer."""
        answer = self.head()
        if bodiless or answer.status in (204, 304):
            return answer
        if answer.headers.get("transfer-encoding") == "chunked":
            while part := self.chunk():
                answer.parts.append(part)
            answer.body = b"".join(answer.parts)
        elif "content-length" in answer.headers:
            answer.body = self.take(int(answer.headers["content-length"]))
        else:
            answer.body = self.rest()
        return answer

    def ask(self, path: str = "/", *lines: str, **more: Any) -> Answer:
        return self.send(path, *lines, **more).answer(bodiless=more.get("method") == "HEAD")

    def rest(self) -> bytes:
        """All up to the end of the connection, which is then closed here too."""
        while self.more():
            pass
        rest, self.buffer = self.buffer, b""
        self.sock.close()
        return rest

    def is_open(self, wait_s: float = 0.0) -> bool:
        """Whether neither end nor data has come."""
        return not self.buffer and not select.select([self.sock], [], [], wait_s)[0]
