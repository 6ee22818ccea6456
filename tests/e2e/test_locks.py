"""Who may deploy: deploys started at the same time on two real agents, and locks made by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Iterator

import pytest
from machine import Machine, Project, new_machine, new_project, wait_for

from midstream.cli.deploy_run import pick_release
from midstream.core.plan import deploy_plan
from midstream.core.spec import AppSpec
from midstream.deploy.client import AgentClient
from midstream.deploy.events import Outcome
from midstream.deploy.order import Order
from midstream.deploy.runner import Deployment
from midstream.deploy.source import Source
from midstream.deploy.transport import LocalHost

PAIRS = int(os.environ.get("MIDSTREAM_PAIRS", "12"))


@pytest.fixture
def two() -> Iterator[dict[str, Machine]]:
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(new_machine()) for name in ("a", "b")}


def deployment(
    machines: dict[str, Machine], names: tuple[str, ...], source: Source, who: str, wait: bool
) -> Deployment:
    specs = {
        name: AppSpec("shop", str(machines[name].root / "srv"), str(source.repository), roles=("web",))
        for name in names
    }
    order = Order(
        deploy_id=f"{who}-{time.monotonic_ns()}",
        plan=deploy_plan(specs),
        specs=specs,
        user=who,
        pick_release=pick_release,
        target=source.resolve("main"),
        pack=source.pack,
        wait=wait,
    )
    clients = {name: AgentClient(LocalHost(name, str(machines[name].socket))) for name in names}
    return Deployment(order, clients, lambda event: None)


async def run_all(deployments: list[Deployment]) -> list[Outcome]:
    async def one(deployment: Deployment) -> Outcome:
        clients = [host.client for host in deployment.hosts.values()]
        await asyncio.gather(*(client.start() for client in clients))
        try:
            return await deployment.run()
        finally:
            await asyncio.gather(*(client.close() for client in clients))

    return await asyncio.wait_for(asyncio.gather(*(one(deployment) for deployment in deployments)), 120)


@pytest.mark.timeout(60 + 5 * PAIRS)
def test_of_pairs_started_at_once_exactly_one_wins_each_time(two: dict[str, Machine]) -> None:
    """In whatever order their files name the hosts. The other is told who it was, and nothing is left locked."""
    project = new_project(two["a"])
    source = Source(str(project.folder))
    for turn in range(PAIRS):
        orders = (("a", "b"), ("b", "a")) if turn % 2 else (("a", "b"), ("a", "b"))
        runs = [deployment(two, names, source, who, False) for who, names in zip(("anna", "bert"), orders, strict=True)]
        first, second = asyncio.run(run_all(runs))
        assert sorted((first.exit_code, second.exit_code)) == [0, 4], (str(first.error), str(second.error))
        loser, winner = (first, "bert") if first.error else (second, "anna")
        assert f"{winner} has been running a deploy" in str(loser.error) and "since" in str(loser.error)
        assert len({machine.app()["release"] for machine in two.values()}) == 1
        assert [machine.app()["deploy"] for machine in two.values()] == [None, None]


def test_those_that_wait_get_their_turn(two: dict[str, Machine]) -> None:
    project = new_project(two["a"])
    source = Source(str(project.folder))
    sets = (("a", "b"), ("b", "a"), ("b",))
    outcomes = asyncio.run(run_all([deployment(two, names, source, "anna", True) for names in sets]))
    assert [outcome.exit_code for outcome in outcomes] == [0, 0, 0], [str(outcome.error) for outcome in outcomes]


def test_a_lock_ends_by_itself_and_survives_the_agent(project: Project, machine: Machine) -> None:
    project.deployed()
    assert project.cli("lock", "--reason", "freeze", "--for", "soon").code == 2
    locked = project.cli("lock", "--reason", "freeze", "--for", "1h")
    assert locked.code == 0, locked.text
    machine.kill_agent()
    refused = project.deploy()
    assert refused.code == 4 and "freeze" in refused.err and "another 3" in refused.err
    why = project.cli("lock", "--why")
    assert why.code == 4 and "freeze" in why.out and "for another" in why.out
    assert project.cli("lock", "--reason", "freeze", "--for", "200ms").code == 0
    wait_for("the lock to end", lambda: machine.app()["lock"] is None)
    assert project.cli("lock", "--why").code == 0
    assert project.deploy().code == 0


def test_anothers_lock_is_freed_by_force_only(project: Project, machine: Machine) -> None:
    project.deployed()
    machine.call("lock", app="shop", owner="bert", reason="mine")
    refused = project.cli("unlock")
    assert refused.code == 4 and "bert" in refused.err
    assert json.loads(project.cli("lock", "--why", "--json").out)["lock"]["owner"] == "bert"
    assert project.cli("unlock", "--force").code == 0
    assert machine.app()["lock"] is None
