"""`current` that could not be switched after the decision: brought to the release later, by whoever comes first."""

from __future__ import annotations

import os

from machine import Machine, Project, wait_for


def deployed_but_not_switched(project: Project) -> str:
    """A second release that is committed, and whose `current` is in the way; returns it."""
    project.deployed()
    current = project.deploy_to / "current"
    in_the_way = f"rm {current}; mkdir {current}"
    hook = f"[[hooks]]\nbefore = \"deploy:symlink:release\"\nshell = true\nrun = '{in_the_way}'\n"
    project.commit("in the way", config=project.config(tail=hook))
    done = project.deploy()
    assert done.code == 5 and "`current` could not be switched" in done.text, done.text
    assert "midstream resume" in done.text
    app = project.machine.app()
    assert app["deploy"] is None, "the lock is free"
    assert [row["kind"] for row in app["drift"]] == ["current"]
    assert project.get()[0] == 200
    project.commit("out of the way", config=project.config())
    return str(app["release"])


def test_resume_switches_it(project: Project, machine: Machine) -> None:
    release = deployed_but_not_switched(project)
    again = project.cli("resume")
    assert again.code == 5 and "`current` could not be switched" in again.text, again.text
    (project.deploy_to / "current").rmdir()
    assert project.cli("resume").code == 0
    assert project.current == release
    assert machine.app()["drift"] == []
    done = project.cli("resume")
    assert done.code == 2 and "no unfinished deploy" in done.text


def test_the_agent_switches_it_by_itself(project: Project, machine: Machine) -> None:
    release = deployed_but_not_switched(project)
    (project.deploy_to / "current").rmdir()
    machine.kill_agent()  # the next one tries at once; the same one within seconds
    wait_for("current to follow", lambda: (project.deploy_to / "current").is_symlink())
    assert project.current == release
    assert machine.app()["drift"] == []


def test_a_current_that_somebody_moved_meanwhile_is_left_alone(project: Project, machine: Machine) -> None:
    deployed_but_not_switched(project)
    current = project.deploy_to / "current"
    current.rmdir()
    other = project.deploy_to / "releases" / "20200101000000"
    other.mkdir()
    os.symlink(other, current)
    machine.kill_agent()
    wait_for(
        "the agent to say that it leaves it",
        lambda: any("somebody else has moved it" in row for row in texts(machine)),
    )
    assert project.current == other.name
    assert [row["kind"] for row in machine.app()["drift"]] == ["current"]


def test_the_next_deploy_switches_it(project: Project, machine: Machine) -> None:
    deployed_but_not_switched(project)
    (project.deploy_to / "current").rmdir()
    release = project.deployed()
    assert project.current == release
    machine.kill_agent()
    assert project.current == release and machine.app()["drift"] == []


def texts(machine: Machine) -> list[str]:
    found: list[str] = []

    def take(method: str, params: dict[str, object]) -> None:
        found.append(str(params["text"]))

    from contextlib import closing

    from midstream.deploy.sync_client import connect

    with closing(connect(str(machine.socket))) as client:
        client.call("events", app="shop", on_notice=take)
    return found
