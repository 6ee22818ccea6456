"""`midstream abort` against a deployer that decides at the same moment: told apart by the agents, never split."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from test_control_runner import R1, R2, SHA2, app_spec, assert_nothing_left, deploy, on_fleet

from midstream.cli.aim import Aim
from midstream.cli.settle_commands import look_at_fleet, settle_fleet
from midstream.core.wire import to_wire
from midstream.deploy.client import AgentClient
from midstream.deploy.transport import LocalHost
from midstream.errors import AttentionError, LockedError
from midstream.testing.fake_agent import FakeAgent

SPECS = {name: app_spec() for name in ("web1", "web2")}


class Deployer:
    """One that makes single calls of deploy `d2`."""

    def __init__(self, agents: dict[str, FakeAgent]) -> None:
        self.clients = {name: AgentClient(LocalHost(name, agent.socket_path)) for name, agent in agents.items()}
        self.tokens: dict[str, Any] = {}

    async def until_proven(self) -> None:
        for name, client in self.clients.items():
            await client.start()
            opened = await client.call(
                "deploy.open", deploy_id="d2", spec=to_wire(SPECS[name]), kind="deploy", user="anna"
            )
            self.tokens[name] = opened["token"]
            await self.call(
                name,
                "update",
                spec=to_wire(SPECS[name]),
                revision=SHA2,
                tree="t" * 40,
                revision_time=1,
                branch="main",
                release=R2,
                secrets={},
                pack=False,
                migrate=False,
            )
            await self.call(name, "publish")

    async def call(self, name: str, method: str, **params: Any) -> Any:
        return await self.clients[name].call(f"deploy.{method}", deploy_id="d2", token=self.tokens[name], **params)

    async def close(self) -> None:
        for client in self.clients.values():
            await client.close()


def aim_at(agents: dict[str, FakeAgent]) -> Aim:
    return Aim("shop", "production", (), tuple(LocalHost(n, a.socket_path) for n, a in agents.items()), several=True)


async def proven(agents: dict[str, FakeAgent]) -> tuple[Deployer, dict[str, dict[str, Any]]]:
    """`d1` is committed, `d2` proven on all; and what `abort` saw then."""
    await deploy(agents, SPECS, deploy_id="d1")
    deployer = Deployer(agents)
    await deployer.until_proven()
    return deployer, await asyncio.to_thread(look_at_fleet, aim_at(agents))


def assert_all_on(release: str, agents: dict[str, FakeAgent]) -> None:
    assert {agent.apps["shop"].committed for agent in agents.values()} == {release}
    assert_nothing_left(agents)


def test_a_decision_between_look_and_abort_is_refused_and_no_host_goes_back(tmp_path: Path) -> None:
    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        deployer, seen = await proven(agents)
        await deployer.call("web1", "commit")
        answers = await asyncio.to_thread(settle_fleet, aim_at(agents), seen, "aborted")
        assert [(row.host, type(row.error)) for row in answers.failed] == [("web1", AttentionError)]
        assert answers.conclude() == 5
        assert "deploy.settle" not in agents["web2"].methods(), "web2 may still follow"
        await deployer.call("web2", "commit")
        for name in agents:
            await deployer.call(name, "finish", outcome="done")
        await deployer.close()
        assert_all_on(R2, agents)


def test_an_abort_before_the_decision_puts_all_back(tmp_path: Path) -> None:
    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        deployer, seen = await proven(agents)
        answers = await asyncio.to_thread(settle_fleet, aim_at(agents), seen, "aborted")
        assert [(host, answer["settled"]) for host, (_, answer) in answers.good()] == [("web1", True), ("web2", True)]
        with pytest.raises(LockedError):
            await deployer.call("web1", "commit")
        await deployer.close()
        assert_all_on(R1, agents)


def test_a_deploy_that_began_after_the_look_is_not_aborted(tmp_path: Path) -> None:
    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, SPECS, deploy_id="d1")
        aim = aim_at(agents)
        nothing = await asyncio.to_thread(look_at_fleet, aim)
        deployer = Deployer(agents)
        await deployer.until_proven()
        answers = await asyncio.to_thread(settle_fleet, aim, nothing, "aborted")
        assert not answers.failed and all(agent.apps["shop"].deploy is not None for agent in agents.values())
        seen = await asyncio.to_thread(look_at_fleet, aim)
        seen["web1"]["deploy"]["id"] = "another"
        answers = await asyncio.to_thread(settle_fleet, aim, seen, "aborted")
        assert [type(row.error) for row in answers.failed] == [LockedError]
        assert all(agent.apps["shop"].deploy is not None for agent in agents.values())
        await deployer.close()
