"""Processes: the fake apps, how they start, answer, park, drain, stop and misbehave."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from midstream.core.generation import GenerationPlan
from midstream.core.instance import THROWAWAY_SLOT

if TYPE_CHECKING:
    from simulation.world import World

Key = tuple[str, int, int, int]  # service, generation, slot, attempt


class Quality(enum.Enum):
    """What a release's code is like. The first three and ANSWERS_500 must never be committed."""

    GOOD = "good"
    EXITS = "exits at once"
    NEVER_READY = "never ready"
    DIES_READY = "dies when it is ready"
    ANSWERS_500 = "answers 500"
    SLOW = "slow to start"
    DIES_IN_SOAK = "crashes after some seconds"
    SICKENS = "answers 500 after some seconds"
    HANGS_ON_STOP = "ignores the stop signal"
    NEVER_DRAINS = "ignores the drain signal"


UNPROVABLE = frozenset({Quality.EXITS, Quality.NEVER_READY, Quality.ANSWERS_500})


@dataclass(frozen=True)
class Code:
    """One service in one release: what is deployed. word: readiness is said once (notify), not to be seen."""

    quality: Quality
    plan: GenerationPlan
    word: bool


@dataclass
class Process:
    pid: int
    key: Key
    code: Code
    born_s: float
    by: str = "agent"
    alive: bool = True
    ready: bool = False
    ready_s: float = float("inf")
    answered: bool = False
    parked: bool = False
    told: bool = False  # to drain or to stop
    drained_s: float = 0.0  # when it was told to drain
    noted: bool = False  # the agent has had the time to store that
    sick: bool = False
    hushed: bool = False  # told to begin no further job
    quiet_s: float = 0.0  # since when it begins no further job
    idle_s: float = float("inf")  # when it has finished those in hand
    ended: str = ""
    status: int | None = None

    @property
    def slot(self) -> tuple[str, int, int]:
        return self.key[:3]

    @property
    def fetches(self) -> bool:
        """Begins further jobs, if it is a worker."""
        return self.alive and self.ready and not self.told and not self.quiet_s

    @property
    def serves(self) -> bool:
        return self.fetches and not self.parked and self.key[2] != THROWAWAY_SLOT


@dataclass
class Kernel:
    """Starts processes and lets their lives happen. Every end is told to the keeper, if there is one."""

    world: World
    processes: dict[int, Process] = field(default_factory=dict)
    by_key: dict[Key, Process] = field(default_factory=dict)
    next_pid: int = 100

    def live(self, service: str | None = None) -> list[Process]:
        return [item for item in self.processes.values() if service is None or item.key[0] == service]

    def spawn(self, key: Key, code: Code, by: str) -> Process:
        world = self.world
        self.next_pid += 1
        process = Process(self.next_pid, key, code, world.now_s, by)
        world.rules.spawned(process, by)
        self.processes[process.pid] = process
        self.by_key[key] = process
        world.say("kernel:", by, "starts", key, "as", process.pid, code.quality)
        boot_s = world.random.uniform(0.02, 2.0)
        if code.quality is Quality.SLOW:
            boot_s += world.random.uniform(0.0, code.plan.start_timeout_s)
        if code.quality is Quality.EXITS:
            world.after(boot_s, lambda: self.die(process, "exited with 1", 1))
        elif code.quality is not Quality.NEVER_READY:
            world.after(boot_s, lambda: self._ready(process))
        return process

    def _ready(self, process: Process) -> None:
        if not process.alive or process.told:
            return
        process.ready = True
        process.ready_s = self.world.now_s
        self.world.rules.ready(process)
        self.world.on_ready(process)
        if self.world.calm:
            return
        later_s = self.world.random.uniform(0.5, 30.0)
        match process.code.quality:
            case Quality.DIES_READY:
                self.world.after(0.0, lambda: self.fault(process, "exited with 3", 3))
            case Quality.DIES_IN_SOAK:
                self.world.after(later_s, lambda: self.fault(process, "exited with 1", 1))
            case Quality.SICKENS:
                self.world.after(later_s, lambda: self.sicken(process))

    def fault(self, process: Process, text: str, status: int | None = None) -> None:
        """It dies of itself, or of the host: not once the world is calm."""
        if not self.world.calm:
            self.die(process, text, status)

    def sicken(self, process: Process) -> None:
        if process.alive and not self.world.calm:
            process.sick = True
            self.world.on_sick(process)

    def die(self, process: Process, text: str, status: int | None = None) -> None:
        if not process.alive:
            return
        process.alive = False
        process.ended, process.status = text, status
        del self.processes[process.pid]
        self.world.say("kernel:", process.key, text)
        self.world.rules.died(process)
        self.world.keeper.process_ended(process)

    def signal(self, process: Process, name: str) -> None:
        """Delivers one of the plan's signals, or KILL."""
        plan, world = process.code.plan, self.world
        world.rules.told(process, name)
        world.say("kernel:", name, "to", process.key)
        if name == plan.park_signal:
            process.parked = True
        elif name == plan.unpark_signal:
            process.parked = False
        elif name == plan.quiet_signal:
            self._quiet(process)
        elif name == "KILL":
            self.die(process, "killed")
        else:
            process.told = True
            if name == plan.drain_signal:
                process.drained_s = world.now_s
            self._obey(process, name)
        world.rules.after_told(process, name)

    def _quiet(self, process: Process) -> None:
        if not process.hushed:
            process.hushed = True
            self.world.after(self.world.random.uniform(0.0, 1.0), lambda: self._hush(process))

    def _hush(self, process: Process) -> None:
        """Some time after the signal was sent."""
        plan = process.code.plan
        process.quiet_s = self.world.now_s
        if process.code.quality is Quality.NEVER_DRAINS:
            return
        longest_s = plan.drain_timeout_s * (0.3 if self.world.random.random() < 0.8 else 1.5)
        process.idle_s = self.world.now_s + self.world.random.uniform(0.0, longest_s)
        if plan.leaves_when_idle:
            self.world.after(process.idle_s - self.world.now_s, lambda: self.die(process, "drained", 0))

    def _obey(self, process: Process, name: str) -> None:
        quality, plan = process.code.quality, process.code.plan
        if name == plan.drain_signal:
            if quality is not Quality.NEVER_DRAINS:
                longest_s = plan.drain_timeout_s * (0.3 if self.world.random.random() < 0.8 else 1.5)
                self.world.after(self.world.random.uniform(0.0, longest_s), lambda: self.die(process, "drained", 0))
        elif quality is not Quality.HANGS_ON_STOP:
            self.world.after(self.world.random.uniform(0.0, 2.0), lambda: self.die(process, "stopped", 0))
