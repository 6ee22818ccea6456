"""Clients that hang up in the middle, and what is left of them: nothing is half done, and nothing is kept for ever."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from machine import Machine, Project, wait_for

from midstream.deploy.sync_client import connect


def _hang_up_after(machine: Machine, method: str, seen: Callable[[], bool], **params: Any) -> None:
    """Asks, and closes the connection as soon as `seen`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(machine.socket))
        sock.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n")
        wait_for(f"{method} to be under way", seen)


def _fds(pid: int) -> list[str]:
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}").split(":")[0])
    return sorted(found)


def _open(machine: Machine) -> dict[str, list[str]]:
    return {"agent": _fds(machine.agent_pid), "keeper": _fds(machine.keeper_pid)}


def _kept(machine: Machine) -> dict[str, int]:
    """What agent and keeper hold, by kind."""
    kept = {f"{who} fds": len(fds) for who, fds in _open(machine).items()}
    runtime = Path(str(machine.call("hello")["runtime_dir"]))
    for folder in ("pids", "held", "out", "n", "l", "orders"):
        kept[folder] = len(list((runtime / folder).iterdir()))
    kept["incoming"] = len(list((machine.state / "incoming").iterdir()))
    kept["run"] = len(list((runtime / "run" / "shop").glob("*/*")))
    return kept


def test_nothing_piles_up(project: Project, machine: Machine) -> None:
    """Deploys, good and bad, restarts, commands, clients that go away: as much is held after as before."""
    before = (project.folder / "midstream.toml").read_text()
    project.deployed()

    def round_of_everything(number: int) -> None:
        project.commit(f"good {number}")
        project.deployed()
        project.commit("bad", config=before + '[[build]]\nrun = ["false"]\n')
        assert project.deploy().code == 1
        project.commit("worse", config=before, misbehave="exit 3")
        assert project.deploy().code == 1
        project.commit("mended", misbehave="")
        machine.call("restart", app="shop")
        assert machine.call("run", app="shop", argv=["true"])["ok"]
        gate = machine.root / f"gate-{number}"
        _hang_up_after(machine, "run", gate.exists, app="shop", argv=["sh", "-c", f"touch {gate}; sleep 3600"])
        _hang_up_after(machine, "logs", lambda: True, app="shop", follow=True)
        _hang_up_after(machine, "events", lambda: True, follow=True)
        wait_for("one generation", machine.settled)

    round_of_everything(0)
    wait_for("the sleep of the first round to be gone", lambda: not _sleepers(machine))
    # What comes and goes is there in some looks and not in others.
    looks = [_kept(machine) for _ in range(15)]
    first = {kind: statistics.median_low(look[kind] for look in looks) for kind in looks[0]}
    before_open = _open(machine)
    # An end that is still on its way is no leak: the same number, sooner or later.
    last: dict[str, int] = {}

    def steady() -> bool:
        last.clear()
        last.update(_kept(machine))
        return all(last[kind] <= first[kind] for kind in first)

    for number in (1, 2):
        round_of_everything(number)
    wait_for("the sleeps to be gone", lambda: not _sleepers(machine))
    try:
        wait_for("no more to be held than before", steady)
    except AssertionError:
        grown = {kind: (first[kind], last[kind]) for kind in first if last[kind] > first[kind]}
        pytest.fail(f"held before and after two rounds: {grown}; open before {before_open}, now {_open(machine)}")


def _sleepers(machine: Machine) -> list[int]:
    return [pid for pid in machine.left_over() if b"sleep\x003600" in _cmdline(pid)]


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_stop_and_start_are_done_although_the_client_hung_up(project: Project, machine: Machine) -> None:
    project.deployed()
    for _ in range(5):
        _hang_up_after(machine, "stop", lambda: machine.service()["want"] == "down", app="shop")
        wait_for("it to be stopped", lambda: machine.service()["state"] == "stopped")
        _hang_up_after(machine, "start", lambda: machine.service()["want"] == "up", app="shop")
        wait_for("it to run", machine.settled)
        for method, want in (("stop", "down"), ("start", "up")):  # at once, however far it got
            _hang_up_after(machine, method, lambda: True, app="shop")
            del want
        if machine.service()["want"] == "down":
            machine.call("start", app="shop")
        wait_for("it to run", machine.settled)


def test_restart_goes_on_although_the_client_hung_up(project: Project, machine: Machine) -> None:
    project.deployed()
    old = machine.pids()
    begun = lambda: machine.app()["deploy"] is not None or machine.pids() != old  # noqa: E731
    _hang_up_after(machine, "restart", begun, app="shop")
    wait_for("new processes", lambda: machine.settled() and machine.pids() != old)


@pytest.mark.parametrize("method", ["deploy.open", "deploy.update", "deploy.publish", "deploy.commit"])
def test_deployer_that_hangs_up_in_each_call(project: Project, machine: Machine, method: str) -> None:
    """The lease runs out: before the decision it is put back, after it carried through; nothing stays locked."""
    good = project.deployed()
    spec = json.loads((project.deploy_to / ".midstream" / "specs" / f"{good}.json").read_text())
    gate = machine.root / "gate"
    if method == "deploy.update":
        spec["build"] = [{"run": ["sh", "-c", f"touch {gate}; sleep 3600"]}]
    request = {
        "revision": project.git("rev-parse", "HEAD"),
        "tree": project.git("rev-parse", "HEAD^{tree}"),
        "revision_time": 1.0,
        "branch": "main",
        "release": "20990101000000",
    }
    if method == "deploy.open":
        _hang_up_after(machine, method, lambda: machine.app()["deploy"] is not None, deploy_id="x", spec=spec)
    else:
        client = connect(str(machine.socket))
        common = {"deploy_id": "x", "token": client.call("deploy.open", deploy_id="x", spec=spec)["token"]}
        calls = {"deploy.update": request | {"spec": spec}, "deploy.publish": {}, "deploy.commit": {}}
        for name, params in calls.items():
            if name == method:
                seen: Callable[[], bool] = gate.exists if name == "deploy.update" else lambda: True
                client.close()
                _hang_up_after(machine, name, seen, **common, **params)
                break
            client.call(name, **common, **params)
    wait_for("the lock to be free", lambda: machine.app()["deploy"] is None)
    wait_for("one generation", machine.settled)
    assert machine.app()["release"] in (good, "20990101000000")
    if method != "deploy.commit":
        assert machine.app()["release"] == good
    project.commit("next")
    project.deployed()


def test_upload_that_is_never_used_is_dropped(project: Project, machine: Machine) -> None:
    good = project.deployed()
    spec = json.loads((project.deploy_to / ".midstream" / "specs" / f"{good}.json").read_text())
    with connect(str(machine.socket)) as client:
        token = client.call("deploy.open", deploy_id="x", spec=spec)["token"]
        client.call("deploy.upload", deploy_id="x", token=token, offset=0, data="AAAA" * 1000)
        assert list((machine.state / "incoming").iterdir())
    wait_for("the lock to be free", lambda: machine.app()["deploy"] is None)
    wait_for("it to be dropped", lambda: not list((machine.state / "incoming").iterdir()))
