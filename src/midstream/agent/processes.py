"""What the shell keeps of each process beside the core's record of it: its place in the keeper's table, who watches it,
whether it said that it is ready, its watchdog. Runs in the agent's loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from midstream.agent import watching
from midstream.agent.health import HealthResult
from midstream.agent.notices import Notice
from midstream.agent.plans import profile_of, readiness_of
from midstream.agent.proof import why_not_accepting
from midstream.agent.spawning import cgroup_of, command_spec
from midstream.agent.store import GenerationRecord
from midstream.core.events import Extended, Healthy, Ready, Said, Spawned, Unhealthy, Watch
from midstream.core.generation import GenerationState
from midstream.core.instance import THROWAWAY_SLOT, Instance
from midstream.core.messages import ProcessEntry
from midstream.core.names import SpawnKey
from midstream.core.service import Service
from midstream.core.spec import CommandStep
from midstream.errors import HostError
from midstream.linux import clock, tree
from midstream.linux.drift import usage

if TYPE_CHECKING:
    from midstream.agent.host import Host

_MEMORY_INTERVAL_S = 5.0
_EARLY_MAX = 16
_STOPPED_S = 1.0  # a timer that is later than that was held up, as in a container that was frozen

Name = tuple[str, str]  # app, service
Place3 = tuple[int, int, int]  # generation, slot, attempt


@dataclass(slots=True)
class Live:
    """One process."""

    entry: ProcessEntry
    watcher: asyncio.Task[None] | asyncio.TimerHandle | None = None
    is_ready: bool = False  # it said so
    ready: asyncio.Event | None = None  # made when somebody waits: one for each of a thousand processes is a megabyte
    watchdog: asyncio.TimerHandle | None = None
    memory: asyncio.Task[None] | None = None

    def set_ready(self) -> None:
        self.is_ready = True
        if self.ready is not None:
            self.ready.set()

    def unwatched(self, done: asyncio.Task[None]) -> None:
        """Its watcher has nothing more to look for. A thousand tasks that are done are half a megabyte."""
        if self.watcher is done:
            self.watcher = None

    async def said_ready(self) -> None:
        """Waits until it has said so."""
        if not self.is_ready:
            self.ready = self.ready or asyncio.Event()
            await self.ready.wait()


def _who(entry: ProcessEntry) -> str:
    """One process and no other: after a reboot another may have its key."""
    return f"{clock.boot_id()} {entry.pid} {entry.start_ticks}"


class Processes:
    """The live processes of all services."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._live: dict[tuple[str, str, int, int, int], Live] = {}
        self._early: dict[tuple[str, str, int, int, int], list[Notice]] = {}  # said before the keeper's table was read

    def get(self, name: Name, place: Place3) -> Live | None:
        return self._live.get((*name, *place))

    def seen(self, name: Name, place: Place3, entry: ProcessEntry) -> bool:
        """A process that runs, as the keeper lists it. True when it was not known."""
        known = self._live.get((*name, *place))
        if known is not None and known.entry.pid == entry.pid:
            known.entry = entry
            return False
        self._live[(*name, *place)] = Live(entry)
        for notice in self._early.pop((*name, *place), ()):
            self.notice(name, place, notice)
        return True

    def gone(self, name: Name, place: Place3) -> None:
        """It has ended: nobody watches it any more."""
        live = self._live.pop((*name, *place), None)
        self._host.looks.gone(name, place)
        self._early.pop((*name, *place), None)
        if live is None:
            return
        for task in (live.watcher, live.watchdog, live.memory):
            if task is not None:
                task.cancel()

    def watch(self, name: Name, effect: Watch) -> None:
        place = (effect.generation, effect.slot, effect.attempt)
        live = self._live.get((*name, *place))
        record = self._host.record(name[0], effect.generation)
        service = self._host.services.get(name)
        if live is None or record is None or service is None:
            return
        spec = record.spec.services[name[1]]
        if live.watcher is not None:
            live.watcher.cancel()
        confirm = effect.confirm and spec.health is not None
        if watching.needs_only_time(spec, readiness_of(spec, profile_of(spec)), confirm=confirm):
            self._await_uptime(name, place, live, spec.min_uptime_s)
        else:
            self._begin_watching(name, place, live, record, service, confirm=confirm)
        if spec.watchdog_s:
            self._arm_watchdog(name, place, spec.watchdog_s, spec.start_timeout_s)
        if spec.limits.memory_bytes is not None:
            if live.memory is not None:
                live.memory.cancel()
            live.memory = self._host.keep(
                asyncio.get_running_loop().create_task(self._watch_memory(name, place, spec.limits.memory_bytes))
            )

    def _await_uptime(self, name: Name, place: Place3, live: Live, uptime_s: float) -> None:
        """One that is ready when it has lived so long, and has no check, needs no task: a thousand that start are 5 MB."""

        def lived() -> None:
            live.watcher = None
            self._host.post(name, Ready(*place))
            self._host.post(name, Healthy(*place))

        live.watcher = asyncio.get_running_loop().call_later(uptime_s, lived)

    def _begin_watching(
        self, name: Name, place: Place3, live: Live, record: GenerationRecord, service: Service, *, confirm: bool
    ) -> None:
        spec = record.spec.services[name[1]]
        owner_uid = self._host.place(*name, place[0]).owner_uid
        profile = profile_of(spec)
        throwaway = place[1] >= THROWAWAY_SLOT
        generation = service.generation(place[0])
        others = [item for item in service.generations if item.number != place[0]]
        private = self._host.listeners.private_of(record, spec, place[1])

        def pids() -> list[int]:
            return self.tree_of(self._host.key(name, place), live.entry)

        async def run_command(argv: tuple[str, ...], timeout_s: float) -> HealthResult:
            return await self._command_check(record, name, argv, timeout_s)

        async def listed(trouble: list[str]) -> None:
            await self._host.looks.until_listed(name, place, trouble)

        subject = watching.Subject(
            *place,
            readiness=readiness_of(spec, profile),
            health=spec.health,
            shared={} if throwaway else self._host.listeners.shared_of(record.spec, spec, owner_uid),
            private=private,
            alone=not others,
            tried=bool(generation and generation.plan.throwaway and others),
            provisional=bool(generation and generation.state is not GenerationState.COMMITTED),
            confirm=confirm,
            start_timeout_s=spec.start_timeout_s,
            healthy_timeout_s=spec.healthy_timeout_s,
            min_uptime_s=spec.min_uptime_s,
            explain=lambda tree, given: why_not_accepting(profile, spec.command, tree, given, shell=spec.shell),
            pids=pids,
            said_ready=live.said_ready,
            run_command=run_command,
            listed=listed if profile.worker is not None else None,
        )
        watcher = self._host.keep(
            asyncio.get_running_loop().create_task(watching.watch(subject, lambda event: self._host.post(name, event)))
        )
        watcher.add_done_callback(live.unwatched)
        live.watcher = watcher

    async def _watch_memory(self, name: Name, place: Place3, limit_bytes: int) -> None:
        """One Unhealthy when the tree uses more than it may, twice in a row (a fork doubles it for a moment)."""
        over = 0
        while (live := self._live.get((*name, *place))) is not None:
            await asyncio.sleep(_MEMORY_INTERVAL_S)
            used = [usage(pid) for pid in self.tree_of(self._host.key(name, place), live.entry)]
            total = sum(one.memory_bytes for one in used if one is not None)
            over = over + 1 if total > limit_bytes else 0
            if over >= 2:
                text = f"its processes use {total >> 20} MB, more than the {limit_bytes >> 20} MB of limits.memory"
                self._host.post(name, Unhealthy(*place, text))
                return

    def tree_of(self, key: SpawnKey, entry: ProcessEntry) -> list[int]:
        """The pids of an instance's tree, now."""
        folder = f"{self._host.cgroup}/{cgroup_of(key)}.{key.attempt}" if self._host.cgroup else None
        mark = tree.TreeMark(str(key), self._host.keeper_id, entry.pid, entry.start_ticks, folder)
        return list(tree.members(mark))

    def pids_of(self, app: str, service: str, instance: Instance) -> list[int]:
        """The processes of an instance's tree; none when it is not known to run."""
        place = (instance.generation, instance.slot, instance.attempt)
        live = self._live.get((app, service, *place))
        return self.tree_of(self._host.key((app, service), place), live.entry) if live is not None else []

    async def _command_check(
        self, record: GenerationRecord, name: Name, argv: tuple[str, ...], timeout_s: float
    ) -> HealthResult:
        number = self._host.store.next_number("check")
        key = SpawnKey(record.spec.app, "+check", number, 0, 0)
        step = CommandStep(argv, timeout_s=timeout_s)
        place = self._host.place(record.spec.app, name[1], record.number)
        spec = command_spec(record, step, key, place, self._host.uid)
        outcome = await self._host.one_shots.run(spec, timeout_s=timeout_s, on_line=lambda line: None)
        words = " / ".join(outcome.tail[-3:])
        return HealthResult(outcome.ok, f"check {argv[0]}: {outcome.text} {words}".strip(), answered=not outcome.lost)

    def _arm_watchdog(self, name: Name, place: Place3, watchdog_s: float, first_s: float = 0.0) -> None:
        live = self._live.get((*name, *place))
        if live is None:
            return
        if live.watchdog is not None:
            live.watchdog.cancel()

        loop = asyncio.get_running_loop()
        due_s = loop.time() + max(watchdog_s, first_s)

        def missed() -> None:
            if loop.time() > due_s + _STOPPED_S:  # we stood still, perhaps together with it: its time begins anew
                self._arm_watchdog(name, place, watchdog_s)
                return
            self._host.post(name, Unhealthy(*place, f"WATCHDOG=1 did not come within {watchdog_s:g} s"))

        live.watchdog = loop.call_at(due_s, missed)

    def instance_at(self, name: Name, generation: int, slot: int) -> Instance | None:
        service = self._host.services.get(name)
        if service is None:
            return None
        return next((item for item in service.of(generation) if item.slot == slot), None)

    def notice(self, name: Name, place: Place3, notice: Notice) -> None:
        live = self._live.get((*name, *place))
        if live is None:
            # A process that is ready at once speaks before its start was pulled from the keeper's table.
            early = self._early.setdefault((*name, *place), [])
            if len(early) < _EARLY_MAX:
                early.append(notice)
            return
        if notice.ready:
            live.set_ready()
            self.remember_ready(name, place)
        if notice.status is not None:
            self._host.post(name, Said(*place, notice.status))
        if notice.extend_timeout_s is not None:
            self._host.post(name, Extended(*place, notice.extend_timeout_s))
        record = self._host.record(name[0], place[0])
        spec = record.spec.services.get(name[1]) if record else None
        watchdog_s = notice.watchdog_s or (spec.watchdog_s if spec else 0.0)
        if notice.watchdog_trigger:
            self._host.post(name, Unhealthy(*place, "WATCHDOG=trigger"))
        elif (notice.watchdog or notice.watchdog_s is not None) and watchdog_s:
            self._arm_watchdog(name, place, watchdog_s)

    def remember_ready(self, name: Name, place: Place3) -> None:
        """Of an uncommitted instance READY=1 is stored: it comes once, and the agent may die before the commit."""
        service = self._host.services.get(name)
        generation = service.generation(place[0]) if service else None
        live = self.get(name, place)
        if live is not None and generation is not None and generation.state is not GenerationState.COMMITTED:
            try:
                self._host.store.set_meta(f"ready.{self._host.key(name, place)}", _who(live.entry))
            except HostError:
                pass  # then it is proven again after a crash

    def was_ready(self, name: Name, seen: Spawned) -> bool:
        committed = self._host.services[name].committed if name in self._host.services else None
        if committed is not None and committed.number == seen.generation:
            return True
        key = self._host.key(name, (seen.generation, seen.slot, seen.attempt))
        live = self.get(name, (seen.generation, seen.slot, seen.attempt))
        return live is not None and self._host.store.meta(f"ready.{key}") == _who(live.entry)
