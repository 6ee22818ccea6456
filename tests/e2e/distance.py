"""A wire of some length between a client, or a proxy, and a service: what one side sends the other has later.

On loopback an idle connection's end is seen at once. A host away it is not: a request may be on its way when the server
says that it closes. That is what lingering is for, so load that is to show it goes over this wire.

What lives here: the relay, a program (`python distance.py SECONDS NAME=ADDRESS...`, until its stdin ends), and starting it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial


@dataclass
class Far:
    """addresses: name -> where to ask. late_s: by how much the relay was late at worst, known at its end: on a machine that is
    busy it lets no connection live that is not given that time."""

    addresses: Mapping[str, str]
    late_s: float = 0.0


@contextlib.contextmanager
def away(services: Mapping[str, str], seconds: float) -> Iterator[Far]:
    """Far addresses in place of those of `services`. seconds: for one way."""
    named = [f"{name}={address}" for name, address in services.items()]
    process = subprocess.Popen(
        [sys.executable, __file__, str(seconds), *named], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        ports = json.loads(process.stdout.readline())
        far = Far({name: f"tcp://127.0.0.1:{port}" for name, port in ports.items()})
        yield far
        assert process.poll() is None, "the relay ended"
        process.stdin.close()
        far.late_s = float(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(20.0)


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """address: `tcp://HOST:PORT` or `unix:///PATH`."""
    if address.startswith("unix://"):
        return await asyncio.open_unix_connection(address.removeprefix("unix://"))
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def _one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Until the end of what `reader` sends, which arrives as late as the rest. A reset arrives as one."""
    loop = asyncio.get_running_loop()
    sent: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            sent_s, data = await sent.get()
            await asyncio.sleep(sent_s + seconds - loop.time())
            if data is None:
                writer.transport.abort()
                return
            if not data:
                if writer.can_write_eof() and not writer.is_closing():
                    writer.write_eof()
                return
            if not writer.is_closing():
                writer.write(data)

    delivery = asyncio.create_task(deliver())
    data: bytes | None = b"-"
    while data:
        try:
            data = await reader.read(65536)
        except OSError:
            data = None
        sent.put_nowait((loop.time(), data))
    with contextlib.suppress(OSError):
        await delivery


async def _carry(address: str, seconds: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(seconds)
    try:
        far_reader, far_writer = await connect(address)
    except OSError:
        writer.transport.abort()
        return
    with contextlib.suppress(asyncio.CancelledError):  # at the relay's own end
        await asyncio.gather(_one_way(reader, far_writer, seconds), _one_way(far_reader, writer, seconds))
    writer.close()
    far_writer.close()


async def _lateness() -> None:
    """Says by how much a sleep was too long at worst, at the end."""
    worst_s = 0.0
    try:
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(0.05)
            worst_s = max(worst_s, time.monotonic() - began_s - 0.05)
    finally:
        print(round(worst_s, 3), flush=True)


async def _run(seconds: float, services: Mapping[str, str]) -> None:
    watch = asyncio.create_task(_lateness())
    ports = {}
    for name, address in services.items():
        server = await asyncio.start_server(partial(_carry, address, seconds), "127.0.0.1", 0)
        ports[name] = server.sockets[0].getsockname()[1]
    print(json.dumps(ports), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    watch.cancel()


if __name__ == "__main__":
    named = dict(word.split("=", 1) for word in sys.argv[2:])
    asyncio.run(_run(float(sys.argv[1]), named))
