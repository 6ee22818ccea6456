"""The board: one shared memory file for each zygote, one row for each worker slot, one writer for each row.

What lives here: the layout, `BoardSeat` (a worker's own row, contract.Seat) and `Board` (everybody's reading of all rows).
What must not: decisions. The zygote makes it before it forks; workers write, zygote, master and metrics read, without a
lock. Every value is eight aligned bytes, written by one store, so none is ever read half; values of one row may be of
two moments that lie microseconds apart, which is harmless: totals are added up from their parts, never stored beside them.

Counters go on over the workers of a slot: who takes a dead one's seat goes on counting where that one stopped.
"""

from __future__ import annotations

import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from midstream.serve.contract import NO_RIVAL, Traffic

LAYOUT = 1
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # and one for what is longer
REFUSED_STATUSES = (400, 403, 408, 411, 413, 414, 417, 421, 431, 500, 501, 503, 505, 507)  # and one for others

_MAGIC = b"MIDBOARD"
_HEAD = struct.Struct("=8sQQQ")
_HEAD_WORDS = 8
_ROW_WORDS = 64
# Places in a row, in words of eight bytes.
_PID, _BEAT, _IN_FLIGHT, _IDLE, _WEBSOCKETS, _OLDEST, _STUCK, _TAKES = range(8)  # _TAKES: connections + 1; 0: no more
_CLASSES = 8  # six: others, 1xx … 5xx
_BYTES = 14
_SECONDS = 15
_LATENCY = 16
_REFUSED = 32


@dataclass(frozen=True, slots=True)
class Row:
    """One slot as it was a moment ago. pid 0: nobody sits there. beat_s, stuck_since_s: CLOCK_MONOTONIC, 0.0: never, not."""

    slot: int
    pid: int
    beat_s: float
    stuck_since_s: float
    traffic: Traffic
    by_class: tuple[int, ...]  # answers: [0] others, [1] 1xx … [5] 5xx
    bytes_sent: int
    seconds: float  # of all answers together
    latency: tuple[int, ...]  # answers in each of LATENCY_BUCKETS_S, then the longer ones; not cumulated
    refused: dict[int, int]  # status (0: others) -> requests that never saw the app

    @property
    def answered(self) -> int:
        return sum(self.by_class)


class Board:
    """Raises ValueError for a file of another layout, OSError when there is no memory."""

    def __init__(self, fd: int) -> None:
        """Owns `fd`."""
        self.fd = fd
        size = os.fstat(fd).st_size
        if size < _HEAD.size:
            raise ValueError("not a board")
        self._memory = mmap.mmap(fd, size)
        magic, layout, rows, words = _HEAD.unpack_from(self._memory)
        if magic != _MAGIC or layout != LAYOUT or words != _ROW_WORDS:
            raise ValueError(f"a board of another layout: {layout}")
        if size < (_HEAD_WORDS + rows * _ROW_WORDS) * 8:
            raise ValueError("a board that was cut off")
        self.slots = int(rows)
        view = memoryview(self._memory)
        self._whole = view.cast("Q")
        self._real = view.cast("d")

    @classmethod
    def make(cls, slots: int) -> Board:
        """An empty one. Only pages that are written to cost memory, so `slots` may be generous."""
        fd = os.memfd_create("midstream-board", os.MFD_CLOEXEC)
        os.truncate(fd, (_HEAD_WORDS + slots * _ROW_WORDS) * 8)
        os.pwrite(fd, _HEAD.pack(_MAGIC, LAYOUT, slots, _ROW_WORDS), 0)
        return cls(fd)

    def seat(
        self, slot: int, on_limit: Callable[[], None] | None = None, limit: int = 0, *, workers: int = 1
    ) -> BoardSeat:
        """The writer's side of a row, for one process alone. on_limit is called once, when this process has answered
        `limit` requests (0: never). workers: the first slots, whose workers are its rivals from the beginning; it looks for
        others once a second."""
        self.clear(slot)
        self._whole[_at(slot) + _PID] = os.getpid()
        return BoardSeat(self._whole, self._real, _at(slot), min(workers, self.slots), self.slots, on_limit, limit)

    def clear(self, slot: int) -> None:
        """Nobody sits there any more: what was in hand is gone, what was counted stays. Only when its writer has ended."""
        at = _at(slot)
        for place in (_PID, _IN_FLIGHT, _IDLE, _WEBSOCKETS, _TAKES):
            self._whole[at + place] = 0
        for place in (_BEAT, _OLDEST, _STUCK):
            self._real[at + place] = 0.0

    def row(self, slot: int) -> Row:
        at = _at(slot)
        whole, real = self._whole, self._real
        refused = zip(
            (*REFUSED_STATUSES, 0), whole[at + _REFUSED : at + _REFUSED + len(REFUSED_STATUSES) + 1], strict=True
        )
        return Row(
            slot,
            whole[at + _PID],
            real[at + _BEAT],
            real[at + _STUCK],
            Traffic(whole[at + _IN_FLIGHT], whole[at + _IDLE], whole[at + _WEBSOCKETS], real[at + _OLDEST]),
            tuple(whole[at + _CLASSES : at + _CLASSES + 6]),
            whole[at + _BYTES],
            real[at + _SECONDS],
            tuple(whole[at + _LATENCY : at + _LATENCY + len(LATENCY_BUCKETS_S) + 1]),
            {status: count for status, count in refused if count},
        )

    def rows(self) -> list[Row]:
        """Of the slots that somebody sits or sat on: slots are given from 0 on."""
        found = []
        for slot in range(self.slots):
            row = self.row(slot)
            if row.pid or row.answered or row.refused:
                found.append(row)
        return found

    def traffic(self) -> Traffic:
        """Of all workers together."""
        return add_up(row.traffic for row in self.rows())

    def close(self) -> None:
        self._whole.release()
        self._real.release()
        os.close(self.fd)


def add_up(all_of_them: Iterable[Traffic]) -> Traffic:
    """What several have in hand together; the oldest is the oldest of all."""
    in_flight = idle = websockets = 0
    oldest_s = 0.0
    for one in all_of_them:
        in_flight += one.in_flight
        idle += one.idle
        websockets += one.websockets
        oldest_s = max(oldest_s, one.oldest_s)
    return Traffic(in_flight, idle, websockets, oldest_s)


def traffic_text(traffic: Traffic) -> str:
    """For a person."""
    text = f"{traffic.in_flight} in flight, {traffic.idle} idle"
    if traffic.websockets:
        text += f", {traffic.websockets} WebSockets"
    if traffic.oldest_s:
        text += f", oldest {traffic.oldest_s:.1f} s"
    return text


class BoardSeat:
    """contract.Seat on one row. `count` is called for each request: no call into Python but `bisect`."""

    __slots__ = ("_at", "_left", "_on_limit", "_real", "_rivals", "_slots", "_whole", "_workers")

    def __init__(
        self,
        whole: memoryview[int],
        real: memoryview[float],
        at: int,
        workers: int,
        slots: int,
        on_limit: Callable[[], None] | None = None,
        limit: int = 0,
    ) -> None:
        self._whole = whole
        self._real = real
        self._at = at
        self._workers = workers
        self._slots = slots
        self._find_rivals()
        self._on_limit = on_limit
        self._left = limit  # 0: there is no limit, and counting down never meets 0 again

    def beat(self, now_s: float) -> None:
        self._real[self._at + _BEAT] = now_s
        self._find_rivals()

    def _find_rivals(self) -> None:
        seated = (_at(slot) for slot in range(self._slots) if slot < self._workers or self._whole[_at(slot) + _PID])
        self._rivals = [at + _TAKES for at in seated if at != self._at]

    def show(self, traffic: Traffic) -> None:
        whole, at = self._whole, self._at
        whole[at + _IN_FLIGHT] = traffic.in_flight
        whole[at + _IDLE] = traffic.idle
        whole[at + _WEBSOCKETS] = traffic.websockets
        self._real[at + _OLDEST] = traffic.oldest_s

    def stuck(self, since_s: float) -> None:
        self._real[self._at + _STUCK] = since_s

    def hold(self, connections: int) -> None:
        self._whole[self._at + _TAKES] = connections + 1

    def fewest(self) -> int:
        whole, least = self._whole, NO_RIVAL + 1
        for place in self._rivals:
            held = whole[place]
            if held and held < least:
                least = held
        return least - 1

    def count(self, status: int, seconds: float, bytes_sent: int) -> None:
        whole, at = self._whole, self._at
        kind = status // 100
        whole[at + (_CLASSES + kind if 0 < kind < 6 else _CLASSES)] += 1
        whole[at + _LATENCY + bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        whole[at + _BYTES] += bytes_sent
        self._real[at + _SECONDS] += seconds
        self._left -= 1
        if self._left == 0 and self._on_limit is not None:
            self._on_limit()

    def refused(self, status: int) -> None:
        place = REFUSED_STATUSES.index(status) if status in REFUSED_STATUSES else len(REFUSED_STATUSES)
        self._whole[self._at + _REFUSED + place] += 1


def _at(slot: int) -> int:
    return _HEAD_WORDS + slot * _ROW_WORDS
