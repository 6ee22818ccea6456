"""Where lines of a log go: a file, a pipe, a terminal or a socket, written in batches and never waited for.

A full disk, a reader that stands still or a pipe that broke costs lines, which are counted, and no request. Several
workers write to one file or pipe: batches end with whole lines, files are appended to, and pipes get at most PIPE_BUF
bytes at a time, so that lines of two workers do not mix (write(2), pipe(7)); a single line longer than that may, on a
pipe. What must not live here: what a line says (`access_log.py`). Runs in the workers, on their event loop.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from collections import deque

PENDING_MAX_BYTES = 1024 * 1024  # what waits for a disk or a reader; beyond it the oldest lines go
_OPEN = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_WAIT = frozenset(
    (errno.EAGAIN, errno.EINTR, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.ENOBUFS)
)


class LineOutput:
    """target: a path, or "-" for `standard` (a descriptor). Raises OSError when the file cannot be opened.

    dropped: lines that were given up. Not for threads; no method blocks, as far as the file system itself does not."""

    def __init__(self, target: str, standard: int = 1) -> None:
        self.target = target
        self.dropped = 0
        self.trouble = ""  # why the last batch was not written; "" when it was
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._cut = False  # the last write ended within a line
        self._own = target != "-"
        self._attach(_open(target) if self._own else standard)

    def _attach(self, fd: int) -> None:
        self._fd = fd
        kind = os.fstat(fd).st_mode
        self._socket = stat.S_ISSOCK(kind)
        self._limit = 0 if stat.S_ISREG(kind) else select.PIPE_BUF

    def write(self, lines: bytes) -> None:
        """lines: whole ones. They are written now, with those that wait, or wait for the next call."""
        if lines:
            self._pending.append(lines)
            self._pending_bytes += len(lines)
        if not self._pending:
            return
        try:
            while self._pending:
                self._write_first()
        except OSError as error:
            self.trouble = error.strerror or str(error)
            if error.errno not in _WAIT:  # EPIPE, EBADF: nobody will ever read it
                self._drop(0)
        else:
            self.trouble = ""
        self._drop(PENDING_MAX_BYTES)

    def reopen(self) -> None:
        """Opens the path anew, after a rotation; what waits goes to the old file first. Raises OSError, and the old file is
        written on."""
        self.write(b"")
        if self._own:
            fd = _open(self.target)
            before = self._fd
            self._attach(fd)
            os.close(before)

    def close(self) -> None:
        """Writes what waits, as far as it goes."""
        self.write(b"")
        if self._own and self._fd >= 0:
            os.close(self._fd)
            self._fd, self._own = -1, False

    def _write_first(self) -> None:
        batch = self._pending[0]
        data = b"\n" + batch if self._cut else batch
        piece = _whole_lines(data, self._limit) if self._limit else data
        written = self._send(piece)
        self._cut = False
        if written < len(piece) and (written == 0 or piece[written - 1] != 0x0A):
            self._cut = written > 0
            after = piece.find(b"\n", written) + 1 or len(piece)  # the line that was cut is lost
            self.dropped += 1 if written else 0
            written = after if written else 0
        left = data[written:]
        self._pending_bytes -= len(batch) - len(left)
        if left:
            self._pending[0] = left
        else:
            self._pending.popleft()

    def _send(self, piece: bytes) -> int:
        if self._socket:
            with socket.socket(fileno=os.dup(self._fd)) as sock:
                return sock.send(piece, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._limit:
            waiting = select.poll()  # the descriptor is shared with the app, so O_NONBLOCK is not ours to set
            waiting.register(self._fd, select.POLLOUT)
            if not any(event & (select.POLLOUT | select.POLLERR) for _, event in waiting.poll(0)):
                raise BlockingIOError(errno.EAGAIN, "nobody reads it")
        return os.write(self._fd, piece)

    def _drop(self, keep_bytes: int) -> None:
        while self._pending_bytes > keep_bytes:
            batch = self._pending.popleft()
            self._pending_bytes -= len(batch)
            self.dropped += batch.count(b"\n")


def _whole_lines(data: bytes, limit: int) -> bytes:
    """As many whole lines as fit into `limit` bytes; at least one."""
    if len(data) <= limit:
        return data
    end = data.rfind(b"\n", 1, limit) + 1
    return data[: end or data.find(b"\n", 1) + 1 or len(data)]


def _open(path: str) -> int:
    try:
        return os.open(path, _OPEN, 0o644)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO whose reader is not there yet


def make_for(path: str, uid: int, gid: int) -> None:
    """Makes the log file for a user that may not make it himself. Nothing is changed where something is there: root
    follows no link that somebody else put there. Raises OSError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    except FileExistsError:
        return
    try:
        os.fchown(fd, uid, gid)
    finally:
        os.close(fd)
