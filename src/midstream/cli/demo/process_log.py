"""The part of both demo projects that keeps the evidence: each process writes down that it began, and from which code.

Here: the text of `processes.py`, a module of the projects that is committed to their repository and runs in the
release, with nothing but Python. It must not ask the agent, nor believe the environment, about the release: it looks
at where its own file is. What is made of its lines is `evidence.py`'s.
"""

from __future__ import annotations

PROCESSES = '''"""Writes a line to log/processes.jsonl when a process begins, and when a worker takes a job."""

import json
import os
import time

RELEASE_FOLDER = os.path.dirname(os.path.realpath(__file__))


def began_at():
    """When the kernel made this process, as epoch seconds (proc(5): stat, field 22)."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)


def write(what, **more):
    """One write to a file opened for appending: lines of several processes never mix."""
    line = {
        "what": what,
        "time": time.time(),
        "pid": os.getpid(),
        "release": os.path.basename(RELEASE_FOLDER),
        "service": os.environ.get("MIDSTREAM_SERVICE", ""),
        "trying": os.environ.get("MIDSTREAM_TRYING", "") == "1",
        **more,
    }
    fd = os.open(os.path.join(RELEASE_FOLDER, "log", "processes.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, json.dumps(line).encode() + b"\\n")
    finally:
        os.close(fd)


def began():
    write("began", began=began_at())
'''
