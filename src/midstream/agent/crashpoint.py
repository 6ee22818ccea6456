"""Where a test may kill the agent, or the keeper under it: at each write of the truth and each effect.

Does nothing unless MIDSTREAM_CRASH_PLAN names a file when the agent starts. That file holds `agent N` or `keeper N`: at the
N-th point from now the file is removed and that process gets SIGKILL. `count 0` appends the name of each point passed to
`FILE.passed`. Runs in the agent.
"""

from __future__ import annotations

import os
import signal

_PLAN_PATH = os.environ.get("MIDSTREAM_CRASH_PLAN", "")


class _Counter:
    """Points passed since the plan was written."""

    def __init__(self) -> None:
        self.passed = 0
        self.plan = ""


_counter = _Counter()


def point(name: str, keeper_pid: int = 0) -> None:
    """One place at which a crash must do no harm."""
    if not _PLAN_PATH:
        return
    try:
        with open(_PLAN_PATH, encoding="ascii") as file:
            plan = file.read().strip()
    except FileNotFoundError:
        return
    if plan != _counter.plan:
        _counter.plan, _counter.passed = plan, 0
    _counter.passed += 1
    victim, _, number = plan.partition(" ")
    if victim == "count":
        with open(f"{_PLAN_PATH}.passed", "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
    elif _counter.passed == int(number):
        os.unlink(_PLAN_PATH)
        with open(f"{_PLAN_PATH}.hit", "w", encoding="utf-8") as file:
            file.write(name)
        _counter.plan = ""
        os.kill(os.getpid() if victim == "agent" else keeper_pid or os.getppid(), signal.SIGKILL)
