"""What a signal means, in each dialect and to each process: literal tables. SIGNALS.md is held against them by a test.

What lives here: the tables. What must not: handlers. Read by master, zygote and workers.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Mapping
from signal import Signals


class Act(enum.Enum):
    """What the master, or a zygote that runs alone, is asked to do."""

    GRACEFUL = "drain, then end"
    QUICK = "end at once"
    UPGRADE = "verified upgrade"
    REOPEN = "open the log files anew"
    MORE = "one worker more"
    FEWER = "one worker less"  # at least one stays
    FEWER_TO_NONE = "one worker less, down to none"
    STOP_WORKERS = "drain the workers, stay"
    PAUSE = "accept nothing, answer what there is"
    RESUME = "accept again"
    NOTHING = "nothing"


class WorkerAct(enum.Enum):
    """What one worker does; the zygote starts its successor unless all of them are to end."""

    GRACEFUL = "drain, then end"
    QUICK = "end at once"
    REOPEN = "open the log files anew"
    NOTHING = "nothing"


_COMMON = {
    signal.SIGHUP: Act.UPGRADE,
    signal.SIGUSR2: Act.UPGRADE,
    signal.SIGUSR1: Act.REOPEN,
    signal.SIGTTIN: Act.MORE,
    signal.SIGTTOU: Act.FEWER,
    signal.SIGWINCH: Act.STOP_WORKERS,
}

# Unicorn: QUIT is graceful, TERM and INT quick, and TTOU may end the last worker. gunicorn: TERM is graceful, QUIT and INT
# quick. An upgrade is a verified one in each, and WINCH works on a terminal too (SIGNALS.md has where they differ from them).
DIALECTS: Mapping[str, Mapping[Signals, Act]] = {
    "midstream": {signal.SIGTERM: Act.GRACEFUL, signal.SIGQUIT: Act.GRACEFUL, signal.SIGINT: Act.QUICK, **_COMMON},
    "unicorn": {signal.SIGTERM: Act.QUICK, signal.SIGQUIT: Act.GRACEFUL, signal.SIGINT: Act.QUICK, **_COMMON}
    | {signal.SIGTTOU: Act.FEWER_TO_NONE},
    "gunicorn": {signal.SIGTERM: Act.GRACEFUL, signal.SIGQUIT: Act.QUICK, signal.SIGINT: Act.QUICK, **_COMMON},
}

# A zygote without a master, under Midstream's agent: the agent decides, so an upgrade is its to make, and WINCH is the way
# to park: alive, and back by TTIN.
ALONE: Mapping[Signals, Act] = {
    signal.SIGTERM: Act.GRACEFUL,
    signal.SIGQUIT: Act.GRACEFUL,
    signal.SIGINT: Act.QUICK,
    signal.SIGHUP: Act.UPGRADE,
    signal.SIGUSR2: Act.UPGRADE,
    signal.SIGUSR1: Act.REOPEN,
    signal.SIGTTIN: Act.RESUME,
    signal.SIGTTOU: Act.NOTHING,
    signal.SIGWINCH: Act.PAUSE,
}

# A worker that is signalled itself. What is for all of them is nothing to one.
WORKER: Mapping[str, Mapping[Signals, WorkerAct]] = {
    dialect: {
        number: {
            Act.GRACEFUL: WorkerAct.GRACEFUL,
            Act.QUICK: WorkerAct.QUICK,
            Act.REOPEN: WorkerAct.REOPEN,
        }.get(act, WorkerAct.NOTHING)
        for number, act in table.items()
    }
    for dialect, table in DIALECTS.items()
}

# Sent by the zygote to a worker that hangs: its handler writes the stack of each thread, in C, without the interpreter's
# lock, and then the signal ends the process (faulthandler, chained to the default action).
TRACEBACK = signal.SIGRTMIN + 7
