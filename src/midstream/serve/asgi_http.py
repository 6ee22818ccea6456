"""One HTTP connection to an ASGI app: uvicorn's httptools protocol with our limits, checks, deadlines and endings.

Differs from uvicorn's: what is refused is refused in its turn and closes; trailers, and `Upgrade` on a request with a
body, cannot smuggle; no timer a request; we close by SHUT_WR and a bounded discard. What must not live here: the answer
(`asgi_answer.py`), WebSocket frames (`websockets.py`), which heads are good (`asgi_heads.py`). Runs in a worker, on its
event loop.
"""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from midstream.serve.asgi_answer import Exchange
from midstream.serve.asgi_heads import Verdict, judge, misread, split_target
from midstream.serve.asgi_outline import Outline
from midstream.serve.asgi_wire import PlainTransport
from midstream.serve.connections import NEVER
from midstream.serve.contract import Answered, Listener
from midstream.serve.limits import (
    CHUNK_LINE_BYTES,
    DISCARD_BYTES,
    DISCARD_S,
    NEVER_TRAILERS,
    REASONS,
    TRAILER_BYTES,
    Refused,
    exceeded,
)
from midstream.serve.websockets import WebSocketConnection
from midstream.serve.wire import has_sent

if TYPE_CHECKING:
    from midstream.serve.asgi_premises import Premises


LOGGER = logging.getLogger("uvicorn.error")
FRAMING_BYTES = CHUNK_LINE_BYTES + TRAILER_BYTES  # at a stretch, without a byte of the body

PIECE_BYTES = 8192
AHEAD_REQUESTS = 32  # that wait behind the one in hand, about: those of one piece are not torn apart


class HttpConnection(HttpToolsProtocol):
    """From the accept to the end, or to the upgrade to a WebSocket. Times are CLOCK_MONOTONIC, as the loop has it."""

    def __init__(
        self,
        config: Config,
        premises: Premises,
        app_state: dict[str, Any],
        listener: Listener,
        client: tuple[str, int] | None,
        server: tuple[str, int | None] | None,
    ) -> None:
        # Not uvicorn's, which looks up loggers each time. What it sets and nobody reads here is left out.
        self.config = config
        self.app = config.loaded_app
        self.loop = premises.loop
        self.logger = LOGGER
        self.access_logger = LOGGER
        self.parser = _parser(self)
        self.root_path = config.root_path
        self.asgi_version = config.asgi_version
        self.app_state = app_state
        self.server_state = premises
        self.connections = premises.connections
        self.transport: Any = None
        self.flow: Any = None
        self.client = client
        self.server = server
        self.scheme = "https" if listener.tls else "http"
        self.pipeline: Any = deque()
        self.scope: Any = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.cycle: Any = None
        self.premises = premises
        self.settings = premises.settings
        self.private = listener.private
        # Who knows the private listener is above us, and says how the health check is asked.
        self.trusts_peer = listener.private or premises.proxies.trusts(client[0] if client else "")
        self.running: Exchange | None = None  # the request whose answer is on its way
        self.newest: Exchange | None = None  # the request whose body is being read
        self.heard_s = self.idle_since_s = self.head_since_s = self.loop.time()
        self.outline = Outline()
        self.held = b""  # came ahead, and is parsed when more of what came before it is answered
        self.websocket: WebSocketConnection | None = None  # what it has become
        self.in_head = False
        self.heads = 0  # begun
        self.head_fed = 0  # bytes of a head that comes in several pieces, but its first
        self.field_bytes = 0
        self.framing_fed = 0  # bytes since the last byte of a body: chunk extensions, trailers
        self.is_last = False  # no request follows the newest
        self.is_deaf = False  # what else comes is not parsed
        self.refusal: Refused | None = None  # to be sent when the requests before it are answered
        self.body_follows_upgrade = False
        self.replays = False  # the parser is shown a head that is known already
        self.peer_ended = False
        self.ends_at_s = NEVER  # behind our last byte: until when what still comes is thrown away
        self.discarded = 0
        self.unsent = 0
        self.unsent_since_s = NEVER

    # ---- coming and going

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._is_plain = isinstance(transport, PlainTransport)
        self.flow = FlowControl(transport)
        self.connections.add(self)
        self.premises.http.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.running is not None or self.pipeline:
            for exchange in self.unanswered():
                exchange.abandon()
                self.premises.answered(exchange)
            self.running = None
            self.pipeline.clear()
        if self.cycle is not None:
            self.cycle.message_event.set()
        self.flow.resume_writing()
        self.parser = None  # type: ignore[assignment]
        self.connections.discard(self)
        self.premises.http.discard(self)
        self.premises.changed()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. Requests that came whole are answered all the same; the app is told."""
        self.peer_ended = True
        if self.ends_at_s != NEVER or self.transport.get_extra_info("sslcontext"):
            return False
        self._drop_unfinished()
        unanswered = self.unanswered()
        if not unanswered:
            return False
        if not self.held:
            self.is_last = self.is_deaf = True
            if self.refusal is None:
                unanswered[-1].keep_alive = False
        for exchange in unanswered:
            exchange.hung_up = True
            exchange.message_event.set()
        return True

    def _drop_unfinished(self) -> None:
        """The last request, when its body will not come any more. Those before it are answered none the less."""
        exchange = self.newest
        if exchange is None or self.held or not exchange.more_body or exchange.response_complete:
            return
        if exchange is self.running:
            self.running = None
        elif self.pipeline and self.pipeline[0][0] is exchange:
            self.pipeline.popleft()
        else:
            return  # refused
        exchange.abandon()
        self.premises.answered(exchange)

    def _body_bytes(self) -> int:
        return self.newest.body_bytes if self.newest is not None else 0

    def unanswered(self) -> list[Exchange]:
        """In the order of their answers."""
        queued = [cast(Exchange, cycle) for cycle, _ in reversed(self.pipeline)]
        return [self.running, *queued] if self.running is not None else queued

    @property
    def is_idle(self) -> bool:
        return self.running is None and not (self.in_head or self.held) and self.ends_at_s == NEVER

    # ---- parsing

    def data_received(self, data: bytes) -> None:
        if self.ends_at_s != NEVER:
            self._discard(data)
            return
        if self.is_deaf:
            return
        self.heard_s = self.loop.time()
        if self.held:
            self.held += data
            self.flow.pause_reading()
        elif self.in_head or self.pipeline or self._body_is_coming() or not self.outline.is_head(data, PIECE_BYTES):
            self._parse(data)
        else:
            self._parse_head(data)

    def _parse_head(self, data: bytes) -> None:
        """What `_parse` does, for what comes nearly always: a whole head where a request begins, and nothing behind it."""
        self._take_in(data)
        self.framing_fed = 0
        if self.refusal is not None and self.running is None:
            self._send_refusal(self.refusal)

    def _parse(self, data: bytes) -> None:
        """In pieces, so that a long row of requests waits as bytes, not as thousands of requests."""
        while data and not self.is_deaf:
            if len(self.pipeline) >= AHEAD_REQUESTS:
                self.held = data
                self.flow.pause_reading()
                return
            left, most = self._body_left(), len(data) if self._body_is_coming() else PIECE_BYTES
            end = self.outline.cut(data, left, most)
            piece, data = (data, b"") if end >= len(data) else (data[:end], data[end:])
            self._parse_piece(piece)
        if self.websocket is not None and data:
            self.websocket.data_received(data)

    def _body_left(self) -> int:
        """Bytes of a body by Content-Length that are to come."""
        newest = self.newest
        return (self.verdict.body_size or 0) - newest.body_bytes if newest is not None and newest.more_body else 0

    def _take_in(self, data: bytes) -> None:
        """Looks at it and has it parsed; what is wrong with it is refused."""
        try:
            self._look(data)
            self._feed(data)
        except Refused as refused:
            self.refuse(refused)
        except httptools.HttpParserError as error:
            self._cannot_parse(data, error)

    def _look(self, piece: bytes) -> None:
        """At what the parser would not mind. Raises Refused."""
        begins = not (self.in_head or self._body_is_coming())
        if (begins and not self.is_last) or self.in_head:
            try:
                self.outline.look(piece, begins=begins)
            except Refused:
                if begins:
                    self.on_message_begin()
                raise

    def _parse_held(self) -> None:
        held, self.held = self.held, b""
        if not held or self.transport.is_closing():
            return
        self._parse(held)
        if self.held:
            return
        if self.peer_ended:
            self._drop_unfinished()
            if not self.unanswered() and self.ends_at_s == NEVER:
                self.transport.close()
        elif not self.pipeline:
            self.flow.resume_reading()

    def _parse_piece(self, data: bytes) -> None:
        head, newest, body_bytes = (self.heads if self.in_head else 0), self.newest, self._body_bytes()
        self._take_in(data)
        if self.in_head and head == self.heads:
            self.head_fed += len(data)
            if self.head_fed > self.settings.limit_request_line + self.settings.limit_header_bytes:
                self.refuse(exceeded("limit_header_bytes" if self.headers else "limit_request_line"))
        if self._body_is_coming() and newest is self.newest and self._body_bytes() == body_bytes:
            self.framing_fed += len(data)
            if self.framing_fed > FRAMING_BYTES:
                self.refuse(Refused(400, "there is too much around the body"))
        else:
            self.framing_fed = 0
        if self.refusal is not None and self.running is None:
            self._send_refusal(self.refusal)

    def _feed(self, data: bytes) -> None:
        """Parses on behind an Upgrade that is not granted: RFC 9110 7.8 has it ignored."""
        while data and not self.is_deaf:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            if self.is_deaf:
                return
            if self.verdict.websocket:
                self._become_websocket(data)
                return
            self._forget_upgrade()

    def _forget_upgrade(self) -> None:
        """A parser that has seen an Upgrade reads nothing more; a body behind it would be taken for the next request."""
        self.parser = _parser(self)
        if not self.body_follows_upgrade:
            return
        size = self.verdict.body_size
        framing = b"transfer-encoding: chunked" if size is None else b"content-length: %d" % size
        self.replays = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\nhost: -\r\n%b\r\n\r\n" % framing)
        self.replays = self.body_follows_upgrade = False

    def _cannot_parse(self, data: bytes, error: httptools.HttpParserError) -> None:
        if self.is_deaf or (self.is_last and not self.in_head and not self._body_is_coming()):
            self.is_deaf = True  # behind the last request: not ours to judge
            return
        self.refuse(misread(data, method_is_unknown=isinstance(error, httptools.HttpParserInvalidMethodError)))

    def _body_is_coming(self) -> bool:
        return self.newest is not None and self.newest.more_body

    def on_message_begin(self) -> None:
        if self.replays or self.is_deaf:
            return
        if self.is_last:
            self.is_deaf = True
            return
        self.in_head = True
        self.heads += 1
        self.head_since_s = self.heard_s
        self.head_fed = self.field_bytes = 0
        self.url = b""
        self.headers = []

    def on_url(self, url: bytes) -> None:
        if self.replays or self.is_deaf:
            return
        self.url += url
        if len(self.url) > self.settings.limit_request_line:
            self.refuse(exceeded("limit_request_line"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_deaf:
            return
        if not self.in_head:  # a trailer: the app has its headers already
            if name.lower() in NEVER_TRAILERS and not self.replays:
                self.refuse(Refused(400, "this trailer has no place there"))
            return
        size = len(name) + len(value)
        self.field_bytes += size + 4
        self.headers.append((name.lower(), value.rstrip(b" \t")))  # the parser leaves them (RFC 9110 5.5)
        if size > self.settings.limit_request_field_size:
            self.refuse(exceeded("limit_request_field_size"))
        elif self.field_bytes > self.settings.limit_header_bytes:
            self.refuse(exceeded("limit_header_bytes"))
        elif len(self.headers) > self.settings.limit_request_fields:
            self.refuse(exceeded("limit_request_fields"))

    def on_headers_complete(self) -> None:
        if self.replays or self.is_deaf:
            return
        parser = self.parser
        method, version = parser.get_method().decode("ascii"), parser.get_http_version()
        try:
            if len(method) + len(self.url) + 10 > self.settings.limit_request_line:
                raise exceeded("limit_request_line")
            verdict = judge(
                method,
                version,
                self.headers,
                host_allowed=self.premises.host_allowed,
                limit_body_bytes=self.settings.limit_body_bytes,
            )
            if verdict.websocket and self.running is not None:
                raise Refused(400, "a WebSocket begins when what was asked before is answered")
            scope = self._scope(method, version)
        except Refused as refused:
            self.refuse(refused)
            return
        self.verdict, self.scope = verdict, scope
        self.in_head = False
        self.is_last = verdict.closes or not parser.should_keep_alive()
        self.body_follows_upgrade = parser.should_upgrade() and verdict.has_body
        if not verdict.websocket:
            self._begin(version, verdict)

    def _scope(self, method: str, version: str) -> Any:
        raw_path, query, host = split_target(method, self.url)
        path = raw_path.decode("ascii")
        if "%" in path:
            path = urllib.parse.unquote(path)
        root = self.root_path
        if root and f"{path}/".startswith(f"{root}/"):  # the proxy may have left it
            root = ""
        # An underscore would look like the hyphen of another field; `proxy` becomes HTTP_PROXY behind a bridge to WSGI.
        self.headers = [field for field in self.headers if b"_" not in field[0] and field[0] != b"proxy"]
        if host:
            if not self.premises.host_allowed(host.decode("ascii")):
                raise Refused(400, "the host in the request line is not served here")
            self.headers = [(b"host", host), *(field for field in self.headers if field[0] != b"host")]
        client, scheme = self.client, str(self.scheme)
        if self.trusts_peer:
            client, scheme = self.premises.forwarded(self.headers, client, scheme)
        return {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": client,
            "scheme": self.settings.url_scheme or scheme,
            "method": method,
            "root_path": self.root_path,
            "path": root + path,
            "raw_path": root.encode("ascii") + raw_path,
            "query_string": query,
            "headers": self.headers,
            "state": self.app_state.copy(),
        }

    def on_body(self, body: bytes) -> None:
        exchange = self.newest
        if self.is_deaf or exchange is None:
            return
        exchange.body_bytes += len(body)
        if 0 < self.settings.limit_body_bytes < exchange.body_bytes:
            self.refuse(exceeded("limit_body_bytes"))
            return
        if exchange.response_complete or exchange.disconnected:
            return
        exchange.body += body
        if len(exchange.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        exchange.message_event.set()

    def on_message_complete(self) -> None:
        if self.is_deaf or self.body_follows_upgrade or self.newest is None or self.verdict.websocket:
            return
        self.newest.more_body = False
        self.newest.message_event.set()
        if self.running is None:
            self.idle_since_s = self.heard_s

    # ---- requests

    def _begin(self, version: str, verdict: Verdict) -> None:
        """Gives the request to the app, or puts it behind the one that is being answered."""
        exchange = Exchange(self, version, verdict.expects_continue, keep_alive=not self.is_last)
        exchange.hung_up = self.peer_ended
        self.newest = self.cycle = exchange
        self.premises.begun(exchange)
        if self.running is None and not self.pipeline:
            self._run(exchange)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))

    def _run(self, exchange: Exchange) -> None:
        self.running = exchange
        if self.premises.drain is not None:
            exchange.end_soon(self.premises.drain.jitter_s())
        exchange.task = task = self.loop.create_task(exchange.run_asgi(self.app))
        self.premises.owners[task] = exchange

    def says_close(self) -> bool:
        """Whether an answer that begins now is the connection's last."""
        return self.premises.drain is not None and not (self.pipeline or self.held)

    def on_response_complete(self) -> None:
        exchange, self.running = self.running, None
        if exchange is None:
            return
        self.premises.answered(exchange)
        if self.transport.is_closing():
            return
        if not exchange.keep_alive:
            self.end()  # also when the client has asked for it: a stray CR LF of its, unread, would reset the answer
            return
        if self.held:
            self.loop.call_soon(self._parse_held)
        else:
            self.flow.resume_reading()
        if self.pipeline:
            self._run(cast(Exchange, self.pipeline.pop()[0]))
        elif self.refusal is not None:
            self._send_refusal(self.refusal)
        elif self.peer_ended and not self.held:
            self.transport.close()
        else:
            self.idle_since_s = self.head_since_s = self.heard_s = self.loop.time()

    def refuse(self, refused: Refused) -> None:
        """The newest request is refused, or its body is; sent in its turn. Nothing more is parsed."""
        if self.is_deaf:
            return
        self.is_deaf = True
        self.refusal = refused
        exchange = self.newest
        if self.in_head or exchange is None:
            return
        if exchange.response_complete:
            self.refusal = None
            self.end()
            return
        if exchange is self.running:
            self.running = None
        else:
            self.pipeline.popleft()
        begun = exchange.response_started
        exchange.abandon()
        self.premises.dropped(exchange, answered=begun)
        if begun:
            self.refusal = None
            self.transport.close()

    def _send_refusal(self, refused: Refused) -> None:
        self.refusal = None
        body = f"{refused.why}\n".encode()
        reason = REASONS[refused.status].encode()
        head = (
            b"HTTP/1.1 %d %b\r\n%bcontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            % (refused.status, reason, self.premises.head_lines, len(body))
        )
        self.transport.write(head + body)
        if not self.private:
            self.premises.refused(self._told_of_refusal(refused.status, len(body)))
        self.end()

    def _told_of_refusal(self, status: int, size: int) -> Answered:
        """As far as the request was read."""
        target = getattr(self, "url", b"")
        method = self.parser.get_method().decode("ascii", "replace") if target else "-"
        return Answered(
            client=self.client[0] if self.client else "",
            method=method,
            target=target.decode("latin-1") or "-",
            version=self.parser.get_http_version() if target else "-",
            status=status,
            bytes_sent=size,
            began_unix_s=self.premises.unix_s(self.head_since_s),
            seconds=self.loop.time() - self.head_since_s,
        )

    def _become_websocket(self, rest: bytes) -> None:
        """Hands the connection over, with the head that was read and what came behind it."""
        self.connections.discard(self)
        self.premises.http.discard(self)
        protocol = WebSocketConnection(self.config, self.premises, self.app_state, self.scope, self.private)
        head = [b"%b %b HTTP/1.1\r\n" % (self.scope["method"].encode(), self.url)]
        head += [b"%b: %b\r\n" % field for field in self.headers]
        protocol.connection_made(self.transport)
        protocol.data_received(b"".join([*head, b"\r\n"]))
        self.transport.set_protocol(protocol)
        self.websocket = protocol
        self.is_deaf = True
        self.parser = None  # type: ignore[assignment]
        if rest and not self.transport.is_closing():
            protocol.data_received(rest)

    # ---- deadlines and the end

    @property
    def deadline_s(self) -> float:
        """When what the connection waits for has taken too long; asked once a second."""
        if self.ends_at_s != NEVER:
            return self.ends_at_s
        waits_for_body = self._body_is_coming() and not self.flow.read_paused and not self.in_head
        if waits_for_body and not self.newest_waits_for_continue():
            return _after(self.heard_s, self.settings.body_timeout_s)
        if self.running is not None:
            return NEVER
        if self.in_head:
            return _after(self.head_since_s, self.settings.header_timeout_s)
        return _after(self.idle_since_s, self.settings.keep_alive_s)

    def newest_waits_for_continue(self) -> bool:
        return self.newest is not None and self.newest.waiting_for_100_continue

    def expired(self, now_s: float) -> None:
        """The deadline is over."""
        if self.ends_at_s != NEVER:
            self.transport.abort()
        elif self.in_head:
            self.refuse(exceeded("header_timeout_s"))
        elif self._body_is_coming():
            self.refuse(exceeded("body_timeout_s"))
        else:
            self.end()
        if self.refusal is not None and self.running is None:
            self._send_refusal(self.refusal)

    def watch_output(self, now_s: float) -> None:
        """Once a second: closes where the client has read nothing of its answer for the whole write time-out."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent != self.unsent:
            self.unsent, self.unsent_since_s = unsent, now_s
        elif self.settings.write_timeout_s and now_s - self.unsent_since_s > self.settings.write_timeout_s:
            self.transport.abort()

    def has_more(self) -> bool:
        """Whether the kernel has something of the client's that is not read yet."""
        if self.transport.is_closing():
            return False
        holder = self.transport if self._is_plain else self.transport.get_extra_info("socket")
        return has_sent(holder.fileno())

    def end(self) -> None:
        """Our last byte is written: shuts our side, throws away what still comes, bounded, and closes. Closing at once
        would make the kernel answer it by a reset, which can destroy the answer on its way."""
        if self.ends_at_s != NEVER or self.transport.is_closing():
            return
        self.is_deaf = True
        if self.is_last and self._is_plain and not self._body_is_coming() and self.transport.close_if_silent():
            return
        if self.peer_ended or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.ends_at_s = self.loop.time() + DISCARD_S
        self.flow.resume_reading()
        self.transport.write_eof()

    def _discard(self, data: bytes) -> None:
        self.discarded += len(data)
        if self.discarded > DISCARD_BYTES:
            self.transport.abort()

    def cut(self) -> None:
        """The drain's time is over for the request in hand: it gets 503 if its answer has not begun, else the
        connection's end. What waits behind it ends as well."""
        unanswered = self.unanswered()
        begun = unanswered[0].response_started
        self.is_deaf = True
        self.running = None
        self.pipeline.clear()
        for exchange in unanswered:
            exchange.cut()
            self.premises.dropped(exchange, answered=exchange.response_started)
        if begun:
            self.ends_at_s = self.loop.time()
            self.transport.abort()
        else:
            self._send_refusal(Refused(503, "the server is going away"))


def _parser(connection: HttpConnection) -> httptools.HttpRequestParser:
    parser = httptools.HttpRequestParser(connection)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)  # behind it nothing is parsed: `is_deaf`
    return parser


def _after(since_s: float, timeout_s: float) -> float:
    return since_s + timeout_s if timeout_s else NEVER
