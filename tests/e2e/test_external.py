"""A service that Monit owns, held for the deploy: it ends on the committed release, up and watched, whatever happens.

Each way of failing that Capistrano's cure (`monit unmonitor` before, `monitor` after) leaks in is here, with a real Monit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import monit as real
import pytest
from crash_points import chosen
from machine import Machine, Project, Result, new_machine, new_project, wait_for

pytestmark = pytest.mark.skipif(real.MISSING, reason="monit is not installed")

WORKER = """
import signal, sys, time
if open("worker.words").read().strip() == "broken":
    sys.exit("this release does not boot")
while True:
    time.sleep(60)
"""


@dataclass
class Shop:
    """The project with its web service, and `jobs`, which Monit starts through `current`."""

    project: Project
    machine: Machine
    monit: real.PrivateMonit

    def configure(
        self, more: str = "", tail: str = "", *, start: str = "after check", end: str = "after finishing"
    ) -> None:
        hold = (
            f'[[holds]]\nsupervisor = "monit"\nservice = "jobs"\nfrom = "{start}"\nto = "{end}"\n'
            f'control = "{self.monit.control}"\nmin_uptime = "500ms"\n{more}\n'
        )
        self.project.write(config=self.project.config(tail=hold + tail))

    def commit(self, words: str = "well") -> None:
        self.project.commit("next", worker_dot_py=WORKER, worker_dot_words=words)

    @property
    def release(self) -> str:
        return str(self.machine.app()["release"])

    def is_well(self) -> bool:
        """Up, watched, on the committed release, which `current` names; nothing held."""
        return self.monit.cwd_of("jobs") == self.release == self.project.current and self.is_given_back()

    def is_given_back(self) -> bool:
        rows = self.machine.app()["external"]
        return self.monit.is_watched("jobs") and not any(row["hold"] for row in rows)

    def waits(self, name: str) -> Path:
        """The file that a build or hook of this name waits for."""
        return self.machine.root / f"{name}.go"

    def waiting(self, name: str) -> str:
        """The `run` of a build or hook that says that it has begun, and waits until `let_go`."""
        begun = self.machine.root / f"{name}.begun"
        return f'run = "touch {begun}; while [ ! -e {self.waits(name)} ]; do sleep 0.05; done"\nshell = true\n'

    def has_begun(self, name: str) -> bool:
        return (self.machine.root / f"{name}.begun").exists()

    def let_go(self, name: str) -> None:
        self.waits(name).touch()

    def spawn(self) -> subprocess.Popen[str]:
        return self.machine.spawn_cli("deploy", cwd=self.project.folder)


@pytest.fixture
def shop(project: Project, machine: Machine) -> Iterator[Shop]:
    with new_shop(project, machine) as made:
        yield made


@contextlib.contextmanager
def new_shop(project: Project, machine: Machine) -> Iterator[Shop]:
    with real.private_monit(machine.root / "monit") as monit:
        monit.service(
            "jobs", project.deploy_to / "current", f"{sys.executable} worker.py", start_timeout_s=5, stop_timeout_s=5
        )
        shop = Shop(project, machine, monit)
        monit.start()
        shop.configure()
        shop.commit()
        yield shop


@pytest.fixture
def deployed(shop: Shop) -> Shop:
    """Its first release runs, web and jobs."""
    shop.project.deployed()
    wait_for("the first release to run", shop.is_well)
    return shop


def ended(process: subprocess.Popen[str]) -> Result:
    out, _ = process.communicate(timeout=120.0)
    return Result(process.returncode, out, "")


def test_it_goes_with_the_release_and_is_watched_again(deployed: Shop) -> None:
    first, pid = deployed.release, deployed.monit.pid_of("jobs")
    for _ in range(2):
        deployed.commit()
        result = deployed.project.deploy()
        assert result.code == 0, result.text
        assert deployed.is_well(), "at the moment at which the deploy said that it was done"
    assert deployed.release != first
    assert not Path(f"/proc/{pid}").exists()
    row = deployed.machine.app()["external"][0]
    assert row["watched"] and row["pid"] == deployed.monit.pid_of("jobs")
    assert row["release_running"] == deployed.release
    assert "given back: jobs" in deployed.project.cli("why", "monit:jobs").out
    assert deployed.project.cli("status", "--check").code == 0


def test_a_rollback_takes_it_along(deployed: Shop) -> None:
    first = deployed.release
    deployed.commit()
    deployed.project.deployed()
    result = deployed.project.cli("rollback")
    assert result.code == 0, result.text
    assert deployed.release == first
    assert deployed.is_well()


def test_the_plan_shows_what_is_held_when(deployed: Shop) -> None:
    text = deployed.project.cli("plan").out
    lines = [line.split()[0] for line in text.splitlines() if "monit:jobs" in line]
    assert lines == ["hold:monit:jobs", "deploy:handover:monit:jobs", "unhold:monit:jobs"]


def test_only_monits_word_counts_while_its_handover_lasts(deployed: Shop) -> None:
    """The shortest span: nothing is held during the build, and it is enough."""
    deployed.configure(start="before handover", end="after handover")
    deployed.commit()
    deployed.project.deployed()
    assert deployed.is_well()


# -- ways of failing ------------------------------------------------------------------------------------------------


def untouched(shop: Shop) -> Callable[[], None]:
    """A check that the old release runs on: the same process, watched."""
    pid, release = shop.monit.pid_of("jobs"), shop.release

    def check() -> None:
        assert shop.release == release == shop.project.current
        assert shop.monit.pid_of("jobs") == pid != 0
        assert shop.is_given_back()

    return check


def test_a_failing_migration_leaves_it_up_and_watched(deployed: Shop) -> None:
    check = untouched(deployed)
    deployed.configure(tail='[migrate]\nrun = "false"\n')
    deployed.commit()
    result = deployed.project.deploy()
    assert result.code == 5, result.text
    check()


def test_an_interrupt_leaves_it_up_and_watched(deployed: Shop) -> None:
    check = untouched(deployed)
    deployed.configure(tail=f"[[build]]\n{deployed.waiting('build')}")
    deployed.commit()
    process = deployed.spawn()
    wait_for("the build", lambda: deployed.has_begun("build"))
    assert deployed.monit.is_left_alone("jobs")
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 130
    check()


def test_a_web_service_that_is_not_proven_leaves_it_alone(deployed: Shop) -> None:
    check = untouched(deployed)
    deployed.project.misbehave("unhealthy")
    assert deployed.project.deploy().code == 1
    check()


def test_a_release_that_it_does_not_boot_from_goes_back(deployed: Shop) -> None:
    release, web = deployed.release, deployed.machine.pids()
    deployed.commit("broken")
    result = deployed.project.deploy()
    assert result.code == 1, result.text
    assert "could not start" in result.text or "does not stay up" in result.text
    assert deployed.release == release
    assert deployed.is_well(), "the old release runs again, and is watched"
    assert deployed.machine.pids() == web


def test_what_was_handed_over_goes_back_when_the_deploy_fails_after_it(deployed: Shop) -> None:
    release = deployed.release
    deployed.configure(tail='[[hooks]]\nafter = "handover"\nrun = "false"\n')
    deployed.commit()
    result = deployed.project.deploy()
    assert result.code == 1, result.text
    assert deployed.release == release
    assert deployed.is_well()


def test_it_goes_back_although_its_span_has_ended(deployed: Shop) -> None:
    release = deployed.release
    deployed.configure(
        start="before handover",
        end="after handover",
        tail='[[hooks]]\nbefore = "deploy:symlink:release"\nrun = "false"\n',
    )
    deployed.commit()
    assert deployed.project.deploy().code == 1
    assert deployed.release == release
    wait_for("all to be well", deployed.is_well)


def test_a_start_program_that_goes_elsewhere_is_found_out(deployed: Shop) -> None:
    """Monit says that it runs. What it runs is read from the process."""
    release = deployed.release
    start = deployed.monit.folder / "jobs.start"
    fixed = deployed.project.deploy_to / "releases" / release
    start.write_text(start.read_text().replace(str(deployed.project.deploy_to / "current"), str(fixed)))
    deployed.commit()
    result = deployed.project.deploy()
    assert result.code == 1, result.text
    assert f"runs release {release}, not" in result.text
    assert deployed.release == release
    assert deployed.is_well()


def test_a_killed_deployer_leaves_it_up_and_watched(deployed: Shop) -> None:
    check = untouched(deployed)
    deployed.configure(tail=f"[[build]]\n{deployed.waiting('build')}")
    deployed.commit()
    process = deployed.spawn()
    wait_for("the build", lambda: deployed.has_begun("build"))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for("the lease to run out", lambda: deployed.machine.app()["deploy"] is None)
    wait_for("it to be given back", deployed.is_given_back)
    check()


def test_the_hold_ends_with_its_ttl_and_the_deploy_says_so(deployed: Shop) -> None:
    check = untouched(deployed)
    deployed.configure('ttl = "2s"', tail=f"[[build]]\n{deployed.waiting('build')}")
    deployed.commit()
    process = deployed.spawn()
    wait_for("the build", lambda: deployed.has_begun("build"))
    wait_for("the hold to run out", lambda: deployed.monit.is_watched("jobs"))
    assert deployed.machine.app()["deploy"] is not None
    deployed.let_go("build")
    result = ended(process)
    assert result.code == 1, result.text
    assert "ran out after 2 s" in result.text and "ttl" in result.text
    check()


def test_what_dies_within_the_hold_is_brought_back_on_the_committed_release(deployed: Shop) -> None:
    release = deployed.release
    deployed.configure(tail=f"[[build]]\n{deployed.waiting('build')}")
    deployed.commit()
    process = deployed.spawn()
    wait_for("the build", lambda: deployed.has_begun("build"))
    for _ in range(2):
        pid = deployed.monit.pid_of("jobs")
        os.kill(pid, signal.SIGKILL)
        wait_for("it to run again", lambda pid=pid: deployed.monit.pid_of("jobs") not in (0, pid))
        assert deployed.monit.cwd_of("jobs") == release
        wait_for("it to be left alone again", lambda: deployed.monit.is_left_alone("jobs"))
    deployed.let_go("build")
    result = ended(process)
    assert result.code == 0, result.text
    assert deployed.is_well() and deployed.release != release


@pytest.mark.parametrize("victim", ["agent", "keeper"])
def test_agent_and_keeper_may_die_within_the_hold(deployed: Shop, victim: str) -> None:
    release = deployed.release
    deployed.configure(tail=f'[[hooks]]\nbefore = "publishing"\n{deployed.waiting("hook")}')
    deployed.commit()
    process = deployed.spawn()
    wait_for("the hook", lambda: deployed.has_begun("hook"))
    deployed.machine.kill_agent() if victim == "agent" else deployed.machine.kill_keeper()
    assert deployed.monit.is_left_alone("jobs")
    deployed.let_go("hook")
    result = ended(process)
    if result.code == 0:
        assert deployed.release != release
    wait_for("the deploy to be over", lambda: deployed.machine.app()["deploy"] is None)
    wait_for("all to be well", deployed.is_well)


def test_a_held_service_outlives_a_dead_deployer_and_a_dead_agent(deployed: Shop) -> None:
    check = untouched(deployed)
    deployed.configure(tail=f"[[build]]\n{deployed.waiting('build')}")
    deployed.commit()
    process = deployed.spawn()
    wait_for("the build", lambda: deployed.has_begun("build"))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    deployed.machine.kill_agent()
    wait_for("it to be given back", deployed.is_given_back)
    check()


# -- Monit itself ---------------------------------------------------------------------------------------------------


def test_a_monit_that_does_not_run_stops_the_deploy_before_anything_is_done(deployed: Shop) -> None:
    pid, release = deployed.monit.pid_of("jobs"), deployed.release
    deployed.monit.stop()
    deployed.commit()
    result = deployed.project.deploy()
    assert result.code == 1, result.text
    assert "Monit is not running" in result.text
    assert deployed.release == release and deployed.monit.pid_of("jobs") == pid
    deployed.monit.start()
    wait_for("it to be watched", lambda: deployed.monit.is_watched("jobs"))


def test_a_monit_killed_within_the_hold_gets_its_service_back_once_it_is_there(deployed: Shop) -> None:
    """Its state file keeps `unmonitor` over its restart."""
    deployed.configure(tail=f"[[build]]\n{deployed.waiting('build')}")
    release = deployed.release
    deployed.commit()
    process = deployed.spawn()
    wait_for("the build", lambda: deployed.has_begun("build"))
    deployed.monit.kill()
    deployed.let_go("build")
    result = ended(process)
    assert result.code == 5, result.text
    assert "Monit is not running" in result.text and "is not watched" in result.text
    assert deployed.release == release == deployed.project.current
    assert deployed.project.cli("status", "--check").code == 3
    deployed.monit.start()
    wait_for("all to be well", deployed.is_well)
    wait_for("the check to be content", lambda: deployed.project.cli("status", "--check").code == 0)


def test_a_monit_restarted_within_the_hold_is_told_as_before(deployed: Shop) -> None:
    deployed.configure(tail=f"[[build]]\n{deployed.waiting('build')}")
    deployed.commit()
    process = deployed.spawn()
    wait_for("the build", lambda: deployed.has_begun("build"))
    deployed.monit.kill()
    deployed.monit.start()
    deployed.let_go("build")
    result = ended(process)
    assert result.code == 0, result.text
    assert deployed.is_well()


def test_an_unknown_service_is_refused_with_its_name(deployed: Shop) -> None:
    check = untouched(deployed)
    config = deployed.project.folder / "midstream.toml"
    config.write_text(config.read_text().replace('service = "jobs"', 'service = "jbos"'))
    deployed.commit()
    result = deployed.project.deploy()
    assert result.code == 2, result.text
    assert "Monit knows no service 'jbos'" in result.text
    check()


def test_a_start_under_way_when_the_hold_begins_is_not_let_across(deployed: Shop) -> None:
    """The first article's case: Monit starts it from the old `current` while the deploy switches."""
    (deployed.monit.folder / "jobs.slow").write_text("1")
    deployed.commit()
    os.kill(deployed.monit.pid_of("jobs"), signal.SIGKILL)
    starts = deployed.monit.log().count("'jobs' start:")
    wait_for("Monit to start it", lambda: deployed.monit.log().count("'jobs' start:") > starts)
    result = deployed.project.deploy()
    assert result.code == 0, result.text
    assert deployed.is_well()


def test_what_was_not_watched_before_is_left_so(deployed: Shop) -> None:
    pid = deployed.monit.pid_of("jobs")
    deployed.monit.say("unmonitor", "jobs")
    wait_for("that", lambda: deployed.monit.is_left_alone("jobs"))
    deployed.commit()
    result = deployed.project.deploy()
    assert "was not watched before" in result.text
    assert deployed.monit.is_left_alone("jobs")
    assert deployed.monit.pid_of("jobs") not in (0, pid)
    assert deployed.monit.cwd_of("jobs") == deployed.release
    assert deployed.project.cli("status", "--check").code == 3, "and status says so"


def test_status_sees_a_service_on_another_release(deployed: Shop) -> None:
    """As it is after somebody deployed around Midstream."""
    old = deployed.release
    deployed.commit()
    deployed.project.deployed()
    link = deployed.project.deploy_to / "current"
    os.symlink(deployed.project.deploy_to / "releases" / old, f"{link}.new")
    os.rename(f"{link}.new", link)
    pid = deployed.monit.pid_of("jobs")
    deployed.monit.say("restart", "jobs")
    wait_for("the restart", lambda: deployed.monit.pid_of("jobs") not in (0, pid) and deployed.monit.is_watched("jobs"))
    result = deployed.project.cli("status", "--check")
    assert result.code == 3
    assert f"monit:jobs (pid {deployed.monit.pid_of('jobs')}) runs release {old}" in result.text


# -- the agent killed at every point that concerns it ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("goes_well", [True, False], ids=["forward", "back"])
def test_the_agent_killed_at_each_point_of_hold_and_handover(tmp_path: Path, goes_well: bool) -> None:
    """After each: one release, which `current` names and the service runs, watched; nothing held; the exit code is true."""
    plan = tmp_path / "plan"
    with new_machine(MIDSTREAM_CRASH_PLAN=str(plan)) as machine, new_shop(new_project(machine), machine) as shop:
        shop.project.deployed()
        wait_for("the first release to run", shop.is_well)
        if not goes_well:
            shop.configure(tail='[[hooks]]\nafter = "handover"\nrun = "false"\n')
        plan.write_text("count 0")
        shop.commit()
        assert shop.project.deploy().code == (0 if goes_well else 1)
        plan.unlink()
        names = (tmp_path / "plan.passed").read_text().splitlines()
        numbers = [number for number, name in enumerate(names, 1) if "external" in name or "hold" in name]
        assert len(numbers) >= (9 if goes_well else 15), names
        for number in chosen(numbers, 2):
            before = shop.release
            shop.commit()
            plan.write_text(f"agent {number}")
            # Its own time-outs add up to 380 s.
            result = machine.cli("deploy", cwd=shop.project.folder, timeout_s=400.0)
            assert not plan.exists(), f"{names[number - 1]} was not reached"
            wait_for("the deploy to be over", lambda: machine.app()["deploy"] is None)
            wait_for(f"all to be well after {names[number - 1]!r}: {result.text}", shop.is_well)
            assert (shop.release != before) == (result.code == 0), result.text
            if not goes_well:
                assert shop.release == before
