"""Fields of an answer that app and server may both set: each is sent once, and whose it is is one table for WSGI and ASGI."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import serving

pytest.importorskip("uvloop")
websockets = pytest.importorskip("websockets.sync.client")

WSGI = """
import json
from urllib.parse import unquote

def app(environ, start_response):
    fields = json.loads(unquote(environ["QUERY_STRING"]))
    start_response("200 OK", [("Content-Length", "2"), *map(tuple, fields)])
    return [b"ok"]
"""
ASGI = """
import json
from urllib.parse import unquote

OWN = [(b"date", b"today"), (b"Server", b"shop"), (b"X-Release", b"mine")]

async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        own = OWN if scope["path"] == "/own" else []
        await send({"type": "websocket.accept", "headers": own})
        await send({"type": "websocket.close"})
    if scope["type"] != "http":
        return
    fields = json.loads(unquote(scope["query_string"].decode()))
    headers = [(b"Content-Length", b"2"), *((name.encode(), value.encode()) for name, value in fields)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})
"""
OURS = ("--server-header", "ours")


@pytest.fixture(scope="module", params=["wsgi", "asgi"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.Server]:
    folder = tmp_path_factory.mktemp(request.param)
    serving.point(folder, serving.make_release(folder, "r1", app=WSGI if request.param == "wsgi" else ASGI))
    with serving.running(folder, "--linger", "0", *OURS) as server:
        yield server


def fields_of(server: serving.Server, *own: tuple[str, str]) -> dict[str, list[str]]:
    """Of the answer to an app that sets these: all values of each, in order."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=serving.LIMIT_S)
    connection.request("GET", "/?" + quote(json.dumps(own)))
    answer = connection.getresponse()
    assert answer.read() == b"ok"
    found: dict[str, list[str]] = {}
    for name, value in answer.getheaders():
        found.setdefault(name.lower(), []).append(value)
    connection.close()
    return found


def test_the_server_sets_what_the_app_does_not(server: serving.Server) -> None:
    found = fields_of(server)
    assert (found["server"], found["x-release"], len(found["date"])) == (["ours"], ["r1"], 1)
    assert set(found) == {"content-length", "server", "x-release", "date"}


@pytest.mark.parametrize("name", ["Date", "date", "Server", "X-Release", "x-release"])
def test_what_the_app_sets_replaces_the_servers_alone(server: serving.Server, name: str) -> None:
    found = fields_of(server, (name, "the app's"))
    assert found[name.lower()] == ["the app's"]
    others = {"server": ["ours"], "x-release": ["r1"]}
    assert {key: found[key] for key in others if key != name.lower()} == {
        key: value for key, value in others.items() if key != name.lower()
    }
    assert len(found["date"]) == 1


def test_all_three_at_once(server: serving.Server) -> None:
    found = fields_of(server, ("Date", "today"), ("Server", "shop"), ("X-Release", "mine"))
    assert (found["date"], found["server"], found["x-release"]) == (["today"], ["shop"], ["mine"])


@pytest.mark.parametrize("name", ["Transfer-Encoding", "Keep-Alive", "Upgrade", "TE", "Trailer", "Proxy-Connection"])
def test_what_concerns_one_connection_is_not_the_apps_to_set(server: serving.Server, name: str) -> None:
    assert name.lower() not in fields_of(server, (name, "chunked"))


def test_the_apps_connection_field_counts_for_close_alone(server: serving.Server) -> None:
    assert fields_of(server, ("Connection", "close"))["connection"] == ["close"]
    assert "connection" not in fields_of(server, ("Connection", "upgrade, keep-alive"))


def test_the_answer_to_a_websockets_handshake(tmp_path: Path) -> None:
    serving.point(tmp_path, serving.make_release(tmp_path, "r1", app=ASGI))
    with serving.running(tmp_path, "--linger", "0", *OURS) as server:
        for path, wanted in (("/own", ["today", "shop", "mine"]), ("/other", ["", "ours", "r1"])):
            with websockets.connect(f"ws://127.0.0.1:{server.port}{path}") as socket:
                fields = socket.response.headers
                found = [fields.get_all(name) for name in ("Date", "Server", "X-Release")]
                assert all(len(values) == 1 for values in found)
                assert [values[0] for values in found[1:]] == wanted[1:]
                assert found[0] == ["today"] or path == "/other"
