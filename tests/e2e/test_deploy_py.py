"""`deploy.py` on a real host: questions at a real terminal, secrets kept, what tasks did undone by the agent."""

from __future__ import annotations

import os
import pty
import signal
import subprocess

from machine import MIDSTREAM, Machine, Project, wait_for

ASKING = """
from midstream.deploy.tasks import Registry

registry = Registry()
registry.ask("ticket", "Which ticket?")
registry.ask("password", "Password?", echo=False)


@registry.task("note", description="Write down what was deployed")
def note(run):
    for host in run.on():
        host.upload(f"{run.fetch('ticket')}\\n".encode(), "shared/ticket")
        host.run("echo", run.fetch("password"))


registry.after("check", note)
"""


def with_tasks(project: Project, text: str) -> None:
    (project.folder / "deploy.py").write_text(text)


def at_a_terminal(project: Project, *args: str, answers: dict[str, str]) -> tuple[int, str]:
    """Runs a command on a pseudo-terminal; `answers`: what is typed once that was printed."""
    main, far = pty.openpty()
    child = subprocess.Popen(
        [*MIDSTREAM, *args], cwd=project.folder, env=project.machine.env, stdin=far, stdout=far, stderr=far,
        start_new_session=True,
    )  # fmt: skip
    os.close(far)
    seen, left = "", dict(answers)
    while True:
        try:
            data = os.read(main, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not data:
            break
        seen += data.decode(errors="replace")
        for question in [question for question in left if question in seen]:
            os.write(main, f"{left.pop(question)}\n".encode())
    os.close(main)
    return child.wait(60), seen


def test_questions_are_asked_at_the_terminal_within_the_deploy_and_secrets_stay_secret(
    project: Project, machine: Machine
) -> None:
    with_tasks(project, ASKING)
    code, seen = at_a_terminal(
        project, "deploy", "--verbose", answers={"Which ticket?": "T-17", "Password?": "correct-horse"}
    )
    assert code == 0, seen
    assert (project.deploy_to / "shared" / "ticket").read_text() == "T-17\n"
    assert "correct-horse" not in seen
    logs = list((machine.root / "home" / "state").rglob("*.log"))
    assert logs and all("correct-horse" not in log.read_text() for log in logs)


def test_without_a_terminal_a_question_fails_the_deploy_and_says_how_to_answer_it(project: Project) -> None:
    first = project.deployed()
    with_tasks(project, ASKING)
    project.commit("second")
    result = project.deploy()
    assert result.code == 2 and "no terminal" in result.err and "deploy.py:1" in result.err
    assert "--set ticket=" in result.err
    assert project.get("/") == (200, first)
    nonsense = project.deploy("--set", "ticket")
    assert nonsense.code == 2 and "'ticket' is not NAME=VALUE" in nonsense.err
    given = project.deploy("--verbose", "--set", "ticket=T-0", "--set", "password=correct-horse")
    assert given.code == 0 and "correct-horse" not in given.text, given.text
    assert (project.deploy_to / "shared" / "ticket").read_text() == "T-0\n"
    assert project.cli("run", "note", "ticket=T-1", "password=correct-horse").code == 0
    assert "correct-horse" not in project.cli("run", "note", "ticket=T-1", "password=correct-horse").text
    assert (project.deploy_to / "shared" / "ticket").read_text() == "T-1\n"
    back = project.cli("rollback", "--set", "ticket=T-2", "--set", "password=correct-horse")
    assert back.code == 0 and project.get("/") == (200, first), back.text
    assert (project.deploy_to / "shared" / "ticket").read_text() == "T-2\n"
    (project.folder / "deploy.py").unlink()
    unread = project.deploy("--set", "ticket=T-3")
    assert unread.code == 2 and "--set is for the tasks of deploy.py" in unread.err


def test_kill_9_of_the_deployer_within_a_task_has_the_agent_undo_its_commands(
    project: Project, machine: Machine
) -> None:
    marks = machine.root / "marks"
    gate = machine.root / "gate"
    os.mkfifo(gate)
    first = project.deployed()
    with_tasks(
        project,
        f"""
from midstream.deploy.tasks import Registry
registry = Registry()
@registry.task("out")
def out(run):
    for host in run.on():
        host.run("echo out >> {marks}", shell=True, undo="echo in >> {marks}")
        host.run("cat {gate}", shell=True)
registry.before("publishing", out)
""",
    )
    project.commit("second")
    deployer = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the task to run", lambda: marks.exists() and marks.read_text() == "out\n")
    os.kill(deployer.pid, signal.SIGKILL)
    deployer.communicate(timeout=30)
    wait_for("the lease to run out", lambda: machine.app()["deploy"] is None)
    assert marks.read_text() == "out\nin\n"
    assert project.get("/") == (200, first)


def test_an_interrupt_ends_a_task_of_midstream_run(project: Project, machine: Machine) -> None:
    project.deployed()
    marks = machine.root / "marks"
    with_tasks(
        project,
        f"""
from midstream.deploy.tasks import Registry
registry = Registry()
@registry.task("slow")
def slow(run, host):
    host.run("echo begun >> {marks}; exec sleep 613", shell=True)
""",
    )
    child = machine.spawn_cli("run", "slow", cwd=project.folder)
    wait_for("the task to run", marks.exists)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=30)
    assert child.returncode == 130, out
    wait_for("its process to end", lambda: not any(b"613" in line for line in commands()))


def commands() -> list[bytes]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                found.append(file.read())
        except OSError:
            continue
    return found
