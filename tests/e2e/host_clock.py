"""Hosts of a fleet whose clocks differ from this machine's, and jump while everything on them runs.

A library of a few lines, preloaded by all that is started on the host (/etc/ld.so.preload), adds an offset to the wall clock:
CLOCK_REALTIME and what is made of it. The offset is in a file that all of them have mapped, so a jump is one for all, at
one instant, as when somebody sets the clock. The other clocks, and the times that the kernel gives to files, stay as they are.

Not Debian's faketime: it wants its environment variables in every process, and without them it moves CLOCK_MONOTONIC too;
Midstream starts its programs with environments of their own. That hosts were booted at other times is done with a time
namespace (`Fleet.start`).
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from fleet import Fleet, FleetHost
from machine import once

DAY_S = 86400
_FOLDER = "opt/host_clock"
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*true_time)(clockid_t, struct timespec *);
static const volatile long *ahead_s;

static void begin(void)
{
    static const long nothing = 0;
    const char *path = getenv("HOST_CLOCK");
    int fd = open(path ? path : "/opt/host_clock/ahead", O_RDONLY | O_CLOEXEC);
    void *page = fd < 0 ? MAP_FAILED : mmap(0, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);
    if (fd >= 0)
        close(fd);
    true_time = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    ahead_s = page == MAP_FAILED ? &nothing : page;
}

int clock_gettime(clockid_t clock, struct timespec *found)
{
    if (!ahead_s)
        begin();
    int failed = true_time(clock, found);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        found->tv_sec += *ahead_s;
    return failed;
}

int gettimeofday(struct timeval *restrict found, void *restrict zone)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *found)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (found)
        *found = now.tv_sec;
    return now.tv_sec;
}
"""


def library() -> Path:
    """Compiled once in a run of tests. Needs cc."""

    def build(path: Path) -> None:
        argv = ["cc", "-x", "c", "-", "-shared", "-fPIC", "-O1", "-o", str(path)]
        subprocess.run(argv, input=_SOURCE, text=True, check=True, capture_output=True)

    return once("host_clock.so", build)


@dataclass(frozen=True)
class Clock:
    """The wall clock of a host, or of the deployer: `jump(-2 * DAY_S)`. Begins at the true time, plus `ahead_s`."""

    library: Path
    ahead: Path

    def jump(self, by_s: int) -> None:
        self.set(self.ahead_s + by_s)

    def set(self, ahead_s: int) -> None:
        """In place: others have it mapped."""
        with self.ahead.open("r+b") as file:
            file.write(ahead_s.to_bytes(8, "little", signed=True))

    @property
    def ahead_s(self) -> int:
        return int.from_bytes(self.ahead.read_bytes(), "little", signed=True)

    @property
    def env(self) -> dict[str, str]:
        """For a program on this side of the network, and all that it starts."""
        return {"LD_PRELOAD": str(self.library), "HOST_CLOCK": str(self.ahead)}


def clock_of(host: FleetHost, ahead_s: int = 0) -> Clock:
    """Before anything that is to live by it is started there; what an ssh session starts lives by it, too."""
    folder = host.root / _FOLDER
    clock = _clock(folder, ahead_s)
    host.box.sh(f"echo /{_FOLDER}/clock.so > /etc/ld.so.preload")
    assert abs(int(host.box.sh("date +%s")) - time.time() - ahead_s) < 60, "the host's clock cannot be moved"
    return clock


def clock_of_deployer(fleet: Fleet, ahead_s: int = 0) -> Clock:
    """Used by commands that get its `env`."""
    return _clock(fleet.root / "clock", ahead_s)


def _clock(folder: Path, ahead_s: int) -> Clock:
    folder.mkdir()
    clock = Clock(folder / "clock.so", folder / "ahead")
    clock.library.write_bytes(library().read_bytes())
    clock.ahead.write_bytes(bytes(8))
    for path, mode in ((folder, 0o755), (clock.library, 0o755), (clock.ahead, 0o644)):
        path.chmod(mode)
    clock.set(ahead_s)
    return clock
