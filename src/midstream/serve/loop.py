"""The loop of master and zygote: epoll, timers, signals as bytes in a pipe. They fork, so no threads, no asyncio.

What lives here: waiting. What must not: what is waited for. Workers have an event loop of their own.
"""

from __future__ import annotations

import os
import select
import signal
import traceback
from collections.abc import Callable, Iterable

from midstream.linux.accepting import REST_S
from midstream.linux.timers import Timer, Timers
from midstream.serve.channel import Channel, Message

_FAILURES_MAX = 10


class Loop:
    """`after_turn` runs when everything that had come is dealt with: where level-triggered decisions are made."""

    def __init__(self, after_turn: Callable[[], None] = lambda: None) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._timers = Timers()
        self._resting: dict[int, Timer] = {}
        self._signals: tuple[int, int] | None = None
        self._handled: tuple[int, ...] = ()
        self._failures: dict[int, int] = {}
        self.after_turn = after_turn
        self.done = False

    def watch(self, fd: int, act: Callable[[], None]) -> None:
        """act: whenever fd is readable or at its end."""
        self._readers[fd] = act
        self._register(fd)

    def watch_writable(self, fd: int, act: Callable[[], None] | None) -> None:
        """None: no longer."""
        if act is None:
            self._writers.pop(fd, None)
        else:
            self._writers[fd] = act
        self._register(fd)

    def forget(self, fd: int) -> None:
        """Before it is closed. One that is not watched is no error."""
        self._readers.pop(fd, None)
        self._writers.pop(fd, None)
        self._failures.pop(fd, None)
        if resting := self._resting.pop(fd, None):
            resting.cancel()
        self._register(fd)

    def rest(self, fd: int) -> None:
        """Reads nothing of it for a while: a door that cannot be opened now (`linux.accepting`)."""
        act = self._readers[fd]
        self.forget(fd)

        def again() -> None:
            del self._resting[fd]
            self.watch(fd, act)

        self._resting[fd] = self.after(REST_S, again)

    def _register(self, fd: int) -> None:
        wanted = (select.EPOLLIN if fd in self._readers else 0) | (select.EPOLLOUT if fd in self._writers else 0)
        try:
            if wanted:
                self._epoll.modify(fd, wanted)
            else:
                self._epoll.unregister(fd)
        except FileNotFoundError:
            if wanted:
                self._epoll.register(fd, wanted)
        except OSError:
            if wanted:
                raise

    def after(self, delay_s: float, act: Callable[[], None]) -> Timer:
        return self._timers.after(delay_s, act)

    def take_signals(self, signals: Iterable[int], act: Callable[[int], None]) -> None:
        """act(number) in the loop for each signal that came; several of one kind before a turn are one."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._signals = (read_fd, write_fd)
        self._handled = tuple(signals)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in self._handled:
            signal.signal(number, _noted)
        self.watch(read_fd, lambda: self._deliver(read_fd, act))

    def _deliver(self, read_fd: int, act: Callable[[int], None]) -> None:
        came = os.read(read_fd, 65536)
        for number in dict.fromkeys(came):  # in the order in which they came first
            if number in self._handled:
                act(number)

    def run(self) -> None:
        """Until `done` is set."""
        while not self.done:
            self.turn()

    def turn(self) -> None:
        """Waits for the next event or deadline and deals with all there are."""
        for fd, events in self._epoll.poll(self._timers.wait_s()):
            if events & ~select.EPOLLOUT and (act := self._readers.get(fd)):
                self._survives(act, fd)
            if events & ~select.EPOLLIN and (act := self._writers.get(fd)):
                self._survives(act, fd)
        for due in self._timers.due():
            self._survives(due)
        self._survives(self.after_turn)

    def _survives(self, act: Callable[[], None], fd: int = -1) -> None:
        """A bug in one action must not end what others depend on: it is logged and the loop goes on. A descriptor whose
        action always fails would be readable for ever, so it is left alone then."""
        try:
            act()
        except Exception:
            traceback.print_exc()
            self._failures[fd] = self._failures.get(fd, 0) + 1
            if fd >= 0 and self._failures[fd] >= _FAILURES_MAX:
                self.forget(fd)

    def leave_in_child(self) -> None:
        """After a fork, in the child: nothing of this loop is left, and signals do what they do by default."""
        signal.set_wakeup_fd(-1)
        for number in self._handled:
            signal.signal(number, signal.SIG_DFL)
        self._epoll.close()
        for fd in self._signals or ():
            os.close(fd)
        self._readers.clear()
        self._writers.clear()


class Talk:
    """A channel in a loop. on_message for each message; on_end once, when the peer is gone."""

    def __init__(
        self,
        loop: Loop,
        channel: Channel,
        on_message: Callable[[Message], None],
        on_end: Callable[[], None],
    ) -> None:
        self.channel = channel
        self._loop = loop
        self._on_message = on_message
        self._on_end = on_end
        self._open = True
        loop.watch(channel.fileno(), self._readable)

    def send(self, kind: str, fds: tuple[int, ...] = (), **body: object) -> None:
        if not self._open:
            return
        self.channel.send(kind, fds, **body)
        if self.channel.has_waiting:
            self._loop.watch_writable(self.channel.fileno(), self._writable)

    def _writable(self) -> None:
        self.channel.flush()
        if not self.channel.has_waiting:
            self._loop.watch_writable(self.channel.fileno(), None)

    def _readable(self) -> None:
        for message in self.channel.receive():
            self._on_message(message)
        if self.channel.ended and self._open:
            self.close()
            self._on_end()

    def close(self) -> None:
        """Says nothing more and hears nothing more; on_end is not called."""
        if self._open:
            self._open = False
            self._loop.forget(self.channel.fileno())
            self.channel.close()


def _noted(_number: int, _frame: object) -> None:
    """The wake-up descriptor has it all."""
