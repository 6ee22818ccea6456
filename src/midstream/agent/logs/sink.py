"""One service's log: writing lines, telling followers, and surviving a disk that is full or hangs. Runs in the agent's loop.

Nothing here reads a pipe (`intake`). A file in the agent's own folder is written while the loop waits (`writer`), as long as
that disk answers. A path of the service's own may be on anything (a dead NFS server): it is written in a thread of its user's
(`apart`), one block at a time, which nobody waits for in the loop. Nor does anybody for the agent's own folder, once it was
late. What takes longer than `HANG_S` is counted as lost.
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
from midstream.agent.logs.follow import last_lines
from midstream.agent.logs.log_file import LogFile
from midstream.agent.logs.open_files import LogPlace, OpenFiles
from midstream.agent.logs.writer import Late, Writer
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
Storing = Coroutine[Any, Any, None]


@dataclass(slots=True)
class LogSink:
    """The file of one service, shared by all its instances. `clock` gives seconds since the epoch. `recent`: the last lines
    of a path of its own, which are not read back from there."""

    app: str
    service: str
    file: LogFile
    clock: Callable[[], float]
    on_event: Callable[[LogEvent], None]
    writer: Writer
    followers: list[OnLines] = field(default_factory=list)
    lost_bytes: int = 0  # since the agent began
    lost_lines: int = 0
    recent: deque[LogLine] | None = None  # made for the first of them: a thousand empty ones are 0.8 MB
    _loss: Loss | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _hanging: asyncio.Future[None] | None = None
    _waiting_bytes: int = 0
    _tasks: set[asyncio.Task[None]] | None = None  # likewise

    @property
    def place(self) -> LogPlace:
        return self.file.place

    @property
    def spec(self) -> LogSpec:
        return self.file.spec

    @property
    def has_own_path(self) -> bool:
        return bool(self.spec.path)

    @property
    def is_apart(self) -> bool:
        """Whether the loop must not wait for its file."""
        return self.has_own_path or self.writer.is_late or self._turn.locked()

    def use(self, place: LogPlace, spec: LogSpec, shared: OpenFiles) -> None:
        """Where its lines go from now on. shared: the open files of those in the agent's own folder."""
        if place == self.place and bool(spec.path) == self.has_own_path:
            self.file.spec = spec
            return
        self.reopen()
        self.file = LogFile(place, spec, OpenFiles(1) if spec.path else shared)

    def write(self, pieces: Sequence[Piece], generation: int, slot: int) -> Storing | None:
        """Append lines. None: they are in the file, or counted as lost. Else that has to be awaited; it takes `HANG_S` at the
        most, when others do not wait before. Never raises for the disk's sake."""
        now_s, at, block = self._rendered(pieces, generation, slot)
        storing = self._store_apart(block, pieces, now_s) if self.is_apart else self._store(block, pieces, now_s)
        if storing is None:
            self._tell(pieces, at, generation, slot)
            return None

        async def told() -> None:
            await storing
            self._tell(pieces, at, generation, slot)

        return told()

    def put(self, pieces: Sequence[Piece], generation: int, slot: int) -> None:
        """Likewise, for nobody who waits: what is left at the end of a process."""
        if self.is_apart:
            self._later(pieces, generation, slot)
        else:
            self._keep(self.write(pieces, generation, slot))

    def last(self, count: int) -> list[LogLine]:
        """The last lines in its file; what is remembered of them where nobody may wait for that. Raises OSError."""
        if not self.is_apart:
            with suppress(Late):
                return self.writer.run(last_lines, self.place, self.service, count)
        return self.remembered(count)

    def remembered(self, count: int) -> list[LogLine]:
        """The last `count` of `recent`."""
        return list(self.recent)[-count:] if self.recent and count else []

    def note(self, text: str) -> None:
        """Append a line of Midstream's own, as `… - midstream: text`."""
        at = logline.stamp(self.clock())
        block = logline.render_note(text, at)
        self._put(block)
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
        if self._loss is not None:
            self._put(b"")

    def reopen(self) -> None:
        """Close the file; the next line opens what is then at the path (for an external logrotate)."""
        if self.has_own_path:  # a thread may be at it
            self._keep(self._close_apart(self.file))
            self.file = LogFile(self.place, self.spec, OpenFiles(1))
        else:
            with suppress(Late):
                self.writer.run(self.file.reopen)

    async def idle(self) -> None:
        """Until all that was written is in the file, or counted as lost."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _rendered(self, pieces: Sequence[Piece], generation: int, slot: int) -> tuple[float, str, bytes]:
        now_s = self.clock()
        at = logline.stamp(now_s)
        return now_s, at, logline.render(pieces, at, generation, slot, timestamps=self.spec.timestamps)

    def _tell(self, pieces: Sequence[Piece], at: str, generation: int, slot: int) -> None:
        if not self.followers and not self.has_own_path:
            return
        lines = [
            LogLine(at, self.service, generation, slot, logline.readable(piece.text, raw=True), piece.cut)
            for piece in pieces
        ]
        if self.has_own_path:
            if self.recent is None:
                self.recent = deque(maxlen=_RECENT_LINES)
            self.recent.extend(lines)
        for tell in tuple(self.followers):
            tell(lines)

    def _put(self, block: bytes) -> None:
        now_s = self.clock()
        self._keep(self._store_apart(block, (), now_s) if self.is_apart else self._store(block, (), now_s))

    # -- at once -----------------------------------------------------------------------------------------------------

    def _store(self, block: bytes, pieces: Sequence[Piece], now_s: float) -> Storing | None:
        head, file = self._loss_note(now_s), self.file
        try:
            self.writer.run(file.append, head + block, now_s)
        except Late as late:
            return self._store_late(late, head, block, pieces)
        except OSError as error:
            self._after_failure(error, head, block, pieces)
        else:
            self._resumed()
        self._tell_rotation(file)
        return None

    async def _store_late(self, late: Late, head: bytes, block: bytes, pieces: Sequence[Piece]) -> None:
        file = self.file
        async with self._turn:
            await self._outcome(asyncio.wrap_future(late.work), file, head, block, pieces)

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
        size_bytes = sum(len(piece.text) for piece in pieces)
        if self._waiting_bytes and self._waiting_bytes + size_bytes > _WAITING_MAX_BYTES:
            self._lose(pieces, f"{self.place.path}: its file system does not keep up")
            return
        self._waiting_bytes += size_bytes
        storing = self.write(pieces, generation, slot)

        async def store() -> None:
            try:
                if storing is not None:
                    await storing
            finally:
                self._waiting_bytes -= size_bytes

        self._keep(store())

    def _keep(self, work: Storing | None) -> None:
        if work is None:
            return
        task = asyncio.get_running_loop().create_task(work)
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _store_apart(self, block: bytes, pieces: Sequence[Piece], now_s: float) -> None:
        async with self._turn:
            if self._hanging is not None:
                self._lose(pieces, self._hangs())
                return
            head, file = self._loss_note(now_s), self.file
            await self._outcome(self._append(file, head + block, now_s), file, head, block, pieces)

    def _append(self, file: LogFile, block: bytes, now_s: float) -> asyncio.Future[None]:
        if self.has_own_path:
            return asyncio.ensure_future(_append_apart(_uid_of(file.place), file, block, now_s))
        return asyncio.wrap_future(self.writer.begin(file.append, block, now_s))

    async def _outcome(
        self, writing: asyncio.Future[None], file: LogFile, head: bytes, block: bytes, pieces: Sequence[Piece]
    ) -> None:
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

    def _stored(self, writing: asyncio.Future[None], head: bytes, block: bytes, pieces: Sequence[Piece]) -> None:
        error = writing.exception()
        if error is None:
            self._resumed()
        elif isinstance(error, OSError):
            self._after_failure(error, head, block, pieces)
        else:
            self._lose(pieces, f"{self.place.path}: {type(error).__name__}: {error}")

    def _hangs(self) -> str:
        return f"{self.place.path}: its file system does not answer"

    def _answers(self, writing: asyncio.Future[None]) -> None:
        """What hung has come to an end. What was counted as lost may be in the file all the same."""
        if not writing.cancelled():
            writing.exception()
        self._hanging = None


def _uid_of(place: LogPlace) -> int:
    return place.owner.uid if place.owner is not None else os.getuid()


async def _append_apart(uid: int, file: LogFile, block: bytes, now_s: float) -> None:
    """Where many of the user's are written at this moment, after them."""
    while True:
        try:
            return await apart(uid, file.append, block, now_s)
        except HostError:
            await asyncio.sleep(_BUSY_PAUSE_S)
