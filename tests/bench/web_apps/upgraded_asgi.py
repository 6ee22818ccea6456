"""`upgraded_wsgi` for ASGI."""

import asyncio

from upgraded_wsgi import VERSION

HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"6"), (b"x-release", VERSION.encode())]


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(0.2)
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": b"hello\n"})
