"""prctl(2) and the few raw system calls that the standard library lacks, by ctypes. Any process.

ctypes is loaded here and nowhere else, at import, so that nothing is imported between a fork and an exec.
"""

from __future__ import annotations

import ctypes
import os

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_SYS_PIDFD_GETFD = 438  # one number on every architecture: it is newer than the unified table

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def become_subreaper() -> None:
    """Orphans below this process become its children (PR_SET_CHILD_SUBREAPER, Linux 3.4). Raises OSError."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def is_subreaper() -> bool:
    """Whether this process asked for the orphans below it."""
    flag = ctypes.c_int(0)
    zero = ctypes.c_ulong(0)
    _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), zero, zero, zero)
    return flag.value == 1


def set_no_new_privileges() -> None:
    """Irrevocably: no exec below this process gains privileges (set-uid, file capabilities). Raises OSError."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def pidfd_getfd(pidfd: int, target_fd: int) -> int:
    """A duplicate, with CLOEXEC, of another process's descriptor (Linux 5.6; needs ptrace rights). Raises OSError."""
    result = _libc.syscall(
        ctypes.c_long(_SYS_PIDFD_GETFD), ctypes.c_int(pidfd), ctypes.c_int(target_fd), ctypes.c_uint(0)
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def die_with_parent(signal_number: int) -> None:
    """This process gets the signal when the thread that made it ends (PR_SET_PDEATHSIG); holds through exec."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)
