"""Beginnings of lines whose newline has not come yet, kept where a killed agent does not lose them. In the agent.

One file, one slot a channel: `NAME LENGTH\\n`, padded, then the bytes. A slot is written before its bytes are consumed
from the FIFO. Leaving them in the FIFO instead was tried: a writer that blocks in the middle of one large write wakes a
reader only if it found the pipe empty (pipe_write in fs/pipe.c), so it would wait for ever.
Most services write whole lines and never use this. Not for a reboot: the file is not synced.
"""

from __future__ import annotations

import os
import threading

from midstream.core.logline import LINE_MAX_BYTES, ChannelName, parse_channel

_HEAD_BYTES = 256
_SLOT_BYTES = _HEAD_BYTES + LINE_MAX_BYTES


class Unfinished:
    """The file of unfinished lines; what touches it blocks. A disk that is full makes `keep` do nothing: the bytes are then
    only in memory."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._slots: dict[ChannelName, int] = {}
        self._free: list[int] = []
        self._count = 0
        self._left: dict[ChannelName, bytes] = {}
        self._noted: dict[ChannelName, bytes] = {}  # by the agent's loop
        self._noting = threading.Lock()

    def read_back(self) -> None:
        """What an earlier agent left, before anything else is kept. Raises OSError."""
        if not os.path.exists(self._path):
            return
        self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._count = -(-os.fstat(self._fd).st_size // _SLOT_BYTES)
        for slot in range(self._count):
            head = os.pread(self._fd, _HEAD_BYTES, slot * _SLOT_BYTES)
            try:
                name_text, length = head.split(b"\n", 1)[0].decode().rsplit(" ", 1)
                name, size_bytes = parse_channel(name_text), int(length)
            except ValueError:
                name, size_bytes = None, 0
            if name is None or not 0 < size_bytes <= LINE_MAX_BYTES or name in self._slots:
                self._free.append(slot)
                continue
            self._slots[name] = slot
            self._left[name] = os.pread(self._fd, size_bytes, slot * _SLOT_BYTES + _HEAD_BYTES)

    def take_over(self, name: ChannelName) -> bytes:
        """What an earlier agent left of this channel, once, or b"". `keep(name, b"")` then clears the slot."""
        return self._left.pop(name, b"")

    def note(self, name: ChannelName, data: bytes) -> bool:
        """What `keep_noted` is to keep; does not block. False: that was asked for already, and has not begun. So a line
        that grows is in memory once, however long the disk hangs."""
        with self._noting:
            waits = name in self._noted
            self._noted[name] = data
        return not waits

    def keep_noted(self, name: ChannelName) -> None:
        with self._noting:
            data = self._noted.pop(name)
        self.keep(name, data)

    def keep(self, name: ChannelName, data: bytes) -> None:
        """Remember the unfinished line of a channel (at most LINE_MAX_BYTES), or with b"" that there is none."""
        if not data and name not in self._slots:
            return
        try:
            self._write(name, data)
        except OSError:
            # Full or broken: `data` is in memory and comes out with its newline. Only a kill now would lose it.
            return
        if not data:
            self._free.append(self._slots.pop(name))

    def _write(self, name: ChannelName, data: bytes) -> None:
        if self._fd < 0:
            os.makedirs(os.path.dirname(self._path), 0o750, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags, 0o600)
        slot = self._slots.get(name)
        if slot is None:
            slot = self._free.pop() if self._free else self._count
            self._count = max(self._count, slot + 1)
            self._slots[name] = slot
        head = f"{name} {len(data)}\n".encode().ljust(_HEAD_BYTES, b"\0")
        os.pwrite(self._fd, head + data, slot * _SLOT_BYTES)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
