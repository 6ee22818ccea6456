"""What was started and what became of it: one row a process, in the order of the last change.

Nothing here makes a system call but the record of an end. A row stays until the agent acknowledges its end.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable

from midstream.core.messages import ProcessEntry, ProcessKind, ProcessState
from midstream.keeper.layout import Layout
from midstream.linux.clock import boottime_s, boottime_us
from midstream.linux.tree import TreeMark

LIVE = (ProcessState.STARTING, ProcessState.RUNNING)


def place_of(key: str) -> str:
    """A key without its attempt. One object for all who keep it: it is also the name of the place's channel."""
    return sys.intern(key.rpartition("/")[0])


class Row:
    """One process, changeable. `report_fd`: open until the exec is known. `pidfd`: of one that is not our child.
    `is_swept`: its cgroup was removed, so nothing of its tree is left."""

    __slots__ = (
        "by",
        "cgroup",
        "code",
        "ended_s",
        "error",
        "error_stage",
        "is_swept",
        "key",
        "kind",
        "pid",
        "pidfd",
        "report_fd",
        "seq",
        "signum",
        "start_ticks",
        "started_s",
        "state",
    )

    def __init__(self, key: str, kind: ProcessKind, by: str, cgroup: str | None = None) -> None:
        self.key = key
        self.kind = kind
        self.by = by
        self.cgroup = cgroup
        self.state = ProcessState.STARTING
        self.seq = 0
        self.pid = 0
        self.start_ticks = 0
        self.code: int | None = None
        self.signum: int | None = None
        self.error = ""
        self.error_stage = ""
        self.started_s = boottime_s()
        self.ended_s = 0.0
        self.report_fd = -1
        self.pidfd = -1
        self.is_swept = False

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    @property
    def place(self) -> str:
        """The key without its attempt: what a standing order keeps occupied."""
        return place_of(self.key)

    def entry(self) -> ProcessEntry:
        return ProcessEntry(
            key=self.key,
            kind=self.kind,
            state=self.state,
            seq=self.seq,
            pid=self.pid,
            start_ticks=self.start_ticks,
            code=self.code,
            signum=self.signum,
            error=self.error,
            error_stage=self.error_stage,
            by=self.by,
            started_s=round(self.started_s, 6),
            ended_s=round(self.ended_s, 6),
        )

    def mark(self, keeper_id: str) -> TreeMark:
        return TreeMark(self.key, keeper_id, self.pid, self.start_ticks, self.cgroup)

    def set_status(self, status: int) -> None:
        """Take a wait status apart."""
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            self.code = code
        else:
            self.signum = -code


class Table:
    """Rows by key, the last changed last. `seq` grows with every change and over restarts of the keeper."""

    def __init__(self, layout: Layout, boot_id: str) -> None:
        self._layout = layout
        self._boot_id = boot_id
        self.rows: dict[str, Row] = {}
        self.by_pid: dict[int, Row] = {}
        self.live_places: dict[str, int] = {}  # how many live processes each has
        self.last_attempts: dict[str, int] = {}
        self.seq = boottime_us()
        self.is_dirty = False  # something to tell the agent

    def adopt(self, row: Row) -> None:
        """A row of the last keeper, or of the former image of this one. Live ones are found by their pid again."""
        if row.is_live:
            self._occupy(row)
        self.changed(row)

    def restore(self, row: Row) -> None:
        """A row of the former image of this process, with its seq; rows come in the order of their seq."""
        if row.is_live:
            self._occupy(row)
        self._insert(row)

    def _insert(self, row: Row) -> None:
        if self.rows.pop(row.key, None) is None:
            place, attempt = row.place, int(row.key.rpartition("/")[2])
            self.last_attempts[place] = max(attempt, self.last_attempts.get(place, 0))
        self.rows[row.key] = row

    def _occupy(self, row: Row) -> None:
        self.by_pid[row.pid] = row
        self.live_places[row.place] = self.live_places.get(row.place, 0) + 1

    def changed(self, row: Row) -> None:
        """The row is new or different: it moves to the end and gets the next seq."""
        self.seq += 1
        row.seq = self.seq
        self._insert(row)
        self.is_dirty = True

    def started(self, row: Row, pid: int, start_ticks: int) -> None:
        row.pid = pid
        row.start_ticks = start_ticks
        self._occupy(row)
        self.changed(row)

    def ended(self, row: Row, state: ProcessState) -> None:
        """It is over; the record in the runtime folder says so too, for the next keeper."""
        row.state = state
        row.ended_s = boottime_s()
        if self.by_pid.get(row.pid) is row:
            del self.by_pid[row.pid]
            self._vacate(row.place)
        end = {
            "state": state.value,
            "code": row.code,
            "signum": row.signum,
            "ended": row.ended_s,
            "error": row.error,
            "stage": row.error_stage,
        }
        self._layout.append(self._layout.pid_record(row.key), json.dumps(end).encode() + b"\n")
        self.changed(row)

    def _vacate(self, place: str) -> None:
        left = self.live_places.pop(place) - 1
        if left:
            self.live_places[place] = left

    def after(self, seq: int) -> list[Row]:
        """Rows changed after `seq`, ascending; costs no more than their number."""
        found = []
        for row in reversed(self.rows.values()):
            if row.seq <= seq:
                break
            found.append(row)
        found.reverse()
        return found

    def forget(self, keys: Iterable[str]) -> list[str]:
        """Drop ended rows; returns the keys of those that have not ended. Unknown keys were forgotten before."""
        kept = []
        for key in keys:
            row = self.rows.get(key)
            if row is None:
                continue
            if row.is_live:
                kept.append(key)
                continue
            del self.rows[key]
            if row.place not in self.live_places:
                self.last_attempts.pop(row.place, None)
            self._layout.unlink(self._layout.pid_record(key))
        return kept

    def record_of(self, row: Row) -> tuple[str, bytes]:
        """Path and beginning of the record that the child completes with its pid and start ticks."""
        head = {
            "key": row.key,
            "kind": row.kind.value,
            "by": row.by,
            "boot": self._boot_id,
            "started": row.started_s,
            "cgroup": row.cgroup,
        }
        return self._layout.pid_record(row.key), json.dumps(head).encode() + b" "
