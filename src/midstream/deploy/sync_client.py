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
from midstream.deploy.transport import Host, LocalHost, gave_up
from midstream.deploy.unreachable import NotNow, noisy, told_by_far_end
from midstream.errors import HostError

NoticeCallback = Callable[[str, dict[str, Any]], None]


class ConnectionLost(HostError):
    """The agent went away while a call was waiting."""


class SyncClient:
    """Blocking. Connects when made: raises OSError when nothing answers now, else a MidstreamError."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.where = host.socket_path if isinstance(host, LocalHost) else host.name
        self._link = host.dial()
        self._socket = self._link.sock
        self._buffer = bytearray()
        self._last_id = 0
        try:
            self.hello = self._greet()
            self._socket.settimeout(self._link.ping_s or None)
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
        self._link.close()

    def take_over(self) -> tuple[socket.socket, bytearray, float]:
        """For who goes on by himself: the socket, blocking, what was read of it already, and how often (seconds, 0 for
        never) an empty line is due. No more calls are to be made; `close` still closes."""
        self._socket.settimeout(None)
        return self._socket, self._buffer, self._link.ping_s

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
                message = rpc.parse_line(line, where=self.where, methods={wanted: method})
                if isinstance(message, rpc.Notice):
                    if on_notice is not None:
                        on_notice(message.method, message.params)
                elif message.id in (wanted, rpc.UNADDRESSED):
                    if message.error is not None:
                        raise message.error
                    return message.result or {}
            self._receive(method)

    def _greet(self) -> dict[str, Any]:
        """Says hello; passes over what a login shell may have printed. Raises OSError or a MidstreamError."""
        deadline_s = time.monotonic() + self._link.hello_timeout_s
        self._socket.settimeout(self._link.hello_timeout_s)
        hello = {"protocol": list(rpc.PROTOCOLS), "client": "midstream"}
        try:
            self._socket.sendall(rpc.request_line(0, "hello", hello))
        except BrokenPipeError:
            raise self._link.ended() from None
        noise = bytearray()
        while True:
            for line in rpc.split_lines(self._buffer):
                word = rpc.first_word(line)
                if word or not self._link.noise_max_bytes:
                    return self._first_answer(word or line)
                noise += line + b"\n"
            if len(noise) > self._link.noise_max_bytes:
                raise noisy(self.where, noise.decode(errors="replace"))
            self._receive_first(noise, deadline_s)

    def _first_answer(self, line: bytes) -> dict[str, Any]:
        reply = rpc.parse_line(line, where=self.where, methods={0: "hello"})
        if isinstance(reply, rpc.Reply) and reply.error is not None:
            if reply.code == rpc.NO_AGENT_CODE:
                raise NotNow(told_by_far_end(self.where, reply.error))
            raise reply.error
        hello = (reply.result if isinstance(reply, rpc.Reply) else None) or {}
        rpc.check_hello(hello, self.where)
        return hello

    def _receive_first(self, noise: bytearray, deadline_s: float) -> None:
        try:
            self._socket.settimeout(max(deadline_s - time.monotonic(), 0.001))
            data = self._socket.recv(256 * 1024)
        except TimeoutError:
            raise self._link.mute() from None
        except ConnectionError:
            data = b""
        if not data:
            raise self._link.ended((noise + self._buffer).decode(errors="replace"))
        self._buffer += data

    def _receive(self, method: str) -> None:
        while True:
            try:
                data = self._socket.recv(256 * 1024)
                break
            except TimeoutError:  # only where pings are due
                self._ping(method)
            except OSError as error:
                raise self._lost(method, str(error)) from None
        if not data:
            raise self._lost(method, self._link.last_words() or "it closed the connection")
        self._buffer += data

    def _ping(self, method: str) -> None:
        try:
            self._socket.sendall(b"\n")
        except OSError as error:
            raise self._lost(method, str(error)) from None

    def _lost(self, method: str, why: str) -> ConnectionLost:
        return ConnectionLost(
            f"the agent was lost during {method}: {why}",
            where=self.where,
            serving="services do not depend on the agent; its keeper starts it again",
            remedy="try again; if it stays away, see its log",
        )


def connect(host: Host | str, *, give_up_s: float = 5.0) -> SyncClient:
    """A client, with patience for an agent that is just being restarted by its keeper. host: or the path of a socket.

    A socket file that exists but refuses means exactly that, and so does an agent behind ssh that does not answer; a
    missing socket, a host that cannot be reached are reported at once.
    """
    if isinstance(host, str):
        host = LocalHost("", host)
    deadline = time.monotonic() + give_up_s
    pause = 0.02
    while True:
        try:
            return SyncClient(host)
        except (NotNow, ConnectionRefusedError, ConnectionResetError, TimeoutError) as error:
            last: OSError = error
        except OSError as error:
            raise gave_up(host, error, 0.0) from None
        if isinstance(last, NotNow) or time.monotonic() + pause > deadline:
            raise gave_up(host, _in_words(last), 0.0)
        time.sleep(pause)
        pause = min(pause * 2, 0.5)


def _in_words(error: OSError) -> OSError:
    if isinstance(error, ConnectionRefusedError):
        return OSError("connection refused: its socket is there, but nobody listens")
    return error
