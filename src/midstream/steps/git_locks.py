"""Lock files that a killed git left in the mirror, told from those of a git that lives.

git makes `X.lock` next to what it changes and never takes one over; after a kill every later command fails. Ours run
under the step's own lock, so a live holder can only be another tool's (Capistrano's): one whose working folder is the
mirror.
"""

from __future__ import annotations

import contextlib
import os
import select
import time

_WAIT_S = 60
_STRANGE_AGE_S = 600


def free_stale_locks(repo: str) -> bool:
    """Removes lock files in `repo` that no living git holds; whether there were any. Waits up to a minute for the gits
    at work there to end."""
    for pid in _gits_in(repo):
        _wait_for_end(pid)
    if _gits_in(repo):
        return False
    locks = _lock_files(repo)
    strangers = _strange_gits()
    removed = False
    for path in locks:
        with contextlib.suppress(FileNotFoundError):
            if strangers and time.time() - os.stat(path).st_mtime < _STRANGE_AGE_S:
                continue  # another user's git, whose folder we may not see
            os.unlink(path)
            print(f"removed {path}, left by a git that was killed")
            removed = True
    return removed


def _lock_files(repo: str) -> list[str]:
    found = [f"{repo}/{name}" for name in os.listdir(repo) if name.endswith(".lock")]
    for top in ("refs", "objects/info", "objects/pack"):
        for folder, _, names in os.walk(f"{repo}/{top}"):
            found.extend(f"{folder}/{name}" for name in names if name.endswith(".lock"))
    return found


def _gits_in(repo: str) -> list[int]:
    wanted = os.path.realpath(repo)
    found = []
    for pid in _gits():
        with contextlib.suppress(OSError):
            cwd = os.readlink(f"/proc/{pid}/cwd")
            if cwd == wanted or cwd.startswith(wanted + "/"):
                found.append(pid)
    return found


def _strange_gits() -> bool:
    for pid in _gits():
        try:
            os.readlink(f"/proc/{pid}/cwd")
        except PermissionError:
            return True
        except OSError:
            continue
    return False


def _gits() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/comm") as file:
                if file.read().startswith("git"):
                    found.append(int(name))
    return found


def _wait_for_end(pid: int) -> None:
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(_WAIT_S * 1000)
        finally:
            os.close(fd)
