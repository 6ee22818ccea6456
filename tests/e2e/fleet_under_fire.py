"""Two hosts under light load whose agents and deployer can be killed at a named point, and what has to hold afterwards.

The release has all that a crash may leave half done: objects to send, a migration on web1, a hook with an undo on each host,
and one around each handover that takes the host out of its load balancer (`/srv/shop/out`) and in again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet import Fleet, FleetHost, FleetProject, kill_session, new_fleet
from machine import Result, wait_for

MARKS = "/srv/shop/marks"
HOOKS = f"""
[[hooks]]
after = "check"
run = "echo begun >> {MARKS}"
undo = "echo undone >> {MARKS}"
shell = true
[[hooks]]
before = "handover"
run = "touch /srv/shop/out"
undo = "rm -f /srv/shop/out"
shell = true
[[hooks]]
after = "handover"
run = "rm -f /srv/shop/out"
shell = true
"""
TOP = """
migrate = "sh -c 'echo migrated >> /srv/shop/migrations'"
min_free = "1MiB"
"""


LOOK = f"""readlink /srv/shop/current; echo --
ls /srv/shop/out 2>/dev/null || true; echo --
cat {MARKS} 2>/dev/null || true; echo --
grep -lz ^MIDSTREAM_GENERATION= /proc/[0-9]*/environ 2>/dev/null || true"""


@dataclass
class Fire:
    """The fleet with its project, one release deployed."""

    fleet: Fleet
    project: FleetProject
    before: str = ""  # the release that all hosts were on when this round began

    def begin_round(self) -> str:
        """A new commit, no marks of hooks; returns the release that runs now."""
        releases = set(self.releases())
        assert len(releases) == 1, releases
        self.before = releases.pop()
        self.clear_marks()
        self.project.commit("of this round")
        return self.before

    @property
    def hosts(self) -> list[FleetHost]:
        return list(self.fleet.hosts.values())

    @property
    def deployer_plan(self) -> Path:
        return self.fleet.root / "deployer-plan"

    def agent_plan(self, host: FleetHost) -> Path:
        return host.root / "root/plan"

    def deploy_counting(self) -> None:
        """One good deploy that notes all points it passes."""
        plans = [self.deployer_plan, *(self.agent_plan(host) for host in self.hosts)]
        for plan in plans:
            plan.write_text("count 0" if plan != self.deployer_plan else "count")
        self.project.commit("counted")
        done = self.deploy()
        assert done.code == 0, done.text
        wait_for("the counted deploy to end", self.is_settled)
        for plan in plans:
            plan.unlink()

    def deployer_points(self) -> list[str]:
        return Path(f"{self.deployer_plan}.passed").read_text().splitlines()

    def agent_points(self, host: FleetHost) -> list[str]:
        return Path(f"{self.agent_plan(host)}.passed").read_text().splitlines()

    def deploy(self, *args: str) -> Result:
        return self.project.deploy(*args, MIDSTREAM_CRASH_DEPLOYER=str(self.deployer_plan))

    def releases(self) -> list[str]:
        return [host.release() for host in self.hosts]

    def is_settled(self) -> bool:
        try:
            return all(host.settled() and not host.app()["lock"] for host in self.hosts)
        except Exception:  # an agent that was just killed
            return False

    def leases_are_over(self) -> bool:
        try:
            return all(host.app()["deploy"] is None for host in self.hosts)
        except Exception:
            return False

    def clear_marks(self) -> None:
        for host in self.hosts:
            host.box.run("rm", "-f", MARKS)

    # ------------------------------------------------------------------ what has to hold

    def check_hosts(self, where: str) -> None:
        """Each host by itself is whole: unlocked, unheld, nothing quiet, one release in its processes, the symlink and its
        answers, and what hooks did is undone where the deploy did not succeed."""
        wait_for("the hosts to settle", self.is_settled)
        for host in self.hosts:
            app = host.app()
            release = app["release"]
            assert (app["deploy"], app["lock"], app["drift"]) == (None, None, []), (where, app)
            assert self.fleet.get(host.name) == (200, release), (where, host.name)
            started = 0
            for service in app["services"]:
                assert not service.get("hold") and not service.get("quiet"), (where, service)
                generation = service["generations"][0]
                assert generation["release"] == release, (where, service)
                assert {item["release_running"] for item in generation["instances"]} == {release}, (where, service)
                started += len(generation["instances"])
            current, out, marks, stamped = host.box.sh(LOOK).split("--\n")
            assert os.path.basename(current.strip()) == release, (where, host.name)
            assert len(stamped.split()) == started, f"{where}: {host.name}: nothing accounts for {stamped}"
            assert not out, f"{where}: {host.name} was left out of its load balancer"
            if release == self.before:
                assert marks.split()[-1:] in ([], ["undone"]), f"{where}: {host.name}: {marks}"

    def check_one_release(self, where: str) -> str:
        self.check_hosts(where)
        releases = set(self.releases())
        assert len(releases) == 1, (where, releases)
        told = self.project.cli("status", "--check")
        assert told.code == 0, f"{where}\n{told.text}"
        return releases.pop()


def is_stopped(process: subprocess.Popen[str]) -> bool:
    """By SIGSTOP: the process is there, and does nothing."""
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


@dataclass
class Frozen:
    """A deployer that stopped itself at a point; `go_on` lets it run to its end."""

    process: subprocess.Popen[str]

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def go_on(self, timeout_s: float = 200.0) -> Result:
        self.thaw()
        return self.end(timeout_s)

    def end(self, timeout_s: float = 200.0) -> Result:
        out, _ = self.process.communicate(timeout=timeout_s)
        return Result(self.process.returncode, "", out)


@contextlib.contextmanager
def frozen(on: Fire, point: str, *args: str) -> Iterator[Frozen]:
    """`midstream deploy` of a new commit, stopped where it passes `point` (see `deploy/crashpoint.py`)."""
    on.begin_round()
    on.deployer_plan.write_text(f"stop {point}")
    process = on.fleet.spawn_cli(
        *(args or ("deploy",)), cwd=on.project.folder, MIDSTREAM_CRASH_DEPLOYER=str(on.deployer_plan)
    )
    try:
        wait_for(f"the deployer to stop at {point}", lambda: is_stopped(process) or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]
        yield Frozen(process)
    finally:
        on.deployer_plan.unlink(missing_ok=True)
        if process.poll() is None:
            kill_session(process)


@contextlib.contextmanager
def fire(tmpfs: dict[str, str] | None = None) -> Iterator[Fire]:
    """web1, web2 (web1 migrates), every agent with its crash plan at /root/plan. tmpfs: on web2, folder -> size of a file
    system of its own there."""
    with new_fleet(2, agents=False) as fleet:
        pyz = fleet.pyz()
        for folder, size in (tmpfs or {}).items():
            owner = "-o uid=4001,gid=4001" if folder.startswith("/srv") else ""
            fleet.host("web2").box.sh(
                f"mkdir -p {folder}; mount -t tmpfs -o size={size},mode=755 {owner} none {folder}"
            )
        for host in fleet.hosts.values():
            host.install(pyz)
            wrapper = host.root / "opt/midstream/bin/midstream"
            wrapper.write_text(wrapper.read_text().replace("exec ", "MIDSTREAM_CRASH_PLAN=/root/plan exec "))
            host.start_agent()
        project = fleet.project(web1=["web", "db"], web2=["web"])
        project.commit("all of it", config=project.config(project.web(), top=TOP, tail=HOOKS))
        project.deployed()
        yield Fire(fleet, project)


@contextlib.contextmanager
def under_fleet_load(fleet: Fleet) -> Iterator[Callable[[], dict[str, dict[str, Any]]]]:
    """Light load on each host, from this side of the network. Call the value, once, for the tallies by host."""
    loads = {
        name: subprocess.Popen(
            fleet.switch.on_the_network(
                *(sys.executable, "-m", "midstream.testing.load", f"tcp://{host.address}:8000"),
                *("--pause", "0.05", "--keep-alive", "1", "--closing", "1"),
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, host in fleet.hosts.items()
    }
    for load in loads.values():
        assert load.stdout is not None and load.stdout.readline().strip() == "started"
    tallies: dict[str, dict[str, Any]] = {}

    def stop() -> dict[str, dict[str, Any]]:
        for name, load in loads.items():
            assert load.stdin is not None and load.stdout is not None
            load.stdin.close()
            tallies[name] = json.loads(load.stdout.readline())
        return tallies

    try:
        yield stop
    finally:
        for load in loads.values():
            assert load.stdin is not None and load.stdout is not None
            load.stdin.close()
            load.wait(60.0)
            load.stdout.close()


def no_failures(tallies: dict[str, dict[str, Any]]) -> None:
    for name, tally in tallies.items():
        assert tally["requests"] > 0, name
        assert tally["failed"] == 0, (name, tally["failures"])
