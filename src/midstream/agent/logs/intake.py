"""`Logs`: takes the output of all services out of their FIFOs and gives it to their sinks. Runs in the agent's loop.

A FIFO is peeked (tee(2)), its whole lines are written to the log file, an unfinished one to the file of those, and
only then is it consumed: an agent that is killed in between writes lines once more, and loses none. FIFOs are always
emptied, so a thousand silent services cost no wake-up and no timer.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import itemgetter

from midstream.agent.apart import read_apart
from midstream.agent.logs.follow import Follower, last_lines
from midstream.agent.logs.log_file import LogFile
from midstream.agent.logs.open_files import LogPlace, OpenFiles
from midstream.agent.logs.sink import LogEvent, LogSink, Storing
from midstream.agent.logs.unfinished import Unfinished
from midstream.agent.logs.writer import Late, Writer
from midstream.agent.readers import Readers
from midstream.core import logline
from midstream.core.logline import ChannelName, LogLine, Piece, Rest
from midstream.core.moments import unjumped
from midstream.core.spec import LogSpec
from midstream.errors import HostError, OperatorError
from midstream.linux.file_identity import FileUser
from midstream.linux.pipes import PipePeek, reopen_pipe

_START_S = 5.0  # for what an earlier agent left; it is about to read its database, too


@dataclass(slots=True)
class _Channel:
    name: ChannelName
    fd: int
    sink: LogSink
    unfinished: bytes = b""
    storing: asyncio.Task[None] | None = None  # a block is on its way to a file that is written apart
    ended: bool = False  # its process: an unfinished line is its last
    detached: bool = False


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
        self._peek = PipePeek()
        self._writer = Writer()
        self._unfinished = Unfinished(f"{folder}/.unfinished")
        self._touch(self._unfinished.read_back, wait_s=_START_S)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers: Readers[_Channel] | None = None

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
            file = LogFile(place, spec, OpenFiles(1) if spec.path else self._files)
            sink = LogSink(app, service, file, self._clock, self._on_event, self._writer)
            self._sinks[(app, service)] = sink
        else:
            sink.use(place, spec, self._files)
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

    def set_aside(self, app: str, ending: str) -> None:
        """Renames the folder of an app's logs, so that the next app of that name begins with none. Best effort."""
        for name in [name for name in self._sinks if name[0] == app]:
            self.forget(*name)
        with suppress(OSError):
            self._touch(os.rename, f"{self._folder}/{app}", f"{self._folder}/{app}.{ending}")

    def sink(self, app: str, service: str) -> LogSink:
        """The sink of a service; one with the default settings when it was not configured."""
        return self._sinks.get((app, service)) or self.configure(app, service, LogSpec())

    def reopen(self) -> None:
        """Open all files anew when they are next written (after an external logrotate)."""
        for sink in self._sinks.values():
            sink.reopen()

    # -- channels ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read, in the running loop; channels may be attached before and after."""
        self._loop = asyncio.get_running_loop()
        self._readers = Readers(self._pump)
        for channel in self._channels.values():
            self._readers.add(channel.fd, channel)

    def attach(self, name: ChannelName, fd: int) -> None:
        """Read the FIFO `fd` from now on. `fd` becomes ours: it is replaced by an open file of its own, because the
        service shares it and must not find it non-blocking. For an attached name, `fd` is closed and nothing else."""
        try:
            if name in self._channels:
                return
            own = reopen_pipe(fd)
        finally:
            os.close(fd)
        channel = _Channel(name, own, self.sink(name.app, name.service))
        self._take_over(name)
        self._channels[name] = channel
        if self._readers is not None:
            self._readers.add(own, channel)

    def attached(self) -> frozenset[ChannelName]:
        return frozenset(self._channels)

    def absorb(self, name: ChannelName, data: bytes, dropped_bytes: int = 0) -> None:
        """Write what the keeper spooled while there was no agent, before `attach`. `dropped_bytes`: how much it had to
        drop before `data`; the file says so in front of it."""
        sink = self.sink(name.app, name.service)
        self._take_over(name)
        if dropped_bytes:
            sink.lose(dropped_bytes, 0, f"nobody read the output of {name.generation}.{name.slot}")
        pieces, _ = logline.split(data, Rest.CUT)
        if pieces:
            sink.put(pieces, name.generation, name.slot)
        else:
            sink.settle()

    def _take_over(self, name: ChannelName) -> None:
        """Write the unfinished line of an earlier agent, as a cut piece: whether what follows was consumed already
        cannot be known, so it is not joined here."""
        left = self._unfinished.take_over(name)
        if left:
            self.sink(name.app, name.service).put([Piece(left, cut=True)], name.generation, name.slot)
            self._touch(self._unfinished.keep, name, b"")

    def flush(self, name: ChannelName) -> None:
        """Take all there is now, an unfinished last line too: its process has ended."""
        channel = self._channels.get(name)
        if channel is None:
            return
        # Bounded: a grandchild that still writes must not keep us here.
        for _ in range(64):
            if not self._pump(channel):
                break
        channel.ended = True
        self._end_line(channel)

    def _end_line(self, channel: _Channel) -> None:
        if channel.ended and channel.unfinished and channel.storing is None:
            channel.sink.put([Piece(channel.unfinished)], channel.name.generation, channel.name.slot)
            self._keep(channel, b"")

    def detach(self, name: ChannelName) -> None:
        """Take the rest and let go of the FIFO. A no-op for a name that is not attached."""
        self.flush(name)
        channel = self._channels.pop(name, None)
        if channel is not None and channel.storing is None:
            self._let_go(channel)
        elif channel is not None:
            channel.detached = True  # let go of when that is stored

    async def idle(self) -> None:
        """Until what was taken out of the FIFOs is in the files, or counted as lost."""
        await asyncio.gather(*(sink.idle() for sink in self._sinks.values()))

    def close(self) -> None:
        """Stop reading. What is in the FIFOs stays there for the next agent."""
        for channel in self._channels.values():
            self._let_go(channel)
        self._channels.clear()
        if self._readers is not None:
            self._readers.close()
        self._loop = self._readers = None
        self._peek.close()
        self._touch(self._unfinished.close)
        self._touch(self._files.close)
        self._writer.close()

    def _touch(self, do: Callable[..., object], *args: object, wait_s: float | None = None) -> None:
        """Something in the agent's own folder; where that does not answer it is done as soon as it does. Raises OSError."""
        with suppress(Late):
            self._writer.run(do, *args, wait_s=wait_s)

    def _let_go(self, channel: _Channel) -> None:
        if self._readers is not None:
            self._readers.remove(channel.fd)
        os.close(channel.fd)

    def _pump(self, channel: _Channel) -> bool:
        """Peek, write, consume; at most 64 KiB, so that all services get their turn. False when there was nothing, or when
        it is being stored."""
        if channel.storing is not None:
            return False
        data = self._peek.peek(channel.fd)
        if not data:
            return False
        stream = channel.unfinished + data
        pieces, size_bytes = logline.split(stream)
        if pieces and self._loop is not None and self._readers is not None:
            storing = channel.sink.write(pieces, channel.name.generation, channel.name.slot)
            if storing is not None:
                self._readers.remove(channel.fd)
                work = self._store_apart(channel, storing, stream[size_bytes:], len(data))
                channel.storing = self._loop.create_task(work)
                return False
        elif pieces:
            channel.sink.put(pieces, channel.name.generation, channel.name.slot)
        self._keep(channel, stream[size_bytes:])
        _consume(channel.fd, len(data))
        return True

    async def _store_apart(self, channel: _Channel, storing: Storing, rest: bytes, size_bytes: int) -> None:
        """Written first, consumed after, here too; meanwhile nothing more is read of this channel, and others go on."""
        await storing
        channel.storing = None
        if self._readers is None:
            return  # closed meanwhile: it is in the FIFO for the next agent
        self._keep(channel, rest)
        _consume(channel.fd, size_bytes)
        if channel.ended:
            while self._pump(channel):
                pass
            self._end_line(channel)
        if channel.storing is not None:
            return
        if channel.detached:
            os.close(channel.fd)
        else:
            self._readers.add(channel.fd, channel)

    def _keep(self, channel: _Channel, unfinished: bytes) -> None:
        if unfinished != channel.unfinished:
            if self._unfinished.note(channel.name, unfinished):
                self._touch(self._unfinished.keep_noted, channel.name)
            channel.unfinished = unfinished

    # -- followers ---------------------------------------------------------------------------------------------------

    async def follow(
        self, app: str, services: Sequence[str] = (), lines: int = 100, *, follow: bool = True, raw: bool = False
    ) -> AsyncIterator[LogLine]:
        """The last `lines` lines of these services (all of the app when empty) by time, then, with `follow`, those that
        come. Control characters are shown as escapes unless `raw`. A reader that is too slow gets a note and the end.
        Raises OperatorError for a service that there is not. Close the generator (`aclosing`) when leaving early."""
        sinks = self._chosen(app, services)
        follower = Follower(lambda: self._dropped(app))
        history: list[tuple[str, LogLine]] = []
        given: set[tuple[str, str]] = set()  # of files that are read while they are written
        try:
            for sink in sinks:
                found = self._history(sink, lines, follower if follow else None)
                if found is None:
                    found = await self._history_apart(sink, lines, follower if follow else None)
                    given.update((line.time, line.text) for line in found)
                timed = zip(unjumped([line.time for line in found]), found, strict=True)
                history = list(heapq.merge(history, timed, key=itemgetter(0)))[-lines:] if lines else []
                await asyncio.sleep(0)
            for _, line in history:
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
                if (live.time, live.text) in given:
                    given.discard((live.time, live.text))
                    continue
                yield _shown(live, raw)
        finally:
            for sink in sinks:
                if follower.tell in sink.followers:
                    sink.followers.remove(follower.tell)

    def _history(self, sink: LogSink, lines: int, follower: Follower | None) -> list[LogLine] | None:
        """No await between reading back and listening: no line is missed or given twice. None: it has to be read apart."""
        if sink.is_apart:
            return None
        try:
            found = self._writer.run(last_lines, sink.place, sink.service, lines)
        except Late:
            return None
        if follower is not None:
            sink.followers.append(follower.tell)
        return found

    async def _history_apart(self, sink: LogSink, lines: int, follower: Follower | None) -> list[LogLine]:
        """While it is written; what is remembered of it where its file system does not answer."""
        if follower is not None:
            sink.followers.append(follower.tell)
        owner = sink.place.owner
        uid = owner.uid if owner is not None else os.getuid()
        try:
            return await read_apart(uid, sink.place.path, last_lines, sink.place, sink.service, lines)
        except HostError:
            return sink.remembered(lines)

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
