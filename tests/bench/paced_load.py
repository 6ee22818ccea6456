"""An HTTP client at a steady pace: `python paced_load.py HOST PORT SAMPLES [mixed]`.

Prints `saw VERSION` for each new one, and `only VERSION` when for a second nobody was answered by another. `mixed`: besides
clients that keep their connection and clients that close it, some whose answer takes its time, and one that uploads slowly.

Each of its connections sends a request when its time has come, not when the last answer has: a server that stands still
for a second then has late answers for all requests of that second, not for one (coordinated omission). Latency counts
from the time when the request should have been sent. Ends with its stdin, then writes its samples as JSON:
[due, seconds, ok, keep_alive, version], times on CLOCK_MONOTONIC.

A keep-alive client reconnects without a failure after `Connection: close`, or when an idle connection was closed before
it sent anything; all else that is not an answer with status 200 is a failure.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from dataclasses import dataclass

TIMEOUT_S = 20.0
ONLY_S = 1.0
PIECE = b"x" * 16384

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Clients:
    """`pieces`: what is sent of a request, `between_s` apart."""

    name: str
    count: int
    pause_s: float
    keep: bool
    pieces: tuple[bytes, ...]
    between_s: float = 0.0


KEEPING = Clients("keep-alive", 8, 0.02, True, (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",))
CLOSING = Clients("closing", 4, 0.04, False, (b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",))
SLOW = Clients("slow answer", 2, 0.5, True, (b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n",))
UPLOADING = Clients(
    "slow upload",
    1,
    0.5,
    True,
    (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65536\r\n\r\n", *(PIECE,) * 4),
    0.05,
)
PLAIN, MIXED = (KEEPING, CLOSING), (KEEPING, CLOSING, SLOW, UPLOADING)


class PacedLoad:
    def __init__(self, host: str, port: int, every: tuple[Clients, ...]) -> None:
        self._address = (host, port)
        self._every = every
        self._seen: dict[str, float] = {}
        self._newest = self._only = ""
        self._stopping = False
        self.samples: list[tuple[float, float, bool, bool, str]] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        tasks = [
            loop.create_task(self._client(clients, began + clients.pause_s * index / clients.count))
            for clients in self._every
            for index in range(clients.count)
        ]
        await loop.run_in_executor(None, sys.stdin.read)
        self._stopping = True
        await asyncio.gather(*tasks)

    async def _client(self, clients: Clients, due: float) -> None:
        streams: Streams | None = None
        while not self._stopping:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    version, streams = await self._ask(streams, clients)
                ok = True
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                ok, version, streams = False, f"{clients.name}: {type(error).__name__}: {error}", None
            now = time.monotonic()
            self.samples.append((due, now - due, ok, clients.keep, version))
            if ok:
                self._tell(version, now)
            due += clients.pause_s
        if streams is not None:
            streams[1].close()

    def _tell(self, version: str, now: float) -> None:
        if version not in self._seen:
            self._newest = version
            print("saw", version, flush=True)
        self._seen[version] = now
        others = [when for each, when in self._seen.items() if each != self._newest]
        if self._only != self._newest and all(now - when > ONLY_S for when in others):
            self._only = self._newest
            print("only", self._newest, flush=True)

    async def _ask(self, streams: Streams | None, clients: Clients) -> tuple[str, Streams | None]:
        """One request; the version that answered, and the connection if it may be used again."""
        if streams is not None and streams[0].at_eof():
            streams[1].close()
            streams = None
        if streams is None:
            streams = await asyncio.open_connection(*self._address)
        reader, writer = streams
        try:
            for index, piece in enumerate(clients.pieces):
                if index and clients.between_s:
                    await asyncio.sleep(clients.between_s)
                writer.write(piece)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            if head[0].split()[1] != "200":
                raise ValueError(head[0])
            headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
            await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            writer.close()
            raise
        if clients.keep and headers.get("connection") != "close" and head[0].startswith("http/1.1"):
            return headers["x-release"], streams
        writer.close()
        return headers["x-release"], None


def main() -> None:
    load = PacedLoad(sys.argv[1], int(sys.argv[2]), MIXED if "mixed" in sys.argv[4:] else PLAIN)
    gc.disable()  # its pauses would be taken for the server's
    asyncio.run(load.run())
    with open(sys.argv[3], "w", encoding="ascii") as file:
        json.dump(load.samples, file)


if __name__ == "__main__":
    main()
