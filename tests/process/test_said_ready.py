"""What an agent keeps of READY=1 belongs to one process, not to whatever has its key later."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from midstream.agent.processes import Processes
from midstream.core.events import Spawned
from midstream.core.generation import Generation, GenerationPlan, GenerationState
from midstream.core.messages import ProcessEntry, ProcessKind, ProcessState
from midstream.core.service import Service

NAME, PLACE = ("shop", "jobs"), (2, 0, 0)
ENTRY = ProcessEntry("shop/jobs/2/0/0", ProcessKind.INSTANCE, ProcessState.RUNNING, 1, pid=100, start_ticks=5000)


def agent(meta: dict[str, str], entry: ProcessEntry) -> Processes:
    """One that is told of this process; `meta` is what outlives it."""
    proven = Generation(2, "r2", GenerationState.PREPARED, GenerationPlan())
    store = SimpleNamespace(meta=lambda name: meta.get(name, ""), set_meta=meta.__setitem__)
    services = {NAME: Service(*NAME, generations=(proven,))}
    host = SimpleNamespace(store=store, services=services, key=lambda name, place: "/".join(map(str, (*name, *place))))
    made = Processes(cast(Any, host))
    made.seen(NAME, PLACE, entry)
    return made


def test_it_outlives_the_agent_and_not_the_process() -> None:
    meta: dict[str, str] = {}
    seen = Spawned(*PLACE, pid=ENTRY.pid)
    agent(meta, ENTRY).remember_ready(NAME, PLACE)
    assert agent(meta, ENTRY).was_ready(NAME, seen)
    assert not agent(meta, replace(ENTRY, start_ticks=9)).was_ready(NAME, seen), "the next one of that key and pid"
