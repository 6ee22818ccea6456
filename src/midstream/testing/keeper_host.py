"""A real keeper in folders of its own, and a blocking client for it. For tests and benchmarks, never for programs.

The client waits on the socket with a generous limit and never sleeps; `KeeperLost` of `agent.keeper_link` is its error
when the keeper is gone, `KeeperRefused` when it says no.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from midstream.agent.keeper_link import KeeperLost, KeeperRefused
from midstream.core.messages import (
    MESSAGE_MAX_BYTES,
    PROTOCOL,
    READING,
    REPLIES,
    AckRequest,
    FdPlacement,
    Hello,
    HelloRequest,
    KillTreeRequest,
    Page,
    ProcessEntry,
    ProcessKind,
    ProcessState,
    PullRequest,
    Refusal,
    SignalRequest,
    SpawnRequest,
    SpawnResult,
    SpawnSpec,
)
from midstream.core.wire import from_wire, to_wire
from midstream.keeper import image
from midstream.keeper.layout import Layout
from midstream.linux import cgroup, fds, process, tree

PATIENCE_S = 30.0
PATH = "/usr/local/bin:/usr/bin:/bin"


def spec(key: str, *argv: str, fds: Sequence[FdPlacement] = (), **more: Any) -> SpawnSpec:
    """A spawn spec with the least that is needed; `env` is added to a plain PATH."""
    env = {"PATH": PATH, **more.pop("env", {})}
    kind = more.pop("kind", ProcessKind.INSTANCE)
    return SpawnSpec(key, tuple(argv), env, more.pop("cwd", "/"), kind, fds=tuple(fds), **more)


class KeeperClient:
    """One connection. `changed` counts the notifications that came so far."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(path)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MESSAGE_MAX_BYTES)
        self.epoch = 0
        self.changed = 0
        self._number = 0
        self._buffer = bytearray(MESSAGE_MAX_BYTES)

    def close(self) -> None:
        self.sock.close()

    def receive(self, patience_s: float = PATIENCE_S) -> tuple[dict[str, Any], list[int]]:
        """The next message. Raises KeeperLost at the end of the connection, TimeoutError when none comes."""
        while True:
            if not select.select([self.sock], [], [], patience_s)[0]:
                raise TimeoutError(f"the keeper said nothing for {patience_s} s")
            try:
                packet = fds.receive(self.sock, self._buffer)
            except OSError as error:
                raise KeeperLost(str(error)) from error
            if packet is not None:
                break
        if not packet.data:
            raise KeeperLost("the keeper closed the connection")
        message: dict[str, Any] = json.loads(packet.data)
        if "changed" in message:
            self.changed += 1
        return message, packet.fds

    def reply(self) -> tuple[dict[str, Any], list[int]]:
        """The next message that is no notification."""
        while True:
            message, received = self.receive()
            if "id" in message:
                return message, received

    def send_raw(self, data: bytes, passed: Sequence[int] = ()) -> None:
        if not fds.send(self.sock, data, passed):
            raise TimeoutError("the keeper does not read")

    def ask(self, op: str, request: Any, passed: Sequence[int] = (), epoch: int | None = None) -> tuple[Any, list[int]]:
        """The typed reply of one operation, and the descriptors that came with it. Raises KeeperRefused, KeeperLost."""
        self._number += 1
        message = {"id": self._number, "op": op, **to_wire(request)}
        if op not in READING:
            message["epoch"] = self.epoch if epoch is None else epoch
        self.send_raw(json.dumps(message).encode(), passed)
        answer, received = self.reply()
        if answer.get("id") != self._number:
            raise AssertionError(f"the reply to another request: {answer}")
        if "error" in answer:
            error = answer["error"]
            raise KeeperRefused(
                Refusal(error["code"]), error["what"], errno=error.get("errno", ""), holder=error.get("holder", "")
            )
        return from_wire(REPLIES[op], answer["ok"]), received

    def do(self, op: str, request: Any, passed: Sequence[int] = ()) -> Any:
        """As `ask`; descriptors that come along are closed."""
        value, received = self.ask(op, request, passed)
        fds.close_all(received)
        return value

    def fd(self, op: str, request: Any) -> int:
        """The one descriptor that comes with the reply."""
        _, received = self.ask(op, request)
        if len(received) != 1:
            raise AssertionError(f"{op}: {len(received)} descriptors came")
        return received[0]

    def hello(self) -> Hello:
        found: Hello = self.do("hello", HelloRequest(PROTOCOL, "test"))
        self.epoch = found.epoch
        return found

    def spawn(self, *specs: SpawnSpec, passed: Sequence[int] = ()) -> tuple[SpawnResult, ...]:
        results: tuple[SpawnResult, ...] = self.do("spawn", SpawnRequest(specs), passed).results
        return results

    def signal(self, key: str, signum: int, whole: bool = False) -> int:
        count: int = self.do("signal", SignalRequest(key, signum, whole)).count
        return count

    def kill_tree(self, key: str) -> Any:
        return self.do("kill_tree", KillTreeRequest(key))

    def ack(self, *keys: str) -> tuple[str, ...]:
        kept: tuple[str, ...] = self.do("ack", AckRequest(keys)).kept
        return kept

    def entries(self, after: int = 0) -> dict[str, ProcessEntry]:
        """All entries changed after `after`, by key."""
        found: dict[str, ProcessEntry] = {}
        while True:
            page: Page = self.do("pull", PullRequest(after))
            found.update({entry.key: entry for entry in page.entries})
            if not page.more:
                return found
            after = page.entries[-1].seq

    def until(self, claim: Callable[[dict[str, ProcessEntry]], bool]) -> dict[str, ProcessEntry]:
        """All entries, once the claim holds for them; waits for `changed` in between."""
        while True:
            seen = self.changed
            found = self.entries()
            if claim(found):
                return found
            while self.changed == seen:
                self.receive()

    def until_state(self, key: str, *states: ProcessState) -> ProcessEntry:
        found = self.until(lambda entries: key in entries and entries[key].state in states)
        return found[key]

    def until_running(self, *keys: str) -> dict[str, ProcessEntry]:
        return self.until(lambda found: all(k in found and found[k].state is ProcessState.RUNNING for k in keys))

    def until_ended(self, key: str) -> ProcessEntry:
        return self.until_state(key, ProcessState.EXITED, ProcessState.FAILED, ProcessState.LOST)


class KeeperHost:
    """A keeper and its folders. Use as a context manager: at the end nothing of it is left, whatever the test did."""

    def __init__(self, agent_argv: Sequence[str] = (), folder: str | None = None, *options: str) -> None:
        self.folder = folder or tempfile.mkdtemp(prefix="keeper-")
        self.state = f"{self.folder}/state"
        self.runtime = f"{self.folder}/run"
        self.agent_argv = tuple(agent_argv)
        self.options = options
        os.chmod(self.folder, 0o711)
        self.image = image.build(self.state)
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: list[KeeperClient] = []

    @property
    def socket_path(self) -> str:
        return f"{self.runtime}/keeper.sock"

    def argv(self) -> list[str]:
        return [
            *(sys.executable, "-I", "-S", self.image, "--state", self.state, "--runtime", self.runtime),
            *("--agent-argv", json.dumps(list(self.agent_argv)), *self.options),
        ]

    def start(self) -> int:
        """Start a keeper as a child of this process and wait until its socket is open; returns its pid."""
        read_fd, write_fd = os.pipe()
        try:
            self.process = subprocess.Popen([*self.argv(), "--ready-fd", str(write_fd)], pass_fds=[write_fd])
        finally:
            os.close(write_fd)
        with open(read_fd, "rb") as ready:
            if not select.select([ready], [], [], PATIENCE_S)[0] or not ready.read(1):
                raise AssertionError(f"the keeper did not start: exit code {self.process.wait(PATIENCE_S)}")
        return self.process.pid

    def client(self, hello: bool = True) -> KeeperClient:
        client = KeeperClient(self.socket_path)
        self._clients.append(client)
        if hello:
            client.hello()
        return client

    def kill(self) -> None:
        """kill -9 the keeper, and only it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        assert self.process is not None
        return self.process.wait(PATIENCE_S)

    @property
    def keeper_id(self) -> str:
        return Layout(self.state, self.runtime).keeper_id

    def stamped(self) -> list[int]:
        """Live processes that this keeper, or one before it in these folders, has started: by stamp, and agents."""
        door = f"{self.runtime}/keeper.sock".encode()
        return [
            pid
            for pid in tree.snapshot()
            if (tree.stamp_of(pid) or ("", ""))[0] == self.keeper_id
            or (process.read_environ(pid) or {}).get(b"MIDSTREAM_KEEPER_SOCKET") == door
        ]

    def close(self) -> None:
        """End the keeper, everything it started, and its folders."""
        for client in self._clients:
            client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)
        holder = self._lock_holder()
        if holder:
            process.send_signal(*holder, signal.SIGKILL)
        while left := self.stamped():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._remove_cgroup()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _lock_holder(self) -> tuple[int, int] | None:
        """(pid, start ticks) of a keeper that was started by another one's agent."""
        try:
            with open(f"{self.state}/keeper.lock", encoding="ascii") as file:
                pid = int(file.read() or "0")
        except (OSError, ValueError):
            return None
        stat = process.read_stat(pid) if pid else None
        is_ours = stat is not None and self.state in process.read_command(pid)
        return (pid, stat.start_ticks) if stat is not None and is_ours else None

    def _remove_cgroup(self) -> None:
        root, _ = cgroup.make_root(f"midstream-{self.keeper_id}")
        pause = select.poll()
        if root is not None:
            cgroup.kill(root)  # a child that has not yet execed has no stamp, and would live on
        for _ in range(500):  # what was killed a moment ago still counts until the kernel has taken it down
            if root is None or cgroup.remove(root):
                return
            pause.poll(10)

    def __enter__(self) -> KeeperHost:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def running_keeper(agent_argv: Sequence[str] = (), *options: str) -> Iterator[KeeperHost]:
    """A keeper that serves, and nothing of it afterwards."""
    with KeeperHost(agent_argv, None, *options) as host:
        host.start()
        yield host
