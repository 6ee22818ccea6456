"""`midstream deploy` and `rollback` beside Capistrano's: the same repository, hosts, sshd and link.

The hosts are namespaces of this machine (`tests/e2e/fleet.py`); the link is a proxy that delays (`slow_link.py`), without
delay too, so that both are measured through it. Neither restarts a service: Capistrano would not either.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from measurement import Measurement, absent

from cases import Scale

TESTS = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TESTS / "e2e"))

from fleet import HERE, Fleet, new_fleet, why_no_fleet  # noqa: E402  (what a fleet is made of lives with the tests)

LINK = TESTS / "bench" / "slow_link.py"
DEPLOY_TO = "/srv/shop"
ROUND_TRIP_MS = 50
BIG_FILES = 200  # of a megabyte each
OURS, THEIRS = "midstream", "capistrano"
PATIENCE_S = 300


def missing() -> str:
    """Why this cannot be measured here."""
    return "" if shutil.which("cap") else "capistrano is not installed"


def measure(scale: Scale, only: frozenset[str]) -> Iterator[Measurement]:
    why = why_no_fleet() or missing()
    if why:
        for subject in (OURS, THEIRS):
            yield absent("deploy_1_0_s", subject, "s", why)
        return
    tools = [tool for tool in (OURS, THEIRS) if not only or tool in only]
    for count in (1, 2) if scale.quick else (1, 2, 8):
        try:
            with new_fleet(count) as fleet, site(fleet, big=False) as here:
                direct = list(_timed(here, tools, scale.deploys, count, 0))
                slow = list(_timed(here, tools, scale.deploys, count, ROUND_TRIP_MS))
                yield from (*direct, *slow, *_round_trips(direct, slow, count))
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            yield absent(f"deploy_{count}_0_s", OURS, "s", f"failed: {error}")
    try:
        with new_fleet(1) as fleet, site(fleet, big=True) as here:
            yield from _one_file(here, tools, scale.deploys)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        yield absent("one_file_s", OURS, "s", f"failed: {error}")


@dataclass
class Site:
    """A fleet, a repository, and both tools set up for it."""

    fleet: Fleet
    folder: Path
    link: subprocess.Popen[str] | None = None
    ports: dict[str, int] = field(default_factory=dict)
    commits: int = 0

    @property
    def repository(self) -> Path:
        return self.folder / "app"

    @property
    def mirror(self) -> Path:
        """What the hosts may read, under its path, as the deploy user."""
        return self.folder / "mirror.git"

    @property
    def env(self) -> dict[str, str]:
        """Byte code is kept, as that of an installed package is, but not in the tree that is measured."""
        kept = {key: value for key, value in self.fleet.env.items() if key != "PYTHONDONTWRITEBYTECODE"}
        return kept | {"LANG": "C.UTF-8", "PYTHONPYCACHEPREFIX": str(self.folder / "pycache")}

    def git(self, *words: str) -> None:
        subprocess.run(["git", "-C", str(self.repository), *words], check=True, capture_output=True, env=self.env)

    def commit(self) -> None:
        """One file changes."""
        self.commits += 1
        (self.repository / "changed.txt").write_text(f"{self.commits}\n")
        self.git("add", ".")
        self.git("commit", "-q", "-m", f"change {self.commits}")
        for owner in ("0:0", "4001:4001"):  # git serves nobody a repository that is not his own
            subprocess.run(["chown", "-R", owner, str(self.mirror)], check=True)
            if owner == "0:0":
                self.git("push", "-q", str(self.mirror), "main")

    def open_link(self, delay_ms: float) -> None:
        targets = [f"{host.address}:22" for host in self.fleet.hosts.values()]
        self.link = subprocess.Popen(
            self.fleet.switch.on_the_network(sys.executable, str(LINK), HERE, str(delay_ms), *targets),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.link.stdout is not None
        lines = []
        while (line := self.link.stdout.readline().strip()) != "ready":
            if not line:
                raise RuntimeError("the delaying proxy did not start")
            lines.append(int(line))
        self.ports = dict(zip(self.fleet.hosts, lines, strict=True))
        self.fleet.write_ssh_config(
            "".join(
                f"Host {name}\n  HostName {HERE}\n  Port {port}\n  HostKeyAlias {self.fleet.hosts[name].address}\n"
                for name, port in self.ports.items()
            )
        )
        self._write_capistrano()

    def close_link(self) -> int:
        """Bytes that went over it, both ways."""
        assert self.link is not None
        self.link.terminate()
        said, _ = self.link.communicate(timeout=30)
        self.link = None
        return sum(int(word) for word in said.split())

    def _write_capistrano(self) -> None:
        cap = self.folder / "cap"
        (cap / "config/deploy").mkdir(parents=True, exist_ok=True)
        (cap / "Capfile").write_text(
            'require "capistrano/setup"\nrequire "capistrano/deploy"\nrequire "capistrano/scm/git"\n'
            "install_plugin Capistrano::SCM::Git\n"
        )
        (cap / "config/deploy.rb").write_text(
            f'set :application, "shop"\nset :repo_url, "{self.mirror}"\nset :deploy_to, "{DEPLOY_TO}-cap"\n'
            f'set :branch, "main"\nset :keep_releases, 5\nset :log_level, :info\n'
        )
        (cap / "config/deploy/production.rb").write_text(
            "".join(
                f'server "{HERE}", port: {port}, user: "deploy", roles: %w[app web], ssh_options: {{'
                f' keys: ["{self.folder}/rsa"], keys_only: true, config: false, verify_host_key: :never,'
                ' auth_methods: ["publickey"] }\n'
                for port in self.ports.values()
            )
        )

    def cpu_s(self) -> float:
        """CPU time so far of the commands on this side, with their ssh, and of all processes of the hosts (cpu.stat is there
        without a controller). The link's is not in it."""
        ours = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (
            ours.ru_utime + ours.ru_stime + sum(map(_cgroup_cpu_s, (h.box.cgroup for h in self.fleet.hosts.values())))
        )

    def run(self, tool: str, *words: str) -> float:
        """Seconds that one command took. Raises RuntimeError with its output when it fails."""
        if tool == OURS:
            argv, cwd = self.fleet.argv(*words), self.repository
        else:
            verb = "deploy" if words[0] == "deploy" else "deploy:rollback"
            argv, cwd = self.fleet.switch.on_the_network("cap", "production", verb), self.folder / "cap"
        began = time.monotonic()
        done = subprocess.run(
            argv, cwd=cwd, env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE_S
        )
        took = time.monotonic() - began
        if done.returncode != 0:
            raise RuntimeError(
                f"{tool} {' '.join(words)}: exit {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"
            )
        return took


class site:
    """Context: the Site of a fleet, with one commit. big: 200 MB that cannot be compressed, in 200 files."""

    def __init__(self, fleet: Fleet, *, big: bool) -> None:
        # Neither below /tmp nor below another folder that the hosts have of their own: they read the repository here.
        self.site = Site(fleet, Path(tempfile.mkdtemp(prefix="msb", dir="/var/tmp")))
        self.big = big

    def __enter__(self) -> Site:
        here = self.site
        here.folder.chmod(0o755)
        here.repository.mkdir()
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(here.mirror)], check=True, env=here.env)
        subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-m", "PEM", "-N", "", "-f", here.folder / "rsa"], check=True)
        hosts = ", ".join(f'{{ address = "{name}" }}' for name in here.fleet.hosts)
        for host in here.fleet.hosts.values():
            with (host.root / "root/keys/deploy").open("a") as keys:
                keys.write((here.folder / "rsa.pub").read_text())
            host.box.run("install", "-d", "-o", "deploy", "-g", "deploy", f"{DEPLOY_TO}-cap")
        here.git("init", "-q", "-b", "main", ".")
        (here.repository / "midstream.toml").write_text(
            f'app = "shop"\nrepository = "."\ndeploy_to = "{DEPLOY_TO}"\n[stages.production]\nhosts = [{hosts}]\n'
        )
        for number in range(BIG_FILES if self.big else 20):
            (here.repository / f"file{number}").write_bytes(os.urandom(1_000_000 if self.big else 2_000))
        here.commit()
        return here

    def __exit__(self, *_: object) -> None:
        if self.site.link is not None:
            self.site.close_link()
        shutil.rmtree(self.site.folder)


def _cgroup_cpu_s(folder: str) -> float:
    if not folder:
        return 0.0
    lines = Path(folder, "cpu.stat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("usage_usec")) / 1e6


def _round_trips(direct: list[Measurement], slow: list[Measurement], count: int) -> Iterator[Measurement]:
    """How many times a deploy waits for the link, by what the delay adds to it."""
    quickly = {item.subject: item.value for item in direct if item.metric == f"deploy_{count}_0_s"}
    for late in slow:
        if late.metric == f"deploy_{count}_{ROUND_TRIP_MS}_s":
            trips = (late.value - quickly[late.subject]) * 1000 / ROUND_TRIP_MS
            yield Measurement(f"round_trips_{count}", late.subject, trips, "count")


def _timed(here: Site, tools: list[str], times: int, count: int, round_trip_ms: int) -> Iterator[Measurement]:
    """Deploys of a new commit each, then rollbacks, by turns so that noise hits both."""
    here.open_link(round_trip_ms / 2)
    deploys: dict[str, list[float]] = {tool: [] for tool in tools}
    rollbacks: dict[str, list[float]] = {tool: [] for tool in tools}
    cpu: dict[str, list[float]] = {tool: [] for tool in tools}
    for tool in tools * 2:
        here.commit()
        here.run(tool, "deploy")  # the first ones clone, and leave something to roll back to
    for _ in range(times):
        for tool in tools:
            here.commit()
            before_s = here.cpu_s()
            deploys[tool].append(here.run(tool, "deploy"))
            cpu[tool].append(here.cpu_s() - before_s)
        for tool in tools:
            rollbacks[tool].append(here.run(tool, "rollback"))
    here.close_link()
    for tool in tools:
        yield Measurement(f"deploy_{count}_{round_trip_ms}_s", tool, statistics.median(deploys[tool]), "s")
        yield Measurement(f"rollback_{count}_{round_trip_ms}_s", tool, statistics.median(rollbacks[tool]), "s")
        if not round_trip_ms:
            yield Measurement(f"deploy_{count}_cpu_s", tool, statistics.median(cpu[tool]), "s")


def _one_file(here: Site, tools: list[str], times: int) -> Iterator[Measurement]:
    """One file of a 200 MB tree changes: time and bytes. Capistrano's host fetches from a path of its own here, which is
    not counted: only what goes between the deployer and the host is."""
    here.open_link(0)
    for tool in tools:
        here.run(tool, "deploy")
    here.close_link()
    found: dict[str, Callable[[list[float]], float]] = {"s": statistics.median, "kB": statistics.median}
    for tool in tools:
        values: dict[str, list[float]] = {unit: [] for unit in found}
        for _ in range(times):
            here.commit()
            here.open_link(0)
            values["s"].append(here.run(tool, "deploy"))
            values["kB"].append(here.close_link() / 1000)
        for unit, middle in found.items():
            yield Measurement(f"one_file_{unit.lower()}", tool, middle(values[unit]), unit)
