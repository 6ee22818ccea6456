"""Starts the runner of the WSGI server, and speaks raw HTTP with it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PATIENCE_S = 20


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str:
        return ", ".join(value for key, value in self.headers if key.lower() == name.lower())

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection. Reads answers strictly by their framing."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def get(self, target: str, *fields: str, method: str = "GET") -> Answer:
        lines = [f"{method} {target} HTTP/1.1", "Host: t", *fields, "", ""]
        self.send("\r\n".join(lines).encode("latin-1"))
        return self.answer(head_only=method == "HEAD")

    def post(self, target: str, body: bytes, *fields: str) -> Answer:
        lines = [f"POST {target} HTTP/1.1", "Host: t", f"Content-Length: {len(body)}", *fields, "", ""]
        self.send("\r\n".join(lines).encode("latin-1") + body)
        return self.answer()

    def hurry(self) -> None:
        """A client that was slow reads fast from now on."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    def answer(self, head_only: bool = False) -> Answer:
        """The next one; interim answers are passed over."""
        head = self._until(b"\r\n\r\n").decode("latin-1")
        line, *fields = head[:-4].split("\r\n")
        assert re.fullmatch(r"HTTP/1\.1 [0-9]{3} .*", line), line
        status = int(line.split()[1])
        headers = [(name, value.strip()) for name, _, value in (each.partition(":") for each in fields)]
        answer = Answer(status, headers, b"")
        if status == 100:
            return self.answer(head_only)
        if head_only or status in (204, 304):
            return answer
        if answer["Transfer-Encoding"] == "chunked":
            answer.body = self._chunks()
        elif answer["Content-Length"]:
            answer.body = self._exactly(int(answer["Content-Length"]))
        else:
            answer.body = self.to_end()
        return answer

    def to_end(self) -> bytes:
        """Whatever comes until the peer closes."""
        while piece := self.sock.recv(65536):
            self.rest += piece
        data, self.rest = self.rest, b""
        return data

    def ends(self) -> bool:
        """Whether the peer closes without a further byte."""
        try:
            return self.to_end() == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.sock.close()

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self._until(b"\r\n"), 16):
            body += self._exactly(size)
            assert self._exactly(2) == b"\r\n"
        assert self._exactly(2) == b"\r\n"
        return body

    def _until(self, mark: bytes) -> bytes:
        while mark not in self.rest:
            self._more()
        data, _, self.rest = self.rest.partition(mark)
        return data + mark

    def _exactly(self, size: int) -> bytes:
        while len(self.rest) < size:
            self._more()
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    def _more(self) -> None:
        piece = self.sock.recv(1 << 18)
        if not piece:
            raise EOFError(f"the server closed after {self.rest[:300]!r}")
        self.rest += piece


@dataclass
class Served:
    """The server's process. errors: the file of its log."""

    process: subprocess.Popen[str]
    address: Any
    errors: Path
    private: Any = None
    later: list[dict[str, Any]] = field(default_factory=list)

    def client(self, address: Any = None, receive_bytes: int = 0) -> Client:
        where = address or self.address
        sock = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
        sock.settimeout(PATIENCE_S)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.connect(where)
        return Client(sock)

    def ask(self, command: str) -> dict[str, Any]:
        """One command, and its answer; what else is said meanwhile is kept for `said`."""
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        while "cuts" in (said := self._line()):
            self.later.append(said)
        return said

    def drain(self, graceful_s: float, linger_s: float) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"drain {graceful_s} {linger_s}\n")
        self.process.stdin.flush()
        self.ask("traffic")  # answered once the drain has begun

    def cuts(self) -> dict[str, int]:
        """Waits until the drain is over."""
        said = self.later.pop(0) if self.later else self._line()
        return said["cuts"]

    def until_traffic(self, **wanted: int) -> dict[str, Any]:
        """Asks until the numbers are so: each answer waits for a turn of the server's loop."""
        while True:
            found = self.ask("traffic")
            if all(found[name] == value for name, value in wanted.items()):
                return found

    def log(self) -> str:
        return self.errors.read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            assert self.process.stdin
            try:
                self.process.stdin.write("stop\n")
                self.process.stdin.close()
            except BrokenPipeError:
                pass
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"the server ended: {self.log()}"
        return json.loads(line)


def serve(
    folder: Path,
    app: str = "serve_wsgi_app:app",
    env: Mapping[str, str] | None = None,
    *,
    unix: bool = False,
    tls: bool = False,
    **settings: Any,
) -> Served:
    """Starts it on a listener of its own, with a private one beside it."""
    if unix:
        public = socket.socket(socket.AF_UNIX)
        public.bind(str(folder / "s"))
    else:
        public = socket.create_server(("127.0.0.1", 0))
    private = socket.create_server(("127.0.0.1", 0))
    public.listen(128)
    errors = folder / "errors.log"
    fds = f"{'t' if tls else ''}{public.fileno()},p{private.fileno()}"
    with errors.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "serve_wsgi_runner.py"), app, fds, json.dumps({"listed": True, **settings})],
            cwd=HERE,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            pass_fds=(public.fileno(), private.fileno()),
        )
    served = Served(process, public.getsockname(), errors, private.getsockname())
    public.close()
    private.close()
    try:
        assert "ready" in served._line()
    except BaseException:
        process.kill()
        raise
    return served
