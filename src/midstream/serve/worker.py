"""One worker, from the fork to its end: makes the loop and the server, says where it is, does what the zygote asks.

What lives here: the worker's process. What must not: HTTP (the server's), deciding who is replaced (the zygote's). When the
zygote is gone, a worker that serves goes on serving: the master, or the next one, drains it when others are there.
"""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import importlib
import logging
import math
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from midstream.errors import AppError, MidstreamError
from midstream.serve import application, hooks, signals, titles
from midstream.serve.board import Board, BoardSeat
from midstream.serve.channel import Channel, Message
from midstream.serve.contract import REMEDY, Cuts, Identity, Listener, Server
from midstream.serve.hooks import Hooks
from midstream.serve.orphan import Orphan
from midstream.serve.say import Voice, open_error_log
from midstream.serve.settings import Settings

EXIT_BOOT = 3  # it did not come up
_BEAT_S = 1.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LOADED_BY_WORKERS = (
    "concurrent.futures.thread",
    "midstream.serve.access_log",
    "midstream.serve.log_output",
    "midstream.serve.tls",
    "queue",
)
_SERVERS = {"wsgi": ("midstream.serve.wsgi", "WsgiServer"), "asgi": ("midstream.serve.asgi", "AsgiServer")}


@dataclass(frozen=True, slots=True)
class Birth:
    """What a worker has from its zygote. app: None when it is to import it itself (--no-preload)."""

    settings: Settings
    identity: Identity
    board: Board
    line: Channel
    listeners: Sequence[Listener]
    hooks: Hooks
    app: application.App | None
    interface: str
    name: str  # for titles


def import_server(interface: str) -> type[Any]:
    """The server's class. Raises AppError where what it needs is missing: a midstream without its extra `serve`."""
    module, name = _SERVERS[interface]
    try:
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    except ImportError as error:
        raise _without_extra(error) from error


def _without_extra(error: ImportError) -> AppError:
    return AppError(
        f"the midstream in the release's virtualenv is without `serve`: {error}", where=sys.executable, remedy=REMEDY
    )


def warm(interface: str) -> None:
    """In the zygote: loads what every worker would load for itself after the fork, just when the former ones still serve, and
    without sharing its memory. Nothing here begins a thread or opens a connection. Raises AppError as `import_server`."""
    import_server(interface)
    for module in _LOADED_BY_WORKERS:
        importlib.import_module(module)
    _loop_factory()


def run(birth: Birth) -> NoReturn:
    """The rest of this process's life, in the child of a fork. Signals are blocked when it begins."""
    status = 1
    try:
        status = _Worker(birth).live()
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()
        except BaseException:
            traceback.print_exc()
        _flush()
        os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue


class _Worker:
    def __init__(self, birth: Birth) -> None:
        self.birth = birth
        self.settings = birth.settings
        self.voice = Voice(birth.settings.log_level)
        self.line = birth.line
        self.server: Server | None = None
        self.ended: asyncio.Future[int] | None = None
        self.ending: asyncio.Task[None] | None = None
        self.linger_s = math.inf  # the shortest it was told
        self.has_served = False
        self.is_parked = False
        self.asked_to_retire = False
        self.access_log: Any = None
        self.orphan: Orphan | None = None
        limit = birth.settings.max_requests
        limit += random.randint(0, birth.settings.max_requests_jitter) if limit else 0
        self.seat: BoardSeat = birth.board.seat(
            birth.identity.worker, self._answered_enough, limit, workers=birth.settings.workers
        )

    def live(self) -> int:
        """Its exit status."""
        self._title()
        _signals_while_booting(self.settings.signals)
        _log_to(self.voice)
        faulthandler.register(signals.TRACEBACK, file=2, all_threads=True, chain=True)
        try:
            self.birth.hooks.run("after_fork", self.birth.identity)
            app, interface = self._app()
            loop_factory = _loop_factory()
        except (MidstreamError, Exception) as error:
            return self._did_not_boot(error)
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(self._serve(app, interface))

    def _app(self) -> tuple[application.App, str]:
        app = self.birth.app if self.birth.app is not None else application.load(self.settings)
        interface = self.birth.interface or application.interface_of(app, self.settings.interface)
        return hooks.around(app, self.birth.hooks, self.birth.identity, interface), interface

    def _did_not_boot(self, error: BaseException) -> int:
        if not isinstance(error, MidstreamError):
            error = application.failed("the worker did not boot", error)
        self.line.sock.setblocking(True)
        self.line.send("failed", what=error.what, detail=error.detail, remedy=error.remedy)
        return EXIT_BOOT

    async def _serve(self, app: application.App, interface: str) -> int:
        loop = asyncio.get_running_loop()
        self.ended = loop.create_future()
        self._take_signals(loop)
        try:
            self.server = self._make_server(app, interface)
            await self.server.start(self.birth.listeners)
            self.birth.hooks.run("worker_ready", self.birth.identity)
        except (Exception, SystemExit) as error:
            return self._did_not_boot(error)
        self._beat()
        loop.add_reader(self.line.fileno(), self._heard)
        self._tell("ready")
        status = await self.ended
        loop.remove_reader(self.line.fileno())
        return status

    def _make_server(self, app: application.App, interface: str) -> Server:
        from midstream.serve import access_log, tls

        settings, identity = self.settings, self.birth.identity
        self.access_log = access_log.open_log(settings, identity)
        context = tls.context(settings) if settings.certfile else None
        server: Server = import_server(interface)(app, settings, identity, self.seat, self.access_log, context)
        return server

    # ---- the zygote's words

    def _heard(self) -> None:
        for message in self.line.receive():
            self._do(message)
        if self.line.ended:
            asyncio.get_running_loop().remove_reader(self.line.fileno())
            self._zygote_gone()

    def _do(self, message: Message) -> None:
        assert self.server is not None
        match message.kind:
            case "serve" if self.ending is None:
                self.server.resume()
                self.has_served, self.is_parked = True, False
                self._tell("serving")
            case "park" if self.ending is None:
                self.server.pause()
                self.is_parked = True
                self._tell("parked")
            case "leave":
                self._leave(
                    message.seconds("graceful_s", self.settings.graceful_timeout_s),
                    message.seconds("linger_s", self.settings.linger_s),
                    last=message.body.get("last") is True and self.has_served and not self.is_parked,
                )
            case "stop":
                self._stop()
            case "reopen":
                self._reopen()
        self._title()

    def _zygote_gone(self) -> None:
        """Nobody could ever tell one that does not serve to serve."""
        if self.ending is not None:
            return
        if not self.has_served:
            self._stop()
        elif self.is_parked:
            self._leave(self.settings.graceful_timeout_s, self.settings.linger_s)
        else:
            self.voice.warning("the zygote is gone; this worker serves on until others are there")
            self.orphan = Orphan(self.birth.identity, self.settings, self.birth.listeners)
            self._title()

    def _leave(self, graceful_s: float, linger_s: float, *, last: bool = False) -> None:
        """last: nobody takes over. Again, while it drains: idle connections may have to go sooner."""
        self.linger_s = min(self.linger_s, linger_s)
        if self.ending is not None and self.server is not None:
            self.server.linger_less(linger_s)
        elif self.server is not None:
            self.server.pause()
            if self.orphan is not None:
                self.orphan.close()
            self._tell("left")  # whoever connects from now on is another's
            self.ending = asyncio.get_running_loop().create_task(self._drain(graceful_s, last))

    def _stop(self) -> None:
        """Also in the middle of a drain."""
        former, self.ending = self.ending, asyncio.get_running_loop().create_task(self._end(None))
        if former is not None:
            former.cancel()

    async def _drain(self, graceful_s: float, last: bool) -> None:
        assert self.server is not None
        await self._end(await self.server.drain(graceful_s, self.linger_s, last=last))

    async def _end(self, cuts: Cuts | None) -> None:
        assert self.server is not None and self.ended is not None
        try:
            await self.server.stop()
            self.birth.hooks.run("worker_exit", self.birth.identity)
        except MidstreamError as error:
            self.voice.error(str(error))
        except Exception:
            self.voice.error(traceback.format_exc())
        self.seat.show(self.server.traffic())
        if self.access_log is not None:
            self.access_log.flush()
        self._tell("drained", **asdict(cuts or Cuts()))
        if not self.ended.done():
            self.ended.set_result(0)

    def _tell(self, kind: str, **body: Any) -> None:
        self.line.send(kind, **body)
        if self.line.has_waiting:
            asyncio.get_running_loop().add_writer(self.line.fileno(), self._flush_line)

    def _flush_line(self) -> None:
        self.line.flush()
        if not self.line.has_waiting:
            asyncio.get_running_loop().remove_writer(self.line.fileno())

    # ---- once a second

    def _beat(self) -> None:
        assert self.server is not None
        self.seat.beat(time.monotonic())
        self.seat.show(self.server.traffic())
        self.access_log.flush()
        most = self.settings.max_worker_memory_bytes
        if most and not self.asked_to_retire and (size := resident_bytes()) > most:
            self._retire(f"it takes {size >> 20} MB of memory, more than {most >> 20}")
        interval_s = min(_BEAT_S, self.settings.timeout_s / 4) if self.settings.timeout_s else _BEAT_S
        asyncio.get_running_loop().call_later(interval_s, self._beat)

    def _answered_enough(self) -> None:
        self._retire(f"it has answered {self.settings.max_requests} requests or some more")

    def _retire(self, why: str) -> None:
        if not self.asked_to_retire:
            self.asked_to_retire = True
            self._tell("retire", why=why)

    # ---- signals of people

    def _take_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number, act in signals.WORKER[self.settings.signals].items():
            loop.add_signal_handler(number, self._signalled, act)

    def _signalled(self, act: signals.WorkerAct) -> None:
        match act:
            case signals.WorkerAct.GRACEFUL if self.server is not None:
                self._tell("leaving")
                self._leave(self.settings.graceful_timeout_s, self.settings.linger_s)
            case signals.WorkerAct.QUICK if self.server is not None:
                self._tell("leaving")
                self._stop()
            case signals.WorkerAct.REOPEN:
                self._reopen()
        self._title()

    def _reopen(self) -> None:
        try:
            open_error_log(self.settings.error_log)
        except OSError as error:
            self.voice.error(f"{self.settings.error_log} cannot be opened anew, the former goes on: {error}")
        if self.access_log is not None:
            self.access_log.reopen()

    def _title(self) -> None:
        if not self.settings.proc_title:
            return
        identity = self.birth.identity
        more = "draining" if self.ending else "parked" if self.is_parked else "orphan" if self.line.ended else ""
        role = f"worker {identity.worker}"
        titles.set_title(titles.title(role, self.birth.name, identity.release, identity.generation, more))


class _ToVoice(logging.Handler):
    """What the servers log comes out as every other line does."""

    def __init__(self, voice: Voice) -> None:
        super().__init__()
        self._levels = ((logging.ERROR, voice.error), (logging.WARNING, voice.warning), (logging.INFO, voice.info))
        self._least = voice.debug

    def emit(self, record: logging.LogRecord) -> None:
        say = next((say for level, say in self._levels if record.levelno >= level), self._least)
        say(self.format(record))


def _log_to(voice: Voice) -> None:
    """Our own loggers only: the app's are the app's."""
    logger = logging.getLogger("midstream")
    logger.handlers[:] = [_ToVoice(voice)]
    logger.setLevel(logging.DEBUG)
    logger.propagate = False


def _signals_while_booting(dialect: str) -> None:
    """Those that end a worker end it; the others must not (TTIN would stop it, USR1 kill it)."""
    for number, act in signals.WORKER[dialect].items():
        ends = act in (signals.WorkerAct.GRACEFUL, signals.WorkerAct.QUICK)
        signal.signal(number, signal.SIG_DFL if ends else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError as error:
        raise _without_extra(error) from error
    return uvloop.new_event_loop


def resident_bytes() -> int:
    """Of this process (proc_pid_statm(5)), pages shared with the zygote included."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * _PAGE
