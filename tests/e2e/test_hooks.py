"""Hooks of a deploy: at their place, failing it, and undone in every way of failing, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from machine import Machine, Project, wait_for


def hook(at: str, run: str, undo: str = "", more: str = "") -> str:
    when, point = at.split(" ")
    text = f"[[hooks]]\n{when} = \"{point}\"\nshell = true\nrun = '{run}'\n{more}\n"
    return text + (f"undo = '{undo}'\n" if undo else "")


class Marks:
    """A file to which hooks append a line each."""

    def __init__(self, machine: Machine) -> None:
        self.path = machine.root / "marks"

    def add(self, words: str) -> str:
        return f"echo {words} >> {self.path}"

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


@pytest.fixture
def marks(machine: Machine) -> Marks:
    return Marks(machine)


def with_hooks(project: Project, *hooks: str, top: str = "") -> None:
    project.commit("hooks", config=project.config(top=top, tail="\n".join(hooks)))


POINTS = (
    "before starting",
    "after check",
    "after started",
    "after git:update",
    "after updating",
    "before deploy:build",
    "after deploy:build",
    "before deploy:migrate",
    "after updated",
    "before handover",
    "after handover",
    "before deploy:symlink:release",
    "after published",
    "before deploy:cleanup",
    "after finishing",
    "after finished",
)


def test_each_hook_runs_at_its_place_and_the_plan_says_so(project: Project, machine: Machine, marks: Marks) -> None:
    top = f"build = {json.dumps(['sh -c ' + json.dumps(marks.add('build'))])}\n"
    top += f"migrate = {json.dumps('sh -c ' + json.dumps(marks.add('migrate')))}\n"
    # in another order than they happen
    with_hooks(project, *(hook(at, marks.add(f"{at}: $MIDSTREAM_RELEASE")) for at in reversed(POINTS)), top=top)
    planned = project.cli("plan").out.splitlines()
    shown = [line.split(": ")[0].split("  ")[-1].strip() for line in planned if line.strip().startswith("hook ")]
    assert shown == list(POINTS)
    first = project.deployed()
    expected = list(POINTS)
    expected.insert(expected.index("after deploy:build"), "build")
    expected.insert(expected.index("after updated"), "migrate")
    assert [line.split(":  ")[0].split(f": {first}")[0].removesuffix(":") for line in marks.lines()] == expected
    marks.path.unlink()
    project.commit("second")
    second = project.deployed()
    releases = dict(line.split(": ") for line in marks.lines() if ": " in line)
    assert releases["after check"] == releases["after git:update"] == first, "before there is a new one, the old one"
    assert releases["after updating"] == releases["before handover"] == releases["after finished"] == second
    assert machine.app()["deploy"] is None


def test_one_hook_costs_no_more_than_one_round_trip_at_the_end_of_a_phase(project: Project, marks: Marks) -> None:
    with_hooks(project, hook("after updated", marks.add("x")))
    project.deployed()
    project.commit("again")
    calls = [json.loads(line) for line in project.deploy("--json").out.splitlines()]
    assert len([call for call in calls if call["type"] == "call"]) <= 6


def test_a_failing_hook_fails_the_deploy_and_what_was_begun_is_undone_backwards(
    project: Project, machine: Machine, marks: Marks
) -> None:
    first = project.deployed()
    with_hooks(
        project,
        hook("after check", marks.add("one"), undo=marks.add("undo one")),
        hook("after updated", marks.add("two"), undo=marks.add("undo two")),
        hook("before publishing", marks.add("three") + "; exit 3", undo=marks.add("undo three")),
        hook("after published", marks.add("four"), undo=marks.add("undo four")),
    )
    result = project.deploy()
    assert result.code == 1, result.text
    assert "hook 3 failed" in result.err and "exit 3" in result.err
    assert project.get("/") == (200, first)
    assert project.current == first
    assert marks.lines() == ["one", "two", "three", "undo three", "undo two", "undo one"]
    assert machine.app()["deploy"] is None


def test_nothing_is_undone_after_a_success(project: Project, marks: Marks) -> None:
    with_hooks(project, hook("after check", marks.add("one"), undo=marks.add("undo one")))
    project.deployed()
    assert marks.lines() == ["one"]


def test_a_release_that_does_not_come_up_undoes_the_hooks(project: Project, marks: Marks) -> None:
    first = project.deployed()
    with_hooks(project, hook("before handover", marks.add("out"), undo=marks.add("in")))
    project.misbehave("exit")
    assert project.deploy().code == 1
    assert marks.lines() == ["out", "in"]
    assert project.get("/") == (200, first)


def test_a_hook_that_fails_after_the_decision_is_told_and_the_rest_goes_on(project: Project, marks: Marks) -> None:
    project.deployed()
    with_hooks(
        project,
        hook("after check", marks.add("one"), undo=marks.add("undo one")),
        hook("after published", "exit 4"),
        hook("after finishing", marks.add("two")),
    )
    result = project.deploy()
    assert result.code == 5, result.text
    assert "the release is committed" in result.err and "exit 4" in result.err
    assert marks.lines() == ["one", "two", "undo one"]
    assert project.get("/")[1] == project.current


def test_an_undo_that_fails_needs_attention_and_the_others_run(project: Project, marks: Marks) -> None:
    project.deployed()
    with_hooks(
        project,
        hook("after check", marks.add("one"), undo=marks.add("undo one")),
        hook("after updated", marks.add("two"), undo="exit 9"),
        hook("before publishing", "false"),
    )
    result = project.deploy()
    assert result.code == 5, result.text
    assert "exit 9" in result.err
    assert marks.lines() == ["one", "two", "undo one"]


def test_an_interrupt_within_a_hook_ends_it_and_undoes_it(project: Project, machine: Machine, marks: Marks) -> None:
    first = project.deployed()
    with_hooks(project, hook("after check", marks.add("begun") + "; sleep 600", undo=marks.add("undone")))
    deployer = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the hook to run", lambda: "begun" in marks.lines())
    deployer.send_signal(signal.SIGINT)
    out, _ = deployer.communicate(timeout=60)
    assert deployer.returncode == 130, out
    assert marks.lines() == ["begun", "undone"]
    assert machine.app()["deploy"] is None
    assert project.get("/") == (200, first)


@pytest.mark.parametrize("kill_agent", [False, True], ids=["deployer", "deployer-and-agent"])
@pytest.mark.parametrize("within", [True, False], ids=["within-the-hook", "after-it"])
def test_kill_9_of_the_deployer_has_the_agent_undo(
    project: Project, machine: Machine, marks: Marks, within: bool, kill_agent: bool
) -> None:
    first = project.deployed()
    gate = machine.root / "gate"
    os.mkfifo(gate)
    hooks = [hook("after check", marks.add("begun") + (f"; cat {gate}" if within else ""), undo=marks.add("undone"))]
    if not within:
        hooks.append(hook("after updated", marks.add("later") + f"; cat {gate}"))
    with_hooks(project, *hooks)
    deployer = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the hook to run", lambda: ("begun" if within else "later") in marks.lines())
    deployer.kill()
    deployer.communicate(timeout=60)
    if kill_agent:
        machine.kill_agent()
    wait_for("the lease to run out", lambda: machine.app()["deploy"] is None)
    assert marks.lines()[-1] == "undone"
    assert marks.lines().count("undone") == 1
    assert project.get("/") == (200, first)
    project.commit("no hooks", config=project.config())
    assert project.deploy().code == 0


@pytest.mark.parametrize("machine", ["15"], indirect=True, ids=["a long lease"])
def test_a_hook_goes_on_while_its_agent_is_killed_and_runs_once(
    project: Project, machine: Machine, marks: Marks
) -> None:
    project.deployed()
    gate = machine.root / "gate"
    os.mkfifo(gate)
    with_hooks(project, hook("after check", marks.add("begun") + f"; cat {gate} > /dev/null; " + marks.add("ended")))
    deployer = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the hook to run", lambda: "begun" in marks.lines())
    machine.kill_agent()
    Path(gate).write_text("go\n")
    out, _ = deployer.communicate(timeout=90)
    assert deployer.returncode == 0, out
    assert marks.lines() == ["begun", "ended"]


def test_the_deploy_that_failed_has_its_own_hooks(project: Project, marks: Marks) -> None:
    project.deployed()
    with_hooks(
        project,
        *(hook(at, marks.add(at)) for at in ("before reverting", "after reverted", "after failed", "after published")),
        hook("before publishing", "false"),
    )
    assert project.deploy().code == 1
    assert marks.lines() == ["before reverting", "after reverted", "after failed"]
    marks.path.unlink()
    with_hooks(project, hook("after failed", marks.add("never")))
    project.deployed()
    assert marks.lines() == []


def test_hooks_of_a_rollback(project: Project, marks: Marks) -> None:
    first = project.deployed()
    with_hooks(
        project, hook("after check", marks.add("check")), hook("after reverted", marks.add("$MIDSTREAM_RELEASE"))
    )
    project.deployed()
    marks.path.unlink()
    result = project.cli("rollback")
    assert result.code == 0, result.text
    assert marks.lines() == ["check", first]
