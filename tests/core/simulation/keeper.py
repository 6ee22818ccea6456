"""The fake keeper: table with sequence numbers, standing orders while it is alone, exit statuses until acknowledged.

As `keeper/orders.py` and `core/messages.py` say: idempotent by key, refuses older epochs, and after its own death
adopts what lives; what ended unseen is LOST.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simulation.kernel import Code, Key, Process

if TYPE_CHECKING:
    from simulation.shell import Shell
    from simulation.world import World

Place = tuple[str, int, int]


class LinkLost(Exception):
    """The keeper is gone, or a newer agent is attached."""


@dataclass
class Entry:
    key: Key
    process: Process
    seq: int
    running: bool = True
    text: str = ""
    status: int | None = None


@dataclass
class Order:
    place: Place
    attempt: int
    code: Code
    at_once: bool = False
    started_at_s: float = float("-inf")


@dataclass
class Keeper:
    world: World
    up: bool = True
    table: dict[Key, Entry] = field(default_factory=dict)
    orders: dict[tuple[str, int], Order] = field(default_factory=dict)
    last_attempts: dict[Place, int] = field(default_factory=dict)
    seq: int = 0
    attached: Shell | None = None
    notices: set[Key] = field(default_factory=set)  # READY=1 that came while no agent was attached

    # the agent's side

    def _check(self, shell: Shell) -> None:
        if not self.up or self.attached is not shell:
            raise LinkLost

    def hello(self, shell: Shell) -> None:
        if not self.up:
            raise LinkLost
        self.attached = shell

    def pull(self, shell: Shell, after: int) -> list[Entry]:
        self._check(shell)
        return sorted((item for item in self.table.values() if item.seq > after), key=lambda item: item.seq)

    def spawn(self, shell: Shell, key: Key, code: Code) -> bool:
        """False: nothing was started."""
        self._check(shell)
        if key in self.table:
            return True
        if self.world.no_forks:
            return False
        self._start(key, code, "agent")
        return True

    def signal(self, shell: Shell, key: Key, name: str) -> None:
        """Unknown and ended keys are passed over, as in the agent."""
        self._check(shell)
        entry = self.table.get(key)
        if entry is not None and entry.process.alive:
            self.world.kernel.signal(entry.process, name)
        elif entry is not None and name not in (entry.process.code.plan.park_signal, "TTIN"):
            self.world.rules.over.pop(key[:3], None)  # it ended as it was told to

    def ack(self, shell: Shell, key: Key) -> None:
        self._check(shell)
        entry = self.table.get(key)
        if entry is not None and not entry.running:
            del self.table[key]
            if not any(item.running and item.key[:3] == key[:3] for item in self.table.values()):
                self.last_attempts.pop(key[:3], None)

    def set_orders(self, shell: Shell, put: list[Order], revoke: list[tuple[str, int]]) -> None:
        self._check(shell)
        for slot in revoke:
            self.orders.pop(slot, None)
        for order in put:
            self.orders[order.place[0], order.place[2]] = order

    # its own life

    def _start(self, key: Key, code: Code, by: str) -> None:
        process = self.world.kernel.spawn(key, code, by)
        self.seq += 1
        self.table[key] = Entry(key, process, self.seq)
        self.last_attempts[key[:3]] = max(self.last_attempts.get(key[:3], 0), key[3])
        self._tell()

    def _tell(self) -> None:
        if self.attached is not None:
            self.attached.changed = True

    def process_ended(self, process: Process) -> None:
        entry = self.table.get(process.key)
        if not self.up or entry is None:
            return
        self.seq += 1
        entry.seq, entry.running, entry.text, entry.status = self.seq, False, process.ended, process.status
        self._tell()
        order = self.orders.get((process.key[0], process.key[2]))
        mine = order is not None and order.place == process.slot and self.attached is not None
        if order is not None and mine and order.at_once and self.world.now_s - process.born_s > 1.0:
            order.at_once = False
            self._start_next(order)
        self._carry_out_all()

    def detach(self) -> None:
        self.attached = None
        if self.up:
            self._carry_out_all()

    def _carry_out_all(self) -> None:
        if self.attached is None and self.up:
            for slot in sorted(self.orders):
                self._carry_out(slot)

    def _carry_out(self, slot: tuple[str, int]) -> None:
        order = self.orders.get(slot)
        if order is None or self.attached is not None or not self.up:
            return
        if any(item.running and item.key[:3] == order.place for item in self.table.values()):
            return
        wait_s = order.started_at_s + 1.0 - self.world.now_s
        if wait_s > 1e-9:
            self.world.after(wait_s, lambda: self._carry_out(slot))
            return
        if not self._start_next(order):
            self.world.after(1.0, lambda: self._carry_out(slot))

    def _start_next(self, order: Order) -> bool:
        order.started_at_s = self.world.now_s
        order.attempt = max(order.attempt, self.last_attempts.get(order.place, 0)) + 1
        if not self.world.no_forks:
            self._start((*order.place, order.attempt), order.code, "order")
        return not self.world.no_forks

    def kill(self) -> None:
        """SIGKILL of the keeper itself."""
        self.up = False
        self.attached = None
        self.notices.clear()

    def reborn(self) -> None:
        """The next keeper: adopts what lives; the end of what does not was seen by nobody."""
        self.up = True
        self.seq = 0
        for key in sorted(self.table):
            entry = self.table[key]
            self.seq += 1
            entry.seq = self.seq
            if not entry.process.alive:
                entry.running, entry.text, entry.status = False, "lost", None
        for order in self.orders.values():
            order.started_at_s = float("-inf")
        self._carry_out_all()
