"""What is left when something has ended: a service that was taken out of the configuration, a deploy that is over."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from typing import Any

import pytest
from machine import Machine, Project, free_port, wait_for

from midstream.errors import AppError, LockedError, OperatorError

JOBS = f"""
[services.jobs]
command = "{sys.executable} -c 'import signal; signal.pause()'"
"""


def names(machine: Machine) -> list[str]:
    return [service["service"] for service in machine.app()["services"]]


# -- a dropped service -----------------------------------------------------------------------------------------------


def with_jobs(project: Project, machine: Machine) -> None:
    project.deployed()
    project.write(config=project.config(project.web() + JOBS))
    project.commit("jobs")
    assert project.deploy().code == 0
    assert names(machine) == ["jobs", "web"]
    project.write(config=project.config())
    project.commit("no jobs any more")


def test_a_dropped_service_is_forgotten_when_its_last_process_is_gone(project: Project, machine: Machine) -> None:
    with_jobs(project, machine)
    assert project.deploy().code == 0
    wait_for("jobs to be forgotten", lambda: names(machine) == ["web"])
    wait_for("it to settle", machine.settled)
    assert project.cli("status", "--check").code == 0
    why = [entry["what"] for entry in machine.call("why", app="shop", service="jobs")["entries"]]
    assert "start" in why and why[-1] == "forgotten"
    with pytest.raises(OperatorError, match="no service 'other'"):
        machine.call("why", app="shop", service="other")
    machine.kill_agent()
    assert names(machine) == ["web"], "nor does it come back from the database"


def test_a_dropped_service_that_comes_back_runs(project: Project, machine: Machine) -> None:
    with_jobs(project, machine)
    assert project.deploy().code == 0
    wait_for("jobs to be forgotten", lambda: names(machine) == ["web"])
    project.write(config=project.config(project.web() + JOBS))
    project.commit("jobs again")
    assert project.deploy().code == 0
    wait_for("both to run", lambda: names(machine) == ["jobs", "web"] and machine.settled())


def test_a_service_that_a_failed_deploy_added_is_forgotten(project: Project, machine: Machine) -> None:
    project.deployed()
    broken = f'[services.jobs]\ncommand = "{sys.executable} -c 1/0"\n'
    project.write(config=project.config(project.web() + broken))
    project.commit("jobs that do not start")
    assert project.deploy().code == 1
    wait_for("jobs to be forgotten", lambda: names(machine) == ["web"])


def test_the_listeners_of_a_dropped_service_are_closed(project: Project, machine: Machine) -> None:
    port = free_port()
    other = project.web(listen=f'listen = ["tcp://127.0.0.1:{port}"]').replace("services.web", "services.other")
    project.deployed()
    project.write(config=project.config(project.web() + other))
    project.commit("other")
    assert project.deploy().code == 0
    assert not _is_free(port)
    project.write(config=project.config())
    project.commit("no other any more")
    assert project.deploy().code == 0
    wait_for("it to be forgotten", lambda: names(machine) == ["web"])
    wait_for("the port to be free", lambda: _is_free(port))


def _is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


# -- a deploy that is over -------------------------------------------------------------------------------------------


def last_deploy(machine: Machine) -> tuple[str, int]:
    """Id and token of the last deploy, from the agent's own record."""
    db = sqlite3.connect(machine.state / "agent.db")
    ((text,),) = db.execute("SELECT body FROM intent ORDER BY rowid DESC LIMIT 1").fetchall()
    db.close()
    body = json.loads(text)
    assert body["state"] == "closed"
    return body["id"], body["token"]


def opening(project: Project, deploy_id: str) -> dict[str, object]:
    spec = {"app": "shop", "deploy_to": str(project.deploy_to), "repository": str(project.folder)}
    return {"deploy_id": deploy_id, "spec": spec, "kind": "deploy", "user": "me"}


def test_a_committed_deploy_that_is_opened_again_answers_with_its_outcome(project: Project, machine: Machine) -> None:
    """Begun anew, it would empty the folder that its processes run from."""
    release = project.deployed()
    pids = machine.pids()
    deploy_id, token = last_deploy(machine)
    machine.kill_agent()
    facts = machine.call("deploy.open", **opening(project, deploy_id))
    assert facts["over"] == "committed" and facts["token"] == token
    assert machine.app()["deploy"] is None, "it takes no lock"
    ids = {"deploy_id": deploy_id, "token": token}
    body = {"revision": "0" * 40, "tree": "", "revision_time": 0.0, "branch": "main", "release": "20990101000000"}
    spec = opening(project, deploy_id)["spec"]
    assert machine.call("deploy.update", **ids, **body, spec=spec, secrets={}, pack=False)["release"] == release
    assert machine.call("deploy.publish", **ids)["release"] == release
    assert machine.call("deploy.commit", **ids)["release"] == release
    assert machine.call("deploy.finish", **ids, outcome="done") == {
        "removed": [],
        "drift": [],
        "draining": 0,
        "warnings": [],
    }
    for call in ({"offset": 0, "data": "eA==", "last": True}, None):
        with pytest.raises(LockedError, match="is over: it was committed"):
            machine.call("deploy.upload" if call else "deploy.revert", **ids, **(call or {"reason": "no"}))
    assert machine.pids() == pids and project.get("/") == (200, release)
    assert machine.call("lock", app="shop", owner="me", reason="")["lock"]["owner"] == "me"
    machine.call("unlock", app="shop")


def test_a_committed_deploy_is_over_for_good_when_another_came_after_it(project: Project, machine: Machine) -> None:
    project.deployed()
    deploy_id, token = last_deploy(machine)
    later = project.deployed()
    with pytest.raises(LockedError, match=f"is over: it was committed, and release {later} has come"):
        machine.call("deploy.open", **opening(project, deploy_id))
    with pytest.raises(LockedError, match="is over"):
        machine.call("deploy.commit", deploy_id=deploy_id, token=token)


def test_a_deploy_that_was_put_back_is_over_for_its_calls(project: Project, machine: Machine) -> None:
    project.deployed()
    project.misbehave("exit")
    assert project.deploy().code == 1
    deploy_id, token = last_deploy(machine)
    machine.kill_agent()
    with pytest.raises(AppError, match="was not proven"):  # a deployer repeats the call when its agent died
        machine.call("deploy.publish", deploy_id=deploy_id, token=token)
    for call, stamp in (("deploy.publish", token + 1), ("deploy.commit", token)):
        with pytest.raises(LockedError, match="is over: it was put back"):
            machine.call(call, deploy_id=deploy_id, token=stamp)


def test_a_deploy_that_is_being_put_back_is_made_anew_when_that_is_done(project: Project, machine: Machine) -> None:
    """`midstream resume` may come just as the lease is over: it must not get into the way back."""
    good = project.deployed()
    gate = machine.root / "gate"
    os.mkfifo(gate)
    hook = f'[[hooks]]\nbefore = "handover"\nrun = "true"\nundo = "cat {gate}"\n'
    project.commit("does not boot", config=project.config(tail=hook), misbehave="exit")
    deployer = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the way back", lambda: (machine.app()["deploy"] or {}).get("phase") in ("reverting", "reverted"))
    db = sqlite3.connect(machine.state / "agent.db")
    ((text,),) = db.execute("SELECT body FROM intent ORDER BY rowid DESC LIMIT 1").fetchall()
    db.close()
    before = json.loads(text)
    opened: list[Any] = []
    asking = threading.Thread(
        target=lambda: opened.append(machine.call("deploy.open", **opening(project, before["id"]))), daemon=True
    )
    asking.start()
    gate.write_text("go\n")
    deployer.communicate(timeout=60)
    assert deployer.returncode == 1
    asking.join(60.0)
    assert opened and opened[0]["token"] > before["token"], "it was begun anew"
    wait_for("its lease to be over", lambda: machine.app()["deploy"] is None)
    assert machine.app()["release"] == good
    wait_for("it to settle", machine.settled)


def test_a_deploy_that_was_put_back_is_over_for_good_when_another_came_after_it(
    project: Project, machine: Machine
) -> None:
    """`midstream resume` of it would take the later release back."""
    project.deployed()
    project.misbehave("exit")
    assert project.deploy().code == 1
    deploy_id, _ = last_deploy(machine)
    project.misbehave("")
    later = project.deployed()
    with pytest.raises(LockedError, match=f"is over: it was put back, and release {later} has come after it"):
        machine.call("deploy.open", **opening(project, deploy_id))
    assert machine.app()["release"] == later and machine.app()["deploy"] is None


# -- what a deploy removed -------------------------------------------------------------------------------------------


def trash_of(project: Project) -> list[str]:
    return sorted(item.name for item in (project.deploy_to / ".midstream/trash").iterdir())


def noted(machine: Machine) -> list[str]:
    db = sqlite3.connect(machine.state / "agent.db")
    rows = db.execute("SELECT name FROM meta WHERE name LIKE 'trash.%'").fetchall()
    db.close()
    return [row[0] for row in rows]


def test_what_a_deploy_removes_is_deleted_after_it(project: Project, machine: Machine) -> None:
    project.write(config=project.config(top="keep_releases = 1"))
    releases = [project.commit("one") and project.deployed() for _ in range(3)]
    wait_for("old releases to go", lambda: machine.settled())
    releases.append(project.commit("two") and project.deployed())
    wait_for("the trash to be empty", lambda: trash_of(project) == [] and noted(machine) == [])
    assert releases[0] not in [item.name for item in (project.deploy_to / "releases").iterdir()]


def test_an_agent_goes_on_deleting_what_the_last_one_began_with(project: Project, machine: Machine) -> None:
    project.deployed()
    machine.stop()
    (project.deploy_to / ".midstream/trash/20000101000000.0/x").mkdir(parents=True)
    with sqlite3.connect(machine.state / "agent.db") as db:
        db.execute("INSERT INTO meta VALUES ('trash.shop', '1')")
    db.close()
    machine.start()
    wait_for("the trash to be empty", lambda: trash_of(project) == [] and noted(machine) == [])


def test_what_cannot_be_deleted_is_an_event_and_no_failure(project: Project, machine: Machine) -> None:
    """A bind mount in an old release cannot be deleted, by nobody."""
    if os.getuid() != 0:
        pytest.skip("needs root, for a mount")
    project.write(config=project.config(top="keep_releases = 1"))
    project.commit("keeps one")
    stuck = project.deploy_to / "releases" / project.deployed() / "mounted"
    stuck.mkdir()
    project.commit("two")
    project.deployed()
    subprocess.run(["mount", "--bind", str(machine.root / "home"), str(stuck)], check=True)
    places = [stuck]
    try:
        project.commit("three")
        result = project.deploy()
        assert result.code == 0, result.text
        places += list((project.deploy_to / ".midstream/trash").glob("*/mounted"))

        def told() -> bool:
            rows = machine.call("why", app="shop", service="web")["entries"]
            return any(row["what"] == "trash" and "mounted" in row["cause"] for row in rows)

        wait_for("an event", told)
    finally:
        for place in places:
            subprocess.run(["umount", str(place)], check=False, capture_output=True)


# -- steps that share a process --------------------------------------------------------------------------------------


def journal(machine: Machine) -> list[tuple[str, str]]:
    """Step and what, of the last deploy."""
    deploy_id, _ = last_deploy(machine)
    db = sqlite3.connect(machine.state / "agent.db")
    rows = db.execute("SELECT step, what FROM journal WHERE intent = ? ORDER BY id", (deploy_id,)).fetchall()
    db.close()
    return [(row[0], row[1]) for row in rows]


def test_each_step_of_a_shared_process_is_journalled_and_told(project: Project, machine: Machine) -> None:
    result = project.deploy("--json")
    assert result.code == 0, result.text
    rows = [json.loads(line) for line in result.out.splitlines() if line.startswith('{"type"')]
    told = [(row["type"], row["step"]) for row in rows if row["type"] in ("begin", "end") and not row.get("text")]
    names = ("git:update", "git:create_release", "deploy:store_spec")
    in_turn = [(kind, name) for name in names for kind in ("begin", "end")]
    assert [item for item in told if item[1] in names] == in_turn
    written = journal(machine)
    assert [item for item in written if item[0] in names] == [
        *((name, "begin") for name in names),
        *((name, "done") for name in names),
    ]
    stored = project.deploy_to / f".midstream/specs/{machine.app()['release']}.json"
    assert json.loads(stored.read_text())["app"] == "shop"


def test_a_step_that_fails_in_a_shared_process_is_the_one_that_is_named(project: Project, machine: Machine) -> None:
    """What came before it is done: the release is known, and remembered as bad."""
    old = project.deployed()
    project.write(config=project.config(top='assets = ["not-there"]'))
    project.commit("assets that are not there")
    result = project.deploy()
    assert result.code == 1 and "not-there" in result.text, result.text
    written = journal(machine)
    assert ("git:create_release", "done") in written and ("deploy:publish_assets", "failed") in written
    assert ("deploy:store_spec", "done") not in written and ("deploy:publish_assets", "done") not in written
    rows = machine.call("releases", app="shop")["releases"]
    assert [row["state"] for row in rows if row["release"] != old] == ["bad"]
    assert project.get("/") == (200, old)
    project.write(config=project.config())
    project.commit("mended")
    project.deployed()
