"""The control socket against clients that mean no good: garbage, floods, silence. It answers everybody else meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import stat
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.process.limits import no_descriptor_left

from midstream.agent import control
from midstream.agent.accounts import Peer
from midstream.agent.control import CALLS_MAX, CONNECTIONS_MAX, LINE_MAX_BYTES, Connection, ControlServer
from midstream.errors import OperatorError


class Served:
    """A server in a thread of its own, with methods that show what the wire does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gone = threading.Semaphore(0)
        self.waiting = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)
        self.problems: list[dict[str, Any]] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda loop, context: self.problems.append(context))
        table = {"echo": self._echo, "wait": self._wait, "flood": self._flood, "fail": self._fail, "odd": self._odd}
        self.server = ControlServer(table, lambda connection: self.gone.release())
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.server.listen(str(path), 0o666), self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _echo(self, connection: Connection, params: dict[str, Any]) -> Any:
        return params

    async def _wait(self, connection: Connection, params: dict[str, Any]) -> Any:
        self.waiting.release()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.release()
            raise

    async def _flood(self, connection: Connection, params: dict[str, Any]) -> Any:
        """Says more than anybody may leave unread."""
        self.waiting.release()
        for _ in range(64):
            connection.notify("line", {"text": "x" * (1 << 20)})
            await asyncio.sleep(0)
        return {}

    async def _fail(self, connection: Connection, params: dict[str, Any]) -> Any:
        kinds = {"key": KeyError("x"), "zero": ZeroDivisionError("y"), "ours": OperatorError("no"), "os": OSError("z")}
        raise kinds[params["kind"]]

    async def _odd(self, connection: Connection, params: dict[str, Any]) -> Any:
        return {"no JSON": object()}

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self.path))  # blocking: with a time-out a full queue is an error at once
        sock.settimeout(30.0)
        return sock

    def connections(self) -> int:
        done: dict[str, int] = {}
        ready = threading.Event()

        def look() -> None:
            done["n"] = len(self.server._connections)
            ready.set()

        self._loop.call_soon_threadsafe(look)
        assert ready.wait(10)
        return done["n"]

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.server.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """All clients are one ordinary user."""
    folder = Path(tempfile.mkdtemp(prefix="ms-"))
    monkeypatch.setattr(control, "_peer_of", lambda sock: Peer(1, 65534, 65534))
    made = Served(folder / "a.sock")
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)
    assert made.problems == []


def _read_line(sock: socket.socket, rest: bytearray | None = None) -> dict[str, Any]:
    data = rest if rest is not None else bytearray()
    while b"\n" not in data:
        part = sock.recv(65536)
        assert part, f"hung up; had {bytes(data)[:100]!r}"
        data += part
    line, _, after = bytes(data).partition(b"\n")
    data[:] = after
    return dict(json.loads(line))


def _call(sock: socket.socket, method: str, number: int = 1, **params: Any) -> dict[str, Any]:
    sock.sendall(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode() + b"\n")
    return _read_line(sock)


def _answers(served: Served) -> bool:
    with served.connect() as sock:
        return _call(sock, "echo", text="hello")["result"] == {"text": "hello"}


def test_everybody_may_connect_from_the_first_moment(served: Served) -> None:
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o666
    assert _answers(served)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b"\xff\xfe\x00", -32700),
        (b"[" * 100_000, -32700),
        (b'{"a":' * 100_000, -32700),
        (b"1" * 10_000, -32700),
        (b'{"id":1,"method":"echo","params":{"x":NaN}}', -32700),
        (b'{"id":1,"method":"echo","params":{"x":-Infinity}}', -32700),
        (b'{"id":1,"method":"echo","params":{"x":1e999}}', -32700),
        (b'{"id":1,"method":"echo","params":{"x":"\\ud800"}}', -32700),
        (b'{"id":"\\udfff","method":"echo"}', -32700),
        (b"[]", -32600),
        (b'[{"id":1,"method":"echo"}]', -32600),
        (b"null", -32600),
        (b'"echo"', -32600),
        (b"{}", -32600),
        (b'{"id":1,"method":["echo"]}', -32600),
        (b'{"id":{"a":[]},"method":"echo"}', -32600),
        (b'{"id":[1],"method":"echo"}', -32600),
        (b'{"id":1.5,"method":"echo"}', -32600),
        (b'{"id":1,"method":"' + b"x" * 100_000 + b'"}', -32601),
        (b'{"id":1,"method":"__class__"}', -32601),
        (b'{"id":1,"method":"echo","params":[1]}', -32602),
        (b'{"id":1,"method":"echo","params":null}', -32602),
        (b'{"id":1,"method":"fail","params":{"kind":"key"}}', -32000),
        (b'{"id":1,"method":"fail","params":{"kind":"zero"}}', -32000),
        (b'{"id":1,"method":"fail","params":{"kind":"os"}}', -32000),
        (b'{"id":1,"method":"fail","params":{"kind":"ours"}}', -32000),
        (b'{"id":1,"method":"odd"}', -32000),
    ],
)
def test_bad_request_is_answered_and_harms_nothing(served: Served, line: bytes, code: int) -> None:
    with served.connect() as sock:
        sock.sendall(line + b"\n")
        answer = _read_line(sock)
        assert answer["error"]["code"] == code and len(json.dumps(answer)) < 20_000
        assert _call(sock, "echo", text="still")["result"] == {"text": "still"}
    assert _answers(served)


def test_line_without_end_is_cut_off(served: Served) -> None:
    with served.connect() as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(LINE_MAX_BYTES // 65536 * 3):
                sock.sendall(b"x" * 65536)
        with contextlib.suppress(ConnectionResetError):
            assert _read_line(sock)["error"]["code"] == -32600
            assert sock.recv(1) == b""
    assert _answers(served)


def test_calls_of_one_connection_are_bounded(served: Served) -> None:
    with served.connect() as sock:
        for number in range(CALLS_MAX):
            sock.sendall(json.dumps({"id": number, "method": "wait"}).encode() + b"\n")
        for _ in range(CALLS_MAX):
            assert served.waiting.acquire(timeout=10)
        answer = _call(sock, "echo", CALLS_MAX)
        assert answer["id"] == CALLS_MAX and answer["error"]["code"] == -32600
        assert _answers(served)
    for _ in range(CALLS_MAX):
        assert served.cancelled.acquire(timeout=10)


def test_connections_of_one_user_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 idle ones: that user is refused, with the reason; root is not."""
    idle = [served.connect() for _ in range(200)]
    try:
        refused = idle[CONNECTIONS_MAX:]
        assert "connections" in _read_line(refused[0])["error"]["message"]
        assert all(sock.recv(65536) is not None for sock in refused[1:])
        for sock in idle[:CONNECTIONS_MAX]:
            assert _call(sock, "echo", n=1)["result"] == {"n": 1}
        monkeypatch.setattr(control, "_peer_of", lambda sock: Peer(1, 0, 0))
        assert _answers(served)
    finally:
        for sock in idle:
            sock.close()
    for _ in range(CONNECTIONS_MAX):
        assert served.gone.acquire(timeout=10)
    monkeypatch.setattr(control, "_peer_of", lambda sock: Peer(1, 65534, 65534))
    _until_none_is_left(served)
    assert _answers(served), "his connections are counted although they ended"


def _until_none_is_left(served: Served) -> None:
    for _ in range(1000):
        if served.connections() == 0:
            return
        threading.Event().wait(0.01)
    raise AssertionError("connections were kept")


def test_client_that_never_reads_is_let_go(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(b'{"id":1,"method":"flood"}\n')
        assert served.waiting.acquire(timeout=10)
        assert served.gone.acquire(timeout=30), "its 64 MiB are kept for it"
        assert _answers(served)
    _until_none_is_left(served)


def test_client_that_hangs_up_half_and_never_reads_is_let_go(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted as long as anything of it is there, and that is not for ever."""
    monkeypatch.setattr(control, "_FLUSH_S", 0.2)
    with served.connect() as sock:
        text = "x" * (1 << 20)
        sock.sendall(json.dumps({"id": 1, "method": "echo", "params": {"text": text}}).encode() + b"\n")
        sock.shutdown(socket.SHUT_WR)
        assert served.gone.acquire(timeout=10)
        _until_none_is_left(served)
    assert _answers(served)


def test_client_that_is_reset_in_the_middle(served: Served) -> None:
    sock = served.connect()
    sock.sendall(b'{"id":1,"method":"wait"}\n{"id":2,"met')
    assert served.waiting.acquire(timeout=10)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    assert served.cancelled.acquire(timeout=10) and served.gone.acquire(timeout=10)
    assert _answers(served)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
_REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": _JSON,
        "id": _JSON,
        "method": st.sampled_from(["echo", "fail", "odd", "nothing"]) | _JSON,
        "params": _JSON | st.dictionaries(st.sampled_from(["kind", "app"]), _JSON),
    },
)
_LINE = (
    st.binary(max_size=200).map(lambda data: data.replace(b"\n", b" "))
    | _REQUEST.map(lambda value: json.dumps(value).encode())
    | _JSON.map(lambda value: json.dumps(value).encode())
)


def test_any_line_gets_exactly_one_answer(served: Served) -> None:
    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(_LINE, min_size=1, max_size=8))
    def fuzz(lines: list[bytes]) -> None:
        with served.connect() as sock:
            sock.sendall(b"\n".join(lines) + b"\n")
            rest = bytearray()
            for _ in lines:
                answer = _read_line(sock, rest)
                assert answer["jsonrpc"] == "2.0" and ("result" in answer) != ("error" in answer)
            assert rest == b""

    fuzz()
    assert _answers(served)


def test_socket_of_a_dead_agent_is_replaced(served: Served) -> None:
    """Another agent takes the path over; at no moment is there none."""
    before = os.stat(served.path).st_ino
    other = Served(served.path)
    try:
        assert os.stat(served.path).st_ino != before
        assert _answers(other)
    finally:
        other.close()


def test_without_a_descriptor_the_door_rests_and_whoever_waits_is_served_then(served: Served) -> None:
    """asyncio would fail, and say so, as often as it accepts at a time: 512 tracebacks each second."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with client:
        client.settimeout(30.0)
        with no_descriptor_left():
            client.connect(str(served.path))
            while not served.problems:
                served.connections()  # a turn of its loop
            told = len(served.problems)
        assert 1 <= told <= 5
        client.sendall(b'{"jsonrpc":"2.0","id":1,"method":"echo","params":{}}\n')
        assert b'"result"' in client.recv(4096)
    served.problems.clear()


def test_a_path_that_is_too_long_is_refused_by_its_name(tmp_path: Path) -> None:
    """It is bound under a longer name first."""
    room = 107 - len(str(tmp_path)) - len("/.new")
    if room < 1:
        pytest.skip("the folder of the tests has too long a path itself")
    server = ControlServer({}, lambda connection: None)
    with pytest.raises(OperatorError, match="is too long"):
        asyncio.run(server.listen(f"{tmp_path}/{'a' * (room + 1)}", 0o600))


def test_many_may_wait_in_its_queue(served: Served) -> None:
    waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(60)]
    with contextlib.ExitStack() as stack:
        for client in waiting:
            stack.enter_context(client)
            client.setblocking(False)
        held = threading.Event()
        served._loop.call_soon_threadsafe(held.wait, 30.0)
        try:
            for client in waiting:
                client.connect(str(served.path))  # BlockingIOError: its queue is full
        finally:
            held.set()
