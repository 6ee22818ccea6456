"""Faults of the network, of hosts and of disks on one of two hosts, in each phase of a deploy; and what is said of them.

The deployer stops itself at a named point, the fault happens, and it goes on: nothing here depends on timing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash_points import ALL, chosen
from fleet import HERE, Fleet, kill_session, new_fleet, why_no_fleet
from fleet_under_fire import Fire, fire, frozen, is_stopped, no_failures, under_fleet_load
from machine import Result, wait_for
from test_fleet_deploy import BLOCK, block, unblock

from midstream.errors import EXIT_ATTENTION, EXIT_DRIFT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
FleetOf = Callable[..., Fleet]
PHASES = {
    "check": "sent deploy.open to web2",
    "hook": "sent deploy.command to web2",
    "update": "sent deploy.update to web2",
    "publish": "sent deploy.publish to web2",
    "commit": "sent deploy.commit to web2",
    "finish": "sent deploy.finish to web2",
}
DISKS = [(phase, folder) for phase in ("update", "publish", "commit") for folder in ("/srv/shop", "/var/lib/midstream")]


@pytest.fixture(scope="module")
def two() -> Iterator[Fire]:
    if reason := why_no_fleet():
        pytest.skip(reason)
    with fire() as started:
        yield started


@pytest.fixture(autouse=True)
def agents_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails between kill and start must not take those after it along."""
    yield
    on = request.node.funcargs.get("two")
    for host in on.hosts if on else ():
        if not host.answers():
            host.start_agent()


def told_well(result: Result, *words: str) -> None:
    """An error says what failed, where, what is serving now and what to do."""
    assert "Traceback" not in result.text, result.text
    for word in ("serving", "do:", *words):
        assert word in result.err, f"{word!r} is not in:\n{result.err}"


def reachable(on: Fire, name: str) -> bool:
    return on.fleet.ssh(name, "true").code == 0


def in_flight(on: Fire, name: str) -> bool:
    """Whether this side has sent something to a host that was not acknowledged."""
    sockets = on.fleet.switch.on_the_network("ss", "-tinH", "dst", on.fleet.host(name).address)
    return "unacked:" in subprocess.run(sockets, capture_output=True, text=True, check=True).stdout


def put_right(on: Fire, where: str) -> None:
    """After a deploy that ended with 5 or 1: what the message says, or the next deploy."""
    if len(set(on.releases())) > 1:
        told = on.project.cli("status", "--check")
        assert told.code == EXIT_DRIFT and "NOT ON ONE RELEASE" in told.text, told.text
        resumed = on.project.cli("resume")
        assert resumed.code == 0, f"{where}\n{resumed.text}"
    on.check_one_release(where)
    on.project.commit("after the fault")
    assert on.deploy().code == 0, where
    on.check_one_release(where)


@pytest.mark.parametrize("phase", chosen(list(PHASES), 3))
def test_a_cut_mended_before_the_lease_costs_nothing(two: Fire, phase: str) -> None:
    with frozen(two, PHASES[phase]) as deployer:
        two.fleet.cut("web2")
        deployer.thaw()
        wait_for("something to be lost on the way to web2", lambda: in_flight(two, "web2"))
        two.fleet.mend("web2")
        result = deployer.end()
    assert result.code == 0, result.text
    assert two.check_one_release(phase) != two.before


@pytest.mark.parametrize("phase", PHASES if ALL else ["commit"])
def test_a_cut_mended_after_the_lease(two: Fire, phase: str) -> None:
    """Before the decision all go back; after it the host that could not be told is undecided, and `resume` takes it along."""
    with frozen(two, PHASES[phase].replace("sent", "before").replace(" to ", " on ")) as deployer:
        two.fleet.cut("web2")
        result = deployer.go_on()
    wait_for("the leases to run out", two.leases_are_over, 120)
    two.fleet.mend("web2")
    wait_for("the way to web2", lambda: reachable(two, "web2"))
    if phase in ("commit", "finish"):
        assert result.code == EXIT_ATTENTION, result.text
    else:
        assert result.code in (1, EXIT_ATTENTION), result.text
        assert two.releases() == [two.before, two.before]
    told_well(result, "web2")
    put_right(two, phase)


@pytest.mark.parametrize("phase", chosen(list(PHASES), 2))
def test_sshd_killed_and_started_again(two: Fire, phase: str) -> None:
    host = two.fleet.host("web2")
    with frozen(two, PHASES[phase]) as deployer:
        host.kill_sshd()
        host.start_sshd()
        result = deployer.go_on()
    assert result.code == 0, result.text
    assert two.check_one_release(phase) != two.before


def test_sshd_gone_for_good_in_publish(two: Fire) -> None:
    """The other host goes back with it; nothing stays locked; the log-in comes back and so does the deploy."""
    host = two.fleet.host("web2")
    with under_fleet_load(two.fleet) as load:
        with frozen(two, "before deploy.publish on web2") as deployer:
            host.kill_sshd()
            result = deployer.go_on()
        assert result.code in (1, EXIT_ATTENTION), result.text
        told_well(result, "web2", "connection was refused")
        wait_for("the leases to run out", two.leases_are_over, 120)
        assert two.releases() == [two.before, two.before]
        host.start_sshd()
        put_right(two, "sshd gone")
        tallies = load()
    no_failures(tallies)


# ---------------------------------------------------------------------- the decision


@pytest.mark.parametrize("then", ["resume", "deploy", "abort"] if ALL else ["deploy", "abort"])
def test_a_host_that_is_down_at_the_decision_is_undecided_and_converges(two: Fire, then: str) -> None:
    host = two.fleet.host("web2")
    with frozen(two, "before deploy.commit on web2") as deployer:
        host.kill_midstream()
        result = deployer.go_on()
    assert result.code == EXIT_ATTENTION, result.text
    told_well(result, "web2", "midstream resume")
    status = two.project.cli("status", "--check")
    assert status.code == 1 and "web2: NOT REACHED" in status.out, status.text
    early = two.project.cli("resume")
    assert early.code != 0, early.text
    told_well(early, "web2", "cannot be reached")
    host.start_agent()
    if then == "resume":
        done = two.project.cli("resume")
    elif then == "deploy":
        two.project.commit("the next")
        done = two.project.deploy("--wait")
    else:
        aborted = two.project.cli("abort")
        assert aborted.code == EXIT_ATTENTION, aborted.text
        # Once its lease is over it has put its own part back.
        assert "web1 has committed its release, web2 not yet" in aborted.text or "different releases" in aborted.text
        told_well(aborted, "web1", "web2", "midstream resume")
        done = two.project.cli("resume")
    assert done.code == 0, done.text
    assert two.check_one_release(then) != two.before


def test_a_candidate_that_dies_between_its_proof_and_its_hosts_own_commit_is_made_anew(two: Fire) -> None:
    """web1 has decided by then. What `resume` would do is done by the same command."""
    web2 = two.fleet.host("web2")

    def candidates() -> list[int]:
        generations = [row for service in web2.app()["services"] for row in service["generations"]]
        proven = [row for row in generations if row["state"] in ("proven", "soaking")]
        return [item["pid"] for row in proven for item in row["instances"] if item["pid"]]

    with frozen(two, "before deploy.commit on web2") as deployer:
        killed = candidates()
        assert killed
        web2.box.run("kill", "-9", *map(str, killed))
        wait_for("web2 to see it", lambda: not candidates())
        result = deployer.go_on()
    assert result.code == 0, result.text
    assert "web2 did not take the decision; the others did: once more" in result.text
    assert two.check_one_release("made anew") != two.before


@pytest.mark.parametrize("point", ["before deploy.commit on web1", "sent deploy.commit to web1"])
def test_a_coordinator_that_is_down_at_the_decision(two: Fire, point: str) -> None:
    """Whether it was decided is not known, and not guessed: nobody else commits. Its agent is stopped before the call is
    sent, so that it cannot have answered."""
    host = two.fleet.host("web1")
    with frozen(two, "before deploy.commit on web1") as deployer:
        pids = host.stop_agent()
        if point.startswith("sent"):
            two.deployer_plan.write_text(f"stop {point}")
            deployer.thaw()
            wait_for("the deployer to have sent it", lambda: not two.deployer_plan.exists())
            wait_for("it to stop", lambda: is_stopped(deployer.process))
        host.kill_stopped(pids)
        result = deployer.go_on()
    assert result.code == EXIT_ATTENTION, result.text
    told_well(result, "web1", "undecided", "midstream resume")
    assert two.fleet.host("web2").release() == two.before
    host.start_agent()
    done = two.project.cli("resume")
    assert done.code == 0, done.text
    assert two.check_one_release(point) != two.before


def test_resume_from_elsewhere_and_by_somebody_else(two: Fire, tmp_path: Path) -> None:
    """Another folder is fine; another user has no record, is told where to go, and may abort."""
    with frozen(two, "before deploy.publish on web1") as deployer:
        kill_session(deployer.process)
    file = str(two.project.folder / "midstream.toml")
    stranger = two.fleet.cli("resume", "-c", file, cwd=tmp_path, XDG_STATE_HOME=str(tmp_path))
    assert stranger.code == 2, stranger.text
    assert "the machine that deployed" in stranger.err and "midstream abort" in stranger.err
    resumed = two.fleet.cli("resume", "-c", file, cwd=tmp_path)
    assert resumed.code == 0, resumed.text
    assert two.check_one_release("elsewhere") != two.before
    with frozen(two, "before deploy.publish on web1") as deployer:
        kill_session(deployer.process)
    aborted = two.fleet.cli("abort", "-c", file, cwd=tmp_path, XDG_STATE_HOME=str(tmp_path))
    assert aborted.code == 0, aborted.text
    assert two.check_one_release("aborted by another") == two.before
    nothing = two.project.cli("resume")
    assert nothing.code == 0, nothing.text
    assert two.check_one_release("begun anew") != two.before


def test_pairs_of_deploys_at_once_over_ssh(two: Fire) -> None:
    """Exactly one wins, the other is told who has it; neither hangs. More pairs: `test_locks.py`, on local agents. The one
    that wins builds until the other has ended: else it might be over before that one has come."""
    config = (two.project.folder / "midstream.toml").read_text()
    two.project.write(config=f'{config}\n[[build]]\nrun = "{BLOCK}"\nshell = true\n')
    for turn in range(10 if ALL else 2):
        before = two.begin_round()
        block(two.fleet, "web2")
        pair = [two.fleet.spawn_cli("deploy", cwd=two.project.folder) for _ in range(2)]
        wait_for("one to be refused", lambda: any(process.poll() is not None for process in pair))  # noqa: B023
        unblock(two.fleet, "web2")
        ended = [(process.communicate(timeout=120)[0], process.returncode) for process in pair]
        assert sorted(code for _, code in ended) == [0, 4], ended
        loser = next(out for out, code in ended if code == 4)
        assert "has been running a deploy" in loser and "since" in loser and "--wait" in loser
        assert two.check_one_release(f"pair {turn}") != before
    two.project.write(config=config)


# ---------------------------------------------------------------------- disks, clocks, git


@pytest.fixture(scope="module")
def small() -> Iterator[Fire]:
    """web2 with small file systems of its own for the app and for the agent's state."""
    if reason := why_no_fleet():
        pytest.skip(reason)
    with fire({"/srv/shop": "24m", "/var/lib/midstream": "24m"}) as started:
        yield started


@pytest.mark.parametrize(("phase", "folder"), chosen(DISKS, 3))
def test_a_full_disk_on_one_host(small: Fire, phase: str, folder: str) -> None:
    """Whatever it stops: both hosts end on one release or the exit code is 5, nothing is locked, nobody waits in vain."""
    box = small.fleet.host("web2").box
    with under_fleet_load(small.fleet) as load:
        with frozen(small, f"before deploy.{phase} on web2") as deployer:
            box.sh(f"dd if=/dev/zero of={folder}/ballast bs=4k 2>/dev/null || true; df {folder} | tail -1")
            result = deployer.go_on()
        releases = small.releases()
        box.sh(f"rm -f {folder}/ballast")
        if result.code == 0:
            assert phase != "update", "a release was made on a full disk"
            assert small.before not in releases
        elif result.code == 1:
            assert releases == [small.before, small.before], result.text
            told_well(result, "web2")
        else:
            assert result.code == EXIT_ATTENTION, result.text
            told_well(result, "web2")
        wait_for("the leases to run out", small.leases_are_over)
        put_right(small, f"{folder} full in {phase}")
        tallies = load()
    no_failures(tallies)


def test_a_host_whose_newest_release_lies_in_the_future(two: Fire) -> None:
    """Made by a clock that was ahead: the next id is later than that, on all hosts, and a rollback goes where it should."""
    host = two.fleet.host("web2")
    year = int(two.releases()[0][:4])
    ahead, absurd = f"{year}1231235958", f"{year + 5}0101000000"
    before = two.releases()[0]
    host.box.sh(f"mkdir /srv/shop/releases/{ahead} /srv/shop/releases/{absurd}", user="deploy")
    two.begin_round()
    assert two.deploy().code == 0
    after = two.check_one_release("a future release")
    assert ahead < after < absurd, "later than what is there; a mistake of years is not followed"
    two.project.commit("next")
    assert two.deploy().code == 0
    assert two.check_one_release("after the future") > after
    assert two.project.cli("rollback").code == 0
    two.before = ""
    assert two.check_one_release("back") == after
    host.box.sh(f"rm -rf /srv/shop/releases/{absurd}")
    assert before < after


def test_the_git_server_is_gone_at_rollback(two: Fire, tmp_path: Path) -> None:
    """A real git server that all hosts fetch from; when it is gone a deploy says so, and a rollback needs it not."""
    bare = tmp_path / "git" / "shop.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(two.project.folder), str(bare)], check=True)
    daemon = subprocess.Popen(
        two.fleet.switch.on_the_network(
            *("git", "daemon", "--export-all", f"--base-path={bare.parent}", f"--listen={HERE}", "--verbose"),
            *("--reuseaddr", "--informative-errors", str(bare.parent)),
        ),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"},
    )
    config = (two.project.folder / "midstream.toml").read_text()
    try:
        assert daemon.stderr is not None
        wait_for("git daemon", lambda: "Ready" in daemon.stderr.readline())  # type: ignore[union-attr]
        fetch = f'repository = "git://{HERE}/shop.git"\nsource = "fetch"\nbranch = "main"\n'
        two.project.commit("fetch", config=fetch + config)
        seen = []
        for _ in range(2):
            two.begin_round()
            two.project.git("push", "-q", str(bare), "main")
            fetched = two.deploy()
            assert fetched.code == 0, fetched.text
            seen.append(two.check_one_release("fetched"))
    finally:
        for child in Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split():
            os.kill(int(child), 9)
        daemon.kill()
        daemon.wait()
        daemon.stderr.close()
    served = two.releases()
    refused = two.deploy()
    assert refused.code in (1, 2), refused.text
    assert "shop.git" in refused.err and "do:" in refused.err, refused.err
    assert two.releases() == served
    back = two.project.cli("rollback")
    assert back.code == 0, back.text
    two.before = ""
    assert two.check_one_release("back") == seen[0]
    two.project.commit("as before", config=config)


def test_the_repository_is_gone_at_rollback(fleet_of: FleetOf) -> None:
    fleet = fleet_of(2)
    project = fleet.project()
    bare = fleet.root / "shop.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(project.folder), str(bare)], check=True)
    project.commit("with a repository", config=f'repository = "{bare}"\n' + project.config())
    project.git("push", "-q", str(bare), "main")
    first = project.deployed()
    project.commit("second")
    project.git("push", "-q", str(bare), "main")
    assert project.deployed() != first
    bare.rename(fleet.root / "away.git")
    refused = project.deploy()
    assert refused.code == 2, refused.text
    assert str(bare) in refused.err and "do:" in refused.err
    back = project.cli("rollback")
    assert back.code == 0, back.text
    assert {host.release() for host in fleet.hosts.values()} == {first}


def test_a_first_deploy_decided_on_one_host_only() -> None:
    """web2 has nothing to go back to: `status` and `abort` tell, `resume` brings it along."""
    if reason := why_no_fleet():
        pytest.skip(reason)
    with new_fleet(2) as fleet:
        on = Fire(fleet, fleet.project())
        on.deployer_plan.write_text("kill before deploy.commit on web2")
        assert on.deploy().code == -9
        wait_for("the leases to run out", lambda: not any(app["deploy"] for app in apps_of(fleet)))
        told = on.project.cli("status", "--check")
        assert told.code == EXIT_DRIFT, told.text
        assert re.search(r"web2: .*not deployed here", told.text), told.text
        aborted = on.project.cli("abort")
        assert aborted.code == EXIT_ATTENTION, aborted.text
        resumed = on.project.cli("resume")
        assert resumed.code == 0, resumed.text
        assert len(set(on.releases())) == 1
        assert json.loads(on.project.cli("status", "--json").out.splitlines()[1])["apps"]


def apps_of(fleet: Fleet) -> list[dict[str, object]]:
    return [dict(app) for host in fleet.hosts.values() for app in host.status()["apps"]]
