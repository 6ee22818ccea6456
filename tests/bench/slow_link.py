"""A TCP proxy that delays: `slow_link.py ADDRESS DELAY_MS TARGET...` (TARGET: HOST:PORT).

Listens on a free port of ADDRESS for each target, prints the ports, one a line, then `ready`. Each byte arrives DELAY_MS
after it was sent, in both directions; the bandwidth is not limited. On SIGTERM it prints `UP DOWN` (bytes to the targets,
bytes from them) and ends.
"""

from __future__ import annotations

import asyncio
import signal
import sys


class Link:
    """All connections of one run of the proxy. Counts bytes."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.up = 0
        self.down = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
    ) -> None:
        await asyncio.sleep(self.delay_s)  # the handshake waits for an answer as well
        far_reader, far_writer = await asyncio.open_connection(host, port)
        await asyncio.sleep(self.delay_s)
        for task in (
            asyncio.create_task(self._carry(reader, far_writer, True)),
            asyncio.create_task(self._carry(far_reader, writer, False)),
        ):
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivering = asyncio.create_task(self._deliver(queue, writer))
        loop = asyncio.get_running_loop()
        try:
            while data := await reader.read(65536):
                if up:
                    self.up += len(data)
                else:
                    self.down += len(data)
                queue.put_nowait((loop.time() + self.delay_s, data))
        except OSError:
            pass  # its end is told to the other side as an end
        queue.put_nowait((loop.time() + self.delay_s, b""))
        await delivering

    async def _deliver(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                due_s, data = await queue.get()
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()


async def main(address: str, delay_s: float, targets: list[str]) -> None:
    link = Link(delay_s)
    for target in targets:
        host, _, port = target.rpartition(":")

        def accept(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str = host, port: str = port
        ) -> None:
            task = asyncio.ensure_future(link.connection(reader, writer, host, int(port)))
            link.tasks.add(task)
            task.add_done_callback(link.tasks.discard)

        server = await asyncio.start_server(accept, address, 0)
        print(server.sockets[0].getsockname()[1])
    print("ready", flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    print(link.up, link.down, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]) / 1000, sys.argv[3:]))
