"""The world: the clock, what is due, who may die, and the plot of one history."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from midstream.core.generation import GenerationPlan, Park
from midstream.core.service import Service
from simulation import deployer
from simulation.disk import Disk
from simulation.keeper import Keeper
from simulation.kernel import Code, Kernel, Process, Quality
from simulation.rules import Broken, Rules
from simulation.shell import IDLE, Call, Refused, Shell

MOST_STEPS = 60_000
_SERVICES = ("web", "jobs", "cron")


class World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now_s = 1000.0
        self.calm = False
        self.no_forks = False
        self.redis_down = False
        self.record: deque[tuple[float, tuple[object, ...]]] = deque(maxlen=400)
        self.due: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.rules = Rules(self)
        self.kernel = Kernel(self)
        self.keeper = Keeper(self)
        self.disk = Disk(self)
        self.shell: Shell | None = None
        self.last_known: dict[str, Service] = {}
        self.asked: list[Call] = []
        self.generations: dict[int, str] = {}
        self.asked_to_commit: set[int] = set()
        self.acknowledged: list[int] = []
        self.given_up: set[int] = set()
        self.releases = self._releases()
        self.agent_peril = self.random.choice((0.0, 0.002, 0.01, 0.03))

    # what there is to deploy

    def _releases(self) -> dict[str, dict[str, Code]]:
        """Release ids to their services. The first is good; each has most of the services."""
        plans = {name: self._plan(name) for name in _SERVICES}
        releases: dict[str, dict[str, Code]] = {}
        for number in range(self.random.randint(2, 5)):
            names = [name for name in _SERVICES if self.random.random() < 0.75] or ["web"]
            releases[f"2026112119050{number}"] = {name: self._code(plans[name], first=number == 0) for name in names}
        return releases

    def _plan(self, name: str) -> GenerationPlan:
        pick = self.random.choice
        policy = {"web": "overlap", "jobs": pick(("drain", "overlap")), "cron": pick(("replace", "replace", "overlap"))}
        park = pick((Park.PAUSE, Park.MIXED, Park.COLD))
        worker = policy[name] == "drain" and pick((True, True, False))
        once = worker and pick((True, False))
        return GenerationPlan(
            quiet_signal="TSTP" if worker else "",
            quiet_once=once,
            quiet_timeout_s=10.0,
            leaves_when_idle=once,
            instances=pick((1, 1, 2, 3)),
            policy=policy[name],
            throwaway=name == "web" and pick((True, False)),
            confirm=self.random.random() < 0.8,
            start_timeout_s=8.0,
            healthy_timeout_s=5.0,
            min_healthy_s=pick((0.0, 0.0, 2.0)),
            soak_s=pick((0.0, 0.0, 3.0, 15.0)),
            park=park,
            park_signal="WINCH" if park is Park.PAUSE else "",
            unpark_signal="TTIN" if park is Park.PAUSE else "",
            drain_signal="TSTP" if worker else "QUIT",
            drain_timeout_s=pick((0.0, 10.0, 30.0)),
            stop_timeout_s=pick((0.5, 5.0)),
            max_draining=pick((0, 1, 2)),
            surge=pick((0, 0, 1, 2)),
            restart_on=pick(("always", "always", "always", "failure", "never")) if name != "web" else "always",
        )

    def _code(self, plan: GenerationPlan, first: bool) -> Code:
        pick = self.random.choice
        good = first or self.random.random() < 0.5
        quality = pick((Quality.GOOD, Quality.SICKENS, Quality.HANGS_ON_STOP) if good else tuple(Quality))
        if self.random.random() < 0.2:
            plan = replace(plan, instances=pick((1, 2, 3)))
        if self.random.random() < 0.1:
            plan = replace(plan, policy=pick(("overlap", "replace")))
        return Code(quality, plan, word=pick((True, False)))

    def code_of(self, name: str, generation: int) -> Code:
        return self.releases[self.generations[generation]][name]

    # time

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.due, (self.now_s + delay_s, self.count, act))

    def say(self, *words: object) -> None:
        """One line of the record; put together only when it is wanted."""
        self.record.append((self.now_s, words))

    def run(self) -> None:
        """Until nothing is left to happen, with the agent idle."""
        for _ in range(MOST_STEPS):
            shell = self.shell
            busy = shell is not None and shell.runnable()
            if shell is not None and busy and self.random.random() < 0.97:
                self._step(shell)
            elif not self._next(busy):
                return
        raise Broken("the host does not come to rest")

    def _step(self, shell: Shell) -> None:
        if not self.calm and self.random.random() < self.agent_peril:
            self.kill_agent()
            return
        shell.go_on()
        self.last_known = dict(shell.services)
        if shell.attached and shell.last == IDLE:
            self.rules.idle()

    def _next(self, busy: bool) -> bool:
        """Jumps to the next thing that is due. False: there is none."""
        shell = self.shell
        woken = shell.wake_s() if shell is not None and shell.attached else None
        # A busy agent is slow, but it does not sleep over a deadline with work in its hands.
        until_s = self.now_s + 0.5 if busy else woken
        if self.due and (until_s is None or self.due[0][0] <= until_s):
            at_s, _, act = heapq.heappop(self.due)
            self.now_s = max(self.now_s, at_s)
            act()
            return True
        if busy:
            return True
        if woken is None:
            return False
        self.now_s = max(self.now_s, woken)
        return True

    # what the apps tell

    def on_ready(self, process: Process) -> None:
        if self.shell is not None and self.shell.attached:
            self.shell.word(process)
        elif process.code.word and self.keeper.up:
            self.keeper.notices.add(process.key)

    def on_sick(self, process: Process) -> None:
        if self.shell is not None:
            self.shell.sick(process)

    # deaths

    def kill_agent(self) -> None:
        """SIGKILL between two steps; the keeper starts the next one."""
        if self.shell is None:
            return
        self.say("the agent is killed")
        self.shell.steps.close()
        self.shell = None
        for call in list(self.asked):
            call.done(Refused("the agent died"))
        if self.keeper.up:
            self.keeper.detach()
        away_s = 0.05 if self.random.random() < 0.8 else self.random.uniform(1.0, 30.0)
        self.after(away_s, lambda: self.start_agent(away_s))

    def start_agent(self, away_s: float = 0.0) -> None:
        if self.shell is None:
            if away_s > 3.0 and self.keeper.up and self.keeper_since_s + 3.0 < self.now_s and not self.no_forks:
                self.rules.alone()
            self.say("an agent starts")
            self.shell = Shell(self)

    keeper_since_s = 0.0

    def kill_keeper(self) -> None:
        if not self.keeper.up:
            return
        self.say("the keeper is killed")
        self.keeper.kill()
        if self.shell is not None:
            self.shell.lost = True
        self.after(self.random.uniform(0.01, 3.0), self._next_keeper)

    def _next_keeper(self) -> None:
        if self.keeper.up:
            return
        self.say("the next keeper adopts")
        self.keeper_since_s = self.now_s
        self.keeper.reborn()

    def reboot(self) -> None:
        """Everything ends but the disk. (The clock goes on: a shell translates what it had stored of the last boot.)"""
        self.say("the host is rebooted")
        self.rules.rebooted = True
        self.keeper.kill()
        self.kill_agent()
        for process in self.kernel.live():
            self.kernel.die(process, "gone with the host")
        self.keeper = Keeper(self, last_attempts={}, up=False)
        self.after(2.0, self._next_keeper)

    def kill_some_process(self) -> None:
        live = sorted(self.kernel.live(), key=lambda item: item.pid)
        if live:
            self.kernel.fault(self.random.choice(live), "killed by the kernel (out of memory)")

    def fill_disk(self) -> None:
        self.say("the disk is full")
        self.disk.full = True
        self.after(self.random.uniform(0.5, 20.0), self.free_disk)

    def free_disk(self) -> None:
        self.say("the disk has space")
        self.disk.full = False

    def stop_forks(self) -> None:
        self.no_forks = True
        self.after(self.random.uniform(0.1, 5.0), self.allow_forks)

    def stop_redis(self) -> None:
        self.say("redis is down")
        self.redis_down = True
        self.after(self.random.uniform(0.1, 15.0), self.start_redis)

    def start_redis(self) -> None:
        self.redis_down = False

    def allow_forks(self) -> None:
        self.no_forks = False

    # the plot

    def ask(self, asks: deployer.Asks, peril: float) -> None:
        """Lets somebody act; with `peril` he is gone for good before his next word."""
        self._resume(asks, None, peril)

    def _resume(self, asks: deployer.Asks, answer: object, peril: float) -> None:
        if not self.calm and self.random.random() < peril:
            self.say("a deployer is gone")
            return
        try:
            wish = asks.send(answer)
        except StopIteration:
            return
        if wish[0] == "sleep":
            assert isinstance(wish[1], float)
            self.after(wish[1], lambda: self._resume(asks, None, peril))
            return
        call = Call(str(wish[1]), wish[2:], lambda result: None)

        def done(result: object) -> None:
            self.asked.remove(call)
            self.after(0.01, lambda: self._resume(asks, result, peril))

        call.done = done
        self.asked.append(call)
        if self.shell is None or not self.shell.attached:
            done(Refused("no agent"))
        else:
            self.shell.calls.append(call)

    def remember_all(self) -> None:
        """Keeps the whole record, not only its end."""
        self.record = deque()

    def begin(self) -> None:
        self.plot()
        self.start_agent()

    def plot(self) -> None:
        """Who will do what when."""
        pick = self.random.choice
        peril = pick((0.0, 0.0, 0.05, 0.2))
        at_s = 0.0
        releases = list(self.releases)
        for number in range(pick((1, 2, 2, 3, 5))):
            release = releases[0] if number == 0 else pick(releases)
            self.after(at_s, partial(self.ask, deployer.deploy(self, release), peril))
            at_s += pick((1.0, 20.0, 60.0, 100.0))
        for _ in range(pick((0, 1, 2, 5))):
            act = pick((deployer.stop_and_start, deployer.hold, deployer.quiet))
            name = pick(_SERVICES)
            when_s = self.random.uniform(5.0, at_s + 20.0)
            self.after(when_s, partial(self.ask, act(self, name), peril))
        mishaps = (
            self.kill_some_process,
            self.kill_keeper,
            self.kill_agent,
            self.fill_disk,
            self.stop_forks,
            self.reboot,
            self.stop_redis,
        )
        for _ in range(pick((0, 0, 2, 6, 15))):
            self.after(self.random.uniform(1.0, at_s + 40.0), pick(mishaps))
        self.after(at_s + 60.0, self.quieten)

    def quieten(self) -> None:
        """From here on nothing goes wrong any more but what is wrong with the releases."""
        self.say("calm")
        self.calm = True


def play(seed: int) -> World:
    """One history. Raises Broken."""
    world = World(seed)
    world.begin()
    try:
        world.run()
        world.rules.rest()
    except Exception as error:
        lines = [f"{at_s:9.2f} {' '.join(str(word) for word in words)}" for at_s, words in world.record]
        tail = "\n".join(lines[-120:])
        raise Broken(f"MIDSTREAM_SEED={seed}: {error}\n{tail}") from error
    return world
