"""What one event makes of a service: the handover's rules, instance by instance.

Pure. `step` and `restore` are the whole interface. The tables are in `core/instance.py` and `core/generation.py`; what
is left here is what spans several instances or generations. Convergence is level-triggered: it looks at what is, never
at how it came about, so that a crash of the agent between any two effects leads to the same end.
"""

from __future__ import annotations

from dataclasses import replace

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
    Look,
    Note,
    Observed,
    Quieten,
    Ready,
    Refuted,
    Remove,
    Retired,
    Revert,
    Said,
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
from midstream.core.generation import (
    ENDING,
    PROVISIONAL,
    Generation,
    GenerationEvent,
    GenerationPlan,
    GenerationState,
    IllegalTransition,
    Park,
    advance,
    pause_s,
)
from midstream.core.instance import (
    ALIVE,
    JUDGED,
    SERVING,
    TABLE,
    THROWAWAY_SLOT,
    Action,
    Instance,
    InstanceEvent,
    InstanceState,
)
from midstream.core.phases import Handover, Phase, Quiet
from midstream.core.service import Service, cleared, soaks

_DEAF_S = 12.0  # more than the longest time between two heartbeats
_UNSURE_S = 2.0  # a worker that an earlier agent told to be quiet, perhaps, has this long to say so


def step(service: Service, event: Event, now_s: float, luck: float = 0.5) -> tuple[Service, tuple[Effect, ...]]:
    """What `event` makes of `service`, and what is to be done about it. Raises IllegalTransition, nothing changed."""
    turn = _Turn(service, now_s, luck)
    turn.confirm()
    turn.take(event)
    turn.converge()
    return turn.service, tuple(turn.effects)


def restore(
    stored: Service, live: tuple[Spawned, ...], ended: tuple[Ended, ...], now_s: float
) -> tuple[Service, tuple[Effect, ...]]:
    """The service after a restart of the agent: `stored` plus the processes the keeper has, or has seen end.

    A process of a generation that is not recorded is killed: it can only come from a truth that was lost. But for the
    fresh generation that takes over from a quiet one: its number was stored with the quiet, so one process of it tells
    that an earlier agent went back, and that a full disk did not take it.
    """
    turn = _Turn(replace(stored, instances=()), now_s, 0.5)
    if stored.quiet is not None and any(seen.generation == stored.quiet.spare for seen in live):
        turn.go_back_again()
    last = {(seen.generation, seen.slot): seen.attempt for seen in sorted(ended, key=lambda seen: seen.attempt)}
    last.update({(seen.generation, seen.slot): seen.attempt for seen in sorted(live, key=lambda seen: seen.attempt)})
    for seen in live:
        generation = turn.service.generation(seen.generation)
        if generation is None or last[seen.generation, seen.slot] != seen.attempt:
            turn.effects.append(KillTree(seen.generation, seen.slot, seen.attempt))
            turn.effects.append(Note("stray", "a process that nothing accounts for", seen.generation, seen.slot))
        else:
            turn.readopt(seen, generation)
    for gone in ended:
        generation = turn.service.generation(gone.generation)
        if generation is not None and last[gone.generation, gone.slot] == gone.attempt:
            turn.readopt(Spawned(gone.generation, gone.slot, gone.attempt, 0), generation)
        turn.take(gone)
    turn.miss()
    turn.converge()
    return turn.service, tuple(turn.effects)


def goes_quiet(old: Generation, candidate: Generation) -> bool:
    """Whether the old workers must be proven quiet before the new ones are committed."""
    return candidate.plan.policy == "drain" and bool(old.plan.quiet_signal)


def goes_cold(old: Generation, candidate: Generation) -> bool:
    """Whether the old generation drains while the new one soaks."""
    cold = old.plan.park is Park.COLD and candidate.plan.soak_s > 0 and candidate.plan.policy != "replace"
    return cold and not goes_quiet(old, candidate)


class _Turn:
    """One step in the making: mutable, lives for one call."""

    def __init__(self, service: Service, now_s: float, luck: float) -> None:
        self.service = service
        self.now_s = now_s
        self.luck = luck
        self.effects: list[Effect] = []

    def readopt(self, seen: Spawned, generation: Generation) -> None:
        """Takes a process that was there before the agent was. Whether it is ready has to be found out again, but for
        what was proven. Only a prepared generation has to be ready in time: that a committed process said so to the
        agent that died is no reason to kill it. What was told to drain is not told again."""
        prepared = generation.state is GenerationState.PREPARED
        proven = generation.state in PROVISIONAL and not prepared
        known = Instance(
            seen.generation,
            seen.slot,
            InstanceState.READY if proven else InstanceState.RUNNING,
            attempt=seen.attempt,
            pid=seen.pid,
            since_s=self.now_s,
            deadline_s=self.now_s + generation.plan.start_timeout_s if prepared else 0.0,
            healthy_since_s=self.now_s if proven else 0.0,
            parked=generation.parked,
        )
        quieted = (seen.slot, seen.attempt) in generation.quieted
        known = replace(known, quieted=quieted, unsure=quieted, told_s=self.now_s if quieted else 0.0)
        told = (seen.slot, seen.attempt) in generation.told
        if generation.state in ENDING and told:
            known = replace(known, state=InstanceState.STOPPING, draining=True, deadline_s=generation.deadline_s)
        self._put(known)
        if seen.pid and generation.state is GenerationState.COMMITTED and told:
            self._apply(replace(known, again=True), InstanceEvent.STOP, "it was being stopped")
            return
        if seen.pid and generation.state not in ENDING:
            confirm = prepared and (generation.plan.confirm or seen.slot >= THROWAWAY_SLOT)
            self.effects.append(Watch(seen.generation, seen.slot, seen.attempt, confirm, ready=proven))

    def go_back_again(self) -> None:
        """An earlier agent ended the quiet; the same again, with what is stored."""
        candidate = self.service.candidate
        if candidate is not None:
            self._take_away(candidate, "an earlier agent went back from it")
            self.effects.append(HandoverNews(candidate.number, None, "an earlier agent went back from it"))
            self.service = replace(self.service, handover=None)
        self._relieve(told=True)

    def miss(self) -> None:
        """A proven generation that lost a process while nobody looked is proven no longer, and is not filled up."""
        candidate = self.service.candidate
        if candidate is not None and candidate.state is not GenerationState.PREPARED:
            missing = self._targets(candidate) - {item.slot for item in self.service.of(candidate.number)}
            if missing:
                self._fail(candidate.number, f"instance {min(missing)} was lost before it was committed")

    def confirm(self) -> None:
        """Stores which signals were sent, once they surely were: in a turn of a later time than the one that sent them
        (the shell may take several turns before it acts, at one time). An agent that dies in between sends them again;
        later ones do not, because for some a second TERM kills the job in hand."""
        for item in self.service.instances:
            if not item.signalled_s or item.signalled_s >= self.now_s:
                continue
            self._put(replace(item, signalled_s=0.0))
            generation = self.service.generation(item.generation)
            if generation is not None and generation.state in ENDING:
                self._remember_told(item)

    # events

    def take(self, event: Event) -> None:
        match event:
            case Spawned():
                self._instance_event(event, InstanceEvent.SPAWNED, pid=event.pid)
            case Ended():
                self._ended(event)
            case Ready():
                self._ready(event)
            case Healthy():
                self._healthy(event)
            case Refuted():
                found = self._find(event)
                if found is not None and found.state in JUDGED:
                    self._fail(event.generation, event.reason)
            case Unhealthy():
                self._unhealthy(event)
            case Extended():
                found = self._find(event)
                if found is not None and found.deadline_s:
                    self._put(replace(found, deadline_s=max(found.deadline_s, self.now_s + event.extra_s)))
            case Said():
                found = self._find(event)
                if found is not None:
                    self._put(replace(found, status_text=event.text))
            case Observed():
                self._observed(event)
            case Tick():
                self._tick()
            case _:
                self._command(event)

    def _command(self, event: Event) -> None:
        match event:
            case Begin():
                self._begin(event)
            case Go():
                self._enter_first_phase()
            case Soak():
                self._soak()
            case Commit():
                self._commit()
            case Revert():
                self._revert(event.reason)
            case Want():
                self._want(event.up)
            case SetHold():
                self.service = replace(self.service, hold=event.hold)
            case Quieten():
                self._quieten(event)
            case Waken():
                self._relieve()
            case Remove():
                self._remove()

    def _find(
        self, event: Spawned | Ended | Ready | Healthy | Refuted | Unhealthy | Extended | Said | Observed
    ) -> Instance | None:
        """The instance that the event speaks of; None when it speaks of an earlier attempt."""
        for item in self.service.instances:
            if (item.generation, item.slot) == (event.generation, event.slot):
                return item if item.attempt == event.attempt else None
        return None

    def _put(self, instance: Instance) -> None:
        key = (instance.generation, instance.slot)
        kept = [item for item in self.service.instances if (item.generation, item.slot) != key]
        ordered = sorted([*kept, instance], key=lambda item: (item.generation, item.slot))
        self.service = replace(self.service, instances=tuple(ordered))

    def _drop(self, instance: Instance) -> None:
        key = (instance.generation, instance.slot)
        kept = tuple(item for item in self.service.instances if (item.generation, item.slot) != key)
        self.service = replace(self.service, instances=kept)

    def _put_generation(self, generation: Generation) -> None:
        kept = [item for item in self.service.generations if item.number != generation.number]
        ordered = sorted([*kept, generation], key=lambda item: item.number)
        self.service = replace(self.service, generations=tuple(ordered))

    def _advance(self, generation: Generation, event: GenerationEvent, note: str = "") -> Generation:
        state = advance(generation.state, event)
        after = replace(generation, state=state, since_s=self.now_s, note=note or generation.note)
        self._put_generation(after)
        self._note(
            "generation",
            f"{generation.state.value} -> {state.value}{': ' + note if note else ''}",
            after.number,
        )
        return after

    def _note(self, kind: str, text: str, generation: int = 0, slot: int = -1) -> None:
        self.effects.append(Note(kind, text, generation, slot))

    def _enter(self, phase: Phase) -> None:
        handover = self.service.handover
        assert handover is not None
        self.service = replace(self.service, handover=replace(handover, phase=phase, since_s=self.now_s))

    # instances

    def _instance_event(
        self,
        event: Spawned | Ended | Ready | Unhealthy,
        kind: InstanceEvent,
        *,
        pid: int = 0,
        why: str = "",
    ) -> None:
        instance = self._find(event)
        if instance is None:
            if isinstance(event, Ended):
                self.effects.append(Sweep(event.generation, event.slot, event.attempt))
            elif isinstance(event, Spawned) and self._is_newer(event):
                self._adopt(event)
            elif isinstance(event, Spawned):
                self._note("stray", "a process beside a later one, or of no generation", event.generation, event.slot)
                self.effects.append(KillTree(event.generation, event.slot, event.attempt))
            return
        if pid:
            instance = replace(instance, pid=pid)
        self._apply(instance, kind, why)

    def _is_newer(self, event: Spawned) -> bool:
        """A process that the keeper started by its standing order."""
        generation = self.service.generation(event.generation)
        known = next(
            (i for i in self.service.instances if (i.generation, i.slot) == (event.generation, event.slot)),
            None,
        )
        return generation is not None and (known is None or known.attempt < event.attempt)

    def _adopt(self, event: Spawned) -> None:
        old = next(
            (i for i in self.service.instances if (i.generation, i.slot) == (event.generation, event.slot)),
            None,
        )
        restarts = old.restarts + 1 if old else 0
        if old is not None:
            self.effects.append(Sweep(old.generation, old.slot, old.attempt))
        self._apply(
            Instance(
                event.generation,
                event.slot,
                InstanceState.STARTING,
                attempt=event.attempt,
                pid=event.pid,
                restarts=restarts,
                why="started by the keeper's standing order",
            ),
            InstanceEvent.SPAWNED,
        )

    def _apply(self, instance: Instance, kind: InstanceEvent, why: str = "") -> None:
        """Looks the event up in the table and performs the action."""
        state, action = TABLE[instance.state, kind]
        generation = self.service.generation(instance.generation)
        assert generation is not None
        plan = generation.plan
        after = instance
        if state is not instance.state:
            after = replace(instance, state=state, since_s=self.now_s, deadline_s=0.0, why=why or instance.why)
        name = (instance.generation, instance.slot, instance.attempt)
        match action:
            case Action.SPAWN:
                after = replace(after, deadline_s=self.now_s + plan.start_timeout_s)
                self.effects.append(Spawn(*name))
            case Action.WATCH:
                after = replace(after, deadline_s=self.now_s + plan.start_timeout_s)
                self._started_again(generation, instance.slot)
                confirm = generation.state in PROVISIONAL and plan.confirm
                self.effects.append(Watch(*name, confirm or instance.is_throwaway))
            case Action.SIGNAL:
                after = self._signal(after, generation)
            case Action.KILL:
                after = replace(after, deadline_s=self.now_s + max(2.0, plan.stop_timeout_s))
                self.effects.append(KillTree(*name))
            case Action.SETTLE:
                self._put(after)
                self._settle(after, generation)
                return
            case Action.CANCEL:
                if self._is_kept(instance, generation):
                    self._put(after)
                else:
                    self._drop(instance)
                return
            case Action.NONE:
                pass
        if state is InstanceState.READY and instance.state is not InstanceState.READY:
            after = self._became_ready(after, generation)
        self._put(after)

    def _became_ready(self, instance: Instance, generation: Generation) -> Instance:
        if generation.state in PROVISIONAL and (generation.plan.confirm or instance.is_throwaway):
            # The shell's own check gives up first and says why; this is the backstop.
            return replace(instance, deadline_s=self.now_s + generation.plan.healthy_timeout_s + 5.0)
        return replace(instance, healthy_since_s=self.now_s, deadline_s=0.0)

    def _signal(self, instance: Instance, generation: Generation, cut: bool = False) -> Instance:
        """cut: whatever it has in hand."""
        name = (instance.generation, instance.slot, instance.attempt)
        plan = generation.plan
        if instance.draining:
            if not instance.quieted:  # else it was told, by the same or a stronger word
                self.effects.append(Signal(*name, plan.drain_signal))
            deadline = generation.deadline_s or self.now_s + plan.drain_timeout_s
            told_s = instance.told_s or self.now_s
            return replace(instance, deadline_s=max(deadline, self.now_s), signalled_s=self.now_s, told_s=told_s)
        again = instance.quieted and plan.quiet_once and not cut
        if not again:
            self.effects.append(Signal(*name, plan.stop_signal))
        return replace(instance, deadline_s=self.now_s + plan.stop_timeout_s)

    def _ended(self, event: Ended) -> None:
        instance = self._find(event)
        generation = self.service.generation(event.generation)
        self.effects.append(Sweep(event.generation, event.slot, event.attempt))
        if instance is None or generation is None:
            return
        ok = event.code is not None and event.code in generation.plan.ok_codes
        stopped = instance.state in (InstanceState.STOPPING, InstanceState.KILLING)
        self._put(replace(instance, last_exit=event.text))
        self._note("stopped" if stopped else "exited", event.text, event.generation, event.slot)
        wanted = event.slot in self._targets(generation)
        if not stopped and wanted and generation.state in PROVISIONAL:
            what = "the throw-away instance" if instance.is_throwaway else f"instance {instance.slot}"
            self._fail(event.generation, f"{what} {event.text} before it was committed")
        found = self._find(event)
        if found is None:
            return
        again = generation.plan.restart_on == "always" or (generation.plan.restart_on == "failure" and not ok)
        again = again or not event.ran or (event.slot, event.attempt) in generation.told
        self._apply(replace(found, again=found.again or again or stopped), InstanceEvent.ENDED)

    def _settle(self, instance: Instance, generation: Generation) -> None:
        """The process is gone. A slot of the committed generation that is wanted now is filled again, whyever it ended;
        but for what ended by itself, there `restart_on` decides."""
        generation = self.service.generation(generation.number) or generation
        if not self._is_kept(instance, generation):
            self._drop(instance)
            return
        if instance.slot not in self._targets(generation):
            return
        if not instance.again:
            self._put_generation(replace(generation, finished=(*generation.finished, instance.slot)))
            return
        lived = self.now_s - instance.healthy_since_s if instance.healthy_since_s else 0.0
        streak = 1 if lived >= generation.plan.backoff_reset_s else instance.streak + 1
        pause = pause_s(generation.plan, streak, self.luck)
        self._put(
            Instance(
                instance.generation,
                instance.slot,
                InstanceState.WAITING,
                attempt=instance.attempt + 1,
                since_s=self.now_s,
                due_s=self.now_s + pause,
                streak=streak,
                restarts=instance.restarts + 1,
                last_exit=instance.last_exit,
                why=instance.why or f"crashed: {instance.last_exit}",
            )
        )
        if pause:
            self._note("backoff", f"start again in {pause:.1f} s", instance.generation, instance.slot)

    def _is_kept(self, instance: Instance, generation: Generation) -> bool:
        """Whether its last attempt must be remembered once it has ended, so that the next one gets another name."""
        lasting = generation.state is GenerationState.COMMITTED or generation.state in PROVISIONAL
        return lasting and instance.slot < generation.plan.instances

    def _ready(self, event: Ready) -> None:
        self._instance_event(event, InstanceEvent.READY)

    def _healthy(self, event: Healthy) -> None:
        instance = self._find(event)
        if instance is None or instance.state not in (InstanceState.READY, InstanceState.RUNNING):
            return
        if instance.state is InstanceState.RUNNING:
            self._apply(instance, InstanceEvent.READY)
            instance = self._find(event)
            assert instance is not None
        if not instance.healthy_since_s or instance.deadline_s:
            self._put(replace(instance, healthy_since_s=instance.healthy_since_s or self.now_s, deadline_s=0.0))

    def _unhealthy(self, event: Unhealthy) -> None:
        generation = self.service.generation(event.generation)
        instance = self._find(event)
        if generation is None or instance is None:
            return
        if generation.state in PROVISIONAL and instance.state in JUDGED:
            self._fail(event.generation, event.reason)
        elif generation.state is GenerationState.COMMITTED and instance.state in SERVING and not instance.parked:
            self._note("unhealthy", event.reason, event.generation, event.slot)
            self._put(replace(instance, again=True))
            self._remember_told(instance)
            self._instance_event(event, InstanceEvent.UNHEALTHY, why=event.reason)

    def _tick(self) -> None:
        hold = self.service.hold
        if hold is not None and hold.deadline_s <= self.now_s:
            self._note("hold", f"the hold of {hold.owner} ran out")
            self.service = replace(self.service, hold=None)
        quiet = self.service.quiet
        if quiet is not None and quiet.deadline_s and quiet.deadline_s <= self.now_s:
            self._relieve()
        for instance in self.service.instances:
            if instance.deadline_s and instance.deadline_s <= self.now_s and instance.state in ALIVE:
                self._deadline(instance)
        for instance in self.service.instances:
            generation = self.service.generation(instance.generation)
            if not instance.streak or not instance.healthy_since_s or generation is None:
                continue
            if self.now_s >= instance.healthy_since_s + generation.plan.backoff_reset_s:
                self._put(replace(instance, streak=0))

    def _deadline(self, instance: Instance) -> None:
        generation = self.service.generation(instance.generation)
        assert generation is not None
        if instance.state is InstanceState.STOPPING and instance.draining:
            self._note("drain", "drain time-out: what is unfinished is cut", instance.generation, instance.slot)
            self._put(self._signal(replace(instance, draining=False), generation, cut=True))
            return
        if generation.state in ENDING and instance.state in JUDGED:
            return  # another one's time-out failed the generation just now; it is stopped like any other
        if instance.state is InstanceState.READY and generation.state in PROVISIONAL:
            self._fail(
                generation.number,
                f"no health check was answered within {generation.plan.healthy_timeout_s:g} s",
            )
            return
        if instance.state in (InstanceState.STARTING, InstanceState.RUNNING):
            reason = f"not ready within {generation.plan.start_timeout_s:g} s"
            self._note("timeout", reason, instance.generation, instance.slot)
            if generation.state in PROVISIONAL:
                self._fail(generation.number, f"instance {instance.slot} was {reason}")
                return
            instance = replace(instance, again=True)
            self._remember_told(instance)
        self._apply(instance, InstanceEvent.DEADLINE)

    def _remember_told(self, instance: Instance) -> None:
        """For an agent that comes back: it would else take the end for the last one (`restart_on`), or go on with a
        process that was told to stop and serves no longer."""
        generation = self.service.generation(instance.generation)
        if generation is not None and (generation.state is GenerationState.COMMITTED or generation.state in ENDING):
            told = {*generation.told, (instance.slot, instance.attempt)}
            self._put_generation(replace(generation, told=tuple(sorted(told))))

    def _started_again(self, generation: Generation, slot: int) -> None:
        if generation.state is GenerationState.COMMITTED and any(item[0] == slot for item in generation.told):
            told = tuple(item for item in generation.told if item[0] != slot)
            self._put_generation(replace(generation, told=told))

    # handover

    def _begin(self, event: Begin) -> None:
        if self.service.handover is not None or self.service.candidate is not None:
            raise IllegalTransition("a handover is under way already")
        if event.generation.state is not GenerationState.PREPARED:
            raise IllegalTransition("a handover begins with a prepared generation")
        if any(known.number >= event.generation.number for known in self.service.generations):
            raise IllegalTransition(f"generation {event.generation.number} is not newer than all that there are")
        self._put_generation(replace(event.generation, since_s=self.now_s))
        begun = Handover(event.generation.number, Phase.QUEUED, self.now_s, event.spare)
        self.service = replace(self.service, handover=begun)
        if not event.queued:
            self._enter_first_phase()

    def _enter_first_phase(self) -> None:
        handover = self.service.handover
        if handover is None or handover.phase is not Phase.QUEUED:
            return
        generation = self.service.generation(handover.generation)
        assert generation is not None
        old = self.service.committed
        if generation.plan.policy == "replace":
            self._enter(Phase.CLEARING)
        elif generation.plan.throwaway and old is not None:
            self._enter(Phase.TRYING)
        else:
            self._enter(Phase.STARTING)

    def _soak(self) -> None:
        handover = self.service.handover
        if handover is None or handover.phase is not Phase.PROVEN:
            raise IllegalTransition("only a proven handover can soak")
        generation = self.service.generation(handover.generation)
        assert generation is not None
        self._advance(generation, GenerationEvent.SOAK)
        old = self.service.committed
        if old is not None and goes_quiet(old, generation):
            self._begin_quiet(Quiet(old.number, handover.spare, self.now_s))
            self._enter(Phase.QUIETING)
            return
        self._enter(Phase.SOAKING)
        if old is not None and goes_cold(old, generation):
            self._begin_quiet(Quiet(old.number, handover.spare, self.now_s, cold=True))
            return
        if old is not None and generation.plan.soak_s > 0 and old.plan.park is Park.PAUSE:
            self._put_generation(replace(old, parked=True))
            for item in self.service.of(old.number):
                if item.state in SERVING:
                    self._put(replace(item, parked=True))
                    self.effects.append(Signal(item.generation, item.slot, item.attempt, old.plan.park_signal))

    def _commit(self) -> None:
        handover = self.service.handover
        generation = self.service.generation(handover.generation) if handover else None
        if generation is None or handover is None or handover.phase not in (Phase.PROVEN, Phase.SOAKING, Phase.SOAKED):
            raise IllegalTransition("only a proven handover can be committed")
        old = self.service.committed
        if handover.phase is Phase.PROVEN and old is not None and goes_quiet(old, generation):
            raise IllegalTransition("the old workers are not quiet")
        self._supersede_committed()
        self._advance(generation, GenerationEvent.COMMIT)
        self.service = replace(self.service, handover=None, want_up=True, quiet=None)
        self._retire_surplus(generation.plan.max_draining)

    def _retire_surplus(self, most: int) -> None:
        """Of more than `most` draining generations the oldest have to end now."""
        draining = [item for item in self.service.generations if item.state is GenerationState.DRAINING]
        for surplus in draining[: max(0, len(draining) - most)]:
            self._put_generation(replace(surplus, deadline_s=self.now_s))
            for item in self.service.of(surplus.number):
                if item.state is InstanceState.STOPPING:
                    self._put(replace(item, deadline_s=self.now_s))

    def _supersede_committed(self) -> None:
        old = self.service.committed
        if old is not None:
            after = self._advance(old, GenerationEvent.SUPERSEDE)
            deadline_s = self.now_s + old.plan.drain_timeout_s
            self._put_generation(replace(after, deadline_s=deadline_s, parked=False, told=()))

    def _revert(self, reason: str) -> None:
        candidate = self.service.candidate
        if candidate is not None:
            self._take_away(candidate, reason)
        self.service = replace(self.service, handover=None)
        if self.service.quiet is not None and not self.service.quiet.deadline_s:
            self._relieve()

    def _fail(self, number: int, reason: str) -> None:
        generation = self.service.generation(number)
        if generation is None or generation.state not in PROVISIONAL:
            return
        self._revert(reason)
        self.effects.append(HandoverNews(number, None, reason))

    def _take_away(self, candidate: Generation, reason: str) -> None:
        after = self._advance(candidate, GenerationEvent.FAIL, reason)
        # It may have accepted real requests (park = mixed): they are answered, like any others.
        self._put_generation(replace(after, deadline_s=self.now_s + after.plan.drain_timeout_s))

    def _want(self, up: bool) -> None:
        if self.service.handover is not None:
            raise IllegalTransition("a handover is under way")
        if up:
            self._relieve()
        self.service = replace(self.service, want_up=up, quiet=None)
        committed = self.service.committed
        if up and committed is not None:
            self._put_generation(replace(committed, finished=()))
            for item in self.service.of(committed.number):
                self._put(replace(item, streak=0, due_s=self.now_s))

    def _remove(self) -> None:
        if self.service.handover is not None:
            raise IllegalTransition("a handover is under way")
        self._supersede_committed()
        self.service = replace(self.service, want_up=False, quiet=None)

    # quiet workers

    def _observed(self, event: Observed) -> None:
        instance = self._find(event)
        generation = self.service.generation(event.generation)
        if instance is None or generation is None or instance.state not in ALIVE:
            return
        if event.trouble:
            self._put(replace(instance, trouble=event.trouble))
            return
        known = replace(instance, seen=True, quiet=event.quiet, trouble="")
        if event.quiet:
            known = replace(known, unsure=False)
        elif self._is_deaf(known, generation.plan):
            known = replace(known, unsure=False, told_s=self.now_s)
            draining = known.state is InstanceState.STOPPING
            signal = generation.plan.drain_signal if draining else generation.plan.quiet_signal
            self.effects.append(Signal(known.generation, known.slot, known.attempt, signal))
        self._put(known)
        if event.idle and known.state is InstanceState.STOPPING and known.draining:
            self._note("idle", "has finished its jobs", known.generation, known.slot)
            self._put(self._signal(replace(known, draining=False), generation, cut=True))

    def _is_deaf(self, item: Instance, plan: GenerationPlan) -> bool:
        """Whether it has to be told again: an earlier agent died before it did, or (where twice does no harm) the signal
        was lost, as SIGCONT throws away a SIGTSTP that waits."""
        if item.state is InstanceState.STOPPING and not item.draining:
            return False  # it was told more than that
        if item.unsure:
            return self.now_s >= item.told_s + _UNSURE_S
        return bool(item.told_s) and not plan.quiet_once and self.now_s >= item.told_s + _DEAF_S

    def _quieten(self, event: Quieten) -> None:
        committed = self.service.committed
        if self.service.handover is not None:
            raise IllegalTransition("a handover is under way")
        if committed is None or not self.service.want_up or not committed.plan.quiet_signal:
            raise IllegalTransition("there is nothing to quiet")
        known = self.service.quiet
        spare = known.spare if known is not None else event.spare
        since_s = known.since_s if known is not None else self.now_s
        self._begin_quiet(Quiet(committed.number, spare, since_s, event.deadline_s, event.owner, event.reason))

    def _begin_quiet(self, quiet: Quiet) -> None:
        self.service = replace(self.service, quiet=quiet)

    def _tell_quiet(self) -> None:
        """All workers of the committed generation are told at once, and none before each was found in the job library:
        where nothing can be proven nothing is touched. What is still starting is waited for: a signal that it does not
        catch yet would stop it for good."""
        quiet = self.service.quiet
        generation = self.service.generation(quiet.generation) if quiet is not None else None
        if generation is None:
            return
        alive = [
            item for item in self.service.of(generation.number) if item.state in SERVING | {InstanceState.STARTING}
        ]
        if quiet is not None and quiet.cold:
            # What boots is told when it is ready: it serves nobody yet, and may not know the signal.
            self._tell(generation, [item for item in alive if not item.quieted and item.state is InstanceState.READY])
            return
        for item in alive:
            if not item.looked and (item.state is InstanceState.READY or item.quieted):
                self._look(item)
        untold = [item for item in alive if not item.quieted]
        if not all(item.seen and item.state is InstanceState.READY for item in untold):
            return
        self._tell(generation, untold)

    def _tell(self, generation: Generation, untold: list[Instance]) -> None:
        quiet = self.service.quiet
        signal = generation.plan.drain_signal if quiet and quiet.cold else generation.plan.quiet_signal
        for item in untold:
            now = self._find(Observed(item.generation, item.slot, item.attempt))
            assert now is not None
            self._put(replace(now, quieted=True, quiet=False, told_s=self.now_s))
            self.effects.append(Signal(item.generation, item.slot, item.attempt, signal))
        if untold:
            told = {*generation.quieted, *((item.slot, item.attempt) for item in untold)}
            self._put_generation(replace(generation, quieted=tuple(sorted(told))))

    def _look(self, instance: Instance) -> None:
        self._put(replace(instance, looked=True))
        self.effects.append(Look(instance.generation, instance.slot, instance.attempt))

    def _relieve(self, told: bool = False) -> None:
        """Ends the quiet. Workers that were told so never fetch again, so a fresh generation of the same release and
        configuration takes over, and they finish their jobs behind it. told: whatever is recorded of that."""
        quiet = self.service.quiet
        old = self.service.generation(quiet.generation) if quiet is not None else None
        self.service = replace(self.service, quiet=None)
        if quiet is None or old is None or old.state is not GenerationState.COMMITTED:
            return
        if not old.quieted and not told:
            for item in self.service.of(old.number):
                self._put(replace(item, looked=False, seen=False, trouble=""))
            return
        self._supersede_committed()
        fresh = replace(
            old,
            number=quiet.spare,
            since_s=self.now_s,
            deadline_s=0.0,
            note=f"takes over from the quiet generation {old.number}",
            finished=(),
            told=(),
            quieted=(),
            copy_of=old.copy_of or old.number,
        )
        self._put_generation(fresh)
        self._note("generation", f"committed: {fresh.note}", fresh.number)
        self._retire_surplus(fresh.plan.max_draining)

    # convergence: level-triggered, safe to run at any time

    def converge(self) -> None:
        self._wake()
        self._tell_quiet()
        self._progress()
        for generation in self.service.generations:
            targets = self._targets(generation)
            self._fill(generation, targets)
            self._stop_surplus(generation, targets)
        for instance in self.service.instances:
            if instance.state is InstanceState.WAITING and instance.due_s <= self.now_s and self._may_start(instance):
                self._apply(instance, InstanceEvent.DUE)
        for instance in self.service.instances:
            if instance.draining and instance.state is InstanceState.STOPPING and not instance.looked:
                plan = next(item.plan for item in self.service.generations if item.number == instance.generation)
                if plan.quiet_signal and not plan.leaves_when_idle:
                    self._look(instance)
        self._retire()

    def _wake(self) -> None:
        """The parked generation accepts again as soon as nothing soaks. It is stored as parked until the signals are
        surely sent (`confirm`)."""
        old = self.service.committed
        if old is None or not old.parked or soaks(self.service):
            return
        mine = self.service.of(old.number)
        asleep = [item for item in mine if item.parked and item.state in SERVING]
        if not asleep and not any(item.signalled_s for item in mine):
            self._put_generation(replace(old, parked=False))
        for item in asleep:
            self._put(replace(item, parked=False, signalled_s=self.now_s))
            self.effects.append(Signal(item.generation, item.slot, item.attempt, old.plan.unpark_signal))

    def _may_start(self, instance: Instance) -> bool:
        return self.service.hold is None or instance.generation != getattr(self.service.committed, "number", -1)

    def _targets(self, generation: Generation) -> frozenset[int]:
        """The slots of the generation that should have a process now."""
        number, plan = generation.number, generation.plan
        slots = frozenset(range(plan.instances))
        if generation.state is GenerationState.COMMITTED and self.service.quiet is not None:
            # What ends of it is not started again: it would fetch.
            judged = frozenset(item.slot for item in self.service.of(number) if item.state in JUDGED)
            return judged if self.service.want_up else frozenset()
        if generation.state is GenerationState.COMMITTED:
            return slots if self.service.want_up and not cleared(self.service) else frozenset()
        if generation.state not in PROVISIONAL:
            return frozenset()
        handover = self.service.handover
        if handover is None or handover.generation != number or handover.phase in (Phase.QUEUED, Phase.CLEARING):
            return frozenset()
        if handover.phase is Phase.TRYING:
            return frozenset({THROWAWAY_SLOT})
        if plan.surge and handover.phase is Phase.STARTING:
            mine = [item for item in self.service.of(number) if not item.is_throwaway]
            done = sum(1 for item in mine if item.healthy_since_s)
            # What was started stays, healthy or (after a restart of the agent) not known to be.
            return frozenset(range(min(plan.instances, done + plan.surge))) | {item.slot for item in mine}
        return slots

    def _fill(self, generation: Generation, targets: frozenset[int]) -> None:
        have = {item.slot: item for item in self.service.of(generation.number)}
        for slot in sorted(targets):
            known = have.get(slot)
            if known is not None and known.state is not InstanceState.ENDED:
                continue
            fresh = Instance(generation.number, slot, InstanceState.WAITING, since_s=self.now_s, due_s=self.now_s)
            if slot in generation.finished:
                self._put(known or replace(fresh, state=InstanceState.ENDED, why="ended for good"))
            else:
                last = max((attempt for told, attempt in generation.told if told == slot), default=-1)
                last = max(last, known.attempt) if known is not None else last
                last_exit = known.last_exit if known is not None else ""
                self._put(replace(fresh, why="wanted", attempt=last + 1, last_exit=last_exit))

    def _stop_surplus(self, generation: Generation, targets: frozenset[int]) -> None:
        for instance in self.service.of(generation.number):
            if instance.slot in targets:
                continue
            if instance.state is InstanceState.ENDED:
                if not self._is_kept(instance, generation):
                    self._drop(instance)
                continue
            # Where nothing runs twice, the other one waits for it: it is stopped, not drained.
            alone = generation.plan.policy == "replace"
            draining = generation.state in ENDING and not instance.is_throwaway and not alone
            if generation.plan.quiet_signal and instance.state in (InstanceState.STARTING, InstanceState.RUNNING):
                draining = draining and instance.quieted  # it has no job yet, nor may it know of the signal
            if instance.state in (InstanceState.STOPPING, InstanceState.KILLING):
                if instance.again:
                    self._put(replace(instance, again=False))
                continue
            if generation.state is GenerationState.COMMITTED:
                self._remember_told(instance)  # a drain signal is stored once it was sent
            self._apply(replace(instance, draining=draining, again=False), InstanceEvent.STOP)

    def _progress(self) -> None:
        """Moves the handover on when what its phase waits for has come."""
        handover = self.service.handover
        generation = self.service.generation(handover.generation) if handover else None
        if handover is None or generation is None:
            return
        mine = self.service.of(generation.number)
        if handover.phase is Phase.CLEARING:
            if not self._runs_twice(generation):
                self._enter(Phase.STARTING)
        elif handover.phase is Phase.TRYING and _all_healthy(mine, {THROWAWAY_SLOT}, generation, self.now_s):
            self._enter(Phase.STARTING)
        elif handover.phase is Phase.STARTING and self._runs_twice(generation):
            if any(item.state in ALIVE for item in mine):
                self._fail(generation.number, "the old one runs beside it, which it must not")
            else:
                self._enter(Phase.CLEARING)
        elif handover.phase is Phase.STARTING:
            slots = set(range(generation.plan.instances))
            if _all_healthy(mine, slots, generation, self.now_s):
                self._advance(generation, GenerationEvent.PROVED)
                self._enter(Phase.PROVEN)
                self.effects.append(HandoverNews(generation.number, Phase.PROVEN))
        elif handover.phase is Phase.QUIETING:
            self._quieting(generation, handover)
        if self.service.handover is None:
            return
        handover = self.service.handover
        if handover.phase is Phase.SOAKING and self.now_s >= handover.since_s + generation.plan.soak_s:
            self._enter(Phase.SOAKED)
            self.effects.append(HandoverNews(generation.number, Phase.SOAKED))

    def _quieting(self, candidate: Generation, handover: Handover) -> None:
        """The old workers: each proven quiet, or gone. In vain for too long: the old release goes on."""
        old = self.service.committed
        alive = [item for item in self.service.of(old.number) if item.state in ALIVE] if old is not None else []
        loud = [item for item in alive if not item.quiet]
        if old is None or not loud:
            self._enter(Phase.SOAKING)
            return
        if self.now_s >= handover.since_s + old.plan.quiet_timeout_s:
            item = loud[0]
            why = item.trouble or ("it did not say so" if item.quieted else f"it is {item.state.value}")
            reason = f"the old instance {item.slot} was not proven quiet within {old.plan.quiet_timeout_s:g} s: {why}"
            self._fail(candidate.number, reason)

    def _runs_twice(self, candidate: Generation) -> bool:
        """Whether a candidate with the policy `replace` would not be the only one."""
        return candidate.plan.policy == "replace" and any(
            item.state in ALIVE for item in self.service.instances if self._excludes(item)
        )

    def _excludes(self, instance: Instance) -> bool:
        """Whether a candidate with the policy `replace` cannot start while this instance lives."""
        generation = self.service.generation(instance.generation)
        if generation is None or generation.state in PROVISIONAL:
            return False
        return generation.state is GenerationState.COMMITTED or generation.plan.policy == "replace"

    def _retire(self) -> None:
        for generation in self.service.generations:
            if generation.state in ENDING and not self.service.of(generation.number):
                after = self._advance(generation, GenerationEvent.GONE)
                self.effects.append(Retired(after.number))
                self.service = replace(
                    self.service,
                    generations=tuple(i for i in self.service.generations if i.number != generation.number),
                )


def _all_healthy(mine: tuple[Instance, ...], slots: set[int], generation: Generation, now_s: float) -> bool:
    healthy = {
        item.slot
        for item in mine
        if item.state is InstanceState.READY
        and item.healthy_since_s
        and now_s >= item.healthy_since_s + generation.plan.min_healthy_s
    }
    return slots <= healthy
