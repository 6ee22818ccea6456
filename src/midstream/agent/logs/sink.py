"""One service's log: writing lines, telling followers, and surviving a disk that is full or hangs. Runs in the agent's loop.

Nothing here reads a pipe (`intake`). A file in the agent's own folder is written at once, and nothing blocks but that file
system, on which the database is, too. A path of the service's own may be on anything (a dead NFS server): it is written in a
thread of its user's (`apart`), one block at a time, and one that takes longer than `HANG_S` is not waited for.
A write that fails, or hangs, loses its lines, never the service: the lines are counted, told as an event, and named in the
file by the first write that works again. No timer tries again; the next line does.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from midstream.agent.apart import apart
from midstream.agent.logs.log_file import LogFile
from midstream.agent.logs.open_files import LogPlace, OpenFiles
from midstream.core import logline
from midstream.core.logline import LogLine, Piece
from midstream.core.spec import LogSpec
from midstream.errors import HostError

HANG_S = 10.0
_RECENT_LINES = 100
_BUSY_PAUSE_S = 0.05
_WAITING_MAX_BYTES = 1 << 20  # of what nobody waits for


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Something an operator should know. `kind`: log_losing, log_resumed, log_rotation_failed, log_follower_dropped."""

    app: str
    service: str
    kind: str
    text: str


@dataclass(slots=True)
class Loss:
    """What could not be written since `since`."""

    since: str
    reason: str
    lines: int = 0
    size_bytes: int = 0


OnLines = Callable[[Sequence[LogLine]], None]


@dataclass(slots=True)
class LogSink:
    """The file of one service, shared by all its instances. `clock` gives seconds since the epoch. `recent`: the last lines
    of one that is written apart, which are not read back from its file."""

    app: str
    service: str
    file: LogFile
    clock: Callable[[], float]
    on_event: Callable[[LogEvent], None]
    followers: list[OnLines] = field(default_factory=list)
    lost_bytes: int = 0  # since the agent began
    lost_lines: int = 0
    recent: deque[LogLine] = field(default_factory=lambda: deque(maxlen=_RECENT_LINES))
    _loss: Loss | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _hanging: asyncio.Task[None] | None = None
    _waiting_bytes: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def place(self) -> LogPlace:
        return self.file.place

    @property
    def spec(self) -> LogSpec:
        return self.file.spec

    @property
    def is_apart(self) -> bool:
        """Whether its file is a path of the service's own."""
        return bool(self.spec.path)

    def use(self, place: LogPlace, spec: LogSpec, shared: OpenFiles) -> None:
        """Where its lines go from now on. shared: the open files of those in the agent's own folder."""
        if place == self.place and bool(spec.path) == self.is_apart:
            self.file.spec = spec
            return
        self.reopen()
        self.file = LogFile(place, spec, OpenFiles(1) if spec.path else shared)

    def write(self, pieces: Sequence[Piece], generation: int, slot: int) -> None:
        """Append lines; when it returns they are in the file, or counted as lost; or on their way to a file that is written
        apart. Never raises for the disk's sake."""
        if self.is_apart:
            self._later(pieces, generation, slot)
            return
        now_s, at, block = self._rendered(pieces, generation, slot)
        self._store(block, pieces, now_s)
        self._tell(pieces, at, generation, slot)

    async def write_apart(self, pieces: Sequence[Piece], generation: int, slot: int) -> None:
        """Likewise, and returns when they are in the file or counted as lost: after `HANG_S` at the latest, when others do
        not wait before."""
        now_s, at, block = self._rendered(pieces, generation, slot)
        await self._store_apart(block, pieces, now_s)
        self._tell(pieces, at, generation, slot)

    def note(self, text: str) -> None:
        """Append a line of Midstream's own, as `… - midstream: text`."""
        at = logline.stamp(self.clock())
        block = logline.render_note(text, at)
        if self.is_apart:
            self._keep(self._store_apart(block, (), self.clock()))
        else:
            self._store(block, (), self.clock())
        line = logline.parse(block.rstrip(b"\n"), self.service)
        for tell in tuple(self.followers):
            tell((line,))

    def lose(self, size_bytes: int, lines: int, reason: str) -> None:
        """Count output that was lost, here or before it came here (the keeper's spool)."""
        self.lost_bytes += size_bytes
        self.lost_lines += lines
        if self._loss is None:
            self._loss = Loss(logline.stamp(self.clock()), reason)
            text = f"output of {self.service} is being lost: {reason}; the service itself goes on"
            self.on_event(LogEvent(self.app, self.service, "log_losing", text))
        self._loss.size_bytes += size_bytes
        self._loss.lines += lines

    def settle(self) -> None:
        """Name in the file what was lost until now, if the file can be written."""
        if self._loss is None:
            return
        if self.is_apart:
            self._keep(self._store_apart(b"", (), self.clock()))
        else:
            self._store(b"", (), self.clock())

    def reopen(self) -> None:
        """Close the file; the next line opens what is then at the path (for an external logrotate)."""
        if self.is_apart:  # a thread may be at it
            self._keep(self._close_apart(self.file))
            self.file = LogFile(self.place, self.spec, OpenFiles(1))
        else:
            self.file.reopen()

    async def idle(self) -> None:
        """Until all that was written is in the file, or counted as lost."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _rendered(self, pieces: Sequence[Piece], generation: int, slot: int) -> tuple[float, str, bytes]:
        now_s = self.clock()
        at = logline.stamp(now_s)
        return now_s, at, logline.render(pieces, at, generation, slot, timestamps=self.spec.timestamps)

    def _tell(self, pieces: Sequence[Piece], at: str, generation: int, slot: int) -> None:
        if not self.followers and not self.is_apart:
            return
        lines = [
            LogLine(at, self.service, generation, slot, logline.readable(piece.text, raw=True), piece.cut)
            for piece in pieces
        ]
        if self.is_apart:
            self.recent.extend(lines)
        for tell in tuple(self.followers):
            tell(lines)

    # -- at once -----------------------------------------------------------------------------------------------------

    def _store(self, block: bytes, pieces: Sequence[Piece], now_s: float) -> None:
        head = self._loss_note(now_s)
        try:
            self.file.append(head + block, now_s)
        except OSError as error:
            self._after_failure(error, head, block, pieces)
        else:
            self._resumed()
        self._tell_rotation(self.file)

    def _after_failure(self, error: OSError, head: bytes, block: bytes, pieces: Sequence[Piece]) -> None:
        kept = getattr(error, "kept_bytes", 0)
        if head and kept >= len(head):
            self._resumed()
        stored = block.count(b"\n", 0, max(kept - len(head), 0))
        self._lose(pieces[stored:], f"{self.place.path}: {error.strerror or error}")

    def _lose(self, pieces: Sequence[Piece], reason: str) -> None:
        self.lose(sum(len(piece.text) + (not piece.cut) for piece in pieces), len(pieces), reason)

    def _loss_note(self, now_s: float) -> bytes:
        loss = self._loss
        if loss is None:
            return b""
        text = f"{loss.lines} lines, {loss.size_bytes} bytes lost since {loss.since} ({loss.reason})"
        return logline.render_note(text, logline.stamp(now_s))

    def _resumed(self) -> None:
        loss, self._loss = self._loss, None
        if loss is not None:
            text = f"output of {self.service} is kept again; {loss.lines} lines, {loss.size_bytes} bytes were lost"
            self.on_event(LogEvent(self.app, self.service, "log_resumed", text))

    def _tell_rotation(self, file: LogFile) -> None:
        if file.rotation_failed:
            text, file.rotation_failed = file.rotation_failed, ""
            self.on_event(LogEvent(self.app, self.service, "log_rotation_failed", text))

    # -- apart -------------------------------------------------------------------------------------------------------

    def _later(self, pieces: Sequence[Piece], generation: int, slot: int) -> None:
        """For nobody who waits: what is left at the end of a process."""
        size_bytes = sum(len(piece.text) for piece in pieces)
        if self._waiting_bytes + size_bytes > _WAITING_MAX_BYTES:
            self._lose(pieces, f"{self.place.path}: its file system does not keep up")
            return
        self._waiting_bytes += size_bytes

        async def store() -> None:
            try:
                await self.write_apart(pieces, generation, slot)
            finally:
                self._waiting_bytes -= size_bytes

        self._keep(store())

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _store_apart(self, block: bytes, pieces: Sequence[Piece], now_s: float) -> None:
        async with self._turn:
            if self._hanging is not None:
                self._lose(pieces, self._hangs())
                return
            head, file = self._loss_note(now_s), self.file
            uid = _uid_of(file.place)
            writing = asyncio.get_running_loop().create_task(_append(uid, file, head + block, now_s))
            await asyncio.wait({writing}, timeout=HANG_S)
            if not writing.done():
                self._hanging = writing
                writing.add_done_callback(self._answers)
                self._lose(pieces, self._hangs())
                return
            self._stored(writing, head, block, pieces)
            self._tell_rotation(file)

    async def _close_apart(self, file: LogFile) -> None:
        async with self._turn:
            if self._hanging is not None:
                await asyncio.wait({self._hanging})
            with suppress(HostError, OSError):
                await apart(_uid_of(file.place), file.files.close)

    def _stored(self, writing: asyncio.Task[None], head: bytes, block: bytes, pieces: Sequence[Piece]) -> None:
        error = writing.exception()
        if error is None:
            self._resumed()
        elif isinstance(error, OSError):
            self._after_failure(error, head, block, pieces)
        else:
            self._lose(pieces, f"{self.place.path}: {type(error).__name__}: {error}")

    def _hangs(self) -> str:
        return f"{self.place.path}: its file system does not answer"

    def _answers(self, writing: asyncio.Task[None]) -> None:
        """What hung has come to an end. What was counted as lost may be in the file all the same."""
        if not writing.cancelled():
            writing.exception()
        self._hanging = None


def _uid_of(place: LogPlace) -> int:
    return place.owner.uid if place.owner is not None else os.getuid()


async def _append(uid: int, file: LogFile, block: bytes, now_s: float) -> None:
    """Where many of the user's are written at this moment, after them."""
    while True:
        try:
            return await apart(uid, file.append, block, now_s)
        except HostError:
            await asyncio.sleep(_BUSY_PAUSE_S)
