"""The main job, end to end: deploy, replace under load, refuse what is broken, roll back."""

from __future__ import annotations

import os

from machine import Machine, Project, under_load, wait_for


def test_first_deploy_makes_capistranos_layout_and_serves(project: Project, machine: Machine) -> None:
    sha = project.git("rev-parse", "HEAD")
    result = project.deploy()
    assert result.code == 0, result.text
    release = machine.app()["release"]
    assert project.get("/") == (200, release)
    folder = project.deploy_to
    assert os.readlink(folder / "current") == str(folder / "releases" / release)
    assert (folder / "releases" / release / "REVISION").read_text().strip() == sha
    line = (folder / "revisions.log").read_text().splitlines()[-1]
    assert line.startswith(f"Branch main (at {sha}) deployed as release {release} by ")
    assert sorted(os.listdir(folder)) == sorted(
        [".midstream", "current", "releases", "repo", "revisions.log", "shared"]
    )


def test_replaced_under_load_without_one_failed_request(project: Project, machine: Machine) -> None:
    project.write(config=project.config(project.web(instances=2)))
    project.commit("two instances")
    first = project.deployed()
    with under_load(project.address, "--pause", "0.002") as load:
        project.commit("second")
        second = project.deployed()
        project.commit("third")
        third = project.deployed()
        wait_for("the old generations to be gone", machine.settled)
        tally = load()
    assert tally["failed"] == 0, tally["failures"]
    assert set(tally["seen"]) == {first, second, third}
    assert project.get("/") == (200, third)


def test_what_answers_500_is_refused_while_the_old_serves_on(project: Project, machine: Machine) -> None:
    good = project.deployed()
    pids = machine.pids()
    project.misbehave("unhealthy")
    with under_load(project.address, "--pause", "0.002") as load:
        result = project.deploy()
        tally = load()
    assert result.code == 1, result.text
    assert "answered 500" in result.text
    assert f"release {good}" in result.text and "unchanged" in result.text
    assert tally["failed"] == 0, tally["failures"]
    assert set(tally["seen"]) == {good}, "unproven code answered a real request"
    assert machine.pids() == pids and project.current == good
    assert machine.app()["deploy"] is None


def test_rollback_goes_to_the_last_proven_release_without_git(project: Project, machine: Machine) -> None:
    origin = machine.root / "origin.git"
    project.write(config=project.config(top=f'repository = "{origin}"'))
    project.commit("with an origin")
    project.git("clone", "-q", "--bare", ".", str(origin))
    first = project.deployed()
    project.commit("second")
    project.git("push", "-q", str(origin), "main")
    second = project.deployed()
    project.misbehave("exit")
    project.git("push", "-q", str(origin), "main")
    assert project.deploy().code == 1
    origin.rename(machine.root / "gone.git")  # rolling back needs no repository
    (project.deploy_to / "repo").rename(project.deploy_to / "no-repo")
    with under_load(project.address, "--pause", "0.002") as load:
        result = project.cli("rollback")
        tally = load()
    assert result.code == 0, result.text
    assert tally["failed"] == 0, tally["failures"]
    assert project.get("/") == (200, first)
    assert project.current == first
    line = (project.deploy_to / "revisions.log").read_text().splitlines()[-1]
    assert line.endswith(f" rolled back to release {first}")
    assert machine.cli("rollback", "--to", second, cwd=project.folder).code == 0
    assert project.get("/") == (200, second)
