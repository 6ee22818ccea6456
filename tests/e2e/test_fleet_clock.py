"""Clocks: hosts that are days apart, that were booted at other times, and whose wall clock is set while all of it runs."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fleet import FleetHost, FleetProject, kill_session, new_fleet, why_no_fleet
from host_clock import DAY_S, Clock, clock_of, clock_of_deployer
from machine import Result, wait_for
from test_fleet_deploy import on_one_release
from worker_projects import SIDEKIQ_JOBS, Jobs, Redis, sidekiq_config

from midstream.errors import EXIT_LOCKED

pytestmark = [pytest.mark.slow, pytest.mark.server("cc")]
SOON_S = 600.0  # any two moments of one test are closer
HOUR_S = 3600.0


def with_clock(host: FleetHost, ahead_s: int = 0) -> Clock:
    """Its agent, and all that this starts, lives by the clock that is returned."""
    clock = clock_of(host, ahead_s)
    host.start_agent()
    return clock


@dataclass(frozen=True)
class One:
    host: FleetHost
    project: FleetProject
    clock: Clock


@pytest.fixture(scope="module")
def started() -> Iterator[One]:
    if reason := why_no_fleet():
        pytest.skip(reason)
    with new_fleet(1, agents=False, up_s={"web1": 40 * DAY_S}) as fleet:
        host = fleet.host("web1")
        host.install(fleet.pyz())
        clock = with_clock(host)
        project = fleet.project()
        project.deployed()
        yield One(host, project, clock)


@pytest.fixture
def one(started: One) -> One:
    """A host that was booted long before this machine, with some release. Its clock is right at first."""
    started.clock.set(0)
    started.project.write(config=started.project.config())
    return started


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.code == 0, result.text
    return [json.loads(line) for line in result.out.splitlines()]


def on_disk(host: FleetHost) -> list[str]:
    return sorted(path.name for path in (host.root / "srv/shop/releases").iterdir())


def service(host: FleetHost, name: str = "web") -> dict[str, Any]:
    return next(row for row in host.app()["services"] if row["service"] == name)


def states(host: FleetHost, name: str = "web") -> list[str]:
    return [generation["state"] for generation in service(host, name)["generations"]]


def instances(host: FleetHost, name: str = "web") -> list[dict[str, Any]]:
    return [item for generation in service(host, name)["generations"] for item in generation["instances"]]


# ---------------------------------------------------------------------- days apart


def test_hosts_days_apart_go_from_release_to_release_and_back() -> None:
    """And so does a deployer whose clock is behind its own last release: ids grow, and are the same everywhere."""
    if reason := why_no_fleet():
        pytest.skip(reason)
    ahead = {"web1": -5 * DAY_S, "web2": 3 * DAY_S}
    up = {"web1": 40 * DAY_S, "web2": 400 * DAY_S}
    with new_fleet(agents=False, names=list(ahead), up_s=up) as fleet:
        for name, host in fleet.hosts.items():
            host.install(fleet.pyz())
            with_clock(host, ahead[name])
        project = fleet.project()
        project.write(config=project.config(top="keep_releases = 2"))
        project.commit("keeps two")
        releases = [project.deployed()]
        behind = clock_of_deployer(fleet, -2 * DAY_S).env
        for _ in range(2):
            project.commit()
            deployed = project.deploy(**behind)
            assert deployed.code == 0, deployed.text
            releases.append(fleet.host("web1").release())
            assert on_one_release(fleet, releases[-1])
        assert releases == sorted(set(releases))
        assert [on_disk(host) for host in fleet.hosts.values()] == [releases[1:]] * 2

        fleet.host("web2").box.sh(f"touch -d '+9 days' /srv/shop/releases/{releases[1]}")
        back = project.cli("rollback")
        assert back.code == 0, back.text
        assert on_one_release(fleet, releases[1]), "the one before by its id, whatever its folder's time"
        _tells_plausible_times(project, ahead)


def _tells_plausible_times(project: FleetProject, ahead: dict[str, int]) -> None:
    """What `status`, `why` and `logs` say, and that they leave out no host."""
    seen = rows(project.cli("status", "--json"))
    for row in seen:
        assert abs(row["time"] - time.time() - ahead[row["address"]]) < SOON_S
        for generation in row["apps"][0]["services"][0]["generations"]:
            assert 0 <= generation["since_s"] < SOON_S
            assert all(0 <= item["uptime_s"] < SOON_S for item in generation["instances"])
    told = project.cli("status").out
    assert "web1: its clock is 5d behind this one's" in told and "web2: its clock is 3d ahead of this one's" in told
    for entries in (
        rows(project.cli("why", "web", "--json", "-n", "9")),
        rows(project.cli("logs", "--json", "-n", "2")),
    ):
        assert {row["host"] for row in entries} == set(ahead)
    commits = [row for row in rows(project.cli("why", "web", "--json")) if row["what"] == "commit"]
    assert {row["host"] for row in commits[-2:]} == set(ahead), "the last commits are those of one deploy"


# ---------------------------------------------------------------------- set while it runs


def test_locks_and_holds_last_as_long_as_they_were_given(one: One) -> None:
    """Two days on and back, over the agent's death: none ends early. Back: none stays for ever."""
    host, project, clock = one.host, one.project, one.clock

    def left_s() -> list[float]:
        return [host.app()["lock"]["expires_in_s"], service(host)["hold"]["expires_in_s"]]

    host.call("lock", app="shop", owner="anna", reason="freeze", ttl_s=HOUR_S)
    token = host.call("hold", app="shop", service="web", owner="anna", ttl_s=HOUR_S)["token"]
    for jump_s in (2 * DAY_S, -4 * DAY_S):
        clock.jump(jump_s)
        assert all(HOUR_S - SOON_S < left <= HOUR_S for left in left_s())
        assert project.deploy().code == EXIT_LOCKED
        host.kill_agent()
        assert all(HOUR_S - SOON_S < left <= HOUR_S for left in left_s())
    host.call("unhold", app="shop", service="web", token=token)
    host.call("lock", app="shop", owner="anna", reason="freeze", ttl_s=1.0)
    host.call("hold", app="shop", service="web", owner="anna", ttl_s=1.0)
    clock.jump(-2 * DAY_S)
    wait_for("lock and hold to end", lambda: host.app()["lock"] is None and service(host)["hold"] is None)
    assert project.deploy().code == 0


@pytest.mark.parametrize("jump_s", [2 * DAY_S, -2 * DAY_S], ids=["on", "back"])
def test_a_soak_a_drain_and_a_lease_do_not_notice(one: One, jump_s: int) -> None:
    """While a release soaks, with the deployer there and without; and while the old one answers its last request."""
    host, project, clock = one.host, one.project, one.clock
    first = host.release()
    project.commit("soaks", config=project.config(project.web('soak = "10m"')))
    deployer = project.machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the soak", lambda: "soaking" in states(host))
    clock.jump(jump_s)
    fresh = host.status()["time"]
    assert abs(fresh - time.time() - jump_s) < SOON_S
    assert host.app()["deploy"]["state"] == "publishing" and "soaking" in states(host), "neither soak nor lease is over"
    kill_session(deployer)
    clock.jump(-jump_s)
    wait_for("the lease to end", lambda: host.settled() and host.release() == first)

    project.commit("soaks no more", config=project.config(project.web('soak = "1s"')))
    fleet, answers = project.machine, []
    slow = threading.Thread(target=lambda: answers.append(fleet.get("web1", "/slow?ms=4000", timeout_s=60.0)))
    slow.start()
    second = project.deployed()
    wait_for("the drain", lambda: "draining" in states(host) or answers)
    clock.jump(jump_s)
    slow.join()
    assert [status for status, _ in answers] == [200]
    wait_for("the old ones to be gone", lambda: states(host) == ["committed"])
    assert fleet.get("web1")[1] == second


def test_a_crashing_service_comes_back_after_the_clock_was_set_back(one: One) -> None:
    host, clock = one.host, one.clock
    killed = 0

    def another() -> int:
        return next((item["pid"] for item in instances(host) if item["ready"] and item["pid"] != killed), 0)

    for jump_s in (2 * DAY_S, -4 * DAY_S, -2 * DAY_S):
        killed = wait_for("the service", another)
        host.box.run("kill", "-9", str(killed))
        clock.jump(jump_s)
    wait_for("the service", another)


# ---------------------------------------------------------------------- workers


@dataclass
class HostRedis(Redis):
    """On the host itself: its workers' heartbeats are what the clock moves."""

    host: FleetHost

    def ask(self, *words: str) -> Any:
        return self.host.box.run("redis-cli", "-p", str(self.port), *words)


@contextlib.contextmanager
def redis_on(host: FleetHost) -> Iterator[HostRedis]:
    process = host.box.popen("redis-server", "--port", "6379", "--bind", "127.0.0.1", "--save", "", "--dir", "/tmp")
    try:
        wait_for("redis", lambda: "PONG" in host.box.run("redis-cli", "ping", check=False))
        yield HostRedis(6379, process, host)
    finally:
        process.terminate()
        process.wait(20.0)


@pytest.mark.server("redis-server")
def test_a_drained_sidekiq_ends_with_its_last_job_when_the_clock_is_set_back(one: One) -> None:
    """Not at its deadline: that it is quiet and idle is told from heartbeats, which go back with the clock. The last test
    of this file: workers without their Redis stay behind."""
    if shutil.which("sidekiq") is None:
        pytest.skip("needs sidekiq")
    host, project, clock = one.host, one.project, one.clock
    with redis_on(host) as redis:
        log = Path("/srv/shop/jobs.log")
        jobs = Jobs(redis, "sidekiq", host.root / str(log).lstrip("/"))
        config = sidekiq_config(project, redis, log, project.web()).replace(
            'drain_timeout = "120s"', 'drain_timeout = "1h"'
        )
        project.commit("workers", config=config, jobs_dot_rb=SIDEKIQ_JOBS, misbehave="no")
        first = project.deployed()
        job = jobs.hold()
        wait_for("the job", lambda: job in jobs.begun())
        project.commit("the next")
        project.deployed()
        wait_for("the drain", lambda: "draining" in states(host, "jobs"))
        clock.jump(-2 * DAY_S)
        ages = [row["age_s"] for item in instances(host, "jobs") if item["work"] for row in item["work"]["jobs"]]
        assert all(age is None or age >= 0 for age in ages)
        jobs.let_go(job)
        wait_for("the old ones to be gone", lambda: states(host, "jobs") == ["committed"])
        assert [(line.what, line.release) for line in jobs.lines()] == [("begin", first), ("end", first)]
