"""The ASGI app that the Python servers run in the tests: `/` says $MIDSTREAM_RELEASE, `/slow?ms=` waits,
`/held?FILE` waits until that file is there."""

import asyncio
import os
from urllib.parse import parse_qs

RELEASE = os.environ.get("MIDSTREAM_RELEASE", "?").encode()


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    if scope["path"] == "/slow":
        await asyncio.sleep(int(parse_qs(scope["query_string"].decode())["ms"][0]) / 1000)
    while scope["path"] == "/held" and not os.path.exists(scope["query_string"]):
        await asyncio.sleep(0.02)
    body = RELEASE + b"\n"
    headers = [(b"content-length", str(len(body)).encode()), (b"x-release", RELEASE)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
