"""The command line with the real keeper and agent: interrupts, killed deployers and agents, upgrades, streams."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from machine import MIDSTREAM, Machine, Project, wait_for

from midstream.core.spec import AppSpec
from midstream.core.wire import to_wire
from midstream.deploy.sync_client import connect
from midstream.errors import MidstreamError


def in_publishing(machine: Machine) -> bool:
    """The deploy is so far that a new generation is being started."""
    deploy = machine.app()["deploy"]
    return bool(deploy) and deploy["phase"] == "publishing"


def start_a_deploy_that_hangs(project: Project, machine: Machine) -> tuple[str, subprocess.Popen[str]]:
    """The old release is deployed; the new one never becomes ready. Returns the old release and the deployer."""
    old = project.deployed()
    project.misbehave("never-ready")
    deployer = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the handover", lambda: in_publishing(machine))
    return old, deployer


def gated(project: Project, machine: Machine) -> tuple[str, Path]:
    """Commits a release that does not start before its gate is there. Returns the revision and the gate."""
    gate = machine.root / "gate"
    config = project.config()
    wait = f"until [ -e {gate} ]; do sleep 0.05; done"
    changed = config.replace(f'"{sys.executable} server.py"', f"\"sh -c '{wait}; exec {sys.executable} server.py'\"")
    assert changed != config
    return project.commit("waits for its gate", config=changed), gate


def finished(deployer: subprocess.Popen[str]) -> str:
    assert deployer.stdout is not None
    with deployer.stdout as out:
        text = out.read()
    deployer.wait(60)
    return text


def nothing_left(machine: Machine, project: Project, release: str) -> None:
    app = machine.app()
    assert (app["deploy"], app["lock"], app["release"]) == (None, None, release)
    assert project.get("/") == (200, release)
    assert machine.cli("status", "--check").code == 0


def test_ctrl_c_puts_back_and_the_old_release_serves_on(project: Project, machine: Machine) -> None:
    old, deployer = start_a_deploy_that_hangs(project, machine)
    pids = machine.pids()
    deployer.send_signal(signal.SIGINT)
    text = finished(deployer)
    assert deployer.returncode == 130, text
    assert f"release {old}" in text
    assert "Traceback" not in text
    nothing_left(machine, project, old)
    assert machine.pids() == pids


def test_a_hangup_is_an_interrupt_too(project: Project, machine: Machine) -> None:
    """As when the operator's terminal is gone."""
    old, deployer = start_a_deploy_that_hangs(project, machine)
    deployer.send_signal(signal.SIGHUP)
    finished(deployer)
    assert deployer.returncode == 130
    nothing_left(machine, project, old)


@pytest.mark.parametrize("machine", ["30"], indirect=True, ids=["a long lease"])
def test_a_killed_deployer_is_put_back_by_abort_without_waiting(project: Project, machine: Machine) -> None:
    old, deployer = start_a_deploy_that_hangs(project, machine)
    deployer.kill()
    finished(deployer)
    refused = project.deploy()
    assert refused.code == 4
    assert "has been running a deploy" in refused.text
    aborted = project.cli("abort")
    assert aborted.code == 0, aborted.text
    assert old in aborted.out
    nothing_left(machine, project, old)


def test_a_killed_deployer_is_resumed_to_its_end(project: Project, machine: Machine) -> None:
    project.deployed()
    slow, gate = gated(project, machine)
    deployer = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the handover", lambda: in_publishing(machine))
    deployer.kill()
    finished(deployer)
    gate.touch()
    project.commit("this one is not what was being deployed")
    resumed = project.cli("resume")
    assert resumed.code == 0, resumed.text
    assert machine.app()["revision"] == slow
    nothing_left(machine, project, machine.app()["release"])
    assert project.cli("resume").code == 2


def test_resume_waits_for_another_deploy(project: Project, machine: Machine) -> None:
    """Its own was put back meanwhile, and somebody else has the lock."""
    project.deployed()
    wanted, gate = gated(project, machine)
    deployer = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the handover", lambda: in_publishing(machine))
    deployer.kill()
    finished(deployer)
    assert project.cli("abort").code == 0
    gate.touch()
    with contextlib.closing(connect(str(machine.socket))) as client:
        spec = to_wire(AppSpec("shop", str(project.deploy_to), "/repo", "production"))
        asked = {"deploy_id": "other", "spec": spec, "kind": "deploy", "user": "bob"}
        token = client.call("deploy.open", until="check", **asked)["token"]
        memo = max(machine.root.rglob("deploys/*.log"))
        assert project.deploy().code == 4, "and that this one was refused hides nothing from `resume`"
        refused = project.cli("resume")
        assert refused.code == 4 and "bob" in refused.text, refused.text
        waiting = machine.spawn_cli("resume", "--wait", cwd=project.folder)
        wait_for("resume to have begun", lambda: is_held(memo))
        client.call("deploy.finish", deploy_id="other", token=token, outcome="failed")
    out = waiting.communicate(timeout=60)[0]
    assert waiting.returncode == 0, out
    assert machine.app()["revision"] == wanted


def is_held(path: Path) -> bool:
    """Whether a deployer runs that deploy."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("machine", ["15"], indirect=True, ids=["a long lease"])
def test_an_agent_killed_in_the_handover_is_attached_to_again(project: Project, machine: Machine) -> None:
    old = project.deployed()
    _, gate = gated(project, machine)
    deployer = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the handover", lambda: in_publishing(machine))
    machine.kill_agent()
    assert project.get("/") == (200, old)
    gate.touch()
    text = finished(deployer)
    assert deployer.returncode == 0, text
    assert "the agent is back" in text
    assert machine.app()["release"] > old
    nothing_left(machine, project, machine.app()["release"])


def test_logs_are_followed_through_the_death_of_the_agent(project: Project, machine: Machine) -> None:
    project.deployed()
    follower = machine.spawn_cli("logs", "-f", "web", cwd=project.folder)
    assert follower.stdout is not None
    assert "starting release" in follower.stdout.readline()
    machine.kill_agent()
    assert project.cli("restart", "web").code == 0
    line = follower.stdout.readline()
    assert "starting release" in line
    follower.send_signal(signal.SIGINT)
    finished(follower)
    assert follower.returncode == 130


def test_an_upgrade_changes_the_agent_and_no_service(project: Project, machine: Machine) -> None:
    project.deployed()
    agent, keeper, pids = machine.agent_pid, machine.keeper_pid, machine.pids()
    result = machine.cli("agent", "upgrade")
    assert result.code == 0, result.text
    assert machine.agent_pid != agent
    assert (machine.keeper_pid, machine.pids()) == (keeper, pids)


def test_a_refused_keeper_image_leaves_the_agent_command_as_it_was(machine: Machine, tmp_path: Path) -> None:
    """Else the next agent would be of the version that was refused."""
    record = json.loads(next(machine.root.rglob("agent.json")).read_text())
    bad = tmp_path / "keeper.pyz"
    bad.write_bytes(b"no zip file")
    with pytest.raises(MidstreamError, match="refused"):
        machine.call("agent.upgrade", argv=["/bin/false"], keeper_image=str(bad))
    assert json.loads(next(machine.root.rglob("agent.json")).read_text()) == record
    machine.kill_agent()


def test_a_second_agent_with_the_same_state_is_refused(machine: Machine) -> None:
    second = machine.cli("agent", "run", "--state", str(machine.state), "--socket", str(machine.root / "b.sock"))
    assert second.code == 4, second.text
    assert str(machine.keeper_pid) in second.text


def test_agent_stop_ends_services_agent_and_keeper(project: Project, machine: Machine) -> None:
    project.deployed()
    pids = [*machine.pids(), machine.agent_pid, machine.keeper_pid]
    assert machine.cli("agent", "stop").code == 0
    assert machine.process is not None
    assert machine.process.wait(30) == 0
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []


def test_status_says_what_was_stopped_held_and_locked(project: Project, machine: Machine) -> None:
    project.deployed()
    assert project.cli("stop", "web").code == 0
    assert "stopped by hand" in project.cli("status").out
    assert project.cli("up", "web").code == 0
    assert project.cli("hold", "web", "--for", "1h", "--reason", "moving").code == 0
    assert "moving" in project.cli("status").out
    assert project.cli("unhold", "web").code == 0
    assert project.cli("lock", "--reason", "freeze").code == 0
    refused = project.deploy()
    assert refused.code == 4
    assert "freeze" in refused.err
    assert project.cli("unlock").code == 0
    assert project.cli("doctor").code == 0


def test_exec_runs_in_the_committed_release(project: Project, machine: Machine) -> None:
    sha = project.git("rev-parse", "HEAD")
    project.deployed()
    assert sha in project.cli("exec", "cat", "REVISION").out
    failed = project.cli("exec", "--shell", "exit 7")
    assert failed.code == 1
    assert "7" in failed.err


def test_diff_and_check_against_the_running_release(project: Project) -> None:
    project.deployed()
    project.commit("Sell boats")
    assert "Sell boats" in project.cli("diff").out
    checked = project.cli("check")
    assert checked.code == 0, checked.text
    project.write(config=project.config(top='linked_files = [".env"]'))
    project.commit("with a linked file that is missing")
    missing = project.cli("check")
    assert missing.code == 2, missing.text
    assert ".env" in missing.err


def test_the_deployers_exit_code_is_the_one_of_a_pipe(project: Project, machine: Machine) -> None:
    """Plain lines when piped: no escapes, no rewriting."""
    done = subprocess.run([*MIDSTREAM, "deploy"], cwd=project.folder, env=machine.env, capture_output=True, timeout=120)
    assert done.returncode == 0
    assert b"\x1b" not in done.stdout
