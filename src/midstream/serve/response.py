"""One answer of a WSGI app: start_response, write, the body's framing, errors (PEP 3333).

What must not live here: sockets (`http1.py` sends), requests. Runs in the app thread that has the request, or inline.
"""

from __future__ import annotations

import io
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from midstream.serve.answer_fields import CONNECTION, HOP, LENGTH, PLAIN, kinds
from midstream.serve.environ import Environ
from midstream.serve.output import ClientGone

if TYPE_CHECKING:
    from midstream.serve.http1 import Connection

log = logging.getLogger("midstream.serve")

_JOIN_BYTES = 65536  # a body up to this goes out in one piece with its head
_CACHE_MAX = 1024
_STATUS = re.compile(r"([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")


class Names(dict[str, int]):
    """What each header name is (`answer_fields`); remembers a bounded number. Raises TypeError, ValueError for what is no
    name."""

    def __init__(self, release_header: str) -> None:
        self._kinds = kinds(release_header)

    def __missing__(self, name: str) -> int:
        if not isinstance(name, str):
            raise TypeError(f"the name of a response header is a str, not {name!r}")
        if _NAME.match(name) is None:
            raise ValueError(f"{name!r} is no name of a response header")
        kind = self._kinds.get(name.lower(), PLAIN)
        if len(self) < _CACHE_MAX:
            self[name] = kind
        return kind


class _Statuses(dict[str, tuple[int, str]]):
    """The code and the status line of each status that the app gives. Raises TypeError, ValueError."""

    def __missing__(self, status: str) -> tuple[int, str]:
        if not isinstance(status, str):
            raise TypeError(f"the status is a str such as '200 OK', not {status!r}")
        match = _STATUS.match(status)
        if match is None or status[0] == "1":
            raise ValueError(f"{status!r} is no status such as '200 OK'")
        found = int(match.group(1)), f"HTTP/1.1 {status}\r\n" if len(status) > 3 else f"HTTP/1.1 {status} \r\n"
        if len(self) < _CACHE_MAX:
            self[status] = found
        return found


_statuses = _Statuses()


class FileWrapper:
    """wsgi.file_wrapper: returned as it is, and open on a regular file, it is sent by sendfile(2) from where the file
    stands; else read in blocks."""

    def __init__(self, filelike: Any, block_bytes: int = 65536) -> None:
        self.filelike = filelike
        self.block_bytes = block_bytes
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = self.filelike.read(self.block_bytes)
        if not block:
            raise StopIteration
        return cast(bytes, block)

    def stretch(self) -> tuple[int, int, int] | None:
        """Descriptor, offset and end, when it is a regular file."""
        file = self.filelike
        if type(file).__module__ == "tempfile":
            file = getattr(file, "file", file)
        raw = file.raw if isinstance(file, io.BufferedReader | io.BufferedRandom) else file
        if not isinstance(raw, io.FileIO):
            return None  # GzipFile and its like have a descriptor too, of other bytes than they read
        try:
            found = os.fstat(raw.fileno())
            at = file.tell()
        except (OSError, ValueError):
            return None
        return (raw.fileno(), at, max(at, found.st_size)) if stat.S_ISREG(found.st_mode) else None


class Response:
    """keep, broken, code and body_bytes are for the connection, when serve() has returned. keep: a further request may
    come. broken: the client must see that the answer is not whole."""

    __slots__ = (
        "_begun",
        "_bodiless",
        "_chunked",
        "_complete",
        "_connection",
        "_ended",
        "_headers",
        "_http11",
        "_left",
        "_line",
        "body_bytes",
        "broken",
        "code",
        "environ",
        "keep",
    )

    def __init__(self, connection: Connection, environ: Environ) -> None:
        self._connection = connection
        self.environ = environ
        self._http11 = connection.http11
        self.keep = connection.keep
        self._begun = False  # the head was given away
        self._ended = False
        self._complete = False  # all of it was given away
        self._chunked = False
        self._left = -1  # what the Content-Length still allows; -1: there is none
        self._line = ""
        self.code = 0
        self.body_bytes = 0
        self.broken = False

    def serve(self, app: Callable[..., Any]) -> None:
        """Calls the app and sends what it answers; returns after its close(). Raises nothing."""
        try:
            result = app(self.environ, self.start_response)
            try:
                kind = result.__class__
                if (kind is list or kind is tuple) and not self._begun:
                    self._whole(result)
                elif kind is FileWrapper and not self._begun and self._file(result):
                    pass
                else:
                    self._pieces(result)
            finally:
                close = getattr(result, "close", None)
                if close is not None:
                    close()
        except ClientGone as error:
            self.broken = True
            log.debug("%s %s: %s", self.environ.get("REQUEST_METHOD"), self.environ.get("REQUEST_URI"), error)
        except BaseException as error:  # also SystemExit: one view must not end the worker
            self._failed(error)
        self._ended = True

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """As PEP 3333 has it."""
        if self._ended:
            raise RuntimeError("start_response() is called after the request has ended")
        if exc_info is not None:
            try:
                if self._begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # else a reference cycle keeps the frames
        elif self._line:
            raise RuntimeError("start_response() is called twice without exc_info")
        self.code, self._line = _statuses[status]
        self._headers = headers
        return self.write

    def write(self, data: bytes) -> None:
        """Sends a piece of the body at once; blocks while the client does not read. Raises ClientGone."""
        if self._ended:
            raise RuntimeError("write() is called after the request has ended")
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"the body is made of bytes, not {type(data).__name__}")
        if not data:
            return
        head = b""
        if not self._begun:
            head = self._head(-1)
            self._begun = True
        piece = self._framed(bytes(data))
        if head and len(piece) > _JOIN_BYTES:
            self._connection.send(head)
            head = b""
        if head or piece:
            self._connection.send(head + piece)

    def _framed(self, data: bytes) -> bytes:
        """What of it may be sent, chunked where it must."""
        if self._bodiless:
            return b""
        if self._left >= 0:
            if len(data) > self._left:
                self._too_long()
                data = data[: self._left]
            self._left -= len(data)
        self.body_bytes += len(data)
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data

    def _whole(self, result: list[bytes] | tuple[bytes, ...]) -> None:
        """The body is there as a whole: its length is known, and mostly one write is enough."""
        body = result[0] if len(result) == 1 else b"".join(result)
        if not isinstance(body, bytes):
            raise TypeError(f"the body is made of bytes, not {type(body).__name__}")
        head = self._head(len(body))
        self._begun = True
        body = self._framed(body) if not self._bodiless else b""
        self._connection.send_last(head, body)
        self._check_length()

    def _pieces(self, result: Any) -> None:
        for piece in result:
            if piece or not isinstance(piece, bytes):
                self.write(piece)
        if not self._begun:
            head = self._head(0)
            self._begun = True
            self._connection.send_last(head, b"")
        elif self._chunked:
            self._connection.send_last(b"0\r\n\r\n", b"")
        self._check_length()

    def _file(self, wrapper: FileWrapper) -> bool:
        """Whether it could be sent as a file."""
        stretch = wrapper.stretch()
        if stretch is None:
            return False
        fd, at, end = stretch
        head = self._head(end - at)
        self._begun = True
        if self._bodiless:
            self._connection.send_last(head, b"")
            self._complete = True
            return True
        end = min(end, at + self._left)
        self._left -= end - at
        self.body_bytes += end - at
        self._connection.send_file(head, fd, at, end)
        self._check_length()
        return True

    def _check_length(self) -> None:
        self._complete = True
        if self._left > 0 and not self._bodiless:
            self.broken = True
            log.error(
                "%s %s: the app announced %d bytes more than it gave; the connection is reset",
                self.environ.get("REQUEST_METHOD"),
                self.environ.get("REQUEST_URI"),
                self._left,
            )

    def _too_long(self) -> None:
        log.error(
            "%s %s: the app gave more bytes than its Content-Length; the rest is not sent",
            self.environ.get("REQUEST_METHOD"),
            self.environ.get("REQUEST_URI"),
        )

    def _head(self, total: int) -> bytes:
        """The head, and how the body is framed. total: the length of the whole body; -1: not known. Raises TypeError,
        ValueError for headers that cannot be sent."""
        if not self._line:
            raise RuntimeError("the app has not called start_response()")
        lines = [self._line]
        given = -1
        own = 0
        names = self._connection.server.names
        for name, value in self._headers:
            kind = names[name]
            if value.__class__ is not str and not isinstance(value, str):
                raise TypeError(f"the value of the response header {name} is a str, not {value!r}")
            if not value.isprintable() and _CONTROL.search(value):
                raise ValueError(
                    f"the response header {name} contains a line break or NUL, or another control character: {value!r}"
                )
            if kind:
                if kind == LENGTH:
                    if given >= 0 and _length(value) != given:
                        raise ValueError("the response has two Content-Length")
                    if given >= 0 or self.code == 204:
                        continue
                    given = _length(value)
                elif kind == CONNECTION:
                    self.keep = self.keep and "close" not in value.lower()
                    continue
                elif kind == HOP:
                    continue
                else:
                    own |= kind
            lines.append(f"{name}: {value}\r\n")
        code = self.code
        connection = self._connection
        self._bodiless = code == 204 or code == 304 or connection.method == "HEAD"
        if self._bodiless:
            if given < 0 and total > 0 and code != 204 and code != 304:
                lines.append(f"Content-Length: {total}\r\n")
        elif given >= 0:
            self._left = given
        elif total >= 0:
            self._left = total
            lines.append(f"Content-Length: {total}\r\n")
        elif self._http11:
            self._chunked = True
            lines.append("Transfer-Encoding: chunked\r\n")
        else:
            self.keep = False  # the end of the connection is the end of the body
        self.keep, end = connection.head_end(self.keep, own)
        return "".join(lines).encode("latin-1") + end

    def _failed(self, error: BaseException) -> None:
        """The app raised, or gave what cannot be sent: 500, or a cut where the head is out already."""
        environ = self.environ
        log.error("%s %s failed", environ.get("REQUEST_METHOD"), environ.get("REQUEST_URI"), exc_info=error)
        if self._begun:
            self.broken = self.broken or not self._complete  # else it was close() that failed
            return
        self.code, self._line = _statuses["500 Internal Server Error"]
        self._headers = [("Content-Type", "text/plain; charset=utf-8")]
        self.keep = self._connection.keep
        body = b"500 Internal Server Error\n"
        try:
            head = self._head(len(body))
            self._begun = True
            self.body_bytes = 0 if self._bodiless else len(body)
            self._connection.send_last(head, b"" if self._bodiless else body)
        except ClientGone:
            self.broken = True


def _length(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"Content-Length {value!r} is no number")
    return int(value)
