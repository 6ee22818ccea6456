"""The first article's case with the hold: Sidekiq under Monit, deployed under a stream of jobs. Nothing runs old code, no job
is lost, nothing is left down, quiet or unwatched. The project has no service of its own: Sidekiq is all there is."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import monit as real
import pytest
from machine import Machine, Project, free_port, wait_for
from worker_projects import SIDEKIQ_JOBS, Jobs, private_redis, stream

pytestmark = pytest.mark.skipif(
    real.MISSING or not shutil.which("sidekiq") or not shutil.which("redis-server"),
    reason="monit, sidekiq or redis-server is not installed",
)


@dataclass
class Batch:
    project: Project
    machine: Machine
    monit: real.PrivateMonit
    jobs: Jobs

    @property
    def release(self) -> str:
        return str(self.machine.app()["release"])

    def is_well(self) -> bool:
        rows = self.machine.app()["external"]
        given_back = self.monit.is_watched("sidekiq") and not any(row["hold"] for row in rows)
        return given_back and self.monit.cwd_of("sidekiq") == self.release == self.project.current

    def title(self) -> str:
        return Path(f"/proc/{self.monit.pid_of('sidekiq')}/cmdline").read_text().rstrip("\0 ")


@pytest.fixture
def batch(machine: Machine) -> Iterator[Batch]:
    folder = machine.root / "batch"
    folder.mkdir()
    project = Project(folder, machine, free_port())
    project.git("init", "-q", "-b", "main", ".")
    log = machine.root / "jobs.log"
    with private_redis(machine.root) as redis, real.private_monit(machine.root / "monit") as monit:
        command = (
            f"env JOBS_LOG={log} REDIS_URL={redis.url} MIDSTREAM_RELEASE=$(basename $(pwd -P))"
            " sidekiq -r ./jobs.rb -c 3 -t 5"
        )
        monit.service("sidekiq", project.deploy_to / "current", command, start_timeout_s=10, stop_timeout_s=10)
        config = (
            f'app = "shop"\ndeploy_to = "{project.deploy_to}"\n[[holds]]\nsupervisor = "monit"\nservice = "sidekiq"\n'
            f'from = "after check"\nto = "after finishing"\ncontrol = "{monit.control}"\nquiet = "TSTP"\n'
            'quiet_timeout = "60s"\nmin_uptime = "4s"\n'
        )
        project.commit("first", config=config, jobs_dot_rb=SIDEKIQ_JOBS, misbehave="no")
        monit.start()
        made = Batch(project, machine, monit, Jobs(redis, "sidekiq", log))
        project.deployed()
        wait_for("Sidekiq to run", made.is_well)
        yield made


def finished(batch: Batch) -> bool:
    return len(batch.jobs.ended()) == batch.jobs.number


def test_deploys_under_a_stream_of_jobs(batch: Batch) -> None:
    """Jobs in hand are finished by the process that has them; none is begun twice, none on old code after the deploy."""
    switched: list[tuple[str, float]] = []
    with stream(batch.jobs, pause_s=0.1, long_every=30, long_s=3.0):
        for number in range(3):
            batch.project.commit(f"next {number}")
            release = batch.project.deployed()
            switched.append((release, os.stat(batch.project.deploy_to / "revisions.log").st_mtime))
            assert batch.is_well()
    wait_for("all jobs to end", lambda: finished(batch), 120.0)
    lines = batch.jobs.lines()
    begun = [line.job for line in lines if line.what == "begin"]
    assert len(begun) == len(set(begun)) == batch.jobs.number, "each job was begun once"
    for release, at_s in switched:
        late = [line for line in lines if line.what == "begin" and line.at_s > at_s and line.release < release]
        assert not late, "begun on old code after the deploy"


def test_a_release_that_does_not_boot_leaves_no_worker_quiet(batch: Batch) -> None:
    """The old one was quieted already, which cannot be taken back: a fresh one of the old release works on."""
    release, pid = batch.release, batch.monit.pid_of("sidekiq")
    batch.project.commit("broken", misbehave="boot")
    with stream(batch.jobs, pause_s=0.1):
        result = batch.project.deploy()
    assert result.code == 1, result.text
    assert batch.release == release
    assert batch.is_well()
    assert batch.monit.pid_of("sidekiq") != pid
    wait_for("all jobs to end", lambda: finished(batch), 120.0)
    begun = [line.job for line in batch.jobs.lines() if line.what == "begin"]
    assert len(begun) == len(set(begun)), "each job was begun once"
    assert "stopping" not in batch.title()


def test_a_deployer_killed_after_the_worker_was_quieted_leaves_none_quiet(batch: Batch) -> None:
    release = batch.release
    job = batch.jobs.hold()  # its title says so with a heartbeat, up to 5 s later
    wait_for("the job to begin", lambda: batch.jobs.begun())
    batch.project.commit("next")
    process = batch.machine.spawn_cli("deploy", cwd=batch.project.folder)
    wait_for("it to be quiet", lambda: "stopping" in batch.title())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    batch.jobs.let_go(job)
    wait_for("the lease to run out", lambda: batch.machine.app()["deploy"] is None, 120.0)
    wait_for("all to be well", batch.is_well)
    batch.jobs.push(0.1, 5)
    wait_for("all jobs to end", lambda: finished(batch), 120.0)
    assert batch.release == release
