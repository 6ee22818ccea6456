"""The zygote: loads one release with that release's own interpreter, forks its workers and watches over them.

What lives here: the process and its loop. Who decides whether it serves is above it: the master (`zygote_under_master.py`),
or Midstream's agent, when it runs alone (`zygote_alone.py`). What must not: HTTP, the choice of a release. It has no
thread and no asyncio, because it forks; which worker is missing is `crew.py`'s to say.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from midstream.errors import AppError, MidstreamError
from midstream.linux.timers import Timer
from midstream.serve import application, crew, forking, hooks, signals, titles, worker
from midstream.serve.board import Board
from midstream.serve.channel import Channel, Message, pair
from midstream.serve.contract import Cuts, Identity, Listener
from midstream.serve.crew import Aim, At, Crew
from midstream.serve.loop import Loop, Talk
from midstream.serve.say import Voice, open_error_log
from midstream.serve.settings import Settings

_QUICK_S = 3.0  # for an end at once: the app's lifespan, then KILL
_SPARE_S = 10.0  # beyond what a drain may take, for its own end
_TRACEBACK_S = 2.0  # for a hung worker to write where it hangs
_SLOTS_LEAST = 64


@dataclass(frozen=True, slots=True)
class Release:
    """What this zygote loads. folder: resolved; the working directory already."""

    name: str
    generation: int
    folder: str


class Above(Protocol):
    """Who decides. Each is told once it is so; nothing here blocks."""

    def proven(self) -> None:
        """All workers are ready, on private listeners."""

    def serving(self) -> None:
        """All workers accept."""

    def parked(self) -> None: ...

    def left(self) -> None:
        """All drain, and nobody accepts any more."""

    def workers(self, pids: list[int]) -> None:
        """These live now."""

    def failed(self, error: MidstreamError) -> None:
        """The release does not boot; the zygote ends next. Only before it was proven."""

    def ended(self, cuts: Cuts) -> None:
        """The last worker has gone; the zygote ends next."""


@dataclass(slots=True)
class _Line:
    """The zygote's side of one worker."""

    pid: int
    talk: Talk
    kill: Timer | None = None


@dataclass(slots=True)
class _Said:
    """What Above has been told already."""

    proven: bool = False
    aim: Aim | None = None
    left: bool = False
    pids: list[int] = field(default_factory=list)


class Zygote:
    """One release, loaded. begin() loads it and forks; `loop.run()` is its life."""

    def __init__(self, settings: Settings, release: Release, listeners: Sequence[Listener], above: Above) -> None:
        self.settings = settings
        self.release = release
        self.listeners = listeners
        self.above = above
        self.voice = Voice(settings.log_level)
        self.loop = Loop(self._after_turn)
        self.board = Board.make(max(_SLOTS_LEAST, settings.workers * 4))
        self.crew = Crew(settings.workers, self.board.slots)
        self.status = 0
        self.close_in_child: list[Callable[[], None]] = []
        self.ours: Callable[[], list[int]] = list  # descriptors of connections that are the zygote's own
        self._lines: dict[int, _Line] = {}
        self._said = _Said()
        self._cuts = Cuts()
        self._wake: Timer | None = None
        self._watch: Timer | None = None
        self._quick = False
        self._app: application.App | None = None
        self._interface = ""
        self._hooks = hooks.Hooks()
        self._leave_words: dict[str, Any] = {}  # of the message `leave`: graceful_s, linger_s

    @property
    def name(self) -> str:
        return self.settings.proc_name or self.settings.app

    def pids(self) -> list[int]:
        """Of the workers that live."""
        return sorted(line.pid for line in self._lines.values())

    # ---- boot

    def load(self) -> None:
        """Imports the app, unless workers are to. Raises MidstreamError, and nothing was forked."""
        settings = self.settings
        self.title("loading")
        for path in (self.release.folder, *reversed(settings.pythonpath)):
            entry = os.path.join(self.release.folder, path)
            if entry in sys.path:
                sys.path.remove(entry)
            sys.path.insert(0, entry)
        sys.argv = ["midstream serve", settings.app]
        with forking.noting_threads():
            self._hooks = hooks.load(os.path.join(self.release.folder, settings.hooks) if settings.hooks else "")
            self._hooks.run("before_exec", settings)
            self._app = application.load(settings) if settings.preload else None
        if self._app is not None:
            self._interface = application.interface_of(self._app, settings.interface)
        elif settings.interface != "auto":
            self._interface = settings.interface
        if self._interface:
            worker.warm(self._interface)

    def begin(self) -> None:
        """Looks whether it may fork, and forks the first workers. Raises AppError that names what stands in the way."""
        self._require_safe()
        gc.collect()
        gc.freeze()  # what is loaded by now stays in pages that all workers share: no collection touches it
        self._after_turn()
        self._watch_workers()

    def _require_safe(self) -> None:
        first = Identity(0, 0, self.release.name, self.release.generation)
        found = forking.look_behind(self.ours(), lambda: self._hooks.run("before_fork", first))
        for warning in found.warnings:
            self.voice.warning(warning)
        if found.refused:
            raise AppError(
                f"forking now would break {'; '.join(found.refused)}", where="import of the app", remedy=found.remedy
            )

    def title(self, more: str = "") -> None:
        if self.settings.proc_title:
            titles.set_title(titles.title("zygote", self.name, self.release.name, self.release.generation, more))

    # ---- what Above asks for

    def serve(self) -> None:
        self.crew.aim = Aim.SERVE
        self._said.aim = None
        self.title()

    def park(self) -> None:
        self.crew.aim = Aim.PARK
        self._said.aim = None
        self.title("parked")

    def leave(self, graceful_s: float | None = None, linger_s: float | None = None, *, last: bool = False) -> None:
        """Drains all workers, then ends. last: nobody takes over. Its listeners are closed: it forks nobody any more, and
        only where nobody has them a client is refused at once."""
        self.crew.aim = Aim.LEAVE
        if last:
            self._leave_words["last"] = True
        for listener in self.listeners:
            listener.sock.close()
        if graceful_s is not None:
            self._leave_words["graceful_s"] = graceful_s
        if linger_s is not None:
            self._leave_words["linger_s"] = linger_s
            for slot, member in self.crew.members.items():
                if member.told is At.LEAVING:  # it drains already, and may have to be done sooner
                    self._tell(slot, At.LEAVING)
        self.title("draining")

    def stop(self) -> None:
        """Ends all workers at once, then itself."""
        self.crew.aim = Aim.LEAVE
        self._quick = True
        for slot, line in self._lines.items():
            line.talk.send("stop")
            self.crew.members[slot].told = At.LEAVING
            self._kill_after(slot, _QUICK_S, "it was to end at once")

    def count(self, workers: int) -> None:
        """So many from now on, at least 0."""
        self.crew.count = max(0, min(workers, self.board.slots // 2))

    def reopen(self) -> None:
        """Log files, its own and its workers'."""
        try:
            open_error_log(self.settings.error_log)
        except OSError as error:
            self.voice.error(f"{self.settings.error_log} cannot be opened anew, the former goes on: {error}")
        for line in self._lines.values():
            line.talk.send("reopen")

    # ---- after each turn: what is missing

    def _after_turn(self) -> None:
        aim = None
        while aim is not self.crew.aim and not self.loop.done:  # what Above is told may make it ask for something else
            aim = self.crew.aim
            self._take_care()

    def _take_care(self) -> None:
        now = time.monotonic()
        crew.settled(self.crew, now)
        for action in crew.next_actions(self.crew, now):
            if isinstance(action, crew.Fork):
                self._fork(action.slot, now)
            else:
                self._tell(action.slot, action.to_be)
        self._set_wake(crew.wake_s(self.crew, now), now)
        self._report()

    def _set_wake(self, at_s: float | None, now: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = self.loop.after(at_s - now, lambda: None) if at_s is not None else None

    def _report(self) -> None:
        pids = self.pids()
        if pids != self._said.pids:
            self._said.pids = pids
            self.above.workers(pids)
        if not self._said.proven and self.crew.was_proven:
            self._said.proven = True
            self.above.proven()
        for aim, at, tell in ((Aim.SERVE, At.SERVING, self.above.serving), (Aim.PARK, At.PARKED, self.above.parked)):
            if self.crew.aim is aim and self._said.aim is not aim and self.crew.all_are(at):
                self._said.aim = aim
                tell()
        if self.crew.nobody_accepts and not self._said.left:
            self._said.left = True
            self.above.left()
        if self.crew.aim is Aim.LEAVE and not self._lines and not self.loop.done:
            self.above.ended(self._cuts)
            self.loop.done = True

    def _tell(self, slot: int, to_be: At) -> None:
        line, member = self._lines[slot], self.crew.members[slot]
        member.told = to_be
        if to_be is At.LEAVING:
            member.at = At.LEAVING
            line.talk.send("leave", **self._leave_words)
            settings = self.settings
            graceful_s = self._leave_words.get("graceful_s", settings.graceful_timeout_s)
            linger_s = self._leave_words.get("linger_s", settings.linger_s)
            self._kill_after(slot, max(graceful_s, linger_s) + _SPARE_S, "its drain did not end")
        else:
            line.talk.send("serve" if to_be is At.SERVING else "park")

    # ---- workers begin and end

    def _fork(self, slot: int, now: float) -> None:
        identity = Identity(slot, 0, self.release.name, self.release.generation)
        self.board.clear(slot)
        try:
            self._hooks.run("before_fork", identity)
            channel, theirs = pair()
            sys.stdout.flush()
            sys.stderr.flush()
            pid = _fork_with_signals_blocked()
        except (MidstreamError, OSError) as error:
            self._did_not_fork(slot, now, error)
            return
        if pid == 0:
            channel.close()
            self._become_worker(identity, Channel(theirs))
        theirs.close()
        crew.began(self.crew, slot, pid, now)
        talk = Talk(self.loop, channel, lambda message: self._heard(slot, pid, message), lambda: None)
        self._lines[slot] = _Line(pid, talk)

    def _become_worker(self, identity: Identity, line: Channel) -> NoReturn:
        """Nothing of the zygote stays open in it: its lines would hide the end of others. Whatever fails here, the zygote's
        code must not go on in a second process."""
        try:
            self.loop.leave_in_child()
            for other in self._lines.values():
                other.talk.channel.sock.close()
            for close in self.close_in_child:
                close()
            mine = Identity(identity.worker, os.getpid(), identity.release, identity.generation)
            worker.run(
                worker.Birth(
                    self.settings,
                    mine,
                    self.board,
                    line,
                    self.listeners,
                    self._hooks,
                    self._app,
                    self._interface,
                    self.name,
                )
            )
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(worker.EXIT_BOOT)

    def _did_not_fork(self, slot: int, now: float, error: Exception) -> None:
        self.voice.error(f"no worker could be forked: {error}")
        crew.began(self.crew, slot, 0, now)
        crew.ended(self.crew, slot, now)
        if not self.crew.was_proven:
            limits = "see the limits of its user (`ulimit -u`) and the memory that is left"
            failed = AppError(f"no worker could be forked: {error}", remedy=limits)
            self._give_up(error if isinstance(error, MidstreamError) else failed)

    def _heard(self, slot: int, pid: int, message: Message) -> None:
        now = time.monotonic()
        member = self.crew.members.get(slot)
        if member is None or member.pid != pid:
            return
        match message.kind:
            case "ready":
                crew.became(self.crew, slot, At.IDLE, now)
            case "serving":
                crew.became(self.crew, slot, At.SERVING, now)
            case "parked":
                crew.became(self.crew, slot, At.PARKED, now)
            case "left":
                member.has_left = True
            case "retire":
                member.retiring = message.text("why")
                self.voice.info(f"worker {slot} ({pid}) is replaced: {member.retiring}")
            case "leaving":
                crew.leaves(self.crew, slot)
                self.voice.info(f"worker {slot} ({pid}) ends, because it was sent a signal")
            case "failed":
                self._worker_failed(slot, message)
            case "drained":
                self._add_cuts(slot, pid, message)

    def _worker_failed(self, slot: int, message: Message) -> None:
        error = AppError(message.text("what"), detail=message.text("detail"), remedy=message.text("remedy"))
        if self.crew.was_proven:
            self.voice.error(f"worker {slot}: {error}")
        else:
            self._give_up(error)

    def _give_up(self, error: MidstreamError) -> None:
        """Before it was proven: one worker that does not boot means that the release does not."""
        if self.crew.aim is Aim.LEAVE:
            return
        self.above.failed(error)
        self.status = 1
        self.stop()

    def _add_cuts(self, slot: int, pid: int, message: Message) -> None:
        cuts = Cuts(message.number("requests"), message.number("websockets"), message.number("idle_closed"))
        total = self._cuts
        self._cuts = Cuts(
            total.requests + cuts.requests, total.websockets + cuts.websockets, total.idle_closed + cuts.idle_closed
        )
        if cuts.requests or cuts.websockets:
            self.voice.warning(
                f"worker {slot} ({pid}) cut {cuts.requests} requests and {cuts.websockets} WebSockets: "
                "--graceful-timeout was over"
            )

    def reap(self) -> None:
        """On SIGCHLD. Only workers: a process that the app started is the app's to wait for."""
        for slot, line in list(self._lines.items()):
            try:
                pid, status = os.waitpid(line.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = line.pid, 0
            if pid:
                self._worker_ended(slot, line, os.waitstatus_to_exitcode(status))

    def _worker_ended(self, slot: int, line: _Line, code: int) -> None:
        for message in line.talk.channel.receive():  # its last words
            self._heard(slot, line.pid, message)
        line.talk.close()
        if line.kill is not None:
            line.kill.cancel()
        del self._lines[slot]
        self.board.clear(slot)
        member = crew.ended(self.crew, slot, time.monotonic())
        how = f"was killed by signal {signal_name(-code)}" if code < 0 else f"ended with status {code}"
        if member is None or self._quick:
            return
        if member.killed:
            self.voice.error(f"worker {slot} ({line.pid}) {how}: {member.killed}")
        elif member.at is not At.LEAVING or code:
            self.voice.error(
                f"worker {slot} ({line.pid}) {how}" + (" before it was ready" if not member.ready_s else "")
            )
        if not self.crew.was_proven and member.at is At.BOOTING:
            self._give_up(AppError(f"a worker {how} before it was ready", remedy="its output is in the log"))

    # ---- those that hang

    def _watch_workers(self) -> None:
        """Looks who hangs, and when the next look is due: not before somebody could have become so."""
        limit_s = self.settings.timeout_s
        if not limit_s:
            return
        now = time.monotonic()
        next_s = now + limit_s
        for slot in list(self._lines):
            row = self.board.row(slot)
            member = self.crew.members[slot]
            since = [at for at in (row.beat_s, row.stuck_since_s) if at]
            if not since or member.killed:
                continue
            if now - min(since) > limit_s:
                what = "its loop stood still" if min(since) == row.beat_s else "no request of its app threads ended"
                self._hangs(slot, f"{what} for {now - min(since):.0f} s (--timeout {limit_s:g})")
            else:
                next_s = min(next_s, min(since) + limit_s)
        self._watch = self.loop.after(max(0.05, next_s - now), self._watch_workers)

    def _hangs(self, slot: int, why: str) -> None:
        line, member = self._lines[slot], self.crew.members[slot]
        self.voice.error(f"worker {slot} ({line.pid}) hangs: {why}; where its threads are:")
        member.killed = why
        os.kill(line.pid, signals.TRACEBACK)  # not reaped yet, so the number is its own
        self._kill_after(slot, _TRACEBACK_S, why)

    def _kill_after(self, slot: int, delay_s: float, why: str) -> None:
        """Or when it was to be killed before, if that is sooner."""
        line = self._lines[slot]
        if line.kill is not None:
            if line.kill.deadline_s <= time.monotonic() + delay_s:
                return
            line.kill.cancel()

        def kill() -> None:
            if self._lines.get(slot) is line:
                self.crew.members[slot].killed = self.crew.members[slot].killed or why
                os.kill(line.pid, signal.SIGKILL)

        line.kill = self.loop.after(delay_s, kill)


def _fork_with_signals_blocked() -> int:
    """As os.fork(); in the child they stay blocked, until it has handlers of its own: ours would write to our pipe."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
    return pid


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return "of a hung worker" if number == signals.TRACEBACK else str(number)
