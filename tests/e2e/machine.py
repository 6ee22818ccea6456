"""A private Midstream for one test: its own folders, sockets, keeper, agent and project, on loopback only.

`Machine` is the host (keeper and agent as real processes), `Project` a git repository with a `midstream.toml` that deploys
the small draining server. Nothing here sleeps as a protocol; `wait_for` looks again until its time is up and then says
what it saw last.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midstream.deploy.sync_client import connect
from midstream.keeper.layout import Layout
from midstream.linux import cgroup
from midstream.testing import drain_server

PATIENCE_S = 60.0
LEASE_S = "3"  # of 15 s: what tests of dead deployers do is to wait for it. `extra_env` may say otherwise
MIDSTREAM = [sys.executable, "-m", "midstream"]

LOOK_AGAIN_S = 0.07  # at most; what tests wait for stays for longer
AGENT_BACK_S = 20.0  # one that was killed several times is started again after a pause of up to 5 s


def wait_for(what: str, look: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """The first true value that `look` gives. Fails with the last one when the time is up.

    Looks less often as it waits longer: each look at an agent costs it some milliseconds, which are others' time.
    """
    deadline_s = time.monotonic() + timeout_s
    pause_s = 0.01
    seen: Any = None
    while time.monotonic() < deadline_s:
        seen = look()
        if seen:
            return seen
        time.sleep(pause_s)
        pause_s = min(1.3 * pause_s, LOOK_AGAIN_S)
    raise AssertionError(f"waited {timeout_s:g} s for: {what}; last seen: {seen!r}")


_RESERVED: list[socket.socket] = []


def free_port() -> int:
    """A port of this process alone, until it ends. Not one of those that the kernel gives to connections: under load one
    would have it before the service under test. The abstract socket of its name keeps other runs of tests away from it."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0midstream-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _RESERVED.append(claim)
        return port
    raise AssertionError("no port is free")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass
class Machine:
    """One host. `start` runs `midstream agent run` as a child of the test; `close` ends whatever is left, by pid."""

    root: Path
    extra_env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    keeper_pids: set[int] = field(default_factory=set)

    @property
    def state(self) -> Path:
        return self.root / "s"

    @property
    def socket(self) -> Path:
        return self.root / "a.sock"

    @property
    def env(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MIDSTREAM")}
        home = self.root / "home"
        home.mkdir(exist_ok=True)
        return kept | {
            "MIDSTREAM_SOCKET": str(self.socket),
            "MIDSTREAM_LEASE_S": LEASE_S,
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_RUNTIME_DIR": str(home / "run"),
            "NO_COLOR": "1",
            "COLUMNS": "200",
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@example.com",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@example.com",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            **self.extra_env,
        }

    def start(self) -> None:
        with (self.root / "agent.out").open("ab") as out:
            self.process = subprocess.Popen(
                [*MIDSTREAM, "agent", "run", "--state", str(self.state), "--socket", str(self.socket)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.env,
                cwd=self.root,
                start_new_session=True,
            )
        try:
            wait_for("the agent to answer", self.answers)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.out()[-3000:]}") from None

    def answers(self) -> bool:
        try:
            self.call("hello")
        except Exception:
            return False
        return True

    def call(self, method: str, **params: Any) -> Any:
        """One call on a connection of its own."""
        with contextlib.closing(connect(str(self.socket), give_up_s=AGENT_BACK_S)) as client:
            return client.call(method, **params)

    def status(self, app: str = "") -> dict[str, Any]:
        return dict(self.call("status", **({"app": app} if app else {})))

    def app(self, app: str = "shop") -> dict[str, Any]:
        return dict(self.status(app)["apps"][0])

    @property
    def agent_pid(self) -> int:
        return int(self.status()["agent"]["pid"])

    @property
    def keeper_pid(self) -> int:
        pid = int(self.status()["keeper"]["pid"])
        self.keeper_pids.add(pid)
        return pid

    def kill_agent(self) -> int:
        """kill -9, and wait until another one answers. Returns the new pid."""
        old = self.agent_pid
        os.kill(old, signal.SIGKILL)

        def another() -> int:
            try:
                pid = self.agent_pid
            except Exception:
                return 0
            return pid if pid != old else 0

        return int(wait_for("another agent", another))

    def kill_keeper(self) -> int:
        old = self.keeper_pid
        os.kill(old, signal.SIGKILL)

        def another() -> int:
            try:
                pid = self.keeper_pid
            except Exception:
                return 0
            return pid if pid not in (0, old) else 0

        return int(wait_for("another keeper", another))

    def service(self, name: str = "web", app: str = "shop") -> dict[str, Any]:
        return next(item for item in self.app(app)["services"] if item["service"] == name)

    def instances(self, name: str = "web", app: str = "shop") -> list[dict[str, Any]]:
        """All instances with their generation's number, state and release."""
        return [
            instance | {"generation": g["generation"], "generation_state": g["state"], "release": g["release"]}
            for g in self.service(name, app)["generations"]
            for instance in g["instances"]
        ]

    def pids(self, name: str = "web", app: str = "shop") -> list[int]:
        """Of the committed generation."""
        return [
            item["pid"] for item in self.instances(name, app) if item["generation_state"] == "committed" and item["pid"]
        ]

    def replaced(self, old: list[int], name: str = "web") -> bool:
        """Whether the service runs again, with other processes than `old`."""
        now = self.pids(name)
        return bool(now) and now != old and self.settled()

    def settled(self, app: str = "shop") -> bool:
        """Every service runs one committed generation, all ready, and no deploy is under way."""
        seen = self.app(app)
        return seen["deploy"] is None and all(
            service["state"] == "running" and [g["state"] for g in service["generations"]] == ["committed"]
            for service in seen["services"]
        )

    def cli(self, *args: str, cwd: Path | None = None, timeout_s: float = 180.0, **env: str) -> Result:
        process = subprocess.Popen(
            [*MIDSTREAM, *args],
            cwd=cwd or self.root,
            env=self.env | {"PYTHONFAULTHANDLER": "1"} | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._stuck(args, timeout_s, process)) from None
        return Result(process.returncode, out, err)

    def _stuck(self, args: tuple[str, ...], timeout_s: float, process: subprocess.Popen[str]) -> str:
        """What can be seen of a command that does not end: what it said, where it stands, and its agent's side of it."""
        seen = [f"`midstream {' '.join(args)}` did not end within {timeout_s:g} s"]
        with contextlib.suppress(Exception):
            seen.append(json.dumps(self.status(), indent=1))
        with contextlib.suppress(OSError):
            seen += [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in self.left_over()]
        process.send_signal(signal.SIGABRT)  # faulthandler prints the stacks
        seen += [*process.communicate(), self.out()[-5000:]]
        return "\n".join(seen)

    def spawn_cli(self, *args: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*MIDSTREAM, *args],
            cwd=cwd,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def out(self) -> str:
        return (self.root / "agent.out").read_text(errors="replace")

    def stop(self) -> None:
        """The ordered stop, as far as it goes."""
        try:
            with contextlib.closing(connect(str(self.socket), give_up_s=1.0)) as client:
                client.call("agent.stop", timeout_s=3.0)
        except Exception:
            pass
        if self.process is not None:
            try:
                self.process.wait(15.0)
            except subprocess.TimeoutExpired:
                pass

    def close(self) -> None:
        """An ordered stop; what is left after that is killed by the stamp in its environment."""
        self.stop()
        for pid in self.left_over():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.process is not None:
            self.process.wait(15.0)
        self._remove_cgroup()
        shutil.rmtree(self.root, ignore_errors=True)

    def _remove_cgroup(self) -> None:
        """Of a keeper that was killed. What was killed a moment ago counts until the kernel has taken it down."""
        if not self.state.is_dir():
            return
        keeper_id = Layout(str(self.state), str(self.state / "run")).keeper_id
        root, _ = cgroup.make_root(f"midstream-{keeper_id}")
        if root is not None:
            wait_for("the cgroup to be empty", lambda: cgroup.remove(root), 10.0)

    def left_over(self) -> list[int]:
        """Processes whose environment or command line names this machine's folder."""
        mark = str(self.root).encode() + b"/"
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            try:
                text = Path(f"/proc/{name}/environ").read_bytes() + b"\0" + Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if mark in text:
                found.append(int(name))
        return found


@dataclass
class Project:
    """A repository whose every commit is a release of the draining server."""

    folder: Path
    machine: Machine
    port: int
    app: str = "shop"

    @property
    def deploy_to(self) -> Path:
        return self.machine.root / "srv" / self.app

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def config(self, services: str = "", top: str = "", tail: str = "") -> str:
        services = services or self.web()
        return f'app = "{self.app}"\ndeploy_to = "{self.deploy_to}"\n{top}\n{services}\n{tail}\n'

    def web(self, more: str = "", *, health: str = 'health = "/up"', listen: str = "", instances: int = 1) -> str:
        listen = listen or f'listen = ["{self.address}"]'
        return f"""
[services.web]
command = "{sys.executable} server.py"
{listen}
{health}
instances = {instances}
stop_timeout = "3s"
drain_timeout = "20s"
start_timeout = "20s"
{more}
"""

    def git(self, *args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=self.folder, env=self.machine.env, check=True, capture_output=True, text=True
        ).stdout.strip()

    def write(self, **files: str) -> None:
        """`write(config=…)` writes midstream.toml; other names are file names with `__` for `/` and `_dot_` for `.`."""
        for name, text in files.items():
            path = self.folder / (
                "midstream.toml" if name == "config" else name.replace("_dot_", ".").replace("__", "/")
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def commit(self, message: str = "change", **files: str) -> str:
        """Writes files, commits all, returns the sha. Every commit differs."""
        counter = self.folder / "counter"
        counter.write_text(str(int(counter.read_text() or 0) + 1) if counter.exists() else "1")
        self.write(**files)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD")

    def misbehave(self, words: str) -> str:
        """A commit whose server does what `words` say (see the draining server); "" is a good one again."""
        return self.commit(f"misbehave: {words or 'no'}", misbehave=words)

    def deploy(self, *args: str, **env: str) -> Result:
        return self.machine.cli("deploy", *args, cwd=self.folder, **env)

    def cli(self, *args: str, **env: str) -> Result:
        return self.machine.cli(*args, cwd=self.folder, **env)

    def deployed(self, *args: str) -> str:
        """Deploys, insists that it went through, returns the release."""
        result = self.deploy(*args)
        assert result.code == 0, result.text
        return str(self.machine.app(self.app)["release"])

    def get(self, path: str = "/", timeout_s: float = 10.0) -> tuple[int, str]:
        """Status and body of one request on a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout_s) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            data = b""
            while part := client.recv(65536):
                data += part
        head, _, body = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode().rstrip("\n")

    @property
    def current(self) -> str:
        return os.path.basename(os.readlink(self.deploy_to / "current"))


def new_project(machine: Machine, app: str = "shop", name: str = "project") -> Project:
    folder = machine.root / name
    folder.mkdir()
    project = Project(folder, machine, free_port(), app)
    shutil.copy(drain_server.__file__, folder / "server.py")
    project.git("init", "-q", "-b", "main", ".")
    project.write(config=project.config())
    project.commit("first")
    return project


def short_folder(prefix: str) -> Path:
    """A new one: in that of the run of tests (leftovers.py), or below /tmp, as the path of a unix socket has 107 bytes."""
    parent = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent if len(parent) < 20 else "/tmp"))


@functools.cache
def _shared() -> Path:
    """The folder of what the processes of one run of tests share; else one of this process."""
    if given := os.environ.get("MIDSTREAM_RUN_SHARED"):
        return Path(given)
    folder = tempfile.mkdtemp(prefix="midstream-shared-")
    atexit.register(shutil.rmtree, folder)
    return Path(folder)


def once(name: str, make: Callable[[Path], object]) -> Path:
    """`name` in the folder that all processes of a run share; `make(path)` makes it for the first that asks."""
    target = _shared() / name
    with (_shared() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            make(target.with_name(f"{name}.new"))
            target.with_name(f"{name}.new").rename(target)
    return target


@contextlib.contextmanager
def new_machine(**env: str) -> Iterator[Machine]:
    """A started machine in a folder of its own."""
    machine = Machine(short_folder("ms-"), dict(env))
    try:
        machine.start()
        yield machine
    finally:
        machine.close()
        assert not machine.left_over(), "processes were left behind"


@contextlib.contextmanager
def under_load(address: str, *args: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """Load from a process of its own; call the value, once, for the tally. It is stopped in any case."""
    load = subprocess.Popen(
        [sys.executable, "-m", "midstream.testing.load", address, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert load.stdout is not None and load.stdin is not None
    assert load.stdout.readline().strip() == "started"
    tally: dict[str, Any] = {}

    def stop() -> dict[str, Any]:
        if not tally:
            assert load.stdin is not None and load.stdout is not None
            load.stdin.close()
            tally.update(json.loads(load.stdout.readline()))
        return tally

    try:
        yield stop
    finally:
        if load.poll() is None and not tally:
            load.stdin.close()
            load.wait(60.0)
        load.stdout.close()
        load.wait(60.0)
