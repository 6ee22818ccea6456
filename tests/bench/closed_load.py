"""Some patient clients beside stalled ones: `python closed_load.py PORT SECONDS PLAN`; PLAN is JSON (see `Plan`).

Sixteen clients on kept connections; each asks, waits for the answer, thinks for a while and asks again. Prints JSON:
`fast_ms`, the latency of each request that was to be answered at once, and `failed`. A request that was not answered when
the time was over counts with the time it had waited; so does one whose connection broke.

Stalled clients are connections that never go on: half a request head, or a request for 1 MB that is never read. Standard
library only, one epoll, so that the client is seldom what is late.
"""

from __future__ import annotations

import gc
import heapq
import json
import random
import resource
import select
import socket
import sys
import time
from dataclasses import dataclass, field

FAST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF = b"GET / HTTP/1.1\r\nHost: loc"
UNREAD = b"GET /download HTTP/1.1\r\nHost: localhost\r\n\r\n"
SEGMENT = 1460  # of an Ethernet; the loopback's of 64 kB would put the megabyte into one kernel buffer
SETTLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """`stalled`: none, heads or readers."""

    clients: int = 16
    think_s: float = 0.075  # mean of an exponential distribution
    slow_share: float = 0.0
    stalled: str = "none"
    stalled_count: int = 1000


@dataclass(slots=True)
class Client:
    sock: socket.socket | None = None
    asked_s: float = 0.0
    waiting: bool = False
    slow: bool = False
    answer: bytearray = field(default_factory=bytearray)


class ClosedLoad:
    def __init__(self, port: int, plan: Plan) -> None:
        self._address = ("127.0.0.1", port)
        self._plan = plan
        self._dice = random.Random(42)
        self._poll = select.epoll()
        self._by_fd: dict[int, Client] = {}
        self._due: list[tuple[float, int, Client]] = []
        self.fast_ms: list[float] = []
        self.failed = 0

    def run(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        clients = [Client() for _ in range(self._plan.clients)]
        for client in clients:
            self._think(client)
        while (now := time.monotonic()) < end_s:
            while self._due and self._due[0][0] <= now:
                self._ask(heapq.heappop(self._due)[2])
                now = time.monotonic()
            pause_s = min(end_s, self._due[0][0] if self._due else end_s) - now
            for fd, _ in self._poll.poll(max(0.0, pause_s)):
                self._read(self._by_fd[fd])
        for client in clients:
            if client.waiting:
                self._note(client)

    def _think(self, client: Client) -> None:
        due = time.monotonic() + self._dice.expovariate(1 / self._plan.think_s)
        heapq.heappush(self._due, (due, id(client), client))

    def _ask(self, client: Client) -> None:
        client.slow = self._dice.random() < self._plan.slow_share
        client.asked_s, client.waiting = time.monotonic(), True
        client.answer.clear()
        try:
            if client.sock is None:
                self._connect(client)
            assert client.sock is not None
            client.sock.sendall(SLOW if client.slow else FAST)
        except OSError:
            self._broken(client)

    def _connect(self, client: Client) -> None:
        client.sock = socket.create_connection(self._address, timeout=5)
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._by_fd[client.sock.fileno()] = client
        self._poll.register(client.sock, select.EPOLLIN)

    def _close(self, client: Client) -> None:
        if client.sock is not None:
            self._poll.unregister(client.sock)
            del self._by_fd[client.sock.fileno()]
            client.sock.close()
            client.sock = None

    def _read(self, client: Client) -> None:
        assert client.sock is not None
        try:
            data = client.sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            if client.waiting:
                self._broken(client)
            else:
                self._close(client)  # an idle connection may be closed
            return
        client.answer += data
        head, found, body = bytes(client.answer).partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.failed += 1
        self._note(client)
        if b"connection: close" in head.lower():
            self._close(client)
        self._think(client)

    def _broken(self, client: Client) -> None:
        self.failed += 1
        self._close(client)
        self._note(client)
        self._think(client)

    def _note(self, client: Client) -> None:
        client.waiting = False
        if not client.slow:
            self.fast_ms.append((time.monotonic() - client.asked_s) * 1000)


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])


def stall(port: int, plan: Plan) -> list[socket.socket]:
    """The stalled clients' connections; they have said what they are going to say."""
    stalled = []
    for _ in range(plan.stalled_count if plan.stalled != "none" else 0):
        sock = socket.socket()
        if plan.stalled == "readers":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", port))
        sock.sendall(HALF if plan.stalled == "heads" else UNREAD)
        stalled.append(sock)
    return stalled


def settle(port: int, stalled: list[socket.socket]) -> None:
    """Until the server has begun to answer whoever does not read, and has accepted all: connections are accepted in the
    order in which they came, so one that comes now is answered behind them. Not for ever: some servers never do."""
    end_s = time.monotonic() + SETTLE_S
    poll = select.poll()
    waiting = {sock.fileno() for sock in stalled}
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    while waiting and time.monotonic() < end_s:
        for fd, _ in poll.poll(max(0.0, end_s - time.monotonic()) * 1000):
            poll.unregister(fd)
            waiting.discard(fd)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=SETTLE_S) as last:
            last.sendall(FAST)
            last.recv(1000)
    except OSError:
        return


def main() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    port, plan = int(sys.argv[1]), Plan(**json.loads(sys.argv[3]))
    stalled = stall(port, plan)
    settle(port, stalled if plan.stalled == "readers" else [])
    gc.disable()  # its pauses would be taken for the server's
    load = ClosedLoad(port, plan)
    load.run(float(sys.argv[2]))
    print(json.dumps({"fast_ms": load.fast_ms, "failed": load.failed, "stalled": len(stalled)}))


if __name__ == "__main__":
    main()
