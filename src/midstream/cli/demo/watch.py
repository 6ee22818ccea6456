"""Follows the private agent through its control socket: its events, kept, and the processes that run, for the screen.

The agent is killed in the middle of the demo: both go on when it is back, and nothing is counted twice.
Runs in the demo.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from midstream.cli.demo.board import Board, Process
from midstream.cli.demo.evidence import Fact
from midstream.deploy.client import AgentClient
from midstream.deploy.transport import LocalHost
from midstream.errors import MidstreamError

LOOK_EVERY_S = 0.4


class Watch:
    """agent_pid: of the agent as last seen. on_fact is called once for each new event."""

    def __init__(self, socket_path: str, board: Board, on_fact: Callable[[Fact], None]) -> None:
        self._host = LocalHost("localhost", socket_path)
        self._board = board
        self._on_fact = on_fact
        self._facts: dict[tuple[Any, ...], Fact] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.agent_pid = 0

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._look())]

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def facts(self) -> list[Fact]:
        """All events from the first one on, asked for once more: what was not heard live is read from the store."""
        client = AgentClient(self._host, on_notice=self._take)
        await client.start(give_up_s=10.0)
        try:
            last = -1
            while True:
                answer = await client.call("events", app="shop", after=max(last, 0), follow=False)
                if int(answer.get("last", 0)) <= last:
                    break
                last = int(answer.get("last", 0))
        finally:
            await client.close()
        return sorted(self._facts.values(), key=lambda fact: fact.time)

    def _take(self, method: str, params: dict[str, Any]) -> None:
        if method != "event":
            return
        fact = Fact(*(params[name] for name in ("time", "service", "generation", "kind", "text", "intent")))
        key = (fact.time, fact.service, fact.generation, fact.kind, fact.text, params["slot"])
        if key not in self._facts:
            self._facts[key] = fact
            self._on_fact(fact)

    async def _follow(self) -> None:
        """A client for each life of the agent; a broken stream is begun anew, and known events are passed over."""
        while True:
            client = AgentClient(self._host, on_notice=self._take, give_up_s=0.0)
            with contextlib.suppress(MidstreamError):
                await client.start(give_up_s=10.0)
                await client.call("events", follow=True, idempotent=False)
            await client.close()
            await asyncio.sleep(0.1)

    async def _look(self) -> None:
        client = AgentClient(self._host)
        await client.start(give_up_s=10.0)
        try:
            while True:
                with contextlib.suppress(MidstreamError):
                    self._show(await client.call("status"))
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            await client.close()

    def _show(self, status: dict[str, Any]) -> None:
        self.agent_pid = int(status["agent"]["pid"])
        self._board.processes = [
            Process(
                service["service"], instance["pid"], generation["release"], generation["state"], instance["throwaway"]
            )
            for app in status["apps"]
            for service in app["services"]
            for generation in service["generations"]
            for instance in generation["instances"]
            if instance["pid"]
        ]
