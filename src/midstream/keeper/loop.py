"""The event loop: epoll, one-shot timers, and the signals that end a wait. Nothing here knows what a service is."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable

from midstream.linux.timers import Timer, Timers

READABLE = select.EPOLLIN
_FAILURES_MAX = 10


def print_traceback(error: Exception) -> None:
    """To stderr, as the interpreter would at its end. (The module `traceback` would be 0.3 MB for the life of the host.)"""
    sys.excepthook(type(error), error, error.__traceback__)


class Loop:
    """Callbacks get the epoll events. A callback may add, remove and close descriptors, its own too."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers = Timers()
        self._failures: dict[int, int] = {}
        self.after_events: list[Callable[[], None]] = []

    @property
    def now_s(self) -> float:
        """Monotonic seconds; what `at` compares with."""
        return time.monotonic()

    def add(self, fd: int, callback: Callable[[int], None], events: int = READABLE) -> None:
        self._callbacks[fd] = callback
        try:
            self._epoll.register(fd, events)
        except FileExistsError:
            self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget it; before it is closed. One that is not there is no error."""
        self._failures.pop(fd, None)
        if self._callbacks.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass  # closed already

    def after(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return self._timers.after(delay_s, callback)

    def turn(self) -> None:
        """Wait for the next event or timer, run what is due, then everything in `after_events`."""
        for fd, events in self._epoll.poll(self._timers.wait_s()):
            callback = self._callbacks.get(fd)
            if callback is not None and not self._survives(callback, events):
                self._failed(fd)
        for due in self._timers.due():
            self._survives(due)
        for callback_after in self.after_events:
            self._survives(callback_after)

    @staticmethod
    def _survives(callback: Callable[..., None], *arguments: int) -> bool:
        """A bug in one callback must not end the parent of everything: it is logged, and the loop goes on."""
        try:
            callback(*arguments)
        except Exception as error:
            print_traceback(error)
            return False
        return True

    def _failed(self, fd: int) -> None:
        """A descriptor whose callback keeps failing stays readable: it would be tried for ever."""
        self._failures[fd] = self._failures.get(fd, 0) + 1
        if self._failures[fd] >= _FAILURES_MAX:
            self.remove(fd)


class Signals:
    """Signals as readable bytes in the loop. The handlers do nothing: the wake-up descriptor has it all."""

    def __init__(self, loop: Loop, callbacks: dict[signal.Signals, Callable[[], None]]) -> None:
        self._callbacks = callbacks
        self._read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for signum in callbacks:
            signal.signal(signum, _noted)
        loop.add(self._read_fd, self._deliver)

    def _deliver(self, _events: int) -> None:
        try:
            received = set(os.read(self._read_fd, 65536))
        except BlockingIOError:
            return
        for signum, callback in self._callbacks.items():
            if signum in received:
                callback()


def _noted(_signum: int, _frame: object) -> None:
    return None
