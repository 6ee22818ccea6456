"""The blocking client of one agent, for commands that ask one thing: `status`, `why`, `logs`, `restart` …

Starts fast: no asyncio. One call at a time, notifications to a callback; a lost connection is an error,
`ConnectionLost`, upon which a caller that follows something may connect again.
Runs in the command line.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from midstream.deploy import rpc
from midstream.deploy.unreachable import no_agent, not_allowed
from midstream.errors import HostError

HELLO_TIMEOUT_S = 10.0  # accepted but mute counts as not there

NoticeCallback = Callable[[str, dict[str, Any]], None]


class ConnectionLost(HostError):
    """The agent went away while a call was waiting."""


class SyncClient:
    """Blocking. Connects when made: raises HostError (`no agent answers`) or NotAllowedError."""

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path
        self._socket = _connected(socket_path)
        self._buffer = bytearray()
        self._last_id = 0
        self._socket.settimeout(HELLO_TIMEOUT_S)
        try:
            self.hello = self.call("hello", protocol=list(rpc.PROTOCOLS), client="midstream")
            rpc.check_hello(self.hello, socket_path)
            self._socket.settimeout(None)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, /, *, on_notice: NoticeCallback | None = None, **params: Any) -> dict[str, Any]:
        """The answer; blocks as long as the agent works on it. Raises what the agent sent, or ConnectionLost."""
        self._last_id += 1
        wanted = self._last_id
        try:
            self._socket.sendall(rpc.request_line(wanted, method, params))
        except OSError as error:
            raise self._lost(method, str(error)) from None
        while True:
            for line in rpc.split_lines(self._buffer):
                message = rpc.parse_line(line, where=self.socket_path, methods={wanted: method})
                if isinstance(message, rpc.Notice):
                    if on_notice is not None:
                        on_notice(message.method, message.params)
                elif message.id == wanted:
                    if message.error is not None:
                        raise message.error
                    return message.result or {}
            self._receive(method)

    def _receive(self, method: str) -> None:
        try:
            data = self._socket.recv(256 * 1024)
        except OSError as error:
            raise self._lost(method, str(error)) from None
        if not data:
            raise self._lost(method, "it closed the connection")
        self._buffer += data

    def _lost(self, method: str, why: str) -> ConnectionLost:
        return ConnectionLost(
            f"the agent was lost during {method}: {why}",
            where=self.socket_path,
            serving="services do not depend on the agent; its keeper starts it again",
            remedy="try again; if it stays away, see its log",
        )


def connect(socket_path: str, *, give_up_s: float = 5.0) -> SyncClient:
    """A client, with patience for an agent that is just being restarted by its keeper.

    A socket file that exists but refuses means exactly that; a missing one is reported at once.
    """
    deadline = time.monotonic() + give_up_s
    pause = 0.02
    while True:
        try:
            return SyncClient(socket_path)
        except ConnectionLost as error:
            last: HostError = error
        except ConnectionRefusedError:
            last = no_agent(socket_path, "connection refused: its socket is there, but nobody listens")
        except OSError as error:
            raise no_agent(socket_path, str(error)) from None
        if time.monotonic() + pause > deadline:
            raise last
        time.sleep(pause)
        pause = min(pause * 2, 0.5)


def _connected(socket_path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(socket_path)
    except PermissionError as error:
        sock.close()
        raise not_allowed(socket_path) from error
    except BaseException:
        sock.close()
        raise
    return sock
