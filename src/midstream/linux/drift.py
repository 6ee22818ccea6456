"""Which release a process truly runs, and what it uses: read from /proc, never from a symlink or a pid file.

What lives here: readers. What must not: judging whether it should run that (the agent does). Runs in the
agent, or in a helper under the app's uid: another uid's /proc is closed to it, which is reported as
"unknown", never as "no release". All functions return at once.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass

from midstream.core.names import is_release

RELEASE_VARIABLE = "MIDSTREAM_RELEASE"
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Running:
    """What a process runs. release: its 14 digits, or None. deleted: that folder, or files it has mapped from
    it, are gone. evidence: what each source said, e.g. `cwd=/srv/shop/releases/20261121190501`, for the
    operator. certain: False when the sources disagree or something could not be read."""

    release: str | None
    deleted: bool = False
    evidence: tuple[str, ...] = ()
    certain: bool = True


def runs(pid: int, deploy_to: str) -> Running:
    """The release below `deploy_to` that `pid` runs, from its working folder, the stamped environment, its
    executable and its mapped files. What is loaded counts more than what was intended: mappings, then
    executable and cwd, then the stamp. A process that is gone gives no release and says so. deploy_to:
    absolute, without symlinks: to resolve them here could hang on a dead file system."""
    releases = os.path.join(deploy_to, "releases") + "/"
    findings: list[tuple[str, str | None, bool]] = []
    evidence: list[str] = []
    unread = 0
    for source, read in (("maps", _mapped), ("exe", _executable), ("cwd", _folder), ("env", _stamp)):
        try:
            paths = read(pid)
        except PermissionError:
            unread += 1
            evidence.append(f"{source}: not readable")
            continue
        except (FileNotFoundError, ProcessLookupError):
            return Running(None, evidence=("the process is gone",), certain=True)
        for path in paths:
            name, deleted = (path, False) if source == "env" else _release_of(path, releases)
            if name is not None and is_release(name):
                findings.append((source, name, deleted))
                evidence.append(f"{source}={path}")
    return _judge(findings, evidence, unread)


def _judge(findings: list[tuple[str, str | None, bool]], evidence: list[str], unread: int) -> Running:
    if not findings:
        return Running(None, evidence=tuple(evidence), certain=not unread)
    names = {name for _, name, _ in findings}
    release = findings[0][1]
    deleted = any(gone for _, name, gone in findings if name == release)
    return Running(release, deleted, tuple(_shortened(evidence)), certain=len(names) == 1)


def _shortened(evidence: list[str], most: int = 8) -> list[str]:
    if len(evidence) <= most:
        return evidence
    return [*evidence[:most], f"and {len(evidence) - most} more"]


def _release_of(path: str, releases: str) -> tuple[str | None, bool]:
    """`/srv/shop/releases/20261121190501/app (deleted)` -> ("20261121190501", True). A folder whose file was
    replaced in place is "deleted" as well: what the process has mapped is no longer what lies there."""
    if not path.startswith(releases):
        return None, False
    deleted = path.endswith(_DELETED)
    return path.removesuffix(_DELETED)[len(releases) :].split("/", 1)[0], deleted


def _folder(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/cwd")]


def _executable(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/exe")]


def _stamp(pid: int) -> list[str]:
    with open(f"/proc/{pid}/environ", "rb") as environ:
        for item in environ.read().split(b"\0"):
            name, _, value = item.partition(b"=")
            if name == RELEASE_VARIABLE.encode():
                return [os.fsdecode(value)]
    return []


_MAPPED_PATH = re.compile(r"^(?:\S+\s+){5}(/.*)$", re.MULTILINE)


def _mapped(pid: int) -> list[str]:
    """Files of all releases that are mapped (extension modules, executables), each once, in the order of the
    map. A file name's newline is written as \\012 by the kernel, so a line is a path."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps:
        found = dict.fromkeys(_MAPPED_PATH.findall(maps.read()))
    return list(found)


@dataclass(frozen=True, slots=True)
class Usage:
    """Memory in bytes, `shared_counted_once` when it is Pss (each shared page divided by its users), else
    Rss; cpu_s: user and system seconds so far; uptime_s since it started."""

    memory_bytes: int
    shared_counted_once: bool
    cpu_s: float
    uptime_s: float


def usage(pid: int) -> Usage | None:
    """What one process uses; None when it is gone. Pss needs the right to read smaps_rollup
    (proc_pid_smaps(5)); without it, Rss."""
    try:
        fields = _stat_fields(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    cpu_s = (int(fields[11]) + int(fields[12])) / ticks
    uptime_s = max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / ticks)
    pss = _pss_bytes(pid)
    if pss is not None:
        return Usage(pss, True, cpu_s, uptime_s)
    return Usage(int(fields[21]) * os.sysconf("SC_PAGE_SIZE"), False, cpu_s, uptime_s)


def _stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on: a command name may hold spaces and parentheses."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
        return stat.read().rpartition(")")[2].split()


def _pss_bytes(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii", errors="replace") as rollup:
            for line in rollup:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
