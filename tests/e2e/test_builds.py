"""Builds made once, and on the deployer, on a fleet over ssh: what is carried, what is refused, what a cut does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, FleetProject
from machine import wait_for

pytestmark = pytest.mark.slow

ONCE = """
[[build]]
run = "echo before >> order"
shell = true
[[build]]
run = [
  "echo once >> order; mkdir -p public/assets/deep",
  "date +%s%N > public/assets/deep/app.js && hostname > public/assets/who",
]
shell = true
on = "once"
roles = ["web"]
name = "pages"
files = ["public/assets"]
[[build]]
run = "echo after >> order; cat public/assets/who > seen || echo none > seen"
shell = true
"""
DEPLOYER = """
[[build]]
run = [
  "ls > listing; echo building with $TOKEN; date +%s%N > made",
  "mkdir -p bin; echo '#!/bin/sh' > bin/tool; chmod 700 bin/tool",
]
shell = true
on = "deployer"
files = ["made", "bin", "listing"]
"""


def config(project: FleetProject, build: str, top: str = "") -> str:
    """`env` of the stage names where the token is."""
    text = project.config(top=top, tail=build)
    return text + 'secrets = { TOKEN = { file = "../token" } }\n'


@pytest.fixture
def fleet3(fleet_of: Callable[..., Fleet]) -> FleetProject:
    fleet = fleet_of(3)
    (fleet.root / "token").write_text("hunter2-hunter2")
    project = fleet.project(web3=["batch"])
    project.write(config=config(project, "").replace("[services.web]", '[services.web]\nroles = ["web", "batch"]'))
    return project


def released(project: FleetProject, name: str, path: str) -> Path:
    host = project.fleet.host(name)
    return host.root / "srv/shop/releases" / host.current() / path


def left_over(project: FleetProject) -> list[str]:
    """Archives and staging folders that are still there, on any host or here."""
    found = []
    for host in project.fleet.hosts.values():
        found += [str(path) for path in (host.root / "var/lib/midstream/incoming").glob("*")]
        found += [str(path) for path in (host.root / "srv/shop/.midstream/tmp").glob("*")]
    return found


def set_build(project: FleetProject, build: str, top: str = "") -> None:
    text = config(project, build, top).replace("[services.web]", '[services.web]\nroles = ["web", "batch"]')
    project.commit(config=text)


def test_once_on_the_deployer_and_what_is_refused(fleet3: FleetProject) -> None:
    """One story on one fleet: starting three hosts is what takes the time."""
    project = fleet3
    _once(project)
    _on_the_deployer(project)
    _refusals(project)
    _killed_in_the_middle(project)


def _once(project: FleetProject) -> None:
    set_build(project, ONCE, 'assets = ["public/assets"]\n')
    result = project.deploy("--json")
    assert result.code == 0, result.text
    made = {name: released(project, name, "public/assets/deep/app.js") for name in ("web1", "web2")}
    assert made["web1"].read_text() == made["web2"].read_text()
    assert released(project, "web2", "public/assets/who").read_text() == "web1\n"
    assert released(project, "web2", "seen").read_text() == "web1\n"
    status = made["web2"].stat()
    assert (status.st_uid, status.st_mode & 0o7777) == (4001, 0o644)
    assert released(project, "web1", "order").read_text() == "before\nonce\nafter\n"
    assert released(project, "web2", "order").read_text() == "before\nafter\n"
    assert released(project, "web3", "seen").read_text() == "none\n"
    assert not released(project, "web3", "public").exists()
    assert left_over(project) == []
    rows = [json.loads(line) for line in result.out.splitlines()]
    _assets_before_pages(rows)
    assert (project.fleet.host("web2").root / "srv/shop/shared/assets/public/assets/deep/app.js").exists()


def _assets_before_pages(rows: list[dict[str, Any]]) -> None:
    """Published additively on every host before any host is handed over."""
    begun = next(n for n, row in enumerate(rows) if row["type"] == "begin" and row.get("step") == "deploy:handover:web")
    calls = [row for row in rows[:begun] if row["type"] == "call" and row["step"] == "deploy.update"]
    assert {row["host"] for row in calls} == {"web1", "web2", "web3"}
    last = {row["host"]: n for n, row in enumerate(rows) if row["type"] == "call" and row["step"] == "deploy.update"}
    assert all(place < begun for place in last.values())


def _on_the_deployer(project: FleetProject) -> None:
    (project.folder / "not-committed").write_text("x")
    set_build(project, DEPLOYER)
    project.git("rm", "-q", "--cached", "not-committed")
    project.git("commit", "-q", "--amend", "-m", "without")
    result = project.deploy("--verbose")
    assert result.code == 0, result.text
    made = {released(project, name, "made").read_text() for name in ("web1", "web2", "web3")}
    assert len(made) == 1
    assert released(project, "web3", "bin/tool").stat().st_mode & 0o7777 == 0o755
    listing = released(project, "web1", "listing").read_text().split()
    assert "server.py" in listing and "not-committed" not in listing
    assert "building with [TOKEN]" in result.out
    assert "hunter2" not in result.text
    assert left_over(project) == []
    (project.folder / "not-committed").unlink()


def _refusals(project: FleetProject) -> None:
    before = {name: host.release() for name, host in project.fleet.hosts.items()}
    fine = ONCE.replace("> public/assets/who", "> public/assets/who{more}")
    for build, words in (
        (DEPLOYER.replace("ls > listing", "echo oh no; exit 3"), "exit 3"),
        (DEPLOYER.replace('"bin", ', '"bin", "missing", '), "the build did not make missing"),
        (DEPLOYER.replace("mkdir -p bin;", "mkdir -p bin; ln -s /etc/passwd bin/link;"), "bin/link is a link"),
        (fine.format(more=" && exit 4"), "exit 4"),
        (fine.format(more=" && ln -s / public/assets/root"), "public/assets/root is a link"),
    ):
        set_build(project, build)
        result = project.deploy()
        assert result.code == 1, result.text
        assert words in result.err and "full log:" in result.err
        assert {name: host.release() for name, host in project.fleet.hosts.items()} == before
        wait_for("all to settle", lambda: all(host.settled() for host in project.fleet.hosts.values()))
        assert left_over(project) == []


def _killed_in_the_middle(project: FleetProject) -> None:
    """The agent of the builder, then that of a receiver, dies while 12 MB are carried: they go on, or begin again."""
    big = "head -c 12000000 /dev/urandom > public/assets/big"
    build = ONCE.replace("hostname > public/assets/who", f"hostname > public/assets/who && {big}")
    for victim in ("web1", "web2"):
        set_build(project, build)
        process = project.fleet.spawn_cli("deploy", "--json", cwd=project.folder)
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            wanted = '"step": "deploy:carry:pages"' if victim == "web2" else "artifact 2: pack"
            if wanted in line and '"type": "begin"' in line:
                project.fleet.host(victim).kill_agent()
                break
        said += process.stdout.readlines()
        assert process.wait(120) == 0, "".join(said)[-3000:]
        digests = {_sha256(released(project, name, "public/assets/big")) for name in ("web1", "web2")}
        assert len(digests) == 1
        assert "lost the agent" in "".join(said)
        assert left_over(project) == []


def _sha256(path: Path) -> str:
    return subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]
