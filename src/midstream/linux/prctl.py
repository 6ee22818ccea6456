"""prctl(2) and the few raw system calls that the standard library lacks, by ctypes. Any process.

ctypes is loaded here and nowhere else, at import, so that nothing is imported between a fork and an exec.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_SYS_PIDFD_GETFD = 438  # one number on every architecture: it is newer than the unified table
_SYS_CLONE3 = 435
_CLONE_INTO_CGROUP = 0x200000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc_with_gil = ctypes.PyDLL(None, use_errno=True)  # a child must not begin by waiting for the interpreter's lock


class _CloneArguments(ctypes.Structure):
    """struct clone_args of clone(2), as of Linux 5.7."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


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


def fork_into_cgroup(folder_fd: int) -> int:
    """As fork(2), the child born in the cgroup of that folder (clone3 with CLONE_INTO_CGROUP, Linux 5.7).

    Moving a process afterwards by `cgroup.procs` waits for an RCU grace period, 5 to 18 ms, and that is most of the time
    of a restart. Only for a process with one thread, whose child soon calls exec: nothing that the interpreter or libc do
    around their own fork is done. Raises OSError; ENOSYS, EINVAL, E2BIG and EPERM where it cannot be had.
    """
    wanted = _CloneArguments(flags=_CLONE_INTO_CGROUP, exit_signal=signal.SIGCHLD, cgroup=folder_fd)
    pid = _libc_with_gil.syscall(
        ctypes.c_long(_SYS_CLONE3), ctypes.byref(wanted), ctypes.c_size_t(ctypes.sizeof(wanted))
    )
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(pid)


def die_with_parent(signal_number: int) -> None:
    """This process gets the signal when the thread that made it ends (PR_SET_PDEATHSIG); holds through exec."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)
