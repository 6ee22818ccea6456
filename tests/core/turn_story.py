"""Histories as data: a service's story, one line an event, with the effects that it must have.

Used by the tests of `core/turn.py`. A line is `EVENT -> EFFECTS`; a line that begins with `==` compares the state.
Notes are left out of the effects. What is not written must not happen: a line without an arrow has no effect.

Events:  begin N [queued] · go · soak · commit · revert · up · down · remove · hold S · unhold · tick
         +S (S seconds pass, then a tick) · wake (until the next deadline, then a tick)
         spawned G/S · ready G/S · healthy G/S · refuted G/S · unhealthy G/S · extended G/S SECONDS
         exit G/S CODE · killed G/S (died of a signal) · lost G/S · unborn G/S (was never started)
         restart: [live G/S …] [ended G/S=CODE …]   the agent died; the keeper knows these
Effects: spawn G/S · look G/S · watch G/S · confirm G/S (watch, and confirm by a check) · signal G/S NAME · kill G/S
         sweep G/S · news G PHASE|failed · retired G · illegal (IllegalTransition, and nothing changed)
A name G/S means the attempt that the service knows; G/S#A names another one. In effects #0 is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

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
    Watch,
)
from midstream.core.generation import Generation, GenerationPlan, GenerationState, IllegalTransition
from midstream.core.phases import Hold
from midstream.core.service import Service, durable, wake_s
from midstream.core.turn import restore, step

EPOCH_S = 1000.0
_PROCESS = re.compile(r"(\d+)/(\d+)(?:#(\d+))?\Z")

PLAN = GenerationPlan(park_signal="WINCH", unpark_signal="TTIN", drain_signal="QUIT")


@dataclass
class Story:
    """A service in the middle of its history. plan: what new generations get."""

    plan: GenerationPlan = PLAN
    service: Service = field(default_factory=lambda: Service("shop", "web"))
    now_s: float = EPOCH_S
    luck: float = 0.5
    notes: list[Note] = field(default_factory=list)

    def tell(self, text: str) -> Story:
        """Plays the lines; fails with the number and text of the first that does not come out as written."""
        for number, raw in enumerate(text.splitlines(), 1):
            line = raw.split("·")[0].strip()
            if not line:
                continue
            if line.startswith("=="):
                got, wanted = self.picture(), " ".join(line[2:].split())
            else:
                event, _, effects = line.partition("->")
                wanted = ", ".join(part.strip() for part in effects.split(",") if part.strip())
                got = ", ".join(self.play(event.strip()))
            where = f"line {number}: {line}\n  now: {self.picture()}"
            assert got == wanted, f"{where}\n  expected: {wanted}\n  got:      {got}"
        return self

    def after(self, events: str) -> Story:
        """Plays events, separated by `; `, whatever their effects."""
        for event in filter(None, events.split("; ")):
            self.play(event)
        return self

    def play(self, text: str) -> list[str]:
        """One event; the effects as words."""
        word, _, rest = text.partition(" ")
        if word == "restart:":
            return self._restart(rest)
        if word == "wake":
            woken = wake_s(self.service)
            assert woken is not None, "nothing wakes it"
            self.now_s = max(self.now_s, woken)
            return self.take(Tick())
        if word.startswith("+"):
            self.now_s += float(word[1:])
            return self.take(Tick())
        return self.take(self.event(word, rest.split()))

    def take(self, event: Event) -> list[str]:
        before = self.service
        try:
            self.service, effects = step(self.service, event, self.now_s, self.luck)
        except IllegalTransition:
            assert self.service is before
            return ["illegal"]
        return self._told(effects)

    def event(self, word: str, words: list[str]) -> Event:
        if word in _PLAIN:
            return _PLAIN[word]()
        if word == "begin":
            generation = Generation(int(words[0]), f"release{words[0]}", GenerationState.PREPARED, self.plan)
            return Begin(generation, queued="queued" in words)
        if word == "hold":
            return SetHold(Hold("deploy", 1, self.now_s + float(words[0])))
        name = self.name(words[0])
        match word:
            case "spawned":
                return Spawned(*name, pid=_pid(*name))
            case "refuted":
                return Refuted(*name, "answered 500")
            case "unhealthy":
                return Unhealthy(*name, "answered 500")
            case "extended":
                return Extended(*name, float(words[1]))
            case "exit":
                return Ended(*name, f"exited with {words[1]}", int(words[1]))
            case "unborn":
                return Ended(*name, "could not be started: fork", ran=False)
            case "killed" | "lost":
                return Ended(*name, word)
        return Ready(*name) if word == "ready" else Healthy(*name)

    def name(self, text: str) -> tuple[int, int, int]:
        """(generation, slot, attempt) of `2/0` (the attempt that the service knows) or `2/0#3`."""
        found = _PROCESS.match(text)
        assert found is not None, text
        generation, slot = int(found[1]), int(found[2])
        if found[3] is not None:
            return generation, slot, int(found[3])
        known = [item.attempt for item in self.service.of(generation) if item.slot == slot]
        return generation, slot, known[0] if known else 0

    def picture(self) -> str:
        """`1 committed: 0 ready, 1 waiting#1 | 2 prepared: … | starting 2`: generations, their instances, the phase."""
        parts = []
        for generation in self.service.generations:
            items = [
                f"{item.slot} {item.state.value}{_number(item.attempt)}" for item in self.service.of(generation.number)
            ]
            parts.append(f"{generation.number} {generation.state.value}: {', '.join(items)}".rstrip(": "))
        if self.service.handover:
            parts.append(f"{self.service.handover.phase.value} {self.service.handover.generation}")
        return " | ".join(parts)

    def running(self, generation: int = 1) -> Story:
        """The generation begins, is proven and committed: the usual start of a story."""
        self.play(f"begin {generation}")
        for _ in range(100):
            busy = [item for item in self.service.of(generation) if not item.healthy_since_s]
            if not busy:
                break
            for item in busy:
                for word in ("spawned", "ready", "healthy"):
                    self.play(f"{word} {generation}/{item.slot}#{item.attempt}")
            if self.plan.min_healthy_s:
                self.play(f"+{self.plan.min_healthy_s}")
        else:
            raise AssertionError(f"never got ready: {self.picture()}")
        self.play("soak")
        if self.plan.soak_s:
            self.play(f"+{self.plan.soak_s}")
        self.play("commit")
        self.play(f"+{self.plan.backoff_reset_s}")
        return self

    def with_plan(self, **changes: object) -> Story:
        """From here on new generations get another plan."""
        self.plan = replace(self.plan, **changes)  # type: ignore[arg-type]
        return self

    def _restart(self, rest: str) -> list[str]:
        live: list[Spawned] = []
        ended: list[Ended] = []
        kind = ""
        for word in rest.split():
            if word in ("live", "ended"):
                kind = word
                continue
            process, _, code = word.partition("=")
            name = self.name(process)
            if kind == "live":
                live.append(Spawned(*name, pid=_pid(*name)))
            else:
                ended.append(Ended(*name, f"exited with {code}", int(code)) if code else Ended(*name, "lost"))
        self.service, effects = restore(durable(self.service), tuple(live), tuple(ended), self.now_s)
        return self._told(effects)

    def _told(self, effects: tuple[Effect, ...]) -> list[str]:
        self.notes.extend(item for item in effects if isinstance(item, Note))
        return [words for item in effects if (words := _words(item))]


_PLAIN: dict[str, Callable[[], Event]] = {
    "go": Go,
    "soak": Soak,
    "commit": Commit,
    "revert": lambda: Revert("the deployer said so"),
    "up": lambda: Want(True),
    "down": lambda: Want(False),
    "remove": Remove,
    "unhold": lambda: SetHold(None),
    "tick": Tick,
}


def _pid(generation: int, slot: int, attempt: int) -> int:
    return 10_000 * generation + 10 * slot + attempt + 1


def _number(attempt: int) -> str:
    return f"#{attempt}" if attempt else ""


def _words(effect: Effect) -> str:
    match effect:
        case Note():
            return ""
        case HandoverNews(generation, phase):
            return f"news {generation} {phase.value if phase else 'failed'}"
        case Retired(generation):
            return f"retired {generation}"
        case _:
            name = f"{effect.generation}/{effect.slot}{_number(effect.attempt)}"
    match effect:
        case Spawn():
            return f"spawn {name}"
        case Watch():
            return f"{'confirm' if effect.confirm else 'watch'} {name}"
        case Look():
            return f"look {name}"
        case Signal():
            return f"signal {name} {effect.signal}"
        case KillTree():
            return f"kill {name}"
        case Sweep():
            return f"sweep {name}"
    raise AssertionError(effect)
