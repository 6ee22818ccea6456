"""What `midstream serve` uses of uvicorn's insides. Fails when uvicorn changes it, before an app's traffic finds out.

A new version of uvicorn: run the tests of serve with it, read what changed in the classes below, add their new prints
here, and widen the range in pyproject.toml.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.lifespan.on import LifespanOn
from uvicorn.middleware.asgi2 import ASGI2Middleware
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from midstream.serve.asgi import uvicorn_config
from midstream.serve.asgi_answer import Exchange
from midstream.serve.asgi_http import HttpConnection
from midstream.serve.lifespan import Lifespan
from midstream.serve.settings import Settings
from midstream.serve.websockets import WebSocketConnection

# Classes whose code we extend, with the prints of the versions that all tests of serve have passed with.
PRINTS: dict[type, set[str]] = {  # 0.53 and 0.54
    FlowControl: {"9e84e1d3268ee5d9"},
    HttpToolsProtocol: {"251b598d9f199168"},
    RequestResponseCycle: {"cf5b8e35f143641b"},
    WebSocketsSansIOProtocol: {"4e149387a75cb373"},
    LifespanOn: {"6e5e3f0a8e1f9a14"},
    ServerState: {"f938d5827b9255f1"},
    ASGI2Middleware: {"ec82aed795331d6c"},
}

# What of a parent our classes replace; everything else of it runs as it is.
OURS: dict[type, tuple[type, set[str]]] = {
    HttpConnection: (
        HttpToolsProtocol,
        {
            "connection_made",
            "connection_lost",
            "eof_received",
            "data_received",
            "on_message_begin",
            "on_url",
            "on_header",
            "on_headers_complete",
            "on_body",
            "on_message_complete",
            "on_response_complete",
        },
    ),
    Exchange: (RequestResponseCycle, {"run_asgi", "send_500_response", "receive", "send"}),
    WebSocketConnection: (
        WebSocketsSansIOProtocol,
        {"connection_made", "connection_lost", "handle_connect", "run_asgi", "send", "keepalive_timeout"},
    ),
    Lifespan: (LifespanOn, {"main", "receive", "send"}),
}

# Names that we read or set on them, beside the methods.
NAMES: dict[type, set[str]] = {
    HttpToolsProtocol: {
        "app",
        "app_state",
        "asgi_version",
        "client",
        "config",
        "connections",
        "cycle",
        "flow",
        "headers",
        "logger",
        "access_logger",
        "loop",
        "parser",
        "pipeline",
        "root_path",
        "scheme",
        "scope",
        "server",
        "server_state",
        "tasks",
        "transport",
        "url",
    },
    RequestResponseCycle: {
        "body",
        "chunked_encoding",
        "disconnected",
        "flow",
        "keep_alive",
        "logger",
        "message_event",
        "more_body",
        "on_response",
        "response_complete",
        "response_started",
        "scope",
        "transport",
        "waiting_for_100_continue",
    },
    WebSocketsSansIOProtocol: {
        "app",
        "client",
        "close_sent",
        "close_timeout",
        "close_timer",
        "config",
        "conn",
        "disconnected",
        "handshake_complete",
        "loop",
        "pending_ping_payload",
        "pong_timer",
        "queue",
        "read_paused",
        "response",
        "scheme",
        "transport",
        "writable",
    },
    LifespanOn: {"config", "error_occurred", "logger", "shutdown_event", "startup_event", "startup_failed", "state"},
    FlowControl: {"read_paused", "write_paused"},
    ServerState: {"connections", "default_headers", "tasks", "total_requests"},
}


def print_of(class_: type) -> str:
    """Of its code without blanks and comments, so that formatting is no change."""
    code = re.sub(r"#[^\n]*", "", inspect.getsource(class_))
    return hashlib.sha256(re.sub(r"\s+", "", code).encode()).hexdigest()[:16]


def assigned(class_: type) -> set[str]:
    """Names that its methods set on self."""
    return {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(class_)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def test_the_installed_version_is_one_of_the_range() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    [wanted] = [word for word in project["project"]["optional-dependencies"]["serve"] if word.startswith("uvicorn")]
    least, below = re.findall(r"0\.(\d+)", wanted)
    assert int(least) <= int(version("uvicorn").split(".")[1]) < int(below), wanted


@pytest.mark.parametrize("class_", PRINTS, ids=lambda class_: class_.__name__)
def test_the_code_that_we_extend_is_what_was_tested(class_: type) -> None:
    assert print_of(class_) in PRINTS[class_], (
        f"uvicorn {version('uvicorn')} has another {class_.__name__}: see the head of this file"
    )


@pytest.mark.parametrize("class_", OURS, ids=lambda class_: class_.__name__)
def test_what_we_replace_is_there_and_takes_the_same(class_: type) -> None:
    parent, replaced = OURS[class_]
    assert replaced == {name for name in vars(class_) if name in vars(parent) and not name.startswith("__")}
    for name in replaced:
        ours, theirs = (list(inspect.signature(getattr(each, name)).parameters)[1:] for each in (class_, parent))
        assert len(ours) == len(theirs), name


@pytest.mark.parametrize("class_", NAMES, ids=lambda class_: class_.__name__)
def test_the_names_that_we_use_are_set(class_: type) -> None:
    assert NAMES[class_] <= assigned(class_)


def test_how_they_are_made() -> None:
    cycle = list(inspect.signature(RequestResponseCycle).parameters)
    assert set(cycle) == {
        "scope",
        "transport",
        "flow",
        "logger",
        "access_logger",
        "access_log",
        "default_headers",
        "message_event",
        "expect_100_continue",
        "keep_alive",
        "on_response",
    }
    for class_ in (HttpToolsProtocol, WebSocketsSansIOProtocol):
        assert list(inspect.signature(class_).parameters) == ["config", "server_state", "app_state", "_loop"]


def test_the_small_things() -> None:
    assert STATUS_LINE[404] == b"HTTP/1.1 404 Not Found\r\n" and STATUS_LINE[599] == b"HTTP/1.1 599 \r\n"
    assert HEADER_RE.search(b"a:b") and not HEADER_RE.search(b"x-ok")
    assert HEADER_VALUE_RE.search(b"a\r\nb") and not HEADER_VALUE_RE.search(b"a\tb")
    assert HIGH_WATER_LIMIT == 65536 and issubclass(ClientDisconnected, OSError)
    for name in ("pause_reading", "resume_reading", "resume_writing", "drain"):
        assert callable(getattr(FlowControl, name))
    for name in ("stop_keepalive", "schedule_ping"):
        assert callable(getattr(WebSocketsSansIOProtocol, name))


def test_the_app_is_not_called_to_find_out_what_it_is() -> None:
    """uvicorn's Config calls what it is given without arguments, to find factories."""
    calls: list[Any] = []

    def app(*args: Any) -> Any:
        calls.append(args)

    config = uvicorn_config(app, Settings())
    assert calls == [] and isinstance(config, Config)
    config.loaded_app("scope", "receive", "send")
    assert calls == [("scope", "receive", "send")]


def test_its_logging_stays_as_the_worker_has_set_it_up() -> None:
    import logging

    before = list(logging.getLogger("uvicorn").handlers), list(logging.getLogger().handlers)
    uvicorn_config(lambda scope, receive, send: None, Settings())
    assert (list(logging.getLogger("uvicorn").handlers), list(logging.getLogger().handlers)) == before


def test_no_timer_a_request_is_left() -> None:
    """uvicorn arms its keep-alive timer where an answer is complete; that is ours, so it must not be armed elsewhere."""
    methods = [(name, method) for name, method in vars(HttpToolsProtocol).items() if callable(method)]
    armed = [name for name, method in methods if "call_later" in inspect.getsource(method)]
    assert armed == ["on_response_complete"]
    assert asyncio.iscoroutinefunction(RequestResponseCycle.run_asgi)
