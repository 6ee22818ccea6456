"""A decision that a host stored, and could not follow to its end: the fleet goes on to the new release all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_control_runner import R1, R2, app_spec, assert_nothing_left, deploy, on_fleet

from midstream.deploy import runner
from midstream.errors import AppError, AttentionError, HostError
from midstream.testing.fake_agent import Fail, FakeAgent, Say

SPECS = {"web1": app_spec("web"), "batch1": app_spec("batch")}
NOT_SWITCHED = AttentionError(
    "release is committed and serves, but `current` could not be switched: no space left", where="/srv/shop"
)


@pytest.mark.parametrize("host", SPECS)
def test_a_current_that_cannot_be_switched_on_one_host_splits_no_fleet(tmp_path: Path, host: str) -> None:
    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, SPECS, deploy_id="d0")
        agents[host].script("deploy.commit", Fail(NOT_SWITCHED, done=True))
        outcome = await deploy(agents, SPECS)
        assert {agent.apps["shop"].committed for agent in agents.values()} == {R2}
        assert not any("deploy.revert" in agent.methods() for agent in agents.values())
        assert_nothing_left(agents)
        assert outcome.exit_code == 5
        told = str(outcome.error)
        assert "could not be switched" in told and host in told and "/srv/shop" in told
        assert {row.release for row in outcome.hosts} == {R2}


def test_a_coordinator_that_refuses_the_decision_sends_all_back(tmp_path: Path) -> None:
    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, SPECS, deploy_id="d0")
        agents["web1"].script("deploy.commit", Fail(HostError("disk full")))
        outcome = await deploy(agents, SPECS)
        assert {agent.apps["shop"].committed for agent in agents.values()} == {R1}
        assert outcome.exit_code == 1
        assert_nothing_left(agents)


@pytest.mark.parametrize("host", SPECS)
def test_a_generation_that_died_since_its_proof_sends_all_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """The others took longer to prove; the decision on the first host would leave the one where it died behind."""
    monkeypatch.setattr(runner, "PROOF_GOOD_FOR_S", 0.0)

    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, SPECS, deploy_id="d0")
        agents[host].script("deploy.publish", Say(()), Fail(AppError("web: instance 0 killed by SIGKILL")))
        outcome = await deploy(agents, SPECS)
        assert {agent.apps["shop"].committed for agent in agents.values()} == {R1}
        assert outcome.exit_code == 1 and "killed by SIGKILL" in str(outcome.error)
        assert_nothing_left(agents)
