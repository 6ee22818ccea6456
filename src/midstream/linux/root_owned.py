"""Whether a path is root's alone: nobody else can change where it leads. Runs in keeper and agent; does not block.

Root may act by a path name only where this holds. Everywhere else it acts with the rights of the user whose path it is
(`file_identity`), because that user may put a link anywhere on the way, at any time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque

_LINKS_MAX = 40  # as the kernel's own limit, path_resolution(7)


def require_root_owned(path: str) -> None:
    """Every folder on the way to `path`, and `path` itself where it exists, belongs to root and is writable for nobody else;
    in a sticky folder (/tmp) it is the entry that counts. Links on the way are followed when they are root's. What does
    not exist ends the walk. Raises PermissionError that names the place, OSError when it cannot be looked at."""
    rest = deque(part for part in path.split("/") if part)
    here = "/"
    links = 0
    while rest:
        _require_closed(here)
        name = rest.popleft()
        if name == ".":
            continue
        if name == "..":
            here = os.path.dirname(here)
            continue
        entry = os.path.join(here, name)
        try:
            found = os.lstat(entry)
        except FileNotFoundError:
            return
        if found.st_uid != 0:
            raise PermissionError(errno.EACCES, f"belongs to uid {found.st_uid}, not to root", entry)
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(entry)
            here = "/" if target.startswith("/") else here
            rest.extendleft(part for part in reversed(target.split("/")) if part)
            continue
        here = entry
    if os.path.isdir(here):
        _require_closed(here)


def _require_closed(folder: str) -> None:
    found = os.lstat(folder)
    others = stat.S_IWOTH | (stat.S_IWGRP if found.st_gid != 0 else 0)
    if found.st_uid != 0 or (found.st_mode & others and not found.st_mode & stat.S_ISVTX):
        raise PermissionError(errno.EACCES, "may be changed by others than root", folder)


def is_root_owned(path: str) -> bool:
    """The same as a question; what cannot be looked at is not."""
    try:
        require_root_owned(path)
    except OSError:
        return False
    return True
