"""A request that is refused: nothing has changed, and the reply says why."""

from __future__ import annotations

import errno

from midstream.core.messages import Refusal


class Refused(Exception):
    """`code` for programs, `what` for people, `extra` fields of the error reply (`errno`, `holder`)."""

    def __init__(self, code: Refusal, what: str, **extra: str) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.extra = {name: value for name, value in extra.items() if value}


def os_refusal(error: OSError, what: str, **extra: str) -> Refused:
    """A system call failed. `errno` is its name (`EADDRINUSE`)."""
    name = errno.errorcode.get(error.errno or 0, "")
    held_by = f"; held by {extra['holder']}" if extra.get("holder") else ""
    return Refused(Refusal.OS, f"{what}: {error.strerror or error}{held_by}", errno=name, **extra)
