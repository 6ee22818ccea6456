"""Load for tests, benchmarks and the demo: closing and keep-alive HTTP clients that count every failure.

A request fails when it gets no complete answer, or one whose status is not 2xx. A keep-alive client reconnects without
a failure only where HTTP allows it: after an answer that said `Connection: close`, or when the server closed an *idle*
connection before the first byte of the next request was sent. A reset or an end of file after the request was sent is
a failure. Runs in the caller's event loop, or as a program: `python -m midstream.testing.load ADDRESS [OPTIONS]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """requests, failed: counts. samples: (start, seconds, ok, keep_alive) with start on CLOCK_MONOTONIC."""

    requests: int = 0
    failed: int = 0
    samples: list[tuple[float, float, bool, bool]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)  # X-Release -> answers
    stray_idle_closes: int = 0

    def add(self, start: float, ok: bool, keep_alive: bool, what: str, release: str) -> None:
        self.requests += 1
        self.samples.append((start, time.monotonic() - start, ok, keep_alive))
        if not ok:
            self.failed += 1
            if len(self.failures) < 50:
                kind = "keep-alive" if keep_alive else "closing"
                self.failures.append(f"{time.monotonic():.3f} {kind}: {what}")
        elif release:
            self.seen[release] = self.seen.get(release, 0) + 1


class Load:
    """`address`: `tcp://HOST:PORT` or `unix:///PATH`. Start it, stop it, read `tally`.

    body_bytes: of each request that is no GET; its second half follows the first after `upload_s`, so that servers see
    requests whose body is still on its way.
    """

    def __init__(
        self,
        address: str,
        *,
        keep_alive: int = 4,
        closing: int = 4,
        path: str = "/",
        host: str = "localhost",
        pause_s: float = 0.0,
        timeout_s: float = 30.0,
        method: str = "GET",
        body_bytes: int = 0,
        upload_s: float = 0.0,
    ) -> None:
        self.tally = Tally()
        self._address = address
        self._counts = (keep_alive, closing)
        self._path = path
        self._method = method
        self._body = b"x" * body_bytes
        self._upload_s = upload_s
        self._host = host
        self._pause_s = pause_s
        self._timeout_s = timeout_s
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        for index, count in enumerate(self._counts):
            for _ in range(count):
                client = self._client(keep_alive=index == 0)
                self._tasks.append(asyncio.get_running_loop().create_task(client))

    async def stop(self) -> Tally:
        """Lets every request in hand end."""
        self._stop.set()
        await asyncio.gather(*self._tasks)
        return self.tally

    async def for_seconds(self, seconds: float) -> Tally:
        self.start()
        await asyncio.sleep(seconds)
        return await self.stop()

    async def _client(self, *, keep_alive: bool) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        close = "" if keep_alive else "Connection: close\r\n"
        head = f"{self._method} {self._path} HTTP/1.1\r\nHost: {self._host}\r\n{close}"
        length = "" if self._method == "GET" else f"Content-Length: {len(self._body)}\r\n"
        request = (head + length + "\r\n").encode()
        while not self._stop.is_set():
            if streams is not None and streams[0].at_eof():
                self.tally.stray_idle_closes += 1
                streams[1].close()
                streams = None
            start = time.monotonic()
            ok, what, release, again = False, "", "", False
            try:
                async with asyncio.timeout(self._timeout_s):
                    if streams is None:
                        streams = await self._connect()
                    await self._send(streams[1], request)
                    status, headers = await _answer(streams[0])
                ok, what = 200 <= status < 300, f"status {status}"
                release = headers.get("x-release", "")
                again = keep_alive and headers.get("connection", "").lower() != "close"
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                what = f"{type(error).__name__}: {error}"
            self.tally.add(start, ok, keep_alive, what, release)
            if not again and streams is not None:
                streams[1].close()
                streams = None
            if self._pause_s:
                await asyncio.sleep(self._pause_s)
        if streams is not None:
            streams[1].close()

    async def _send(self, writer: asyncio.StreamWriter, request: bytes) -> None:
        half = len(self._body) // 2
        writer.write(request + self._body[:half])
        if self._upload_s:
            await asyncio.sleep(self._upload_s)
        writer.write(self._body[half:])

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._address.startswith("unix://"):
            return await asyncio.open_unix_connection(self._address.removeprefix("unix://"))
        host, _, port = self._address.removeprefix("tcp://").rpartition(":")
        return await asyncio.open_connection(host.strip("[]"), int(port))


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers of one complete answer; the body is read and dropped."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split()[1])
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while True:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
            await reader.readexactly(size + 2)
            if size == 0:
                break
    elif "content-length" in headers:
        await reader.readexactly(int(headers["content-length"]))
    else:
        await reader.read()
        headers["connection"] = "close"
    return status, headers


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def main(argv: list[str]) -> int:
    """Prints one line of JSON with the tally when stdin ends (or after --seconds)."""
    parser = argparse.ArgumentParser(prog="load")
    parser.add_argument("address")
    parser.add_argument("--keep-alive", type=int, default=4)
    parser.add_argument("--closing", type=int, default=4)
    parser.add_argument("--path", default="/")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--samples", help="write every sample to this file, as JSON")
    options = parser.parse_args(argv)

    async def run() -> Tally:
        load = Load(
            options.address,
            keep_alive=options.keep_alive,
            closing=options.closing,
            path=options.path,
            host=options.host,
            pause_s=options.pause,
        )
        load.start()
        print("started", flush=True)
        if options.seconds:
            await asyncio.sleep(options.seconds)
        else:
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        return await load.stop()

    tally = asyncio.run(run())
    if options.samples:
        with open(options.samples, "w", encoding="ascii") as file:
            json.dump(tally.samples, file)
    seconds = [sample[1] for sample in tally.samples]
    result = {
        "requests": tally.requests,
        "failed": tally.failed,
        "p50_ms": round(percentile(seconds, 0.5) * 1000, 2),
        "p99_ms": round(percentile(seconds, 0.99) * 1000, 2),
        "max_ms": round(max(seconds, default=0.0) * 1000, 1),
        "seen": tally.seen,
        "failures": tally.failures,
        "idle_closes": tally.stray_idle_closes,
    }
    print(json.dumps(result), flush=True)
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
