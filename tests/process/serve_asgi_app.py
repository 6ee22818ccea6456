"""An ASGI app with a corner for each story of test_serve_asgi.py. Run by serve_asgi_runner.py."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

EVENTS: dict[str, asyncio.Event] = {}
SEEN: list[Any] = []  # what the app noticed; asked for by the test


def event(name: str) -> asyncio.Event:
    return EVENTS.setdefault(name, asyncio.Event())


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(scope, receive, send)
    elif scope["type"] == "websocket":
        await SOCKETS[scope["path"]](scope, receive, send)
    else:
        await PAGES.get(scope["path"], hello)(scope, receive, send)


async def _lifespan(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    match os.environ.get("LIFESPAN", ""):
        case "refuses":
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            return
        case "raises":
            raise RuntimeError("no database")
    scope["state"]["greeting"] = "from the lifespan"
    await send({"type": "lifespan.startup.complete"})
    await receive()
    SEEN.append("shutdown")
    if os.environ.get("LIFESPAN") == "hangs":
        await asyncio.Event().wait()
    await send({"type": "lifespan.shutdown.complete"})


async def answer(send: Any, body: bytes, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            SEEN.append("disconnect")
            return body
        body += message["body"]
        if not message["more_body"]:
            return body


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, b"hello")


async def tell(scope: Any, receive: Any, send: Any) -> None:
    """The scope, as JSON."""
    shown = {
        "headers": [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]],
        "client": scope["client"],
        "raw_path": scope["raw_path"].decode(),
        "query": scope["query_string"].decode(),
        "state": dict(scope["state"]),
        **{key: scope[key] for key in ("scheme", "path", "method", "http_version", "root_path")},
    }
    await answer(send, json.dumps(shown).encode(), (b"content-type", b"application/json"))


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, await read_body(receive))


async def stream(scope: Any, receive: Any, send: Any) -> None:
    """Sends back each part of the body as it comes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            SEEN.append("disconnect")
            return
        more = message["more_body"]
        await send({"type": "http.response.body", "body": message["body"], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def flood(scope: Any, receive: Any, send: Any) -> None:
    """Sends for ever; SEEN has how much it got rid of."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    SEEN.append(0)
    try:
        while True:
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
            SEEN[-1] += 65536
            await asyncio.sleep(0)
    except asyncio.CancelledError:
        SEEN.append("cancelled")
        raise


async def sip(scope: Any, receive: Any, send: Any) -> None:
    """Reads nothing of its body until it is told to."""
    await event("sip").wait()
    await answer(send, b"%d" % len(await read_body(receive)))


async def wait(scope: Any, receive: Any, send: Any) -> None:
    SEEN.append("waits")
    try:
        await event("go").wait()
    except asyncio.CancelledError:
        SEEN.append("cancelled")
        raise
    await answer(send, b"waited")


async def listens(scope: Any, receive: Any, send: Any) -> None:
    """Answers when its client has left, or has ended its sending."""
    await read_body(receive)
    await read_body(receive)
    await answer(send, b"you have left")


async def slow_stream(scope: Any, receive: Any, send: Any) -> None:
    """Half of its answer before `go`, half behind it."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    await event("go").wait()
    await send({"type": "http.response.body", "body": b"half"})


async def events(scope: Any, receive: Any, send: Any) -> None:
    """Server-sent events in two parts each; the second part of each waits for `half`."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    number = 0
    try:
        while True:
            number += 1
            await send({"type": "http.response.body", "body": b"data: %d\n" % number, "more_body": True})
            await event("half").wait()
            event("half").clear()
            await send({"type": "http.response.body", "body": b"\n", "more_body": True})
            await event("next").wait()
            event("next").clear()
    except OSError:
        SEEN.append("ended")
        raise


async def background(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, b"done")
    await event("go").wait()
    SEEN.append("background done")


async def broken(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("a mistake of the app")


async def broken_late(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"so far", "more_body": True})
    raise RuntimeError("a mistake of the app")


async def no_content(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, b"", status=204)


async def chunks(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Many", b"1"), (b"X-Many", b"2")]})
    for part in (b"one ", b"", b"two ", bytes(40000)):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"end"})


async def ws_echo(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            SEEN.append(["gone", message["code"]])
            return
        sent = {key: message[key] for key in ("text", "bytes") if message.get(key) is not None}
        await send({"type": "websocket.send", **sent})


async def ws_talks(scope: Any, receive: Any, send: Any) -> None:
    """Sends for ever and does not listen."""
    await receive()
    await send({"type": "websocket.accept"})
    try:
        while True:
            await send({"type": "websocket.send", "text": "tick"})
            await asyncio.sleep(0.01)
    except OSError:
        SEEN.append("told")
        raise


async def ws_deaf(scope: Any, receive: Any, send: Any) -> None:
    """Accepts and takes no message until `go`."""
    await receive()
    await send({"type": "websocket.accept"})
    await event("go").wait()
    SEEN.append((await receive()).get("text"))
    await event("forever").wait()


async def ws_refuses(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.close"})


async def ws_tells(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    headers = [name.decode() for name, _ in scope["headers"]]
    told = {"client": scope["client"], "scheme": scope["scheme"], "headers": headers, "state": dict(scope["state"])}
    await send({"type": "websocket.send", "text": json.dumps(told)})
    await receive()


PAGES = {
    "/tell": tell,
    "/echo": echo,
    "/stream": stream,
    "/flood": flood,
    "/sip": sip,
    "/listens": listens,
    "/wait": wait,
    "/slow-stream": slow_stream,
    "/events": events,
    "/background": background,
    "/broken": broken,
    "/broken-late": broken_late,
    "/no-content": no_content,
    "/chunks": chunks,
}
SOCKETS = {"/ws": ws_echo, "/talks": ws_talks, "/deaf": ws_deaf, "/refuses": ws_refuses, "/tells": ws_tells}


class Twice:
    """An ASGI 2 app."""

    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await app(self.scope, receive, send)


async def without_lifespan(scope: Any, receive: Any, send: Any) -> None:
    """As Django: knows no lifespan, and says so by an exception."""
    if scope["type"] == "lifespan":
        raise ValueError("only http here")
    await app(scope, receive, send)


async def careless(scope: Any, receive: Any, send: Any) -> None:
    """Takes everything for a request."""
    await receive()
    await answer(send, b"hello")
