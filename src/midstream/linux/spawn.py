"""fork, arrange everything about the child, exec. For processes without threads and without asyncio.

The child reports a failure as `STAGE ERRNO` on a close-on-exec pipe: end of file without a word means that the exec
succeeded. The parent never waits for it. Between fork and exec the child imports nothing and takes no lock.
Order matters: the record is written, the cgroup joined, channels opened and limits raised while we still have the
parent's rights; the working directory is entered and the program looked up with the rights it will run with.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from midstream.linux import prctl

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Linux before 5.7, a seccomp filter that does not know clone3, or a folder that may be written by another way only.
_NO_CLONE_INTO_CGROUP = frozenset(
    {errno.ENOSYS, errno.EINVAL, errno.E2BIG, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP}
)

RLIMITS: dict[str, int] = {
    name.removeprefix("RLIMIT_").lower(): getattr(resource, name)
    for name in dir(resource)
    if name.startswith("RLIMIT_")
}


@dataclass(frozen=True, slots=True)
class Placement:
    """`fd` of the parent becomes `target`. `reopen`: a description of its own (a FIFO whose other holders set
    O_NONBLOCK on theirs). `fd` None: /dev/null."""

    target: int
    fd: int | None
    reopen: bool = False


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything about one child. `record`: (path, bytes) written with the child's `PID START_TICKS` appended, before
    the exec; a failure to write it is no failure of the launch. `reset_signals`: all that this
    program handles or ignores."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    umask: int | None = None
    nice: int | None = None
    rlimits: tuple[tuple[int, int, int], ...] = ()
    no_new_privileges: bool = False
    cgroup: str | None = None
    placements: tuple[Placement, ...] = ()
    listen_pid: bool = False
    record: tuple[str, bytes] | None = None
    reset_signals: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Launched:
    """The child's pid, and the non-blocking end of the pipe on which it reports."""

    pid: int
    report_fd: int


def launch(wanted: Launch) -> Launched:
    """Fork the child; it goes on by itself. Raises OSError when the pipe or the fork fails."""
    report_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # Those that have a handler here: it must not run in the child. (All 64 would cost 0.1 ms to turn into enums.)
    former_mask = signal.pthread_sigmask(signal.SIG_BLOCK, wanted.reset_signals)
    try:
        pid, joined = _fork(wanted.cgroup)
        if pid == 0:
            _become(wanted, write_fd, joined)
    except OSError:
        os.close(report_fd)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former_mask)
        os.close(write_fd)
    return Launched(pid, report_fd)


def _fork(cgroup: str | None) -> tuple[int, bool]:
    """(pid, whether the child was born in the cgroup). 0 in the child. Raises OSError when there can be no child."""
    if cgroup is None or len(sys._current_frames()) > 1:
        return os.fork(), False
    try:
        folder_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return os.fork(), False  # the child says what is wrong with the folder
    pid = -1
    try:
        pid = prctl.fork_into_cgroup(folder_fd)
    except OSError as error:
        if error.errno not in _NO_CLONE_INTO_CGROUP:
            raise
    finally:
        if pid != 0:
            os.close(folder_fd)
    return (pid, True) if pid >= 0 else (os.fork(), False)


def read_report(report_fd: int) -> tuple[str, int] | None:
    """(stage, errno) when the child failed, ("", 0) when it is running its program, None while that is open."""
    try:
        text = os.read(report_fd, 256)
    except BlockingIOError:
        return None
    stage, _, number = text.decode("ascii", "replace").partition(" ")
    return (stage, int(number)) if number.isdecimal() else ("", 0)


class _Progress:
    """How far the child got, and where it reports: the pipe is moved out of the way of the targets."""

    __slots__ = ("report_fd", "stage")

    def __init__(self, report_fd: int) -> None:
        self.report_fd = report_fd
        self.stage = "start"


def _become(wanted: Launch, report_fd: int, joined: bool) -> NoReturn:
    """In the child. Never returns, never raises: the parent's code must not run twice."""
    progress = _Progress(report_fd)
    try:
        _arrange(wanted, progress, joined)
    except BaseException as error:
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
        try:
            os.write(progress.report_fd, f"{progress.stage} {number}".encode("ascii"))
        finally:
            os._exit(127)


def _arrange(wanted: Launch, progress: _Progress, joined: bool) -> NoReturn:
    os.setsid()
    for signum in wanted.reset_signals:
        signal.signal(signum, signal.SIG_DFL)
    if wanted.record is not None:
        _write_record(*wanted.record)
    progress.stage = "cgroup"
    if wanted.cgroup is not None and not joined:
        _join(wanted.cgroup)
    progress.stage = "fds"
    _place(wanted.placements, progress)
    progress.stage = "limits"
    for number, soft, hard in wanted.rlimits:
        _limit(number, soft, hard)
    if wanted.nice is not None:
        os.setpriority(os.PRIO_PROCESS, 0, wanted.nice)
    if wanted.umask is not None:
        os.umask(wanted.umask)
    progress.stage = "user"
    _change_user(wanted)
    progress.stage = "cwd"
    if wanted.cwd is not None:
        os.chdir(wanted.cwd)
    progress.stage = "exec"
    env = wanted.env
    if wanted.listen_pid:
        env = {**env, "LISTEN_PID": str(os.getpid())}
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _execute(wanted.argv, env)


def _limit(number: int, soft: int, hard: int) -> None:
    try:
        resource.setrlimit(number, (soft, hard))
    except ValueError as error:  # its way to say EINVAL and EPERM
        number = errno.EINVAL if soft > hard >= 0 else errno.EPERM
        raise OSError(number, str(error)) from None


def _write_record(path: str, start: bytes) -> None:
    try:
        fd = os.open("/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            start_ticks = os.read(fd, 4096).rpartition(b")")[2].split()[19]
        finally:
            os.close(fd)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, b"%s%d %s\n" % (start, os.getpid(), start_ticks))
        finally:
            os.close(fd)
    except OSError:
        return  # a full or missing folder: the stamped environment names the process as well


def _join(folder: str) -> None:
    fd = os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def _place(placements: Sequence[Placement], progress: _Progress) -> None:
    """Move every source above all targets first: no source can then be overwritten, and none equals its target
    (dup2(3, 3) would leave close-on-exec set). What is not placed keeps close-on-exec and so ends at the exec."""
    highest = max((placement.target for placement in placements), default=2)
    above = max(highest, 2) + 1
    progress.report_fd = fcntl.fcntl(progress.report_fd, fcntl.F_DUPFD_CLOEXEC, above)
    moved = []
    for placement in placements:
        if placement.fd is None:
            source = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        elif placement.reopen:
            source = os.open(f"/proc/self/fd/{placement.fd}", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        else:
            source = placement.fd
        moved.append((placement.target, fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, above)))
    for target, source in moved:
        os.dup2(source, target, inheritable=True)
    placed = {target for target, _ in moved}
    missing = [target for target in (0, 1, 2) if target not in placed]
    if missing:
        null = fcntl.fcntl(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), fcntl.F_DUPFD_CLOEXEC, above)
        for target in missing:
            os.dup2(null, target, inheritable=True)


def _change_user(wanted: Launch) -> None:
    if wanted.uid is not None or wanted.groups:
        os.setgroups(wanted.groups)
    if wanted.gid is not None:
        os.setresgid(wanted.gid, wanted.gid, wanted.gid)
    if wanted.uid is not None:
        os.setresuid(wanted.uid, wanted.uid, wanted.uid)
    if wanted.no_new_privileges:
        prctl.set_no_new_privileges()


def _execute(argv: tuple[str, ...], env: dict[str, str]) -> NoReturn:
    """execve, looking a name without a slash up in the child's own PATH, from its own working directory."""
    program = argv[0]
    if "/" in program:
        os.execve(program, argv, env)
    refused: OSError | None = None
    for folder in env.get("PATH", _DEFAULT_PATH).split(":"):
        try:
            os.execve(f"{folder or '.'}/{program}", argv, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            refused = refused or error
    raise refused or FileNotFoundError(errno.ENOENT, "not found in PATH", program)
