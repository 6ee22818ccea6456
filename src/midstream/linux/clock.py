"""The clock that survives suspend and names a boot. Any process."""

from __future__ import annotations

import time


def boottime_s() -> float:
    """CLOCK_BOOTTIME in seconds: comparable between processes until the next boot. Does not block."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boottime_us() -> int:
    """CLOCK_BOOTTIME in whole microseconds: grows over any restart of a program within one boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def boot_id() -> str:
    """The kernel's name for this boot (random(4)); empty where /proc does not show it."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
