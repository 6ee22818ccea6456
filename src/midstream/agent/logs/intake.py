"""`Logs`: takes the output of all services out of their FIFOs and gives it to their sinks. Runs in the agent's loop.

A FIFO is peeked (tee(2)), its whole lines are written to the log file, and only then consumed: an agent that is killed
in between writes them once more, and loses none. An unfinished line stays in the FIFO. It must not wake us until there
is more of it, so the FIFOs are watched edge-triggered, by an epoll of our own that is itself one reader of the loop:
a thousand silent services cost no wake-up and no timer.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import select
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from midstream.agent.logs.follow import Follower, last_lines
from midstream.agent.logs.open_files import LogPlace, OpenFiles
from midstream.agent.logs.sink import LogEvent, LogSink
from midstream.core import logline
from midstream.core.logline import ChannelName, LogLine, Rest
from midstream.core.spec import LogSpec
from midstream.errors import OperatorError
from midstream.linux.file_identity import FileUser
from midstream.linux.pipes import PipePeek, is_full, reopen_pipe, unread_bytes, wakes_on_each_write


@dataclass(slots=True)
class _Channel:
    name: ChannelName
    fd: int
    sink: LogSink
    busy: bool = False


class Logs:
    """The output of all services on this host. Not thread-safe: use it from the loop's thread.

    folder: where APP/SERVICE.log are. on_event: called for each `LogEvent`, synchronously; it must not raise.
    """

    def __init__(
        self,
        folder: str,
        on_event: Callable[[LogEvent], None] = lambda event: None,
        *,
        clock: Callable[[], float] = time.time,
        open_files: int = 64,
    ) -> None:
        self._folder = folder
        self._on_event = on_event
        self._clock = clock
        self._files = OpenFiles(open_files)
        self._sinks: dict[tuple[str, str], LogSink] = {}
        self._channels: dict[ChannelName, _Channel] = {}
        self._by_fd: dict[int, _Channel] = {}
        self._busy: deque[_Channel] = deque()
        self._peek = PipePeek()
        self._epoll = select.epoll()
        self._rest = Rest.KEEP if wakes_on_each_write() else Rest.CUT
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- services ----------------------------------------------------------------------------------------------------

    def configure(
        self,
        app: str,
        service: str,
        spec: LogSpec,
        *,
        owner: FileUser | None = None,
        reader_gid: int | None = None,
    ) -> LogSink:
        """Say where a service's lines go; again at any time, also while lines come. `owner` (the app's user) applies to
        a path of the service's own (`spec.path`): it is only used with that user's rights."""
        place = LogPlace(self.path_of(app, service), None, reader_gid)
        if spec.path:
            place = LogPlace(spec.path, owner)
        sink = self._sinks.get((app, service))
        if sink is None:
            sink = LogSink(app, service, place, spec, self._files, self._clock, self._on_event)
            self._sinks[(app, service)] = sink
        else:
            if sink.place != place:
                sink.reopen()
            sink.place, sink.spec = place, spec
        return sink

    def path_of(self, app: str, service: str) -> str:
        """The file of a service, as far as it was not given one of its own."""
        sink = self._sinks.get((app, service))
        if sink is not None and sink.spec.path:
            return sink.spec.path
        return f"{self._folder}/{app}/{service}.log"

    def forget(self, app: str, service: str) -> None:
        """Drop a service that is no more, after detaching its channels. Its files stay."""
        for name in [name for name in self._channels if (name.app, name.service) == (app, service)]:
            self.detach(name)
        sink = self._sinks.pop((app, service), None)
        if sink is not None:
            sink.reopen()

    def sink(self, app: str, service: str) -> LogSink:
        """The sink of a service; one with the default settings when it was not configured."""
        return self._sinks.get((app, service)) or self.configure(app, service, LogSpec())

    def reopen(self) -> None:
        """Open all files anew when they are next written (after an external logrotate)."""
        for sink in self._sinks.values():
            sink.reopen()

    # -- channels ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._on_readable)
        self._work_soon()

    def attach(self, name: ChannelName, fd: int) -> None:
        """Read the FIFO `fd` from now on. `fd` becomes ours: it is replaced by an open file of its own, because the
        service shares it and must not find it non-blocking. An attached name is a no-op that closes `fd`."""
        try:
            if name in self._channels:
                return
            own = reopen_pipe(fd)
        finally:
            os.close(fd)
        channel = _Channel(name, own, self.sink(name.app, name.service))
        self._channels[name] = channel
        self._by_fd[own] = channel
        self._epoll.register(own, select.EPOLLIN | select.EPOLLET)

    def attached(self) -> frozenset[ChannelName]:
        return frozenset(self._channels)

    def absorb(self, name: ChannelName, data: bytes, dropped_bytes: int = 0) -> None:
        """Write what the keeper spooled while there was no agent, before `attach`; and name what it had to drop."""
        sink = self.sink(name.app, name.service)
        pieces, _ = logline.split(data, Rest.CUT)
        if pieces:
            sink.write(pieces, name.generation, name.slot)
        if dropped_bytes:
            sink.lose(dropped_bytes, 0, f"no agent was reading the output of {name}")
            sink.settle()

    def flush(self, name: ChannelName) -> None:
        """Take all there is now, an unfinished last line too: its process has ended."""
        channel = self._channels.get(name)
        if channel is None:
            return
        # Bounded: a grandchild that still writes must not keep us here.
        for _ in range(64):
            if not self._pump(channel):
                break
        self._pump(channel, Rest.END)

    def detach(self, name: ChannelName) -> None:
        """Take the rest and let go of the FIFO. A no-op for a name that is not attached."""
        self.flush(name)
        channel = self._channels.pop(name, None)
        if channel is None:
            return
        self._epoll.unregister(channel.fd)
        del self._by_fd[channel.fd]
        os.close(channel.fd)
        channel.fd = -1

    def close(self) -> None:
        """Stop reading. What is in the FIFOs stays there for the next agent."""
        if self._loop is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._loop = None
        self._epoll.close()
        for channel in self._channels.values():
            os.close(channel.fd)
            channel.fd = -1
        self._channels.clear()
        self._by_fd.clear()
        self._busy.clear()
        self._peek.close()
        self._files.close()

    def _on_readable(self) -> None:
        for fd, _ in self._epoll.poll(0, 256):
            channel = self._by_fd.get(fd)
            if channel is not None and not channel.busy:
                channel.busy = True
                self._busy.append(channel)
        self._work()

    def _work(self) -> None:
        """One turn for each busy channel, 64 KiB at most; one that has more goes to the end of the line."""
        for _ in range(len(self._busy)):
            channel = self._busy.popleft()
            channel.busy = channel.fd >= 0 and self._pump(channel)
            if channel.busy:
                self._busy.append(channel)
        self._work_soon()

    def _work_soon(self) -> None:
        if self._busy and self._loop is not None:
            self._loop.call_soon(self._work_if_open)

    def _work_if_open(self) -> None:
        if self._loop is not None and self._busy:
            self._work()

    def _pump(self, channel: _Channel, rest: Rest | None = None) -> bool:
        """Peek, write, consume. Returns whether there is more to do at once."""
        data = self._peek.peek(channel.fd)
        if not data:
            return False
        pieces, size_bytes = logline.split(data, rest or self._rest)
        if not pieces and (unread_bytes(channel.fd) > len(data) or is_full(channel.fd)):
            # The newline cannot come while the pipe is full: take what there is, or its writer waits for ever.
            pieces, size_bytes = logline.split(data, Rest.CUT)
        if not pieces:
            return False
        channel.sink.write(pieces, channel.name.generation, channel.name.slot)
        _consume(channel.fd, size_bytes)
        return unread_bytes(channel.fd) > len(data) - size_bytes

    # -- followers ---------------------------------------------------------------------------------------------------

    async def follow(
        self, app: str, services: Sequence[str] = (), lines: int = 100, *, follow: bool = True, raw: bool = False
    ) -> AsyncIterator[LogLine]:
        """The last `lines` lines of these services (all of the app when empty) by time, then, with `follow`, those that
        come. Control characters are shown as escapes unless `raw`. A reader that is too slow gets a note and the end.
        Raises OperatorError for a service that there is not. Close the generator (`aclosing`) when leaving early."""
        sinks = self._chosen(app, services)
        follower = Follower(lambda: self._dropped(app))
        history: list[LogLine] = []
        try:
            for sink in sinks:
                # No await between reading back and listening: no line is missed or given twice.
                found = last_lines(sink.place, sink.service, lines)
                if follow:
                    sink.followers.append(follower.tell)
                history = list(heapq.merge(history, found, key=lambda line: line.time))[-lines:] if lines else []
                await asyncio.sleep(0)
            for line in history:
                yield _shown(line, raw)
            history.clear()
            while follow:
                live = await follower.next()
                if live is None:
                    yield LogLine(
                        logline.stamp(self._clock()),
                        "",
                        None,
                        None,
                        "midstream: this reader was too slow and was let go; lines are missing from here on",
                    )
                    return
                yield _shown(live, raw)
        finally:
            for sink in sinks:
                if follower.tell in sink.followers:
                    sink.followers.remove(follower.tell)

    def _chosen(self, app: str, services: Sequence[str]) -> list[LogSink]:
        known = {service: sink for (of, service), sink in self._sinks.items() if of == app}
        unknown = [service for service in services if service not in known]
        if unknown:
            raise OperatorError(
                f"there is no service {', '.join(unknown)} of {app} on this host",
                remedy=f"name one of: {', '.join(sorted(known)) or 'none is known yet'}",
            )
        return [known[service] for service in (services or sorted(known))]

    def _dropped(self, app: str) -> None:
        text = "a reader of the logs was too slow and was let go"
        self._on_event(LogEvent(app, "", "log_follower_dropped", text))


def _consume(fd: int, size_bytes: int) -> None:
    try:
        while size_bytes > 0:
            size_bytes -= len(os.read(fd, size_bytes))
    except BlockingIOError:
        pass  # the keeper took some of it, at the moment when reading went from one to the other


def _shown(line: LogLine, raw: bool) -> LogLine:
    return line if raw else replace(line, text=logline.visible(line.text))
