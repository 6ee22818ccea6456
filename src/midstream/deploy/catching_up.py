"""A deploy, and once more where a host refused the decision that others took.

A candidate may die between the last question about it and its host's own commit. That host has put itself back, the others
stay on the new release: what `midstream resume` does then is done at once, for one time. Runs in the deployer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from midstream.deploy.client import AgentClient
from midstream.deploy.events import Event, EventKind, Outcome
from midstream.deploy.order import Order
from midstream.deploy.runner import Deployment


class CatchingUp:
    """`run` once; `interrupt` as that of a `Deployment`."""

    def __init__(self, order: Order, clients: Mapping[str, AgentClient], report: Callable[[Event], None]) -> None:
        self._clients = clients
        self._report = report
        self._deployment = Deployment(order, clients, report)

    def interrupt(self) -> None:
        self._deployment.interrupt()

    async def run(self) -> Outcome:
        """Never raises a MidstreamError: it is in the outcome. When the second time fails, too, it is that of the first."""
        first = self._deployment
        outcome = await first.run()
        behind = first.behind
        if not behind:
            return outcome
        names = ", ".join(behind)
        self._note(f"{names} did not take the decision; the others did: once more")
        self._deployment = Deployment(replace(first.order, release=first.release), self._clients, self._report)
        again = await self._deployment.run()
        seconds = outcome.seconds + again.seconds
        if again.error is None:
            return replace(again, seconds=seconds, previous=outcome.previous)
        if outcome.error is not None:
            outcome.error.detail = f"{outcome.error.detail}\nonce more: {again.error.what}".lstrip("\n")
        self._report(Event(EventKind.STATE, text="committed", release=first.release))  # where the first time left it
        return replace(outcome, seconds=seconds)

    def _note(self, text: str) -> None:
        self._report(Event(EventKind.NOTE, text=text))
