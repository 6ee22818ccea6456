"""One process: naming it for ever, signalling it without hitting a stranger, learning how it ended. Any process.

A pid alone names nothing: it is reused. pid + start ticks + boot id do (proc_pid_stat(5), field 22).
Every reader here returns None for a process that is gone; processes vanish between any two calls.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
from dataclasses import dataclass

from midstream.linux import prctl

# struct pidfd_info, first published size (64 bytes), include/uapi/linux/pidfd.h: mask, cgroupid, pid, tgid, ppid,
# eight ids, exit_code. PIDFD_GET_INFO = _IOWR(0xFF, 11, 64 bytes).
_INFO = struct.Struct("=QQ11Ii")
_PIDFD_GET_INFO = (3 << 30) | (_INFO.size << 16) | (0xFF << 8) | 11
_INFO_EXIT = 1 << 3

_GONE = (errno.ESRCH, errno.ENOENT, errno.EINVAL)  # EINVAL: pidfd_open of a process that is just exiting


@dataclass(frozen=True, slots=True)
class ProcStat:
    """The fields of /proc/PID/stat used here. `state` is one letter; `exit_code` a wait status, of zombies only."""

    pid: int
    state: str
    ppid: int
    sid: int
    start_ticks: int
    exit_code: int

    @property
    def is_live(self) -> bool:
        """Not a zombie: it may still run code and hold descriptors."""
        return self.state not in ("Z", "X", "x")


def parse_stat(text: bytes) -> ProcStat:
    """The content of /proc/PID/stat. The command may hold spaces, parentheses and newlines: split at the last `)`.

    Raises ValueError for anything else.
    """
    head, closed, tail = text.rpartition(b")")
    fields = tail.split()
    if not closed or len(fields) < 20:
        raise ValueError(f"not a stat line: {text[:60]!r}")
    return ProcStat(
        pid=int(head.split(b" ", 1)[0]),
        state=fields[0].decode("ascii"),
        ppid=int(fields[1]),
        sid=int(fields[3]),
        start_ticks=int(fields[19]),
        exit_code=int(fields[49]) if len(fields) > 49 else 0,
    )


def _read(path: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(fd)


def read_stat(pid: int) -> ProcStat | None:
    """The state of `pid`, or None when there is no such process."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    try:
        return parse_stat(text)
    except ValueError:
        return None


def read_environ(pid: int) -> dict[bytes, bytes] | None:
    """The environment `pid` was started with, as far as it has not overwritten it; None when gone or not allowed."""
    text = _read(f"/proc/{pid}/environ")
    if text is None:
        return None
    pairs = (item.partition(b"=") for item in text.split(b"\0"))
    return {name: value for name, equals, value in pairs if equals}


def read_argv(pid: int) -> tuple[str, ...]:
    """The argument vector of `pid` as it shows it; empty when it is gone."""
    text = _read(f"/proc/{pid}/cmdline") or b""
    return tuple(os.fsdecode(word) for word in text.split(b"\0")[:-1])


def read_command(pid: int) -> str:
    """The command line of `pid`, for messages; the short name for kernel threads; empty when it is gone."""
    text = _read(f"/proc/{pid}/cmdline")
    if text:
        return text.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")[:200]
    return (_read(f"/proc/{pid}/comm") or b"").decode("utf-8", "replace").strip()


def all_pids() -> list[int]:
    """Every process that /proc shows at the moment."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def own_children() -> list[int] | None:
    """The pids of our children, zombies included, for a process of one thread; None where the kernel does not list them
    (CONFIG_PROC_CHILDREN)."""
    text = _read(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in text.split()] if text is not None else None


def is_alive(pid: int, start_ticks: int) -> bool:
    """Whether that very process (not a later one with its number) exists and is no zombie."""
    stat = read_stat(pid)
    return stat is not None and stat.start_ticks == start_ticks and stat.is_live


def open_pidfd(pid: int, start_ticks: int | None = None) -> int | None:
    """A pidfd (CLOEXEC), or None when the process is gone or, given `start_ticks`, another one has its number.

    Raises OSError when the system has no descriptor left (EMFILE, ENFILE) or no pidfds.
    """
    try:
        fd = os.pidfd_open(pid, 0)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    if start_ticks is not None:
        stat = read_stat(pid)
        if stat is None or stat.start_ticks != start_ticks:
            os.close(fd)
            return None
    return fd


def send_by_pidfd(pidfd: int, signum: int) -> bool:
    """Send a signal; False when the process is gone. Raises PermissionError."""
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise
    return True


def send_signal(pid: int, start_ticks: int, signum: int) -> bool:
    """Send a signal to that very process, never to a later one with its number. False when it is gone."""
    pidfd = open_pidfd(pid, start_ticks)
    if pidfd is None:
        return False
    try:
        return send_by_pidfd(pidfd, signum)
    finally:
        os.close(pidfd)


def has_ended(pidfd: int) -> bool:
    """Whether the process of this pidfd is a zombie or reaped. Does not block."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _info_of(pidfd: int) -> tuple[int, ...] | None:
    request = bytearray(_INFO.pack(_INFO_EXIT, *([0] * 13)))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, request, True)
    except OSError:
        return None
    return _INFO.unpack(request)


def exit_status(pidfd: int) -> int | None:
    """The wait status of a reaped process, child or not, whose pidfd was opened before it was reaped.

    PIDFD_GET_INFO, Linux 6.15. None where the kernel is older, or the process has not been reaped yet.
    """
    fields = _info_of(pidfd)
    return int(fields[13]) if fields is not None and fields[0] & _INFO_EXIT else None


def exit_status_follows(pidfd: int) -> bool:
    """Whether `exit_status` may have an answer once the process is reaped (the kernel knows the question)."""
    fields = _info_of(pidfd)
    return fields is not None and not fields[0] & _INFO_EXIT


def zombie_status(pid: int, start_ticks: int) -> int | None:
    """The wait status of a process that ended and was not reaped yet (field 52, needs ptrace rights, else None)."""
    stat = read_stat(pid)
    if stat is None or stat.start_ticks != start_ticks or stat.state != "Z":
        return None
    if stat.exit_code == 0 and os.geteuid() != 0:
        return None  # the kernel shows 0 to those who may not know
    return stat.exit_code


def fd_of_socket(pid: int, pidfd: int, inode: int) -> int | None:
    """A duplicate of the descriptor by which `pid` holds the socket with `inode`; None: none, or we may not."""
    for number in fds_of_socket(pid, inode):
        try:
            return prctl.pidfd_getfd(pidfd, number)
        except OSError:
            continue
    return None


def socket_inodes(pid: int) -> set[int]:
    """The inodes of all sockets that `pid` holds; empty when it is gone or we may not look."""
    return set(_sockets(pid).values())


def _sockets(pid: int) -> dict[int, int]:
    """Descriptor number -> inode."""
    folder = f"/proc/{pid}/fd"
    found: dict[int, int] = {}
    try:
        names = os.listdir(folder)
    except OSError:
        return found
    for name in names:
        try:
            target = os.readlink(f"{folder}/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            found[int(name)] = int(target[8:-1])
    return found


def fds_of_socket(pid: int, inode: int) -> list[int]:
    """The descriptor numbers by which `pid` holds the socket with `inode`."""
    return [fd for fd, held in _sockets(pid).items() if held == inode]
