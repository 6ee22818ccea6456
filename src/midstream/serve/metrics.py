"""Metrics of all workers of all generations, as Prometheus reads them (text format 0.0.4), and the door where they are read.

The numbers are those of the boards, so nobody has to ask a worker. The door is in the loop of the master, or of the zygote
that runs alone: no thread, and a reader that stands still costs a connection of sixteen and is hung up on. What must not
live here: counting. Each generation has series of its own; rate() over their sum is right, whichever comes and goes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from midstream.errors import MidstreamError
from midstream.linux.accepting import accept
from midstream.linux.timers import Timer
from midstream.serve import listening
from midstream.serve.board import LATENCY_BUCKETS_S, Row, add_up
from midstream.serve.loop import Loop

_CONNECTIONS_MAX = 16
_REQUEST_MAX_BYTES = 8192
_PATIENCE_S = 10.0
_AGAIN_S = 1.0
_CLASS_NAMES = ("other", "1xx", "2xx", "3xx", "4xx", "5xx")


@dataclass(frozen=True, slots=True)
class View:
    """One generation: who it is, what it does now (`serving`, `draining` …), the rows of its board."""

    release: str
    generation: int
    state: str
    workers_wanted: int
    rows: Sequence[Row]
    cut_requests: int = 0
    cut_websockets: int = 0


def text(views: Iterable[View]) -> str:
    """One page for all generations."""
    every = sorted(views, key=lambda view: view.generation)
    lines: list[str] = []
    for name, kind, help_text, samples in _FAMILIES:
        found = [line for view in every for line in samples(name, view)]
        if found:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", *found]
    return "\n".join(lines) + "\n"


def _labels(view: View, **more: str) -> str:
    pairs = {"release": view.release, "generation": str(view.generation), **more}
    return ",".join(f'{name}="{_quoted(value)}"' for name, value in pairs.items())


def _quoted(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _sum(columns: Iterable[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*columns, strict=True)]


def _requests(name: str, view: View) -> Iterator[str]:
    counts = _sum(row.by_class for row in view.rows) or [0] * len(_CLASS_NAMES)
    for code, count in zip(_CLASS_NAMES, counts, strict=True):
        if count or code == "2xx":
            yield f"{name}{{{_labels(view, code=code)}}} {count}"


def _refused(name: str, view: View) -> Iterator[str]:
    counts: dict[int, int] = {}
    for row in view.rows:
        for status, count in row.refused.items():
            counts[status] = counts.get(status, 0) + count
    for status, count in sorted(counts.items()):
        yield f"{name}{{{_labels(view, code=str(status or 'other'))}}} {count}"


def _bytes(name: str, view: View) -> Iterator[str]:
    yield f"{name}{{{_labels(view)}}} {sum(row.bytes_sent for row in view.rows)}"


def _duration(name: str, view: View) -> Iterator[str]:
    counts = _sum(row.latency for row in view.rows) or [0] * (len(LATENCY_BUCKETS_S) + 1)
    below = 0
    for bound, count in zip((*(f"{bound:g}" for bound in LATENCY_BUCKETS_S), "+Inf"), counts, strict=True):
        below += count
        yield f"{name}_bucket{{{_labels(view, le=bound)}}} {below}"
    yield f"{name}_sum{{{_labels(view)}}} {sum(row.seconds for row in view.rows):.6f}"
    yield f"{name}_count{{{_labels(view)}}} {below}"


def _in_hand(name: str, view: View) -> Iterator[str]:
    traffic = add_up(row.traffic for row in view.rows)
    yield f"{name}{{{_labels(view, kind='requests')}}} {traffic.in_flight}"
    yield f"{name}{{{_labels(view, kind='idle_connections')}}} {traffic.idle}"
    yield f"{name}{{{_labels(view, kind='websockets')}}} {traffic.websockets}"


def _oldest(name: str, view: View) -> Iterator[str]:
    yield f"{name}{{{_labels(view)}}} {add_up(row.traffic for row in view.rows).oldest_s:.3f}"


def _workers(name: str, view: View) -> Iterator[str]:
    yield f"{name}{{{_labels(view, state=view.state)}}} {sum(1 for row in view.rows if row.pid)}"


def _wanted(name: str, view: View) -> Iterator[str]:
    yield f"{name}{{{_labels(view)}}} {view.workers_wanted}"


def _cuts(name: str, view: View) -> Iterator[str]:
    yield f"{name}{{{_labels(view, kind='requests')}}} {view.cut_requests}"
    yield f"{name}{{{_labels(view, kind='websockets')}}} {view.cut_websockets}"


_P = "midstream_serve_"
_FAMILIES: tuple[tuple[str, str, str, Callable[[str, View], Iterator[str]]], ...] = (
    (_P + "requests_total", "counter", "Requests that the app answered, by class of status.", _requests),
    (_P + "refused_total", "counter", "Requests refused before the app saw them, by status.", _refused),
    (_P + "sent_bytes_total", "counter", "Bytes of bodies sent.", _bytes),
    (
        _P + "request_duration_seconds",
        "histogram",
        "From the request's first byte to the end of its answer.",
        _duration,
    ),
    (_P + "in_hand", "gauge", "Requests, idle connections and WebSockets in hand.", _in_hand),
    (_P + "oldest_request_seconds", "gauge", "Age of the oldest request in hand.", _oldest),
    (_P + "workers", "gauge", "Workers alive, by what their generation does.", _workers),
    (_P + "workers_wanted", "gauge", "Workers that there are to be.", _wanted),
    (_P + "cut_total", "counter", "Requests and WebSockets that a drain had to cut.", _cuts),
)


class Door:
    """Answers GET /metrics on an address of its own, in the loop of the master or the zygote. page: makes the text."""

    def __init__(self, loop: Loop, page: Callable[[], str], complain: Callable[[str], None]) -> None:
        self._loop = loop
        self._page = page
        self._complain = complain
        self._address = ""
        self._sock: socket.socket | None = None
        self._again: Timer | None = None
        self._guests: dict[int, _Guest] = {}

    def open(self, address: str) -> None:
        """From now on there; "": nowhere. What is open there already stays. An address that somebody has is tried again
        each second, for the generation before may be about to leave it; that is said once. Never raises."""
        if address == self._address:
            return
        self.close()
        self._address = address
        if address:
            self._bind(said=False)

    def _bind(self, said: bool) -> None:
        try:
            sock = listening.bind(self._address, 64, listening.Account())
        except MidstreamError as error:
            if not said:
                self._complain(f"--metrics {self._address}: {error.what}; tried again each second")
            self._again = self._loop.after(_AGAIN_S, lambda: self._bind(said=True))
            return
        self._again = None
        sock.setblocking(False)
        self._sock = sock
        self._loop.watch(sock.fileno(), self._knock)

    def close(self) -> None:
        """Also for the next who wants the address."""
        self._address = ""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._sock is not None:
            self._loop.forget(self._sock.fileno())
            path = self._sock.getsockname() if self._sock.family == socket.AF_UNIX else ""
            self._sock.close()
            self._sock = None
            if isinstance(path, str) and path.startswith("/") and os.path.exists(path):
                os.unlink(path)
        for guest in list(self._guests.values()):
            guest.leave()

    def close_in_child(self) -> None:
        """After a fork, in the child, whose loop is gone already."""
        if self._sock is not None:
            self._sock.close()
        for guest in self._guests.values():
            guest.sock.close()

    def _knock(self) -> None:
        assert self._sock is not None
        sock = accept(self._sock, partial(self._loop.rest, self._sock.fileno()))
        if sock is None:
            return
        if len(self._guests) >= _CONNECTIONS_MAX:
            sock.close()
            return
        sock.setblocking(False)
        self._guests[sock.fileno()] = _Guest(self._loop, sock, self._page, self._guests)


class _Guest:
    """One connection, for one request."""

    def __init__(self, loop: Loop, sock: socket.socket, page: Callable[[], str], guests: dict[int, _Guest]) -> None:
        self.sock = sock
        self._loop = loop
        self._page = page
        self._guests = guests
        self._came = b""
        self._rest = b""
        self._patience = loop.after(_PATIENCE_S, self.leave)
        loop.watch(sock.fileno(), self._read)

    def leave(self) -> None:
        self._patience.cancel()
        self._guests.pop(self.sock.fileno(), None)
        self._loop.forget(self.sock.fileno())
        self.sock.close()

    def _read(self) -> None:
        try:
            data = self.sock.recv(_REQUEST_MAX_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._came += data
        if not data or len(self._came) > _REQUEST_MAX_BYTES:
            self.leave()
        elif b"\r\n\r\n" in self._came and not self._rest:
            self._rest = answer(self._came, self._page)
            self._write()

    def _write(self) -> None:
        try:
            self._rest = self._rest[self.sock.send(self._rest) :]
        except BlockingIOError:
            pass
        except OSError:
            self._rest = b""
        if self._rest:
            self._loop.watch_writable(self.sock.fileno(), self._write)
        else:
            self.leave()


def answer(request: bytes, page: Callable[[], str]) -> bytes:
    """The whole answer to one request, which is the last of its connection."""
    words = request.split(b"\r\n", 1)[0].split(b" ")
    method, target = (words[0], words[1].split(b"?")[0]) if len(words) == 3 else (b"", b"")
    if not method:
        status, body = "400 Bad Request", "bad request\n"
    elif method not in (b"GET", b"HEAD"):
        status, body = "405 Method Not Allowed", "GET /metrics\n"
    elif target != b"/metrics":
        status, body = "404 Not Found", "GET /metrics\n"
    else:
        try:
            status, body = "200 OK", page()
        except Exception as error:  # a bug of ours in a page must not end the master
            status, body = "500 Internal Server Error", f"{type(error).__name__}: {error}\n"
    data = body.encode()
    kind = "text/plain; version=0.0.4; charset=utf-8"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if method == b"HEAD" else data)
