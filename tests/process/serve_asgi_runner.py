"""Runs AsgiServer alone in a process of its own, told by lines on stdin, answering with JSON lines on stdout.

Arguments: JSON {"app": name in serve_asgi_app or MODULE:NAME, "settings": {}, "sockets": [[fd, private, tls]], "loop": …}.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import logging
import os
import socket
import sys
from typing import Any

import uvloop

from midstream.errors import MidstreamError
from midstream.serve import tls as serve_tls
from midstream.serve.asgi import AsgiServer
from midstream.serve.contract import NO_RIVAL, Answered, Identity, Listener, Traffic
from midstream.serve.settings import Settings


class Seat:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.counted: list[int] = []
        self.refusals: list[int] = []
        self.shown = Traffic()

    def beat(self, now_s: float) -> None: ...

    def stuck(self, since_s: float) -> None: ...

    def show(self, traffic: Traffic) -> None:
        self.shown = traffic

    def hold(self, connections: int) -> None: ...

    def fewest(self) -> int:
        return NO_RIVAL

    def count(self, status: int, seconds: float, bytes_sent: int) -> None:
        self.counted.append(status)

    def refused(self, status: int) -> None:
        self.refusals.append(status)


class Log:
    enabled = True

    def __init__(self) -> None:
        self.lines: list[Answered] = []

    def write(self, request: Answered) -> None:
        self.lines.append(request)

    def flush(self) -> None: ...


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


async def run(order: dict[str, Any]) -> None:
    module, _, name = order["app"].rpartition(":")
    module = importlib.import_module(module or "serve_asgi_app")
    seat, log = Seat(), Log()
    settings = dataclasses.replace(
        Settings(), **{k: tuple(v) if isinstance(v, list) else v for k, v in order["settings"].items()}
    )
    listeners = [Listener(socket.socket(fileno=fd), f"l{fd}", private, tls) for fd, private, tls in order["sockets"]]
    context = serve_tls.context(settings) if settings.certfile else None
    server = AsgiServer(
        getattr(module, name), settings, Identity(0, os.getpid(), "20260102030405", 7), seat, log, context
    )
    try:
        await server.start(listeners)
    except MidstreamError as error:
        say(failed=str(error))
        return
    server.resume()
    say(ready=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks = []
    while line := await reader.readline():
        word, *values = line.decode().split()
        match word:
            case "drain":
                tasks.append(asyncio.create_task(_drain(server, float(values[0]), float(values[1]))))
                await asyncio.sleep(0)
                say(draining=True)
            case "stop":
                await server.stop()
                say(stopped=True, seen=module.SEEN if hasattr(module, "SEEN") else [])
                return
            case "pause" | "resume":
                getattr(server, word)()
                say(done=word)
            case "set":
                module.event(values[0]).set()
                say(done=word)
            case "tell":
                say(
                    traffic=dataclasses.asdict(server.traffic()),
                    shown=dataclasses.asdict(seat.shown),
                    counted=seat.counted,
                    refused=seat.refusals,
                    log=[dataclasses.asdict(line) for line in log.lines],
                    seen=getattr(module, "SEEN", []),
                    tasks=len(asyncio.all_tasks()),
                )


async def _drain(server: AsgiServer, graceful_s: float, linger_s: float) -> None:
    cuts = await server.drain(graceful_s, linger_s)
    say(drained=dataclasses.asdict(cuts))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    order = json.loads(sys.argv[1])
    if order.get("loop") == "asyncio":
        asyncio.run(run(order))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(order))
