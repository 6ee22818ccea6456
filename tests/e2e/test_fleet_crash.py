"""kill -9 of the deployer around every call and write, and of each host's agent at every point, on two hosts.

After each crash comes one of: `midstream resume`, `midstream abort`, the next `midstream deploy`, or no command at all but
the end of the lease. `MIDSTREAM_CRASH_ALL=1` tries every point; by default some, others with another `MIDSTREAM_SEED`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from crash_points import chosen
from fleet import why_no_fleet
from fleet_under_fire import Fire, fire, no_failures, under_fleet_load
from machine import wait_for

from midstream.errors import EXIT_ATTENTION, EXIT_DRIFT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def burning() -> Iterator[Fire]:
    if reason := why_no_fleet():
        pytest.skip(reason)
    with fire() as started:
        started.deploy_counting()
        yield started


def numbered(names: list[str], wanted: int) -> list[tuple[int, str]]:
    return chosen(list(enumerate(names, start=1)), wanted)


def resume(on: Fire, where: str) -> None:
    """Where the deployer died before its record or after its last word there is nothing to resume."""
    result = on.project.cli("resume")
    if result.code == 2:
        assert "there is no unfinished deploy" in result.err, f"{where}\n{result.text}"
    else:
        assert result.code == 0, f"{where}\n{result.text}"


def abort(on: Fire, where: str) -> None:
    """Half decided it is not put back, and the message says what to do instead."""
    result = on.project.cli("abort")
    if result.code == EXIT_ATTENTION:
        assert "midstream resume" in result.err, f"{where}\n{result.text}"
        assert on.project.cli("resume").code == 0, where
    else:
        assert result.code == 0, f"{where}\n{result.text}"


def deploy_next(on: Fire, where: str) -> None:
    on.project.commit("the next one")
    result = on.project.deploy("--wait")
    assert result.code == 0, f"{where}\n{result.text}"


def lease_alone(on: Fire, where: str) -> None:
    """No command: all is unlocked, unheld and whole; `status` tells when the fleet is on two releases."""
    wait_for("the leases to run out", on.leases_are_over)
    on.check_hosts(where)
    told = on.project.cli("status", "--check")
    if len(set(on.releases())) == 1:
        assert told.code == 0, f"{where}\n{told.text}"
        return
    assert told.code == EXIT_DRIFT, f"{where}\n{told.text}"
    for release in on.releases():
        assert release in told.text
    assert "NOT ON ONE RELEASE" in told.text
    aborted = on.project.cli("abort")
    assert aborted.code == EXIT_ATTENTION, f"two releases are served, and abort says all is well\n{aborted.text}"
    resumed = on.project.cli("resume")
    assert resumed.code == 0, f"{where}\n{resumed.text}"


AFTERWARDS: list[Callable[[Fire, str], None]] = [resume, abort, deploy_next, lease_alone]


def test_deployer_killed_around_every_call(burning: Fire) -> None:
    names = burning.deployer_points()
    assert len(names) > 50, names
    with under_fleet_load(burning.fleet) as load:
        for number, name in numbered(names, 4):
            then = AFTERWARDS[number % len(AFTERWARDS)]
            where = f"{number} {name}, then {then.__name__}"
            burning.begin_round()
            burning.deployer_plan.write_text(f"kill {name}")
            result = burning.deploy()
            hit = not burning.deployer_plan.exists()
            burning.deployer_plan.unlink(missing_ok=True)
            assert result.code == (-9 if hit else 0), f"{where}: {result.code}\n{result.text}"
            then(burning, where)
            burning.check_one_release(where)
        tallies = load()
    no_failures(tallies)


@pytest.mark.parametrize("name", ["web1", "web2"])
def test_agent_killed_at_every_point(burning: Fire, name: str) -> None:
    """The deployer goes on: it ends in one release everywhere, and says which."""
    host = burning.fleet.host(name)
    names = burning.agent_points(host)
    assert len(names) > 30, names
    with under_fleet_load(burning.fleet) as load:
        for number, point in numbered(names, 2):
            then = AFTERWARDS[number % len(AFTERWARDS)]
            where = f"{name} {number} {point}, then {then.__name__}"
            before = burning.begin_round()
            burning.agent_plan(host).write_text(f"agent {number}")
            result = burning.deploy()
            burning.agent_plan(host).unlink(missing_ok=True)
            if result.code == 0:
                assert burning.check_one_release(where) != before, where
            else:
                assert result.code in (1, EXIT_ATTENTION), f"{where}\n{result.text}"
                if result.code == 1:
                    assert burning.check_one_release(where) == before, where
                then(burning, where)
                burning.check_one_release(where)
        tallies = load()
    no_failures(tallies)


def test_agent_killed_while_a_broken_release_goes_back(burning: Fire) -> None:
    """web2 refuses the release while its agent, or that of web1, is killed: both go back, and hooks are undone."""
    with under_fleet_load(burning.fleet) as load:
        for name in burning.fleet.hosts:
            plan = burning.agent_plan(burning.fleet.host(name))
            passed = plan.with_name("plan.passed")
            passed.unlink()
            plan.write_text("count 0")
            broken_deploy(burning, "counted")
            plan.unlink()
            for number, point in numbered(passed.read_text().splitlines(), 1):
                plan.write_text(f"agent {number}")
                broken_deploy(burning, f"{name} {number} {point}")
                plan.unlink(missing_ok=True)
        tallies = load()
    no_failures(tallies)
    burning.project.misbehave("")
    assert burning.deploy().code == 0


def broken_deploy(on: Fire, where: str) -> None:
    """Its migration stands, which has to be said; everything else is as it was."""
    before = on.begin_round()
    on.project.misbehave("unhealthy")
    result = on.deploy()
    assert result.code == EXIT_ATTENTION and "schema: " in result.err, f"{where}\n{result.text}"
    assert on.check_one_release(where) == before
