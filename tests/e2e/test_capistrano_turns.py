"""The whole of Midstream (agent, command line) and the real Capistrano in turns on one deploy_to, with a running service.

`test_capistrano_layout.py` has the traps of the layout for the steps alone; here is what an operator sees: which release
serves, what `status`, `rollback` and the cleanup of either make of what the other left.
"""

from __future__ import annotations

import getpass
import os
import time
from pathlib import Path

import pytest
from crash_points import ALL
from machine import Machine, Project, wait_for
from test_capistrano_layout import KEEP, Capistrano, Ssh, ssh

__all__ = ["ssh"]  # a fixture
pytestmark = [pytest.mark.server("cap"), pytest.mark.slow]

DEPLOYED = "Branch main (at {sha}) deployed as release {release} by {user}\n"
ROLLED_BACK = "{user} rolled back to release {release}\n"

# Traps that test_capistrano_layout.py has, for the steps alone; each takes many deploys.
ONCE_MORE = pytest.mark.skipif(
    not ALL, reason="shown for the steps in test_capistrano_layout.py; MIDSTREAM_CRASH_ALL=1"
)


class _Origin:
    """What `Capistrano` wants to know of a repository."""

    def __init__(self, path: Path) -> None:
        self.path = path


class Turns:
    """One project, one deploy_to, two tools."""

    def __init__(self, project: Project, ssh: Ssh) -> None:
        self.project = project
        self.root = project.deploy_to
        self.cap = Capistrano(project.machine.root / "cap", ssh, _Origin(project.folder), project.deploy_to)  # type: ignore[arg-type]
        project.write(config=project.config(top=f'linked_dirs = ["log"]\nkeep_releases = {KEEP}'))
        self.sha: dict[str, str] = {}

    def midstream(self) -> str:
        sha = self.project.commit("by Midstream")
        _next_second()
        release = self.project.deployed()
        self.sha[release] = sha
        return release

    def capistrano(self) -> str:
        sha = self.project.commit("by Capistrano")
        _next_second()
        release = self.cap.deploy()
        self.sha[release] = sha
        return release

    def releases(self) -> list[str]:
        return sorted(os.listdir(self.root / "releases"))

    def runs(self) -> str:
        """The release that the service runs, as the kernel has it; also when its folder is gone."""
        (pid,) = self.project.machine.pids()
        return os.path.basename(os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)"))

    def log(self) -> str:
        return (self.root / "revisions.log").read_text()


def _next_second() -> None:
    """Both name releases by the second."""
    now = int(time.time())
    wait_for("the next second", lambda: int(time.time()) > now)


@pytest.fixture
def turns(project: Project, ssh: Ssh) -> Turns:
    return Turns(project, ssh)


def test_each_deploys_and_rolls_back_after_the_other(turns: Turns) -> None:
    """And revisions.log is one log, to the letter."""
    project, me = turns.project, getpass.getuser()
    first = turns.capistrano()
    second = turns.midstream()
    assert (project.current, turns.runs()) == (second, second)
    third = turns.capistrano()
    assert (project.current, turns.runs()) == (third, second), "Capistrano moves the link, and our process is pinned"
    checked = project.cli("status", "--check")
    assert checked.code == 3 and third in checked.text, checked.text
    fourth = turns.midstream()
    assert (project.current, turns.runs()) == (fourth, fourth)
    assert project.cli("status", "--check").code == 0

    back = project.cli("rollback")
    assert back.code == 0, back.text
    assert (project.current, turns.runs()) == (third, third), (
        "a release of Capistrano's was deployed once, so it is proven"
    )
    turns.cap.run("deploy:rollback")
    assert project.current == second and turns.runs() == third
    assert third not in turns.releases() and project.get("/")[0] == 200, "its rollback deletes what it leaves"
    fifth = turns.midstream()
    assert (project.current, turns.runs()) == (fifth, fifth)
    lines = [DEPLOYED.format(sha=turns.sha[one], release=one, user=user) for one, user in
             ((first, "cappy"), (second, me), (third, "cappy"), (fourth, me))]  # fmt: skip
    lines += [ROLLED_BACK.format(user=me, release=third), ROLLED_BACK.format(user="cappy", release=second)]
    lines += [DEPLOYED.format(sha=turns.sha[fifth], release=fifth, user=me)]
    assert turns.log() == "".join(lines)


def test_our_cleanup_keeps_what_runs_and_what_current_names(turns: Turns) -> None:
    """Capistrano has moved `current` on; the process still runs the release before."""
    ours = turns.midstream()
    theirs = [turns.capistrano() for _ in range(2)]
    held = turns.project.machine.pids()
    assert turns.runs() == ours
    done = turns.project.cli("restart", "web")
    assert done.code == 0, done.text
    wait_for("the old process to have ended", lambda: turns.project.machine.replaced(held))
    assert turns.runs() == ours, "a restart is of the committed release"
    last = [turns.midstream() for _ in range(2)]
    assert set(last) <= set(turns.releases()) and len(turns.releases()) <= KEEP + 1
    assert turns.project.get("/")[0] == 200 and theirs


def test_its_cleanup_takes_the_release_from_under_a_process_and_a_deploy_heals_it(turns: Turns) -> None:
    """Capistrano knows nothing of processes: its cleanup deletes what ours runs. What was accepted is
    still answered, `status` tells, and the next deploy puts it right."""
    ours = turns.midstream()
    turns.cap.keep(1)
    turns.capistrano()
    assert ours not in turns.releases(), "the trap is no more"
    assert turns.project.get("/")[0] == 200
    checked = turns.project.cli("status", "--check")
    assert checked.code == 3, checked.text
    healed = turns.midstream()
    assert (turns.project.current, turns.runs()) == (healed, healed)
    assert turns.project.cli("status", "--check").code == 0


def test_its_rollback_of_our_deploy_deletes_the_release_that_runs_and_ours_takes_over(turns: Turns) -> None:
    """`cap deploy:rollback` archives and deletes the newest release, which is the one that our process runs."""
    first = turns.midstream()
    second = turns.midstream()
    turns.cap.run("deploy:rollback")
    assert turns.project.current == first and second not in turns.releases()
    assert turns.project.get("/")[0] == 200, "the process goes on"
    back = turns.project.cli("rollback")
    assert back.code == 0, back.text
    assert (turns.project.current, turns.runs()) == (first, first)
    third = turns.midstream()
    assert (turns.project.current, turns.runs()) == (third, third)


def test_an_interrupted_capistrano_is_swept_before_our_deploy(turns: Turns) -> None:
    first = turns.midstream()
    stale = turns.root / "releases/current"
    stale.symlink_to(turns.root / "releases" / first)
    second = turns.midstream()
    assert not stale.is_symlink() and turns.project.current == second
    third = turns.capistrano()
    assert turns.project.current == third
    assert not [
        path for path in (turns.root / "releases" / second).iterdir() if path.is_symlink() and path.name.isdigit()
    ]


def test_a_relative_current_is_made_absolute_by_our_deploy_and_survives_its_cleanup(turns: Turns) -> None:
    names = [turns.midstream() for _ in range(2)]
    (turns.root / "current").unlink()
    (turns.root / "current").symlink_to(f"releases/{names[-1]}/")
    last = turns.midstream()
    assert os.readlink(turns.root / "current") == str(turns.root / "releases" / last)
    turns.cap.run("deploy:cleanup")
    assert turns.project.current == last and last in turns.releases() and turns.runs() == last


@ONCE_MORE
def test_a_failed_deploy_of_ours_is_not_what_its_rollback_goes_to(turns: Turns) -> None:
    first = turns.midstream()
    second = turns.midstream()
    turns.project.misbehave("unhealthy")
    _next_second()
    failed = turns.project.deploy()
    assert failed.code == 1, failed.text
    assert (turns.project.current, turns.runs()) == (second, second)
    turns.cap.run("deploy:rollback")
    assert turns.project.current == first


@ONCE_MORE
def test_a_folder_of_another_name_is_left_by_both(turns: Turns) -> None:
    turns.midstream()
    (turns.root / "releases/before-the-move").mkdir()
    for _ in range(2):
        turns.midstream()
        turns.capistrano()
    assert "before-the-move" in turns.releases()
    back = turns.project.cli("rollback")
    assert back.code == 0, back.text
    assert turns.project.current != "before-the-move"


def test_what_init_wrote_deploys_to_the_same_folder(machine: Machine, ssh: Ssh) -> None:
    """From Capistrano's own files to a deploy, and back."""
    from machine import new_project

    project = new_project(machine)
    turns = Turns(project, ssh)
    (project.folder / "midstream.toml").unlink()
    first = turns.capistrano()
    server = f'server "127.0.0.1", port: {ssh.port}'
    production = turns.cap.folder / "config/deploy/production.rb"
    stage = production.read_text()
    assert server in stage
    production.write_text(stage.replace(server, 'server "localhost"'))
    done = machine.cli("init", "--from-capistrano", str(turns.cap.folder))
    assert done.code == 0, done.text
    production.write_text(stage)
    text = (turns.cap.folder / "midstream.toml").read_text().replace(f'"{ssh.user}@localhost"', '"localhost"')
    (project.folder / "midstream.toml").write_text(text)
    checked = project.cli("check")
    assert checked.code == 0, checked.text
    second = turns.midstream()
    assert project.current == second and first in turns.releases()
    third = turns.capistrano()
    assert project.current == third and turns.log().count("deployed as release") == 3
