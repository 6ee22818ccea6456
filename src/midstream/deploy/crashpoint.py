"""Where a test may kill the deployer: around each call to each host, and around each write of its record.

Does nothing unless MIDSTREAM_CRASH_DEPLOYER names a file when the deployer starts. That file holds the name of a point: when
the deployer passes it the file is removed and this process gets SIGKILL. `count` appends the name of each point passed to
`FILE.passed` instead. A name that is passed again gets a number. Runs in the deployer. The agent has its own, in
`agent/crashpoint.py`.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

_PLAN_PATH = os.environ.get("MIDSTREAM_CRASH_DEPLOYER", "")
_passed: Counter[str] = Counter()  # of this process, for tests alone


def point(what: str) -> None:
    """One place at which a crash must do no harm."""
    if not _PLAN_PATH:
        return
    _passed[what] += 1
    name = what if _passed[what] == 1 else f"{what} {_passed[what]}"
    try:
        with open(_PLAN_PATH, encoding="utf-8") as file:
            plan = file.read().strip()
    except FileNotFoundError:
        return
    if plan == "count":
        with open(f"{_PLAN_PATH}.passed", "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
    elif plan == name:
        os.unlink(_PLAN_PATH)
        os.kill(os.getpid(), signal.SIGKILL)
