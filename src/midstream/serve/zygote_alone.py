"""The zygote that runs alone, as an instance of a service under Midstream's agent: the agent is its master.

What lives here: what a master would do and the agent does not: taking LISTEN_FDS (the agent's private second listener among
them), speaking sd_notify, obeying the agent's signals. Number of instances, which release, boot time-out, restarts: the
agent's. HUP and USR2 are passed on to it: an upgrade is a handover, and only the agent makes one.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable

from midstream.errors import EXIT_OK, MidstreamError
from midstream.serve import agent_link, listening, metrics, signals
from midstream.serve.board import traffic_text
from midstream.serve.contract import Cuts
from midstream.serve.crew import Aim
from midstream.serve.notify import Notifier, without_variables
from midstream.serve.say import Voice, open_error_log
from midstream.serve.settings import Settings
from midstream.serve.signals import Act
from midstream.serve.zygote import Release, Zygote

_STATUS_S = 1.0
_FEEDS = 3  # within the time-out of a watchdog that we announce ourselves
_WORDS = {Aim.PROVE: "booting", Aim.SERVE: "serving", Aim.PARK: "parked", Aim.LEAVE: "draining"}


def run_alone(settings: Settings) -> int:
    """Serves until the agent ends it; the exit status: 0 after a drain, 1 when the release does not boot. Raises
    OperatorError for listeners that are none, HostError for an address that is in use."""
    open_error_log(settings.error_log)
    notifier = Notifier(os.environ, os.getpid())
    given = listening.given(os.environ, os.getpid(), Voice(settings.log_level).warning)
    if not given:
        account = listening.Account()
        given = [
            (f"bind{index}", listening.bind(address, settings.backlog, account))
            for index, address in enumerate(dict.fromkeys(settings.bind))
        ]
    for _, sock in given:
        listening.prepare(sock, settings.backlog)
    without_variables(os.environ)
    os.chdir(settings.chdir)
    for item in settings.env:
        name, _, value = item.partition("=")
        os.environ[name] = value
    return _Alone(settings, given, notifier).live()


class _Alone:
    """`Above` for the zygote: the agent, as far as it cannot speak to it itself."""

    def __init__(self, settings: Settings, given: list[tuple[str, socket.socket]], notifier: Notifier) -> None:
        self.settings = settings
        self.notifier = notifier
        self.voice = Voice(settings.log_level)
        name, number = os.environ.get("MIDSTREAM_RELEASE", ""), os.environ.get("MIDSTREAM_GENERATION", "0")
        release = Release(name, int(number) if number.isdecimal() else 0, os.getcwd())
        # Where the agent gave nothing but private listeners, nobody else is there to be kept from them.
        listeners = listening.of_contract(given, bool(settings.certfile))
        self.zygote = Zygote(settings, release, listeners, self)
        self.link = agent_link.AgentLink(self.zygote.loop, os.environ, self.voice)
        self.zygote.close_in_child.append(self.link.close_in_child)
        self.metrics = metrics.Door(self.zygote.loop, self._metrics_page, self.voice.warning)
        self.zygote.close_in_child.append(self.metrics.close_in_child)
        self.is_ready = False
        self.leaving_since_s = 0.0

    def live(self) -> int:
        zygote = self.zygote
        try:
            zygote.load()
            zygote.loop.take_signals([*signals.ALONE, signal.SIGCHLD], self._signalled)
            zygote.begin()
        except MidstreamError as error:
            self.failed(error)
            return 1
        if self.notifier.watchdog_s:
            self._every(self.notifier.watchdog_s, self._feed_watchdog)
        elif self.settings.timeout_s:
            self._every(self.settings.timeout_s / _FEEDS, self._feed_own_watchdog)
        zygote.loop.run()
        return zygote.status if zygote.status else EXIT_OK

    # ---- told by the zygote

    def proven(self) -> None:
        if self.zygote.crew.aim is Aim.PROVE:
            self.zygote.serve()

    def serving(self) -> None:
        if not self.is_ready:
            self.is_ready = True
            self.voice.info(f"{self.zygote.crew.count} workers accept")
        self.notifier.send("READY=1", self._status_line())
        if any(not listener.private for listener in self.zygote.listeners):
            self.metrics.open(self.settings.metrics)

    def parked(self) -> None:
        self.metrics.close()
        self.notifier.send(self._status_line())
        self.voice.info("parked: accepts nothing, answers what it has")

    def left(self) -> None:
        return None

    def workers(self, pids: list[int]) -> None:
        return None

    def failed(self, error: MidstreamError) -> None:
        self.voice.error(f"the app does not start: {error}")
        self.notifier.status(f"the app does not start: {error.what}")

    def ended(self, cuts: Cuts) -> None:
        took_s = time.monotonic() - self.leaving_since_s if self.leaving_since_s else 0.0
        cut = f"cut {cuts.requests} requests, {cuts.websockets} WebSockets" if cuts.requests or cuts.websockets else ""
        self.voice.info(f"has drained in {took_s:.1f} s; {cut or 'nothing was cut'}")

    # ---- signals

    def _signalled(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self.zygote.reap()
            return
        match signals.ALONE[signal.Signals(number)]:
            case Act.GRACEFUL:
                self._end(self.zygote.leave)
            case Act.QUICK:
                self._end(self.zygote.stop)
            case Act.REOPEN:
                self.zygote.reopen()
            case Act.PAUSE if self.zygote.crew.aim in (Aim.SERVE, Aim.PROVE):
                self.zygote.park()
            case Act.RESUME if self.zygote.crew.aim is Aim.PARK:
                self.zygote.serve()
            case Act.UPGRADE:
                self.link.ask_for_handover(signal.Signals(number).name)

    def _end(self, act: Callable[[], None]) -> None:
        if not self.leaving_since_s:
            self.leaving_since_s = time.monotonic()
            self.metrics.close()  # the next generation's to open
            self.notifier.send("STOPPING=1", self._status_line())
            self._every(_STATUS_S, lambda: self.notifier.send(self._status_line()))
        act()

    # ---- said from time to time

    def _every(self, seconds: float, act: Callable[[], None]) -> None:
        def again() -> None:
            act()
            self.zygote.loop.after(seconds, again)

        self.zygote.loop.after(seconds, again)

    def _feed_watchdog(self) -> None:
        self.notifier.send("WATCHDOG=1", self._status_line())

    def _feed_own_watchdog(self) -> None:
        """Where the service has none: a zygote that hangs is noticed as one of its workers would be. A master asks instead."""
        if self.is_ready:
            self.notifier.send("WATCHDOG=1", f"WATCHDOG_USEC={int(self.settings.timeout_s * 1_000_000)}")

    def _status_line(self) -> str:
        return f"STATUS={_WORDS[self.zygote.crew.aim]}; {traffic_text(self.zygote.board.traffic())}"

    def _metrics_page(self) -> str:
        crew, release = self.zygote.crew, self.zygote.release
        view = metrics.View(release.name, release.generation, _WORDS[crew.aim], crew.count, self.zygote.board.rows())
        return metrics.text([view])
