"""`Performance`: the tasks of one deploy, or of one `midstream run`, run in threads beside the event loop.

Tasks are plain functions; each hands its commands to the loop and waits. An interrupt ends what a task waits for, and
whatever it asks next; a task that computes on for ever is left behind when the program ends (its thread is a daemon).
Runs in the deployer.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import shlex
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from midstream.deploy.events import EventKind
from midstream.deploy.tasks.book import TaskBook
from midstream.deploy.tasks.registry import Question, TaskEntry
from midstream.deploy.tasks.remote import RemoteHost
from midstream.deploy.tasks.run import TaskRun, called_with
from midstream.deploy.tasks.seat import Seat
from midstream.deploy.tasks.selection import Selection
from midstream.errors import AppError, InterruptedDeploy, MidstreamError, OperatorError

# task, phase, kind, text, seconds
Tell = Callable[[str, str, EventKind, str, float | None], None]

_MEND = "mend the task in deploy.py; the lines above are its traceback"


class Performance:
    """`perform` and `undo` from the event loop; everything else from the tasks' threads."""

    def __init__(self, book: TaskBook, seats: Sequence[Seat], tell: Tell) -> None:
        self.book = book
        self.seats = tuple(seats)
        self.settings: dict[str, Any] = {}
        self._tell = tell
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun: list[str] = []
        self._ran: set[tuple[str, tuple[str, ...]]] = set()
        self._names: Counter[tuple[str, str]] = Counter()
        self._pending: set[concurrent.futures.Future[Any]] = set()
        self._lock = threading.RLock()  # held for a moment, also by the loop
        self._asking = threading.RLock()  # held while the operator is asked, by tasks alone
        self._stopped = False

    # -- from the loop ---------------------------------------------------------------------------------------------

    async def perform(self, task: str, phase: str, only: tuple[str, ...] = ()) -> None:
        """Runs a task to its end. Raises the MidstreamError it failed with; file and line are in it."""
        entry = self.book.registry.entry(task)
        await self._in_thread(lambda: self.invoke(entry.name, phase, only, again=True))

    async def undo(self) -> list[MidstreamError]:
        """The undo of each task that was begun, the last first; returns what failed."""
        failed = []
        self._stopped = False
        while self._begun:
            entry = self.book.registry.tasks[self._begun.pop()]
            if not entry.undo:
                continue
            try:
                await self._in_thread(lambda name=entry.undo: self._play(name, "reverting", ()))  # type: ignore[misc]
            except MidstreamError as error:
                failed.append(error)
        return failed

    async def _in_thread(self, work: Callable[[], None]) -> None:
        loop = self._loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        self._stopped = False

        def finish(error: BaseException | None) -> None:
            if ended.done():
                return
            if error is None:
                ended.set_result(None)
            else:
                ended.set_exception(error)

        def run() -> None:
            error: BaseException | None = None
            try:
                work()
            except MidstreamError as failed:
                error = failed
            except BaseException as bug:  # SystemExit in a deploy.py ends the task, not the deployer
                error = AppError(f"{type(bug).__name__}: {bug}", detail=traceback.format_exc(), remedy=_MEND)
            try:
                loop.call_soon_threadsafe(finish, error)
            except RuntimeError:
                pass  # the loop has ended: nobody waits any more

        threading.Thread(target=run, name="task", daemon=True).start()
        try:
            await ended
        except asyncio.CancelledError:
            self._stop()
            raise

    def _stop(self) -> None:
        """What tasks wait for ends now, and what they ask next is refused."""
        self._stopped = True
        with self._lock:
            for future in list(self._pending):
                future.cancel()

    # -- from tasks ------------------------------------------------------------------------------------------------

    def invoke(self, name: str, phase: str, only: tuple[str, ...], *, again: bool) -> None:
        with self._lock:
            if (name, only) in self._ran and not again:
                return
            self._ran.add((name, only))
        registry = self.book.registry
        for before in registry.around("before", name):
            self.invoke(before, phase, only, again=again)
        self._begun.append(name)
        self._play(name, phase, only)
        for after in registry.around("after", name):
            self.invoke(after, phase, only, again=again)

    def _play(self, name: str, phase: str, only: tuple[str, ...]) -> None:
        entry = self.book.registry.tasks[name]
        run = TaskRun(self, name, phase, only)
        started = time.monotonic()
        self._tell(name, phase, EventKind.BEGIN, "", None)
        try:
            for arguments in self._arguments(entry, run):
                entry.work(*arguments)
        except BaseException as error:
            placed = placed_error(entry, error)
            self._tell(name, phase, EventKind.END, placed.what, time.monotonic() - started)
            raise placed from error
        self._tell(name, phase, EventKind.END, "", time.monotonic() - started)

    def _arguments(self, entry: TaskEntry, run: TaskRun) -> list[tuple[Any, ...]]:
        if not entry.per_host:
            return [(run,)]
        hosts: list[RemoteHost] = list(run.on(Selection(roles=entry.roles)))
        return [(run, host) for host in (hosts[:1] if entry.once else hosts)]

    def wait_for(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine on the loop. Raises what it raises, InterruptedDeploy when the run was ended."""
        if self._stopped or self._loop is None:
            work.close()
            raise InterruptedDeploy("interrupted")
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise InterruptedDeploy("the run has ended") from None
        with self._lock:
            self._pending.add(future)
        try:
            return future.result()
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            raise InterruptedDeploy("interrupted") from None
        finally:
            with self._lock:
                self._pending.discard(future)

    def next_name(self, task: str, host: str) -> str:
        """Of a command: counts up for each task and host."""
        with self._lock:
            self._names[task, host] += 1
            return f"task {task} {self._names[task, host]}"

    def say(self, task: str, phase: str, text: str) -> None:
        for line in text.splitlines():
            self._tell(task, phase, EventKind.LINE, line, None)

    def note(self, task: str, phase: str, text: str) -> None:
        self._tell(task, phase, EventKind.NOTE, text, None)

    # -- settings --------------------------------------------------------------------------------------------------

    def setting(self, name: str, default: Any, run: TaskRun, missing: object) -> Any:
        """The value; what is computed or asked is kept."""
        with self._asking:
            if name in self.book.given:
                given = self.book.given[name]
                question = self.book.registry.settings.get(name)
                if isinstance(question, Question) and not question.echo:
                    self.book.keep_secret(name, given)
                return given
            own = self.settings if name in self.settings else self.book.registry.settings
            if name not in own:
                if default is missing:
                    known = ", ".join(sorted({*self.settings, *self.book.registry.settings})) or "none"
                    raise OperatorError(
                        f"there is no setting {name!r}",
                        where=run.task,
                        detail=f"there are: {known}",
                        remedy='registry.set("NAME", …) in deploy.py, or name one that there is',
                    )
                return default
            value = own[name]
            if isinstance(value, Question):
                value = self.answer(name, value)
            elif callable(value):
                value = called_with(value, run)
            self.settings[name] = value
            return value

    def answer(self, name: str, question: Question) -> str:
        """Asks at the terminal."""
        with self._asking:
            if self._stopped:
                raise InterruptedDeploy("interrupted")
            try:
                shown = f"{question.text} [{question.default}]" if question.default and question.echo else question.text
                value = self.book.ask(shown, question.echo)
            except OperatorError as error:
                if question.default is None:
                    raise OperatorError(
                        f"{question.text!r}: {error.what}",
                        where=name,
                        remedy=self._how_to_answer(name),
                    ) from None
                value = question.default
            value = value or question.default or ""
            if not question.echo:
                self.book.keep_secret(name, value)
            return value

    def _how_to_answer(self, name: str) -> str:
        if name not in self.book.registry.settings:
            return (
                'run it at a terminal; a question made by registry.ask("NAME", …) can be answered by --set NAME=VALUE'
            )
        given = shlex.quote(f"{name}=")
        return (
            f"answer beforehand: `--set {given}…` of the deploy (`midstream run TASK {given}…`), or give it a default"
        )


def placed_error(entry: TaskEntry, error: BaseException) -> MidstreamError:
    """The error of a task with file and line: of the last frame in the file that the task was made in."""
    file = entry.where.rpartition(":")[0]
    line = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == file:
            line = f"{file}:{number}"
    where = f"{line or entry.where}, task {entry.name}"
    if isinstance(error, InterruptedDeploy):
        return error
    if isinstance(error, MidstreamError):
        if ", task " not in error.where:
            error.where = f"{error.where}, {where}" if error.where else where
        return error
    detail = "".join(traceback.format_exception(error)[-6:])
    return AppError(
        f"task {entry.name} failed: {type(error).__name__}: {error}", where=where, detail=detail, remedy=_MEND
    )
