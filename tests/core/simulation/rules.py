"""What must hold after every step of every history (DESIGN 2), and what must be once the host has come to rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from midstream.core.generation import ENDING, PROVISIONAL, GenerationState
from midstream.core.instance import ALIVE, THROWAWAY_SLOT, InstanceState
from midstream.core.intent import IntentState
from midstream.core.phases import Phase
from midstream.core.service import Service, cleared, soaks, standing_orders
from simulation.disk import Truth
from simulation.kernel import UNPROVABLE, Process

if TYPE_CHECKING:
    from simulation.world import World


class Broken(AssertionError):
    """A rule does not hold."""


class Rules:
    def __init__(self, world: World) -> None:
        self.world = world
        self.hurt: set[tuple[str, int, int]] = set()  # slots that lost a process by a fault and are not ready again
        self.over: dict[tuple[str, int, int], bool] = {}  # slots that ended by themselves: whether surely for good
        self.rebooted = False  # then nobody knows any more what had ended for good
        self.rested: set[str] = set()  # services that were quiet or cleared: going back starts again what had ended
        self.served = False  # the process that is being signalled, until then
        self.proofs: dict[tuple[str, int, int], Process] = {}  # the last process of each slot that was ready

    def expect(self, holds: bool, *words: object) -> None:
        """words: what went wrong, put together only then."""
        if not holds:
            raise Broken(" ".join(str(word) for word in words))

    def views(self, name: str) -> list[Service]:
        """The service as who acts sees it: the agent's memory (in a batch: before and after), else the store."""
        shell = self.world.shell
        if shell is not None and shell.views.get(name):
            return shell.views[name]
        if shell is not None and name in shell.services:
            return [shell.services[name]]
        stored = self.world.disk.truth.services.get(name)
        return [stored] if stored is not None else []

    # processes

    def spawned(self, process: Process, by: str) -> None:
        """A process is only ever started of the committed generation, or of the present candidate, and never twice."""
        name, number, slot, _ = process.key
        views = self.views(name)
        if by == "order" and self.world.keeper.attached is None:
            views = [self.world.last_known[name]]
        allowed = any(_may_run(view, number, slot, by, self.world.now_s) for view in views)
        self.expect(allowed, by, "started", process.key, ", which should not run:", views)
        excused = self.world.disk.was_full or self.rebooted or name in self.rested
        over = self.over.get((name, number, slot), False) and not excused
        self.expect(not over, process.key, "was started, and had ended for good")
        for other in self.world.kernel.live(name):
            self.expect(other.slot != process.slot, process.key, "was started beside", other.key)
            if process.code.plan.policy == "replace" and other.key[1] != number:
                both = other.code.plan.policy == "replace"
                beside = any(_committed(view, other.key[1]) for view in views)
                self.expect(not both and not beside, process.key, "cannot run twice, and was started beside", other.key)

    def ready(self, process: Process) -> None:
        self.hurt.discard(process.slot)
        self.proofs[process.slot] = process

    def died(self, process: Process) -> None:
        name, number, slot, _ = process.key
        if process.told or process.ended == "killed":
            return
        self.hurt.add(process.slot)
        for view in self.views(name):
            item = next((item for item in view.of(number) if item.slot == slot), None)
            told = item is not None and item.state in (InstanceState.STOPPING, InstanceState.KILLING)
            trying = view.candidate is not None and view.candidate.number == number
            resting = view.quiet is not None and view.quiet.generation == number
            wanted = trying or (_committed(view, number) and view.want_up and not cleared(view) and not resting)
            gone = process.ended == "gone with the host"
            if process.code.plan.restart_on != "always" and wanted and not (told or gone):
                surely = process.code.plan.restart_on == "never" and not process.sick
                self.over[name, number, slot] = surely

    def told(self, process: Process, signal: str) -> None:
        """The committed generation is left alone: signalled only to be parked in a soak, or for a cause."""
        name, number, slot, _ = process.key
        self.served = process.serves
        plan = process.code.plan
        views = self.views(name)
        states = [generation.state for view in views if (generation := view.generation(number)) is not None]
        late = signal == "KILL" and process.by == "order"  # its generation was gone when it was seen
        self.expect(bool(states) or late, signal, "to", process.key, "of a generation that is not recorded:", views)
        if plan.quiet_signal and signal == plan.quiet_signal:
            self._quieted(process, views, states)
            return
        again = signal == plan.drain_signal and process.noted and not self.world.disk.was_full
        self.expect(not again, process.key, "was told to drain twice: that kills the jobs of some workers")
        if signal == plan.park_signal:
            self.expect(any(soaks(view) for view in views), process.key, "was parked and nothing soaks")
        elif signal != plan.unpark_signal and states and not any(state in ENDING for state in states):
            late_s = process.born_s + plan.start_timeout_s
            hung = (
                self.world.now_s >= late_s and process.ready_s > late_s - 0.5
            )  # ready as it was given up on, or never
            cause = process.sick or process.told or hung or slot >= THROWAWAY_SLOT
            committed = GenerationState.COMMITTED in states
            # The step from trying to starting was not stored, and the agent died: it tries again.
            cause = cause or (not committed and self.world.disk.was_full)
            cause = cause or (committed and any(not view.want_up or cleared(view) for view in views))
            resting = [view.quiet.generation for view in views if view.quiet is not None and view.quiet.cold]
            cause = cause or (signal == plan.drain_signal and number in resting)
            # A stop that was asked for and taken back tells a quieted worker nothing more, and has its deadline.
            cause = cause or (signal == "KILL" and process.hushed and plan.quiet_once)
            self.expect(cause, signal, "to", process.key, "without a cause:", states)
            if committed:
                self.hurt.add(process.slot)

    def _quieted(self, process: Process, views: list[Service], states: list[GenerationState]) -> None:
        """It is told once where a second time does harm, never before it knows the signal, and only for a cause."""
        twice = process.hushed and process.code.plan.quiet_once and not self.world.disk.was_full
        self.expect(not twice, process.key, "was told to be quiet twice: that kills the job of some workers")
        self.expect(process.ready, process.key, "was told to be quiet before it could know what that is")
        asked = any(view.quiet is not None and view.quiet.generation == process.key[1] for view in views)
        ends = any(state in ENDING for state in states)
        self.expect(asked or ends, process.key, "was told to be quiet without a cause:", states)

    def after_told(self, process: Process, signal: str) -> None:
        """Telling it must not have been the end of the service."""
        name, number, _, _ = process.key
        views = self.views(name)
        serving = [item for item in self.world.kernel.live(name) if item.serves]
        for view in views:
            committed = view.committed
            generation = view.generation(number)
            if committed is None or not view.want_up or view.hold or cleared(view):
                return
            if view.quiet is not None and view.quiet.deadline_s:
                return
            if committed.copy_of:
                return  # going back from quiet workers: jobs wait until the fresh ones have booted
            failed = generation is not None and generation.state is GenerationState.FAILED
            if failed and process.ready and not soaks(view):
                live = self.world.kernel.live(name)
                asleep = [item.key for item in live if item.parked and item.ready and not item.told]
                asleep = [key for key in asleep if key[1] == committed.number]
                self.expect(not asleep, process.key, "was told", signal, "while", asleep, "still paused")
        if self.served and not serving:
            hurt = [slot for slot in self.hurt if slot[0] == name]
            self.expect(bool(hurt), signal, "to", process.key, "left nobody to serve:", views)

    # the store

    def stored(self, before: Truth, after: Truth) -> None:
        """One committed generation a service; all services of the app together; nothing unproven."""
        for name, service in after.services.items():
            committed = [item for item in service.generations if item.state is GenerationState.COMMITTED]
            self.expect(len(committed) <= 1, name, "has two committed generations")
            number = committed[0].number if committed else 0
            known = before.services.get(name)
            for item in service.generations:
                was = known.generation(item.number) if known is not None else None
                if was is not None and was.state is not item.state:
                    self.world.say("store:", name, item.number, "is", item.state.value)
            if number and (known is None or known.committed is None or known.committed.number != number):
                self._committed(name, service, number)
            self.expect(
                number in (0, after.committed) or committed[0].release == after.release,
                name,
                "is on",
                number,
                "and the app on",
                after.committed,
                ": torn apart",
            )
        if after.committed != before.committed:
            self.expect(after.intent is not None and after.intent.state is IntentState.COMMITTED, "no intent decided")
            for name in self.world.releases[after.release]:
                service = after.services[name]
                self.expect(service.committed is not None and service.committed.number == after.committed, name, "torn")

    def _committed(self, name: str, service: Service, number: int) -> None:
        generation = service.generation(number)
        assert generation is not None
        if generation.copy_of:
            self.world.say("store:", name, number, "takes over from a quiet one")
            return  # a fresh one of what was committed
        for process in self.world.kernel.live(name):
            if process.key[1] < number and process.code.plan.quiet_signal and generation.plan.policy == "drain":
                self.expect(not process.fetches, process.key, "still fetches, and", number, "is committed")
        code = self.world.code_of(name, number)
        if generation.plan.confirm:
            self.expect(code.quality not in UNPROVABLE, name, number, "was committed and", code.quality.value)
        for slot in range(generation.plan.instances):
            proof = self.proofs.get((name, number, slot))
            self.expect(proof is not None, name, "/", number, "/", slot, "was committed and was never ready")
            assert proof is not None
            self.expect(proof.answered or not generation.plan.confirm, proof.key, "was committed and never answered")
            unseen = (name, number, slot) in self.hurt
            self.expect(proof.alive or unseen, proof.key, "was committed and is gone")

    # the agent at rest: memory, kernel and keeper agree

    def idle(self) -> None:
        """While a service is wanted each of its slots is alive or due; nothing else lives; nobody is left parked."""
        shell = self.world.shell
        assert shell is not None
        for name, service in shell.services.items():
            if service.quiet is not None or cleared(service):
                self.rested.add(name)
            known = {(item.generation, item.slot): item for item in service.instances}
            live = {item.key[1:3]: item for item in self.world.kernel.live(name)}
            for place, process in live.items():
                instance = known.get(place)
                fits = instance is not None and instance.attempt == process.key[3] and instance.state in ALIVE
                self.expect(fits, process.key, "lives, and the agent has", instance)
                ends = instance is not None and instance.state in (InstanceState.STOPPING, InstanceState.KILLING)
                ends = ends or (service.quiet is not None and service.quiet.cold)
                taken_on = process.told and not ends and not self.world.disk.was_full
                self.expect(not taken_on, process.key, "was told to end, and the agent has", instance)
                process.noted = process.noted or (0.0 < process.drained_s < self.world.now_s - 0.1 and not shell.dirty)
                if process.hushed and not process.told:
                    ending = service.generation(place[0])
                    over = ending is not None and ending.state in ENDING
                    full = self.world.disk.was_full  # then a drain that was begun may not be stored
                    self.expect(service.quiet is not None or over or ends or full, process.key, "was left quiet")
                if process.parked and not process.told:
                    ending = service.generation(place[0])
                    over = ending is not None and ending.state in ENDING
                    self.expect(soaks(service) or over, process.key, "was left parked")
            for place, instance in known.items():
                self.expect(instance.state not in ALIVE or place in live, "the agent believes in", instance)
            self._wanted_slots(name, service, live)
            if not shell.dirty:
                self._orders(name, service)

    def _wanted_slots(self, name: str, service: Service, live: dict[tuple[int, int], Process]) -> None:
        committed = service.committed
        if committed is None or not service.want_up or service.hold is not None or cleared(service):
            return
        if service.quiet is not None and service.quiet.generation == committed.number:
            return
        for slot in range(committed.plan.instances):
            over = (name, committed.number, slot) in self.over or self.world.disk.was_full or self.rebooted
            finished = over and slot in committed.finished
            if (committed.number, slot) in live or finished:
                continue
            waiting = [item for item in service.of(committed.number) if item.slot == slot]
            due = bool(waiting) and waiting[0].state is InstanceState.WAITING and waiting[0].due_s > self.world.now_s
            self.expect(due, name, "/", committed.number, "/", slot, "is neither alive nor due:", waiting)

    def _orders(self, name: str, service: Service) -> None:
        wanted = {slot: item.generation for slot, item in standing_orders(service).items()}
        have = {slot: order.place[1] for (owner, slot), order in self.world.keeper.orders.items() if owner == name}
        self.expect(have == wanted, "the keeper's orders for", name, "are", have, ", not", wanted)

    def alone(self) -> None:
        """No agent for a while: what crashed of the committed generations runs again."""
        for (name, slot), order in self.world.keeper.orders.items():
            live = [item for item in self.world.kernel.live(name) if item.slot == order.place]
            recent = order.started_at_s > self.world.now_s - 1.5
            self.expect(bool(live) or recent, name, "/", slot, "is down while the agent is away")

    # the end

    def rest(self) -> None:
        """Old or new, whole, and nothing else."""
        world, truth = self.world, self.world.disk.truth
        intent = truth.intent
        self.expect(intent is None or intent.state is IntentState.CLOSED, "the deploy is left", intent)
        self.expect(truth.committed in {0, *world.asked_to_commit}, truth.committed, "was committed unasked")
        if world.acknowledged:
            self.expect(truth.committed >= max(world.acknowledged), "commit", max(world.acknowledged), "was lost")
        self.expect(truth.committed not in world.given_up, truth.committed, "was reported as put back")
        wanted = set(world.releases[truth.release]) if truth.release else set()
        for name, service in truth.services.items():
            self.expect(service.handover is None, name, "is left in", service.handover)
            self.expect(service.hold is None, name, "is left held")
            self.expect(service.quiet is None, name, "is left quiet")
            states = [(item.copy_of or item.number, item.state.value, item.parked) for item in service.generations]
            expected = [(truth.committed, "committed", False)] if name in wanted else []
            self.expect(states == expected, name, "ended with", states, ", not", expected)
            committed = service.committed
            up = committed is not None and service.want_up
            slots = set(range(committed.plan.instances)) - set(committed.finished) if committed and up else set()
            live = sorted(item.slot for item in world.kernel.live(name))
            number = committed.number if committed else 0
            self.expect(live == [(name, number, slot) for slot in sorted(slots)], name, "ended with", live)
        parked = [item.key for item in world.kernel.live() if item.parked]
        self.expect(not parked, "left parked:", parked)
        silent = [item.key for item in world.kernel.live() if item.hushed]
        self.expect(not silent, "left quiet:", silent)
        left = [key for key, entry in world.keeper.table.items() if not entry.running]
        self.expect(not left, "never acknowledged:", left)


def _committed(view: Service, number: int) -> bool:
    return view.committed is not None and view.committed.number == number


def _may_run(view: Service, number: int, slot: int, by: str, now_s: float) -> bool:
    generation = view.generation(number)
    if generation is None:
        return False
    if generation.state is GenerationState.COMMITTED:
        held = view.hold is not None and view.hold.deadline_s > now_s
        held = held or (view.quiet is not None and view.quiet.generation == number)
        return view.want_up and not held and not cleared(view) and slot < generation.plan.instances
    if generation.state not in PROVISIONAL or by == "order":
        return False
    handover = view.handover
    if handover is None or handover.generation != number or handover.phase in (Phase.QUEUED, Phase.CLEARING):
        return False
    return (slot == THROWAWAY_SLOT) == (handover.phase is Phase.TRYING)
