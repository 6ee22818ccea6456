"""A new generation that was proven, and dies before the deployer has said to commit it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from fleet import Fleet
from fleet_under_fire import is_stopped
from machine import Machine, Project, wait_for


def test_it_is_the_release_that_failed_and_the_old_one_serves(machine: Machine, project: Project) -> None:
    before = project.deployed()
    project.commit("next")
    plan = machine.root / "plan"
    plan.write_text("stop before deploy.commit on localhost")
    process = machine.spawn_cli("deploy", cwd=project.folder, MIDSTREAM_CRASH_DEPLOYER=str(plan))
    wait_for("the deployer to stop", lambda: is_stopped(process) or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
    new = next(item for item in machine.instances() if item["release"] != before)
    os.kill(new["pid"], signal.SIGKILL)
    wait_for("it to be gone", lambda: not any(item["release"] != before for item in machine.instances()))
    os.kill(process.pid, signal.SIGCONT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "was not proven: web: instance 0 killed by SIGKILL before it was committed" in said
    assert machine.app()["release"] == before == project.current
    assert project.get() == (200, before)
    wait_for("all to be settled", machine.settled)
    assert not Path(plan).exists()


def test_resume_does_not_decide_when_it_has_died_on_another_host_meanwhile(fleet_of: Callable[..., Fleet]) -> None:
    """Else the first host would commit, the second could not, and the fleet would be on two releases."""
    fleet = fleet_of(2)
    project = fleet.project()
    before = project.deployed()
    project.commit("next")
    plan = fleet.root / "plan"
    plan.write_text("kill before deploy.commit on web1")
    assert project.deploy(MIDSTREAM_CRASH_DEPLOYER=str(plan)).code == -signal.SIGKILL
    web2 = fleet.host("web2")

    def new() -> list[int]:
        return [
            item["pid"]
            for generation in web2.app()["services"][0]["generations"]
            for item in generation["instances"]
            if generation["release"] != before
        ]

    web2.box.run("kill", "-9", *map(str, new()))
    wait_for("it to be gone", lambda: not new())
    result = project.cli("resume")
    assert result.code == 1, result.text
    assert "instance 0 killed by SIGKILL before it was committed" in result.text
    assert {host.release() for host in fleet.hosts.values()} == {before}
    assert set(project.served().values()) == {before}
    assert project.cli("status", "--check").code == 0
