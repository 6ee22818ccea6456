"""Deploys of real workers under a stream of jobs: none is lost, none begins on old code after the switch, nothing stays quiet.

Sidekiq (Debian's) and RQ against a redis-server of the test's own. The jobs write down when they begin and end, and in
which release; the agent's events tell when a release was committed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from machine import Machine, wait_for
from worker_projects import Redis, WorkerProject, private_redis, start_redis, stream, worker_project

pytestmark = [pytest.mark.slow, pytest.mark.server("redis-server")]
LIBRARIES = ("sidekiq", "rq")


def need(library: str) -> None:
    if library == "sidekiq" and shutil.which("sidekiq") is None:
        pytest.skip("sidekiq is not installed (tools/install_peers.py installs it from Debian, as root)")
    if library == "rq" and importlib.util.find_spec("rq") is None:
        pytest.skip("rq is not installed (it is in the dev extra)")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with private_redis(tmp_path) as started:
        yield started


@pytest.fixture(params=LIBRARIES)
def workers(request: pytest.FixtureRequest, machine: Machine, redis: Redis) -> WorkerProject:
    need(request.param)
    return worker_project(machine, redis, request.param)


@pytest.fixture
def sidekiq(machine: Machine, redis: Redis) -> WorkerProject:
    need("sidekiq")
    return worker_project(machine, redis, "sidekiq")


def commits(machine: Machine) -> dict[str, float]:
    """When each release was committed, by the agent's record: epoch seconds."""
    entries = machine.call("why", app="shop", service="jobs", limit=1000)["entries"]
    at = {}
    for entry in entries:
        if entry["what"] == "commit":
            at[entry["cause"].split()[1]] = seconds(entry["time"])
    return at


def seconds(moment: Any) -> float:
    return moment if isinstance(moment, float | int) else datetime.fromisoformat(moment).timestamp()


def nothing_began_on_old_code(workers: WorkerProject) -> None:
    """After a commit no job begins in a release that was committed before."""
    at = sorted((moment, release) for release, moment in commits(workers.machine).items())
    assert at, "nothing was committed"
    for line in workers.jobs.lines():
        if line.what != "begin":
            continue
        past = [release for moment, release in at if moment < line.at_s]
        assert line.release not in past[:-1], f"{line} began after the commit of {past[-1]}"


def every_job_ended(workers: WorkerProject) -> None:
    everything = {f"j{number}" for number in range(1, workers.jobs.number + 1)}
    wait_for("every job to end", lambda: workers.jobs.ended() >= everything, 120.0)


def nothing_is_quiet(workers: WorkerProject) -> None:
    """A job that is pushed now is begun, in the committed release."""
    wait_for("the services to settle", workers.machine.settled, 120.0)
    [name] = workers.jobs.push(0.0)
    wait_for("a job to be begun", lambda: name in workers.jobs.begun())
    [line] = [line for line in workers.jobs.lines() if line.job == name and line.what == "begin"]
    assert line.release == workers.machine.app()["release"]


def work_of(workers: WorkerProject) -> list[dict[str, Any]]:
    return [item["work"] for item in workers.machine.instances("jobs") if item["work"] is not None]


def test_deploys_under_a_stream_of_jobs_lose_none(workers: WorkerProject) -> None:
    workers.deploy()
    with stream(workers.jobs):
        for number in range(3):
            wait_for("jobs", lambda n=number: len(workers.jobs.ended()) > 20 * (n + 1))
            workers.project.commit(f"release {number}")
            workers.deploy()
    every_job_ended(workers)
    nothing_began_on_old_code(workers)
    nothing_is_quiet(workers)
    releases = {line.release for line in workers.jobs.lines()}
    assert len(releases) == 4


def test_a_long_job_outlives_the_deploy_and_blocks_no_other(workers: WorkerProject) -> None:
    first = workers.deploy()
    long = workers.jobs.hold()
    wait_for("the long job", lambda: long in workers.jobs.begun())
    workers.project.commit("second")
    second = workers.deploy()
    assert long not in workers.jobs.ended()
    [shown] = [job for work in work_of(workers) for job in work["jobs"]]
    assert shown["age_s"] > 0 and ("Work" in shown["name"] or "jobs.work" in shown["name"])
    [short] = workers.jobs.push(0.0)
    wait_for("a short job", lambda: short in workers.jobs.ended())
    workers.jobs.let_go(long)
    every_job_ended(workers)
    ran = {line.job: line.release for line in workers.jobs.lines()}
    assert (ran[long], ran[short]) == (first, second)
    nothing_is_quiet(workers)


def test_a_release_that_does_not_boot_leaves_the_old_workers_alone(sidekiq: WorkerProject) -> None:
    first = sidekiq.deploy()
    old = sidekiq.machine.pids("jobs")
    sidekiq.project.commit("bad", misbehave="boot")
    result = sidekiq.project.deploy()
    assert result.code == 1, result.text
    assert sidekiq.machine.pids("jobs") == old
    assert sidekiq.machine.app()["release"] == first
    assert not any(work["quiet"] for work in work_of(sidekiq))
    nothing_is_quiet(sidekiq)


def test_nothing_is_committed_while_an_old_worker_is_not_proven_quiet(sidekiq: WorkerProject) -> None:
    """It is frozen: the signal waits, and so does a job that it might begin."""
    first = sidekiq.deploy()
    [old] = sidekiq.machine.pids("jobs")
    sidekiq.project.commit("second")
    os.kill(old, signal.SIGSTOP)
    try:
        result = sidekiq.project.deploy()
    finally:
        os.kill(old, signal.SIGCONT)
    assert result.code == 1 and "not proven quiet" in result.text, result.text
    assert sidekiq.machine.app()["release"] == first
    nothing_is_quiet(sidekiq)


def test_without_redis_nothing_is_guessed_and_the_old_workers_are_left_alone(
    sidekiq: WorkerProject, tmp_path: Path
) -> None:
    first = sidekiq.deploy()
    old = sidekiq.machine.pids("jobs")
    sidekiq.redis.stop()
    sidekiq.project.commit("second")
    result = sidekiq.project.deploy()
    assert result.code == 1, result.text
    assert "redis" in result.text.lower(), result.text
    sidekiq.redis.process = start_redis(tmp_path, sidekiq.redis.port)
    assert sidekiq.machine.pids("jobs") == old
    assert sidekiq.machine.app()["release"] == first
    nothing_is_quiet(sidekiq)


@pytest.mark.parametrize("victim", ["agent", "keeper", "deployer"])
def test_a_kill_while_the_old_workers_are_quieted_leaves_one_release_and_nobody_quiet(
    sidekiq: WorkerProject, victim: str
) -> None:
    sidekiq.deploy()
    with stream(sidekiq.jobs):
        wait_for("jobs", lambda: len(sidekiq.jobs.ended()) > 10)
        sidekiq.project.commit("second")
        deploying = sidekiq.machine.spawn_cli("deploy", cwd=sidekiq.project.folder)
        wait_for("the quieting", lambda: sidekiq.machine.service("jobs")["quiet"], 60.0)
        if victim == "deployer":
            deploying.kill()
        else:
            getattr(sidekiq.machine, f"kill_{victim}")()
        deploying.communicate(timeout=120.0)
        wait_for("no deploy", lambda: sidekiq.machine.app()["deploy"] is None, 60.0)
    every_job_ended(sidekiq)
    nothing_began_on_old_code(sidekiq)
    nothing_is_quiet(sidekiq)
    assert {item["generation_state"] for item in sidekiq.machine.instances("jobs")} == {"committed"}


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_agent_that_dies_in_the_drain_tells_nobody_twice(machine: Machine, redis: Redis, library: str) -> None:
    """A second TERM would kill the job of RQ."""
    need(library)
    workers = worker_project(machine, redis, library)
    workers.deploy()
    long = workers.jobs.hold()
    wait_for("the long job", lambda: long in workers.jobs.begun())
    workers.project.commit("second")
    workers.deploy()
    for _ in range(3):
        machine.kill_agent()
        wait_for("this agent to have looked at the job", lambda: any(work["jobs"] for work in work_of(workers)))
    assert long not in workers.jobs.ended()
    workers.jobs.let_go(long)
    every_job_ended(workers)
    begun = [line for line in workers.jobs.lines() if line.job == long and line.what == "begin"]
    assert len(begun) == 1, "it was cut, and began again"
    nothing_is_quiet(workers)


def test_an_old_worker_that_is_killed_in_its_drain_does_not_come_back(sidekiq: WorkerProject) -> None:
    first = sidekiq.deploy()
    long = sidekiq.jobs.hold()
    wait_for("the long job", lambda: long in sidekiq.jobs.begun())
    old = sidekiq.machine.pids("jobs")
    sidekiq.project.commit("second")
    sidekiq.deploy()
    os.kill(old[0], signal.SIGKILL)
    wait_for("the old generation to be gone", sidekiq.machine.settled)
    names = sidekiq.jobs.push(0.0, 20)
    wait_for("the jobs", lambda: set(names) <= sidekiq.jobs.ended())
    assert not [line for line in sidekiq.jobs.lines() if line.job in names and line.release == first]


def test_at_the_end_of_its_time_the_drain_gives_the_job_back(machine: Machine, redis: Redis) -> None:
    need("sidekiq")
    workers = worker_project(machine, redis, "sidekiq")
    config = (
        (workers.project.folder / "midstream.toml")
        .read_text()
        .replace('drain_timeout = "120s"', 'drain_timeout = "1s"')
    )
    workers.project.commit("short drain", config=config)
    workers.deploy()
    long = workers.jobs.hold()
    wait_for("the long job", lambda: long in workers.jobs.begun())
    jobs = workers.project.folder / "jobs.rb"
    jobs.write_text(jobs.read_text().replace("sleep 0.05 while", "# sleep 0.05 while"))
    workers.project.commit("second")
    second = workers.deploy()
    every_job_ended(workers)
    began = [line.release for line in workers.jobs.lines() if line.job == long and line.what == "begin"]
    assert len(began) == 2 and began[-1] == second
    nothing_is_quiet(workers)


def test_quiet_holds_back_jobs_and_ends_by_itself(workers: WorkerProject) -> None:
    workers.deploy()
    old = workers.machine.pids("jobs")
    result = workers.project.cli("quiet", "jobs", "--for", "25s", "--reason", "moving")
    assert result.code == 0, result.text
    names = workers.jobs.push(0.0, 5)
    quiet = workers.machine.service("jobs")
    assert quiet["state"] == "quiet" and quiet["quiet"]["reason"] == "moving"
    assert not set(names) & workers.jobs.begun()
    wait_for("fresh workers", lambda: set(names) <= workers.jobs.ended())
    nothing_is_quiet(workers)
    assert workers.machine.pids("jobs") != old


def test_a_quiet_agent_that_dies_still_ends_the_quiet(sidekiq: WorkerProject) -> None:
    sidekiq.deploy()
    assert sidekiq.project.cli("quiet", "jobs", "--for", "5s").code == 0
    sidekiq.machine.kill_agent()
    names = sidekiq.jobs.push(0.0, 3)
    wait_for("fresh workers", lambda: set(names) <= sidekiq.jobs.ended())
    nothing_is_quiet(sidekiq)


def test_a_failure_after_the_quieting_brings_back_workers_that_fetch(sidekiq: WorkerProject) -> None:
    """In the soak the old workers are quiet already; the new one is killed."""
    sidekiq.deploy()
    first = sidekiq.machine.app()["release"]
    config = (
        (sidekiq.project.folder / "midstream.toml")
        .read_text()
        .replace("[services.jobs]", '[services.jobs]\nsoak = "60s"')
    )
    sidekiq.project.commit("second", config=config)
    with stream(sidekiq.jobs):
        deploying = sidekiq.machine.spawn_cli("deploy", cwd=sidekiq.project.folder)
        wait_for("the soak", lambda: sidekiq.machine.service("jobs")["handover"] == "soaking", 60.0)
        candidate = [item for item in sidekiq.machine.instances("jobs") if item["generation_state"] == "soaking"]
        os.kill(candidate[0]["pid"], signal.SIGTERM)
        out, _ = deploying.communicate(timeout=120.0)
        assert deploying.returncode == 1, out

    assert sidekiq.machine.app()["release"] == first
    every_job_ended(sidekiq)
    nothing_is_quiet(sidekiq)
