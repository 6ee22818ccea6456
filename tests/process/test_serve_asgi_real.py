"""AsgiServer as it is used: a FastAPI app, TLS, clients that people have, and handovers under load that lose nothing."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serve_asgi_run import Client, Running
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


@pytest.fixture
def shop() -> Iterator[Running]:
    pytest.importorskip("fastapi")
    with Running("serve_asgi_fastapi:app") as running:
        yield running


def test_a_fastapi_app(shop: Running) -> None:
    with shop.connect() as client:
        item = json.dumps({"name": "tea", "price": 2.5}).encode()
        answer = client.ask("/items", "Content-Type: application/json", method="POST", body=item)
        assert json.loads(answer.body) == {"name": "tea", "database": "open"}
        assert client.ask("/items", "Content-Type: application/json", method="POST", body=b"{}").status == 422
        assert json.loads(client.ask("/threads").body) == {"from": "a thread"}
        assert client.ask("/openapi.json").status == 200
    with connect(f"ws://{shop.url}/chat") as chat:
        chat.send("hi")
        assert json.loads(chat.recv()) == {"heard": "hi"}
    shop.until("seen", ["mailed tea", "chat ended 1000"])


def test_a_fastapi_app_drains(shop: Running) -> None:
    with shop.connect() as client, connect(f"ws://{shop.url}/chat") as chat:
        client.send("/events").head()
        assert client.chunk() == b"data: 1\n\n"
        shop.ask("drain", 1, 0)
        assert all(part.endswith(b"\n\n") for part in iter(client.chunk, b""))
        with pytest.raises(ConnectionClosed) as closed:
            chat.recv(timeout=10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
        assert client.rest() == b""
        assert shop.until_drained() == {"requests": 0, "websockets": 0, "idle_closed": 1}
        assert sorted(shop.ask("stop")["seen"]) == ["chat ended 1012", "closed", "stream ended"]
        assert "Traceback" not in shop.errors()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    extension = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        [*command.split(), *extension, "-keyout", f"{path}", "-out", f"{path}.crt"], check=True, capture_output=True
    )
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def test_tls(certificate: Path) -> None:
    context = ssl.create_default_context(cafile=f"{certificate}.crt")
    with Running(certfile=str(certificate)) as server:
        raw = socket.create_connection(server.address)
        with Client(context.wrap_socket(raw, server_hostname="localhost")) as client, server.connect() as plain:
            client.sock.settimeout(20)
            assert json.loads(client.ask("/tell").body)["scheme"] == "https"
            body = bytes(range(256)) * 4000
            assert client.ask("/echo", method="POST", body=body).body == body
            assert plain.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").rest() == b""  # no TLS: closed
            with connect(f"wss://localhost:{server.address[1]}/ws", ssl=context) as websocket:
                websocket.send("hi")
                assert websocket.recv() == "hi"
            server.ask("drain", 5, 30)
            assert client.ask().headers["connection"] == "close"
            assert client.rest() == b""
            assert server.until_drained()["requests"] == 0


class Load:
    """Clients in threads. Each counts what it was answered; what goes wrong is kept."""

    def __init__(self, server: Running) -> None:
        self.server = server
        self.stopped = threading.Event()
        self.answered = 0
        self.errors: list[str] = []
        kinds = [self.keeps, self.keeps, self.closes, self.pipelines, self.uploads, self.streams]
        self.threads = [threading.Thread(target=self.run, args=(kind,)) for kind in kinds]
        for thread in self.threads:
            thread.start()

    def run(self, kind: Callable[[], None]) -> None:
        while not self.stopped.is_set():
            try:
                kind()
            except (OSError, AssertionError) as error:
                self.errors.append(f"{kind.__name__}: {error!r}")

    def keeps(self) -> None:
        """As a proxy or a browser: goes on with its connection until it is told that it closes."""
        with self.server.connect() as client:
            while not self.stopped.is_set():
                answer = client.ask()
                assert answer.body == b"hello"
                self.answered += 1
                if answer.headers.get("connection") == "close":
                    return

    def closes(self) -> None:
        with self.server.connect() as client:
            assert client.ask("/", "Connection: close").body == b"hello"
            assert client.rest() == b""
            self.answered += 1

    def pipelines(self) -> None:
        with self.server.connect() as client:
            client.send().send().send()
            for _ in range(3):
                answer = client.answer()
                assert answer.body == b"hello"
                self.answered += 1
                if answer.headers.get("connection") == "close":
                    return

    def uploads(self) -> None:
        with self.server.connect() as client:
            client.send("/echo", "Content-Length: 100000", method="POST")
            for _ in range(10):
                client.raw(bytes(10_000))
            assert client.answer().body == bytes(100_000)
            self.answered += 1

    def streams(self) -> None:
        with self.server.connect() as client:
            answer = client.ask("/chunks")
            assert len(answer.body) == 40_011
            self.answered += 1

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(20)


def test_handovers_under_load_lose_nothing() -> None:
    """One shared listener, each server drained when the next accepts: 0 failed in six handovers."""
    first = Running()
    load = Load(first)
    servers = [first]
    try:
        for _ in range(6):
            before = load.answered
            servers.append(Running(listener=first.public))
            servers[-2].ask("drain", 20, 20)
            while load.answered < before + 300:
                assert any(thread.is_alive() for thread in load.threads)
                load.stopped.wait(0.01)
        load.stop()
        assert load.errors == []
        for server in servers[:-1]:
            assert server.until_drained() == {"requests": 0, "websockets": 0, "idle_closed": 0}
    finally:
        load.stop()
        for server in reversed(servers):
            server.__exit__()
