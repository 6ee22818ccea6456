"""Folders of a deploy in the temporary folder: gone with it, and those of a deployer that was killed with the next one.

Whoever has one holds a lock on it (flock(2), which the kernel takes back from the dead), so nobody else's is touched while it
is in use. Runs in the deployer.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile

KINDS = ("midstream-packs-", "midstream-builds-")
_SWEPT_MAX = 100  # at a time


class Scratch:
    """`path` exists until `close`. Raises OSError when it cannot be made."""

    def __init__(self, kind: str) -> None:
        assert kind in KINDS
        sweep()
        while True:
            self.path = tempfile.mkdtemp(prefix=kind)
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if _is_at(self._fd, self.path):
                return
            os.close(self._fd)  # another deployer swept it before we had the lock

    def close(self) -> None:
        """Raises nothing: what stays is swept later."""
        if self._fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._fd)
            self._fd = -1


def sweep() -> int:
    """Removes what deployers of this user have left and nobody holds; how many. What cannot be removed stays."""
    folder, swept = tempfile.gettempdir(), 0
    try:
        names = [name for name in os.listdir(folder) if name.startswith(KINDS)]
    except OSError:
        return 0
    for name in names[:_SWEPT_MAX]:
        swept += _swept(os.path.join(folder, name))
    return swept


def _swept(path: str) -> bool:
    try:
        if os.lstat(path).st_uid != os.geteuid():
            return False
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
        return not _is_at(fd, path)
    except OSError:  # somebody uses it
        return False
    finally:
        os.close(fd)


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except OSError:
        return False
