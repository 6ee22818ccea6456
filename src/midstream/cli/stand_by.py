"""`midstream agent run --stand-by`: for service managers. Waits while another keeper runs, so that the manager's process is
there when that one ends.

An agent starts the next keeper by itself when its keeper is killed; and an agent may have been started by hand before there
was a service manager. Either way the manager must not take "a keeper runs already" for a failure, and its word to stop
must reach the keeper that runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time

_HOLDER_UNKNOWN_S = 0.1


def stand_by(state: str) -> bool:
    """Blocks while a keeper holds the lock of this state folder. True: there is none, start one. False: TERM or INT came; the
    keeper was told to stop in order, and has ended. Raises OSError when the folder cannot be made."""
    os.makedirs(state, mode=0o700, exist_ok=True)
    fd = os.open(f"{state}/keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    former = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.set_wakeup_fd(wake_write)
    try:
        return _wait(fd, wake_read)
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in former.items():
            signal.signal(number, handler)
        for each in (fd, wake_read, wake_write):
            os.close(each)


def _wait(fd: int, wake_fd: int) -> bool:
    told = 0
    stopping = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return not stopping
        except BlockingIOError:
            pass
        text = os.pread(fd, 32, 0).strip()
        holder = int(text) if text.isdigit() else 0
        if holder != told:
            told = holder
            print(f"midstream agent: a keeper runs already (pid {holder}); standing by", file=sys.stderr, flush=True)
        if _woken(holder, wake_fd):
            stopping = True
            with contextlib.suppress(OSError):
                os.kill(holder, signal.SIGTERM)


def _woken(holder: int, wake_fd: int) -> bool:
    """Waits for the end of the holder, or for a signal: whether one came."""
    poll = select.poll()
    poll.register(wake_fd, select.POLLIN)
    try:
        pidfd = os.pidfd_open(holder)
    except OSError:  # just gone, or its number is not written yet
        time.sleep(_HOLDER_UNKNOWN_S)
        pidfd = -1
    try:
        if pidfd >= 0:
            poll.register(pidfd, select.POLLIN)
        ready = poll.poll(None if pidfd >= 0 else 0)
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    if not any(fd == wake_fd for fd, _ in ready):
        return False
    os.read(wake_fd, 64)
    return bool(holder)
