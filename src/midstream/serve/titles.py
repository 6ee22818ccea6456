"""What `ps` shows: the title of this process, in the place of its arguments, and its short name. All three processes.

The arguments lie in memory between two addresses that /proc/self/stat tells (proc_pid_stat(5), fields 48 and 49). A title is
cut to that room: behind it begins the environment, from which `midstream status` reads the release of a process.
"""

from __future__ import annotations

import ctypes

_PR_SET_NAME = 15
_libc = ctypes.CDLL(None, use_errno=True)


def set_title(title: str) -> None:
    """Never fails: a system that does not allow it shows the former title."""
    data = title.encode("utf-8", "replace")
    try:
        with open("/proc/self/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])
    except (OSError, ValueError, IndexError):
        return
    room = end - start
    if room > 1 and start:
        ctypes.memmove(start, data[: room - 1].ljust(room, b"\0"), room)
    short = title.removeprefix("midstream serve: ").encode("utf-8", "replace")[:15]
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(short), 0, 0, 0)


def title(role: str, name: str, release: str, generation: int, more: str = "") -> str:
    """`midstream serve: worker 0 [shop] 20261121190501 #42 draining`. The first word stays first."""
    parts = [f"midstream serve: {role} [{name}]"]
    if release:
        parts.append(release)
    if generation:
        parts.append(f"#{generation}")
    if more:
        parts.append(more)
    return " ".join(parts)
