"""What ASGI servers are measured with: the same pages as in `wsgi_app`."""

import asyncio
import json

from wsgi_app import HELLO, MEGABYTE, ROWS

PLAIN = (b"content-type", b"text/plain")


async def answer(send, body, kind=PLAIN):
    headers = [kind, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def hello(receive, send):
    await answer(send, HELLO)


async def rows(receive, send):
    await answer(send, json.dumps({"rows": ROWS}).encode(), (b"content-type", b"application/json"))


async def download(receive, send):
    await answer(send, MEGABYTE)


async def upload(receive, send):
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await answer(send, str(size).encode())


async def slow(receive, send):
    await asyncio.sleep(0.1)
    await answer(send, HELLO)


ROUTES = {"/json": rows, "/download": download, "/upload": upload, "/slow": slow}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await ROUTES.get(scope["path"], hello)(receive, send)
