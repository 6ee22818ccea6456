"""An HTTP client at a steady pace: `python paced_load.py HOST PORT SAMPLES`. Prints `saw VERSION` for each new one.

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

KEEP_ALIVE, CLOSING = 8, 4
KEEP_ALIVE_PAUSE_S, CLOSING_PAUSE_S = 0.02, 0.04
TIMEOUT_S = 20.0
KEEP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class PacedLoad:
    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._seen: set[str] = set()
        self._stopping = False
        self.samples: list[tuple[float, float, bool, bool, str]] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        clients = [
            loop.create_task(self._client(keep, began + pause * index / count, pause))
            for keep, count, pause in (
                (True, KEEP_ALIVE, KEEP_ALIVE_PAUSE_S),
                (False, CLOSING, CLOSING_PAUSE_S),
            )
            for index in range(count)
        ]
        await loop.run_in_executor(None, sys.stdin.read)
        self._stopping = True
        await asyncio.gather(*clients)

    async def _client(self, keep: bool, due: float, pause_s: float) -> None:
        streams: Streams | None = None
        while not self._stopping:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    version, streams = await self._ask(streams, keep)
                ok = True
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                ok, version, streams = False, f"{type(error).__name__}: {error}", None
            self.samples.append((due, time.monotonic() - due, ok, keep, version))
            if ok and version not in self._seen:
                self._seen.add(version)
                print("saw", version, flush=True)
            due += pause_s
        if streams is not None:
            streams[1].close()

    async def _ask(self, streams: Streams | None, keep: bool) -> tuple[str, Streams | None]:
        """One request; the version that answered, and the connection if it may be used again."""
        if streams is not None and streams[0].at_eof():
            streams[1].close()
            streams = None
        if streams is None:
            streams = await asyncio.open_connection(*self._address)
        reader, writer = streams
        try:
            writer.write(KEEP if keep else CLOSE)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            if head[0].split()[1] != "200":
                raise ValueError(head[0])
            headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
            await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            writer.close()
            raise
        if keep and headers.get("connection") != "close" and head[0].startswith("http/1.1"):
            return headers["x-release"], streams
        writer.close()
        return headers["x-release"], None


def main() -> None:
    load = PacedLoad(sys.argv[1], int(sys.argv[2]))
    gc.disable()  # its pauses would be taken for the server's
    asyncio.run(load.run())
    with open(sys.argv[3], "w", encoding="ascii") as file:
        json.dump(load.samples, file)


if __name__ == "__main__":
    main()
