"""Four hosts with roles, from sshd and python3 alone to a running service; then a deploy that loses one of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, FleetProject
from machine import wait_for
from setup_fleet import PREFIX, Deployer, pyz
from test_fleet_deploy import BLOCK, block, is_building, unblock

from midstream.errors import EXIT_ATTENTION

__all__ = ["pyz"]
pytestmark = pytest.mark.slow
ROLES = {"web1": ["web"], "web2": ["web"], "db1": ["db"], "batch1": ["batch"]}

# Takes what is put into /srv/shop/queue, one file a job, and writes down in which release it did so.
WORKER = """
import os, pathlib, signal, sys, time
queue, done = pathlib.Path("/srv/shop/queue"), pathlib.Path("/srv/shop/done")
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
for folder in (queue, done):
    folder.mkdir(exist_ok=True)
while not ended:
    for job in queue.iterdir():
        job.rename(done / f"{job.name}.{os.environ['MIDSTREAM_RELEASE']}")
    time.sleep(0.05)
"""


def config(project: FleetProject, more: str = "") -> str:
    jobs = '[services.jobs]\ncommand = "/usr/bin/python3 worker"\nroles = ["batch"]\nhandover = "replace"\n'
    migrate = '[migrate]\nrun = "echo $(cat counter) >> /srv/shop/schema"\nshell = true\n'
    return project.config(project.web('roles = ["web"]') + jobs, tail=migrate + more)


def all_on(fleet: Fleet, release: str) -> bool:
    """Every host: committed, `current`, nothing locked, nothing going on once the old processes have drained."""
    wait_for("all to settle", lambda: all(host.settled() for host in fleet.hosts.values()))
    return all(
        host.release() == release and host.current() == release and not host.app()["lock"]
        for host in fleet.hosts.values()
    )


def works_in(fleet: Fleet, job: str) -> str:
    """The release whose worker does that job."""
    batch = fleet.host("batch1")
    batch.box.sh(f"touch /srv/shop/{job}; mv /srv/shop/{job} /srv/shop/queue/", user="deploy")
    done = wait_for("the job", lambda: [*batch.root.glob(f"srv/shop/done/{job}.*")])
    return str(done[0].name.partition(".")[2])


def served(fleet: Fleet) -> set[str]:
    return {fleet.get(name)[1] for name in ("web1", "web2")}


def states(fleet: Fleet, name: str) -> list[str]:
    return [g["state"] for row in fleet.host(name).app()["services"] for g in row["generations"]]


def migrated(fleet: Fleet) -> dict[str, int]:
    """How often the migration ran on each host."""
    files = {name: host.root / "srv/shop/schema" for name, host in fleet.hosts.items()}
    return {name: len(file.read_text().split()) if file.exists() else 0 for name, file in files.items()}


def hosts_of(plan: dict[str, Any], task: str) -> list[str]:
    return [name for move in plan["moves"] if task in [row["name"] for row in move["tasks"]] for name in move["hosts"]]


def test_four_empty_hosts_become_one_service_that_survives_the_loss_of_one(
    fleet_of: Callable[..., Fleet], pyz: Path
) -> None:
    """The one whose workers are on the new release already, and the pages not yet: all go back, it by itself."""
    fleet = fleet_of(names=list(ROLES), agents=False)
    project = fleet.project(**ROLES)
    project.commit("a shop", config=config(project), worker=WORKER)
    assert not any((host.root / PREFIX).exists() for host in fleet.hosts.values())

    made = Deployer(fleet, pyz).cli("setup", "production", "--user", "root", cwd=project.folder)
    assert made.code == 0, made.text
    planned = project.cli("plan", "production", "--json")
    assert planned.code == 0, planned.text
    plan = json.loads(planned.out)
    assert hosts_of(plan, "deploy:handover:web") == ["web1", "web2"]
    assert (hosts_of(plan, "deploy:handover:jobs"), hosts_of(plan, "deploy:migrate")) == (["batch1"], ["db1"])
    assert [row["reached"] for row in plan["state"]] == [True] * 4
    first = project.deployed("production")
    assert all_on(fleet, first)
    assert (served(fleet), works_in(fleet, "one")) == ({first}, first)
    assert migrated(fleet) == {"web1": 0, "web2": 0, "db1": 1, "batch1": 0}
    checked = project.cli("status", "--check")
    assert checked.code == 0, checked.text

    hook = f'[[hooks]]\nbefore = "handover"\nroles = ["web"]\nrun = "{BLOCK}"\nshell = true\n'
    project.commit("a hook that waits", config=config(project, hook))
    block(fleet, "web1")
    deployer = project.machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the hook before the pages' handover", lambda: is_building(fleet, "web1"))
    assert "soaking" in states(fleet, "batch1"), "its workers were replaced before the pages"
    fleet.cut("batch1")
    unblock(fleet, "web1")
    out, _ = deployer.communicate(timeout=200)
    assert deployer.returncode == EXIT_ATTENTION, "schema and code differ"
    assert "where:   batch1" in out and "batch1 could not be told to go back" in out, out
    assert "schema: " in out and f"code: {first}" in out, out
    others = [fleet.host(name) for name in ("web1", "web2", "db1")]
    wait_for("the others to settle", lambda: all(host.settled() for host in others))
    assert [(host.release(), host.current()) for host in others] == [(first, first)] * 3
    assert served(fleet) == {first}

    fleet.mend("batch1")
    wait_for("the way to batch1", lambda: fleet.ssh("batch1", "true").code == 0)
    aborted = project.cli("abort")  # instead of waiting for the lease to end
    assert aborted.code == 0, aborted.text
    wait_for("batch1 to be back", lambda: all_on(fleet, first))
    assert works_in(fleet, "two") == first
    second = project.deployed()
    assert all_on(fleet, second)
    assert second > first and (served(fleet), works_in(fleet, "three")) == ({second}, second)
    checked = project.cli("status", "--check")
    assert checked.code == 0, checked.text
