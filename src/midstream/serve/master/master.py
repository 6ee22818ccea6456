"""The master: performs what `serve/upgrade.py` says, on processes, listeners and clocks.

What lives here: the run of one master from its start to its end. What must not: the app, HTTP (but the health check's one
request), threads. What each signal means is `serve/signals.py`'s; what an event means in an upgrade, `serve/upgrade.py`'s.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from midstream.errors import EXIT_FAILED, EXIT_OK, AppError, HostError, MidstreamError, OperatorError
from midstream.linux import prctl, process
from midstream.serve import account as accounts
from midstream.serve import channel as messages
from midstream.serve import interpreter, listening, metrics, signals, titles, upgrade
from midstream.serve.board import Board
from midstream.serve.channel import Message
from midstream.serve.interpreter import Source
from midstream.serve.loop import Loop, Talk
from midstream.serve.master import adopting, pid_file, spawning, status
from midstream.serve.master.asking import Askers
from midstream.serve.master.generation import Generation, Orphan, State
from midstream.serve.master.health import HealthCheck
from midstream.serve.notify import Notifier
from midstream.serve.say import Voice, open_error_log
from midstream.serve.settings import Settings
from midstream.serve.signals import Act
from midstream.serve.upgrade import Effect, Event, Phase

_QUICK_S = 5.0
_LEFT_S = 5.0  # for the former to say that it accepts nothing any more
_SPARE_S = 15.0  # beyond what the zygote itself allows a drain
_STOP_LINGER_S = 2.0  # nobody takes over: an idle connection is not worth a supervisor's patience
_RECOVER_FIRST_S = 0.2
_RECOVER_LONGEST_S = 30.0
_DRAIN_STATUS_S = 1.0

Reread = Callable[[], Settings]


class Master:
    """reread: the settings as they are now, from command line, environment and file; raises MidstreamError."""

    def __init__(self, settings: Settings, reread: Reread) -> None:
        self.settings = settings
        self.voice = Voice(settings.log_level)
        self.loop = Loop(self._after_turn)
        self.notifier = Notifier(os.environ, os.getpid())
        self.askers = Askers(self.loop, lambda: self._ask("a command"), self.report)
        self.metrics = metrics.Door(self.loop, lambda: status.page(self), self.voice.warning)
        self.account = accounts.run_as(settings)
        self.listeners: list[tuple[str, socket.socket]] = []
        self.addresses: list[str] = []
        self._were_given = False  # by whoever started us: paths are not ours to remove
        self.phase = Phase.STEADY
        self.committed: Generation | None = None
        self.new: Generation | None = None
        self.draining: list[Generation] = []
        self.ending: list[Generation] = []  # to be seen ending, no more
        self.count = settings.workers
        self.last_failure = ""
        self.exit_status = EXIT_OK
        self._reread = reread
        self._first = True
        self._number = 0
        self._again = False
        self._recovering = False
        self._recover_at_s = 0.0
        self._recoveries = 0
        self._failure: MidstreamError | None = None
        self._check: HealthCheck | None = None
        self._leaving: Generation | None = None
        self._events: deque[Event] = deque()
        self._in_event = False
        self._ready_said = False
        self._ticking = False

    # ---- start

    def run(self) -> int:
        """Until it is told to end; the exit status. Raises MidstreamError when it cannot begin."""
        settings = self.settings
        open_error_log(settings.error_log)
        prctl.become_subreaper()  # workers whose zygote was killed become our children
        given = listening.given(os.environ, os.getpid(), self.voice.warning)
        taken = adopting.take(adopting.wanted_addresses(settings.bind, given), self.account)
        self._open_listeners(given, taken)
        if settings.pid_file:
            self._write_pid_file()
        try:
            return self._run(taken)
        finally:
            if settings.pid_file:
                pid_file.remove(settings.pid_file)
            if not self._living():  # what outlives us still serves there
                self._close_listeners()

    def _run(self, taken: list[adopting.Taken]) -> int:
        self.askers.open(self.addresses)
        self.metrics.open(self.settings.metrics)
        numbers = {*signals.DIALECTS[self.settings.signals], signal.SIGCHLD}
        self.loop.take_signals(sorted(numbers), self._signalled)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self.voice.info(f"listening on {', '.join(self.addresses)}")
        for one in taken:
            self._adopt(one)
        if self.notifier.watchdog_s:
            self._feed_watchdog()
        self._ask("the start")
        self.loop.run()
        self.askers.close()
        self.metrics.close()
        return self.exit_status

    def _open_listeners(self, given: list[tuple[str, socket.socket]], taken: list[adopting.Taken]) -> None:
        settings = self.settings
        self._were_given = bool(given)
        if given:
            self.listeners = given
        else:
            kept = {address: (name, sock) for one in taken for name, address, sock in one.listeners}
            who = listening.Account(self.account.uid, self.account.gid)
            for index, address in enumerate(dict.fromkeys(settings.bind)):
                if address in kept:
                    self.listeners.append(kept[address])
                else:
                    self.listeners.append((f"bind{index}", listening.bind(address, settings.backlog, who)))
        for _, sock in self.listeners:
            listening.prepare(sock, settings.backlog)
        self.addresses = [listening.address_of(sock) for _, sock in self.listeners]

    def _write_pid_file(self) -> None:
        try:
            pid_file.write(self.settings.pid_file)
        except OSError as error:
            raise HostError(
                f"{self.settings.pid_file} cannot be written: {error.strerror}",
                where="--pid",
                remedy="name a file in a folder that the server's user may write in",
            ) from error

    def _close_listeners(self) -> None:
        """At a stop, before the workers hear of it: the last of them that closes its own has accepted what waits. Paths that
        are ours go too, now: later they may be the next master's. Idempotent."""
        listeners, self.listeners = self.listeners, []
        for _, sock in listeners:
            if sock.family == socket.AF_UNIX and not self._were_given:
                path = sock.getsockname()
                if isinstance(path, str) and path.startswith("/"):
                    with contextlib.suppress(OSError):
                        os.unlink(path)
            sock.close()

    def _adopt(self, taken: adopting.Taken) -> None:
        words = taken.words
        source = Source(words.text("folder"), words.text("python"), words.text("virtualenv"), words.text("release"))
        settings = Settings.from_json(words.body.get("settings") or {})
        pidfd = process.open_pidfd(taken.pid)
        if pidfd is None:
            taken.channel.close()
            return
        if taken.role == "worker":
            self._adopt_orphan(taken, settings, source, pidfd)
            return
        generation = self._make(words.number("generation"), settings, source, taken.pid, taken.channel)
        generation.pidfd = pidfd
        generation.worker_pids = words.numbers("pids")
        generation.board = self._board(taken.board_fd)
        generation.answers = bool(words.body.get("answers"))
        self._watch(generation)
        self.loop.watch(pidfd, lambda: self._adopted_ended(generation))
        self.voice.info(f"took over {generation.name}, zygote {taken.pid}, from a master that is gone")
        self._is_ours(generation, bool(words.body.get("leaving")))

    def _adopt_orphan(self, taken: adopting.Taken, settings: Settings, source: Source, pidfd: int) -> None:
        """Of a zygote that was killed as well: all its workers are one generation."""
        number = taken.words.number("generation")
        generation = next((one for one in self._living() if one.number == number), None)
        if generation is None:
            generation = self._make(number, settings, source, 0, taken.channel)
            generation.zygote_lost = True
        generation.orphans[taken.pid] = Orphan(taken.pid, pidfd)
        self.loop.watch(pidfd, partial(self._orphan_ended, generation, taken.pid))
        self.voice.info(f"took over worker {taken.pid} of {generation.name}, whose master and zygote are gone")
        if generation is not self.committed:
            self._is_ours(generation, leaving=False)

    def _is_ours(self, generation: Generation, leaving: bool) -> None:
        self._number = max(self._number, generation.number)
        generation.state = State.SERVING
        if leaving:
            self._drains(generation)
            return
        if self.committed is not None:
            self._retire(self.committed)
        self.committed = generation

    def _adopted_ended(self, generation: Generation) -> None:
        self.loop.forget(generation.pidfd)
        self._zygote_ended(generation, None)

    # ---- upgrades: events and effects

    def _ask(self, who: str, recover: bool = False) -> None:
        """An upgrade is wanted. Several at once are one. recover: to the committed release again; whoever asks for more
        than that while it waits gets more."""
        if self.phase is Phase.STEADY:
            self._recovering = recover
        elif self.phase is Phase.WAITING:
            self._recovering = self._recovering and recover
        if not self._first:
            self.voice.info(f"upgrade asked for by {who}")
        self._event(Event.ASKED_FULL if len(self.draining) >= upgrade.MAX_DRAINING else Event.ASKED)

    def _event(self, event: Event) -> None:
        self._events.append(event)
        if self._in_event:
            return
        self._in_event = True
        try:
            while self._events:
                step = upgrade.step(self.phase, self._events.popleft())
                self.phase = step.phase
                for effect in step.effects:
                    getattr(self, _EFFECTS[effect])()
                self.askers.upgrade_runs = self.phase not in (Phase.STEADY, Phase.WAITING)
        finally:
            self._in_event = False
        self._say_status()

    def _start(self) -> None:
        self.askers.upgrade_runs = True
        try:
            settings, source = self._what_next()
            self._number += 1
            spawned = spawning.spawn(settings, source, self.account)
        except MidstreamError as error:
            self._fail(error)
            return
        except OSError as error:
            self._fail(
                HostError(
                    f"no process could be started: {error.strerror}",
                    remedy="see the limits of its user (`ulimit -u`) and the memory that is left",
                )
            )
            return
        new = self._make(self._number, settings, source, spawned.pid, spawned.channel)
        new.spawned = spawned
        new.private = listening.private_like(self.listeners[0][1], settings.backlog)
        self.new = new
        if self._ready_said:
            self.notifier.reloading()
        self.voice.info(f"{new.name}: starts with {source.python} in {source.folder}, zygote {spawned.pid}")
        if settings.boot_timeout_s:
            new.set_timer(self.loop, settings.boot_timeout_s, lambda: self._boot_too_long(new))

    def _what_next(self) -> tuple[Settings, Source]:
        """Which settings and release the next generation has. Raises MidstreamError."""
        committed = self.committed
        if self._recovering and committed is not None:
            return committed.settings, committed.source
        settings = self.settings if self._first else self._settings_now()
        self._first = False
        if settings.bind != self.settings.bind or (settings.user, settings.group) != (
            self.settings.user,
            self.settings.group,
        ):
            self.voice.warning(
                "--bind, --user and --group of a running server stay as they are until it is started anew"
            )
        if settings.workers != self.settings.workers or self.count == 0:
            self.count = settings.workers
        source = interpreter.resolve(settings, committed.source if committed else None)
        if committed is not None and source.folder == committed.source.folder and not source.link:
            self.voice.warning(
                f"--chdir {settings.chdir} is a folder, no symlink to one: the upgrade loads the same folder again"
            )
        self.settings = settings
        return settings, source

    def _settings_now(self) -> Settings:
        """Read again. Whatever is wrong with them, it must not end a server that serves."""
        try:
            return self._reread()
        except MidstreamError:
            raise
        except (Exception, SystemExit) as error:
            raise OperatorError(
                f"the settings cannot be read: {type(error).__name__}: {error}",
                remedy="mend the file of --config; the server goes on with the old ones",
            ) from error

    def _make(self, number: int, settings: Settings, source: Source, pid: int, channel: messages.Channel) -> Generation:
        generation: Generation
        talk = Talk(self.loop, channel, lambda message: self._heard(generation, message), lambda: None)
        generation = Generation(number, settings, source, pid, talk)
        return generation

    def _boot_too_long(self, new: Generation) -> None:
        what = "did not get ready" if self.phase is Phase.BOOTING else "did not begin to accept"
        seconds = new.settings.boot_timeout_s
        self._fail(
            AppError(
                f"{what} within {seconds:g} s", remedy="give it longer by --boot-timeout, or see what it waits for"
            )
        )

    def _fail(self, error: MidstreamError) -> None:
        self._failure = error
        self._event(Event.FAILED)

    def _check_health(self) -> None:
        new = self.new
        assert new is not None and new.private is not None
        if not new.settings.health_path:
            self._event(Event.HEALTHY)
            return
        limit_s = new.settings.boot_timeout_s or 60.0

        def done(trouble: str) -> None:
            self._check = None
            if trouble:
                self._fail(
                    AppError(
                        trouble,
                        remedy="see its log; --health-host, --health-scheme and --health-header say how it is asked",
                    )
                )
            else:
                self._event(Event.HEALTHY)

        self._check = HealthCheck(self.loop, new.private, new.settings, limit_s, done)

    def _switch(self) -> None:
        assert self.new is not None
        new = self.new
        new.set_timer(self.loop, max(10.0, new.settings.boot_timeout_s), lambda: self._boot_too_long(new))
        new.talk.send("serve")

    def _commit(self) -> None:
        former, self.committed, self.new = self.committed, self.new, None
        committed = self.committed
        assert committed is not None
        committed.cancel_timer()
        committed.close_private()
        committed.state = State.SERVING
        self.metrics.open(committed.settings.metrics)
        self._recovering = False
        self.last_failure = ""
        self._leaving = former
        if former is None or not former.pid:
            self._event(Event.LEFT)
        else:
            self.loop.after(_LEFT_S, lambda: self._has_left(former))
        if former is not None:
            self._retire(former)

    def _has_left(self, former: Generation) -> None:
        """It accepts nothing any more, is gone, or does not say: the upgrade is done all the same."""
        if self._leaving is former:
            self._leaving = None
            self._event(Event.LEFT)

    def _tell_done(self) -> None:
        assert self.committed is not None
        self._ready_said = True
        self.voice.info(f"{self.committed.name}: serves")
        self.notifier.send("READY=1")
        self.askers.answer(True, f"{self.committed.name} serves")
        if self.settings.proc_title:
            titles.set_title(
                titles.title("master", self._title_name(), self.committed.source.release, self.committed.number)
            )

    def _discard(self) -> None:
        """It never accepted from the public: nothing is lost with it."""
        new, self.new = self.new, None
        self._cancel_check()
        if new is not None and not new.is_gone:
            new.state = State.ENDING
            new.cancel_timer()
            new.close_private()
            self.ending.append(new)
            new.kill_all()

    def _retreat(self) -> None:
        new, self.new = self.new, None
        if new is not None and not new.is_gone:
            new.close_private()
            self._retire(new)

    def _tell_failed(self) -> None:
        failure = self._failure or AppError(
            "the release did not start", remedy="look in the log for what its last process said"
        )
        self._failure = None
        if self.committed is not None and not failure.serving:
            failure.serving = f"{self.committed.name}, as before"
        self.last_failure = failure.what
        self.voice.error(f"upgrade failed: {failure}" if self.committed else f"the app does not start: {failure}")
        self.askers.answer(False, str(failure))
        self._recovering = False
        if self.committed is None:
            self.exit_status = EXIT_FAILED
            self._stop(quick=True)
        else:
            self._ready_said = True
            self.notifier.send("READY=1")  # ends RELOADING=1: what was ready still is

    def _next(self) -> None:
        if self._again:
            self._again = False
            self.askers.begin_next()
            self._ask("those who asked meanwhile")

    def _remember(self) -> None:
        if not self._again:
            self.voice.info("an upgrade is under way: one more follows it, with what the folder is then")
        self._again = True

    def _say_waiting(self) -> None:
        text = f"{len(self.draining)} generations drain: the upgrade waits until one of them has ended"
        self.voice.info(text)
        self.askers.tell(text)

    def _tell_stopping(self) -> None:
        self.askers.answer(False, "the server was told to stop")
        self.askers.begin_next()
        self.askers.answer(False, "the server was told to stop")

    def _cancel_check(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None

    # ---- what zygotes say

    def _heard(self, generation: Generation, message: Message) -> None:
        match message.kind:
            case "hello":
                self._hello(generation, message)
            case "proven" if generation is self.new:
                generation.board = self._board(message.fds[0]) if message.fds else None
                generation.state = State.PROVEN
                generation.cancel_timer()
                self._watch(generation)
                self._event(Event.PROVEN)
            case "serving" if generation is self.new:
                self._event(Event.SERVING)
            case "failed":
                generation.failure = AppError(
                    message.text("what"),
                    where=message.text("where"),
                    detail=message.text("detail"),
                    remedy=message.text("remedy"),
                )
                if generation is self.new:
                    self._fail(generation.failure)
            case "workers":
                generation.worker_pids = message.numbers("pids")
            case "asked":
                self._asked_by_zygote(generation, message)
            case "left":
                self._has_left(generation)
            case "here" if generation.beat is not None:
                generation.beat.heard()
            case "ended":
                generation.cuts = (message.number("requests"), message.number("websockets"))

    def _hello(self, generation: Generation, message: Message) -> None:
        version = message.body.get("version")
        if generation is not self.new:
            return
        if not messages.understands(version):
            self._fail(
                AppError(
                    f"the release has midstream {message.text('midstream')}, whose zygote speaks version {version} and we "
                    f"speak {messages.VERSION}",
                    remedy="put a version of midstream[serve] next to the server's own into the app's requirements, or start "
                    "the server anew with its version",
                )
            )
            return
        assert generation.private is not None
        generation.answers = bool(message.body.get("answers"))
        listeners = [*self.listeners, (listening.PRIVATE_NAME, generation.private)]
        spawning.boot(
            generation.talk.channel, generation.settings, generation.source, generation.number, self.count, listeners
        )

    def _board(self, fd: int) -> Board | None:
        try:
            return Board(fd)
        except (ValueError, OSError):
            os.close(fd)
            return None  # a layout of another version: we serve without its figures

    def _asked_by_zygote(self, generation: Generation, message: Message) -> None:
        """Somebody signalled a zygote instead of us. The end of the one that serves is its replacement by a fresh one."""
        name = message.text("act")
        act = Act[name] if name in Act.__members__ else None
        if act is None or self.phase is Phase.STOPPING:
            return
        if act not in (Act.GRACEFUL, Act.QUICK):
            self._act(act, f"{message.text('signal')} to the zygote {generation.pid}")
        elif generation is self.committed:
            self.voice.info(f"{message.text('signal')} to the zygote {generation.pid}: it is replaced by a fresh one")
            if self.phase is Phase.STEADY:  # else what is under way replaces it
                self._ask("a signal to the zygote", recover=True)
        elif act is Act.QUICK:
            generation.talk.send("stop")

    # ---- zygotes that hang

    def _watch(self, generation: Generation) -> None:
        generation.watch(self.loop, partial(self._zygote_hangs, generation))

    def _zygote_hangs(self, generation: Generation, seconds: float) -> None:
        """Its workers are none the worse, but nobody replaces one that dies, and nobody tells them to drain."""
        self.voice.error(
            f"{generation.name}: the zygote {generation.pid} hangs: it has not answered for {seconds:g} s; it is killed, "
            "and its workers go on without it"
        )
        generation.kill_zygote()

    # ---- generations end

    def _retire(self, generation: Generation) -> None:
        """It drains, while another serves."""
        generation.talk.send(
            "leave", graceful_s=generation.settings.graceful_timeout_s, linger_s=generation.settings.linger_s
        )
        self._leave_orphans(generation)
        self._drains(generation)

    def _leave_orphans(self, generation: Generation) -> None:
        table = signals.WORKER[generation.settings.signals]
        graceful = next(number for number, act in table.items() if act is signals.WorkerAct.GRACEFUL)
        generation.signal_orphans(graceful)

    def _drains(self, generation: Generation, graceful_s: float = -1.0, linger_s: float = -1.0) -> None:
        settings = generation.settings
        graceful_s = settings.graceful_timeout_s if graceful_s < 0 else graceful_s
        linger_s = settings.linger_s if linger_s < 0 else linger_s
        generation.state = State.DRAINING
        generation.leaving_since_s = time.monotonic()
        generation.set_timer(self.loop, max(graceful_s, linger_s) + _SPARE_S, generation.kill_all)
        if generation not in self.draining:
            self.draining.append(generation)
        self._watch(generation)
        if generation.beat is not None:
            generation.beat.hurry(_LEFT_S)  # one that hangs would tell its workers nothing, until all are killed
        self._see_whether_gone(generation)
        self._tick()

    def _reap(self) -> None:
        """All our children: zygotes, and what orphans became ours."""
        while True:
            try:
                pid, status_word = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            generation = next((one for one in self._living() if one.pid == pid), None)
            if generation is not None and generation.pidfd < 0:
                self._zygote_ended(generation, os.waitstatus_to_exitcode(status_word))

    def _living(self) -> list[Generation]:
        found = [*self.draining, *self.ending]
        found += [one for one in (self.committed, self.new) if one is not None]
        return [one for one in found if not one.is_gone]

    def _zygote_ended(self, generation: Generation, code: int | None) -> None:
        for message in generation.talk.channel.receive():  # its last words
            self._heard(generation, message)
        self._has_left(generation)
        for orphan in generation.orphaned():
            self.loop.watch(orphan.pidfd, partial(self._orphan_ended, generation, orphan.pid))
        failed_exec = generation.spawned.exec_failure() if generation.spawned else ""
        who = f" as {self.account.name}" if self.account.name else ""
        how = _how_ended(code, f"{generation.source.python}{who}: {failed_exec}" if failed_exec else "")
        if generation is self.new:
            if generation.failure is None:
                before = "" if failed_exec else " before it was ready"
                remedy = "see --python and --user" if failed_exec else "its last lines in the log may say why"
                self._fail(AppError(f"the zygote {how}{before}", remedy=remedy))
            generation.kill_all()
        elif generation is self.committed:
            self.voice.error(
                f"{generation.name}: the zygote {how}; {len(generation.orphans)} workers serve on, and a zygote of the "
                "same release takes their place"
            )
            generation.zygote_lost = True
            self._lost()
        elif generation in self.draining:
            self._leave_orphans(generation)  # what it had not told them, or could not
        self._see_whether_gone(generation)

    def _lost(self) -> None:
        """The zygote of what serves is gone: another one of the same release, at once, or later when that comes to nothing."""
        now = time.monotonic()
        self._recoveries = 0 if now - self._recover_at_s > 60 else self._recoveries + 1
        delay_s = (
            0.0 if not self._recoveries else min(_RECOVER_LONGEST_S, _RECOVER_FIRST_S * 2 ** min(self._recoveries, 10))
        )
        self._recover_at_s = now + delay_s
        self.loop.after(delay_s, lambda: None)  # `_after_turn` looks

    def _orphan_ended(self, generation: Generation, pid: int) -> None:
        orphan = generation.orphans.pop(pid, None)
        if orphan is not None:
            self.loop.forget(orphan.pidfd)
            os.close(orphan.pidfd)
        self._see_whether_gone(generation)

    def _see_whether_gone(self, generation: Generation) -> None:
        if not generation.is_gone:
            return
        if generation in self.ending:
            self.ending.remove(generation)
            generation.close()
        elif generation in self.draining:
            self.draining.remove(generation)
            requests, websockets = generation.cuts
            took_s = time.monotonic() - generation.leaving_since_s
            cut = f"cut {requests} requests, {websockets} WebSockets" if requests or websockets else "nothing was cut"
            self.voice.info(f"{generation.name}: has drained in {took_s:.1f} s; {cut}")
            generation.close()
            self._event(Event.ROOM)

    # ---- signals

    def _signalled(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
            return
        name = signal.Signals(number)
        self._act(signals.DIALECTS[self.settings.signals][name], name.name)

    def _act(self, act: Act, who: str) -> None:
        match act:
            case Act.GRACEFUL:
                self.voice.info(f"{who}: drains and ends")
                self._stop(quick=False)
            case Act.QUICK:
                self.voice.info(f"{who}: ends at once")
                self._stop(quick=True)
            case Act.UPGRADE:
                self._ask(who)
            case Act.REOPEN:
                self._reopen()
            case Act.MORE:
                self._set_count(self.count + 1)
            case Act.FEWER:
                self._set_count(max(1, self.count - 1))
            case Act.FEWER_TO_NONE:
                self._set_count(max(0, self.count - 1))
            case Act.STOP_WORKERS:
                self._set_count(0)

    def _set_count(self, count: int) -> None:
        self.count = count
        self.voice.info(f"{count} workers from now on")
        for generation in (self.committed, self.new):
            if generation is not None:
                generation.talk.send("workers", count=count)

    def _reopen(self) -> None:
        try:
            open_error_log(self.settings.error_log)
        except OSError as error:
            self.voice.error(f"{self.settings.error_log} cannot be opened anew, the former goes on: {error}")
        for generation in self._living():
            generation.talk.send("reopen")

    def _stop(self, quick: bool) -> None:
        if self.phase is not Phase.STOPPING:
            self.notifier.send("STOPPING=1")
        self._event(Event.STOP)
        self._cancel_check()
        self._close_listeners()
        for generation in self.draining:
            self._leave_sooner(generation)
        for generation in [one for one in (self.committed, self.new) if one is not None]:
            self._leave_for_good(generation)
        self.committed = self.new = None
        if quick:
            for generation in list(self.draining):
                generation.talk.send("stop")
                generation.signal_orphans(signal.SIGKILL)
                generation.set_timer(self.loop, _QUICK_S, generation.kill_all)

    def _leave_sooner(self, generation: Generation) -> None:
        """One that drains since an upgrade, when all are to end: it has no more time for idle connections than the others."""
        settings = generation.settings
        linger_s = min(settings.linger_s, _STOP_LINGER_S)
        generation.talk.send("leave", graceful_s=settings.graceful_timeout_s, linger_s=linger_s)
        most_s = max(settings.graceful_timeout_s, linger_s) + _SPARE_S
        if generation.timer is None or generation.timer.deadline_s > time.monotonic() + most_s:
            generation.set_timer(self.loop, most_s, generation.kill_all)

    def _leave_for_good(self, generation: Generation) -> None:
        settings = generation.settings
        linger_s = min(settings.linger_s, _STOP_LINGER_S)
        generation.talk.send("leave", graceful_s=settings.graceful_timeout_s, linger_s=linger_s, last=True)
        self._leave_orphans(generation)
        self._drains(generation, settings.graceful_timeout_s, linger_s)

    # ---- after each turn

    def _after_turn(self) -> None:
        if self.phase is Phase.STOPPING:
            self.loop.done = not self._living()
            return
        lost = self.committed is not None and self.committed.zygote_lost
        if lost and self.phase is Phase.STEADY and time.monotonic() >= self._recover_at_s:
            self._recover_at_s = time.monotonic() + _RECOVER_LONGEST_S
            self._ask("the loss of the zygote", recover=True)

    def report(self) -> dict[str, Any]:
        return status.report(self)

    def _say_status(self) -> None:
        self.notifier.status(status.line(self))

    def _tick(self) -> None:
        """While something drains its progress is said; at other times nothing wakes us."""
        if self._ticking or not self.draining:
            return
        self._ticking = True

        def again() -> None:
            self._ticking = False
            self._say_status()
            self._tick()

        self.loop.after(_DRAIN_STATUS_S, again)

    def _feed_watchdog(self) -> None:
        self.notifier.send("WATCHDOG=1")
        self._say_status()
        self.loop.after(self.notifier.watchdog_s, self._feed_watchdog)

    def _title_name(self) -> str:
        return self.settings.proc_name or self.settings.app


_EFFECTS: dict[Effect, str] = {
    Effect.START: "_start",
    Effect.SAY_WAITING: "_say_waiting",
    Effect.REMEMBER: "_remember",
    Effect.CHECK: "_check_health",
    Effect.SWITCH: "_switch",
    Effect.COMMIT: "_commit",
    Effect.DISCARD: "_discard",
    Effect.RETREAT: "_retreat",
    Effect.TELL_FAILED: "_tell_failed",
    Effect.TELL_DONE: "_tell_done",
    Effect.NEXT: "_next",
    Effect.TELL_STOPPING: "_tell_stopping",
}


def _how_ended(code: int | None, failed_exec: str) -> str:
    if failed_exec:
        return f"could not be started ({failed_exec})"
    if code is None:
        return "is gone"
    return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
