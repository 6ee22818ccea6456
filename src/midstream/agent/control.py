"""The control socket: JSON-RPC 2.0, one message a line; who may do what is asked of `accounts`. See docs/control-protocol.md.

Lives here: the wire and the table of methods. Not here: what they do. Runs in the agent's loop.

Any user of the host may connect, so everything is bounded: a line, what waits for a client that does not read, calls of a
connection, connections of a user. No client can block the agent, fill its memory, or take its descriptors.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from midstream.agent.accounts import Peer
from midstream.agent.keeper_link import KeeperLost, KeeperRefused
from midstream.core.generation import IllegalTransition
from midstream.errors import BugError, HostError, MidstreamError, OperatorError

LINE_MAX_BYTES = 2 << 20
CALLS_MAX = 64  # at a time, of one connection
CONNECTIONS_MAX = 64  # of one user who is neither root nor the agent's own
_BUFFER_MAX_BYTES = 16 << 20
_FLUSH_S = 10.0
_BACKLOG = 512
_PATH_MAX_BYTES = 107  # unix(7)
_AT_A_TIME = 1  # out of descriptors asyncio fails, tells, and tries again in a second, each so many times
OUR_ERROR = -32000


class Connection:
    """One client. `notify` never waits; a client that lags too far behind is dropped."""

    def __init__(self, writer: asyncio.StreamWriter, peer: Peer) -> None:
        self._writer = writer
        self.peer = peer
        self.deploys: set[tuple[str, str]] = set()  # (app, deploy id) that this connection keeps alive

    def notify(self, method: str, params: dict[str, Any]) -> None:
        self._send({"jsonrpc": "2.0", "method": method, "params": params})

    def answer(self, number: Any, result: Any) -> None:
        self._send({"jsonrpc": "2.0", "id": number, "result": result})

    def refuse(self, number: Any, code: int, message: str, data: dict[str, Any] | None = None) -> None:
        error: dict[str, Any] = {"code": code, "message": message}
        if data is not None:
            error["data"] = data
        self._send({"jsonrpc": "2.0", "id": number, "error": error})

    def _send(self, message: dict[str, Any]) -> None:
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > _BUFFER_MAX_BYTES:
            transport.abort()
            return
        self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    async def keep_pace(self) -> None:
        """Waits while the client is behind: for streams that can wait."""
        await self._writer.drain()

    @property
    def is_gone(self) -> bool:
        return self._writer.is_closing()


Method = Callable[[Connection, dict[str, Any]], Awaitable[Any]]


class ControlServer:
    """`methods`: name -> coroutine. `on_gone`: told of each connection that ended."""

    def __init__(self, methods: dict[str, Method], on_gone: Callable[[Connection], None]) -> None:
        self._methods = methods
        self._on_gone = on_gone
        self._server: asyncio.Server | None = None
        self._path = ""
        self._connections: set[asyncio.Task[None]] = set()
        self._of_uid: Counter[int] = Counter()

    async def listen(self, path: str, mode: int) -> None:
        """Binds the socket; one that a dead agent left is replaced. Raises HostError."""
        temporary = f"{path}.new"
        if len(os.fsencode(temporary)) > _PATH_MAX_BYTES:
            raise OperatorError(f"the path of the control socket is too long: {path}", remedy="use a shorter --socket")
        folder = os.path.dirname(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.makedirs(folder, mode=0o755, exist_ok=True)
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            os.fchmod(listener.fileno(), mode)  # bind(2) takes it from the socket, less the umask
            umask = os.umask(0)
            try:
                listener.bind(temporary)
            finally:
                os.umask(umask)
            listener.setblocking(False)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listener, limit=LINE_MAX_BYTES, backlog=_AT_A_TIME
            )
            listener.listen(_BACKLOG)  # asyncio makes the queue as long as it accepts at a time
            os.rename(temporary, path)  # never a moment without a socket to connect to
        except OSError as error:
            if self._server is not None:
                self._server.close()
            listener.close()
            raise HostError(
                f"the control socket cannot be made: {error.strerror}",
                where=path,
                remedy="name a folder that this user may write in: --socket or --runtime",
            ) from error
        self._path = path

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        peer = _peer_of(writer.get_extra_info("socket"))
        connection = Connection(writer, peer)
        self._connections.add(task)
        self._of_uid[peer.uid] += 1
        try:
            if self._of_uid[peer.uid] > CONNECTIONS_MAX and peer.uid not in (0, os.getuid()):
                what = f"{peer.name} has {CONNECTIONS_MAX} connections to this agent already"
                connection.refuse(None, OUR_ERROR, what, HostError(what, remedy="end some of them").to_wire())
            else:
                await self._converse(reader, connection)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            await self._let_go(writer)
            self._connections.discard(task)
            self._of_uid[peer.uid] -= 1
            if not self._of_uid[peer.uid]:
                del self._of_uid[peer.uid]

    async def _converse(self, reader: asyncio.StreamReader, connection: Connection) -> None:
        """Line by line, until the client goes away."""
        calls: set[asyncio.Task[None]] = set()
        try:
            while True:
                try:
                    line = await reader.readline()
                except ValueError:
                    connection.refuse(None, -32600, f"a message is longer than {LINE_MAX_BYTES} bytes")
                    return
                if not line:
                    return
                if len(calls) >= CALLS_MAX:
                    connection.refuse(_id_of(line), -32600, f"more than {CALLS_MAX} calls at a time on one connection")
                    continue
                call = asyncio.get_running_loop().create_task(self._call(connection, line))
                calls.add(call)
                call.add_done_callback(calls.discard)
        finally:
            for call in list(calls):
                call.cancel()
            self._on_gone(connection)

    async def _let_go(self, writer: asyncio.StreamWriter) -> None:
        """What was said last is sent, to a client that takes it; one that does not read is not waited for for ever."""
        writer.close()
        try:
            await asyncio.wait_for(writer.wait_closed(), _FLUSH_S)
        except (OSError, asyncio.CancelledError):  # TimeoutError is an OSError
            writer.transport.abort()

    async def _call(self, connection: Connection, line: bytes) -> None:
        try:
            message = _parsed(line)
        except (ValueError, RecursionError):
            connection.refuse(None, -32700, "not JSON")
            return
        if not isinstance(message, dict) or not isinstance(message.get("method"), str):
            connection.refuse(None, -32600, "not a JSON-RPC request")
            return
        number, name, params = message.get("id"), message["method"], message.get("params", {})
        if not isinstance(number, int | str | None):
            connection.refuse(None, -32600, "an id is a number or a text")
            return
        method = self._methods.get(name)
        if method is None:
            connection.refuse(number, -32601, f"there is no method {name[:100]!r}")
            return
        if not isinstance(params, dict):
            connection.refuse(number, -32602, "params must be an object")
            return
        try:
            connection.answer(number, await method(connection, params))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the one boundary at which everything becomes an answer
            translated = translate(error)
            connection.refuse(number, OUR_ERROR, translated.what, translated.to_wire())


def _parsed(line: bytes) -> Any:
    """The JSON in a line. Raises ValueError, also for numbers that are none and for halves of surrogate pairs, which could
    be stored and printed nowhere; RecursionError."""
    text = line.decode()
    message = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    if "\\u" in text:
        json.dumps(message, ensure_ascii=False).encode()
    return message


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _id_of(line: bytes) -> int | str | None:
    try:
        message = _parsed(line)
    except (ValueError, RecursionError):
        return None
    number = message.get("id") if isinstance(message, dict) else None
    return number if isinstance(number, int | str) else None


def translate(error: Exception) -> MidstreamError:
    """Whatever a method raised, as one of ours."""
    if isinstance(error, KeeperLost):
        return HostError("the keeper is away; it is being started again", remedy="try again in a moment")
    if isinstance(error, KeeperRefused):
        return HostError(
            f"the keeper refused: {error.what}",
            detail=error.holder,
            remedy="midstream why SERVICE shows what led here; `midstream doctor` looks at the host",
        )
    if isinstance(error, MidstreamError):
        return error
    if isinstance(error, IllegalTransition):
        return OperatorError(f"not now: {error}", remedy="midstream status tells what is under way")
    if isinstance(error, KeyError | TypeError | ValueError | ArithmeticError | AttributeError | LookupError):
        import traceback

        return BugError(f"{type(error).__name__}: {error}", detail=traceback.format_exc())
    return HostError(
        f"{type(error).__name__}: {error}",
        remedy="mend what is named (disk, permissions, limits), then repeat the command: `midstream doctor` looks at the host",
    )


def _peer_of(connection: socket.socket) -> Peer:
    """SO_PEERCRED: who connected, as the kernel knows it (unix(7))."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return Peer(*struct.unpack("3i", packed))
