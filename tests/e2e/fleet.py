"""A fleet of hosts for end-to-end tests: each with its own network, processes, files, users, sshd and agent.

    def test_x(fleet_of):                      # the fixture is in conftest.py
        fleet = fleet_of(2)                    # web1, web2: sshd and a root agent run on each
        project = fleet.project()              # a repository whose every commit is a release of the draining server
        result = project.deploy()              # `midstream deploy` over ssh, run on this side of the network
        fleet.cut("web2"); fleet.mend("web2")  # pull the cable
        fleet.host("web1").kill_agent()

Hosts are namespaces (`netns.py`), on a network of their own: this side is 10.77.0.1, web1 is 10.77.0.11, web2 .12 …
A host has its own /run, /var/lib, /srv, /home, /root, /opt, /tmp and its own copies of /etc and /usr/local, so that tests
may install what they like. Users: root, `deploy` (the ssh user, owns /srv/shop) and `other`. `fleet_of(2, agents=False)`:
nothing of Midstream is there, only sshd and python3. All ends with the fixture; nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import Project, Result, once, short_folder, wait_for
from netns import PYTHON, Box, Switch, mount_lines, why_not

from midstream.cli import zipapp_build
from midstream.deploy.sync_client import connect
from midstream.testing import drain_server

HERE = "10.77.0.1"
USERS = {"deploy": 4001, "other": 4002}
APP_PORT = 8000
LEASE_S = "5"  # of 15 s; but a log-in by ssh has to fit in, on a busy machine
_OWN = ("/run", "/var/lib", "/srv", "/home", "/root", "/opt", "/tmp")
_COPIED = ("/etc", "/usr/local")
_SSHD = """Port 22
ListenAddress 0.0.0.0
HostKey /root/host_key
AuthorizedKeysFile /root/keys/%u
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
PidFile /run/sshd.pid
Subsystem sftp internal-sftp
MaxStartups 100
UseDNS no
"""


def why_no_fleet() -> str:
    """Why there can be no fleet here; "" when there can."""
    for program in ("ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            return f"needs {program}"
    if not os.path.exists("/usr/sbin/sshd"):
        return "needs openssh-server"
    enough = [PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if not os.path.exists(PYTHON) or subprocess.run(enough).returncode != 0:
        return f"needs {PYTHON} to be 3.11 or newer"
    return why_not()


def built_pyz() -> Path:
    """`midstream.pyz` of this very copy. Built once in a run of tests: it takes longer than many a test."""
    return once("midstream.pyz", lambda path: zipapp_build.build(str(path)))


@dataclass
class FleetHost:
    """One host. `box.run`, `box.sh`, `box.popen` run things on it; `call` asks its agent."""

    name: str
    number: int
    box: Box
    agent: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"10.77.0.{10 + self.number}"

    @property
    def root(self) -> Path:
        """Where its own folders are, seen from outside: `root / "srv/shop"`."""
        return self.box.root

    @property
    def socket(self) -> str:
        return str(self.root / "run/midstream/agent.sock")

    def start_sshd(self) -> None:
        self.box.run("/usr/sbin/sshd", "-f", "/root/sshd_config", "-E", "/root/sshd.log")

    def kill_sshd(self) -> None:
        """kill -9 of the listener and of every session; what sessions started goes on."""
        self.box.sh("pkill -9 -x sshd || true")

    def install(self, pyz: Path, lease_s: str = LEASE_S) -> None:
        """What `agent install` leaves: the program and its short name. It is not on the PATH of an ssh command."""
        self.box.sh("mkdir -p /opt/midstream/bin")
        shutil.copy(pyz, self.root / "opt/midstream/midstream.pyz")
        wrapper = self.root / "opt/midstream/bin/midstream"
        wrapper.write_text(
            f'#!/bin/sh\nexport MIDSTREAM_LEASE_S={lease_s}\nexec {PYTHON} -I /opt/midstream/midstream.pyz "$@"\n'
        )
        wrapper.chmod(0o755)

    def start_agent(self) -> None:
        """As root; returns once it answers."""
        log = (self.root / "root/agent.out").open("ab")
        self.agent = self.box.popen("/opt/midstream/bin/midstream", "agent", "run", stdout=log, stderr=log)
        log.close()
        wait_for(f"the agent of {self.name}", self.answers)

    def answers(self) -> bool:
        try:
            self.call("hello")
        except Exception:
            return False
        return True

    def call(self, method: str, **params: Any) -> Any:
        """One call, through its control socket: the network is not needed."""
        with contextlib.closing(connect(self.socket, give_up_s=0.0)) as client:
            return client.call(method, **params)

    def status(self) -> dict[str, Any]:
        return dict(self.call("status"))

    def app(self, app: str = "shop") -> dict[str, Any]:
        return next(dict(row) for row in self.status()["apps"] if row["app"] == app)

    def release(self, app: str = "shop") -> str:
        """The committed one; "" for none."""
        return next((str(row.get("release") or "") for row in self.status()["apps"] if row["app"] == app), "")

    def settled(self, app: str = "shop") -> bool:
        """No deploy and no lock of one, every service runs one committed generation."""
        seen = self.app(app)
        return seen["deploy"] is None and all(
            service["state"] == "running" and [g["state"] for g in service["generations"]] == ["committed"]
            for service in seen["services"]
        )

    def kill_agent(self) -> int:
        """kill -9, and wait until the keeper has started another one. Returns its pid (on the host)."""
        old = int(self.status()["agent"]["pid"])
        self.box.run("kill", "-9", str(old))

        def another() -> int:
            try:
                pid = int(self.status()["agent"]["pid"])
            except Exception:
                return 0
            return pid if pid != old else 0

        return int(wait_for("another agent", another))

    def kill_midstream(self) -> None:
        """kill -9 of keeper and agent at the same moment: nobody answers until `start_agent`. Services go on."""
        self.kill_stopped(self.stop_agent())

    def stop_agent(self) -> tuple[str, str]:
        """SIGSTOP: it hears and answers nothing. Returns the pids of keeper and agent."""
        status = self.status()
        keeper, agent = str(status["keeper"]["pid"]), str(status["agent"]["pid"])
        self.box.run("kill", "-STOP", agent)
        return keeper, agent

    def kill_stopped(self, pids: tuple[str, str]) -> None:
        """kill -9 of the keeper and of its agent, which is stopped: else it might have started the next keeper already."""
        self.box.run("kill", "-9", *pids)
        if self.agent is not None:
            self.agent.wait(20.0)

    def current(self, app: str = "shop") -> str:
        """The release that the symlink names."""
        return os.path.basename(os.readlink(self.root / "srv" / app / "current"))


@dataclass
class Fleet:
    root: Path
    hosts: dict[str, FleetHost] = field(default_factory=dict)
    lease_s: str = LEASE_S  # "" for the usual one
    up_s: dict[str, int] = field(default_factory=dict)  # how much earlier than this machine a host was booted
    switch: Switch = field(init=False)

    def __post_init__(self) -> None:
        self.switch = Switch(self.root / "switch", HERE)

    def host(self, name: str) -> FleetHost:
        return self.hosts[name]

    def start(self, names: list[str], *, agents: bool = True) -> None:
        self.root.chmod(0o711)
        (self.root / "home").mkdir()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        self.switch.start()
        for number, name in enumerate(names, start=1):
            box = Box(name, self.root / name, mount_lines(_OWN, _COPIED) + _SETUP)
            if up_s := self.up_s.get(name):
                box.namespaces += ("--time", f"--boottime={up_s}")
            host = self.hosts[name] = FleetHost(name, number, box)
            box.start()
            self.switch.plug(box, number, host.address)
            self._give_keys(host)
            host.start_sshd()
        self.write_ssh_config()
        if agents:
            pyz = self.pyz()
            for host in self.hosts.values():
                host.install(pyz, self.lease_s)
                host.start_agent()

    def pyz(self) -> Path:
        """`midstream.pyz` of this very copy."""
        target = self.root / "midstream.pyz"
        if not target.exists():
            shutil.copy(built_pyz(), target)
        return target

    @property
    def key(self) -> str:
        return str(self.root / "key")

    @property
    def ssh_config(self) -> Path:
        return self.root / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.root / "known_hosts"

    def _give_keys(self, host: FleetHost) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host.root / "root/host_key"], check=True)
        keys = host.root / "root/keys"
        keys.mkdir()
        for user in ("root", *USERS):
            shutil.copy(f"{self.key}.pub", keys / user)
        (host.root / "root/sshd_config").write_text(_SSHD)
        for path in (host.root / "root", keys):
            path.chmod(0o755)

    def write_ssh_config(self, more: str = "") -> None:
        """For the deployer: names, users, the key, the known host keys. `more` comes first, so it wins."""
        known = [
            f"{host.address} {(host.root / 'root/host_key.pub').read_text().strip()}" for host in self.hosts.values()
        ]
        self.known_hosts.write_text("\n".join(known) + "\n")
        named = "".join(f"Host {host.name}\n  HostName {host.address}\n" for host in self.hosts.values())
        self.ssh_config.write_text(
            f"{more}{named}Host *\n  User deploy\n  IdentityFile {self.key}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
        )

    # ------------------------------------------------------------------ the network

    def cut(self, name: str) -> None:
        """Pull the host's cable: packets are lost, nothing is refused."""
        self.switch.set_link(self.hosts[name].number, False)

    def mend(self, name: str) -> None:
        self.switch.set_link(self.hosts[name].number, True)

    def get(self, name: str, path: str = "/", port: int = APP_PORT, timeout_s: float = 10.0) -> tuple[int, str]:
        """Status and body of one HTTP request to a host."""
        with self.switch.dial(self.hosts[name].address, port, timeout_s) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            data = b""
            while part := client.recv(65536):
                data += part
        head, _, body = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode().rstrip("\n")

    # ------------------------------------------------------------------ the deployer, on this side of the network

    @property
    def env(self) -> dict[str, str]:
        """Of the deployer: its own home, ssh with the fleet's configuration."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MIDSTREAM", "SSH_"))}
        home = self.root / "home"
        return kept | {
            "MIDSTREAM_LEASE_S": self.lease_s,
            "MIDSTREAM_SSH": f"ssh -F {self.ssh_config}",
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
        }

    def argv(self, *args: str) -> list[str]:
        """`midstream ARGS` on this side of the network."""
        return self.switch.on_the_network(sys.executable, "-m", "midstream", *args)

    def cli(self, *args: str, cwd: Path | None = None, timeout_s: float = 240.0, **env: str) -> Result:
        done = subprocess.run(
            self.argv(*args),
            cwd=cwd or self.root,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def spawn_cli(self, *args: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
        """In a session of its own; its output, both streams, on a pipe."""
        return subprocess.Popen(
            self.argv(*args),
            cwd=cwd,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def ssh(self, name: str, command: str, user: str = "") -> Result:
        """A plain ssh command, as an operator would type it."""
        target = f"{user}@{name}" if user else name
        done = subprocess.run(
            self.switch.on_the_network("ssh", "-F", str(self.ssh_config), "-o", "BatchMode=yes", target, command),
            capture_output=True,
            text=True,
            env=self.env,
            timeout=60,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def project(self, name: str = "project", **roles: list[str]) -> FleetProject:
        return new_fleet_project(self, name, roles)

    def stop(self) -> None:
        for host in self.hosts.values():
            host.box.stop()
            if host.agent is not None:
                host.agent.wait(20.0)
        self.switch.stop()
        shutil.rmtree(self.root)


# Run inside each host, after its folders are there. `$NAME` is its name.
_SETUP = f"""
hostname "$NAME"
ip link set lo up
mkdir -p /run/sshd && chmod 755 /run/sshd
chmod 1777 /tmp
printf '%s\\n' "127.0.0.1 localhost" "{HERE} deployer" > /etc/hosts
{
    "".join(
        f'''
echo "{user}:x:{uid}:{uid}::/home/{user}:/bin/sh" >> /etc/passwd
echo "{user}:*:19000:0:99999:7:::" >> /etc/shadow
echo "{user}:x:{uid}:" >> /etc/group
mkdir -p /home/{user} && chown {uid}:{uid} /home/{user}
'''
        for user, uid in USERS.items()
    )
}
mkdir -p /srv/shop && chown deploy:deploy /srv/shop
if [ -n "$CGROUP2" ]; then umount -l "$CGROUP2" && mount -t cgroup2 none "$CGROUP2"; fi
"""


@dataclass
class FleetProject(Project):
    """A repository whose every commit is a release of the draining server, on all hosts of the fleet."""

    fleet: Fleet = field(default=None)  # type: ignore[assignment]  # dataclass order
    roles: dict[str, list[str]] = field(default_factory=dict)

    @property
    def deploy_to(self) -> Path:
        return Path("/srv") / self.app

    @property
    def address(self) -> str:
        return f"tcp://0.0.0.0:{self.port}"

    def web(self, more: str = "", **kwargs: Any) -> str:
        return super().web(more, **kwargs).replace(sys.executable, PYTHON)

    def config(self, services: str = "", top: str = "", tail: str = "") -> str:
        hosts = ", ".join(
            f'{{ address = "{name}", roles = [{", ".join(repr(role) for role in self.roles.get(name, ["web", "db"]))}] }}'
            for name in self.fleet.hosts
        )
        return super().config(services, top, tail) + f"\n[stages.production]\nhosts = [{hosts}]\n"

    def deployed(self, *args: str) -> str:
        """Deploys, insists that it went through and that all hosts are on one release, and returns it."""
        result = self.deploy(*args)
        assert result.code == 0, result.text
        releases = {host.release(self.app) for host in self.fleet.hosts.values()}
        assert len(releases) == 1, releases
        return releases.pop()

    def served(self) -> dict[str, str]:
        """What each host answers to `GET /`."""
        return {name: self.fleet.get(name, port=self.port)[1] for name in self.fleet.hosts}


def new_fleet_project(fleet: Fleet, name: str, roles: dict[str, list[str]]) -> FleetProject:
    folder = fleet.root / name
    folder.mkdir()
    project = FleetProject(folder, fleet, APP_PORT, fleet=fleet, roles=roles)  # type: ignore[arg-type]
    shutil.copy(drain_server.__file__, folder / "server.py")
    project.git("init", "-q", "-b", "main", ".")
    project.write(config=project.config())
    project.commit("first")
    return project


@contextlib.contextmanager
def new_fleet(
    count: int = 2,
    *,
    agents: bool = True,
    names: list[str] | None = None,
    lease_s: str = LEASE_S,
    up_s: dict[str, int] | None = None,
) -> Iterator[Fleet]:
    """A fleet of `web1` … `webN`, or of hosts with those names. up_s: see Fleet."""
    fleet = Fleet(short_folder("msf-"), lease_s=lease_s, up_s=up_s or {})
    try:
        fleet.start(names or [f"web{number}" for number in range(1, count + 1)], agents=agents)
        yield fleet
    finally:
        fleet.stop()


def kill_session(process: subprocess.Popen[Any]) -> None:
    """kill -9 of a deployer that `spawn_cli` began, with its ssh children, as a machine that loses power does."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20.0)
    if process.stdout is not None:
        process.stdout.close()
