"""WebSockets of AsgiServer, with the client of the library `websockets`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from serve_asgi_run import Running
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(ws_max_size_bytes=3_000_000, hosts=["127.0.0.1"], forwarded_allow_ips=["127.0.0.1"]) as running:
        yield running


@pytest.fixture
def echo(server: Running) -> Iterator[ClientConnection]:
    with connect(f"ws://{server.url}/ws", subprotocols=["soup", "salad"], max_size=None) as websocket:  # type: ignore[list-item]
        yield websocket


def test_messages_come_back(echo: ClientConnection) -> None:
    assert echo.subprotocol == "soup"
    for message in ("ä", b"\x00\xff", "", b"x" * 2_900_000):
        echo.send(message)
        assert echo.recv() == message
    echo.send(["in ", "pieces"])
    assert echo.recv() == "in pieces"
    assert echo.ping().wait(10)


def test_the_handshake_carries_the_release(echo: ClientConnection) -> None:
    assert echo.response is not None and echo.response.headers["x-release"] == "20260102030405"


def test_a_message_that_is_too_large_gets_1009(echo: ClientConnection) -> None:
    with pytest.raises(ConnectionClosed) as closed:
        echo.send(b"x" * 3_000_001)
        echo.recv(timeout=10)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_the_client_says_goodbye(server: Running) -> None:
    with connect(f"ws://{server.url}/ws") as websocket:
        websocket.close(4001)
    told = server.until("traffic.websockets", 0)
    assert ["gone", 4001] in told["seen"]
    line = told["log"][-1]
    assert (line["status"], line["target"], line["method"]) == (101, "/ws", "GET")


def test_a_websocket_is_counted_while_it_is_open(server: Running) -> None:
    with connect(f"ws://{server.url}/ws"):
        told = server.until("traffic.websockets", 1)
        assert told["traffic"]["in_flight"] == 0 and told["counted"][-1] == 101


def test_an_app_that_refuses_and_a_host_that_is_not_served(server: Running) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://{server.url}/refuses")
    assert refused.value.response.status_code == 403
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://localhost:{server.address[1]}/ws")
    assert refused.value.response.status_code == 400


def test_the_scope_is_made_as_for_http(server: Running) -> None:
    headers = {"X-Forwarded-For": "10.0.0.9", "X-Forwarded-Proto": "https", "X_Forged": "1"}
    with connect(f"ws://{server.url}/tells", additional_headers=headers) as websocket:
        told = json.loads(websocket.recv())
    assert told["client"] == ["10.0.0.9", 0] and told["scheme"] == "wss"
    assert "x_forged" not in told["headers"] and told["state"] == {"greeting": "from the lifespan"}


def test_frames_right_behind_the_handshake_are_not_lost(server: Running) -> None:
    with server.connect() as client:
        client.raw(
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            b"\x81\x82\x00\x00\x00\x00hi"
        )
        assert client.head().status == 101
        assert client.take(4) == b"\x81\x02hi"


def test_a_client_that_its_app_does_not_listen_to_is_not_closed_for_missing_pongs() -> None:
    """Its pongs lie unread behind its message; uvicorn closes it with 1011."""
    with (
        Running(ws_ping_interval_s=0.2, ws_ping_timeout_s=0.2) as server,
        connect(f"ws://{server.url}/deaf", close_timeout=0.1) as websocket,
    ):
        websocket.send("first")
        websocket.send("second")
        with pytest.raises(TimeoutError):
            websocket.recv(timeout=1.0)
        server.ask("set", "go")
        server.until("seen", ["first"])


def test_a_client_without_pongs_is_closed() -> None:
    with Running(ws_ping_interval_s=0.2, ws_ping_timeout_s=0.2) as server, server.connect() as client:
        client.raw(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert client.head().status == 101
        assert b"\x03\xf3" in client.rest()  # 1011


def test_a_client_that_does_not_read_is_closed() -> None:
    with (
        Running(write_timeout_s=1.0) as server,
        connect(f"ws://{server.url}/ws", max_queue=1, compression=None, close_timeout=0.1) as websocket,
    ):
        server.until("traffic.websockets", 1)
        message = bytes(1 << 20)
        with pytest.raises((ConnectionClosed, OSError, TimeoutError)):
            websocket.socket.settimeout(20)
            while True:
                websocket.send(message)
        server.until("traffic.websockets", 0)
