"""Deploys over ssh to several hosts: all end on one release, or all go back; who is left out is told."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fleet import Fleet, FleetProject, kill_session
from machine import wait_for

from midstream.core.lease import USUAL_S
from midstream.errors import EXIT_ATTENTION, EXIT_DRIFT, EXIT_INTERRUPTED

FleetOf = Callable[..., Fleet]
BLOCK = "test ! -e /srv/shop/block || cat /srv/shop/block > /dev/null"


def blocking_build(project: FleetProject) -> None:
    """A build that waits on the hosts where `/srv/shop/block` is (a FIFO, so that it waits for its opening)."""
    build = f'[[build]]\nrun = "{BLOCK}"\nshell = true\n'
    project.commit("a build", config=project.config(tail=build))


def block(fleet: Fleet, name: str) -> None:
    fleet.host(name).box.run("mkfifo", "/srv/shop/block", user="deploy")


def unblock(fleet: Fleet, name: str) -> None:
    """Ends a build that waits, and lets later ones pass."""
    host = fleet.host(name)
    host.box.sh(
        "rm -f /srv/shop/unblocked; mv /srv/shop/block /srv/shop/unblocked; : <> /srv/shop/unblocked", user="deploy"
    )


def is_building(fleet: Fleet, name: str) -> bool:
    deploy = fleet.host(name).app()["deploy"]
    return bool(deploy) and bool(fleet.host(name).box.sh("pgrep -f 'cat /srv/shop/[b]lock' || true").strip())


def on_one_release(fleet: Fleet, release: str) -> bool:
    """All committed, `current`, served; nothing locked or going on. Old processes may take a moment to drain."""
    wait_for("all to settle", lambda: all(host.settled() for host in fleet.hosts.values()))
    return all(
        host.release() == release and host.current() == release and not host.app()["lock"]
        for host in fleet.hosts.values()
    )


def test_three_hosts_take_one_release_and_go_back_to_the_one_before(fleet_of: FleetOf) -> None:
    fleet = fleet_of(3)
    project = fleet.project()
    first = project.deployed()
    assert project.served() == dict.fromkeys(fleet.hosts, first)
    project.commit("second")
    second = project.deployed()
    assert second > first
    assert project.served() == dict.fromkeys(fleet.hosts, second)
    back = project.cli("rollback")
    assert back.code == 0, back.text
    assert on_one_release(fleet, first)
    assert project.served() == dict.fromkeys(fleet.hosts, first)
    assert project.cli("status", "--check").code == 0


def test_commands_speak_of_all_hosts_or_of_those_that_are_meant(fleet_of: FleetOf) -> None:
    """Each with real agents, by --hosts, --roles and --without; services that a host has not are not asked for there."""
    fleet = fleet_of(3)
    project = fleet.project(web1=["web"], web2=["web"], web3=["batch"])
    jobs = '[services.jobs]\ncommand = "/bin/sleep 1000"\nroles = ["batch"]\nready = "alive"\nmin_uptime = "0s"\n'
    project.commit("jobs", config=project.config(project.web('roles = ["web"]') + jobs))
    release = project.deploy()
    assert release.code == 0, release.text
    rows = [json.loads(line) for line in project.cli("status", "--json").out.splitlines()]
    assert [row["address"] for row in rows] == ["web1", "web2", "web3"]
    assert [row["host"] for row in rows] == ["web1", "web2", "web3"], "the hosts' own names"
    services = {row["address"]: [service["service"] for service in row["apps"][0]["services"]] for row in rows}
    assert services == {"web1": ["web"], "web2": ["web"], "web3": ["jobs"]}

    def hosts_in(*args: str) -> list[str]:
        result = project.cli(*args)
        assert result.code == 0, result.text
        return sorted(name for name in fleet.hosts if name in result.out)

    assert hosts_in("status", "--roles", "batch") == ["web3"]
    assert hosts_in("restart", "web") == ["web1", "web2"]
    assert hosts_in("restart", "all", "--without", "web1") == ["web2", "web3"]
    assert hosts_in("logs", "web", "--hosts", "web2") == ["web2"]
    assert hosts_in("why", "jobs") == ["web3"]
    assert hosts_in("releases", "--hosts", "web1,web3") == ["web1", "web3"]
    assert hosts_in("exec", "--roles", "web", "--", "hostname") == ["web1", "web2"]
    assert hosts_in("exec", "production", "--", "hostname") == ["web1", "web2", "web3"]
    assert hosts_in("hold", "web") == ["web1", "web2"]
    assert hosts_in("unhold", "web") == ["web1", "web2"]
    unknown = project.cli("status", "--hosts", "web7")
    assert unknown.code == 2
    assert "choose from web1, web2, web3" in unknown.err
    nobody = project.cli("restart", "mailer")
    assert nobody.code == 2
    assert "no host has a service called mailer" in nobody.err
    lock = project.cli("lock", "--reason", "maintenance")
    assert lock.code == 0, lock.text
    assert project.deploy().code == 4
    unlocked = project.cli("unlock")
    assert (unlocked.code, unlocked.out.count("shop is unlocked on web")) == (0, 3)
    assert project.deploy().code == 0


def test_a_host_that_fails_puts_back_the_others(fleet_of: FleetOf) -> None:
    fleet = fleet_of(2)
    project = fleet.project()
    first = project.deployed()
    server = (project.folder / "server.py").read_text()
    guard = "import os, sys\nif os.path.exists('/srv/shop/fail'):\n    sys.exit('this host is broken')\n"
    future = "from __future__ import annotations\n"
    assert future in server
    (project.folder / "server.py").write_text(server.replace(future, future + guard, 1))
    project.commit("fails where /srv/shop/fail is")
    fleet.host("web2").box.sh("touch /srv/shop/fail", user="deploy")
    failed = project.deploy()
    assert failed.code == 1, failed.text
    assert "web2" in failed.err
    assert "this host is broken" in failed.err
    assert on_one_release(fleet, first)
    assert project.served() == dict.fromkeys(fleet.hosts, first)
    fleet.host("web2").box.sh("rm /srv/shop/fail")
    second = project.deployed()
    assert project.served() == dict.fromkeys(fleet.hosts, second)


def test_a_host_that_is_not_there_is_named_left_out_and_taken_along_later(fleet_of: FleetOf) -> None:
    fleet = fleet_of(3)
    project = fleet.project()
    first = project.deployed()
    project.commit("second")
    fleet.host("web3").kill_sshd()

    refused = project.deploy()
    assert refused.code == 1, refused.text
    assert "1 of 3 hosts cannot be reached: web3" in refused.err
    assert "--without web3" in refused.err
    assert on_one_release(fleet, first), "nothing was begun on the others"

    status = project.cli("status")
    assert status.code == 1, "a host that cannot be asked is told by the exit code"
    assert "web3: NOT REACHED" in status.out
    assert status.out.count("web/0") == 2, "and hides no other"
    plan = project.cli("plan")
    assert plan.code == 1, "a deploy would be refused"
    assert "web3: NOT REACHED" in plan.out and f"web2: release {first}, " in plan.out and "deploy:check" in plan.out

    gone_past = project.deploy("--without", "web3")
    assert gone_past.code == 0, gone_past.text
    second = fleet.host("web1").release()
    assert [fleet.host(name).release() for name in fleet.hosts] == [second, second, first]
    told = project.cli("status", "--check")
    assert told.code == EXIT_DRIFT
    assert f"BEHIND: web3 was left out of release {second}" in told.text
    assert f"BEHIND: web3 was left out of release {second}" in project.cli("plan").out

    fleet.host("web3").start_sshd()
    told = project.cli("status", "--check")
    assert told.code == EXIT_DRIFT
    assert "NOT ON ONE RELEASE" in told.text
    assert "`midstream deploy production` ends that" in told.text
    assert "resume" not in told.text, "there is nothing to resume"
    third = project.deployed()
    assert project.served() == dict.fromkeys(fleet.hosts, third)
    assert project.cli("status", "--check").code == 0
    assert "BEHIND" not in project.cli("status").out


def test_sshd_killed_in_the_middle_is_connected_to_again(fleet_of: FleetOf) -> None:
    fleet = fleet_of(2, lease_s="15")
    project = fleet.project()
    project.deployed()
    blocking_build(project)
    block(fleet, "web2")
    deployer = project.machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the build on web2", lambda: is_building(fleet, "web2"))
    fleet.host("web2").kill_sshd()
    fleet.host("web2").start_sshd()
    unblock(fleet, "web2")
    out, _ = deployer.communicate(timeout=120)
    assert deployer.returncode == 0, out
    assert "lost the agent" in out
    assert on_one_release(fleet, fleet.host("web1").release())


def test_an_agent_killed_behind_ssh_goes_on(fleet_of: FleetOf) -> None:
    fleet = fleet_of(2, lease_s="15")
    project = fleet.project()
    project.deployed()
    blocking_build(project)
    block(fleet, "web2")
    deployer = project.machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the build on web2", lambda: is_building(fleet, "web2"))
    fleet.host("web2").kill_agent()
    unblock(fleet, "web2")
    out, _ = deployer.communicate(timeout=120)
    assert deployer.returncode == 0, out
    assert on_one_release(fleet, fleet.host("web1").release())


def test_an_interrupt_goes_back_over_the_connections_that_stand(fleet_of: FleetOf) -> None:
    """^C reaches the whole foreground group; ssh must not be in it."""
    fleet = fleet_of(2)
    project = fleet.project()
    first = project.deployed()
    blocking_build(project)
    block(fleet, "web2")
    deployer = project.machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the build on web2", lambda: is_building(fleet, "web2"))
    os.killpg(deployer.pid, signal.SIGINT)
    out, _ = deployer.communicate(timeout=120)
    assert deployer.returncode == EXIT_INTERRUPTED, out
    assert "lost the agent" not in out
    assert on_one_release(fleet, first)


def test_resume_after_the_deployer_was_killed(fleet_of: FleetOf) -> None:
    fleet = fleet_of(2)
    project = fleet.project()
    first = project.deployed()
    blocking_build(project)
    block(fleet, "web2")
    deployer = project.machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the build on web2", lambda: is_building(fleet, "web2"))
    kill_session(deployer)
    unblock(fleet, "web2")
    resumed = project.cli("resume")
    assert resumed.code == 0, resumed.text
    second = fleet.host("web1").release()
    assert second > first
    assert on_one_release(fleet, second)
    assert project.served() == dict.fromkeys(fleet.hosts, second)


def test_a_lease_of_the_usual_length_runs_out_over_ssh(fleet_of: FleetOf) -> None:
    """Nothing of a test's environment shortens it: 15 s after the deployer was lost, and not before, all go back."""
    fleet = fleet_of(1, lease_s="")
    project = fleet.project()
    first = project.deployed()
    project.commit("soaks", config=project.config(project.web('soak = "10m"')))
    deployer = project.machine.spawn_cli("deploy", cwd=project.folder)

    def states() -> list[str]:
        return [g["state"] for s in fleet.host("web1").app()["services"] for g in s["generations"]]

    wait_for("web1 in the middle of the handover", lambda: "soaking" in states())
    killed_s = time.monotonic()
    kill_session(deployer)
    wait_for("web1 to go back by itself", lambda: fleet.host("web1").app()["deploy"] is None, 120)
    assert time.monotonic() - killed_s >= USUAL_S - 1
    wait_for("the old release alone", lambda: on_one_release(fleet, first))
    assert project.served() == {"web1": first}


def test_a_resume_that_reaches_nobody_can_be_repeated(fleet_of: FleetOf) -> None:
    fleet = fleet_of(2)
    project = fleet.project()
    project.deployed()
    blocking_build(project)
    block(fleet, "web2")
    deployer = project.machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the build on web2", lambda: is_building(fleet, "web2"))
    kill_session(deployer)
    unblock(fleet, "web2")
    fleet.host("web2").kill_sshd()
    refused = project.cli("resume")
    assert refused.code == 1, refused.text
    assert "1 of 2 hosts cannot be reached: web2" in refused.err
    fleet.host("web2").start_sshd()
    resumed = project.cli("resume")
    assert resumed.code == 0, resumed.text
    assert on_one_release(fleet, fleet.host("web1").release())


def test_abort_after_the_deployer_was_killed(fleet_of: FleetOf) -> None:
    fleet = fleet_of(2)
    project = fleet.project()
    first = project.deployed()
    blocking_build(project)
    block(fleet, "web2")
    deployer = project.machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the build on web2", lambda: is_building(fleet, "web2"))
    kill_session(deployer)
    aborted = project.cli("abort")
    assert aborted.code == 0, aborted.text
    assert on_one_release(fleet, first)
    unblock(fleet, "web2")
    second = project.deployed()
    assert project.served() == dict.fromkeys(fleet.hosts, second)


@pytest.mark.parametrize("when", ["at once", "after the lease"])
def test_a_decided_deploy_is_not_put_back_on_the_hosts_that_lag(fleet_of: FleetOf, when: str, tmp_path: Path) -> None:
    """web1, the coordinator, has committed when the deployer is killed; web2 never heard of it. At once: abort refuses to
    put web2 back. When web2's lease has run out it went back by itself, and `status` tells. Both times resume brings web2
    along."""
    fleet = fleet_of(2)
    project = fleet.project(web1=["web"], web2=["batch"])
    jobs = '[services.jobs]\ncommand = "/bin/sleep 1000"\nroles = ["batch"]\nready = "alive"\nmin_uptime = "0s"\n'
    project.commit("jobs", config=project.config(project.web('roles = ["web"]') + jobs))
    first = project.deploy()
    assert first.code == 0, first.text
    before = fleet.host("web1").release()
    project.commit("second")
    plan = tmp_path / "crash"
    plan.write_text("kill after deploy.commit on web1")
    assert project.deploy(MIDSTREAM_CRASH_DEPLOYER=str(plan)).code == -signal.SIGKILL
    second = fleet.host("web1").release()
    assert fleet.host("web2").release() == before != second
    if when == "at once":
        aborted = project.cli("abort")
        assert aborted.code == EXIT_ATTENTION, aborted.text
        assert "web1 has committed its release, web2 not yet" in aborted.err
    else:
        wait_for("the leases to run out", lambda: all(not h.app()["deploy"] for h in fleet.hosts.values()))
        assert fleet.host("web2").release() == before
        told = project.cli("status", "--check")
        assert told.code == EXIT_DRIFT
        assert f"NOT ON ONE RELEASE: {before} on web2; {second} on web1" in told.text
        assert "`midstream resume production` carries the unfinished deploy to its end" in told.text
    resumed = project.cli("resume")
    assert resumed.code == 0, resumed.text
    assert [host.release() for host in fleet.hosts.values()] == [second, second]
    wait_for("all to settle", lambda: all(host.settled() and not host.app()["lock"] for host in fleet.hosts.values()))
