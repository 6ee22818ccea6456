"""`Host`: what runs on this machine, as the agent holds it in memory, and the one place where effects are performed.

The pump takes events in order, lets `core` decide, stores what became durable, and only then acts. A crash at any point
is safe because everything is derived again from the store and the keeper's table. Runs in the agent's loop; the only
concurrency is between tasks of that loop, and services change nowhere else than here.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from midstream.agent import crashpoint
from midstream.agent.channels import Channels, Start
from midstream.agent.deploy_folders import DeployFolders
from midstream.agent.dropped import forget_dropped
from midstream.agent.keeper_link import KeeperLink, KeeperLost, KeeperRefused
from midstream.agent.keeper_orders import KeeperOrders
from midstream.agent.listeners import ListenerTable
from midstream.agent.logs import ChannelName, Logs
from midstream.agent.looking import Looks
from midstream.agent.oneshots import OneShots, exit_text
from midstream.agent.processes import Name, Place3, Processes
from midstream.agent.spawning import (
    Place,
    account_for,
    address_of,
    channel_of,
    instance_spec,
    listener_key,
)
from midstream.agent.store import AppRecord, EventRow, GenerationRecord, Store
from midstream.core import turn
from midstream.core.events import (
    Effect,
    Ended,
    Event,
    HandoverNews,
    KillTree,
    Look,
    Note,
    Retired,
    Signal,
    Spawn,
    Spawned,
    Sweep,
    Tick,
    Watch,
)
from midstream.core.messages import Held, ProcessEntry, ProcessKind, ProcessState, SpawnSpec
from midstream.core.names import SpawnKey, parse_key
from midstream.core.service import Service, durable, wake_s
from midstream.errors import HostError, MidstreamError
from midstream.linux import clock

if TYPE_CHECKING:
    from midstream.agent.current_link import CurrentLink
    from midstream.agent.external import Externals

_SPAWN_GROUP = 32  # processes asked of the keeper at a time
_DEPTH_MAX = 50  # of a run folder, when it is removed
_ENTRIES_MAX = 10_000


class Host:
    """`link` is replaced when the keeper is. `on_event`: told of each event row, for followers."""

    def __init__(self, store: Store, logs: Logs, runtime: str, uid: int) -> None:
        self.store = store
        self.logs = logs
        self.runtime = runtime
        self.uid = uid
        self.link: KeeperLink | None = None
        self._linked = asyncio.Event()
        self.keeper_id = ""
        self.cgroup: str | None = None
        self.apps: dict[str, AppRecord] = {}
        self.services: dict[Name, Service] = {}
        self.generations: dict[tuple[str, int], GenerationRecord] = {}
        self.news: dict[tuple[str, str, int], HandoverNews] = {}
        self.one_shots = OneShots(self.connected)
        self.on_event: Callable[[EventRow], None] = lambda row: None
        self.intent_of: dict[str, str] = {}  # app -> intent id, for the events' "why"
        self.who: dict[Name, str] = {}  # who asked for what the service is doing now
        self.listeners = ListenerTable(self.connected, uid)
        self.processes = Processes(self)
        self.looks = Looks(self)
        self.channels = Channels(self)
        self.orders = KeeperOrders(self)
        self.folders = DeployFolders(self)
        self.externals: Externals  # set by who makes the deploys; they need what those are made of
        self.current: CurrentLink
        self._queue: asyncio.Queue[tuple[Name, Event]] = asyncio.Queue()
        self._turned = asyncio.Condition()
        self._dirty: set[Name] = set()
        self._wakes: dict[Name, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._seq = 0
        self._pulling = asyncio.Lock()
        self._acting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flush_handle: asyncio.TimerHandle | None = None

    # -- the keeper --------------------------------------------------------------------------------------------------

    async def connected(self, timeout_s: float = 30.0) -> KeeperLink:
        """The link to the keeper; while there is none, waits for the next keeper. Raises KeeperLost when none comes."""
        deadline_s = clock.boottime_s() + timeout_s
        while self.link is None:
            try:
                await asyncio.wait_for(self._linked.wait(), max(0.0, deadline_s - clock.boottime_s()))
            except TimeoutError:
                raise KeeperLost("the keeper is away and does not come back", remedy="midstream agent run") from None
        return self.link

    def disconnected(self) -> None:
        """The keeper is gone. What was to be done is derived again when the next one is there (`attach`)."""
        self.link = None
        self._linked.clear()

    # -- events in ---------------------------------------------------------------------------------------------------

    def post(self, name: Name, event: Event) -> None:
        """Queues an event; the pump takes it in order."""
        self._queue.put_nowait((name, event))

    def keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Keeps a reference until the task is done; what it raises is our bug and is noted."""
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and not isinstance(error, KeeperLost):
            self.blame(("", ""), task.get_name(), error)

    def blame(self, name: Name, what: str, error: Exception) -> None:
        """A bug of ours, or a value that we ought to have refused: told, and kept to the one service whose it is."""
        traceback.print_exception(error)
        self.note(*name, "bug", f"{what[:200]}: {type(error).__name__}: {error}")

    async def pump(self) -> None:
        """For ever: take what is queued, decide, store, act."""
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty() and len(batch) < 512:
                batch.append(self._queue.get_nowait())
            async with self._acting:
                await self._take(batch)
            del batch  # of hundreds, while nothing comes

    async def _take(self, batch: list[tuple[Name, Event]]) -> None:
        effects: list[tuple[Name, Effect]] = []
        touched: dict[Name, Service] = {}
        now_s = clock.boottime_s()
        for name, event in batch:
            service = self.services.get(name)
            if service is None:
                self._orphan_event(name, event, effects)
                continue
            try:
                after, more = turn.step(service, event, now_s, _chance())
            except Exception as error:  # nothing was changed; the other services go on
                self.blame(name, str(event), error)
                continue
            if durable(after) != durable(service):
                touched[name] = after
            self.services[name] = after
            self._wakes.pop(name, None)
            self.orders.touch((name,))
            effects.extend((name, effect) for effect in more)
        self._dirty |= touched.keys()
        self._save_dirty()
        try:
            await self.perform(effects)
        except KeeperLost:
            pass  # its loss is seen on the link; what was left out is derived again with the next keeper
        except (KeeperRefused, OSError) as error:
            self.note("", "", "keeper", f"could not act: {error}")
        self._set_timer()
        async with self._turned:
            self._turned.notify_all()

    def _orphan_event(self, name: Name, event: Event, effects: list[tuple[Name, Effect]]) -> None:
        """A process of a service that there is no more."""
        if isinstance(event, Ended):
            effects.append((name, Sweep(event.generation, event.slot, event.attempt)))
        elif isinstance(event, Spawned):
            effects.append((name, KillTree(event.generation, event.slot, event.attempt)))

    def _save_dirty(self) -> None:
        """Stores what changed. A disk that takes nothing is tried again at each turn: an older record only means that
        more has to be found out again after a crash."""
        if not self._dirty:
            return
        self._point("before a service is stored")
        try:
            with self.store.transaction():
                for name in self._dirty:
                    if name in self.services:
                        self.store.put_service(durable(self.services[name]))
            self._dirty.clear()
        except HostError as error:
            self.note("", "", "disk", error.what)

    def _set_timer(self) -> None:
        for name, service in self.services.items():
            if name not in self._wakes:
                self._wakes[name] = wake_s(service) or float("inf")
        soonest = min(self._wakes.values(), default=float("inf"))
        if self._dirty:
            soonest = min(soonest, clock.boottime_s() + 1.0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if soonest != float("inf"):
            delay_s = max(0.0, soonest - clock.boottime_s()) + 0.001
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now_s = clock.boottime_s()
        due = [name for name, at_s in self._wakes.items() if at_s <= now_s]
        for name in due:
            self.post(name, Tick())
        if not due and self._dirty and self.services:
            self.post(next(iter(self._dirty)), Tick())
        elif not due:
            self._set_timer()

    async def until(self, predicate: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Waits until the predicate holds, looking after each turn. False when the time ran out."""
        await asyncio.sleep(0)  # a caller that loops must not keep the pump from running
        try:
            async with asyncio.timeout(timeout_s):
                async with self._turned:
                    await self._turned.wait_for(predicate)
        except TimeoutError:
            return predicate()
        return True

    def poke(self) -> None:
        """Lets those who wait in `until` look again, for a change that no event made."""

        async def notify() -> None:
            async with self._turned:
                self._turned.notify_all()

        self.keep(asyncio.get_running_loop().create_task(notify()))

    async def decide(self, changes: Iterable[tuple[Name, Event]], write: Callable[[], None] = lambda: None) -> None:
        """Takes events in one transaction, together with what `write` stores: all of it, or (HostError, IllegalTransition)
        nothing. This is how a deploy begins, commits and is put back. Waits for a keeper that is away."""
        chosen = list(changes)
        for _ in range(5):
            await self.connected()
            # Whoever asked may go away in the middle; what was decided is done all the same.
            deciding = asyncio.get_running_loop().create_task(self._decide(chosen, write))
            self._tasks.add(deciding)
            deciding.add_done_callback(self._tasks.discard)
            try:
                await asyncio.shield(deciding)
                return
            except KeeperLost:
                continue  # it died before the transaction: nothing was decided yet
        raise KeeperLost("the keeper keeps dying", remedy="look at keeper.log in the state folder")

    async def _decide(self, changes: list[tuple[Name, Event]], write: Callable[[], None]) -> None:
        async with self._acting:
            now_s = clock.boottime_s()
            after: dict[Name, Service] = {}
            effects: list[tuple[Name, Effect]] = []
            for name, event in changes:
                service = after.get(name) or self.services.get(name) or Service(*name)
                after[name], more = turn.step(service, event, now_s, _chance())
                effects.extend((name, effect) for effect in more)
            if self.link is None:
                raise KeeperLost("the keeper is away")
            await self.orders.revoke(after)
            self._point("before the transaction")
            with self.store.transaction():
                for service in after.values():
                    self.store.put_service(durable(service))
                write()
            self._point("after the transaction")
            self._dirty -= after.keys()
            self.services.update(after)
            self.orders.touch(after)
            for name in after:
                self._wakes.pop(name, None)
            try:
                await self.perform(effects)
            except KeeperLost:
                pass  # decided; the effects are derived again when the next keeper is there
            self._set_timer()
            async with self._turned:
                self._turned.notify_all()

    # -- effects -----------------------------------------------------------------------------------------------------

    async def perform(self, effects: list[tuple[Name, Effect]]) -> None:
        """In order; spawns that follow each other go to the keeper in one message. Raises KeeperLost: what was left out is
        derived again by `attach`."""
        if self.link is None:
            raise KeeperLost("the keeper is away")
        spawns: list[tuple[Name, Spawn]] = []
        for name, effect in effects:
            if isinstance(effect, Spawn):
                spawns.append((name, effect))
                continue
            if spawns and not isinstance(effect, Note):
                await self._spawn(spawns)
                spawns = []
            try:
                await self._perform_one(name, effect)
            except KeeperLost:
                raise
            except (KeeperRefused, OSError) as error:
                self.note(*name, "keeper", f"could not act ({type(effect).__name__}): {error}")
            except Exception as error:
                self.blame(name, str(effect), error)
        if spawns:
            await self._spawn(spawns)
        await self.orders.sync()

    async def _perform_one(self, name: Name, effect: Effect) -> None:
        if not isinstance(effect, Note):
            self._point(f"{type(effect).__name__} {name[1]}")
        match effect:
            case Watch():
                self.processes.watch(name, effect)
            case Look():
                self.looks.look(name, effect)
            case Signal():
                await self._signal(name, effect)
            case KillTree():
                await self._kill(name, (effect.generation, effect.slot, effect.attempt))
            case Sweep():
                self._sweep(name, (effect.generation, effect.slot, effect.attempt))
            case HandoverNews():
                self.news[(*name, effect.generation)] = effect
                if effect.phase is None:
                    self.note(*name, "handover", f"failed: {effect.reason}", effect.generation)
            case Retired():
                await self._retired(name, effect.generation)
            case Note():
                self.note(*name, effect.kind, effect.text, effect.generation, effect.slot)

    def _point(self, name: str) -> None:
        crashpoint.point(name, self.keeper_pid)

    @property
    def keeper_pid(self) -> int:
        return self.link.hello.pid if self.link and self.link.hello else 0

    def key(self, name: Name, place: Place3) -> SpawnKey:
        return SpawnKey(*name, *place)

    def record(self, app: str, number: int) -> GenerationRecord | None:
        """What the generation is started from; read once from the store."""
        found = self.generations.get((app, number))
        if found is None:
            found = self.store.generation(app, number) or self._copied_record(app, number)
            if found is not None:
                self.generations[app, number] = found
        return found

    def _copied_record(self, app: str, number: int) -> GenerationRecord | None:
        """Of a fresh generation of a release that was quieted: it is started from what that was started from."""
        for (owner, _), service in self.services.items():
            generation = service.generation(number) if owner == app else None
            source = self.record(app, generation.copy_of) if generation is not None and generation.copy_of else None
            if source is not None:
                return replace(source, number=number)
        return None

    def drop_app(self, app: str) -> None:
        """It is no more, also for the next agent. Raises HostError, and nothing is changed."""
        self.store.drop_app(app)
        self.forget_app(app)
        with suppress(HostError):  # the next one that goes takes them along
            for old, aside in self.store.forget_old_formers().items():
                self.logs.set_aside(old, aside)

    def forget_app(self, app: str) -> None:
        """Of an app that is no more nothing is kept, here and by the keeper; whoever has its name next begins anew."""
        remove_tree(f"{self.runtime}/run/{app}")
        self.keep(asyncio.get_running_loop().create_task(self._release(app)))
        self.apps.pop(app, None)
        self.folders.forget(app)
        for name in [name for name in self.services if name[0] == app]:
            self.forget_service(name)
        for key in [key for key in self.generations if key[0] == app]:
            del self.generations[key]
        for news in [news for news in self.news if news[0] == app]:
            del self.news[news]

    def forget_service(self, name: Name) -> None:
        """Of a service without generations and processes nothing is kept in memory."""
        del self.services[name]
        self._dirty.discard(name)
        self._wakes.pop(name, None)
        self.who.pop(name, None)
        self.logs.forget(*name)
        self.orders.touch((name,))

    async def _release(self, app: str) -> None:
        await self.channels.forget_app(app)
        await self.drop_unused_listeners()

    def place(self, app: str, service: str, number: int) -> Place:
        owner = self.apps[app].owner_uid if app in self.apps else self.uid
        return Place(f"{self.runtime}/run/{app}/{service}/{number}", owner, os.environ.get("PATH", os.defpath))

    async def _spawn(self, spawns: list[tuple[Name, Spawn]]) -> None:
        """In groups: while the keeper starts one, the next is prepared. Raises KeeperLost."""
        starting: asyncio.Task[None] | None = None
        try:
            for start in range(0, len(spawns), _SPAWN_GROUP):
                found = [await self._start_of(name, effect) for name, effect in spawns[start : start + _SPAWN_GROUP]]
                if starting is not None:
                    await starting
                ready = await self._heard([one for one in found if one is not None])
                if ready:
                    self._point(f"Spawn {', '.join(spec.key for spec in ready)}")
                    starting = asyncio.get_running_loop().create_task(self._start_all(ready))
                    await asyncio.sleep(0)  # it is asked before the next group is prepared
        finally:
            if starting is not None:
                await starting

    async def _start_of(self, name: Name, effect: Spawn) -> Start | None:
        place = (effect.generation, effect.slot, effect.attempt)
        try:
            return await self._start(name, place)
        except KeeperLost:
            raise
        except Exception as error:  # whatever it is, it is this service's: the others are started
            self._not_started(name, place, error)
            return None

    async def _heard(self, starts: list[Start]) -> list[SpawnSpec]:
        """Opens what they are heard by; one that this fails for does not keep the others from being started."""
        try:
            await self.channels.ensure(starts)
            return [start.spec for start in starts]
        except KeeperRefused as error:
            if len(starts) == 1:
                self._not_started(starts[0].name, starts[0].place, error)
                return []
        return [spec for start in starts for spec in await self._heard([start])]

    def _not_started(self, name: Name, place: Place3, error: Exception) -> None:
        text = error.what if isinstance(error, MidstreamError) else str(error) or type(error).__name__
        self.post(name, Ended(*place, f"could not be started: {text}", ran=False))

    async def _start_all(self, ready: list[SpawnSpec]) -> None:
        if self.link is not None:
            for result in await self.link.spawn(tuple(ready)):
                key = parse_key(result.key)
                self.note(
                    key.app,
                    key.service,
                    "start",
                    f"attempt {key.attempt}" if result.ok else f"refused: {result.error}",
                    key.generation,
                    key.slot,
                )
                if not result.ok:
                    place = (key.generation, key.slot, key.attempt)
                    self.post((key.app, key.service), Ended(*place, f"could not be started: {result.error}", ran=False))

    async def prepared(self, name: Name, place: Place3) -> SpawnSpec:
        """Everything a process needs, made: run folder, listeners, channel, notify socket. -> its SpawnSpec."""
        start = await self._start(name, place)
        await self.channels.ensure([start])
        return start.spec

    async def _start(self, name: Name, place: Place3) -> Start:
        if self.link is None:
            raise KeeperLost("the keeper is away")
        app, service_name = name
        generation, slot, _ = place
        record = self.record(app, generation)
        service = record.spec.services.get(service_name) if record else None
        if record is None or service is None:
            raise HostError("its configuration is not recorded", remedy="midstream deploy")
        where = self.place(app, service_name, generation)
        account = account_for(record.spec, where.owner_uid, self.uid, service)
        self._make_run_folder(where.run, account.uid, account.gid)
        listeners = await self.listeners.for_instance(record, service, slot, where.owner_uid)
        spec = instance_spec(record, service, self.key(name, place), listeners, where, self.uid)
        return Start(name, place, spec, service)

    def _make_run_folder(self, path: str, uid: int, gid: int) -> None:
        """Above it all is root's, so that nobody can put something else in its place."""
        try:
            found = os.lstat(path).st_uid
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            os.mkdir(path, 0o700)
            found = self.uid
        if self.uid == 0 and found != uid:
            os.chown(path, uid, gid, follow_symlinks=False)

    async def _signal(self, name: Name, effect: Signal) -> None:
        if self.link is None:
            raise KeeperLost("the keeper is away")
        if not effect.signal:
            return
        number = getattr(signal, f"SIG{effect.signal.removeprefix('SIG')}")
        key = self.key(name, (effect.generation, effect.slot, effect.attempt))
        self.note(*name, "signal", f"SIG{effect.signal.removeprefix('SIG')}", effect.generation, effect.slot)
        try:
            await self.link.signal(str(key), int(number))
        except KeeperRefused:
            pass  # it has ended, or was never there: the table tells

    async def _kill(self, name: Name, place: Place3) -> None:
        if self.link is None:
            raise KeeperLost("the keeper is away")
        self.note(*name, "kill", "SIGKILL to the whole tree", place[0], place[1])
        try:
            report = await self.link.kill_tree(str(self.key(name, place)))
        except KeeperRefused:
            return
        if report.unattributed:
            self.note(*name, "unattributed", f"processes that no key explains: {report.unattributed}", place[0])

    def _sweep(self, name: Name, place: Place3) -> None:
        self.processes.gone(name, place)
        self.logs.flush(ChannelName(*name, place[0], place[1]))
        self.keep(asyncio.get_running_loop().create_task(self._sweep_tree(name, place)))

    async def _sweep_tree(self, name: Name, place: Place3) -> None:
        """Ends what the main process left behind (workers of a killed master, `setsid` grandchildren), then forgets it."""
        key = str(self.key(name, place))
        try:
            if self.link is None:
                return
            left = await self.link.signal(key, int(signal.SIGTERM), tree=True)
            if left:
                self.note(*name, "sweep", f"{left} processes it left behind: SIGTERM", place[0], place[1])
                service = self.services.get(name)
                generation = service.generation(place[0]) if service else None
                grace_s = generation.plan.stop_timeout_s if generation else 5.0
                deadline_s = clock.boottime_s() + grace_s
                while clock.boottime_s() < deadline_s and await self.link.signal(key, 0, tree=True):
                    await asyncio.sleep(0.1)
            await self.link.kill_tree(key)
            await self.link.ack((key,))
        except (KeeperRefused, KeeperLost, OSError):
            pass  # unknown to the keeper, or a new keeper: nothing is left to forget

    async def _retired(self, name: Name, number: int) -> None:
        """No process of the generation is left: its channels, private listeners and folder go."""
        app, service = name
        await self.channels.retire(name, number)
        await self.drop_unused_listeners()
        folder = self.place(app, service, number).run
        if not remove_tree(folder):
            self.note(app, service, "attention", f"too much was in {folder}: what is left there is yours", number)
        mine = [item for key, value in self.services.items() if key[0] == app for item in value.generations]
        used = {item.number for item in mine} | {item.copy_of for item in mine}
        record = self.apps.get(app)
        if number not in used and (record is None or number != record.committed_generation):
            self.generations.pop((app, number), None)
            try:
                self.store.drop_generation(app, number)
            except HostError:
                pass  # a row too many; the next start drops it
        forget_dropped(self, app)

    async def drop_unused_listeners(self) -> None:
        """Closes listeners that no generation of any service refers to any more."""
        wanted: set[str] = set()
        private: set[tuple[str, str, int]] = set()
        for (app, service_name), service in self.services.items():
            for generation in service.generations:
                private.add((app, service_name, generation.number))
                record = self.record(app, generation.number)
                spec = record.spec.services.get(service_name) if record else None
                if record is not None and spec is not None:
                    wanted |= {listener_key(app, service_name, address_of(record.spec, item)) for item in spec.listen}

        def keep(name: str) -> bool:
            words = name.split("/")
            if words[2].isdecimal():
                return (words[0], words[1], int(words[2])) in private
            return name in wanted

        await self.listeners.drop(keep)

    # -- the keeper's table ------------------------------------------------------------------------------------------

    async def pull(self) -> None:
        """Reads what changed in the keeper's table and posts it."""
        async with self._pulling:
            while self.link is not None:
                page = await self.link.pull(self._seq)
                for entry in page.entries:
                    self._seq = max(self._seq, entry.seq)
                    self._seen(entry)
                if not page.more:
                    return

    def _seen(self, entry: ProcessEntry) -> None:
        key = parse_key(entry.key)
        if entry.kind is ProcessKind.ONE_SHOT:
            self.one_shots.seen(entry)
            return
        name = (key.app, key.service)
        place = (key.generation, key.slot, key.attempt)
        event = _event_of(entry, place)
        if entry.state is ProcessState.RUNNING:
            self.processes.seen(name, place, entry)
        if event is not None:
            if isinstance(event, Spawned) and entry.by == "order":
                self.note(*name, "start", "by the keeper's standing order", key.generation, key.slot)
            self.post(name, event)

    async def attach(self, link: KeeperLink) -> None:
        """Takes over from the store and a keeper's table: at the start, and after a new keeper. Nothing that runs is
        touched unless it should not run."""
        self.link = link
        self._linked.set()
        self.one_shots.keeper_changed()
        entries, self._seq = await link.pull_all()
        held = await link.inventory()
        await self.listeners.recover(held)
        live: dict[Name, list[Spawned]] = {}
        ended: dict[Name, list[Ended]] = {}
        for entry in entries:
            key = parse_key(entry.key)
            if entry.kind is ProcessKind.ONE_SHOT:
                self.one_shots.seen(entry)
                continue
            name, place = (key.app, key.service), (key.generation, key.slot, key.attempt)
            event = _event_of(entry, place)
            if isinstance(event, Ended):
                ended.setdefault(name, []).append(event)
            else:
                live.setdefault(name, []).append(Spawned(*place, entry.pid))
                if self.processes.seen(name, place, entry) and entry.by == "order":
                    self.note(*name, "start", "by the keeper's standing order", key.generation, key.slot)
        self.one_shots.settle_lost()
        for name in (*live, *ended):
            if name not in self.services:
                self.services[name] = Service(*name)
        effects: list[tuple[Name, Effect]] = []
        now_s = clock.boottime_s()
        said = {item.name: item for item in await link.notices()}
        ordered = {item.name for item in held if item.kind is Held.ORDER}
        async with self._acting:
            self.orders.forget(self.services, ordered)
            for name, service in list(self.services.items()):
                after, more = turn.restore(
                    durable(service), tuple(live.get(name, ())), tuple(ended.get(name, ())), now_s
                )
                self.services[name] = after
                if durable(after) != durable(service):
                    self._dirty.add(name)
                effects.extend((name, effect) for effect in more)
                for seen in live.get(name, ()):
                    await self.channels.reopen(name, seen, said.get(channel_of(self.key(name, _place(seen)))))
            self._wakes.clear()
            self._save_dirty()
            await self.perform(effects)
            self._set_timer()

    def last_lines(self, app: str, service: str, generation: int, count: int = 20) -> list[str]:
        """The last lines that a generation wrote."""
        try:
            lines = self.logs.sink(app, service).last(400)
        except (OSError, MidstreamError):
            return []
        return [line.text for line in lines if line.generation == generation][-count:]

    # -- events out --------------------------------------------------------------------------------------------------

    def note(
        self, app: str, service: str, kind: str, text: str, generation: int = 0, slot: int = -1, who: str = ""
    ) -> None:
        """One line of the record: kept, shown to followers, never waited for."""
        who = who or self.who.get((app, service), "") or "agent"
        row = EventRow(time.time(), app, service, generation, slot, kind, text, who, self.intent_of.get(app, ""))
        self.store.note(row)
        self.on_event(row)
        if self._flush_handle is None:
            self._flush_handle = asyncio.get_running_loop().call_later(0.3, self._flush)

    def _flush(self) -> None:
        self._flush_handle = None
        self.store.flush_events()


def _chance() -> float:
    """At least 0 and less than 1; what spreads pauses needs no generator of its own (the module `random` is 0.3 MB)."""
    return int.from_bytes(os.urandom(4)) / 2**32


def _place(seen: Spawned) -> Place3:
    return (seen.generation, seen.slot, seen.attempt)


def _event_of(entry: ProcessEntry, place: Place3) -> Spawned | Ended | None:
    """What an entry of the keeper's table says; None while it is neither running nor over."""
    if entry.state is ProcessState.RUNNING:
        return Spawned(*place, entry.pid)
    if entry.state is ProcessState.STARTING:
        return None
    return Ended(*place, exit_text(entry), entry.code, ran=entry.state is not ProcessState.FAILED)


def remove_tree(path: str) -> bool:
    """Removes a run folder with all in it, links never followed. What is in it is the service's doing: beyond a depth and a
    number of entries it stays, and this returns False. (shutil would bring lzma and bz2 into the agent's memory.)"""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    left = [_ENTRIES_MAX]

    def empty(folder: int, depth: int) -> None:
        for name in os.listdir(folder):
            left[0] -= 1
            if left[0] < 0:
                return
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
                continue
            if depth == 0:
                continue
            with suppress(OSError):
                inner = os.open(name, flags, dir_fd=folder)
                try:
                    empty(inner, depth - 1)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=folder)

    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        empty(fd, _DEPTH_MAX)
    finally:
        os.close(fd)
    with suppress(OSError):
        os.rmdir(path)
    return not os.path.lexists(path)
