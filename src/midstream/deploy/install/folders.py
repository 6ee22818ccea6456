"""The folders that apps are deployed to: made for the user who deploys. Runs on the host; blocks.

As root only where root alone decides where the path leads: else another user could have root make a folder, and give it
away, wherever he likes.
"""

from __future__ import annotations

import os
import pwd

from midstream.errors import HostError, NotAllowedError, OperatorError
from midstream.linux.root_owned import require_root_owned


def owner_of(path: str) -> str | None:
    """The name of the folder's owner; None when there is nothing. Raises HostError for what is no folder."""
    if not os.path.lexists(path):
        return None
    if not os.path.isdir(path):
        raise HostError("it is no folder", where=path, remedy="choose another deploy_to, or move it away")
    uid = os.stat(path).st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def require_user(name: str) -> pwd.struct_passwd:
    """Raises OperatorError when the host has no such user."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise OperatorError(
            f"there is no user {name!r} on this host",
            serving="nothing was changed",
            remedy=f"create it (as root: adduser --disabled-password {name}) and give it your ssh key",
        ) from None


def make_folder(path: str, owner: str) -> None:
    """With those above it, which stay root's. Raises HostError, NotAllowedError."""
    entry = require_user(owner)
    try:
        if os.geteuid() == 0 and entry.pw_uid != 0:
            _make_as_root(path, entry)
        else:
            os.makedirs(path, mode=0o755, exist_ok=True)
    except PermissionError as error:
        raise NotAllowedError(
            f"the folder cannot be made: {error.strerror}",
            where=error.filename or path,
            remedy=f"make it by hand, for {owner}: {path}",
        ) from error
    except OSError as error:
        raise HostError(
            f"the folder cannot be made: {error.strerror}",
            where=path,
            remedy="run it as root, or choose other folders: midstream agent install --help",
        ) from error


def _make_as_root(path: str, entry: pwd.struct_passwd) -> None:
    require_root_owned(os.path.dirname(path))
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    os.mkdir(path, 0o755)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, entry.pw_uid, entry.pw_gid)
    finally:
        os.close(fd)
