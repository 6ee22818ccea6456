"""Where requests begin and end in what a client sends to an ASGI app, as far as the parser has to be told.

The parser passes over any number of empty lines, takes RTSP and ICE for HTTP, and goes on with the next request in the same
call. So it is given nothing beyond the end of a request, and first lines are looked at before. Pure: bytes in, places out.
What must not live here: I/O, the parser. Runs in the workers.
"""

from __future__ import annotations

from midstream.serve.limits import Refused

_END = b"\r\n\r\n"  # of a head, and of a chunked body


class Outline:
    """Of one connection."""

    __slots__ = ("_before", "_is_judged", "_line")

    def __init__(self) -> None:
        self._before = b""  # the last bytes that were given, where an end may have begun
        self._line = b""  # the first line of a request, as far as it has come
        self._is_judged = False

    def cut(self, data: bytes, body_left: int, most: int) -> int:
        """How much of data may be parsed in one go. body_left: bytes of the body that are to come; 0: not known, or a head.
        most: the longest piece of it without an end."""
        before, self._before = self._before, b""
        if body_left > 0:
            return body_left
        if before:
            at = (before + data[:3]).find(_END)
            if at >= 0:
                return at + 4 - len(before)
        at = data.find(_END)
        if at >= 0:
            return at + 4
        self._before = (before + data[:most])[-3:]
        return most

    def is_head(self, data: bytes, most: int) -> bool:
        """Whether it is one whole head and nothing else, most bytes at most. To be asked where a request may begin; then
        it need not be cut."""
        at = data.find(_END)
        if not 0 < at == len(data) - 4 <= most - 4 or data[0] <= 0x20 or self._line:
            return False
        self._before = b""
        return True

    def look(self, piece: bytes, *, begins: bool) -> None:
        """Before a piece of a head is parsed. begins: nothing of this request was parsed yet. Raises Refused."""
        if self._is_judged:
            if not begins:
                return
            self._is_judged = False
        line = self._line + piece if self._line else piece
        start = 0
        if line[0] < 0x20:  # one empty line before a request is forgiven (RFC 9112 2.2)
            if not line.startswith(b"\r\n"[: len(line)]) or line[2:3] in (b"\r", b"\n"):
                raise Refused(400, "more than an empty line stands before the request")
            start = 2
        end = line.find(b"\r\n", start)
        if end < 0:
            self._line = line
            return
        self._line, self._is_judged = b"", True
        _judge(line[start:end])


def _judge(line: bytes) -> None:
    if line[-9:-1] == b" HTTP/1." and line.count(b" ") == 2:
        return
    words = line.split(b" ")
    if len(words) != 3:
        raise Refused(400, "the request line is not METHOD TARGET VERSION")
    raise Refused(505 if words[2].startswith(b"HTTP/") else 400, "the version is neither HTTP/1.1 nor HTTP/1.0")
