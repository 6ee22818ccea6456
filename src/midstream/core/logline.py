"""Lines of output: how a stream is cut into lines, what a line looks like in a log file, when the file is rotated.

Pure: bytes and times come in, values go out; files, pipes and clocks are in `agent/logs`, which runs in the agent.
A line in a log file is `2026-11-21T19:05:01.123Z 42.0 text`: time in UTC, generation and slot, what the process wrote.
`42.0+` marks a piece that was cut: the next `42.0` line goes on where it ended. `-` marks a note of Midstream's own.
What a process wrote stays in the file byte for byte; control characters are made visible only when it is shown.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from midstream.core.spec import LogSpec

LINE_MAX_BYTES = 16 * 1024

# C0 but for the tab, DEL, C1, line and paragraph separators, and the bidirectional overrides, which can make a
# terminal show other text than there is (CVE-2021-42574).
_UNSAFE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")
_STORED = re.compile(
    rb"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) "
    rb"(?:(?P<generation>\d{1,18})\.(?P<slot>\d{1,18})(?P<cut>\+?)|(?P<note>-))(?: (?P<text>.*))?\Z",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, order=True)
class ChannelName:
    """Whose output a FIFO carries: one instance, through all its restarts. Written `app/service/generation/slot`."""

    app: str
    service: str
    generation: int
    slot: int

    def __str__(self) -> str:
        return f"{self.app}/{self.service}/{self.generation}/{self.slot}"


def parse_channel(text: str) -> ChannelName:
    """The name that `str(name)` wrote. Raises ValueError for anything else."""
    parts = text.split("/")
    if len(parts) != 4 or not (parts[2].isdecimal() and parts[3].isdecimal()) or not (parts[0] and parts[1]):
        raise ValueError(f"not a channel name: {text!r}")
    return ChannelName(parts[0], parts[1], int(parts[2]), int(parts[3]))


class Rest(enum.Enum):
    """What becomes of bytes after the last newline. KEEP: they wait for their newline. CUT: taken as a cut piece.
    END: taken as a whole line, because nothing will follow."""

    KEEP = "keep"
    CUT = "cut"
    END = "end"


@dataclass(frozen=True, slots=True)
class Piece:
    """A line without its newline, or (`cut`) the beginning of one that goes on in the stream's next piece."""

    text: bytes
    cut: bool = False


def split(data: bytes, rest: Rest = Rest.KEEP, limit: int = LINE_MAX_BYTES) -> tuple[list[Piece], int]:
    """The pieces at the front of `data`, none longer than `limit`, and how many bytes of `data` they account for."""
    lines = data.split(b"\n")
    tail = lines.pop()
    pieces: list[Piece] = []
    for line in lines:
        while len(line) > limit:
            at = _boundary(line, limit)
            pieces.append(Piece(line[:at], cut=True))
            line = line[at:]
        pieces.append(Piece(line))
    consumed = len(data) - len(tail)
    while len(tail) > limit:
        at = _boundary(tail, limit)
        pieces.append(Piece(tail[:at], cut=True))
        tail = tail[at:]
        consumed += at
    if tail and rest is not Rest.KEEP:
        pieces.append(Piece(tail, cut=rest is Rest.CUT))
        consumed += len(tail)
    return pieces, consumed


def _boundary(line: bytes, limit: int) -> int:
    """Where to cut so that no UTF-8 sequence is torn, as far as this is UTF-8 at all."""
    for at in range(limit, max(limit - 4, 0), -1):
        if line[at] & 0xC0 != 0x80:
            return at
    return limit


def stamp(time_s: float) -> str:
    """`time_s` (seconds since the epoch) as ISO 8601 in UTC with milliseconds: sorts as text, reads as a date."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def stamp_time_s(text: str) -> float:
    """The seconds since the epoch that `stamp` wrote. Raises ValueError."""
    return datetime.fromisoformat(text).timestamp()


def render(pieces: Sequence[Piece], at: str, generation: int, slot: int, *, timestamps: bool = True) -> bytes:
    """The bytes that go into the log file, one line a piece. Without time stamps a cut piece cannot be told from a
    line: instances share the file, so joining it to what comes next could join two processes' lines."""
    if not timestamps:
        return b"".join(piece.text + b"\n" for piece in pieces)
    whole = f"{at} {generation}.{slot} ".encode()
    cut = f"{at} {generation}.{slot}+ ".encode()
    return b"".join((cut if piece.cut else whole) + piece.text + b"\n" for piece in pieces)


def render_note(text: str, at: str) -> bytes:
    """A line of Midstream's own for the log file; always stamped, so that it cannot be taken for the service's."""
    return f"{at} - midstream: {text}\n".encode()


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line as followers get it. `generation` and `slot` are None for a note, and for a line that was stored
    without time stamps; then `time` is that of the stamped line before it, or empty."""

    time: str
    service: str
    generation: int | None
    slot: int | None
    text: str
    cut: bool = False

    def to_wire(self) -> dict[str, object]:
        """The parameters of the control protocol's `log` notification."""
        wire: dict[str, object] = {"time": self.time, "service": self.service, "line": self.text}
        wire |= {"generation": self.generation, "slot": self.slot}
        return wire | {"cut": True} if self.cut else wire


def parse(stored: bytes, service: str, *, raw: bool = False, time: str = "") -> LogLine:
    """What `render` wrote, without the newline. A line in no form of ours is taken whole, with `time` for its time."""
    found = _STORED.match(stored)
    if found is None:
        return LogLine(time, service, None, None, readable(stored, raw=raw))
    text = readable(found["text"] or b"", raw=raw)
    at = found["time"].decode()
    if found["note"]:
        return LogLine(at, service, None, None, text)
    return LogLine(at, service, int(found["generation"]), int(found["slot"]), text, bool(found["cut"]))


def readable(text: bytes, *, raw: bool = False) -> str:
    """`text` as a string. Bytes that are not UTF-8 become `\\xNN`; unless `raw`, control characters become visible,
    so that no line can move the cursor, set the title or recolour the terminal of who reads it."""
    decoded = text.decode("utf-8", "backslashreplace")
    return decoded if raw else visible(decoded)


def visible(text: str) -> str:
    """`text` with each control character as an escape (`\\x1b`)."""
    return _UNSAFE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def must_rotate(spec: LogSpec, size_bytes: int, started_s: float | None, now_s: float, incoming_bytes: int) -> bool:
    """Whether the file is put aside before `incoming_bytes` are added to it. `started_s`: time of its first line, None
    when unknown. An empty file never is; a limit of 0 is no limit."""
    if size_bytes == 0:
        return False
    if spec.max_size_bytes and size_bytes + incoming_bytes > spec.max_size_bytes:
        return True
    return bool(spec.max_age_s) and started_s is not None and now_s - started_s >= spec.max_age_s


@dataclass(frozen=True, slots=True)
class Rotation:
    """Numbers of old files, 0 being the current one: first delete `remove`, then rename each pair, in this order."""

    remove: tuple[int, ...]
    rename: tuple[tuple[int, int], ...]


def rotation(existing: frozenset[int], keep: int) -> Rotation:
    """How to make room for a new current file. `existing`: numbers of the old files there are. A gap, as a rotation
    that was killed half-way leaves it, is closed instead of pushing the oldest file out."""
    if keep < 1:
        return Rotation(tuple(sorted(existing | {0})), ())
    last = 0
    while last + 1 in existing and last + 1 < keep:
        last += 1
    remove = tuple(sorted(number for number in existing if number > keep or number == last + 1))
    return Rotation(remove, tuple((number, number + 1) for number in range(last, -1, -1)))
