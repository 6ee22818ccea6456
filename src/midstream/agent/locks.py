"""The manual lock of an app (`midstream lock`): who, why, since when, and until when where it has an end.

Pure but for the clocks. A stored end is of this boot; after a restart of the host the wall clock decides, and no lock then
lasts longer than it was given. Runs in the agent.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from midstream.agent.store import AppRecord
from midstream.linux import clock

LONGEST_S = 366 * 86400.0


def locked(record: AppRecord, owner: str, reason: str, ttl_s: float) -> AppRecord:
    """The record with a lock; ttl_s 0: until it is unlocked."""
    return replace(
        record,
        lock_owner=owner,
        lock_reason=reason,
        lock_since_wall_s=time.time(),
        lock_ttl_s=ttl_s,
        lock_boot_id=clock.boot_id() if ttl_s else "",
        lock_deadline_s=clock.boottime_s() + ttl_s if ttl_s else 0.0,
    )


def unlocked(record: AppRecord) -> AppRecord:
    return replace(
        record,
        lock_owner="",
        lock_reason="",
        lock_since_wall_s=0.0,
        lock_ttl_s=0.0,
        lock_boot_id="",
        lock_deadline_s=0.0,
    )


def after_reboot(record: AppRecord) -> AppRecord:
    """The record in this boot: what is left of its lock by the wall clock, and never more than it was given, because that
    clock may have been set back."""
    left = left_s(record)
    if not record.lock_owner or left is None:
        return record
    return replace(record, lock_boot_id=clock.boot_id(), lock_deadline_s=clock.boottime_s() + left)


def left_s(record: AppRecord) -> float | None:
    """Seconds until it ends; None for never."""
    if not record.lock_ttl_s:
        return None
    if record.lock_boot_id == clock.boot_id():
        return record.lock_deadline_s - clock.boottime_s()
    return min(record.lock_since_wall_s + record.lock_ttl_s - time.time(), record.lock_ttl_s)


def lock_of(record: AppRecord) -> dict[str, Any] | None:
    """The lock as it is told; None when there is none, or when its time is over."""
    left = left_s(record)
    if not record.lock_owner or (left is not None and left <= 0):
        return None
    told: dict[str, Any] = {
        "owner": record.lock_owner,
        "reason": record.lock_reason,
        "since": record.lock_since_wall_s,
    }
    return told if left is None else told | {"expires_in_s": round(left, 1)}
