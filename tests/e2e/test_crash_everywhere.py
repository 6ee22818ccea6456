"""kill -9 of agent, keeper and deployer at every write of the truth and every effect of a deploy (DESIGN 2).

After each: the old or the new release is whole, nothing between; no process of an uncommitted release is left; never nobody
answers; a service that nobody touched keeps its pids. `MIDSTREAM_CRASH_ALL=1` tries every point; by default every few, begun
at another one each time a seed says so.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_points import chosen
from machine import Machine, Project, new_machine, new_project, under_load, wait_for


@pytest.fixture
def planned() -> Iterator[tuple[Machine, Project, Path]]:
    """A machine whose agent reads its crash plan from a file, with one release deployed."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="msplan-") as folder:
        plan = Path(folder) / "plan"
        # The deployer tries for twice the lease to reach the next agent.
        with new_machine(MIDSTREAM_CRASH_PLAN=str(plan), MIDSTREAM_LEASE_S="15") as machine:
            project = new_project(machine)
            worker = f"""
[services.jobs]
command = "{os.sys.executable} -c 'import time; time.sleep(3600)'"
handover = "replace"
stop_timeout = "3s"
"""
            project.write(config=project.config(project.web() + worker))
            project.commit("with a worker")
            project.deployed()
            yield machine, project, plan


def points(project: Project, plan: Path) -> list[str]:
    """The names of the points that one good deploy passes."""
    plan.write_text("count 0")
    project.commit("counted")
    project.deployed()
    wait_for("the count to be over", lambda: project.machine.settled())
    plan.unlink()
    return (plan.parent / "plan.passed").read_text().splitlines()


def check_whole(machine: Machine, project: Project, before: str) -> str:
    """The invariants, once things have come to rest. Returns the committed release."""
    wait_for("everything to settle", lambda: _quiet(machine))
    app = machine.app()
    release = str(app["release"])
    assert app["drift"] == [], app["drift"]
    for service in app["services"]:
        generations = service["generations"]
        assert [g["state"] for g in generations] == ["committed"], service
        assert {g["release"] for g in generations} == {release}, service
        for instance in generations[0]["instances"]:
            assert instance["release_running"] == release, instance
    assert project.get("/") == (200, release)
    assert project.current == release
    running = [int(pid) for service in ("web", "jobs") for pid in machine.pids(service)]
    assert len(running) == 2, running
    stray = [pid for pid in _services_of(machine) if pid not in running]
    assert stray == [], f"processes that nothing accounts for: {stray}"
    return release


def _quiet(machine: Machine) -> bool:
    try:
        return machine.settled()
    except Exception:
        return False


def _services_of(machine: Machine) -> list[int]:
    """Every process stamped with a generation of this machine, from /proc and nothing else."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                environ = Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue
            if b"MIDSTREAM_GENERATION=" in environ and str(machine.root).encode() in environ:
                found.append(int(name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victim", ["agent", "keeper"])
def test_killed_at_every_point_of_a_deploy(planned: tuple[Machine, Project, Path], victim: str) -> None:
    machine, project, plan = planned
    names = points(project, plan)
    assert len(names) > 30, names
    hit = plan.parent / "plan.hit"
    with under_load(project.address, "--pause", "0.03", "--keep-alive", "2", "--closing", "2") as load:
        for number in chosen(range(1, len(names) + 1), 4):
            before = str(machine.app()["release"])
            project.commit(f"point {number}")
            hit.unlink(missing_ok=True)
            plan.write_text(f"{victim} {number}")
            result = project.deploy()
            plan.unlink(missing_ok=True)
            release = check_whole(machine, project, before)
            where = hit.read_text() if hit.exists() else "not reached"
            if result.code == 0:
                assert release != before, f"{number}: {where}: said done, and the old release runs"
            elif result.code == 1:
                assert release == before, f"{number}: {where}: said failed, and the new release runs\n{result.text}"
            else:
                raise AssertionError(f"{number}: {where}: exit {result.code}\n{result.text}")
        tally = load()
    assert tally["failed"] == 0, tally["failures"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_broken_release_killed_at_every_point(planned: tuple[Machine, Project, Path]) -> None:
    """A release that answers 500, and the agent killed while it is being refused: the old one is never disturbed."""
    machine, project, plan = planned
    names = points(project, plan)
    good = str(machine.app()["release"])
    pids = machine.pids("web")
    with under_load(project.address, "--pause", "0.03", "--keep-alive", "2", "--closing", "2") as load:
        for number in chosen(range(1, len(names) + 1), 2):
            project.misbehave("unhealthy")
            plan.write_text(f"agent {number}")
            result = project.deploy()
            plan.unlink(missing_ok=True)
            assert result.code == 1, result.text
            assert check_whole(machine, project, good) == good
        tally = load()
    assert tally["failed"] == 0, tally["failures"]
    assert set(tally["seen"]) == {good}
    assert machine.pids("web") == pids, "web was restarted without cause"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_who_was_killed_on_the_way_back_still_tells_why(planned: tuple[Machine, Project, Path]) -> None:
    """The next agent goes on going back, and answers the call that is repeated with the failure, not with its own state."""
    machine, project, plan = planned
    good = str(machine.app()["release"])
    project.misbehave("unhealthy")
    plan.write_text("count 0")
    assert project.deploy().code == 1
    names = (plan.parent / "plan.passed").read_text().splitlines()
    plan.unlink()
    back = names.index("intent revert") + 1  # killed there it is not stored yet
    for number in chosen(range(back + 1, len(names) + 1), 2):
        check_whole(machine, project, good)
        project.misbehave("unhealthy")
        plan.write_text(f"agent {number}")
        result = project.deploy()
        plan.unlink(missing_ok=True)
        assert result.code == 1, f"{names[number - 1]}: {result.text}"
        assert "answered 500" in result.err, f"{names[number - 1]}: {result.text}"
    assert check_whole(machine, project, good) == good


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_deployer_killed_at_every_call(planned: tuple[Machine, Project, Path]) -> None:
    """kill -9 of `midstream deploy` when the agent passes a point: the lease runs out, nothing stays locked."""
    machine, project, plan = planned
    names = points(project, plan)
    with under_load(project.address, "--pause", "0.03", "--keep-alive", "2", "--closing", "2") as load:
        for step in ("deploy:check", "git:create_release", "deploy:handover:web", "deploy:symlink:release"):
            before = str(machine.app()["release"])
            project.commit(f"killed in {step}")
            deployer = project.machine.spawn_cli("deploy", "--json", cwd=project.folder)
            assert deployer.stdout is not None
            assert any(f'"{step}"' in line for line in deployer.stdout), f"it tells of no {step}"
            os.killpg(deployer.pid, signal.SIGKILL)
            deployer.wait()
            deployer.stdout.close()
            settle = project.cli("abort")
            assert settle.code in (0, 1), settle.text
            release = check_whole(machine, project, before)
            if step != "deploy:symlink:release":
                assert release == before
        tally = load()
    assert tally["failed"] == 0, tally["failures"]
    assert names
