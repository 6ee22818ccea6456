"""Steps that ask another supervisor: what is left of one whose caller went away."""

from __future__ import annotations

import asyncio
import contextlib
import os
from types import SimpleNamespace
from typing import Any

from midstream.agent.external import Externals
from midstream.agent.oneshots import OneShots, Outcome
from midstream.core.messages import ProcessEntry, ProcessKind, ProcessState, SpawnSpec
from midstream.core.spec import HoldSpec
from midstream.core.steps import MonitLook


class FakeLink:
    """A keeper that starts what it is asked to and tells of no end; what it may forget is kept in `forgotten`."""

    def __init__(self) -> None:
        self.shots: OneShots | None = None
        self.started: list[str] = []
        self.forgotten: list[str] = []

    async def channel(self, *_: Any) -> Any:
        ours, theirs = os.pipe()
        os.close(theirs)
        return SimpleNamespace(fd=ours)

    async def spawn(self, specs: tuple[SpawnSpec, ...], fds: tuple[int, ...]) -> list[Any]:
        assert self.shots is not None
        for spec in specs:
            self.started.append(spec.key)
            self.shots.seen(ProcessEntry(spec.key, ProcessKind.ONE_SHOT, ProcessState.RUNNING, 1))
        return [SimpleNamespace(ok=True, error="") for _ in specs]

    async def kill_tree(self, key: str) -> None: ...

    async def unchannel(self, channel: str) -> None: ...

    async def ack(self, keys: tuple[str, ...]) -> None:
        self.forgotten += keys


def test_a_look_that_was_given_up_is_forgotten_once_it_has_ended() -> None:
    async def story() -> None:
        link = FakeLink()

        async def connected() -> FakeLink:
            return link

        shots = link.shots = OneShots(connected)  # type: ignore[arg-type]
        externals = _externals(shots)
        asked = asyncio.create_task(externals.steps.run("shop", 7, os.getuid(), MonitLook("", "jobs"), 60.0))
        while not link.started:
            await asyncio.sleep(0)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        shots.seen(ProcessEntry(link.started[0], ProcessKind.ONE_SHOT, ProcessState.EXITED, 2, code=0))
        for _ in range(100):
            await asyncio.sleep(0)
        assert link.forgotten == link.started
        assert not shots.known_of()

    asyncio.run(story())


def test_looking_again_and_again_leaves_nothing_behind() -> None:
    async def story() -> None:
        class Shots:
            async def run(self, spec: SpawnSpec, **_: Any) -> Outcome:
                return Outcome(1, "exit 1")

            def last_attempt(self, *_: Any) -> None: ...

        externals = _externals(Shots())
        for _ in range(5):
            await externals._look("shop", HoldSpec("monit", "jobs", "", ""))
        assert "gave no answer" in externals._sights["shop", "monit", "jobs"].trouble
        assert externals.steps._attempts == {}

    asyncio.run(story())


def _externals(shots: Any) -> Externals:
    record = SimpleNamespace(owner_uid=os.getuid(), committed_generation=1)
    host = SimpleNamespace(
        uid=os.getuid(),
        one_shots=shots,
        store=SimpleNamespace(external_holds=list),
        apps={"shop": record},
        record=lambda app, number: SimpleNamespace(spec=None),
    )
    return Externals(host)  # type: ignore[arg-type]
