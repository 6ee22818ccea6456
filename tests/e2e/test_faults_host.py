"""What goes wrong around a deploy: two at once, keepers and agents that are gone, full disks, hands in the folders."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine, Project, new_machine, new_project, under_load, wait_for


def test_second_deploy_is_refused_with_who_and_since_when(project: Project, machine: Machine) -> None:
    good = project.deployed()
    before = (project.folder / "midstream.toml").read_text()
    gate = machine.root / "gate"
    os.mkfifo(gate)
    project.commit("slow", config=before + f'[[build]]\nrun = ["cat {gate}"]\n')
    first = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the build to run", lambda: (machine.app()["deploy"] or {}).get("phase") == "updated")
    refused = project.deploy()
    assert refused.code == 4, refused.text
    assert "has been running a deploy" in refused.text and good in refused.text and "--wait" in refused.text
    waiting = machine.spawn_cli("deploy", "--wait", cwd=project.folder)
    with gate.open("w") as opened:
        opened.write("go\n")
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 0, out
    with gate.open("w") as opened:
        opened.write("go\n")
    out, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, out
    assert machine.app()["deploy"] is None


@pytest.mark.parametrize("machine", ["", "2"], indirect=True, ids=["as it is", "as it is set"])
def test_killed_deployer_leaves_a_lease_that_runs_out(project: Project, machine: Machine) -> None:
    """No `resume`, no `abort`: the agent puts it back by itself, and nothing stays locked."""
    good = project.deployed()
    before = (project.folder / "midstream.toml").read_text()
    project.commit("slow", config=before + '[[build]]\nrun = ["sleep 3600"]\n')
    deployer = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the build to run", lambda: (machine.app()["deploy"] or {}).get("phase") == "updated")
    os.killpg(deployer.pid, signal.SIGKILL)
    deployer.communicate()
    wait_for("the lease to run out", lambda: machine.app()["deploy"] is None)
    assert machine.app()["release"] == good
    wait_for("it to settle", machine.settled)
    builds = [pid for pid in machine.left_over() if b"sleep\x003600" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert builds == [], "the build of a deploy that was put back goes on"
    project.commit("mended", config=before)
    project.deployed()


@pytest.mark.parametrize("rerun", [True, False], ids=["rerun", "as it is"])
def test_a_migration_whose_end_nobody_saw_is_run_again_only_where_that_was_said(
    project: Project, machine: Machine, rerun: bool
) -> None:
    """Its process and the keeper die while the agent looks away."""
    good = project.deployed()
    gate, runs = machine.root / "gate", machine.root / "runs"
    os.mkfifo(gate)
    runs.touch()
    migrate = f'run = "echo run >> {runs}; exec cat {gate}"\nshell = true\nrerun = {str(rerun).lower()}\n'
    project.commit("a migration", config=project.config(tail="[migrate]\n" + migrate))
    deployer = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the migration to run", lambda: runs.read_text())
    agent, keeper = machine.agent_pid, machine.keeper_pid
    command = b"cat\x00" + os.fsencode(gate)

    def migrations() -> list[int]:
        return [pid for pid in machine.left_over() if command in Path(f"/proc/{pid}/cmdline").read_bytes()]

    [migration] = wait_for("its command", migrations)
    os.kill(agent, signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    os.kill(migration, signal.SIGKILL)
    # While it is a zombie its exit status can be read.
    wait_for("the migration to be gone", lambda: not Path(f"/proc/{migration}").exists())
    os.kill(agent, signal.SIGCONT)
    if rerun:
        wait_for("the migration to run again", lambda: runs.read_text().count("run") == 2)
        with gate.open("w") as opened:
            opened.write("go\n")
    out, _ = deployer.communicate(timeout=60)
    assert deployer.returncode == (0 if rerun else 5), out
    if not rerun:
        assert "is unknown: its process was lost" in out, out
        assert "`[migrate] rerun = true`" in out
        assert machine.app()["release"] == good
    assert runs.read_text().count("run") == 1 + rerun


def test_interrupted_deploy_puts_back_and_exits_130(project: Project, machine: Machine) -> None:
    good = project.deployed()
    before = (project.folder / "midstream.toml").read_text()
    project.commit("slow", config=before + '[[build]]\nrun = ["sleep 3600"]\n')
    deployer = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the build to run", lambda: "'build'" in str(machine.call("deploy.status", app="shop")))
    os.kill(deployer.pid, signal.SIGINT)
    out, _ = deployer.communicate(timeout=60)
    assert deployer.returncode == 130, out
    assert out.count("FAILED") == 1, f"what was cut off is told once, though two calls hear of it:\n{out}"
    assert machine.app()["deploy"] is None and machine.app()["release"] == good


def test_crashed_service_comes_back_on_the_committed_release_in_the_middle_of_a_deploy(
    project: Project, machine: Machine
) -> None:
    """The case that Capistrano with Monit loses: the restart must not take what is being deployed."""
    good = project.deployed()
    before = (project.folder / "midstream.toml").read_text()
    gate = machine.root / "gate"
    os.mkfifo(gate)
    project.commit("slow", config=before + f'[[build]]\nrun = ["cat {gate}"]\n')
    deployer = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the build to run", lambda: (machine.app()["deploy"] or {}).get("phase") == "updated")
    old = machine.pids()
    os.kill(old[0], signal.SIGKILL)
    wait_for("a new process", lambda: machine.pids() not in ([], old))
    assert [item["release_running"] for item in machine.instances()] == [good]
    assert project.get("/") == (200, good)
    with gate.open("w") as opened:
        opened.write("go\n")
    out, _ = deployer.communicate(timeout=60)
    assert deployer.returncode == 0, out
    why = project.cli("why", "web")
    assert "SIGKILL" in why.out, why.text


def test_services_live_without_an_agent_for_a_minute(machine: Machine, project: Project) -> None:
    """The agent is away: a chatty service is not blocked, a crashed one comes back on the committed release, none is
    restarted when the agent returns, no line or exit status is lost."""
    chatty = f"""
[services.chatty]
command = "{sys.executable} chatty.py"
handover = "replace"
stop_timeout = "2s"
"""
    project.write(config=project.config(project.web() + chatty))
    counting = (
        "import itertools, time\nfor n in itertools.count():\n  print('line', n, flush=True)\n  time.sleep(0.002)\n"
    )
    project.commit("chatty", chatty_dot_py=counting)
    good = project.deployed()
    web, chat = machine.pids("web"), machine.pids("chatty")
    log = machine.state / "log" / "shop" / "chatty.log"
    wait_for("lines", lambda: log.exists() and log.stat().st_size > 0)
    keeper = machine.keeper_pid
    agent = machine.agent_pid
    # SIGSTOP keeps the keeper from starting another: the agent is there, and does nothing, until it is killed.
    away_s = float(os.environ.get("MIDSTREAM_AWAY_S", "8"))
    program = sys.executable
    stub = machine.root / "no-agent"
    stub.write_text("#!/bin/sh\nsleep 3600\n")
    stub.chmod(0o755)
    machine.call("agent.upgrade", argv=[str(stub)])
    wait_for("the agent to be gone", lambda: not os.path.exists(f"/proc/{agent}"))
    os.kill(web[0], signal.SIGKILL)
    begun = time.monotonic()
    wait_for("the keeper to bring it back", lambda: _answers(project, good))
    written = []
    while time.monotonic() < begun + away_s:
        written.append(Path(f"/proc/{chat[0]}/stat").read_text().rsplit(")", 1)[1].split()[0])
        time.sleep(0.5)
    assert "D" not in written and set(written) <= {"S", "R"}, f"the chatty service was blocked: {written}"
    # The stub is ended; the keeper starts it again, so give it the real one back through its own file.
    stub.write_text(
        f"#!/bin/sh\nexec {program} -I -m midstream agent-process --state {machine.state} --runtime"
        f" {machine.state}/run --socket {machine.socket}\n"
    )
    for pid in machine.left_over():
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"no-agent" in command or command.startswith(b"sleep\x003600"):
            os.kill(pid, signal.SIGKILL)
    wait_for("the agent to be back", machine.answers)
    wait_for("everything ready", machine.settled)
    assert machine.keeper_pid == keeper
    assert machine.pids("chatty") == chat, "restarted without cause"
    assert machine.pids("web") != web and len(machine.pids("web")) == 1
    assert machine.app()["drift"] == []
    assert "by the keeper's standing order" in project.cli("why", "web").out
    numbers = [int(line.rsplit(" ", 1)[1]) for line in log.read_text().splitlines() if " line " in line]
    dropped = [line for line in log.read_text().splitlines() if "midstream:" in line]
    missing = set(range(numbers[0], numbers[-1])) - set(numbers)
    assert not missing or dropped, f"{len(missing)} lines were lost and nobody said so"


def _answers(project: Project, release: str) -> bool:
    try:
        return project.get("/", 2.0) == (200, release)
    except OSError:
        return False


def test_keeper_and_agent_killed_together(project: Project, machine: Machine) -> None:
    """Both at once: the services run on, the listener stays open, and the next agent finds everything."""
    good = project.deployed()
    pids = machine.pids()
    keeper, agent = machine.keeper_pid, machine.agent_pid
    with under_load(project.address, "--pause", "0.03", "--keep-alive", "2", "--closing", "2") as load:
        os.kill(agent, signal.SIGSTOP)  # else it may start the next keeper before it is killed itself
        os.kill(keeper, signal.SIGKILL)
        os.kill(agent, signal.SIGKILL)
        wait_for("both to be gone", lambda: not machine.answers())
        assert machine.process is not None
        machine.process.wait()
        assert project.get("/") == (200, good)
        machine.start()
        wait_for("everything ready", machine.settled)
        tally = load()
    assert tally["failed"] == 0, tally["failures"]
    assert machine.pids() == pids
    project.commit("next")
    second = project.deployed()
    assert project.get("/") == (200, second)


def test_corrupt_state_is_set_aside_and_rebuilt(project: Project, machine: Machine) -> None:
    good = project.deployed()
    pids = machine.pids()
    database = machine.state / "agent.db"
    stopped = machine.agent_pid
    os.kill(stopped, signal.SIGSTOP)  # so that it writes nothing more
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.write_bytes(b"this is no database" * 100)
    os.kill(stopped, signal.SIGKILL)
    wait_for("the next agent", machine.answers)
    wait_for("everything ready", machine.settled)
    assert machine.pids() == pids and machine.app()["release"] == good
    assert list(machine.state.glob("agent.db.corrupt-*"))
    assert "corrupt" in machine.out()
    project.commit("next")
    assert project.get("/") == (200, good)
    second = project.deployed()
    assert second != good


def test_state_of_a_newer_version_is_refused_and_services_run_on(project: Project, machine: Machine) -> None:
    import sqlite3

    good = project.deployed()
    agent = machine.agent_pid
    with sqlite3.connect(machine.state / "agent.db") as database:
        database.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
    database.close()
    os.kill(agent, signal.SIGKILL)
    wait_for("the refusal", lambda: "version 99" in machine.out())
    assert project.get("/") == (200, good)
    assert not machine.answers()
    with sqlite3.connect(machine.state / "agent.db") as database:
        database.execute("UPDATE meta SET value = '1' WHERE name = 'schema'")
    database.close()
    wait_for("the agent to come back by itself", machine.answers)
    wait_for("everything ready", machine.settled)


def test_release_folder_removed_by_hand_and_current_moved_by_hand(project: Project, machine: Machine) -> None:
    import shutil

    first = project.deployed()
    project.commit("second")
    second = project.deployed()
    wait_for("one generation", machine.settled)
    releases = project.deploy_to / "releases"
    (project.deploy_to / "current").unlink()
    (project.deploy_to / "current").symlink_to(releases / first)
    checked = project.cli("status", "--check")
    assert checked.code == 3, checked.text
    assert "current" in checked.text and first in checked.text
    os.kill(machine.pids()[0], signal.SIGKILL)
    wait_for("it is back", lambda: machine.settled() and _answers(project, second))  # not what `current` says
    (project.deploy_to / "current").unlink()
    (project.deploy_to / "current").symlink_to(releases / second)
    assert project.cli("status", "--check").code == 0
    shutil.rmtree(releases / second)
    checked = project.cli("status", "--check")
    assert checked.code == 3 and second in checked.text, checked.text
    assert project.get("/") == (200, second)
    project.commit("third")
    with socket.create_connection(("127.0.0.1", project.port), 30) as slow:
        slow.sendall(b"GET /slow?ms=6000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        third = project.deployed()  # the old process only finishes what it has: what was its is not missing
        assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert project.get("/") == (200, third)
    assert project.cli("status", "--check").code == 0


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of a few megabytes, for a machine that runs out of space."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="msd-"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        folder.rmdir()
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
        folder.rmdir()


@pytest.mark.parametrize("full", ["deploy_to", "state"])
def test_disk_full(small_disk: Path, full: str) -> None:
    """The old release answers all the while; crashes are repaired; the message names the place; space makes it work."""
    import shutil

    with new_machine() as machine:
        project = new_project(machine)
        target = machine.root / "srv" if full == "deploy_to" else machine.state
        if full == "state":
            machine.stop()
            shutil.rmtree(machine.state)
        target.symlink_to(small_disk) if full == "state" else target.mkdir(exist_ok=True)
        if full == "state":
            machine.start()
        else:
            subprocess.run(["mount", "--bind", str(small_disk), str(target)], check=True)
        try:
            project.write(config=project.config(top='min_free = "0"'))
            project.commit("no minimum")
            good = project.deployed()
            _fill(small_disk)
            project.commit("next")
            with under_load(project.address, "--pause", "0.03", "--keep-alive", "2", "--closing", "2") as load:
                result = project.deploy()
                tally = load()
            assert tally["failed"] == 0, tally["failures"]
            assert result.code in (1, 5), result.text
            assert "space" in result.text.lower() or "full" in result.text.lower(), result.text
            old = machine.pids()
            os.kill(old[0], signal.SIGKILL)
            wait_for("a restart on a full disk", lambda: _answers(project, good) and machine.pids() != old)
            (small_disk / "ballast").unlink()
            wait_for("no deploy", lambda: machine.app()["deploy"] is None)
            second = project.deployed()
            assert project.get("/") == (200, second)
        finally:
            if full == "deploy_to":
                machine.close()
                subprocess.run(["umount", "-l", str(target)], check=False)


@pytest.mark.parametrize("phase", ["build", "migrate", "handover"])
def test_disk_of_the_agent_fills_in_the_middle_of_a_deploy(small_disk: Path, phase: str) -> None:
    """The agent's own state cannot be written any more: what was begun is put back, and space makes it work again."""
    with new_machine() as machine:
        project = new_project(machine)
        machine.stop()
        import shutil

        shutil.rmtree(machine.state)
        machine.state.symlink_to(small_disk)
        machine.start()
        before = project.config()
        project.write(config=before)
        project.commit("good")
        good = project.deployed()
        pids = machine.pids()
        fill = f"dd if=/dev/zero of={small_disk}/ballast bs=4096 || true"
        if phase == "build":
            changed = before + f'[[build]]\nrun = "{fill}"\nshell = true\n'
        elif phase == "migrate":
            changed = before + f'[migrate]\nrun = "{fill}"\nshell = true\n'
        else:
            slow = f"sh -c '{fill}; exec {sys.executable} server.py'"
            changed = before.replace(f'"{sys.executable} server.py"', f'"{slow}"')
            assert changed != before
        project.commit("fills the disk", config=changed)
        with under_load(project.address, "--pause", "0.03", "--keep-alive", "2", "--closing", "2") as load:
            result = project.deploy()
            tally = load()
        assert tally["failed"] == 0, tally["failures"]
        assert result.code in (1, 5), result.text
        assert "full" in result.text or "space" in result.text, result.text
        assert good in result.text
        assert machine.pids() == pids and machine.app()["release"] == good
        wait_for("nothing to be locked", lambda: machine.app()["deploy"] is None)
        (small_disk / "ballast").unlink()
        project.commit("mended", config=before)
        assert project.deployed() != good


def _fill(folder: Path) -> None:
    ballast = os.open(folder / "ballast", os.O_WRONLY | os.O_CREAT)
    try:
        for size in (1 << 20, 1 << 12, 1 << 8, 1):
            try:
                while os.write(ballast, b"x" * size):
                    pass
            except OSError:
                continue
    finally:
        os.close(ballast)
