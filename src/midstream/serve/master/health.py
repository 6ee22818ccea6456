"""Asking a new generation, on its private listener, whether it is well: one HTTP request, in the master's loop.

What lives here: the request, reading the status, the deadline. What must not: what follows from it. Nothing blocks.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from midstream.linux.timers import Timer
from midstream.serve.loop import Loop
from midstream.serve.settings import Settings

_HEAD_MAX_BYTES = 65536


def request_of(settings: Settings) -> bytes:
    """The bytes of the request, as the settings describe it."""
    lines = [f"GET {settings.health_path} HTTP/1.1", f"Host: {settings.health_host}"]
    if settings.health_scheme == "https":
        lines.append("X-Forwarded-Proto: https")
    lines += [*settings.health_headers, "User-Agent: midstream-health", "Accept: */*", "Connection: close"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def verdict(head: bytes, wanted: tuple[int, ...]) -> str:
    """ "" for a healthy answer, else what is wrong. wanted: statuses; empty: any 2xx."""
    line = head.split(b"\r\n", 1)[0].decode("latin-1")
    words = line.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdecimal():
        return f"it answered with no HTTP: {line[:80]!r}"
    status = int(words[1])
    if status in wanted or (not wanted and 200 <= status < 300):
        return ""
    location = next((item for item in head.decode("latin-1").split("\r\n") if item.lower().startswith("location:")), "")
    return f"it answered {' '.join(words[1:])}" + (f" ({location})" if location else "")


class HealthCheck:
    """Runs from its making on; done("") or done(what is wrong), once. cancel(): never."""

    def __init__(
        self, loop: Loop, listener: socket.socket, settings: Settings, limit_s: float, done: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._done: Callable[[str], None] | None = done
        self._wanted = settings.health_status
        self._path = settings.health_path
        self._request = request_of(settings)
        self._head = b""
        self._timer: Timer = loop.after(limit_s, lambda: self._end(f"no answer within {limit_s:g} s"))
        self._sock = socket.socket(listener.family, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        result = self._sock.connect_ex(listener.getsockname())
        if result not in (0, errno.EINPROGRESS, errno.EAGAIN):
            loop.after(0, lambda: self._end(os.strerror(result)))
            return
        loop.watch(self._sock.fileno(), self._readable)
        loop.watch_writable(self._sock.fileno(), self._writable)

    def cancel(self) -> None:
        self._done = None
        self._close()

    def _writable(self) -> None:
        failure = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            self._end(os.strerror(failure))
            return
        try:
            self._request = self._request[self._sock.send(self._request) :]
        except BlockingIOError:
            return
        except OSError as error:
            self._end(str(error.strerror))
            return
        if not self._request:
            self._loop.watch_writable(self._sock.fileno(), None)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(str(error.strerror))
            return
        self._head += data
        if b"\r\n\r\n" in self._head:
            self._end(verdict(self._head.split(b"\r\n\r\n", 1)[0], self._wanted))
        elif not data or len(self._head) > _HEAD_MAX_BYTES:
            self._end("it closed the connection without an answer" if not self._head else "its answer has no end")

    def _end(self, trouble: str) -> None:
        done, self._done = self._done, None
        self._close()
        if done is not None:
            done(f"GET {self._path}: {trouble}" if trouble else "")

    def _close(self) -> None:
        self._timer.cancel()
        if self._sock.fileno() >= 0:
            self._loop.forget(self._sock.fileno())
            self._sock.close()
