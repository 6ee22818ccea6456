"""Opening, renaming and deleting files with another user's rights, in one thread and for the length of a `with`.

Used by the agent when it is root and a path belongs to an app's user: whatever symlink, hard link or FIFO that user
puts there, the kernel lets us do only what the user could do (setfsuid(2)). seteuid is no alternative: in glibc it
changes all threads of the process.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class FileUser:
    """Whose rights on files apply."""

    uid: int
    gid: int


@contextmanager
def files_as(user: FileUser | None) -> Iterator[None]:
    """Within it, path lookups of this thread are checked as `user`'s; None changes nothing. Needs root, or to be that
    user already. There must be no `await` inside. Raises PermissionError when the kernel refuses."""
    if user is None or (user.uid == os.geteuid() and user.gid == os.getegid()):
        yield
        return
    if os.getgroups():
        # Root needs no supplementary groups, and group 0 would open what is root:root 0640. For all threads, for good.
        os.setgroups([])
    gid, uid = os.getegid(), os.geteuid()
    try:
        _libc.setfsgid(ctypes.c_uint(user.gid))
        _libc.setfsuid(ctypes.c_uint(user.uid))
        # The calls report no error, they return the value that was in force; an invalid id changes nothing.
        if ctypes.c_uint(_libc.setfsuid(ctypes.c_uint(0xFFFFFFFF))).value != user.uid:
            raise PermissionError(f"may not use files as uid {user.uid}")
        yield
    finally:
        _libc.setfsuid(ctypes.c_uint(uid))
        _libc.setfsgid(ctypes.c_uint(gid))


def open_as(user: FileUser | None, path: str, flags: int) -> int:
    """Opens an existing file with `user`'s rights. Raises OSError.

    The kernel lets every thread follow its own process's /proc/self/fd, whatever its fsuid, and so into what this process
    holds open: memory files with the requests of others, files in folders that are closed to `user`. So what was opened
    must be what its plain name leads him to. One that was renamed or deleted meanwhile is refused as well.
    """
    with files_as(user):
        fd = os.open(path, flags)
    try:
        if user is not None and user.uid != os.geteuid():
            _require_reachable(user, fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _require_reachable(user: FileUser, fd: int, path: str) -> None:
    plain = os.readlink(f"/proc/self/fd/{fd}")
    with files_as(user):
        found = os.stat(plain, follow_symlinks=False)
    if not os.path.samestat(found, os.fstat(fd)):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
