"""One cgroup v2 folder for each spawned tree, where the host lets us. Any process; nothing here blocks for long.

No controller is enabled, so a process may live in an inner folder (cgroups(7), "no internal processes" binds only
domains with controllers). Everything degrades: without a writable cgroup2 mount there is a reason instead of a root.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator


def find_mount(mountinfo: str) -> tuple[str, str] | None:
    """(mount point, the folder of the hierarchy that is mounted there) of cgroup2 in the text of /proc/PID/mountinfo.

    None where there is none. The folder is not `/` in a container without a cgroup namespace. Pure.
    """
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split()
        if separator and after.split(" ", 1)[0] == "cgroup2" and len(fields) > 4:
            return _unescaped(fields[4]), _unescaped(fields[3])
    return None


def _unescaped(text: str) -> str:
    """Blanks and backslashes are octal in mountinfo (proc_pid_mountinfo(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def own_path(cgroup: str) -> str | None:
    """The path of the unified hierarchy in the text of /proc/PID/cgroup (`0::/path`). Pure."""
    for line in cgroup.splitlines():
        if line.startswith("0::"):
            return line[3:]
    return None


def make_root(name: str) -> tuple[str | None, str]:
    """(folder, "") below our own cgroup, or (None, reason). The folder is made when it is not there yet."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mount = find_mount(file.read())
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            path = own_path(file.read())
    except OSError as error:
        return None, f"no cgroup: {error}"
    if mount is None or path is None:
        return None, "no cgroup: no cgroup2 file system is mounted"
    point, mounted = mount
    below = path.removeprefix(mounted.rstrip("/")).strip("/")
    root = "/".join(part for part in (point.rstrip("/"), below, name) if part)
    try:
        os.makedirs(root, mode=0o755, exist_ok=True)
        if not os.access(f"{root}/cgroup.procs", os.W_OK):
            return None, f"no cgroup: may not write to {root}"
    except OSError as error:
        return None, f"no cgroup: {root}: {error.strerror}"
    return root, ""


def make(root: str, name: str) -> str:
    """The folder for one tree, made when it is not there yet. Raises OSError."""
    path = f"{root}/{name}"
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass
    return path


def _folders(path: str) -> Iterator[str]:
    """`path` and all below it, the deepest first (a service may make cgroups of its own)."""
    for folder in children(path):
        yield from _folders(folder)
    yield path


def children(path: str) -> list[str]:
    """The folders directly below."""
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def members(path: str) -> list[int]:
    """Every process in the folder or below it; empty when it is gone."""
    found: list[int] = []
    for folder in _folders(path):
        try:
            with open(f"{folder}/cgroup.procs", encoding="ascii") as file:
                found.extend(int(line) for line in file if line.strip() != "0")
        except (OSError, ValueError):
            continue
    return found


def kill(path: str) -> bool:
    """SIGKILL everything in it and below, at once (cgroup.kill, Linux 5.14). False where there is no such file."""
    try:
        fd = os.open(f"{path}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, b"1")
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def open_events(path: str) -> int:
    """A descriptor of `cgroup.events`: epoll says EPOLLPRI when it changes after it was read. Raises OSError."""
    fd = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    is_populated(fd)
    return fd


def is_populated(events_fd: int) -> bool:
    """Whether a live process is in the folder or below it, by `cgroup.events`; False when the folder is gone."""
    try:
        return b"populated 1" in os.pread(events_fd, 4096, 0)
    except OSError:
        return False


def remove(path: str) -> bool:
    """Remove the folder and those below; False while a process is left in one of them (try again later)."""
    for folder in _folders(path):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise
    return True
