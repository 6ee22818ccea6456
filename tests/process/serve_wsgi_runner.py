"""One WsgiServer in a process of its own, without master and zygote: what the tests of HTTP and the bench start.

    python serve_wsgi_runner.py MODULE:APP FD,FD... SETTINGS_JSON

FD: listening sockets; `pFD` a private one, `tFD` one with TLS. Commands come as lines on standard input: `resume`,
`pause`, `traffic`, `seat`, `drain GRACEFUL_S LINGER_S`, `stop`; each is answered by one line of JSON.
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

from midstream.serve.contract import NO_RIVAL, Answered, Identity, Listener
from midstream.serve.settings import Settings
from midstream.serve.wsgi import WsgiServer


class CountingSeat:
    def __init__(self) -> None:
        self.counted: dict[str, int] = {}
        self.refusals: dict[str, int] = {}
        self.bytes_sent = 0
        self.beats = 0
        self.stuck_since_s = 0.0

    def beat(self, now_s: float) -> None:
        self.beats += 1

    def show(self, traffic: Any) -> None: ...

    def stuck(self, since_s: float) -> None:
        self.stuck_since_s = since_s

    def hold(self, connections: int) -> None: ...

    def fewest(self) -> int:
        return NO_RIVAL

    def count(self, status: int, seconds: float, bytes_sent: int) -> None:
        self.counted[str(status)] = self.counted.get(str(status), 0) + 1
        self.bytes_sent += bytes_sent

    def refused(self, status: int) -> None:
        self.refusals[str(status)] = self.refusals.get(str(status), 0) + 1


class ListedLog:
    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.lines: list[Answered] = []

    def write(self, request: Answered) -> None:
        self.lines.append(request)

    def flush(self) -> None: ...


async def main(app: str, fds: str, options: dict[str, Any]) -> None:
    sys.path.insert(0, os.getcwd())
    module, _, name = app.partition(":")
    listed = options.pop("listed", False)
    settings = Settings.from_json(options)
    identity = Identity(0, os.getpid(), os.environ.get("RELEASE", "r1"), 1)
    tls = None
    if settings.certfile:
        import ssl

        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(settings.certfile, settings.keyfile or None)
    seat = CountingSeat()
    if settings.access_log:
        from midstream.serve.access_log import open_log

        log: Any = open_log(settings, identity)
    else:
        log = ListedLog(listed)
    server = WsgiServer(getattr(importlib.import_module(module), name), settings, identity, seat, log, tls)
    listeners = [
        Listener(socket.socket(fileno=int(fd.lstrip("pt"))), fd, private=fd[0] == "p", tls=fd[0] == "t")
        for fd in fds.split(",")
    ]
    await server.start(listeners)
    server.resume()
    say({"ready": os.getpid()})
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    tasks = set()
    while line := (await lines.readline()).decode().split():
        match line:
            case ["resume"]:
                server.resume()
                say({})
            case ["pause"]:
                server.pause()
                say({})
            case ["traffic"]:
                say(dataclasses.asdict(server.traffic()))
            case ["log"]:
                server.settle()
                say({"lines": [dataclasses.asdict(each) for each in log.lines]})
            case ["seat"]:
                server.settle()
                say(vars(seat))
            case ["drain", graceful_s, linger_s]:
                tasks.add(loop.create_task(drain(server, float(graceful_s), float(linger_s))))
                await asyncio.sleep(0)
            case _:
                break
    await server.stop()


async def drain(server: WsgiServer, graceful_s: float, linger_s: float) -> None:
    cuts = await server.drain(graceful_s, linger_s)
    say({"cuts": dataclasses.asdict(cuts)})


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=os.environ.get("LOG_LEVEL", "INFO"), format="%(message)s")
    uvloop.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3] if len(sys.argv) > 3 else "{}")))
    os._exit(0)  # app threads that a test keeps busy do not hold it up
