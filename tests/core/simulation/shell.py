"""One life of the agent: the asyncio shell around the core, as steps between which it can be killed.

It follows `agent/host.py` and `agent/publishing.py`: events are taken in batches, stored if they can be, then acted on;
commands are one transaction together with the intent, or refused; a start and a new keeper are both `restore`.
`yield` is where other things happen: the world goes on, or the agent dies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from midstream.core.events import (
    Begin,
    Commit,
    Effect,
    Ended,
    Event,
    Go,
    Healthy,
    KillTree,
    Look,
    Observed,
    Quieten,
    Ready,
    Refuted,
    Remove,
    Revert,
    SetHold,
    Signal,
    Soak,
    Spawn,
    Spawned,
    Sweep,
    Tick,
    Unhealthy,
    Waken,
    Want,
    Watch,
)
from midstream.core.generation import PROVISIONAL, Generation, GenerationState, IllegalTransition
from midstream.core.intent import Intent, IntentEvent, IntentState, advance
from midstream.core.phases import Hold, Phase
from midstream.core.service import Service, at_once, durable, standing_orders, wake_s
from midstream.core.turn import restore, step
from simulation.disk import DiskFull
from simulation.keeper import Entry, LinkLost, Order
from simulation.kernel import Key, Process, Quality

if TYPE_CHECKING:
    from simulation.world import World

LEASE_S = 15.0
APP = "shop"
BEYOND = (Phase.PROVEN, Phase.QUIETING, Phase.SOAKING, Phase.SOAKED)

Steps = Generator[str, None, None]
BUSY, IDLE = "busy", "idle"


class Refused(Exception):
    """The answer to a call: nothing was changed."""


@dataclass
class Call:
    """One request of a deployer. done is called with the answer, or with the error, unless the agent died before."""

    operation: str
    words: tuple[object, ...]
    done: Callable[[object], None]


class Shell:
    def __init__(self, world: World) -> None:
        self.world = world
        self.services: dict[str, Service] = {}
        self.views: dict[str, list[Service]] = {}  # what a batch saw of each service: before and after
        self.inbox: deque[tuple[str, Event]] = deque()
        self.calls: deque[Call] = deque()
        self.chores: deque[Key] = deque()  # ended processes to be acknowledged
        self.watched: dict[Key, Watch] = {}
        self.heard: set[Key] = set()
        self.named: set[Key] = set()  # what was started since it is attached
        self.ordered: dict[tuple[str, int], tuple[Key, bool]] = {}
        self.dirty: set[str] = set()
        self.retry_s = 0.0
        self.changed = False
        self.attached = False
        self.lost = False  # the link broke, and the agent has not done anything about it yet
        self.last = BUSY
        self.seq = 0
        self.woken: dict[str, tuple[Service, float | None]] = {}
        self.steps = self._live()
        self.ticks = 0
        self.ticked_s = -1.0

    # life

    def _live(self) -> Steps:
        truth = self.world.disk.truth
        self.services = dict(truth.services)
        while True:
            try:
                yield from self._attach()
                while True:
                    yield from self._once()
            except LinkLost:
                self.attached = False
                yield BUSY

    def _attach(self) -> Steps:
        keeper = self.world.keeper
        while not keeper.up:
            yield IDLE
        keeper.hello(self)
        self.lost = False
        self.views = {}
        self.named.clear()
        self.inbox.clear()
        self.chores.clear()
        self.watched.clear()
        yield BUSY
        self.changed = False
        entries = keeper.pull(self, 0)
        self.seq = max((item.seq for item in entries), default=0)
        effects: list[tuple[str, Effect]] = []
        words = self.world.disk.truth.words
        for name, service in self.services.items():
            mine = [item for item in entries if item.key[0] == name]
            live = tuple(Spawned(*item.key[1:], pid=item.process.pid) for item in mine if item.running)
            ended = tuple(_ended(item) for item in mine if not item.running)
            after, more = restore(durable(service), live, ended, self.world.now_s)
            said = {item.key for item in mine if (item.key, item.process.pid) in words}
            self.heard |= said | {item.key for item in mine if item.key in keeper.notices}
            self._keep(name, service, after)
            effects += [(name, effect) for effect in more]
        keeper.notices.clear()
        self.ordered = {slot: ((*order.place, order.attempt), order.at_once) for slot, order in keeper.orders.items()}
        self.attached = True
        self._save()
        yield from self._perform(effects)

    def _once(self) -> Steps:
        """The next thing there is to do, or idleness."""
        work = self._work()
        if not work:
            yield IDLE
            return
        yield from self.world.random.choice(work)()

    def _lose(self) -> Steps:
        raise LinkLost
        yield BUSY

    def _work(self) -> list[Callable[[], Steps]]:
        work: list[Callable[[], Steps]] = []
        if self.lost:
            return [self._lose]
        if self.changed:
            work.append(self._pull)
        if self.inbox:
            work.append(self._batch)
        if self.chores:
            work.append(self._chore)
        if self.calls:
            work.append(self._call)
        woken = self.wake_s()
        if woken is not None and woken <= self.world.now_s:
            work.append(self._wake)
        if not work and self.world.now_s >= self.retry_s:
            move = self._move()
            if move is not None:
                work.append(move)
        return work

    def runnable(self) -> bool:
        if self.last == BUSY:
            return True
        return bool(self._work()) if self.attached else self.world.keeper.up

    def go_on(self) -> None:
        """One small step."""
        self.last = next(self.steps)

    def wake_s(self) -> float | None:
        times = [at for name in self.services if (at := self._wake_of(name)) is not None]
        if self.dirty:
            times.append(self.retry_s)
        intent = self.world.disk.truth.intent
        if intent is not None and intent.lease_deadline_s > self.world.now_s:
            times.append(intent.lease_deadline_s)
        if self.retry_s > self.world.now_s:
            times.append(self.retry_s)
        return min(times, default=None)

    def _wake_of(self, name: str) -> float | None:
        service = self.services[name]
        known, at_s = self.woken.get(name, (None, None))
        if known is not service:
            at_s = wake_s(service)
            self.woken[name] = (service, at_s)
        return at_s

    # events

    def post(self, key: Key, event: Event) -> None:
        self.inbox.append((key[0], event))

    def _pull(self) -> Steps:
        self.changed = False
        for entry in self.world.keeper.pull(self, self.seq):
            self.seq = max(self.seq, entry.seq)
            event = Spawned(*entry.key[1:], pid=entry.process.pid) if entry.running else _ended(entry)
            self.post(entry.key, event)
        yield BUSY

    def _wake(self) -> Steps:
        now_s = self.world.now_s
        self.ticks = self.ticks + 1 if self.ticked_s == now_s else 1
        self.ticked_s = now_s
        self.world.rules.expect(self.ticks < 20, f"the agent spins: {self.ticks} ticks at once")
        for name in self.services:
            woken = self._wake_of(name)
            if woken is not None and woken <= now_s:
                self.inbox.append((name, Tick()))
        if self.inbox:
            yield from self._batch()
        else:
            self._save()
            yield BUSY

    def _batch(self) -> Steps:
        """As `Host._take`: decide, store what can be stored, act."""
        count = min(len(self.inbox), self.world.random.choice((1, 1, 2, 5)))
        effects: list[tuple[str, Effect]] = []
        before = dict(self.services)
        for _ in range(count):
            name, event = self.inbox.popleft()
            service = self.services.get(name)
            if service is None:
                continue
            self.world.say("agent:", name, event)
            after, more = step(service, event, self.world.now_s, self.world.random.random())
            self._keep(name, service, after)
            effects += [(name, effect) for effect in more]
        self.views = {name: [before[name], self.services[name]] for name in before}
        self._save()
        yield from self._perform(effects)
        self.views = {}

    def _keep(self, name: str, before: Service, after: Service) -> None:
        if durable(after) != durable(before):
            self.dirty.add(name)
        self.services[name] = after
        self._name_copies(after)

    def _name_copies(self, service: Service) -> None:
        """A fresh generation runs what the quiet one did."""
        for item in service.generations:
            if item.copy_of:
                self.world.generations[item.number] = self.world.generations[item.copy_of]

    def _save(self) -> None:
        if not self.dirty:
            return
        try:
            self.world.disk.write(services={name: durable(self.services[name]) for name in self.dirty})
            self.dirty.clear()
        except DiskFull:
            self.retry_s = self.world.now_s + 1.0

    def _decide(self, changes: Iterable[tuple[str, Event]], **row: object) -> Steps:
        """As `Host.decide`: all of it or (Refused) nothing. What happens just now is not known here."""
        if not self.world.calm and self.world.random.random() < 0.05:
            self.world.kill_some_process()
        after: dict[str, Service] = {}
        effects: list[tuple[str, Effect]] = []
        for name, event in changes:
            service = after.get(name) or self.services.get(name) or Service(APP, name)
            try:
                after[name], more = step(service, event, self.world.now_s, self.world.random.random())
            except IllegalTransition as error:
                raise Refused(str(error)) from None
            effects += [(name, effect) for effect in more]
        for service in after.values():
            self._name_copies(service)
        mine = [(slot, key) for slot, (key, _) in self.ordered.items() if slot[0] in after]
        revoked = [slot for slot, key in mine if not _stands(after[slot[0]], key)]
        if revoked:
            self.world.keeper.set_orders(self, [], revoked)
            for slot in revoked:
                del self.ordered[slot]
            yield BUSY
        try:
            self.world.disk.write(services={name: durable(item) for name, item in after.items()}, **row)
        except DiskFull:
            yield from self._sync_orders()
            self.retry_s = self.world.now_s + 1.0
            raise Refused("the disk is full") from None
        self.dirty -= after.keys()
        self.services.update(after)
        yield BUSY
        yield from self._perform(effects)

    # effects

    def _perform(self, effects: list[tuple[str, Effect]]) -> Steps:
        yield BUSY
        for name, effect in effects:
            if self._act(name, effect):
                yield BUSY
        yield from self._sync_orders()

    def _act(self, name: str, effect: Effect) -> bool:
        keeper = self.world.keeper
        match effect:
            case Spawn():
                key = _key(name, effect)
                self.world.rules.expect(key not in self.named or key in keeper.table, key, "was named twice")
                self.named.add(key)
                if not keeper.spawn(self, key, self.world.code_of(name, effect.generation)):
                    self.post(key, Ended(*key[1:], "could not be started: fork", ran=False))
            case Watch():
                self._watch(_key(name, effect), effect)
            case Look():
                self._look_soon(_key(name, effect))
            case Signal():
                if effect.signal:
                    keeper.signal(self, _key(name, effect), effect.signal)
            case KillTree():
                keeper.signal(self, _key(name, effect), "KILL")
            case Sweep():
                self.watched.pop(_key(name, effect), None)
                self.chores.append(_key(name, effect))
            case _:
                return False
        return True

    def _chore(self) -> Steps:
        self.world.keeper.ack(self, self.chores.popleft())
        yield BUSY

    def _sync_orders(self) -> Steps:
        wanted: dict[tuple[str, int], tuple[Key, bool]] = {}
        for name, service in self.services.items():
            for slot, item in standing_orders(service).items():
                key = (name, item.generation, slot, item.attempt)
                wanted[name, slot] = (key, at_once(service, item))
        revoke = [slot for slot in self.ordered if slot not in wanted]
        put = [order for slot, order in wanted.items() if self.ordered.get(slot) != order]
        if revoke or put:
            orders = [Order(key[:3], key[3], self.world.code_of(key[0], key[1]), quick) for key, quick in put]
            self.world.keeper.set_orders(self, orders, revoke)
            self.ordered = wanted
            yield BUSY

    # what the job library says

    def _look_soon(self, key: Key) -> None:
        self.world.after(self.world.random.uniform(0.01, 1.0), lambda: self._look(key))

    def _look(self, key: Key) -> None:
        process = self.world.kernel.by_key[key]
        if self.world.shell is not self or not process.alive or key[0] not in self.services:
            return
        mine = [item for item in self.services[key[0]].of(key[1]) if (item.slot, item.attempt) == key[2:]]
        if not any(item.looked for item in mine):
            return
        if self.world.redis_down:
            self.post(key, Observed(*key[1:], trouble="connection refused"))
        else:
            lag_s = 0.0 if process.code.plan.quiet_once else 3.0
            quiet = bool(process.quiet_s) and self.world.now_s >= process.quiet_s + lag_s
            self.post(key, Observed(*key[1:], quiet, quiet and self.world.now_s >= process.idle_s + lag_s))
        self._look_soon(key)

    # watching: ready, then (confirm) an answer, then sickness

    def _watch(self, key: Key, effect: Watch) -> None:
        self.watched[key] = effect
        process = self.world.kernel.by_key[key]
        if effect.ready:
            self.heard.add(key)
        if key in self.heard or (process.ready and not process.code.word):
            self.world.after(0.01, lambda: self._seen_ready(key, effect))
        elif self._provisional(key):
            late_s = process.code.plan.start_timeout_s - 0.1
            self.world.after(late_s, lambda: self._too_late(key, effect))

    def _provisional(self, key: Key) -> bool:
        generation = self.services[key[0]].generation(key[1])
        return generation is not None and generation.state in PROVISIONAL

    def word(self, process: Process) -> None:
        """READY=1 arrives, or it is seen that it listens."""
        key = process.key
        if process.code.word:
            self.heard.add(key)
            if key[0] in self.services and self._provisional(key):
                try:
                    self.world.disk.write(words=self.world.disk.truth.words | {(key, process.pid)})
                except DiskFull:
                    pass
        effect = self.watched.get(key)
        if effect is not None:
            self._seen_ready(key, effect)

    def _mine(self, key: Key, effect: Watch) -> Process | None:
        """The process, while this agent lives and still watches it."""
        if self.world.shell is not self or self.watched.get(key) is not effect:
            return None
        process = self.world.kernel.by_key[key]
        return process if process.alive else None

    def _too_late(self, key: Key, effect: Watch) -> None:
        process = self._mine(key, effect)
        if process is not None and not (process.ready and (key in self.heard or not process.code.word)):
            self.post(key, Refuted(*key[1:], "not ready in time"))

    def _seen_ready(self, key: Key, effect: Watch) -> None:
        process = self._mine(key, effect)
        if process is None:
            return
        self.post(key, Ready(*key[1:]))
        if effect.confirm:
            self.world.after(self.world.random.uniform(0.01, 1.0), lambda: self._checked(key, effect))
        else:
            self.post(key, Healthy(*key[1:]))
            self.sick(process)

    def _checked(self, key: Key, effect: Watch) -> None:
        process = self._mine(key, effect)
        if process is None:
            return
        if process.code.quality is Quality.ANSWERS_500 or process.sick:
            self.post(key, Refuted(*key[1:], "answered 500"))
        else:
            process.answered = True
            self.post(key, Healthy(*key[1:]))

    def sick(self, process: Process) -> None:
        if process.sick and process.alive and process.key in self.watched:
            self.post(process.key, Unhealthy(*process.key[1:], "answered 500"))

    # the deploy

    def _intent(self) -> Intent | None:
        intent = self.world.disk.truth.intent
        return None if intent is None or intent.state is IntentState.CLOSED else intent

    def _moved(self, event: IntentEvent, **changes: object) -> Intent:
        intent = self._intent()
        assert intent is not None
        return replace(intent, state=advance(intent.state, event), **changes)  # type: ignore[arg-type]

    def _move(self) -> Callable[[], Steps] | None:
        """What the open deploy wants next, seen from where everything stands."""
        intent = self._intent()
        if intent is None:
            return None
        parts = {name: self.services.get(name) or Service(APP, name) for name in intent.services}
        late = self.world.now_s >= intent.lease_deadline_s
        match intent.state:
            case IntentState.OPEN | IntentState.UPDATING | IntentState.UPDATED if late:
                return lambda: self._try(self._put_back(intent))
            case IntentState.PUBLISHING | IntentState.PROVISIONAL:
                if late or not all(_mine(item, intent) for item in parts.values()):
                    return lambda: self._try(self._put_back(intent))
                if intent.state is IntentState.PUBLISHING:
                    return self._publishing(parts)
            case IntentState.REVERTING:
                if not any(_mine(item, intent) for item in parts.values()):
                    return lambda: self._try(self._row(IntentEvent.REVERT_DONE))
                return lambda: self._try(self._put_back(intent))
            case IntentState.REVERTED | IntentState.COMMITTED:
                return lambda: self._try(self._row(IntentEvent.CLOSE))
        return None

    def _publishing(self, parts: dict[str, Service]) -> Callable[[], Steps] | None:
        phases = {name: item.handover.phase for name, item in parts.items() if item.handover}
        queued = [name for name, phase in phases.items() if phase is Phase.QUEUED]
        rest = [phase for phase in phases.values() if phase is not Phase.QUEUED]
        if queued and all(phase in BEYOND for phase in rest):
            return lambda: self._try(self._decide([(name, Go()) for name in queued]))
        if all(phase in BEYOND for phase in phases.values()):
            proven = [name for name, phase in phases.items() if phase is Phase.PROVEN]
            if proven:
                return lambda: self._try(self._decide([(name, Soak()) for name in proven]))
            if all(phase is Phase.SOAKED for phase in phases.values()):
                return lambda: self._try(self._row(IntentEvent.PROVED))
        return None

    def _try(self, steps: Steps) -> Steps:
        """A move that is made again later when the disk is full."""
        try:
            yield from steps
        except Refused:
            yield BUSY

    def _row(self, event: IntentEvent) -> Steps:
        yield from self._decide([], intent=self._moved(event))

    def _put_back(self, intent: Intent) -> Steps:
        """Never refused: what cannot be stored now is found out again after a crash."""
        if intent.state is not IntentState.REVERTING:
            try:
                self.world.disk.write(intent=self._moved(IntentEvent.REVERT))
            except DiskFull:
                self.retry_s = self.world.now_s + 1.0
            yield BUSY
        changes: list[tuple[str, Event]] = [
            (name, Revert("put back"))
            for name in intent.services
            if name in self.services and _mine(self.services[name], intent)
        ]
        try:
            if changes:
                yield from self._decide(changes)
        except Refused:
            self.inbox.extend(changes)
            yield from self._batch()

    # calls of a deployer or an operator

    def _call(self) -> Steps:
        call = self.calls.popleft()
        self.world.say("agent: call", call.operation, *call.words)
        try:
            yield from getattr(self, f"_do_{call.operation}")(*call.words)
        except Refused as error:
            call.done(error)
        except LinkLost:
            call.done(Refused("the keeper is gone"))
            raise
        else:
            call.done(self._intent())

    def _do_open(self, release: str, kind: str) -> Steps:
        if self._intent() is not None:
            raise Refused("locked")
        truth = self.world.disk.truth
        number = truth.intent.number + 1 if truth.intent else 1
        lease_s = self.world.now_s + LEASE_S
        intent = Intent(str(number), number, APP, kind, IntentState.OPEN, "ann", number, lease_deadline_s=lease_s)
        yield from self._decide([], intent=replace(intent, release=release, previous=truth.release))

    def _do_update(self, number: int) -> Steps:
        self._owned(number)
        yield from self._decide([], intent=self._legal(IntentEvent.UPDATE))
        yield from self._decide([], intent=self._legal(IntentEvent.UPDATE_DONE))

    def _legal(self, event: IntentEvent, **changes: object) -> Intent:
        try:
            return self._moved(event, **changes)
        except IllegalTransition as error:
            raise Refused(str(error)) from None

    def _owned(self, number: int) -> Intent:
        intent = self._intent()
        if intent is None or intent.number != number:
            raise Refused("that deploy is over")
        return intent

    def _do_renew(self, number: int) -> Steps:
        """The deployer's connection still stands; in the agent that is memory, here a row."""
        intent = self._owned(number)
        if intent.state is not IntentState.CLOSED:
            yield from self._decide([], intent=replace(intent, lease_deadline_s=self.world.now_s + LEASE_S))

    def _do_publish(self, number: int) -> Steps:
        intent = self._owned(number)
        if intent.state is IntentState.PUBLISHING:
            return  # asked again; it is under way
        release = self.world.releases[intent.release]
        generation = self.world.disk.truth.generation + 1
        changes: list[tuple[str, Event]] = []
        last = generation
        for name, code in release.items():
            candidate = Generation(generation, intent.release, GenerationState.PREPARED, code.plan)
            last += 1
            changes.append((name, Begin(candidate, queued=code.plan.policy == "replace", spare=last)))
        self.world.generations[generation] = intent.release
        moved = self._legal(IntentEvent.PUBLISH, generation=generation, services=tuple(release))
        yield from self._decide(changes, intent=moved, generation=last)

    def _do_commit(self, number: int) -> Steps:
        intent = self._owned(number)
        if intent.state is IntentState.COMMITTED:
            return
        self.world.asked_to_commit.add(intent.generation)
        decided = self._legal(IntentEvent.COMMIT)
        changes: list[tuple[str, Event]] = [(name, Commit()) for name in intent.services]
        for name, service in self.services.items():
            if name not in intent.services and service.committed is not None:
                changes.append((name, Remove()))
        row = {"release": intent.release, "committed": intent.generation, "intent": decided}
        yield from self._decide(changes, **row)

    def _do_revert(self, number: int) -> Steps:
        intent = self._owned(number)
        if intent.state in (IntentState.COMMITTED, IntentState.REVERTED):
            raise Refused(intent.state.value)
        yield from self._put_back(intent)

    def _do_want(self, name: str, up: bool) -> Steps:
        if self._intent() is not None or name not in self.services:
            raise Refused("locked")
        if up:
            self.world.rules.over = {slot: at for slot, at in self.world.rules.over.items() if slot[0] != name}
        yield from self._decide([(name, Want(up))])

    def _do_hold(self, name: str, ttl_s: float) -> Steps:
        if name in self.services:
            yield from self._decide([(name, SetHold(Hold("monit", 1, self.world.now_s + ttl_s)))])

    def _do_quiet(self, name: str, ttl_s: float) -> Steps:
        if self._intent() is not None or name not in self.services:
            raise Refused("locked")
        spare = self.world.disk.truth.generation + 1
        event = Quieten(spare, self.world.now_s + ttl_s, "ann")
        yield from self._decide([(name, event)], generation=spare)

    def _do_unquiet(self, name: str) -> Steps:
        if name in self.services:
            yield from self._decide([(name, Waken())])

    def _do_unhold(self, name: str) -> Steps:
        if name in self.services:
            yield from self._decide([(name, SetHold(None))])


def _mine(service: Service, intent: Intent) -> bool:
    return service.handover is not None and service.handover.generation == intent.generation


def _stands(service: Service, key: Key) -> bool:
    committed = service.committed
    return committed is not None and committed.number == key[1] and key[2] in standing_orders(service)


def _key(name: str, effect: Spawn | Watch | Look | Signal | KillTree | Sweep) -> Key:
    return (name, effect.generation, effect.slot, effect.attempt)


def _ended(entry: Entry) -> Ended:
    return Ended(*entry.key[1:], entry.text, entry.status)
