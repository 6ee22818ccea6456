"""`Writer`: the one thread that touches the agent's own log folder. It is begun by the agent's loop, with the first line.

The loop waits for it, so that a line is in its file before it is taken out of its FIFO; but no longer than `LATE_S`: a disk
that hangs must not stop the agent, and with it restarts, checks and deploys of all apps. Whoever finds it late goes on, and
is told later. All is done in the order in which it was asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

LATE_S = 0.2

T = TypeVar("T")


class Late(Exception):
    """It is still to be done. `work`: done when it is."""

    def __init__(self, work: Future[Any]) -> None:
        super().__init__("the folder of the logs does not answer")
        self.work = work


class Writer:
    """Used by the loop's thread only."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[object, ...]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: Future[Any] | None = None

    @property
    def is_late(self) -> bool:
        """Whether something that was asked for is not done yet."""
        return self._last is not None and not self._last.done()

    def run(self, do: Callable[..., T], *args: object, wait_s: float | None = None) -> T:
        """`do(*args)`, when it is done in time. Raises what it raises, and Late: at once where something else is late."""
        late = self.is_late
        work = self.begin(do, *args)
        if late:
            raise Late(work)
        try:
            return work.result(LATE_S if wait_s is None else wait_s)
        except TimeoutError:  # NFS says so too, as an OSError
            if work.done():
                raise
            raise Late(work) from None

    def begin(self, do: Callable[..., T], *args: object) -> Future[T]:
        """Asks for it, and waits for nothing."""
        work: Future[T] = Future()
        if self._thread is None and not self._start():
            _do(work, do, args)  # no more threads on this host: then here
            return work
        self._last = work
        self._asked.put((work, do, args))
        return work

    def close(self) -> None:
        """The thread ends when it is through; nobody waits for that."""
        if self._thread is not None:
            self._asked.put(None)
            self._thread = None

    def _start(self) -> bool:
        try:
            thread = threading.Thread(target=self._work, daemon=True, name="logs")
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            _do(*asked)
            del asked


def _do(work: Future[Any], do: Callable[..., Any], args: tuple[object, ...]) -> None:
    if not work.set_running_or_notify_cancel():
        return
    try:
        work.set_result(do(*args))
    except BaseException as error:
        work.set_exception(error)
