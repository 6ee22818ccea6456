"""Any events in any order: the claims about one service (DESIGN 2) as a hypothesis state machine on `step`.

Wilder than the simulation: events may come that no shell would send, in any order. Beside the service it keeps the
truth about its processes: what was spawned, was signalled, has ended; the agent may die and come back.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from midstream.core.events import (
    Begin,
    Commit,
    Effect,
    Ended,
    Event,
    Extended,
    Go,
    HandoverNews,
    Healthy,
    KillTree,
    Ready,
    Refuted,
    Remove,
    Retired,
    Revert,
    SetHold,
    Signal,
    Soak,
    Spawn,
    Spawned,
    Sweep,
    Tick,
    Unhealthy,
    Want,
)
from midstream.core.generation import (
    ENDING,
    PROVISIONAL,
    Generation,
    GenerationPlan,
    GenerationState,
    IllegalTransition,
    Park,
)
from midstream.core.instance import ALIVE, SERVING, THROWAWAY_SLOT, InstanceState
from midstream.core.phases import Hold, Phase
from midstream.core.service import Service, cleared, durable, soaks, standing_orders, wake_s
from midstream.core.turn import restore, step

Name = tuple[int, int, int]

PLANS = st.builds(
    GenerationPlan,
    instances=st.integers(1, 3),
    policy=st.sampled_from(("overlap", "overlap", "drain", "replace")),
    throwaway=st.booleans(),
    confirm=st.booleans(),
    min_healthy_s=st.sampled_from((0.0, 2.0)),
    soak_s=st.sampled_from((0.0, 20.0, 20.0)),
    park=st.sampled_from((Park.PAUSE, Park.PAUSE, Park.MIXED)),
    park_signal=st.just("WINCH"),
    unpark_signal=st.just("TTIN"),
    drain_signal=st.just("QUIT"),
    max_draining=st.integers(0, 2),
    surge=st.integers(0, 2),
    restart_on=st.sampled_from(("always", "always", "failure", "never")),
)


@dataclass
class Process:
    alive: bool = True
    seen: bool = False  # Spawned was delivered
    ready: bool = False
    healthy: bool = False
    parked: bool = False
    unwell: bool = False  # the service was told that it is unhealthy
    told: bool = False


class OneService(RuleBasedStateMachine):
    """One service, its processes, and whoever gives orders."""

    def __init__(self) -> None:
        super().__init__()
        self.service = Service("shop", "web")
        self.now_s = 1000.0
        self.number = 0
        self.processes: dict[Name, Process] = {}
        self.proofs: dict[tuple[int, int], Process] = {}

    # how events come in, and what is checked of each effect

    def take(self, event: Event) -> tuple[Effect, ...]:
        before = self.service
        try:
            after, effects = step(before, event, self.now_s)
        except IllegalTransition:
            assert not isinstance(event, Spawned | Ended | Ready | Healthy | Refuted | Unhealthy | Extended | Tick)
            assert self.service is before
            return ()
        self.service = after
        if before.committed is not None and not isinstance(event, Commit | Remove):
            assert after.committed is not None and after.committed.number == before.committed.number
        self.moved(before)
        self.act(before, effects)
        return effects

    def moved(self, before: Service) -> None:
        """Nothing unproven was committed by this step."""
        committed = self.service.committed
        if committed is None or (before.committed is not None and before.committed.number == committed.number):
            return
        for slot in range(committed.plan.instances):
            proof = self.proofs.get((committed.number, slot))
            assert proof is not None and proof.ready, f"slot {slot} was never ready"
            assert proof.healthy or not committed.plan.confirm, f"slot {slot} was never healthy"

    def act(self, before: Service, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Spawn():
                    self.spawned((effect.generation, effect.slot, effect.attempt))
                case Signal():
                    self.signalled(before, effect)
                case KillTree():
                    self.killed((effect.generation, effect.slot, effect.attempt))
                case Retired(number):
                    assert not [name for name, item in self.processes.items() if item.alive and name[0] == number]
                case HandoverNews(number, None):
                    generation = self.service.generation(number)
                    assert generation is None or generation.state is GenerationState.FAILED

    def spawned(self, name: Name) -> None:
        number, slot, _ = name
        service = self.service
        assert name not in self.processes, "an attempt is named once"
        generation, handover = service.generation(number), service.handover
        assert generation is not None
        if generation.state is GenerationState.COMMITTED:
            assert service.want_up and service.hold is None and not cleared(service)
            for other, item in self.processes.items():
                newer = service.generation(other[0])
                if item.alive and newer is not None and newer.number > number and newer.plan.policy == "replace":
                    raise AssertionError(f"{name} was started beside {other}, which must be the only one")
        else:
            assert handover is not None and handover.generation == number and generation.state in PROVISIONAL
            assert handover.phase not in (Phase.QUEUED, Phase.CLEARING)
            assert (slot == THROWAWAY_SLOT) == (handover.phase is Phase.TRYING)
            if generation.plan.policy == "replace":
                old = service.committed.number if service.committed else -1
                assert not [other for other, item in self.processes.items() if item.alive and other[0] == old]
        assert not [other for other, item in self.processes.items() if item.alive and other[:2] == (number, slot)]
        self.processes[name] = Process()

    def signalled(self, before: Service, effect: Signal) -> None:
        name = (effect.generation, effect.slot, effect.attempt)
        process = self.processes[name]
        generation = self.service.generation(effect.generation)
        assert generation is not None
        if effect.signal in ("WINCH", "TTIN"):
            process.parked = effect.signal == "WINCH"
        if effect.signal == "WINCH":
            assert soaks(self.service) and generation.state is GenerationState.COMMITTED
        elif effect.signal == "TTIN":
            assert not soaks(self.service)
        elif generation.state is GenerationState.COMMITTED:
            asked = not self.service.want_up or cleared(self.service) or cleared(before)
            assert asked or process.unwell or process.told or effect.slot >= THROWAWAY_SLOT
            process.told = True
        else:
            assert generation.state in ENDING or effect.slot >= THROWAWAY_SLOT
            process.told = True

    def killed(self, name: Name) -> None:
        generation = self.service.generation(name[0])
        process = self.processes.get(name)
        if generation is not None and process is not None and generation.state is GenerationState.COMMITTED:
            assert process.told or not process.ready, "a committed process that was ready is only killed after a stop"
            process.told = True

    # who gives orders

    @initialize(plan=PLANS, committed=st.booleans())
    def a_first_release(self, plan: GenerationPlan, committed: bool) -> None:
        self.begin(plan, False)
        if committed:
            self.go_on_to_the_end()
            assert self.service.committed is not None

    @precondition(lambda self: self.service.handover is not None)
    @rule()
    def go_on(self) -> None:
        """What a deploy that goes well would bring next; random events alone would hardly ever commit."""
        handover = self.service.handover
        if handover is None:
            return
        match handover.phase:
            case Phase.QUEUED:
                self.take(Go())
            case Phase.TRYING | Phase.STARTING:
                self.all_get_well()
                self.now_s += 2.0
                self.take(Tick())
            case Phase.CLEARING:
                self.all_that_were_told_end()
            case Phase.PROVEN:
                self.take(Soak())
            case Phase.SOAKING:
                self.now_s += 20.0
                self.take(Tick())
            case Phase.SOAKED:
                self.take(Commit())

    @rule()
    def go_on_to_the_end(self) -> None:
        for _ in range(15):
            self.go_on()

    @rule(plan=PLANS, rounds=st.integers(1, 7))
    def deploy(self, plan: GenerationPlan, rounds: int) -> None:
        """Some way into a handover."""
        self.begin(plan, False)
        for _ in range(rounds):
            self.go_on()

    @rule(plan=PLANS, queued=st.booleans())
    def begin(self, plan: GenerationPlan, queued: bool) -> None:
        self.number += 1
        before = self.service
        generation = Generation(self.number, f"release{self.number}", GenerationState.PREPARED, plan)
        self.take(Begin(generation, queued))
        if before.handover is not None or before.candidate is not None:
            assert self.service is before

    @precondition(lambda self: self.service.generations)
    @rule()
    def a_number_again(self) -> None:
        before = self.service
        number = before.generations[-1].number
        self.take(Begin(Generation(number, "again", GenerationState.PREPARED, GenerationPlan())))
        assert self.service is before

    @rule(event=st.sampled_from((Go(), Soak(), Commit(), Commit(), Tick(), Revert("no"), Want(True), Want(False))))
    def order(self, event: Event) -> None:
        self.take(event)

    @rule(seldom=st.integers(0, 9))
    def remove(self, seldom: int) -> None:
        if seldom == 0:
            self.take(Remove())

    @rule(ttl_s=st.sampled_from((None, 5.0, 50.0)))
    def hold(self, ttl_s: float | None) -> None:
        self.take(SetHold(None if ttl_s is None else Hold("monit", 1, self.now_s + ttl_s)))

    @rule(plan=PLANS, rounds=st.integers(1, 6), data=st.data())
    def give_up(self, plan: GenerationPlan, rounds: int, data: st.DataObject) -> None:
        """Some way into a handover, and back."""
        self.deploy(plan, rounds)
        candidate = self.service.candidate
        mine = [
            name for name, item in self.processes.items() if item.alive and candidate and name[0] == candidate.number
        ]
        bad = data.draw(st.sampled_from([None, *sorted(mine)]))
        if bad is None:
            self.take(Revert("given up"))
        else:
            self.processes[bad].alive = False
            self.take(Ended(*bad, "crashed", 1))

    # what processes do

    def pick(self, data: st.DataObject, alive: bool = True) -> Name | None:
        names = sorted(name for name, item in self.processes.items() if item.alive or not alive)
        return data.draw(st.sampled_from(names)) if names else None

    @rule(data=st.data())
    def appear(self, data: st.DataObject) -> None:
        names = sorted(name for name, item in self.processes.items() if item.alive and not item.seen)
        if names:
            name = data.draw(st.sampled_from(names))
            self.processes[name].seen = True
            self.take(Spawned(*name, pid=100))

    @rule(data=st.data(), healthy=st.booleans())
    def get_ready(self, data: st.DataObject, healthy: bool) -> None:
        name = self.pick(data)
        if name is not None:
            process = self.processes[name]
            process.ready = True
            self.proofs[name[:2]] = process
            self.take(Ready(*name))
            if healthy:
                process.healthy = True
                self.take(Healthy(*name))

    @rule()
    def all_get_well(self) -> None:
        """As it mostly goes; random events alone would hardly ever prove three instances."""
        for name, process in sorted(self.processes.items()):
            if process.alive:
                if not process.seen:
                    process.seen = True
                    self.take(Spawned(*name, pid=100))
                process.ready = process.healthy = True
                self.proofs[name[:2]] = process
                self.take(Ready(*name))
                self.take(Healthy(*name))

    @rule(data=st.data(), code=st.sampled_from((0, 1, None)))
    def end(self, data: st.DataObject, code: int | None) -> None:
        name = self.pick(data)
        if name is not None:
            self.processes[name].alive = False
            effects = self.take(Ended(*name, "ended", code))
            assert Sweep(*name) in effects, "whatever ends is swept"

    @rule()
    def all_that_were_told_end(self) -> None:
        for name, process in sorted(self.processes.items()):
            if process.alive and process.told:
                process.alive = False
                self.take(Ended(*name, "stopped", 0))

    @rule(data=st.data(), refuted=st.booleans())
    def be_bad(self, data: st.DataObject, refuted: bool) -> None:
        name = self.pick(data)
        if name is not None:
            self.processes[name].unwell = self.processes[name].unwell or not refuted
            self.take(Refuted(*name, "answered 500") if refuted else Unhealthy(*name, "answered 500"))

    @rule(data=st.data(), kind=st.integers(0, 5))
    def something_late(self, data: st.DataObject, kind: int) -> None:
        """Words of the dead change nothing."""
        names = sorted(name for name, item in self.processes.items() if not item.alive)
        if not names:
            return
        name = data.draw(st.sampled_from(names))
        current = next((item.attempt for item in self.service.of(name[0]) if item.slot == name[1]), None)
        event = (Ready(*name), Healthy(*name), Refuted(*name, "late"), Unhealthy(*name, "late"), Extended(*name, 99.0))
        before = self.service
        self.take(event[kind] if kind < 5 else Ended(*name, "again", 1))
        if current != name[2] and wake_s(before) is None:
            assert self.service == before

    # time, and the death of the agent

    @rule(seconds=st.sampled_from((0.1, 1.0, 11.0, 70.0)))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.take(Tick())

    @precondition(lambda self: wake_s(self.service) is not None)
    @rule()
    def wake(self) -> None:
        woken = wake_s(self.service)
        assert woken is not None
        self.now_s = max(self.now_s, woken)
        for _ in range(10):
            self.take(Tick())
            woken = wake_s(self.service)
            if woken is None or woken > self.now_s:
                return
        raise AssertionError(f"ticks do nothing: {self.service}")

    @rule()
    def the_agent_dies(self) -> None:
        """It comes back with the store and the keeper's table, in which what has ended was acknowledged."""
        before = self.service
        live = tuple(Spawned(*name, pid=100) for name, item in sorted(self.processes.items()) if item.alive)
        for process in self.processes.values():
            process.seen = True
        self.processes = {name: item for name, item in self.processes.items() if item.alive}
        self.service, effects = restore(durable(before), live, (), self.now_s)
        self.moved(before)
        for effect in effects:
            if isinstance(effect, KillTree):
                assert self.service.generation(effect.generation) is None
        self.act(before, effects)

    # what always holds

    @invariant()
    def one_is_committed_at_most_and_one_is_tried(self) -> None:
        states = [item.state for item in self.service.generations]
        assert states.count(GenerationState.COMMITTED) <= 1
        assert sum(state in PROVISIONAL for state in states) <= 1
        assert (self.service.handover is not None) == (self.service.candidate is not None)
        assert GenerationState.RETIRED not in states

    @invariant()
    def memory_and_processes_agree(self) -> None:
        live = {name for name, item in self.processes.items() if item.alive}
        known = {(i.generation, i.slot, i.attempt) for i in self.service.instances if i.state in ALIVE}
        assert live == known

    @invariant()
    def what_is_wanted_is_alive_or_due(self) -> None:
        committed = self.service.committed
        if committed is None or not self.service.want_up or cleared(self.service):
            return
        for slot in range(committed.plan.instances):
            [item] = [item for item in self.service.of(committed.number) if item.slot == slot]
            waits = item.state is InstanceState.WAITING and (item.due_s > self.now_s or self.service.hold is not None)
            over = slot in committed.finished and committed.plan.restart_on != "always"
            assert item.state in ALIVE or waits or over
            if waits:
                assert wake_s(self.service) is not None

    @invariant()
    def what_ends_has_an_end(self) -> None:
        """Every process that should not go on has a deadline, and something that wakes it."""
        woken = wake_s(self.service)
        for item in self.service.instances:
            generation = self.service.generation(item.generation)
            assert generation is not None
            if item.state in (InstanceState.STOPPING, InstanceState.KILLING):
                assert item.deadline_s and woken is not None and woken <= item.deadline_s
            if generation.state in ENDING:
                assert item.state in (InstanceState.STOPPING, InstanceState.KILLING)

    @invariant()
    def orders_are_for_the_committed_alone(self) -> None:
        orders = standing_orders(self.service)
        if orders:
            committed = self.service.committed
            assert committed is not None and self.service.want_up and self.service.hold is None
            assert {item.generation for item in orders.values()} == {committed.number}

    @invariant()
    def nobody_is_left_parked(self) -> None:
        if not soaks(self.service):
            for item in self.service.instances:
                if item.state in SERVING:
                    assert not item.parked
                    assert not self.processes[item.generation, item.slot, item.attempt].parked

    def teardown(self) -> None:
        """Whatever happened: put back, left alone, it comes to rest with the committed generation alone."""
        self.take(Revert("the end"))
        self.take(SetHold(None))
        for _ in range(60):
            for name, process in sorted(self.processes.items()):
                generation = self.service.generation(name[0])
                if process.alive and generation is not None and generation.state in ENDING:
                    process.alive = False
                    self.take(Ended(*name, "stopped", 0))
            self.now_s += 100.0
            self.take(Tick())
            for name, process in sorted(self.processes.items()):
                if process.alive and process.told:
                    process.alive = False
                    self.take(Ended(*name, "stopped", 0))
            self.all_get_well()
        assert all(item.state is GenerationState.COMMITTED for item in self.service.generations), self.service
        assert not any(item.parked for item in self.service.generations)
        committed = self.service.committed
        if committed is not None and self.service.want_up:
            alive = {item.slot for item in self.service.of(committed.number) if item.state is InstanceState.READY}
            assert alive | set(committed.finished) == set(range(committed.plan.instances)), self.service


TestOneService = OneService.TestCase
TestOneService.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
