"""A request's body, complete before the app runs: in memory, then in a file; and the reader of chunked bodies.

What must not live here: sockets, deadlines. Runs in the workers, in the thread of the event loop; writes to a file may
block it as long as the page cache makes them.
"""

from __future__ import annotations

import errno
import io
import re
import tempfile
from typing import IO, cast

from midstream.serve.limits import (
    CHUNK_LINE_BYTES,
    FRAMING_PER_BODY_BYTE,
    NEVER_TRAILERS,
    TRAILER_BYTES,
    Refused,
    exceeded,
)

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FRAMING_FREE_BYTES = 65536
_HEX = frozenset(b"0123456789abcdefABCDEF")
_SIZE_DIGITS = 15  # below 2**60
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t\x20!#-\[\]-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_EXTENSIONS = re.compile(rb"(?:;[\t ]*%b(?:=(?:%b|%b))?)*\Z" % (_TOKEN, _TOKEN, _QUOTED))  # RFC 9112 7.1.1
_FIELD = re.compile(rb"(%b):[\t\x20-\x7e\x80-\xff]*\Z" % _TOKEN)  # RFC 9110 5.1, 5.5


class Body:
    """memory_bytes: what is kept in memory; more goes to an unnamed file in TMPDIR. limit_bytes: 0: none. Raises Refused
    413 beyond the limit, 507 when the disk is full, 503 when no file can be made."""

    __slots__ = ("_file", "_limit_bytes", "_memory", "_memory_bytes", "size")

    def __init__(self, memory_bytes: int, limit_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._limit_bytes = limit_bytes
        self._memory: list[bytes] = []
        self._file: IO[bytes] | None = None
        self.size = 0

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._limit_bytes and self.size > self._limit_bytes:
            raise exceeded("limit_body_bytes")
        if self._file is None:
            if self.size <= self._memory_bytes:
                self._memory.append(piece)
                return
            self._to_file()
        self._write(piece)

    def _to_file(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(buffering=0)
        except OSError as error:
            raise _not_stored(error) from error
        for piece in self._memory:
            self._write(piece)
        self._memory.clear()

    def _write(self, piece: bytes) -> None:
        assert self._file is not None
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _not_stored(error) from error

    def input(self) -> IO[bytes]:
        """The whole body, at its beginning, for wsgi.input. Whoever takes it closes it."""
        if self._file is None:
            return io.BytesIO(b"".join(self._memory))
        taken, self._file = self._file, None
        try:
            taken.seek(0)
            return io.BufferedReader(cast(io.RawIOBase, taken))  # a FileIO, because of buffering=0
        except OSError as error:
            taken.close()
            raise _not_stored(error) from error

    def close(self) -> None:
        """When the request is given up before it is complete. Idempotent."""
        self._memory.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


def _not_stored(error: OSError) -> Refused:
    if error.errno in _NO_ROOM:
        return Refused(507, "there is no room for the body")
    return Refused(503, "the body cannot be stored")


class Chunks:
    """Reads a chunked body (RFC 9112 7.1), strictly: CRLF only, no blanks in or around the size, trailers read and
    forgotten. feed() takes what has come and puts data into the body. Raises Refused 400."""

    __slots__ = ("_body", "_framing_bytes", "_line", "_need", "_step", "_trailer_bytes", "complete")

    _SIZE, _DATA, _DATA_END, _TRAILER = range(4)

    def __init__(self, body: Body) -> None:
        self._body = body
        self._step = self._SIZE
        self._need = 0  # of the chunk
        self._line = b""  # a size or trailer line that has not come whole
        self._framing_bytes = 0
        self._trailer_bytes = 0
        self.complete = False

    def feed(self, data: bytes) -> int:
        """How many bytes of data belong to this body; fewer than all only when it is complete."""
        at = 0
        while not self.complete and at < len(data):
            at = self._data(data, at) if self._step == self._DATA else self._line_step(data, at)
        return at

    def _data(self, data: bytes, at: int) -> int:
        piece = data[at : at + self._need]
        self._body.add(piece)
        self._need -= len(piece)
        if not self._need:
            self._step = self._DATA_END
        return at + len(piece)

    def _line_step(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at)
        piece = data[at:] if end < 0 else data[at : end + 1]
        self._line += piece
        self._count(len(piece))
        if end >= 0:
            line, self._line = self._line, b""
            if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
                raise Refused(400, "a line of the chunked body does not end with CR LF")
            self._whole_line(line[:-2])
        return at + len(piece)

    def _count(self, framing: int) -> None:
        """Bounds what is no body: long lines, and floods of extensions or tiny chunks."""
        longest = {self._SIZE: CHUNK_LINE_BYTES, self._DATA_END: 2, self._TRAILER: TRAILER_BYTES}[self._step]
        self._framing_bytes += framing
        if len(self._line) > longest:
            raise Refused(400, "a line of the chunked body is too long")
        if self._framing_bytes > _FRAMING_FREE_BYTES + FRAMING_PER_BODY_BYTE * self._body.size:
            raise Refused(400, "the chunked body is nearly all framing")

    def _whole_line(self, line: bytes) -> None:
        if self._step == self._DATA_END:
            if line:
                raise Refused(400, "a chunk is longer than its size")
            self._step = self._SIZE
        elif self._step == self._SIZE:
            self._need = _size(line)
            self._step = self._DATA if self._need else self._TRAILER
        elif line:
            self._trailer(line)
        else:
            self.complete = True

    def _trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        field = _FIELD.match(line)
        if field is None or field[1].lower() in NEVER_TRAILERS or self._trailer_bytes > TRAILER_BYTES:
            raise Refused(400, "a trailer of the chunked body is malformed, or has no place there")


def _size(line: bytes) -> int:
    """Of a chunk, from its line without CR LF; extensions are passed over."""
    digits = line.partition(b";")[0]
    if not digits or len(digits) > _SIZE_DIGITS or not _HEX.issuperset(digits):
        raise Refused(400, "the size of a chunk is no hexadecimal number")
    if _EXTENSIONS.match(line, len(digits)) is None:
        raise Refused(400, "the extension of a chunk is malformed")
    return int(digits, 16)
