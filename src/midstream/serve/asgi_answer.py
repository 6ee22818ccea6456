"""One request to an ASGI app and its answer: uvicorn's cycle with our head, our ends and our disconnects.

Differs from uvicorn's: head and first body part are one write; whose which field is says `answer_fields.py`;
HTTP/1.0 gets no chunks; a client that has ended its sending still gets its answer; server-sent events can be ended
between two of them. What must not live here: parsing, deadlines, what becomes of the connection (`asgi_http.py`).
Runs in a worker, on its event loop.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE, STATUS_LINE, RequestResponseCycle
from uvicorn.protocols.utils import ClientDisconnected

from midstream.serve.answer_fields import CONNECTION, HOP, LENGTH, PLAIN
from midstream.serve.asgi_premises import CODING, TYPE
from midstream.serve.contract import Answered

if TYPE_CHECKING:
    from midstream.serve.asgi_http import HttpConnection

BLANK_LINES = (b"\n\n", b"\r\r", b"\n\r\n", b"\r\r\n")  # ends of an event; a line may end in LF, CR or CRLF
JOIN_BYTES = 16384  # shorter bodies are copied behind their head, longer ones given to the kernel as they are
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
BODILESS = (204, 304)
_BYTES = (bytes, bytearray, memoryview)
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")


class Exchange(RequestResponseCycle):
    """A request in hand. began_s: CLOCK_MONOTONIC."""

    def __init__(self, connection: HttpConnection, version: str, expects_continue: bool, *, keep_alive: bool) -> None:
        # In place of uvicorn's: what it sets and nobody reads here is left out.
        self.scope = connection.scope
        self.transport = connection.transport
        self.flow = connection.flow
        self.logger = connection.logger
        self.message_event = asyncio.Event()
        self.on_response = connection.on_response_complete
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = expects_continue
        self.body = bytearray()
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self.chunked_encoding = False
        self.connection = connection
        self.private = connection.private
        self.version = version
        self.began_s = time.monotonic()
        self.method: str = self.scope["method"]
        self.target = connection.url
        self.client: tuple[str, int] | None = self.scope["client"]
        self.headers = connection.headers
        self.status = 0
        self.bytes_sent = 0
        self.body_bytes = 0  # received
        self.task: asyncio.Task[None] | None = None
        self.hung_up = False  # the client has ended its sending; it may still read
        self.body_told = False  # the app has been given the end of the body
        self.head: bytes | None = None  # of the answer, built and not sent
        self.left: int | None = None  # bytes that Content-Length promises and that are not sent; None: no such promise
        self.bodiless = False
        self.is_events = False
        self.tail = b""  # the last bytes of an event stream
        self.ends_from = math.inf  # from when an event stream is ended between two events
        self.ended = False  # by us: nothing more is sent, and the app is told so
        self.is_cut = False
        self.dropped = 0  # parts that the app sent when the client was gone

    # ---- the app's side

    async def run_asgi(self, app: Callable[..., Any]) -> None:
        try:
            result = await app(self.scope, self.receive, self.send)
        except BaseException as error:
            await self._failed(error)
        else:
            if result is not None:
                self.logger.error("ASGI callable should return None, but returned %r.", result)
            if self.disconnected or self.ended or self.response_complete:
                return
            if self.response_started:
                self.logger.error("ASGI callable returned without completing its answer.")
                self.transport.close()
            else:
                self.logger.error("ASGI callable returned without starting an answer.")
                await self.send_500_response()
        finally:
            self.on_response = _nothing
            self.connection.premises.task_is_over(self.task)

    async def _failed(self, error: BaseException) -> None:
        """The app has raised. What we caused ourselves is no news."""
        if self.is_cut and isinstance(error, asyncio.CancelledError):
            return
        if (self.ended or self.disconnected) and isinstance(error, ClientDisconnected):
            return
        self.logger.error("Exception in ASGI application\n", exc_info=error)
        if self.response_complete or self.disconnected:
            return
        if self.response_started:
            self.transport.close()
        else:
            await self.send_500_response()

    async def send_500_response(self) -> None:
        self.head = None
        await super().send_500_response()

    async def receive(self) -> Any:
        """The next part of the body, then waits for the end of the request."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            if not self.body_bytes and self.more_body:  # RFC 9110 10.1.1: not when the body has begun to come
                self.transport.write(CONTINUE)
            self.waiting_for_100_continue = False
            self.connection.heard_s = self.connection.loop.time()
        while not self._hears_no_more():
            if self.flow.read_paused and not self.connection.pipeline:
                self.flow.resume_reading()
                self.connection.heard_s = self.connection.loop.time()
            await self.message_event.wait()
            self.message_event.clear()
            if self.body or not (self.more_body or self.body_told):
                break
        if self._hears_no_more():
            return {"type": "http.disconnect"}
        body, self.body = bytes(self.body), bytearray()
        self.body_told = not self.more_body
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    @property
    def is_over(self) -> bool:
        """Answered to its end, or its client is gone; the app may still be at it."""
        return self.response_complete or self.disconnected

    @property
    def goes_on_behind_answer(self) -> bool:
        """If its task still runs: with work of the app's own, not because it has not noticed that it is over."""
        return self.response_complete and not self.disconnected and not self.ended

    def _hears_no_more(self) -> bool:
        return self.disconnected or self.response_complete or (self.hung_up and self.body_told)

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.ended:
            raise ClientDisconnected("the server has ended this answer: it is going away")
        if self.disconnected:
            self._drop(message)
            return
        kind = message["type"]
        if self.response_complete:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' sent, after response already completed.")
        expected = "http.response.body" if self.head is not None or self.response_started else "http.response.start"
        if kind != expected:
            raise RuntimeError(f"Expected ASGI message '{expected}', but got '{kind}'.")
        if kind == "http.response.start":
            self._build_head(message["status"], message.get("headers", ()))
            self.connection.loop.call_soon(self.send_head)
        else:
            self._send_body(message.get("body", b""), message.get("more_body", False))

    def _drop(self, message: Any) -> None:
        """The client is gone: as in uvicorn that is no error to an app that answers and ends. One that streams on and on
        is told; it would never end."""
        if message.get("more_body", False):
            self.dropped += 1
            if self.dropped > 1:
                raise ClientDisconnected("the client is gone")

    # ---- the client's side

    def _build_head(self, status: int, headers: Any) -> None:
        """Makes the lines of the answer's head. Raises, with nothing sent, when the app's headers are none."""
        if status < 200:
            raise RuntimeError(f"Status {status} is no answer.")
        lines = [STATUS_LINE[status]]
        bodiless = status in BODILESS or self.method == "HEAD"
        length: int | None = None
        closes = is_events = is_coded = False
        own = 0
        premises = self.connection.premises
        kinds = premises.field_kinds
        for name, value in headers:
            if _NAME.match(name) is None:
                raise RuntimeError("Invalid HTTP header name.")
            if HEADER_VALUE_RE.search(value):
                raise RuntimeError("Invalid HTTP header value.")
            name = name.lower()
            kind = kinds.get(name, PLAIN)
            if kind == PLAIN:
                pass
            elif kind == LENGTH:
                if not value.isdigit() or (length is not None and int(value) != length):
                    raise RuntimeError("Content-Length is no number, or two.")
                if length is not None or status == 204:
                    continue
                length = int(value)
            elif kind == CONNECTION:
                closes = closes or b"close" in [token.strip() for token in value.lower().split(b",")]
                continue
            elif kind == HOP:
                continue
            elif kind == TYPE:
                is_events = value.lower().startswith(b"text/event-stream")
            elif kind == CODING:
                is_coded = True
            else:
                own |= kind
            lines += (name, b": ", value, b"\r\n")
        lines.append(premises.head_lines_without(own) if own else premises.head_lines)
        self.chunked_encoding = not bodiless and length is None and self.version == "1.1"
        if self.chunked_encoding:
            lines.append(b"transfer-encoding: chunked\r\n")
        self.keep_alive = (
            self.keep_alive
            and not closes
            and not self.waiting_for_100_continue  # whether its body still comes is not known
            and not (self.version == "1.0" and not bodiless and length is None)
            and not self.connection.says_close()
        )
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        elif self.version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self.waiting_for_100_continue = False
        self.status, self.bodiless = status, bodiless
        self.left = None if bodiless else length
        self.is_events = is_events and not is_coded and length is None and not bodiless
        self.head = b"".join(lines)

    def send_head(self) -> None:
        """Sends the head if no body part has taken it along."""
        head, self.head = self.head, None
        if head is None or self.disconnected or self.transport.is_closing():
            return
        self.response_started = True
        self.transport.write(head)
        self.end_if_between_events()

    def _send_body(self, body: bytes, more: bool) -> None:
        if body.__class__ is not bytes and not isinstance(body, _BYTES):
            raise TypeError(f"the body is made of bytes, not {type(body).__name__}")
        head, self.head = self.head or b"", None
        size = len(body)
        if self.bodiless:
            body = b""
        elif self.left is not None:
            if size > self.left:
                self.head = head or None
                raise RuntimeError("Response content longer than Content-Length")
            self.left -= size
            if not more and self.left:
                self.head = head or None
                raise RuntimeError("Response content shorter than Content-Length")
        self.response_started = True
        before, after = head, b""
        if self.chunked_encoding and size:
            before, after = head + b"%x\r\n" % size, b"\r\n"
        if self.chunked_encoding and not more:
            after += b"0\r\n\r\n"
        self._write(before, body, after)
        if not self.bodiless:
            self.bytes_sent += size
        if not more:
            self._complete()
        elif self.is_events:
            self.tail = (self.tail + body)[-3:]
            self.end_if_between_events()

    def _write(self, before: bytes, body: bytes, after: bytes) -> None:
        if len(body) > JOIN_BYTES:
            self.transport.writelines([part for part in (before, body, after) if part])
        elif before or body or after:
            self.transport.write(b"".join((before, body, after)))

    def _complete(self) -> None:
        self.response_complete = True
        self.message_event.set()
        self.on_response()

    # ---- the drain's side

    def end_soon(self, delay_s: float) -> None:
        """If it is an event stream: from then on it ends at the next end of an event."""
        self.ends_from = self.connection.loop.time() + delay_s
        self.connection.loop.call_at(self.ends_from + 0.001, self.end_if_between_events)

    def end_if_between_events(self) -> None:
        """Ends an event stream whose time has come, if no event is half sent. The app sees a disconnect."""
        if not (self.is_events and self.response_started) or self.response_complete or self.disconnected:
            return
        if self.connection.loop.time() < self.ends_from or not (self.tail == b"" or self.tail.endswith(BLANK_LINES)):
            return
        self.ended = True
        if self.chunked_encoding:
            self.transport.write(b"0\r\n\r\n")
        self._complete()

    def abandon(self) -> None:
        """The client is gone, or is treated so: the app is told, and what it still sends is dropped."""
        self.disconnected = True
        self.head = None
        self.message_event.set()
        self.flow.resume_writing()

    def cut(self) -> None:
        """The time is over: abandons the request and cancels the app."""
        self.is_cut = True
        self.abandon()
        if self.task is not None:
            self.connection.premises.cancel(self.task)

    def told(self, seconds: float) -> Answered:
        """The request as the access log sees it."""
        headers = dict(self.headers)
        return Answered(
            client="" if self.client is None else self.client[0],
            method=self.method,
            target=self.target.decode("latin-1"),
            version=self.version,
            status=self.status,
            bytes_sent=self.bytes_sent,
            began_unix_s=time.time() - (time.monotonic() - self.began_s),
            seconds=seconds,
            referer=headers.get(b"referer", b"").decode("latin-1"),
            user_agent=headers.get(b"user-agent", b"").decode("latin-1"),
            host=headers.get(b"host", b"").decode("latin-1"),
            request_id=headers.get(b"x-request-id", b"").decode("latin-1"),
        )


def _nothing() -> None:
    return
