"""The lock of all hosts for `env push --restart`: all or none, in a deploy's order, and freed whatever happens."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from test_control_runner import app_spec, assert_nothing_left, deploy, on_fleet

from midstream.cli.fleet_lock import FleetLock
from midstream.deploy.sync_client import SyncClient
from midstream.deploy.transport import LocalHost
from midstream.errors import AppError, LockedError
from midstream.testing.fake_agent import Fail, FakeAgent, HangUp

SPECS = {name: app_spec() for name in ("web2", "web1", "web3")}


class Noted(list[tuple[str, dict[str, Any]]]):
    """The calls of one agent, which go into the `order` of all, too."""

    def __init__(self, name: str, order: list[tuple[str, str]]) -> None:
        super().__init__()
        self._name, self._order = name, order

    def append(self, call: tuple[str, dict[str, Any]]) -> None:
        self._order.append((call[0], self._name))
        super().append(call)


def restart_all(agents: dict[str, FakeAgent]) -> Any:
    lock = FleetLock(SPECS, "anna")

    def work(client: SyncClient, host: str, mark: dict[str, Any]) -> dict[str, Any]:
        lock.meet("looked")
        return client.call("restart", app="shop", services=[], **mark)

    hosts = [LocalHost(name, agents[name].socket_path) for name in SPECS]
    return asyncio.wait_for(asyncio.to_thread(lock.ask, hosts, work, several=True), 30)


def test_all_are_locked_in_the_order_of_a_deploy_before_one_restarts(tmp_path: Path) -> None:
    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, SPECS, deploy_id="d1")
        order: list[tuple[str, str]] = []
        for name, agent in agents.items():
            agent.calls = Noted(name, order)
        answers = await restart_all(agents)
        assert not answers.failed and len(list(answers.good())) == 3
        told = [row for row in order if row[0] != "hello"]
        assert told[:3] == [("deploy.open", name) for name in ("web1", "web2", "web3")]
        assert {row[0] for row in told[3:]} == {"restart", "deploy.finish"}
        assert_nothing_left(agents)


def test_where_one_is_locked_nothing_is_done_on_any(tmp_path: Path) -> None:
    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, SPECS, deploy_id="d1")
        agents["web2"].apps["shop"].lock = {"owner": "bob", "reason": "looking"}
        answers = await restart_all(agents)
        assert [(row.host, type(row.error)) for row in answers.failed] == [("web2", LockedError)]
        assert answers.conclude() == 4 and not list(answers.good())
        assert not any("restart" in agent.methods() for agent in agents.values())
        assert_nothing_left(agents)


def test_a_host_that_goes_away_before_all_are_ready_stops_the_others(tmp_path: Path) -> None:
    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, SPECS, deploy_id="d1")
        agents["web3"].script("deploy.open", HangUp(stay_away=True))
        answers = await restart_all(agents)
        assert [row.host for row in answers.failed] == ["web3"]
        assert not any("restart" in agent.methods() for agent in agents.values())
        del agents["web3"]
        assert_nothing_left(agents)


def test_a_restart_that_fails_frees_its_lock_and_stops_no_other(tmp_path: Path) -> None:
    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, SPECS, deploy_id="d1")
        agents["web1"].script("restart", Fail(AppError("web did not come up")))
        answers = await restart_all(agents)
        assert [row.host for row in answers.failed] == ["web1"]
        assert sorted(host for host, _ in answers.good()) == ["web2", "web3"]
        assert agents["web1"].params_of("deploy.finish")["outcome"] == "failed"
        assert_nothing_left(agents)
