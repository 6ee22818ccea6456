"""`deploy.py` on a real host: questions at a real terminal, secrets kept, what tasks did undone by the agent."""

from __future__ import annotations

import json
import os
import pty
import shutil
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


ALL = """
import json, urllib.request
from midstream.deploy.tasks import Registry, roles

registry = Registry()
seen = {"times": 0}
files = registry.namespace("shop").namespace("files")


def who(run):
    seen["times"] += 1
    return f"{run.app} {run.stage} {run.branch}"


registry.set("who", who)


@files.task("look", roles="db", once=True)
def look(run, host):
    seen["once"] = seen.get("once", 0) + 1
    seen["settings"] = [run.fetch("who"), run.fetch("who")]
    seen["primary"] = [run.primary("db").name, run.primary("web").name]
    seen["test"] = [host.test("false"), host.test("test", "-d", host.current_path)]
    seen["env"] = host.with_env(A="b  c", N=1).capture('echo "$A" $N', shell=True)
    seen["within"] = host.within("..").capture("pwd")
    host.within(host.shared_path).upload(b"noted\\n", "note", mode=0o600)
    host.within(host.shared_path).run("cp note copy")
    seen["download"] = host.download("shared/copy", TARGET).decode()
    if SUDO:
        seen["sudo"] = [run.on(roles("db")).capture("id -u", sudo=True), host.as_user("nobody").capture("id -un")]
        seen["their_env"] = host.as_user("nobody").with_env(A="b  c").capture('echo "$A"; id -un', shell=True)
    seen["own"] = host.capture("id -u")


@files.task("swap")
def swap(run):
    [host] = run.on()
    seen["new"] = host.release_path
    seen["answers"] = urllib.request.urlopen(URL).read().decode().strip()
    seen["link"] = host.capture("readlink", host.current_path)


@files.task("write")
def write(run):
    run.invoke("shop:files:look")
    with open(SEEN, "w") as file:
        json.dump(seen, file)


registry.after("check", look)
registry.before("handover", swap)
registry.after("finishing", write)
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


def test_a_task_does_on_a_real_host_what_the_page_says(project: Project, machine: Machine) -> None:
    """Before the handover the old release still answers, though the new one is there. `sudo` where it may be used."""
    sudo = shutil.which("sudo") is not None and subprocess.run(["sudo", "-n", "-u", "nobody", "true"]).returncode == 0
    tail = '[stages.production]\nhosts = [{ address = "localhost", roles = ["web", "db"] }]'
    project.commit("roles", config=project.config(tail=tail))
    first = project.deployed()
    target, told = machine.root / "target", machine.root / "told"
    names = f"SUDO, TARGET, SEEN, URL = {sudo}, {str(target)!r}, {str(told)!r}, 'http://127.0.0.1:{project.port}/'"
    with_tasks(project, names + ALL)
    project.commit("second")
    second = project.deployed()
    releases = project.deploy_to / "releases"
    expected = {
        "times": 1,
        "once": 1,
        "settings": ["shop production main"] * 2,
        "primary": ["localhost", "localhost"],
        "test": [False, True],
        "env": "b  c 1",
        "within": str(releases),
        "download": "noted\n",
        "own": str(os.geteuid()),
        "new": str(releases / second),
        "answers": first,
        "link": str(releases / first),
    }
    if sudo:
        expected |= {"sudo": [["0"], "nobody"], "their_env": "b  c\nnobody"}
    assert json.loads(told.read_text()) == expected
    assert target.read_bytes() == b"noted\n"
    assert (project.deploy_to / "shared" / "note").stat().st_mode & 0o777 == 0o600


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
    alone = project.cli("run", "note", "ticket=T-1", "password=correct-horse")
    assert alone.code == 0 and "correct-horse" not in alone.text, alone.text
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
