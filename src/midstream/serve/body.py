"""A request's body, complete before the app runs: in memory, then in a file; and the reader of chunked bodies.

What must not live here: sockets, deadlines. Runs in the workers, in the thread of the event loop; writes to a file may
block it as long as the page cache makes them.
"""

from __future__ import annotations

import errno
import io
import re
import tempfile
from collections import deque
from typing import IO, cast

from midstream.serve.limits import (
    BODIES_IN_MEMORY,
    CHUNK_LINE_BYTES,
    FRAMING_PER_BODY_BYTE,
    NEVER_TRAILERS,
    SMALL_BODY_BYTES,
    TRAILER_BYTES,
    Refused,
    exceeded,
)

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FRAMING_FREE_BYTES = 65536
_HEX = frozenset(b"0123456789abcdefABCDEF")
_SIZE_DIGITS = 15  # below 2**60; zeros before them are none
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t\x20!#-\[\]-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_EXTENSIONS = re.compile(rb"(?:;[\t ]*%b(?:=(?:%b|%b))?)*\Z" % (_TOKEN, _TOKEN, _QUOTED))  # RFC 9112 7.1.1
_FIELD = re.compile(rb"(%b):[\t\x20-\x7e\x80-\xff]*\Z" % _TOKEN)  # RFC 9110 5.1, 5.5


class Memory:
    """What the bodies of one worker may take of its memory: each_bytes one, BODIES_IN_MEMORY times that all together, from
    their beginning until the app is done with them. Small ones are not counted: there are as many as connections."""

    __slots__ = ("_back", "_left_bytes", "each_bytes", "small_bytes")

    def __init__(self, each_bytes: int) -> None:
        self.each_bytes = each_bytes
        self.small_bytes = min(each_bytes, SMALL_BODY_BYTES)
        self._left_bytes = each_bytes * BODIES_IN_MEMORY
        self._back: deque[int] = deque()  # by app threads, which must not count

    def take(self, size: int) -> bool:
        """Whether there is so much; from the loop's thread."""
        while self._back:
            self._left_bytes += self._back.popleft()
        if size > self._left_bytes:
            return False
        self._left_bytes -= size
        return True

    def give_back(self, size: int) -> None:
        """From any thread."""
        if size:
            self._back.append(size)


class _InMemory(io.BytesIO):
    """A body for wsgi.input. Gives its memory back when it is closed, or forgotten."""

    def __init__(self, content: bytes, memory: Memory, taken: int) -> None:
        super().__init__(content)
        self._memory = memory
        self._taken = taken

    def close(self) -> None:
        taken, self._taken = self._taken, 0
        self._memory.give_back(taken)
        super().close()


class Body:
    """memory: what is kept there; more goes to an unnamed file in TMPDIR. limit_bytes: 0: none. size: by Content-Length,
    the limit included; -1: not known. Raises Refused 413 beyond the limit, 507 when the disk is full, 503 when no file can
    be made."""

    __slots__ = ("_file", "_limit_bytes", "_memory", "_pieces", "_taken", "_whole", "room", "size")

    def __init__(self, memory: Memory, limit_bytes: int, size: int = -1) -> None:
        self._memory = memory
        self._limit_bytes = limit_bytes
        self._pieces: list[bytes] = []
        self._taken = 0  # of the memory
        self._file: IO[bytes] | None = None
        self._whole: _InMemory | None = None  # where the body's size is known: it is read to its place
        self.room: memoryview | None = None  # what of that is to come
        self.size = 0
        if memory.small_bytes < size <= memory.each_bytes and memory.take(size):
            self._whole = _InMemory(bytes(size), memory, size)
            self.room = self._whole.getbuffer()

    def filled(self, count: int) -> None:
        """So much was read into `room`."""
        assert self.room is not None
        self.size += count
        self.room = self.room[count:]

    def add(self, piece: bytes) -> None:
        if self.room is not None:
            self.room[: len(piece)] = piece
            self.filled(len(piece))
            return
        self.size += len(piece)
        if self._limit_bytes and self.size > self._limit_bytes:
            raise exceeded("limit_body_bytes")
        if self._file is None:
            if self._fits(len(piece)):
                self._pieces.append(piece)
                return
            self._to_file()
        self._write(piece)

    def _fits(self, more: int) -> bool:
        """In memory."""
        if self.size <= self._memory.small_bytes:
            return True
        if self.size > self._memory.each_bytes or not self._memory.take(more):
            return False
        self._taken += more
        return True

    def _to_file(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(buffering=0)
        except OSError as error:
            raise _not_stored(error) from error
        for piece in self._pieces:
            self._write(piece)
        self._forget()

    def _forget(self) -> None:
        """What is in memory."""
        self._pieces.clear()
        self._memory.give_back(self._taken)
        self._taken = 0

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
        if self._whole is not None:
            self.room = None  # else it could not be given away without a copy
            whole, self._whole = self._whole, None
            return whole
        if self._file is None:
            content = b"".join(self._pieces)
            if not self._taken:
                return io.BytesIO(content)
            taken_bytes, self._taken = self._taken, 0
            return _InMemory(content, self._memory, taken_bytes)
        taken, self._file = self._file, None
        try:
            taken.seek(0)
            return io.BufferedReader(cast(io.RawIOBase, taken))  # a FileIO, because of buffering=0
        except OSError as error:
            taken.close()
            raise _not_stored(error) from error

    def close(self) -> None:
        """When the request is given up before it is complete. Idempotent."""
        self._forget()
        self.room = None
        if self._whole is not None:
            self._whole.close()
            self._whole = None
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
    if not digits or len(digits.lstrip(b"0")) > _SIZE_DIGITS or not _HEX.issuperset(digits):
        raise Refused(400, "the size of a chunk is no hexadecimal number")
    if _EXTENSIONS.match(line, len(digits)) is None:
        raise Refused(400, "the extension of a chunk is malformed")
    return int(digits, 16)
