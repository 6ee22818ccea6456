"""The keeper's standing orders, kept as the services ask for: what it starts again by itself. Runs in the agent's loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from midstream.agent.keeper_link import KeeperLost
from midstream.agent.processes import Name, Place3
from midstream.core.messages import StandingOrder
from midstream.core.names import SlotName, parse_key
from midstream.core.service import Service, at_once, standing_orders

if TYPE_CHECKING:
    from midstream.agent.host import Host


class KeeperOrders:
    """service -> slot -> (key, at_once) of the order that the keeper has."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._set: dict[Name, dict[str, tuple[str, bool]]] = {}
        self._touched: set[Name] = set()
        self._inherited: set[str] = set()

    def touch(self, names: Iterable[Name]) -> None:
        """These services changed; the next `sync` looks at them."""
        self._touched.update(names)

    def forget(self, names: Iterable[Name], held: set[str]) -> None:
        """Another keeper, or another agent's orders: all of these services are to be ordered anew. held: the slots that
        the keeper has orders for; those that no service wants any more are revoked."""
        self._set.clear()
        self._touched.update(names)
        self._inherited = set(held)

    async def revoke(self, after: dict[Name, Service]) -> None:
        """Before anything is stopped: orders that will not hold any more are revoked, and that is acknowledged. Else the
        keeper would start it again behind our back. Raises KeeperLost."""
        revoked = self._revocations(after)
        if not revoked:
            return
        if self._host.link is None:
            raise KeeperLost("the keeper is away")
        await self._host.link.orders((), tuple(revoked))
        for name in after:
            for slot_name in revoked:
                self._set.get(name, {}).pop(slot_name, None)

    def _revocations(self, after: dict[Name, Service]) -> list[str]:
        """Standing orders that will not hold any more once `after` does."""
        revoked = []
        for name, service in after.items():
            keep = standing_orders(service)
            committed = service.committed
            for slot_name, (text, _) in self._set.get(name, {}).items():
                key = parse_key(text)
                if key.slot not in keep or committed is None or committed.number != key.generation:
                    revoked.append(slot_name)
        return revoked

    async def sync(self) -> None:
        """Makes the keeper's standing orders what the services that changed ask for: level-triggered, few messages."""
        if self._host.link is None:
            return
        orders: list[StandingOrder] = []
        revoke: list[str] = []
        for name in sorted(self._touched):
            wanted: dict[str, tuple[Place3, bool]] = {}
            if name in self._host.services:
                for slot, instance in standing_orders(self._host.services[name]).items():
                    place = (instance.generation, instance.slot, instance.attempt)
                    wanted[str(SlotName(*name, slot))] = (place, at_once(self._host.services[name], instance))
            self._inherited -= wanted.keys()
            have = self._set.setdefault(name, {})
            revoke += [slot for slot in have if slot not in wanted]
            for slot_name, (place, quick) in wanted.items():
                if have.get(slot_name) == (str(self._host.key(name, place)), quick):
                    continue
                try:
                    orders.append(StandingOrder(slot_name, await self._host.prepared(name, place), quick))
                except KeeperLost:
                    raise
                except Exception:  # its next start will say what is wrong; the other services' orders are set
                    continue
        revoke += sorted(self._inherited)
        if orders or revoke:
            await self._host.link.orders(orders, revoke)
        for order in orders:
            key = parse_key(order.spec.key)
            self._set[key.app, key.service][order.slot] = (order.spec.key, order.at_once)
        for name in self._touched:
            for slot_name in revoke:
                self._set[name].pop(slot_name, None)
        self._touched.clear()
        self._inherited.clear()
