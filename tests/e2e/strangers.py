"""A machine whose agent is root, and other users of it: what they may ask the socket, and what they get done.

Nobody is created: `nobody`, `games` and `daemon` are on every Debian. `Person.connect` takes the user's identity only for
connect(2), which is when SO_PEERCRED is fixed; everything that a user runs is a process of his.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from machine import Machine, Project, Result, free_port, short_folder, wait_for

import midstream
from midstream.deploy.sync_client import SyncClient, connect
from midstream.testing import drain_server

NOBODY = 65534


def _python_for_all() -> str:
    """A Python that other users may run too (root's own is often below /root); "" when there is none."""
    enough = "import sys; sys.exit(sys.version_info < (3, 11))"
    for candidate in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        if candidate is not None:
            with contextlib.suppress(OSError):
                if subprocess.run([candidate, "-c", enough], user=NOBODY, group=NOBODY, cwd="/").returncode == 0:
                    return candidate
    return ""


PYTHON = _python_for_all() if os.geteuid() == 0 else ""
MIDSTREAM = [PYTHON, "-m", "midstream"]
PACKAGES = [str(Path(found.__file__).parent.parent) for found in (midstream, click)]
needs_root = pytest.mark.skipif(not PYTHON, reason="needs root, and a Python 3.11 that other users may run")


@dataclass
class GuardedMachine(Machine):
    """Everybody may reach its socket and its runtime folder, as on a real host; its grants are its own."""

    @property
    def runtime(self) -> Path:
        return self.root / "r"

    @property
    def grants(self) -> Path:
        return self.root / "apps.d"

    @property
    def env(self) -> dict[str, str]:
        return super().env | {"PYTHONPATH": ":".join(PACKAGES)}

    def start(self) -> None:
        self.root.chmod(0o755)
        self.grants.mkdir(mode=0o755, exist_ok=True)
        with (self.root / "agent.out").open("ab") as out:
            self.process = subprocess.Popen(
                [
                    *(*MIDSTREAM, "agent", "run", "--state", str(self.state), "--socket", str(self.socket)),
                    *("--runtime", str(self.runtime), "--grants", str(self.grants)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.env,
                cwd=self.root,
                start_new_session=True,
            )
        wait_for("the agent to answer", self.answers)

    def grant(self, app: str, text: str) -> Path:
        path = self.grants / f"{app}.toml"
        path.write_text(text)
        return path


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """This process with the effective identity of somebody else."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@dataclass
class Person:
    """A user of the host."""

    name: str
    machine: GuardedMachine

    @property
    def uid(self) -> int:
        return pwd.getpwnam(self.name).pw_uid

    @property
    def gid(self) -> int:
        return pwd.getpwnam(self.name).pw_gid

    @property
    def home(self) -> Path:
        """A folder that is his."""
        folder = self.machine.root / f"home-{self.name}"
        if not folder.exists():
            folder.mkdir()
            os.chown(folder, self.uid, self.gid)
        return folder

    def connect(self) -> SyncClient:
        with acting_as(self.uid, self.gid):
            return connect(str(self.machine.socket))

    def raw(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(30.0)
        with acting_as(self.uid, self.gid):
            sock.connect(str(self.machine.socket))
        return sock

    def call(self, method: str, /, **params: Any) -> Any:
        with contextlib.closing(self.connect()) as client:
            return client.call(method, **params)

    def own(self, *paths: Path) -> None:
        for path in paths:
            subprocess.run(["chown", "-R", "-h", f"{self.uid}:{self.gid}", str(path)], check=True)

    def run(self, *argv: str, cwd: Path | None = None, timeout_s: float = 180.0) -> Result:
        home = self.home
        done = subprocess.run(
            argv,
            cwd=cwd or home,
            env=self.machine.env
            | {"HOME": str(home), "XDG_STATE_HOME": f"{home}/.state", "XDG_RUNTIME_DIR": f"{home}/.run"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            user=self.uid,
            group=self.gid,
            extra_groups=[],
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def cli(self, *args: str, cwd: Path | None = None) -> Result:
        return self.run(*MIDSTREAM, *args, cwd=cwd)


@dataclass
class OwnedProject(Project):
    """A project in the home of its owner, who deploys it himself into a folder of his."""

    owner: Person | None = None

    @property
    def person(self) -> Person:
        assert self.owner is not None
        return self.owner

    @property
    def deploy_to(self) -> Path:
        return self.person.home / "srv" / self.app

    def commit(self, message: str = "change", **files: str) -> str:
        sha = super().commit(message, **files)
        self.person.own(self.folder)
        return sha

    def deploy(self, *args: str, **env: str) -> Result:
        return self.person.cli("deploy", *args, cwd=self.folder)

    def cli(self, *args: str, **env: str) -> Result:
        return self.person.cli(*args, cwd=self.folder)

    def web(self, more: str = "", **options: Any) -> str:
        return super().web(more, **options).replace(sys.executable, PYTHON)

    # attacks by a client of his own

    @property
    def stored_spec(self) -> Path:
        release = self.machine.app(self.app)["release"]
        return self.deploy_to / ".midstream" / "specs" / f"{release}.json"

    def spec(self) -> dict[str, Any]:
        return dict(json.loads(self.stored_spec.read_text()))

    def open(self, client: SyncClient, spec: dict[str, Any], deploy_id: str = "attack", kind: str = "deploy") -> Any:
        return client.call("deploy.open", deploy_id=deploy_id, spec=spec, kind=kind)

    def publish_changed(self, change: Callable[[dict[str, Any]], None], deploy_id: str = "attack") -> Any:
        """Opens a deploy with the good configuration, updates with the changed one, and publishes it."""
        spec = self.spec()
        with contextlib.closing(self.person.connect()) as client:
            opened = self.open(client, spec, deploy_id)
            common = {"deploy_id": deploy_id, "token": opened["token"]}
            try:
                change(spec)
                client.call("deploy.update", **common, **self.update_request(), spec=spec)
                client.call("deploy.publish", **common)
                client.call("deploy.commit", **common)
            except BaseException:
                with contextlib.suppress(Exception):
                    client.call("deploy.revert", **common, reason="refused")
                raise
            finally:
                with contextlib.suppress(Exception):
                    client.call("deploy.finish", **common)

    def update_request(self) -> dict[str, Any]:
        return {
            "revision": self.git_of_owner("rev-parse", "HEAD"),
            "tree": self.git_of_owner("rev-parse", "HEAD^{tree}"),
            "revision_time": 1.0,
            "branch": "main",
            "release": "20990101000000",
        }

    def git_of_owner(self, *args: str) -> str:
        return self.person.run("git", *args, cwd=self.folder).out.strip()

    def git(self, *args: str) -> str:
        return super().git("-c", "safe.directory=*", *args)


def new_owned_project(person: Person, app: str = "shop") -> OwnedProject:
    folder = person.home / f"project-{app}"
    folder.mkdir()
    project = OwnedProject(folder, person.machine, free_port(), app, person)
    (person.home / "srv").mkdir(exist_ok=True)
    project.deploy_to.mkdir()
    shutil.copy(drain_server.__file__, folder / "server.py")
    project.git("init", "-q", "-b", "main", ".")
    project.write(config=project.config())
    person.own(person.home)
    project.commit("first")
    return project


@contextlib.contextmanager
def guarded_machine() -> Iterator[GuardedMachine]:
    machine = GuardedMachine(short_folder("ms-"))
    try:
        machine.start()
        yield machine
    finally:
        machine.close()
        assert not machine.left_over(), "processes were left behind"
