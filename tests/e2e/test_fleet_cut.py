"""A pulled cable in the middle of a deploy: packets are lost, nothing is refused, sshd notices nothing for hours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fleet import LEASE_S, Fleet
from machine import wait_for
from test_fleet_deploy import block, blocking_build, is_building, on_one_release, unblock

from midstream.core.lease import Lease

pytestmark = pytest.mark.slow
FleetOf = Callable[..., Fleet]


def reachable(fleet: Fleet, name: str) -> bool:
    return fleet.ssh(name, "true").code == 0


def test_a_short_cut_is_not_even_noticed(fleet_of: FleetOf) -> None:
    fleet = fleet_of(2)
    project = fleet.project()
    project.deployed()
    blocking_build(project)
    block(fleet, "web2")
    deployer = project.machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the build on web2", lambda: is_building(fleet, "web2"))
    fleet.cut("web2")
    unblock(fleet, "web2")
    wait_for("the build on web2 to end while nobody can be told", lambda: not is_building(fleet, "web2"))
    fleet.mend("web2")
    out, _ = deployer.communicate(timeout=120)
    assert deployer.returncode == 0, out
    assert on_one_release(fleet, fleet.host("web1").release())


@pytest.mark.parametrize("phase", ["update", "publish"])
def test_a_host_cut_off_for_good_goes_back_by_itself_and_so_do_the_others(fleet_of: FleetOf, phase: str) -> None:
    """Both ends notice: the deployer by ssh's keep-alive, the host by the deployer's silence; then its lease runs out."""
    fleet = fleet_of(2)
    project = fleet.project()
    first = project.deployed()
    if phase == "update":
        blocking_build(project)
        block(fleet, "web2")
    else:
        project.commit("soaks", config=project.config(project.web('soak = "10m"')))
    deployer = project.machine.spawn_cli("deploy", cwd=project.folder)

    def soaks() -> bool:
        states = [g["state"] for s in fleet.host("web2").app()["services"] for g in s["generations"]]
        return "soaking" in states

    wait_for(f"web2 in the middle of {phase}", soaks if phase == "publish" else lambda: is_building(fleet, "web2"))
    fleet.cut("web2")
    out, _ = deployer.communicate(timeout=200)
    assert deployer.returncode in (1, 5), out
    assert "web2" in out
    assert "Timeout, server" in out, "ssh's own words for the loss"
    assert fleet.host("web1").release() == first
    wait_for("web1 to settle", fleet.host("web1").settled)
    wait_for("web2 to go back by itself", lambda: fleet.host("web2").app()["deploy"] is None, 120)
    fleet.mend("web2")
    wait_for("the way to web2", lambda: reachable(fleet, "web2"))
    if phase == "update":
        unblock(fleet, "web2")
    assert on_one_release(fleet, first)
    assert project.served() == dict.fromkeys(fleet.hosts, first)
    if phase == "publish":
        project.commit("soaks no more", config=project.config())
    second = project.deployed()
    assert project.served() == dict.fromkeys(fleet.hosts, second)


def test_a_long_silence_of_the_app_is_none_of_the_connection(fleet_of: FleetOf) -> None:
    """A build that prints nothing for longer than the far end waits for a word of the deployer."""
    silence_s = Lease(float(LEASE_S)).silence_s
    fleet = fleet_of(1)
    project = fleet.project()
    project.commit("slow", config=project.config(tail=f'[[build]]\nrun = "sleep {silence_s + 2}"\n'))
    result = project.deploy()
    assert result.code == 0, result.text
    assert "lost the agent" not in result.text
