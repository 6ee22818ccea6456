"""`midstream env push`: values reach the hosts without a release, are taken by the next handover, and are seen nowhere."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from machine import Machine, Project, wait_for

from midstream.core.spec import AppSpec
from midstream.core.wire import to_wire
from midstream.deploy.sync_client import connect

SECRET = "hunter2-hunter2"
NEWER = "correct-horse"


def config(project: Project, colour: str = "teal") -> str:
    return project.config(
        top=f'[env]\nCOLOUR = "{colour}"\n',
        tail='[stages.production]\nsecrets = { SECRET_KEY = { file = "../key" } }\n',
    )


@pytest.fixture
def shop(project: Project) -> Project:
    (project.machine.root / "key").write_text(SECRET + "\n")
    project.commit(config=config(project))
    project.deployed()
    return project


def seen_by(project: Project, name: str) -> str:
    """The variable as the running process has it."""
    (pid,) = project.machine.pids()
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((row.partition(b"=")[2].decode() for row in environ if row.startswith(name.encode() + b"=")), "")


def test_what_is_pushed_is_taken_by_the_next_restart_and_not_before(shop: Project) -> None:
    machine = shop.machine
    release, before = machine.app()["release"], machine.pids()
    (machine.root / "key").write_text(NEWER)
    result = shop.cli("env", "push")
    assert result.code == 0, result.text
    assert "SECRET_KEY" in result.out and "COLOUR" not in result.out
    assert machine.pids() == before
    assert "waiting for a restart: SECRET_KEY" in shop.cli("env", "list").out
    os.kill(before[0], 9)  # a crash brings back what was proven
    wait_for("the crashed one to be back", lambda: machine.replaced(before))
    assert seen_by(shop, "SECRET_KEY") == SECRET
    assert shop.cli("restart", "all").code == 0
    assert seen_by(shop, "SECRET_KEY") == NEWER
    assert machine.app()["release"] == release
    assert "waiting" not in shop.cli("env", "list").out
    pids = machine.pids()
    os.kill(pids[0], 9)
    wait_for("the new one to be back", lambda: machine.replaced(pids))
    assert seen_by(shop, "SECRET_KEY") == NEWER


def test_restart_hands_over_at_once_with_the_stages_variables(shop: Project) -> None:
    """The working copy's stage counts, over the configuration of the release; its other half-written keys do not."""
    text = config(shop, "half-written").replace("[stages.production]\n", '[stages.production]\nenv.SIZE = "9"\n')
    shop.write(config=text)
    result = shop.cli("env", "push", "--restart", "--json")
    assert result.code == 0, result.text
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert rows[0]["changed"] == ["SIZE"] and rows[-1]["state"] == "running"
    assert (seen_by(shop, "SIZE"), seen_by(shop, "COLOUR")) == ("9", "teal")


def test_an_environment_that_does_not_work_changes_nothing(shop: Project) -> None:
    machine = shop.machine
    before = machine.pids()
    text = config(shop).replace("[stages.production]\n", '[stages.production]\nenv.PATH = "/nowhere"\n')
    text = text.replace("[stages.production]\n", '[stages.production]\nenv.PYTHONHOME = "/nowhere"\n')
    shop.write(config=text)
    result = shop.cli("env", "push", "--restart")
    assert result.code == 1
    wait_for("it to settle", machine.settled)
    assert machine.pids() == before
    assert shop.get("/up")[0] == 200


def test_a_start_takes_it_where_nothing_of_the_app_runs(shop: Project) -> None:
    shop.cli("stop", "all")
    (shop.machine.root / "key").write_text(NEWER)
    assert shop.cli("env", "push").code == 0
    assert shop.cli("start", "all").code == 0
    assert seen_by(shop, "SECRET_KEY") == NEWER
    assert "waiting" not in shop.cli("env", "list").out


def test_a_rollback_takes_the_secrets_and_a_deploy_brings_its_own(shop: Project) -> None:
    shop.commit("again")
    shop.deployed()
    (shop.machine.root / "key").write_text(NEWER)
    assert shop.cli("env", "push").code == 0
    assert shop.cli("rollback").code == 0
    assert seen_by(shop, "SECRET_KEY") == NEWER
    (shop.machine.root / "key").write_text("third-third")
    assert shop.cli("env", "push").code == 0
    (shop.machine.root / "key").write_text("fourth-fourth")
    shop.deployed()
    assert seen_by(shop, "SECRET_KEY") == "fourth-fourth"
    assert "waiting" not in shop.cli("env", "list").out


def test_it_outlives_the_agent_and_the_keeper(shop: Project) -> None:
    (shop.machine.root / "key").write_text(NEWER)
    assert shop.cli("env", "push").code == 0
    shop.machine.kill_agent()
    shop.machine.kill_keeper()
    wait_for("the agent", shop.machine.answers)
    wait_for("all to be settled", shop.machine.settled)
    assert shop.cli("restart", "all").code == 0
    assert seen_by(shop, "SECRET_KEY") == NEWER


def test_values_are_nowhere_but_in_files_of_mode_0600_and_in_the_processes(shop: Project) -> None:
    machine: Machine = shop.machine
    (machine.root / "key").write_text(NEWER)
    results = [shop.cli(*words) for words in (("env", "push", "--restart"), ("env", "list"), ("env", "list", "--json"))]
    results += [shop.cli("why", "web"), shop.cli("status", "--json"), shop.cli("logs")]
    for result in results:
        assert result.code == 0, result.text
        assert NEWER not in result.text and SECRET not in result.text
    for path in machine.root.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and path.name != "key" and NEWER.encode() in path.read_bytes():
                assert path.stat().st_mode & 0o077 == 0, path
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit():
                assert NEWER.encode() not in Path(f"/proc/{name}/cmdline").read_bytes()


def test_what_cannot_be_pushed(project: Project) -> None:
    assert "is not deployed there" in project.cli("env", "push").err
    (project.machine.root / "key").write_text(SECRET)
    project.commit(config=config(project))
    project.deployed()
    for params, words in (
        ({"variables": {"": {"A=B": "1"}}}, "no name of a variable"),
        ({"variables": {"other": {"A": "1"}}}, "no service"),
        ({"secrets": {"A": "a\0b"}}, "NUL"),
        ({"variables": {"": {"A": "x" * 300_000}}}, "characters|bytes"),
        ({"variables": []}, "env.push"),
    ):
        with pytest.raises(Exception, match=words):
            project.machine.call("env.push", app="shop", **params)
    assert "waiting" not in project.cli("env", "list").out


def test_push_with_restart_takes_the_deploys_lock(shop: Project) -> None:
    """Refused while another has it, held until the new processes serve, and no trace of a deploy is left."""
    machine = shop.machine
    shop.commit("again")
    release, log = shop.deployed(), (shop.deploy_to / "revisions.log").read_text()
    (machine.root / "key").write_text(NEWER)
    with contextlib.closing(connect(str(machine.socket))) as client:
        spec = to_wire(AppSpec("shop", str(shop.deploy_to), "/repo", "production"))
        asked = {"deploy_id": "other", "spec": spec, "kind": "deploy", "user": "bob"}
        token = client.call("deploy.open", until="check", **asked)["token"]
        refused = shop.cli("env", "push", "--restart")
        assert refused.code == 4 and "bob" in refused.err, refused.text
        client.call("deploy.finish", deploy_id="other", token=token, outcome="failed")
    assert "waiting" not in shop.cli("env", "list").out, "nothing was sent"
    push = machine.spawn_cli("env", "push", "--restart", cwd=shop.folder)
    wait_for("the lock", lambda: (machine.app()["deploy"] or {}).get("kind") == "configure")
    assert push.wait(60) == 0, push.communicate()[0]
    push.communicate()
    assert machine.app()["deploy"] is None and machine.app()["release"] == release
    assert seen_by(shop, "SECRET_KEY") == NEWER
    assert (shop.deploy_to / "revisions.log").read_text() == log
    states = [row["state"] for row in machine.call("releases", app="shop")["releases"]]
    assert set(states) == {"good"}
