"""Reading logs back: the last lines over current and rotated files, and a bounded queue of live ones. In the agent.

Files are read backwards in blocks, synchronously: what is asked for is bounded by `HISTORY_MAX_LINES`.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from midstream.agent.logs.log_file import old_files
from midstream.agent.logs.open_files import LogPlace, open_to_read
from midstream.core import logline
from midstream.core.logline import LogLine
from midstream.linux.file_identity import files_as

HISTORY_MAX_LINES = 100_000
QUEUE_MAX_LINES = 20_000
QUEUE_MAX_CHARS = 8 * 1024 * 1024
_BLOCK_BYTES = 64 * 1024


def last_lines(place: LogPlace, service: str, count: int) -> list[LogLine]:
    """The last `count` lines in time order, unsanitised, from the current file and, as needed, the older ones.
    Files that cannot be read are left out. Blocks on the file system."""
    stored: list[bytes] = []
    count = min(count, HISTORY_MAX_LINES)
    with files_as(place.owner):
        for path in _newest_first(place.path):
            if len(stored) >= count:
                break
            try:
                fd = open_to_read(path)
            except OSError:
                continue
            try:
                stored = tail(fd, count - len(stored)) + stored
            finally:
                os.close(fd)
    lines: list[LogLine] = []
    time = ""
    for item in stored:
        line = logline.parse(item, service, raw=True, time=time)
        time = line.time
        lines.append(line)
    return lines


def _newest_first(path: str) -> list[str]:
    try:
        numbers = sorted(old_files(path))
    except OSError:
        return []
    return [path, *(f"{path}.{number}" for number in numbers)]


def tail(fd: int, count: int) -> list[bytes]:
    """The last `count` lines of the file `fd`, without newlines, oldest first. An unfinished last line counts."""
    end = os.fstat(fd).st_size
    data = b""
    while end > 0 and data.count(b"\n") <= count:
        start = max(end - _BLOCK_BYTES, 0)
        data = os.pread(fd, end - start, start) + data
        end = start
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return lines[-count:] if count else []


@dataclass(slots=True)
class Follower:
    """Live lines on their way to one reader. When the reader is so slow that the queue is full, nothing more is taken,
    and after what is queued it gets a note and the end: no reader is waited for."""

    on_dropped: Callable[[], None]
    dropped: bool = False
    _lines: deque[LogLine] = field(default_factory=deque)
    _chars: int = 0
    _ready: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, lines: Sequence[LogLine]) -> None:
        if self.dropped:
            return
        chars = sum(len(line.text) for line in lines)
        if len(self._lines) + len(lines) > QUEUE_MAX_LINES or self._chars + chars > QUEUE_MAX_CHARS:
            self.dropped = True
            self.on_dropped()
        else:
            self._lines.extend(lines)
            self._chars += chars
        self._ready.set()

    async def next(self) -> LogLine | None:
        """The next line; None when this follower was dropped and the queue is empty."""
        while not self._lines:
            if self.dropped:
                return None
            self._ready.clear()
            await self._ready.wait()
        line = self._lines.popleft()
        self._chars -= len(line.text)
        return line
