"""The control socket: JSON-RPC 2.0, one message a line; who may do what is asked of `accounts`. See docs/control-protocol.md.

Lives here: the wire and the table of methods. Not here: what they do. Runs in the agent's loop. A client that does not read
is let go when its buffer is full; it can neither block the agent nor fill its memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from midstream.agent.accounts import Peer
from midstream.agent.keeper_link import KeeperLost, KeeperRefused
from midstream.core.generation import IllegalTransition
from midstream.errors import BugError, HostError, MidstreamError, OperatorError

LINE_MAX_BYTES = 8 << 20
_BUFFER_MAX_BYTES = 16 << 20
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
        if self._writer.is_closing():
            return
        transport = self._writer.transport
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

    async def listen(self, path: str, mode: int) -> None:
        """Binds the socket; one that a dead agent left is replaced. Raises HostError."""
        if len(os.fsencode(path)) > 107:
            raise OperatorError(f"the path of the control socket is too long: {path}", remedy="use a shorter --socket")
        folder = os.path.dirname(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        temporary = f"{path}.new"
        try:
            os.makedirs(folder, mode=0o755, exist_ok=True)
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            listener.bind(temporary)
            os.chmod(temporary, mode)
            listener.listen(128)
            os.rename(temporary, path)  # never a moment without a socket to connect to
        except OSError as error:
            listener.close()
            raise HostError(f"the control socket cannot be made: {error.strerror}", where=path) from error
        listener.setblocking(False)
        self._path = path
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=LINE_MAX_BYTES)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        connection = Connection(writer, _peer_of(writer.get_extra_info("socket")))
        calls: set[asyncio.Task[None]] = set()
        try:
            while True:
                try:
                    line = await reader.readline()
                except ValueError:
                    connection.refuse(None, -32600, f"a message is longer than {LINE_MAX_BYTES} bytes")
                    break
                if not line:
                    break
                call = asyncio.get_running_loop().create_task(self._call(connection, line))
                calls.add(call)
                call.add_done_callback(calls.discard)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            for call in list(calls):
                call.cancel()
            self._on_gone(connection)
            writer.close()

    async def _call(self, connection: Connection, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            connection.refuse(None, -32700, "not JSON")
            return
        if not isinstance(message, dict) or not isinstance(message.get("method"), str):
            connection.refuse(None, -32600, "not a JSON-RPC request")
            return
        number, name, params = message.get("id"), message["method"], message.get("params", {})
        method = self._methods.get(name)
        if method is None:
            connection.refuse(number, -32601, f"there is no method {name!r}")
            return
        if not isinstance(params, dict):
            connection.refuse(number, -32602, "params must be an object")
            return
        try:
            result = await method(connection, params)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the one boundary at which everything becomes an answer
            translated = translate(error)
            connection.refuse(number, OUR_ERROR, translated.what, translated.to_wire())
            return
        connection.answer(number, result)


def translate(error: Exception) -> MidstreamError:
    """Whatever a method raised, as one of ours."""
    if isinstance(error, KeeperLost):
        return HostError("the keeper is away; it is being started again", remedy="try again in a moment")
    if isinstance(error, KeeperRefused):
        return HostError(f"the keeper refused: {error.what}", detail=error.holder)
    if isinstance(error, MidstreamError):
        return error
    if isinstance(error, IllegalTransition):
        return OperatorError(f"not now: {error}", remedy="midstream status tells what is under way")
    if isinstance(error, KeyError | TypeError | ValueError):
        import traceback

        return BugError(f"{type(error).__name__}: {error}", detail=traceback.format_exc())
    return HostError(f"{type(error).__name__}: {error}")


def _peer_of(connection: socket.socket) -> Peer:
    """SO_PEERCRED: who connected, as the kernel knows it (unix(7))."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return Peer(*struct.unpack("3i", packed))
