"""A decision that a host stored, and could not follow to its end: the fleet goes on to the new release all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from test_control_runner import R1, R2, Run, app_spec, assert_nothing_left, deploy, on_fleet

from midstream.deploy import runner
from midstream.deploy.catching_up import CatchingUp
from midstream.deploy.events import EventKind
from midstream.deploy.record import ENDED
from midstream.errors import AppError, AttentionError, HostError, LockedError
from midstream.testing.fake_agent import Fail, FakeAgent, Say, Wait

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


DIED = AppError("web: instance 0 killed by SIGKILL")


def fleet_order(agents: dict[str, FakeAgent]) -> Run:
    """A deploy as the command line runs it."""
    run = Run(agents, SPECS)
    run.deployment = CatchingUp(run.deployment.order, run.clients, run.events.append)  # type: ignore[assignment]
    return run


def assert_can_be_resumed(run: Run) -> None:
    """By what is kept of it (`record.py`), which the message of its end rests on."""
    states = [event for event in run.events if event.kind is EventKind.STATE]
    assert states[-1].text not in ENDED
    assert states[-1].release == R2


def test_a_candidate_that_dies_just_before_its_hosts_own_commit_is_made_anew_at_once(tmp_path: Path) -> None:
    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, SPECS, deploy_id="d0")
        agents["batch1"].script("deploy.commit", Fail(DIED))
        run = fleet_order(agents)
        outcome = await run()
        assert outcome.exit_code == 0, outcome.error
        assert {agent.apps["shop"].committed for agent in agents.values()} == {R2}
        assert {row.state for row in outcome.hosts} == {"committed"}
        assert "batch1 did not take the decision; the others did: once more" in run.texts()
        assert_nothing_left(agents)


def test_one_that_refuses_again_is_told_and_not_asked_for_ever(tmp_path: Path) -> None:
    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, SPECS, deploy_id="d0")
        agents["batch1"].script("deploy.commit", Fail(DIED), Fail(DIED), Fail(DIED))
        run = fleet_order(agents)
        outcome = await run()
        assert outcome.exit_code == 5
        assert agents["batch1"].methods().count("deploy.commit") == 1 + 2, "d0, and twice"
        assert {name: agent.apps["shop"].committed for name, agent in agents.items()} == {"web1": R2, "batch1": R1}
        assert "midstream resume" in str(outcome.error)
        assert_can_be_resumed(run)
        assert_nothing_left(agents)


def test_one_that_does_not_even_come_up_the_second_time_can_be_resumed_and_then_again(tmp_path: Path) -> None:
    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, SPECS, deploy_id="d0")
        agents["batch1"].script("deploy.commit", Fail(DIED))
        agents["batch1"].script("deploy.publish", Say(()), Fail(DIED), Fail(DIED))
        for run in (fleet_order(agents), fleet_order(agents)):  # the deploy, and its resume
            outcome = await run()
            told = str(outcome.error)
            assert outcome.exit_code == 5 and "midstream resume" in told
            assert f"{R2} on web1" in told or f"web1: release {R2}" in told
            assert f"{R1} on batch1" in told or f"batch1: release {R1}" in told
            assert [row.release for row in outcome.hosts] == [R2, R1]
            assert {name: agent.apps["shop"].committed for name, agent in agents.items()} == {"web1": R2, "batch1": R1}
            assert_can_be_resumed(run)
            assert_nothing_left(agents)
        assert (await fleet_order(agents)()).exit_code == 0
        assert {agent.apps["shop"].committed for agent in agents.values()} == {R2}


def test_somebody_elses_deploy_in_between_is_not_disturbed(tmp_path: Path) -> None:
    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, SPECS, deploy_id="d0")
        agents["batch1"].script("deploy.commit", Fail(DIED))
        agents["web1"].script("deploy.open", Say(()), Fail(LockedError("locked by ben: a hotfix")))
        run = fleet_order(agents)
        outcome = await run()
        assert outcome.exit_code == 5, "not 4: a part of the fleet is on the new release"
        assert_can_be_resumed(run)
        assert "once more: locked by ben: a hotfix" in str(outcome.error)
        assert_nothing_left(agents)


def test_who_interrupts_after_the_decision_is_not_kept(tmp_path: Path) -> None:
    @on_fleet(tmp_path, *SPECS)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, SPECS, deploy_id="d0")
        agents["web1"].script("deploy.commit", Wait())
        agents["batch1"].script("deploy.commit", Fail(DIED))
        run = fleet_order(agents)
        ended = asyncio.ensure_future(run())
        await agents["web1"].wait_for("deploy.commit", 2)
        run.deployment.interrupt()
        agents["web1"].release()
        outcome = await ended
        assert outcome.exit_code == 5
        assert agents["batch1"].methods().count("deploy.open") == 2, "d0, and once"


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


def test_one_that_is_asked_again_at_that_moment_stays_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the way back is refused it goes on; taken for half done, it would be put back on a schema it cannot work with."""
    monkeypatch.setattr(runner, "PROOF_GOOD_FOR_S", 0.0)
    specs = {"db1": app_spec("db", "web", reversible=False), "batch1": app_spec("batch", reversible=False)}

    @on_fleet(tmp_path, *specs)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, specs, deploy_id="d0")
        agents["db1"].migrates = True
        agents["db1"].script("deploy.publish", Say(()), Wait())
        agents["batch1"].script("deploy.publish", Say(()), Fail(DIED))
        outcome = await deploy(agents, specs)
        assert outcome.exit_code == 5
        assert {name: agent.apps["shop"].committed for name, agent in agents.items()} == {"db1": R2, "batch1": R1}
        assert "deploy.revert" not in agents["db1"].methods()
