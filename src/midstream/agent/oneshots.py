"""One-shots: builds, migrations, hooks, steps and checks, run by the keeper, followed by the agent.

The process belongs to the keeper: when the agent is killed the one-shot goes on, and the next agent finds it by its key.
One whose end nobody saw is *indeterminate*; what that means is the caller's to say. Runs in the agent's loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from midstream.agent.keeper_link import KeeperLink, KeeperLost, KeeperRefused
from midstream.agent.spawning import channel_of
from midstream.core.messages import ProcessEntry, ProcessState, SpawnSpec
from midstream.core.names import SpawnKey, parse_key
from midstream.errors import HostError

TAIL_LINES = 40
_LINE_MAX_BYTES = 16 * 1024
RESULT_MARK = "\x1e"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a one-shot ended. lost: nobody knows. text: "exit 1", "killed by SIGTERM", … . tail: its last lines."""

    code: int | None
    text: str
    lost: bool = False
    timed_out: bool = False
    tail: tuple[str, ...] = ()
    result: str = ""  # the last line that begins with RESULT_MARK

    @property
    def ok(self) -> bool:
        return self.code == 0 and not self.timed_out


def exit_text(entry: ProcessEntry) -> str:
    """`exit 1`, `killed by SIGKILL`, `did not start: exec: No such file …`, `ended unseen`."""
    if entry.state is ProcessState.FAILED:
        return f"did not start ({entry.error_stage}: {entry.error})"
    if entry.signum is not None:
        try:
            return f"killed by {signal.Signals(entry.signum).name}"
        except ValueError:
            return f"killed by signal {entry.signum}"
    if entry.code is not None:
        return f"exit {entry.code}"
    return "ended unseen"


class LineReader:
    """Lines of a FIFO that the keeper holds. `fd` becomes ours."""

    def __init__(self, fd: int, on_line: Callable[[str], None]) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._on_line = on_line
        self._rest = b""
        asyncio.get_running_loop().add_reader(fd, self.read)

    def read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._on_line(line.decode("utf-8", "replace"))
        if len(self._rest) > _LINE_MAX_BYTES and not self._rest.startswith(RESULT_MARK.encode()):
            self._on_line(self._rest.decode("utf-8", "replace"))
            self._rest = b""

    def close(self) -> None:
        """Takes what is there, and lets go."""
        if self._fd < 0:
            return
        asyncio.get_running_loop().remove_reader(self._fd)
        while True:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                break
            if not data:
                break
            self._rest += data
        for line in self._rest.split(b"\n"):
            if line:
                self._on_line(line.decode("utf-8", "replace"))
        os.close(self._fd)
        self._fd = -1


@dataclass(slots=True)
class _Waiting:
    """spawned: the keeper took it, or may have."""

    ended: asyncio.Future[ProcessEntry]
    lines: list[str] = field(default_factory=list)
    result: str = ""
    spawned: bool = False


class OneShots:
    """`link` gives the keeper link, waiting for one that is away. Raises KeeperLost."""

    def __init__(self, link: Callable[[], Awaitable[KeeperLink]]) -> None:
        self._link = link
        self._known: dict[str, ProcessEntry] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._abandoned: dict[str, LineReader | None] = {}
        self._letting_go = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def seen(self, entry: ProcessEntry) -> None:
        """An entry of the keeper's table. Called for each change of a one-shot."""
        self._known[entry.key] = entry
        waiting = self._waiting.get(entry.key)
        if waiting is not None and _is_over(entry) and not waiting.ended.done():
            waiting.ended.set_result(entry)
        if entry.key in self._abandoned:
            self._later(self._let_go(entry.key))

    def known_of(self, app: str = "") -> list[SpawnKey]:
        """All that are in the keeper's table, of one app or of all."""
        keys = [parse_key(text) for text in self._known]
        return [key for key in keys if not app or key.app == app]

    def abandon(self, key: str) -> None:
        """Nobody will ask for it any more. One that runs goes on, its output is thrown away; when it has ended, the keeper
        is told to forget it. One that is waited for is left alone."""
        if key in self._waiting or key in self._abandoned:
            return
        self._abandoned[key] = None
        self._later(self._let_go(key))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _let_go(self, key: str) -> None:
        channel = channel_of(parse_key(key))
        async with self._letting_go:
            entry = self._known.get(key)
            if key not in self._abandoned:
                return
            try:
                if entry is not None and not _is_over(entry):
                    if self._abandoned[key] is None:
                        held = await (await self._link()).channel(channel)
                        self._abandoned[key] = LineReader(held.fd, lambda line: None)
                    return
            except (KeeperRefused, KeeperLost):
                return  # what comes next of it is seen, and tried again then
            reader = self._abandoned.pop(key)
            if reader is not None:
                reader.close()
            await self._forget(key, channel)

    def known(self, key: str) -> ProcessEntry | None:
        return self._known.get(key)

    def last_attempt(self, app: str, service: str, generation: int, slot: int) -> ProcessEntry | None:
        """The newest entry for this place, whatever its attempt."""
        best: tuple[int, ProcessEntry] | None = None
        for text, entry in self._known.items():
            key = parse_key(text)
            if (key.app, key.service, key.generation, key.slot) == (app, service, generation, slot) and (
                best is None or key.attempt > best[0]
            ):
                best = (key.attempt, entry)
        return best[1] if best else None

    def running(self) -> list[str]:
        return [key for key, entry in self._known.items() if not _is_over(entry)]

    def keeper_changed(self) -> None:
        """A new keeper is there; what it lists will be seen again, what it does not list is lost."""
        self._known.clear()

    def settle_lost(self) -> None:
        """After the new keeper's table was read: whoever waits for a process that is in no table learns so."""
        for key, waiting in self._waiting.items():
            if waiting.spawned and key not in self._known and not waiting.ended.done():
                waiting.ended.set_exception(_unknown_end(key))

    async def run(
        self,
        spec: SpawnSpec,
        *,
        fds: tuple[int, ...] = (),
        timeout_s: float,
        on_line: Callable[[str], None],
        on_end: Callable[[Outcome], None] = lambda outcome: None,
        on_result: Callable[[str], None] = lambda line: None,
    ) -> Outcome:
        """Starts it (or finds it under its key), streams its lines, and waits for its end. A time-out kills the tree.
        on_end: told how it ended before the keeper is told to forget it, so that no crash comes in between. on_result: told
        of each result line as it comes, where there are several.

        Cancelling the caller leaves the process running: `stop` ends it.
        """
        waiting = _Waiting(asyncio.get_running_loop().create_future())

        def take(line: str) -> None:
            if line.startswith(RESULT_MARK):
                waiting.result = line
                on_result(line)
                return
            waiting.lines.append(line)
            del waiting.lines[:-TAIL_LINES]
            on_line(line)

        channel = channel_of(parse_key(spec.key))
        reader: LineReader | None = None
        self._waiting[spec.key] = waiting
        timed_out = False
        try:
            while reader is None:
                try:
                    held = await (await self._link()).channel(channel, spec.uid, spec.gid)
                    reader = LineReader(held.fd, take)
                except KeeperLost:
                    continue
            refused = await self._start(spec, fds, waiting)
            if refused:
                return Outcome(None, f"did not start ({refused})")
            try:
                entry = await asyncio.wait_for(asyncio.shield(waiting.ended), timeout_s)
            except TimeoutError:
                timed_out = True
                await self.stop(spec.key)
                entry = await asyncio.wait_for(asyncio.shield(waiting.ended), 30.0)
        except HostError as error:
            if reader is not None:
                reader.close()
                reader = None
            return Outcome(None, error.what, lost=True, tail=tuple(waiting.lines), result=waiting.result)
        finally:
            if reader is not None:
                reader.close()
            self._waiting.pop(spec.key, None)
        text = f"was stopped after {timeout_s:g} s" if timed_out else exit_text(entry)
        outcome = Outcome(
            entry.code,
            text,
            lost=entry.state is ProcessState.LOST,
            timed_out=timed_out,
            tail=tuple(waiting.lines),
            result=waiting.result,
        )
        on_end(outcome)
        await self._forget(spec.key, channel)
        return outcome

    async def _start(self, spec: SpawnSpec, fds: tuple[int, ...], waiting: _Waiting) -> str:
        """Spawns it, or finds it. A keeper that dies meanwhile may or may not have started it: the next one's table says.
        Returns why it was refused, or ""."""
        while True:
            link = await self._link()
            entry = self._known.get(spec.key)
            if entry is not None:
                waiting.spawned = True
                if _is_over(entry) and not waiting.ended.done():
                    waiting.ended.set_result(entry)
                return ""
            if waiting.spawned:
                return ""
            try:
                result = (await link.spawn((spec,), fds))[0]
            except KeeperLost:
                waiting.spawned = True
                continue
            waiting.spawned = True
            return "" if result.ok or waiting.ended.done() else result.error

    async def stop(self, key: str) -> None:
        """Kills the whole tree of a one-shot. It outlives a keeper that dies just now: then the next one is told."""
        while True:
            link = await self._link()
            try:
                await link.kill_tree(key)
                return
            except KeeperLost:
                continue

    async def _forget(self, key: str, channel: str) -> None:
        """Ends what the one-shot left behind and acknowledges it. Its caller has what it needs."""
        self._known.pop(key, None)
        try:
            link = await self._link()
            await link.kill_tree(key)
            await link.ack((key,))
            await link.unchannel(channel)
        except (KeeperRefused, KeeperLost):
            pass  # a new keeper, which never knew it, or will list it as ended and be told then


# Of these the key has a number of their own.
_OF_NO_DEPLOY = frozenset({"+run", "+console", "+check", "+look", "+trash", "+external", "+current"})


def is_of_deploy(key: SpawnKey) -> bool:
    """Whether a one-shot belongs to a deploy: then its key has the intent's number."""
    return key.service not in _OF_NO_DEPLOY


def _unknown_end(key: str) -> HostError:
    return HostError(
        f"the end of {key} is unknown: the keeper died meanwhile",
        remedy="midstream resume, or deploy again: what was begun is looked at, or made anew",
    )


def _is_over(entry: ProcessEntry) -> bool:
    return entry.state in (ProcessState.EXITED, ProcessState.FAILED, ProcessState.LOST)
