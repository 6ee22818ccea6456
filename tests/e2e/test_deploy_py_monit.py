"""The tasks of docs/deploy-py.md, as they stand there, against a real Monit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine, Project, wait_for

PAGE = Path(__file__).parents[2] / "docs" / "deploy-py.md"
MONIT = shutil.which("monit") or "/usr/bin/monit"
pytestmark = pytest.mark.skipif(not os.path.exists(MONIT), reason="needs monit")


def script_of_the_page() -> str:
    return next(
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "sidekiq:monit" in block
    )


class Monit:
    """A Monit of our own: control file, pid file, state, socket; it watches one process called `sidekiq`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        control = folder / "monitrc"
        pid = folder / "sidekiq.pid"
        control.write_text(
            f"set daemon 1\nset logfile {folder}/log\nset pidfile {folder}/pid\nset idfile {folder}/id\n"
            f"set statefile {folder}/state\nset httpd unixsocket {folder}/sock\n  allow u:p\n"
            f"check process sidekiq with pidfile {pid}\n"
            f"  start program = \"/bin/sh -c 'sleep 1000 & echo $! > {pid}'\"\n"
            f"  stop program = \"/bin/sh -c 'kill $(cat {pid})'\"\n"
        )
        control.chmod(0o600)
        self.control = control
        wrapper = self.bin / "monit"
        wrapper.write_text(f'#!/bin/sh\nexec {MONIT} -c {control} "$@"\n')
        wrapper.chmod(0o755)

    def run(self, *args: str) -> str:
        done = subprocess.run([self.bin / "monit", *args], capture_output=True, text=True, timeout=30)
        return done.stdout + done.stderr

    def is_watched(self) -> bool:
        """Monit's own word; the pid it names runs."""
        return bool(re.search(r"monitoring status\s+Monitored", self.run("status", "sidekiq")))


@pytest.fixture
def monit(machine: Machine) -> Iterator[Monit]:
    found = Monit(machine.root / "monit")
    found.run()
    try:
        wait_for("Monit to watch", found.is_watched)
        yield found
    finally:
        pid = int((found.folder / "sidekiq.pid").read_text())
        found.run("quit")
        wait_for("Monit to end", lambda: "not running" in found.run("status") or not (found.folder / "pid").exists())
        subprocess.run(["kill", str(pid)], check=False)


def prepare(project: Project, monit: Monit, tail: str) -> None:
    seen = monit.folder / "seen"
    look = f"until monit status sidekiq | grep -q Not.monitored; do sleep 0.1; done; echo left alone >> {seen}"
    hook = f'[[hooks]]\nbefore = "publishing"\nshell = true\ntimeout = "30s"\nrun = \'{look}\'\n{tail}'
    env = f'[env]\npath = ["{monit.bin}"]\n'
    service = project.web().replace("[services.web]", '[services.web]\nroles = ["batch"]')
    project.commit("tasks", config=project.config(service, tail=env + hook), deploy__py="")
    (project.folder / "deploy__py").unlink(missing_ok=True)
    (project.folder / "deploy.py").write_text(script_of_the_page())


def test_monit_leaves_sidekiq_alone_from_check_to_finishing(project: Project, monit: Monit) -> None:
    prepare(project, monit, "")
    planned = project.cli("plan").out
    assert planned.index("sidekiq:monit:unmonitor") < planned.index("git:update")
    assert planned.index("deploy:cleanup") < planned.index("sidekiq:monit:monitor")
    result = project.deploy()
    assert result.code == 0, result.text
    assert (monit.folder / "seen").read_text() == "left alone\n"
    wait_for("Monit to watch again", monit.is_watched)


def test_a_deploy_that_fails_in_between_leaves_it_watched(project: Project, monit: Monit) -> None:
    prepare(project, monit, '[[hooks]]\nbefore = "publishing"\nrun = "false"\n')
    assert project.deploy().code == 1
    assert (monit.folder / "seen").read_text() == "left alone\n"
    wait_for("Monit to watch again", monit.is_watched)


def test_the_tasks_run_by_themselves_and_are_listed(project: Project, monit: Monit) -> None:
    prepare(project, monit, "")
    project.deployed()
    listed = project.cli("run", "--list").out
    assert "Have Monit leave Sidekiq alone (after check)" in listed
    result = project.cli("run", "sidekiq:monit:unmonitor")
    assert result.code == 0, result.text
    wait_for("Monit to leave it alone", lambda: "Not monitored" in monit.run("status", "sidekiq"))
    assert project.cli("run", "sidekiq:monit:monitor").code == 0
    wait_for("Monit to watch again", monit.is_watched)
    wrong = project.cli("run", "sidekiq:monit:unmonitr")
    assert wrong.code == 2 and "sidekiq:monit:unmonitor" in wrong.err
