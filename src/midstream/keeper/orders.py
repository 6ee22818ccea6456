"""Standing orders: while no agent is attached, an instance of an ordered slot that dies is started again.

With `at_once` the order is also carried out, a single time, while an agent is attached, for a process that ran over a
second: the agent would do the same, two round trips later. What follows (back-off) is the agent's.

Decided: an order acts at once, at most once a second for each slot, with no grace for an agent that is just restarting.
The returning agent finds the new attempt in the table (`by` is `order`) before it can start one of its own, because one
thread serves both; a grace would only be time without service.

Kept as JSON text, which is a tenth of the decoded spec, and in the runtime folder,
so that a new keeper goes on without an agent.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from midstream.core.messages import SpawnResult, StandingOrder
from midstream.core.names import SpawnKey, parse_key
from midstream.core.wire import WireError, from_wire, to_wire
from midstream.keeper.layout import Layout
from midstream.keeper.loop import Loop
from midstream.keeper.table import Row, Table, place_of
from midstream.linux.clock import boottime_s
from midstream.linux.timers import Timer

_INTERVAL_S = 1.0
_NEVER_S = float("-inf")
_ENDED_KEPT = 32  # ends by order for each slot while nobody acknowledges: a crash loop must not fill the memory


class Order:
    """One slot's order. `place` and `attempt`: the newest key known, by whomever it was started."""

    __slots__ = ("at_once", "attempt", "ended", "place", "slot", "started_at_s", "text", "timer")

    def __init__(self, slot: str, key: SpawnKey, text: bytes, at_once: bool = False) -> None:
        self.slot = slot
        self.at_once = at_once
        self.place = place_of(str(key))
        self.attempt = key.attempt
        self.text = text
        self.started_at_s = _NEVER_S
        self.timer: Timer | None = None
        self.ended: tuple[str, ...] = ()


class Orders:
    """All of them by slot. `alone` says that no agent is attached: only then they are carried out."""

    def __init__(
        self,
        layout: Layout,
        loop: Loop,
        table: Table,
        start: Callable[[StandingOrder, str], SpawnResult],
    ) -> None:
        self._layout = layout
        self._loop = loop
        self._table = table
        self._start = start
        self._alone = False
        self.by_slot: dict[str, Order] = {}
        self._by_place: dict[str, Order] = {}

    def set(self, order: StandingOrder) -> None:
        text = json.dumps(to_wire(order)).encode()
        self.put(order, text)
        self._layout.write(self._layout.order_record(order.slot), text)

    def put(self, order: StandingOrder, text: bytes, attempt: int = 0) -> None:
        """As `set`, without writing the record. `attempt`: the newest that the order has started so far."""
        self.revoke(order.slot, forget_record=False)
        made = Order(order.slot, parse_key(order.spec.key), text, order.at_once)
        made.attempt = max(made.attempt, attempt)
        self.by_slot[order.slot] = made
        self._by_place[made.place] = made

    def revoke(self, slot: str, forget_record: bool = True) -> None:
        order = self.by_slot.pop(slot, None)
        if order is None:
            return
        self._by_place.pop(order.place, None)
        if order.timer is not None:
            order.timer.cancel()
        if forget_record:
            self._layout.unlink(self._layout.order_record(slot))

    def load(self) -> None:
        """What the last keeper had in force. A record that cannot be read is skipped, with a note."""
        for name, text in self._layout.records("orders"):
            try:
                self.put(from_wire(StandingOrder, json.loads(text)), text)
            except (WireError, ValueError) as error:
                self._layout.note(f"standing order {name} is unreadable: {error}")

    def alone(self, alone: bool) -> None:
        """The agent has gone, or is back."""
        self._alone = alone
        for slot, order in self.by_slot.items():
            if alone:
                self._carry_out(slot)
            elif order.timer is not None:
                order.timer.cancel()
                order.timer = None

    def end(self) -> None:
        """The ordered stop begins: nothing is started again, whoever is attached."""
        for slot in list(self.by_slot):
            self.revoke(slot)

    def process_ended(self, row: Row) -> None:
        found = self._by_place.get(row.place)
        if found is None:
            return
        if not self._alone:
            if found.at_once and boottime_s() - row.started_s > _INTERVAL_S:
                found.at_once = False
                self._start_next(found.slot, found)
            return
        if row.by == "order":
            found.ended = (*found.ended, row.key)
            if len(found.ended) > _ENDED_KEPT:
                self._table.forget(found.ended[:1])
                found.ended = found.ended[1:]
        self._carry_out(found.slot)

    def _carry_out(self, slot: str) -> None:
        """Start it unless it lives, or was started within the last second: then when that second is over."""
        order = self.by_slot.get(slot)
        if order is None or not self._alone or order.timer is not None or order.place in self._table.live_places:
            return
        wait_s = order.started_at_s + _INTERVAL_S - self._loop.now_s
        if wait_s > 0:
            order.timer = self._loop.after(wait_s, lambda: self._again(slot, order))
            return
        self._start_next(slot, order)

    def _start_next(self, slot: str, order: Order) -> None:
        if order.place in self._table.live_places:
            return
        order.started_at_s = self._loop.now_s
        order.attempt = max(order.attempt, self._table.last_attempts.get(order.place, 0)) + 1
        key = f"{order.place}/{order.attempt}"
        result = self._start(from_wire(StandingOrder, json.loads(order.text)), key)
        if not result.ok:
            self._layout.note(f"standing order {slot}: {result.error}")
        if not result.ok and self._alone:
            order.timer = self._loop.after(_INTERVAL_S, lambda: self._again(slot, order))

    def _again(self, slot: str, order: Order) -> None:
        order.timer = None
        if self.by_slot.get(slot) is order:
            self._carry_out(slot)
