"""The agent as a program: open the truth, attach to the keeper, converge, listen.

Runs as a child of the keeper (`… agent-process --state DIR --runtime DIR --socket PATH`), and may be killed and started at
any moment. When the keeper is gone the agent starts the next one and supplies what it lacks.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from midstream import __version__
from midstream.agent import locks
from midstream.agent.control import ControlServer
from midstream.agent.deploys import Deploys
from midstream.agent.host import Host
from midstream.agent.keeper_link import KeeperCommand, KeeperLink, KeeperLost, KeeperRefused, start_keeper
from midstream.agent.logs import LogEvent, Logs
from midstream.agent.methods import Methods
from midstream.agent.spawning import SOCKET_VARIABLE
from midstream.agent.store import AppRecord, Store
from midstream.core.events import Revert, Waken
from midstream.core.intent import IntentState
from midstream.core.phases import after_reboot
from midstream.core.service import Service
from midstream.errors import EXIT_ATTENTION, EXIT_USAGE, HostError, MidstreamError
from midstream.linux import clock

_PING_S = 20.0
_RECONNECT_S = 30.0
_LAST_LINES_S = 2.0  # for what is on its way to a log file that is written apart


@dataclass(frozen=True, slots=True)
class Options:
    state: str
    runtime: str
    socket: str


def options_of(argv: list[str]) -> Options:
    """`--state DIR --runtime DIR --socket PATH`. Raises SystemExit(2)."""
    found: dict[str, str] = {}
    rest = list(argv)
    while rest:
        name = rest.pop(0)
        if name not in ("--state", "--runtime", "--socket") or not rest:
            print(f"midstream agent: {name}: unknown option, or its value is missing", file=sys.stderr)
            raise SystemExit(EXIT_USAGE)
        found[name[2:]] = os.path.abspath(rest.pop(0))
    missing = [name for name in ("state", "runtime", "socket") if name not in found]
    if missing:
        print(f"midstream agent: --{missing[0]} is missing", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)
    return Options(**found)


class Program:
    """One run of the agent."""

    def __init__(self, options: Options) -> None:
        self._options = options
        os.environ[SOCKET_VARIABLE] = options.socket
        self._store = Store(options.state)
        self._logs = Logs(os.path.join(options.state, "log"), self._on_log_event)
        self._host = Host(self._store, self._logs, options.runtime, os.getuid())
        self._deploys = Deploys(self._host, options.state)
        self._methods = Methods(self._host, self._deploys, options.state, self._stop_all, self._upgrade)
        self._server = ControlServer(self._methods.table(), self._methods.gone)
        self._over: asyncio.Event = asyncio.Event()
        self._exit_code = 0
        self._attached = asyncio.Event()
        self._leaving = False
        self._wanted = asyncio.Event()

    async def run(self) -> int:
        """Until stopped. 0: asked to end, or the keeper ends everything."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave)
        loop.add_signal_handler(signal.SIGUSR1, self._logs.reopen)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        self._load()
        self._logs.start()
        await self._attach_to_keeper()
        mode = 0o666 if os.getuid() == 0 else 0o600
        await self._server.listen(self._options.socket, mode)
        await self._deploys.resume_all()
        pump = loop.create_task(self._guarded(self._host.pump))
        pulls = loop.create_task(self._guarded(self._pull_forever))
        pings = loop.create_task(self._guarded(self._ping_forever))
        self._host.note("", "", "agent", f"started, version {__version__}, pid {os.getpid()}")
        gc.collect()
        gc.freeze()
        await self._over.wait()
        for task in (pump, pulls, pings):
            task.cancel()
        await self._server.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._logs.idle(), _LAST_LINES_S)
        self._store.close()
        return self._exit_code

    async def _guarded(self, work: Callable[[], Any]) -> None:
        """A task that must not end. If it raises, that is our bug: say so, and start afresh from the stored truth."""
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            import traceback

            traceback.print_exc()
            self._host.note("", "", "bug", f"{type(error).__name__}: {error}")
            self._exit_code = 70
            self._over.set()

    # -- the truth ---------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        store, host = self._store, self._host
        if store.set_aside:
            self._rebuild()
        host.apps = {record.app: record for record in store.apps()}
        services = store.services()
        rebooted = store.meta("boot_id") not in ("", clock.boot_id())
        if rebooted:
            services = [self._after_reboot(service) for service in services]
            host.apps = {name: locks.after_reboot(record) for name, record in host.apps.items()}
        host.services = {(service.app, service.name): service for service in services}
        try:
            # In one transaction: the deadlines that are stored are always those of the boot that is stored.
            with store.transaction():
                if rebooted:
                    self._store_reboot(services, list(host.apps.values()))
                store.set_meta("boot_id", clock.boot_id())
        except HostError as error:
            print(f"midstream agent: {error}", file=sys.stderr)

    def _store_reboot(self, services: list[Service], apps: list[AppRecord]) -> None:
        for record in apps:
            self._store.put_app(record)
        for service in services:
            self._store.put_service(service)
        for intent in self._store.open_intents():
            if intent.state in (IntentState.PUBLISHING, IntentState.PROVISIONAL):
                reverting = replace(intent, state=IntentState.REVERTING, failure="the host was restarted")
                self._store.put_intent(reverting)

    def _after_reboot(self, service: Service) -> Service:
        """Deadlines of the last boot mean nothing now. A hold lasts on by the wall clock; a provisional generation is gone
        with its processes."""
        from midstream.core import turn

        if service.hold is not None:
            service = replace(service, hold=after_reboot(service.hold, clock.boottime_s(), time.time()))
        if service.handover is not None:
            service, _ = turn.step(service, Revert("the host was restarted"), clock.boottime_s())
        if service.quiet is not None:
            service, _ = turn.step(service, Waken(), clock.boottime_s())
        generations = tuple(replace(item, since_s=0.0, deadline_s=0.0) for item in service.generations)
        return replace(service, generations=generations)

    def _rebuild(self) -> None:
        """The database was corrupt: what is committed comes from its second copy, and the keeper says what runs."""
        where = self._store.set_aside
        print(f"midstream agent: the database was corrupt and is set aside: {where}", file=sys.stderr)
        for app, services, generation in self._store.read_backups():
            with self._store.transaction():
                self._store.put_app(app)
                for service in services:
                    self._store.put_service(service)
                numbers = {item.number for service in services for item in service.generations}
                for number in numbers | {generation.number}:
                    self._store.put_generation(app.app, replace(generation, number=number))
        self._host.note("", "", "attention", f"the database was corrupt; set aside as {where}, rebuilt from the copies")

    def _on_log_event(self, event: LogEvent) -> None:
        self._host.note(event.app, event.service, "log", event.text)

    # -- the keeper --------------------------------------------------------------------------------------------------

    async def _attach_to_keeper(self) -> None:
        """Connects, takes over. Raises HostError when no keeper can be had."""
        link = KeeperLink(on_changed=self._on_changed, on_lost=self._on_lost)
        path = os.path.join(self._options.runtime, "keeper.sock")
        deadline_s = clock.boottime_s() + _RECONNECT_S
        pause_s = 0.01
        begun = False
        while True:
            try:
                hello = await link.connect(path)
                break
            except (OSError, KeeperLost) as error:
                link.close()
                if clock.boottime_s() > deadline_s:
                    raise HostError(f"no keeper answers at {path}: {error}", remedy="midstream agent run") from error
                if not begun:
                    # The lock on its state folder decides, should somebody else (systemd) start one as well.
                    begun = True
                    await start_keeper(self._keeper_command())
            await asyncio.sleep(pause_s)
            pause_s = min(0.25, pause_s * 1.5)
        self._host.keeper_id = hello.keeper_id
        self._host.cgroup = hello.cgroup
        await self._host.attach(link)
        self._attached.set()

    def _keeper_command(self) -> KeeperCommand:
        """The newest keeper image in the state folder; it starts this very agent when that dies."""
        folder = os.path.join(self._options.state, "lib")
        images = [entry for entry in os.scandir(folder) if entry.name.startswith("keeper-")]
        if not images:
            raise HostError("there is no keeper image to start", where=folder, remedy="midstream agent run")
        newest = max(images, key=lambda entry: entry.stat().st_mtime)
        return KeeperCommand(newest.path, self._options.state, self._options.runtime, tuple(sys.orig_argv))

    def _on_changed(self, seq: int) -> None:
        self._wanted.set()

    def _on_lost(self) -> None:
        stopping = self._host.link is not None and self._host.link.is_stopping
        self._host.disconnected()
        if stopping:
            self._leave()  # the keeper ends everything in order; no next one is wanted
        elif not self._leaving:
            self._attached.clear()
            self._wanted.set()

    async def _pull_forever(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                if self._host.link is None:
                    if self._leaving:
                        await asyncio.sleep(3600)
                    self._host.note("", "", "keeper", "the keeper is gone; starting the next")
                    await self._attach_to_keeper()
                    self._host.note("", "", "keeper", "attached to the next keeper")
                await self._host.pull()
            except KeeperLost:
                self._wanted.set()
            except KeeperRefused as error:
                # A newer agent is attached: this one is the past.
                self._host.note("", "", "agent", f"ends: {error.what}")
                self._exit_code = 0
                self._over.set()
                return

    async def _ping_forever(self) -> None:
        while True:
            await asyncio.sleep(_PING_S)
            link = self._host.link
            if link is not None:
                try:
                    await link.ping()
                except (KeeperLost, KeeperRefused):
                    pass

    # -- the end -----------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """TERM to the agent alone: it ends, the services do not notice, the keeper starts it again."""
        self._leaving = True
        self._over.set()

    async def _stop_all(self, timeout_s: float) -> None:
        if self._host.link is None:
            raise HostError("the keeper is away", remedy="try again in a moment")
        self._leaving = True
        await self._host.link.shutdown(timeout_s)

    async def _upgrade(self, argv: list[str], keeper_image: str) -> dict[str, Any]:
        """A new keeper image is validated and re-executed in place; then this agent ends and the next one starts."""
        link = self._host.link
        if link is None:
            raise HostError("the keeper is away", remedy="try again in a moment")
        version = ""
        if argv and not os.path.exists(argv[0]):
            raise HostError(
                f"{argv[0]} is not there", where="agent.upgrade", remedy="upload it again: midstream setup STAGE"
            )
        if keeper_image:  # first: when it is refused, the keeper goes on starting the agent that it knows
            version = await link.upgrade(keeper_image)
        if argv:
            await link.agent_command(argv)
        asyncio.get_running_loop().call_later(0.2, self._leave)
        return {"keeper": version, "agent": "restarting"}


def raise_descriptor_limit() -> None:
    """A thousand services need some thousand descriptors here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(argv: list[str]) -> int:
    options = options_of(argv)
    raise_descriptor_limit()
    os.umask(0o022)
    try:
        return asyncio.run(_run(options))
    except MidstreamError as error:
        print(f"midstream agent: {error}", file=sys.stderr, flush=True)
        return error.exit_code if error.exit_code != EXIT_USAGE else EXIT_ATTENTION


async def _run(options: Options) -> int:
    return await Program(options).run()
