"""The file of one service's log: opened, rotated, appended to. Blocks on the file system, and does nothing else.

What a failure means is the sink's to say (`sink.py`). For a path of the service's own all this runs in a thread, one call at a
time; nothing here looks at what belongs to the agent's loop.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from midstream.agent.logs.open_files import LogPlace, OpenFiles, OpenLog, open_to_read
from midstream.core import logline
from midstream.core.spec import LogSpec
from midstream.linux.file_identity import files_as

ROTATION_RETRY_S = 60.0


@dataclass(slots=True, eq=False)
class LogFile:
    place: LogPlace
    spec: LogSpec
    files: OpenFiles
    rotation_failed: str = ""  # set by `append`; whoever tells of it clears it
    _started_s: float | None = field(default=None)
    _rotation_after_s: float = 0.0

    def append(self, block: bytes, now_s: float) -> None:
        """Raises OSError; PartlyWritten when a part of it is in the file."""
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

    def reopen(self) -> None:
        """Closes it; the next line opens what is then at the path."""
        self.files.forget(self.place.path)
        self._started_s = None
        self._rotation_after_s = 0.0

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
            why = error.strerror or error
            self.rotation_failed = f"{self.place.path} cannot be rotated: {why}; it grows until that works"
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
