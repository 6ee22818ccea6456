"""One service's log file: writing lines, rotating it, and surviving a full disk. Runs in the agent.

Nothing here reads a pipe (`intake`) and nothing blocks but the file system itself.
A write that fails loses its lines, never the service: the lines are counted, told as an event, and named in the file by
the first write that works again. No timer tries again; the next line does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from midstream.agent.logs.open_files import LogPlace, OpenFiles, OpenLog, open_to_read
from midstream.core import logline
from midstream.core.logline import LogLine, Piece
from midstream.core.spec import LogSpec
from midstream.linux.file_identity import files_as

ROTATION_RETRY_S = 60.0


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
    """The file of one service, shared by all its instances. `clock` gives seconds since the epoch."""

    app: str
    service: str
    place: LogPlace
    spec: LogSpec
    files: OpenFiles
    clock: Callable[[], float]
    on_event: Callable[[LogEvent], None]
    followers: list[OnLines] = field(default_factory=list)
    lost_bytes: int = 0  # since the agent began
    lost_lines: int = 0
    _loss: Loss | None = None
    _started_s: float | None = None
    _rotation_after_s: float = 0.0

    def write(self, pieces: Sequence[Piece], generation: int, slot: int) -> None:
        """Append lines; when it returns they are in the file, or counted as lost. Never raises for the disk's sake."""
        now_s = self.clock()
        at = logline.stamp(now_s)
        block = logline.render(pieces, at, generation, slot, timestamps=self.spec.timestamps)
        self._store(block, pieces, now_s)
        if self.followers:
            self._tell(pieces, at, generation, slot)

    def note(self, text: str) -> None:
        """Append a line of Midstream's own, as `… - midstream: text`."""
        at = logline.stamp(self.clock())
        block = logline.render_note(text, at)
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
        if self._loss is not None:
            self._store(b"", (), self.clock())

    def reopen(self) -> None:
        """Close the file; the next line opens what is then at the path (for an external logrotate)."""
        self.files.forget(self.place.path)
        self._started_s = None
        self._rotation_after_s = 0.0

    def _tell(self, pieces: Sequence[Piece], at: str, generation: int, slot: int) -> None:
        lines = [
            LogLine(at, self.service, generation, slot, logline.readable(piece.text, raw=True), piece.cut)
            for piece in pieces
        ]
        for tell in tuple(self.followers):
            tell(lines)

    def _store(self, block: bytes, pieces: Sequence[Piece], now_s: float) -> None:
        head = self._loss_note(now_s)
        try:
            self._append(head + block, now_s)
        except OSError as error:
            kept = getattr(error, "kept_bytes", 0)
            self._after_failure(error, kept, head, block, pieces)
        else:
            self._resumed()

    def _after_failure(self, error: OSError, kept: int, head: bytes, block: bytes, pieces: Sequence[Piece]) -> None:
        if head and kept >= len(head):
            self._resumed()
        stored = block.count(b"\n", 0, max(kept - len(head), 0))
        dropped = pieces[stored:]
        size_bytes = sum(len(piece.text) + (not piece.cut) for piece in dropped)
        self.lose(size_bytes, len(dropped), f"{self.place.path}: {error.strerror or error}")

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

    def _append(self, block: bytes, now_s: float) -> None:
        log = self.files.get(self.place)
        if log.created or log.size_bytes == 0:
            self._started_s = now_s
        elif self._started_s is None:
            self._started_s = self._find_start()
        if now_s >= self._rotation_after_s and logline.must_rotate(
            self.spec, log.size_bytes, self._started_s, now_s, len(block)
        ):
            log = self._rotate(log, now_s)
        _write_all(log, block)

    def _find_start(self) -> float | None:
        """When the file was begun: the stamp of its first line, else when the file before it was last written."""
        with files_as(self.place.owner):
            try:
                fd = open_to_read(self.place.path)
            except OSError:
                return None
            try:
                head = os.read(fd, 64)
            finally:
                os.close(fd)
            try:
                return logline.stamp_time_s(head.split(b" ", 1)[0].decode())
            except ValueError:
                pass
            try:
                return os.stat(f"{self.place.path}.1").st_mtime
            except OSError:
                return os.stat(self.place.path).st_mtime

    def _rotate(self, log: OpenLog, now_s: float) -> OpenLog:
        """Put the file aside and begin another. When that fails, lines go on into the one there is."""
        try:
            with files_as(self.place.owner):
                rotate_files(self.place.path, self.spec.keep)
        except OSError as error:
            self._rotation_after_s = now_s + ROTATION_RETRY_S
            text = f"{self.place.path} cannot be rotated: {error.strerror or error}; it grows until that works"
            self.on_event(LogEvent(self.app, self.service, "log_rotation_failed", text))
            return log
        self._started_s = now_s
        return self.files.get(self.place)


def old_files(path: str) -> frozenset[int]:
    """The numbers N of the files `path.N`."""
    folder, name = os.path.split(path)
    found = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, _, number = entry.name.rpartition(".")
            if stem == name and number.isascii() and number.isdigit() and number[0] != "0":
                found.add(int(number))
    return frozenset(found)


def rotate_files(path: str, keep: int) -> None:
    """Rename `path` to `path.1`, `path.1` to `path.2` and so on, and delete what is beyond `keep`. Raises OSError."""

    def numbered(number: int) -> str:
        return f"{path}.{number}" if number else path

    moves = logline.rotation(old_files(path), keep)
    for number in moves.remove:
        os.unlink(numbered(number))
    for source, target in moves.rename:
        os.rename(numbered(source), numbered(target))


class PartlyWritten(OSError):
    """The write failed; `kept_bytes` of the block, all whole lines, are in the file."""

    def __init__(self, cause: OSError, kept_bytes: int) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.kept_bytes = kept_bytes


def _write_all(log: OpenLog, block: bytes) -> None:
    """Append `block`, or as many of its whole lines as fit; then raises PartlyWritten."""
    view = memoryview(block)
    done = 0
    try:
        while done < len(block):
            done += os.write(log.fd, view[done:])
    except OSError as error:
        kept = block.rfind(b"\n", 0, done) + 1
        size_bytes = os.fstat(log.fd).st_size
        if size_bytes == log.size_bytes + done:
            # We are the only writer: no half line stays behind to be joined with a later one.
            os.ftruncate(log.fd, log.size_bytes + kept)
        log.size_bytes += kept
        raise PartlyWritten(error, kept) from error
    log.size_bytes += done
