"""What `midstream plan` prints just before a deploy is what the deploy then tells of itself: tasks, phases, order; and what it
says of the host is what is there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from machine import Machine, Project, free_port

BEFORE = """
linked_dirs = ["log"]
assets = ["static"]
migrate = "true"
build = [{ name = "css", run = "true" }, "true"]
"""
HOOKS = """
[[hooks]]
after = "check"
run = "true"

[[hooks]]
before = "deploy:build"
name = "warm"
run = "true"

[[hooks]]
before = "handover"
run = "true"

[[hooks]]
before = "deploy:cleanup"
run = "true"
"""

Told = list[tuple[str, str]]


def planned(project: Project, *args: str) -> Told:
    """Phase and name of each task, in the order of the lines that `plan` prints."""
    result = project.cli("plan", *args)
    assert result.code == 0, result.text
    found, phase = [], ""
    for line in result.out.splitlines()[2:]:
        if line == "if it fails":
            break
        if not line.startswith(" "):
            phase = line.split()[0]
        else:
            found.append((phase, line.strip().split("  ")[0]))
    return settled(found)


def settled(told: Told) -> Told:
    """With the handovers of its services by name: they go on at the same time, and are told in no order."""
    own = iter(sorted(one for one in told if one[1].startswith("deploy:handover:")))
    return [next(own) if one[1].startswith("deploy:handover:") else one for one in told]


def run(project: Project, command: str) -> Told:
    """Phase and name of each task, in the order in which the run told of their ends."""
    result = project.cli(command, "--json")
    assert result.code == 0, result.text
    rows: list[dict[str, Any]] = [json.loads(line) for line in result.out.splitlines()]
    begun = [(row["phase"], row["step"]) for row in rows if row["type"] == "begin"]
    ended = [(row["phase"], row["step"]) for row in rows if row["type"] == "end"]
    assert all(row["ok"] for row in rows if row["type"] == "end")
    assert set(begun) == set(ended), "each is told under one phase, at its beginning and at its end"
    return settled(list(dict.fromkeys(ended)))  # the objects that are sent and that arrive are one task


@pytest.mark.parametrize("hooks", ["", HOOKS], ids=["plain", "with hooks"])
def test_a_deploy_tells_the_tasks_that_were_planned(project: Project, hooks: str) -> None:
    jobs = '[services.jobs]\ncommand = "/bin/sleep 1000"\nready = "alive"\nmin_uptime = "0s"\n'
    by_hand = '[services.rare]\ncommand = "/bin/sleep 1000"\nautostart = false\n'
    config = project.config(project.web() + jobs + by_hand, top=BEFORE, tail=hooks)
    project.commit("everything", config=config, static__app_dot_css="a { }")
    expected = planned(project)
    assert ("updated", "deploy:build:css") in expected and ("publishing", "deploy:handover:jobs") in expected
    assert run(project, "deploy") == expected
    if not hooks:
        return
    project.commit("again")
    assert run(project, "deploy") == planned(project)
    assert run(project, "rollback") == planned(project, "--rollback")


def test_the_plan_says_what_is_on_the_host(project: Project, machine: Machine) -> None:
    sha = project.git("rev-parse", "HEAD")
    first = project.cli("plan")
    assert first.code == 0, first.text
    assert "localhost: nothing yet: first generation" in first.out
    release = project.deployed()
    there = project.cli("plan")
    assert f"localhost: release {release}, main at {sha[:10]}" in there.out
    assert project.cli("lock", "--reason", "freeze until Monday").code == 0
    locked = project.cli("plan")
    assert locked.code == 0, "it is told, the plan is as good as before"
    assert "locked by" in locked.out and "freeze until Monday" in locked.out
    [row] = json.loads(project.cli("plan", "--json").out)["state"]
    assert (row["host"], row["reached"], row["release"], row["revision"]) == ("localhost", True, release, sha)
    assert row["lock"]["reason"] == "freeze until Monday" and row["deploy"] is None
    offline = project.cli("plan", "--offline")
    assert "\n  localhost: " not in offline.out and offline.code == 0
    assert json.loads(project.cli("plan", "--offline", "--json").out)["state"] is None
    nobody = project.cli("plan", MIDSTREAM_SOCKET=f"/run/nobody-listens-{free_port()}.sock")
    assert nobody.code == 0, "before the first deploy there may be no agent yet"
    assert "localhost: NOT REACHED: " in nobody.out and "deploy:check" in nobody.out
    assert machine.app()["deploy"] is None, "nothing was begun by asking"
