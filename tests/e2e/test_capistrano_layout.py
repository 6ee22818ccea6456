"""Midstream and the real Capistrano, in turns, on one deploy_to: a team can come and go (DESIGN 5).

Capistrano runs over its own ssh server on a loopback port, with keys and host keys made here. Each test first shows, or
names, the trap that Capistrano would fall into.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "process"))
from machine import free_port
from step_programs import Repository, Steps, git

from midstream.core.releases import deployed_line, deployed_releases, release_id

pytestmark = [pytest.mark.server("cap"), pytest.mark.slow]

SSHD = "/usr/sbin/sshd"
KEEP = 3


@dataclass(frozen=True)
class Ssh:
    port: int
    key: Path
    user: str


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    for program in ("cap", SSHD, "ssh-keygen", "git"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if os.geteuid() != 0 and not os.path.isdir("/run/sshd"):
        pytest.skip("sshd wants /run/sshd, which only root can make")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-m", "PEM", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "authorized_keys").write_text((folder / "key.pub").read_text())
    port = free_port()
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile {folder}/pid\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    # Debian's own folder for it. It stays: another sshd, of tests beside these, refuses every connection without it.
    os.makedirs("/run/sshd", 0o755, exist_ok=True)
    log = open(folder / "log", "wb")
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stdout=log, stderr=log)
    try:
        _wait_until_answering(port, server)
        yield Ssh(port, folder / "key", pwd.getpwuid(os.geteuid()).pw_name)
    finally:
        server.terminate()
        server.wait()
        log.close()


def _wait_until_answering(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert server.poll() is None, "sshd did not start"
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("sshd does not answer")


class Capistrano:
    """A project that deploys the repository to the same deploy_to as the steps."""

    def __init__(self, folder: Path, ssh: Ssh, repository: Repository, deploy_to: Path) -> None:
        self.folder = folder
        self.deploy_to = deploy_to
        (folder / "config/deploy").mkdir(parents=True)
        (folder / "Capfile").write_text(
            'require "capistrano/setup"\nrequire "capistrano/deploy"\nrequire "capistrano/scm/git"\n'
            "install_plugin Capistrano::SCM::Git\n"
        )
        (folder / "config/deploy.rb").write_text(
            f'set :application, "shop"\nset :repo_url, "{repository.path}"\nset :deploy_to, "{deploy_to}"\n'
            f'set :branch, "main"\nset :keep_releases, {KEEP}\nappend :linked_dirs, "log"\n'
            f'set :tmp_dir, "{folder}"\nset :format, :dot\nset :local_user, ENV["LOCAL_USER"]\n'
            f"set :log_level, :error\n"
        )
        (folder / "config/deploy/production.rb").write_text(
            f'server "127.0.0.1", port: {ssh.port}, user: "{ssh.user}", roles: %w[app web],\n'
            f'  ssh_options: {{ keys: ["{ssh.key}"], keys_only: true, config: false, verify_host_key: :never,\n'
            f'    user_known_hosts_file: "/dev/null", auth_methods: ["publickey"] }}\n'
        )

    def keep(self, releases: int) -> None:
        file = self.folder / "config/deploy.rb"
        file.write_text(file.read_text().replace(f"set :keep_releases, {KEEP}", f"set :keep_releases, {releases}"))

    def run(self, *task: str, user: str = "cappy") -> str:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LOCAL_USER": user, "LANG": "C.UTF-8"}
        done = subprocess.run(
            ["cap", "production", *task], cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        return output

    def deploy(self, user: str = "cappy") -> str:
        self.run("deploy", user=user)
        return self.current()

    def current(self) -> str:
        return os.readlink(self.deploy_to / "current").rsplit("/", 1)[1]


@dataclass
class Team:
    repository: Repository
    steps: Steps
    cap: Capistrano
    root: Path
    age_s: int = 600

    def midstream(self, content: str, *, switch: bool = True) -> str:
        """A deploy of a new commit by the steps; each ten seconds after the one before, all in the past."""
        sha = self.repository.commit({"app.txt": content})
        self.age_s -= 10
        release = self.steps.deploy(
            self.repository, release_id(time.time() - self.age_s), switch=switch, linked_dirs=["log"]
        )
        if switch:
            self.steps.run("log_revision", line=deployed_line("main", sha, release, "middy"))
        return release

    def capistrano(self, content: str, user: str = "cappy") -> str:
        self.repository.commit({"app.txt": content})
        return self.cap.deploy(user)

    def served(self) -> str:
        return (self.root / "current/app.txt").read_text()

    def releases(self) -> list[str]:
        return sorted(os.listdir(self.root / "releases"))


@pytest.fixture
def team(tmp_path: Path, ssh: Ssh) -> Team:
    repository = Repository(tmp_path / "origin")
    repository.commit({"app.txt": "0", "log/.keep": ""})
    root = tmp_path / "shop"
    return Team(repository, Steps(root), Capistrano(tmp_path / "cap", ssh, repository, root), root)


def test_each_deploys_after_the_other(team: Team) -> None:
    first = team.midstream("one, Midstream")
    first_sha = team.repository.head()
    second = team.capistrano("two, Capistrano")
    assert team.served() == "two, Capistrano"
    assert git("rev-parse", f"refs/midstream/{first_sha}", cwd=team.root / "repo") == first_sha, "our ref was pruned"
    answer = team.steps.run("prepare", linked_dirs=["log"])
    assert (answer["current"], answer["current_kind"], answer["repaired"]) == (second, "ok", False)
    assert answer["releases"] == [first, second] and answer["strangers"] == []
    assert answer["revisions"][second] == team.repository.head()
    assert team.repository.head() in answer["have"]
    team.age_s = -60
    third = team.midstream("three, Midstream")
    assert team.served() == "three, Midstream"
    team.steps.run("switch", release=second)
    assert team.served() == "two, Capistrano"
    log = (team.root / "revisions.log").read_text()
    assert list(deployed_releases(log)) == [first, second, third]
    assert [line.rsplit(" ", 1)[1] for line in log.splitlines()] == ["middy", "cappy", "middy"]
    assert team.root.joinpath("current/log").resolve() == team.root / "shared/log"


def test_we_take_over_where_capistrano_was_and_it_takes_over_again(team: Team) -> None:
    """Its mirror is used as it is; nothing of ours but .midstream stays beside what it knows."""
    first = team.capistrano("one, Capistrano")
    team.age_s = -60
    second = team.midstream("two, Midstream")
    assert team.served() == "two, Midstream"
    assert {path.name for path in team.root.iterdir()} == {
        ".midstream", "current", "releases", "repo", "revisions.log", "shared",
    }  # fmt: skip
    third = team.capistrano("three, Capistrano")
    assert team.served() == "three, Capistrano" and team.releases() == sorted([first, second, third])


def test_lines_of_an_empty_user_have_the_same_form(team: Team) -> None:
    release = team.capistrano("one", user="")
    line = (team.root / "revisions.log").read_text()
    assert line == deployed_line("main", team.repository.head(), release, "") + "\n"


def test_its_cleanup_leaves_the_current_release_whatever_its_age(team: Team) -> None:
    """A `current` that is relative, ends in a slash or goes another way it does not recognise, and deletes what it
    points to; `prepare` makes it absolute before that can happen."""
    names = [team.midstream(str(n)) for n in range(5)]
    team.steps.run("switch", release=names[0])
    for text in (f"releases/{names[0]}", f"{team.root}/releases/{names[0]}/"):
        (team.root / "current").unlink()
        (team.root / "current").symlink_to(text)
        team.steps.run("prepare")
        team.cap.run("deploy:cleanup")
        assert team.served() == "0"
    assert team.releases() == [names[0], *names[-KEEP:]]


def test_without_our_repair_it_deletes_the_live_release(team: Team) -> None:
    """The trap is real: if a later Capistrano has it no more, the repair may go."""
    names = [team.midstream(str(n)) for n in range(5)]
    (team.root / "current").unlink()
    (team.root / "current").symlink_to(f"releases/{names[0]}")
    team.cap.run("deploy:cleanup")
    assert names[0] not in team.releases()
    assert team.steps.run("prepare")["current_kind"] == "dangling"


def test_its_rollback_goes_to_our_previous_good_release(team: Team) -> None:
    """It takes the second folder by mtime. A failed release was made in between, and a folder of another name was
    touched; what it leaves afterwards is the release it went back to, with the newest one deleted."""
    first = team.midstream("good")
    failed = team.midstream("failed", switch=False)
    (team.root / "releases/backup").mkdir()
    last = team.midstream("bad")
    team.cap.run("deploy:rollback")
    assert team.served() == "good" and team.cap.current() == first
    assert team.releases() == sorted([first, failed, "backup"])
    assert (team.root / "revisions.log").read_text().splitlines()[-1] == f"cappy rolled back to release {first}"
    answer = team.steps.run("prepare")
    assert (answer["current"], answer["current_kind"], answer["strangers"]) == (first, "ok", ["backup"])
    assert last not in answer["releases"]
    team.steps.run("cleanup", keep=1, committed=first, current=first, bad=[failed])
    assert not (team.root / f".midstream/claims/{last}.json").exists()


def test_after_our_rollback_its_rollback_goes_further_back(team: Team) -> None:
    """Not forward again to the release that was just left, which by mtime is the newest but one."""
    first, second, third = (team.midstream(name) for name in ("first", "second", "third"))
    team.steps.run("switch", release=second, expected_previous=third, rollback_target=first)
    team.cap.run("deploy:rollback")
    assert team.cap.current() == first


def test_a_stale_link_of_its_interrupted_publish_is_swept(team: Team) -> None:
    """Between its `ln -s` and its `mv` it was killed. Its next `ln -s` puts the new link *inside* the old release, `mv`
    moves the old link, and old code is served with exit 0."""
    first = team.midstream("old")
    stale = team.root / "releases/current"
    stale.symlink_to(team.root / "releases" / first)
    team.capistrano("new")
    assert team.served() == "old", "the trap is no more"
    assert (team.root / "releases" / first / team.releases()[-1]).is_symlink()

    stale.symlink_to(team.root / "releases" / first)
    assert team.steps.run("prepare")["swept"] == [str(stale)]
    time.sleep(1.1)  # Capistrano's release ids are seconds
    team.capistrano("newer")
    assert team.served() == "newer"


def test_its_failed_releases_do_not_use_up_ours(team: Team) -> None:
    good = [team.midstream(str(n)) for n in range(2)]
    failed = [team.midstream(f"failed {n}", switch=False) for n in range(KEEP)]
    answer = team.steps.run("cleanup", keep=2, committed=good[1], previous_good=good[0], current=good[1], bad=failed)
    assert answer["removed"] == failed[:-1]
    team.cap.run("deploy:rollback")
    assert team.served() == "0"
