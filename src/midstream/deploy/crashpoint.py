"""Where a test may kill or stop the deployer: around each call to each host, and around each write of its record.

Does nothing unless MIDSTREAM_CRASH_DEPLOYER names a file when the deployer starts. That file holds `kill NAME` or `stop NAME`:
when the deployer passes the point of that name the file is removed and this process gets SIGKILL or SIGSTOP. `count` appends
the name of each point passed to `FILE.passed`. A name that is passed again gets a number. Runs in the deployer. The agent has
its own, in `agent/crashpoint.py`.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

_PLAN_PATH = os.environ.get("MIDSTREAM_CRASH_DEPLOYER", "")
_passed: Counter[str] = Counter()  # of this process, for tests alone


def point(place: str) -> None:
    """One place at which a crash must do no harm."""
    if not _PLAN_PATH:
        return
    _passed[place] += 1
    name = place if _passed[place] == 1 else f"{place} {_passed[place]}"
    try:
        with open(_PLAN_PATH, encoding="utf-8") as file:
            plan = file.read().strip()
    except FileNotFoundError:
        return
    what, _, wanted = plan.partition(" ")
    if what == "count":
        with open(f"{_PLAN_PATH}.passed", "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
    elif wanted == name:
        os.unlink(_PLAN_PATH)
        os.kill(os.getpid(), signal.SIGSTOP if what == "stop" else signal.SIGKILL)
