"""One HTTP/1.1 connection: from bytes to a request for the app, and the app's bytes back to the socket.

What must not live here: what the environ contains (`environ.py`), what an answer contains (`response.py`), how many
threads there are. Runs in the workers. A connection belongs to the event loop, except between `_dispatch` and `ended`:
then its answer belongs to the thread that runs the app, which writes to the socket itself. That saves the way back
through the loop, a third of what a request costs. `fd` and `lock` are what makes it safe: the loop closes a descriptor
only after connection_lost() has taken it away under the lock.

llhttp is given heads only, each whole: after checks that it does not make, and never a byte of a body, because it
would go on with the next request in the same call. So one request is in hand at a time, whatever was pipelined.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any

import httptools

from midstream.serve.body import Body, Chunks
from midstream.serve.connections import NEVER
from midstream.serve.environ import DROPPED, Environ, Keys, add_target, believe, join
from midstream.serve.limits import DISCARD_BYTES, DISCARD_S, PIPELINED_BYTES, REASONS, Refused, exceeded
from midstream.serve.output import TURN_BYTES, ClientGone, Tail
from midstream.serve.wire import Wire, has_sent, reset_at_close, shut

if TYPE_CHECKING:
    from midstream.serve.wsgi import WsgiServer

log = logging.getLogger("midstream.serve")

# States; plain numbers, because they are compared several times a request.
WAIT = 0  # for a request; nothing of it has come
HEAD = 1  # a part of a head has come
BODY = 2  # the head is complete, the body is not
BUSY = 3  # the app has it
TAIL = 4  # the app is done, the loop sends the rest
DISCARD = 5  # our end is shut
BROKEN = 6  # to be reset
GONE = 7

_JOIN_BYTES = 32768  # copied together for one write; above it writev(2)
_POLL_MS = 1000  # how long an app thread waits for the socket before it looks whether the connection is still there
_KEYS = Keys()
_METHODS = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE")
}


class Fields:
    """Has llhttp check heads and take them apart. One for all connections of a loop: heads come whole."""

    __slots__ = ("_environ", "_fault", "_parser")

    def __init__(self) -> None:
        self._environ: Environ = {}
        self._fault: Refused | None = None
        self._parser: Any = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp's callback. Of nothing else: the rest is told by the head as a whole."""
        key = _KEYS[name]
        environ = self._environ
        if key not in environ:
            environ[key] = value.rstrip(b" \t").decode("latin-1")
        elif key != DROPPED:
            try:
                join(environ, key, value.rstrip(b" \t").decode("latin-1"))
            except Refused as refused:
                self._fault = refused

    def read(self, head: bytes, environ: Environ) -> None:
        """Puts the fields into the environ. Raises Refused."""
        environ[DROPPED] = None
        self._environ = environ
        self._fault = None
        parser, self._parser = self._parser, None  # where anything is amiss, or a body is due, it is not used again
        if parser is None:
            parser = httptools.HttpRequestParser(self)
            parser.set_dangerous_leniencies(lenient_keep_alive=True)  # not to be closed by another connection's close
        try:
            parser.feed_data(head)
            if "CONTENT_LENGTH" not in environ and "HTTP_TRANSFER_ENCODING" not in environ:
                self._parser = parser
        except httptools.HttpParserUpgrade:
            if environ["REQUEST_METHOD"] == "CONNECT":
                raise Refused(501, "this server is no proxy") from None
            # any other Upgrade is not taken: the request is what it is without it (RFC 9110 7.8), body and all
        except httptools.HttpParserInvalidMethodError as error:
            raise Refused(501, "the method is not known") from error
        except httptools.HttpParserError as error:
            raise Refused(400, str(error)) from error
        finally:
            del environ[DROPPED]
        if self._fault is not None:
            raise self._fault


class Connection(asyncio.Protocol):
    """Made by the server for an accepted socket."""

    __slots__ = (
        "address",
        "base",
        "began_s",
        "body",
        "buffer",
        "chunks",
        "deadline_s",
        "discarded",
        "environ",
        "eof",
        "fd",
        "forgiven",
        "http11",
        "keep",
        "lock",
        "method",
        "need",
        "paused",
        "peer",
        "private",
        "room",
        "scanned",
        "server",
        "state",
        "tail",
        "target",
        "tls",
        "transport",
        "trusted",
        "waiters",
        "wire",
    )

    def __init__(self, server: WsgiServer, base: Environ, peer: str, trusted: bool) -> None:
        self.server = server
        self.base = base  # the environ of this connection
        self.peer = peer
        self.trusted = trusted
        self.private = False
        self.tls = False
        self.transport: Any = None
        self.wire: Wire | None = None  # None: TLS
        self.fd = -1
        self.lock = threading.Lock()  # held while `fd` is used outside the loop's thread, and while it is taken away
        self.state = WAIT
        self.buffer = bytearray()  # what has come and is not looked at
        self.scanned = 0  # of the buffer, for the end of a head
        self.forgiven = False  # an empty line before this request
        self.paused = False  # reading
        self.eof = False
        self.environ: Environ = {}
        self.method = ""
        self.target = ""
        self.http11 = True
        self.keep = True
        self.body: Body | None = None
        self.chunks: Chunks | None = None
        self.need = 0  # bytes of the body that are to come
        self.tail: Tail | None = None
        self.room = True  # TLS: whether the transport takes more
        self.waiters: list[threading.Event] = []  # TLS: of app threads that wait for room
        self.began_s = 0.0
        self.deadline_s = NEVER
        self.discarded = 0

    # ---- what the loop calls

    def opened(self, fd: int) -> None:
        """A plain connection. Its first request has come mostly: a client sends it as soon as it is connected."""
        self.fd = fd
        self.transport = self.wire = wire = Wire(self.server.readables, self, fd)
        self.deadline_s = time.monotonic() + self.server.keep_alive_s
        self.server.connections.add(self)
        wire.read()
        if self.keep or self.state == HEAD or self.state == BODY:  # else the app has it, or had it and has closed it
            wire.resume_reading()

    def connection_made(self, transport: Any) -> None:
        """TLS: by the loop's transport."""
        self.transport = transport
        self.fd = transport.get_extra_info("socket").fileno()
        self.deadline_s = time.monotonic() + self.server.keep_alive_s
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        server = self.server
        with self.lock:
            fd, self.fd = self.fd, -1
        server.connections.discard(self)
        if self.tail is not None:
            server.writables.unwatch(fd)
            if self.state != BUSY:
                self.tail.close()
        self._let_on()
        if self.body is not None:
            self.body.close()
        if self.state != BUSY:
            self.state = GONE
        self.transport = None
        server.left()

    def eof_received(self) -> bool:
        """The peer sends nothing more. Its answer is still due to it, except by TLS, which cannot be half closed."""
        self.eof = True
        has_more = self.state == WAIT and self.buffer  # what came ahead; its turn has been asked for
        return not self.tls and bool(self.state == BUSY or self.state == TAIL or has_more)

    def data_received(self, data: bytes) -> None:
        server = self.server
        if server.finished:
            server.settle()
        state = self.state
        if state == WAIT and not self.buffer:
            if (
                data.find(b"\r\n\r\n") + 4 == len(data) > 4 and data[0] != 0x0D
            ):  # as nearly always: a head, nothing else
                self.began_s = time.monotonic()
                self._head(data)
            else:
                self.buffer += data
                self.advance()
        elif state == BODY:
            self._body(data)
        elif state == DISCARD:
            self.discarded += len(data)
            if self.discarded > DISCARD_BYTES:
                self.transport.abort()
        elif state < BROKEN:
            self.buffer += data
            self.advance()  # also while the app has a request: it may have ended just now, in its thread

    def pause_writing(self) -> None:
        """TLS only: a plain connection is never written to by its transport."""
        self.room = False

    def resume_writing(self) -> None:
        self.room = True
        self._let_on()
        if self.tail is not None and self.state == TAIL:
            self._pump()

    def _let_on(self) -> None:
        for waiter in self.waiters:
            waiter.set()
        self.waiters.clear()

    # ---- requests in

    def advance(self) -> None:
        """Goes on with what has come, as far as one request."""
        while True:
            state = self.state
            if state <= HEAD:
                if not self.buffer or not self._look_for_head():
                    return
                if self.server.inline and self.state == WAIT and self.buffer:
                    self.server.wake(self)  # others first
                    return
            elif state == BODY:
                if not self.buffer:
                    return
                data = bytes(self.buffer)
                self.buffer.clear()
                self._read_on()
                self._body(data)
            else:
                if state > TAIL:
                    self.buffer.clear()
                elif len(self.buffer) > PIPELINED_BYTES and not self.paused and self.transport is not None:
                    self.paused = True
                    self.transport.pause_reading()
                return

    def _look_for_head(self) -> bool:
        """Takes the next head from the buffer; False: it is not complete, or the request is refused."""
        buffer, server = self.buffer, self.server
        if not self.forgiven and buffer.startswith(b"\r\n"):  # one empty line before a request is (RFC 9112 2.2)
            self.forgiven = True
            self.scanned = 0
            del buffer[:2]
        if self.state == WAIT:
            if not buffer:
                return False
            self.state = HEAD
            self.began_s = time.monotonic()
            self.deadline_s = self.began_s + server.header_timeout_s
            self.scanned = 0
            self.method = self.target = ""
        end = buffer.find(b"\r\n\r\n", max(0, self.scanned - 3))
        if end >= 0:
            head = bytes(buffer[: end + 4])
            del buffer[: end + 4]
            if len(buffer) <= PIPELINED_BYTES:
                self._read_on()
            return self._head(head)
        try:
            self._check_part_of_head(buffer)
        except Refused as refused:
            self.refuse(refused)
        self.scanned = len(buffer)
        return False

    def _check_part_of_head(self, buffer: bytearray) -> None:
        server = self.server
        first = buffer.find(b"\r\n")
        if (first if first >= 0 else len(buffer)) > server.limit_request_line:
            raise exceeded("limit_request_line")
        if first >= 0 and len(buffer) - first > server.limit_header_bytes + 4:
            raise exceeded("limit_header_bytes")
        before = max(0, self.scanned - 1)
        seen = before > 0 and buffer[before] == 0x0A  # the end of a line that was looked at already
        if buffer.count(b"\n", before) != buffer.count(b"\r\n", before) + seen:
            raise Refused(400, "a line of the head does not end with CR LF")

    def _head(self, head: bytes) -> bool:
        """A whole head. False: the request is refused."""
        self.forgiven = False
        try:
            self._read_head(head)
            environ = self.environ
            if "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ:
                self._expect_body(environ)
            if "HTTP_EXPECT" in environ:
                self._expectation(environ)
        except Refused as refused:
            self.refuse(refused)
            return False
        if self.body is None:
            environ["wsgi.input"] = io.BytesIO()
            self._dispatch()
        else:
            self.state = BODY
            self.deadline_s = time.monotonic() + self.server.body_timeout_s
        return True

    def _read_head(self, head: bytes) -> None:
        """The environ of the request, but for its body. Raises Refused."""
        server = self.server
        first = head.find(b"\r\n")
        if first > server.limit_request_line:
            raise exceeded("limit_request_line")
        words = head[:first].split(b" ")
        if len(words) != 3:
            raise Refused(400, "the request line is not METHOD TARGET VERSION")
        method = _METHODS.get(words[0]) or words[0].decode("latin-1")
        self.method = method
        target = self.target = words[1].decode("latin-1")
        if words[2] == b"HTTP/1.1":
            self.http11 = True
        elif words[2] == b"HTTP/1.0":
            self.http11 = False
        else:
            raise Refused(505 if words[2].startswith(b"HTTP/") else 400, "the version is neither HTTP/1.1 nor HTTP/1.0")
        self._check_fields(head, first)
        environ = self.environ = self.base.copy()
        environ["REQUEST_METHOD"] = method
        environ["SERVER_PROTOCOL"] = "HTTP/1.1" if self.http11 else "HTTP/1.0"
        server.fields.read(head, environ)
        host = environ.get("HTTP_HOST")
        if host is None:
            if self.http11:
                raise Refused(400, "there is no Host")
        elif not server.host_ok(host):
            raise Refused(400, "the Host is malformed or not served here")
        add_target(environ, method, target)
        if target[0] != "/" and not server.host_ok(environ.get("HTTP_HOST", "-")):  # a whole URL's, which counts
            raise Refused(400, "the host in the request line is malformed or not served here")
        wanted = environ.get("HTTP_CONNECTION")
        self.keep = self.http11 if wanted is None else _keeps(wanted, self.http11)
        if self.trusted:
            believe(environ, server.proxies, server.settings)

    def _check_fields(self, head: bytes, first: int) -> None:
        """What llhttp has no limit for, and line ends, which decide where a head is over. Raises Refused."""
        server = self.server
        lines = head.count(b"\r\n")
        if head.count(b"\n") != lines or head.count(b"\r") != lines:
            raise Refused(400, "a line of the head does not end with CR LF")
        if lines - 2 > server.limit_request_fields:
            raise exceeded("limit_request_fields")
        if len(head) - first - 4 > server.limit_request_field_size:
            if len(head) - first - 4 > server.limit_header_bytes:
                raise exceeded("limit_header_bytes")
            if max(map(len, head[first:].split(b"\r\n"))) > server.limit_request_field_size:
                raise exceeded("limit_request_field_size")

    def _expect_body(self, environ: Environ) -> None:
        """How the body is framed. Raises Refused."""
        server = self.server
        coding = environ.get("HTTP_TRANSFER_ENCODING")
        length = environ.get("CONTENT_LENGTH")
        if coding is None:
            assert length is not None
            if not (length.isascii() and length.isdigit()):
                raise Refused(400, "Content-Length is no number")
            self.need = int(length)
            if not self.need:
                environ["CONTENT_LENGTH"] = "0"  # however many zeros came
                return
            if server.limit_body_bytes and self.need > server.limit_body_bytes:
                raise exceeded("limit_body_bytes")
        else:
            if length is not None:
                raise Refused(400, "Content-Length and Transfer-Encoding contradict each other")
            if not self.http11:
                raise Refused(400, "HTTP/1.0 has no Transfer-Encoding")
            if coding.lower() != "chunked":
                raise Refused(501, "of transfer codings only chunked is known")
        self.body = Body(server.body_memory, server.limit_body_bytes, -1 if coding is not None else self.need)
        if coding is not None:
            self.chunks = Chunks(self.body)

    def _expectation(self, environ: Environ) -> None:
        if not self.http11:
            return
        if any(word.strip(" \t") != "100-continue" for word in environ["HTTP_EXPECT"].lower().split(",")):
            raise Refused(417, "of expectations only 100-continue is known")
        if self.body is not None and not self.buffer:
            self._write_now(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _body(self, data: bytes) -> None:
        """More of the body; what is beyond it goes to the buffer."""
        body = self.body
        assert body is not None
        try:
            if self.chunks is not None:
                taken = self.chunks.feed(data)
                complete = self.chunks.complete
            else:
                taken = min(self.need, len(data))
                body.add(data if taken == len(data) else data[:taken])
                self.need -= taken
                complete = not self.need
            if complete:
                self._complete(body)
        except Refused as refused:
            self.refuse(refused)
            return
        if taken < len(data):
            self.buffer += data[taken:]
        if complete:
            self._dispatch()
            if self.buffer:
                self.server.wake(self)  # may be waiting already, when the app ran inline
        else:
            self.deadline_s = time.monotonic() + self.server.body_timeout_s

    def body_read(self, count: int) -> None:
        """So much of the body is in its place (`Body.room`); nothing was read beyond it."""
        body = self.body
        assert body is not None
        body.filled(count)
        self.need -= count
        if self.need:
            self.deadline_s = time.monotonic() + self.server.body_timeout_s
            return
        self._complete(body)
        self._dispatch()

    def _complete(self, body: Body) -> None:
        environ = self.environ
        environ["wsgi.input"] = body.input()
        environ["CONTENT_LENGTH"] = str(body.size)
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        self.body = self.chunks = None

    def _dispatch(self) -> None:
        self.state = BUSY
        self.deadline_s = NEVER
        server, wire = self.server, self.wire
        server.begun += 1
        if wire is not None and wire.watched and not self.keep:
            wire.pause_reading()
        server.give(self)

    # ---- answers out: called by whoever runs the app

    def head_end(self, keep: bool, own: int) -> tuple[bool, bytes]:
        """Whether the connection is kept after this answer, and what its head ends with. own: bits of the fields that the
        app has set in place of the server's."""
        server = self.server
        ends = server.draining or (self.eof and not self.buffer)  # what came ahead of an end is answered too
        if keep and (ends or (server.inline and server.others_wait(self))):
            keep = False
        if time.monotonic() >= server.heads_until_s:
            server.make_heads()
        if own:
            return keep, server.head_without(keep, self.http11, own)
        if not keep:
            return False, server.head_close
        return True, server.head_keep if self.http11 else server.head_keep10

    def send(self, data: bytes) -> None:
        """Blocks while the client does not read, up to the write time-out; inline it keeps the rest instead, in memory
        and then in a file. Raises ClientGone."""
        if self.tail is not None:
            self._keep(data)
        elif self.tls:
            self._send_by_loop(data)
        else:
            sent = self._write(data)
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:])

    def send_last(self, head: bytes, body: bytes) -> None:
        """The end of the answer, which is in memory anyway: what the socket does not take is left to the loop, so that a
        slow reader holds no app thread. Raises ClientGone."""
        if self.tail is not None or self.tls:
            self._leave(head, body)
        elif len(body) <= _JOIN_BYTES:
            data = head + body if body else head
            sent = self._write(data)
            if sent < len(data):
                self._leave(memoryview(data)[sent:])
        else:
            sent = self._write_both(head, body)
            if sent < len(head):
                self._leave(memoryview(head)[sent:], body)
            elif sent < len(head) + len(body):
                self._leave(memoryview(body)[sent - len(head) :])

    def send_file(self, head: bytes, fd: int, at: int, end: int) -> None:
        """head, then a stretch of a file, the last of the answer. Raises ClientGone."""
        if end - at <= _JOIN_BYTES:
            self.send_last(head, _read(fd, at, end))
            return
        if self.tls:
            self._leave(head)
        else:
            self.send(head)
            while self.tail is None and at < end:
                sent = self._sendfile(fd, at, end)
                if not sent:
                    break
                at += sent
        if at < end:
            if self.tail is None:
                self.tail = Tail(NEVER)
            self.tail.add_file(os.dup(fd), at, end)

    def ended(self, broken: bool, keep: bool) -> None:
        """The app has no part in this request any more. After this the connection is the loop's again."""
        server = self.server
        wanted, self.keep = self.keep, keep
        if broken:
            self.state = BROKEN
        elif self.tail is not None:
            self.deadline_s = time.monotonic() + server.write_timeout_s
            self.state = TAIL
        elif keep:
            self.deadline_s = time.monotonic() + server.keep_alive_s
            self.state = WAIT  # from here on the loop may begin the next request
            if not (self.buffer or self.eof or server.draining):
                return
        elif self._left_by_the_loop(wanted) and self._close_here():
            server.closed.append(self)
            return
        else:
            self._shut()
            if not (self.buffer or self.eof or server.draining) and self.wire is not None and self.wire.watched:
                return
        server.wake(self)

    def _left_by_the_loop(self, wanted: bool) -> bool:
        """Whether the loop has no eye on this connection. wanted: whether the client wanted to keep it; one that did not
        sends nothing more, so nothing is to be discarded."""
        server, wire = self.server, self.wire
        return not (wanted or wire is None or wire.watched or self.buffer or server.draining or server.crowded)

    def _close_here(self) -> bool:
        """In the thread that ran the app: through the loop it would cost half as much again. False: it is closed, or the
        client has sent more all the same (old ones put a CR LF behind a body): closing would reset the answer on its way."""
        assert self.wire is not None
        with self.lock:
            if self.fd < 0:
                return False
            try:
                if os.read(self.fd, 4096):
                    return False
            except OSError:
                pass  # nothing, as nearly always; or an error, with which it is closed
            self.fd = -1
            self.state = GONE
            os.close(self.wire.take())
        return True

    def _write(self, data: bytes | memoryview) -> int:
        """How much the socket took."""
        with self.lock:
            if self.fd < 0:
                raise ClientGone("the client has closed the connection")
            try:
                return os.write(self.fd, data)
            except BlockingIOError:
                return 0
            except OSError as error:
                raise ClientGone(f"the client has closed the connection: {error.strerror}") from error

    def _write_both(self, head: bytes, body: bytes) -> int:
        with self.lock:
            if self.fd < 0:
                raise ClientGone("the client has closed the connection")
            try:
                return os.writev(self.fd, (head, body))
            except BlockingIOError:
                return 0
            except OSError as error:
                raise ClientGone(f"the client has closed the connection: {error.strerror}") from error

    def _sendfile(self, fd: int, at: int, end: int) -> int:
        """How much the socket took of the file; 0: it takes nothing now."""
        with self.lock:
            if self.fd < 0:
                raise ClientGone("the client has closed the connection")
            try:
                sent = os.sendfile(self.fd, fd, at, min(end - at, TURN_BYTES))
            except BlockingIOError:
                return 0
            except OSError as error:
                raise ClientGone(f"the file cannot be sent: {error.strerror}") from error
        if not sent:
            raise ClientGone("the file became shorter while it was sent")
        return sent

    def _send_rest(self, rest: memoryview) -> None:
        """What the socket did not take at once."""
        if self.server.inline:
            self.tail = Tail(self.server.body_memory_bytes)
            self._keep(rest)
            return
        poll = select.poll()
        until_s = time.monotonic() + self.server.write_timeout_s
        while rest:
            fd = self.fd
            if fd >= 0:  # else _write says so; a descriptor closed just now wakes at the latest after _POLL_MS
                poll.register(fd, select.POLLOUT)
                poll.poll(_POLL_MS)
                poll.unregister(fd)
            sent = self._write(rest)
            now_s = time.monotonic()
            if sent:
                rest = rest[sent:]
                until_s = now_s + self.server.write_timeout_s
            elif now_s >= until_s:
                raise ClientGone("the client does not read its answer")

    def _keep(self, data: bytes | memoryview) -> None:
        assert self.tail is not None
        try:
            self.tail.add(data)
        except OSError as error:
            log.error("cannot keep the answer for a slow client: %s; its connection is reset", error)
            raise ClientGone(str(error)) from error

    def _leave(self, *parts: bytes | memoryview) -> None:
        """To the loop."""
        if self.tail is None:
            self.tail = Tail(NEVER)  # it is in memory already
        for part in parts:
            if part:
                self._keep(part)

    def _send_by_loop(self, data: bytes) -> None:
        """TLS: only the loop may write. Waits until the transport takes more."""
        server = self.server
        if server.inline:
            self.tail = Tail(server.body_memory_bytes)
            self._keep(data)
            self._pump_tls()
            return
        taken = threading.Event()
        server.call(self._write_tls, data, taken)
        if not taken.wait(server.write_timeout_s):
            raise ClientGone("the client does not read its answer")
        if self.fd < 0:
            raise ClientGone("the client has closed the connection")

    # ---- answers out: called by the loop

    def go_on(self) -> None:
        """What `ended` has left to do."""
        if self.transport is None:
            if self.tail is not None:
                self.tail.close()
                self.tail = None
        elif self.state == TAIL:
            self._pump()
        elif self.state == BROKEN:
            self.cut()
        elif self.state == DISCARD:
            self._discard()
        else:
            self._go_on_reading()

    def _go_on_reading(self) -> None:
        self.advance()
        lacks = self.state in (HEAD, BODY) or (self.state == WAIT and not self.buffer)
        if self.eof and lacks and self.transport is not None:
            self.transport.close()  # what is missing will not come

    def refuse(self, refused: Refused) -> None:
        """Answers in place of the app, and closes."""
        self.server.refused(self, refused.status)
        if self.body is not None:
            self.body.close()
            self.body = self.chunks = None
        self.keep = False
        self.buffer.clear()
        text = f"{refused.status} {REASONS[refused.status]}: {refused.why}\n".encode("latin-1", "replace")
        head = (
            f"HTTP/1.1 {refused.status} {REASONS[refused.status]}\r\n"
            f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(text)}\r\n"
        )
        self.server.make_heads()
        self._leave(head.encode() + self.server.head_close, text)
        self.state = TAIL
        self.deadline_s = time.monotonic() + self.server.write_timeout_s
        self._pump()

    def _write_now(self, data: bytes) -> None:
        """A few bytes between answers; when not even these are taken, they are not needed."""
        if self.tls:
            self.transport.write(data)
            return
        try:
            os.write(self.fd, data)
        except OSError:
            return

    def _write_tls(self, data: bytes, taken: threading.Event) -> None:
        if self.transport is not None:
            self.transport.write(data)
            if not self.room and self.fd >= 0:
                self.waiters.append(taken)
                return
        taken.set()

    def _pump(self) -> None:
        """Sends on; when all is sent, the request is over."""
        tail, server = self.tail, self.server
        assert tail is not None
        try:
            sent = self._pump_tls() if self.tls else tail.send(self.fd)
        except OSError as error:
            log.debug("%s %s: %s", self.method, self.target, error)
            self.cut()
            return
        now_s = time.monotonic()
        if not tail.empty:
            if sent:
                self.deadline_s = now_s + server.write_timeout_s
            if not self.tls:
                server.writables.watch(self.fd, self._pump)
            return
        self.tail = None
        if not self.tls:
            server.writables.unwatch(self.fd)
        if self.keep and (self.buffer or not self.eof):
            self.deadline_s = now_s + server.keep_alive_s
            self.state = WAIT
            self._go_on_reading()
        else:
            self._shut()
            self._discard()
        if server.draining:
            server.left()

    def _pump_tls(self) -> int:
        assert self.tail is not None
        sent = 0
        while self.room:
            piece = self.tail.take()
            if not piece:
                break
            sent += len(piece)
            self.transport.write(piece)
        return sent

    def _shut(self) -> None:
        """Says that nothing more comes; what the peer still sends is read and forgotten, so that no reset destroys the
        answer on its way (RFC 9112 9.6). TLS: the loop says it."""
        self.deadline_s = time.monotonic() + DISCARD_S
        if not self.tls:
            with self.lock:
                if self.fd >= 0:
                    try:
                        shut(self.fd)
                    except OSError:
                        pass  # the peer has closed
        self.state = DISCARD

    def _discard(self) -> None:
        self.buffer.clear()
        self._read_on()
        if self.tls or self.eof:
            self.transport.close()
        elif self.wire is not None:
            self.wire.resume_reading()

    def _read_on(self) -> None:
        if self.paused and self.transport is not None:
            self.paused = False
            self.transport.resume_reading()

    # ---- time and the drain

    @property
    def in_hand(self) -> bool:
        return HEAD <= self.state <= TAIL or self.state == BROKEN

    def expired(self, now_s: float) -> None:
        """The sweep: the deadline is over."""
        if self.state == WAIT:
            self.retire()
        elif self.state == HEAD:
            self.refuse(exceeded("header_timeout_s"))
        elif self.state == BODY:
            self.refuse(exceeded("body_timeout_s"))
        elif self.state == TAIL:
            log.info("%s %s: the client does not read its answer; the connection is reset", self.method, self.target)
            self.cut()
        elif self.state == DISCARD:
            self.transport.abort()

    def retire(self) -> bool:
        """Closes an idle connection. False: there is something to read yet, or it is closing already."""
        if self.state != WAIT or self.buffer or (not self.tls and has_sent(self.fd)):
            return False
        self._shut()
        self._discard()
        return True

    def cut(self) -> None:
        """Resets the connection: the peer must not take what it has for a whole answer."""
        if self.transport is None:
            return
        if not self.tls:
            with self.lock:
                if self.fd >= 0:
                    with contextlib.suppress(OSError):
                        reset_at_close(self.fd)
        self.transport.abort()


def _keeps(wanted: str, http11: bool) -> bool:
    """By the Connection field."""
    words = {word.strip(" \t") for word in wanted.lower().split(",")}
    return "close" not in words and (http11 or "keep-alive" in words)


def _read(fd: int, at: int, end: int) -> bytes:
    """Raises ClientGone when the file is shorter than it was."""
    data = os.pread(fd, end - at, at)
    if len(data) < end - at:
        raise ClientGone("the file became shorter while it was sent")
    return data
