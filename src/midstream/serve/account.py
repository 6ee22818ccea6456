"""Who zygote and workers run as: `--user`, `--group`. The master, once at its start.

What lives here: the look into passwd and group. What must not: changing to it, which the child does before its exec.
"""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass

from midstream.errors import OperatorError
from midstream.serve.settings import Settings


@dataclass(frozen=True, slots=True)
class RunAs:
    """None: as we are."""

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    name: str = ""
    home: str = ""


def run_as(settings: Settings) -> RunAs:
    """Raises OperatorError: no such user, or not ours to give."""
    if not settings.user and not settings.group:
        return RunAs()
    user = _user(settings.user) if settings.user else None
    gid = _group(settings.group) if settings.group else user.pw_gid if user else os.getegid()
    uid = user.pw_uid if user else os.geteuid()
    if os.geteuid() != 0:
        if (uid, gid) == (os.geteuid(), os.getegid()):
            return RunAs()
        raise OperatorError(
            "only root may run it as another user", where="--user", remedy="leave --user and --group out"
        )
    groups = tuple(os.getgrouplist(user.pw_name, gid)) if user else (gid,)
    return RunAs(uid, gid, groups, user.pw_name if user else "", user.pw_dir if user else "")


def _user(text: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except KeyError:
        raise OperatorError(
            f"there is no user {text!r}", where="--user", remedy="name a user of this host: getent passwd"
        ) from None


def _group(text: str) -> int:
    try:
        return int(text) if text.isdecimal() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise OperatorError(
            f"there is no group {text!r}", where="--group", remedy="name a group of this host: getent group"
        ) from None
