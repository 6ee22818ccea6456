"""A few open files on behalf of many log paths: opened on demand, the one unused for longest is closed. In the agent.

No path is trusted: with an owner, it is looked up with the owner's rights, and only a regular file is accepted.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from dataclasses import dataclass, field

from midstream.linux.file_identity import FileUser, files_as


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Where a service's lines go. `owner`: whose rights apply to the path; None: the agent's own, for its own folder.
    `reader_gid`: the group that may read a file in the agent's own folder."""

    path: str
    owner: FileUser | None = None
    reader_gid: int | None = None


@dataclass(slots=True)
class OpenLog:
    """An open log file: `size_bytes` and identity are as of the last look."""

    fd: int
    device: int
    inode: int
    size_bytes: int
    created: bool


@dataclass(slots=True)
class OpenFiles:
    """At most `limit` files open for appending."""

    limit: int = 64
    _open: OrderedDict[str, OpenLog] = field(default_factory=OrderedDict)

    def get(self, place: LogPlace) -> OpenLog:
        """The file that is at the path now, opened or made as needed; another one than last time when somebody moved
        it. Raises OSError; ELOOP and the like when it is not a regular file."""
        with files_as(place.owner):
            return self._look(place) or self._create(place)

    def _look(self, place: LogPlace) -> OpenLog | None:
        log = self._open.get(place.path)
        if log is None:
            return None
        try:
            there = os.stat(place.path)
        except FileNotFoundError:
            self.forget(place.path)
            return None
        if (there.st_dev, there.st_ino) != (log.device, log.inode):
            self.forget(place.path)
            return None
        log.size_bytes = there.st_size
        log.created = False
        self._open.move_to_end(place.path)
        return log

    def _create(self, place: LogPlace) -> OpenLog:
        os.makedirs(os.path.dirname(place.path), 0o755 if place.owner else 0o750, exist_ok=True)
        fd, created = _open_append(place.path)
        facts = os.fstat(fd)
        if created and place.reader_gid is not None and place.owner is None:
            os.fchown(fd, -1, place.reader_gid)
        log = OpenLog(fd, facts.st_dev, facts.st_ino, facts.st_size, created)
        self._open[place.path] = log
        if len(self._open) > self.limit:
            self.forget(next(iter(self._open)))
        return log

    def forget(self, path: str) -> None:
        """Close the file of `path`, if it is open."""
        log = self._open.pop(path, None)
        if log is not None:
            os.close(log.fd)

    def close(self) -> None:
        for path in list(self._open):
            self.forget(path)


# O_NONBLOCK: opening a FIFO that somebody put there must not hang the agent.
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def _open_append(path: str) -> tuple[int, bool]:
    try:
        fd, created = os.open(path, _APPEND | os.O_CREAT | os.O_EXCL, 0o640), True
    except FileExistsError:
        fd, created = os.open(path, _APPEND | os.O_CREAT, 0o640), False
    try:
        _require_regular(fd, path)
    except OSError:
        os.close(fd)
        raise
    return fd, created


def open_to_read(path: str) -> int:
    """A descriptor for a log file. Raises OSError, also when it is not a regular file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _require_regular(fd, path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _require_regular(fd: int, path: str) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(f"{path} is not a regular file")
