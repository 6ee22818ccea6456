"""`setup`, `agent install` over a real ssh: hosts that have sshd and python3 only, and all that can be in the way there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet import Fleet, FleetHost, kill_session, new_fleet, why_no_fleet
from machine import Result, wait_for
from netns import PYTHON
from setup_fleet import (
    PREFIX,
    Deployer,
    another_version,
    changed,
    installed,
    keeper_of,
    lines,
    parent_of,
    pids_of,
    pyz,
    running,
    start_runit,
)

from midstream.deploy.install.definitions import systemd_unit

__all__ = ["pyz"]
ROOT = ("--user", "root")


@pytest.fixture
def bare(fleet_of: Callable[..., Fleet], pyz: Path) -> Callable[[int], Deployer]:
    """`bare(2)`: a deployer and two hosts without anything of Midstream."""
    return lambda count: Deployer(fleet_of(count, agents=False), pyz)


@pytest.fixture(scope="module")
def empty(pyz: Path) -> Iterator[Deployer]:
    """One host for all tests that are refused: each leaves it as empty as it was."""
    if reason := why_no_fleet():
        pytest.skip(reason)
    with new_fleet(1, agents=False) as fleet:
        yield Deployer(fleet, pyz)


def refused(result: Result, code: int, *words: str) -> None:
    assert result.code == code, result.text
    for word in words:
        assert word in result.err, result.err
    assert "do:" in result.err
    assert "Traceback" not in result.text


def is_empty(host: FleetHost) -> bool:
    return not any(
        (host.root / path).exists() for path in (PREFIX, "run/midstream", "var/lib/midstream", "etc/midstream")
    )


# ---------------------------------------------------------------------- from nothing to a service


def test_from_empty_hosts_to_a_running_service(bare: Callable[[int], Deployer]) -> None:
    deployer = bare(2)
    fleet = deployer.fleet
    project = fleet.project()
    hosts = [fleet.host("web1"), fleet.host("web2")]
    for host in hosts:
        host.box.sh("rmdir /srv/shop")
    dry = deployer.cli("setup", *ROOT, "--dry-run", cwd=project.folder)
    assert dry.code == 0, dry.text
    assert "changes would be made" in dry.out
    assert all(is_empty(host) and not (host.root / "srv/shop").exists() for host in hosts), "a dry run changes nothing"

    first = deployer.cli("setup", *ROOT, cwd=project.folder)
    assert first.code == 0, first.text
    assert "web1" in first.out and "web2" in first.out
    assert "revision" in first.out, "it ends with what `check` says"
    deployed = deployer.cli("deploy", cwd=project.folder)
    assert deployed.code == 0, deployed.text
    assert project.served() == {host.name: host.release() for host in hosts}
    for host in hosts:
        assert host.box.sh("stat -c %U /srv/shop").strip() == "deploy"
        assert host.box.sh("readlink /usr/local/bin/midstream").strip() == "/opt/midstream/bin/midstream"
        assert host.call("hello")["uid"] == 0

    keepers, pids = [keeper_of(host) for host in hosts], [pids_of(host) for host in hosts]
    again = deployer.good("setup", *ROOT, "--json", cwd=project.folder)
    assert changed(again) == [], "a second run changes nothing"
    assert [line["changed"] for line in again if line.get("type") == "result"] == [0, 0]
    assert ([keeper_of(host) for host in hosts], [pids_of(host) for host in hosts]) == (keepers, pids)
    assert "nothing was changed" in deployer.cli("setup", *ROOT, cwd=project.folder).out


def test_a_program_that_was_damaged_is_put_right_under_the_running_agent(bare: Callable[[int], Deployer]) -> None:
    deployer = bare(1)
    host = deployer.fleet.host("web1")
    deployer.good("agent", "install", "web1", *ROOT)
    program = host.root / PREFIX / installed(host)[0] / "midstream.pyz"
    whole = program.read_bytes()
    program.write_bytes(whole[:-1000])
    assert any("program" in line for line in changed(deployer.good("agent", "install", "web1", *ROOT, "--json")))
    assert program.read_bytes() == whole


def test_runit_starts_it_again_and_ends_it(bare: Callable[[int], Deployer]) -> None:
    """Real runit. The keeper's death is answered by the agent first; runit's own process then stands by, and is there when
    keeper and agent die together; `sv down` ends all."""
    if shutil.which("runsvdir") is None:
        pytest.skip("needs runit")
    deployer = bare(1)
    fleet, host = deployer.fleet, deployer.fleet.host("web1")
    runsvdir = start_runit(host)
    project = fleet.project()
    first = deployer.good("setup", *ROOT, "--json", cwd=project.folder)
    assert [line["service"] for line in first if line.get("type") == "result"] == ["runit"]
    assert parent_of(host, keeper_of(host)) == "runsv"
    deployer.good("deploy", cwd=project.folder)
    served, pids = project.served(), pids_of(host)
    assert changed(deployer.good("setup", *ROOT, "--json", cwd=project.folder)) == []

    host.box.run("kill", "-9", str(keeper_of(host)))
    wait_for("the next keeper", lambda: host.answers() and host.status()["keeper"]["attached"])
    wait_for("runit's process to stand by or to be the keeper", lambda: _runs_under_runsv(host))
    assert (project.served(), pids_of(host)) == (served, pids), "no service noticed"

    status = host.status()
    host.box.run("kill", "-9", str(status["agent"]["pid"]), str(status["keeper"]["pid"]))
    wait_for("both to be back", lambda: host.answers() and host.status()["keeper"]["attached"])
    assert (project.served(), pids_of(host)) == (served, pids)
    assert changed(deployer.good("setup", *ROOT, "--json", cwd=project.folder)) == []

    wait_for("runit's process", lambda: _runs_under_runsv(host))
    host.box.run("sv", "-w", "60", "down", "/etc/service/midstream")
    wait_for("the end of everything", lambda: not running(host, "keeper-|server.py"))
    host.box.run("sv", "up", "/etc/service/midstream")
    wait_for("the service", lambda: host.answers() and host.settled() and project.served() == served)
    runsvdir.terminate()


def _runs_under_runsv(host: FleetHost) -> bool:
    """As the keeper, or standing by."""
    return host.box.sh("sv status /etc/service/midstream").startswith("run:")


def test_an_agent_that_was_started_by_hand_is_taken_over_with_its_services(
    bare: Callable[[int], Deployer], pyz: Path
) -> None:
    """It is replaced by the installed version in place; runit's process stands by until that keeper ends."""
    if shutil.which("runsvdir") is None:
        pytest.skip("needs runit")
    deployer = bare(1)
    fleet, host = deployer.fleet, deployer.fleet.host("web1")
    shutil.copy(pyz, host.root / "root/midstream.pyz")
    by_hand = host.box.popen(PYTHON, "-I", "/root/midstream.pyz", "agent", "run")
    wait_for("the agent", host.answers)
    project = fleet.project()
    script = f'#!/bin/sh\nexec {PYTHON} -I /root/midstream.pyz "$@"\n'
    host.box.run("sh", "-ec", "cat > /usr/local/bin/midstream; chmod 755 /usr/local/bin/midstream /root", text=script)
    deployer.good("deploy", cwd=project.folder)
    pids, keeper = pids_of(host), keeper_of(host)
    start_runit(host)

    done = deployer.good("agent", "install", "web1", *ROOT, "--json")
    assert any(line.get("state") == "note" and "somebody else's" in line["text"] for line in done), "the link stays"
    assert (pids_of(host), keeper_of(host)) == (pids, keeper)
    argv = (Path(f"/proc/{host.box.pid}/root/proc/{host.status()['agent']['pid']}/cmdline")).read_text()
    assert f"/{PREFIX}/" in argv
    wait_for("runit's process", lambda: _runs_under_runsv(host))
    host.box.run("kill", "-9", str(host.status()["agent"]["pid"]), str(keeper))
    by_hand.wait(30.0)
    wait_for("runit's keeper", lambda: host.answers() and parent_of(host, keeper_of(host)) == "runsv")
    assert pids_of(host) == pids


def test_rootless_for_a_user_alone(bare: Callable[[int], Deployer]) -> None:
    deployer = bare(1)
    fleet, host = deployer.fleet, deployer.fleet.host("web1")
    project = fleet.project()
    project.write(config=project.config().replace("/srv/shop", "/home/deploy/shop"))
    project.commit("at home")
    first = deployer.cli("setup", "--rootless", cwd=project.folder)
    assert first.code == 0, first.text
    assert "rootless" in first.out and "crontab of deploy" in first.out
    assert is_empty(host), "nothing outside of the user's home"
    deployed = deployer.cli("deploy", cwd=project.folder)
    assert deployed.code == 0, deployed.text
    assert fleet.get("web1")[0] == 200
    assert host.box.sh("stat -c %U $(readlink -f /home/deploy/shop/current)").strip() == "deploy"
    again = deployer.good("setup", "--json", cwd=project.folder)
    assert changed(again) == [], "without the option, too: what he has stays his"
    assert [line["rootless"] for line in again if line.get("type") == "result"] == [True]


def test_by_sudo_for_a_user_who_may(bare: Callable[[int], Deployer]) -> None:
    if shutil.which("sudo") is None:
        pytest.skip("needs sudo")
    deployer = bare(1)
    host = deployer.fleet.host("web1")
    host.box.sh("echo 'deploy ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/deploy; chmod 440 /etc/sudoers.d/deploy")
    deployer.good("agent", "install", "web1", "--allow", "deploy:shop:/srv/new/shop:port=80")
    assert host.call("hello")["uid"] == 0
    assert host.box.sh("stat -c '%U %a' /srv/new /srv/new/shop").split() == ["root", "755", "deploy", "755"]
    assert "80" in (host.root / "etc/midstream/apps.d/shop.toml").read_text()
    environ = host.box.sh(f"tr '\\0' '\\n' < /proc/{keeper_of(host)}/environ")
    assert "SUDO" not in environ and "SSH" not in environ and "HOME=/root" in environ
    assert changed(deployer.good("agent", "install", "web1", "--allow", "deploy:shop:/srv/new/shop", "--json")) == []


# ---------------------------------------------------------------------- what is refused, and changes nothing


def test_a_user_without_sudo_is_told_what_to_do(empty: Deployer) -> None:
    host = empty.fleet.host("web1")
    refused(empty.cli("agent", "install", "other@web1"), 2, "not root", "--rootless", "--user root")
    refused(empty.cli("agent", "install", "root@web1", "--rootless"), 2, "--rootless is for other users")
    refused(empty.cli("agent", "upgrade", "other@web1", *ROOT), 2, "not installed")
    refused(empty.cli("agent", "install", "other@web1", "--rootless", "--allow", "other:x:/srv/x"), 2, "runs as root")
    assert is_empty(host)


def test_an_unknown_host_key_is_not_accepted(empty: Deployer) -> None:
    known = empty.fleet.known_hosts.read_text()
    empty.fleet.known_hosts.write_text("")
    try:
        refused(empty.cli("agent", "install", "web1", *ROOT), 1, "host key is not known")
    finally:
        empty.fleet.known_hosts.write_text(known)
    assert is_empty(empty.fleet.host("web1"))


def test_a_python_that_is_too_old_is_named(bare: Callable[[int], Deployer]) -> None:
    deployer = bare(1)
    host = deployer.fleet.host("web1")
    fake = '#!/bin/sh\\n[ "$1" = -V ] && echo Python 3.9.2\\nexit 1\\n'
    host.box.sh(f"printf '{fake}' > /opt/old && chmod 755 /opt/old && mount --bind /opt/old $(readlink -f {PYTHON})")
    refused(
        deployer.cli("agent", "install", "web1", *ROOT),
        1,
        "too old",
        f"{PYTHON} is Python 3.9.2",
        "apt-get install python3",
    )
    assert not (host.root / PREFIX).exists()


def test_folders_that_may_not_be_written(bare: Callable[[int], Deployer]) -> None:
    deployer = bare(1)
    host = deployer.fleet.host("web1")
    host.box.sh("mkdir -p /home/deploy/.local && chmod 500 /home/deploy/.local && chown deploy: /home/deploy/.local")
    refused(deployer.cli("agent", "install", "web1", "--rootless"), 1, "cannot be written", "Permission denied")
    host.box.sh("mkdir /srv/theirs && chown other: /srv/theirs && ln -s /etc /srv/theirs/link")
    result = deployer.cli("agent", "install", "web1", *ROOT, "--allow", "deploy:evil:/srv/theirs/link/evil")
    refused(result, 2, "cannot be made")
    assert not (host.root / "etc/evil").exists(), "root does not follow a user's link"


def test_a_user_that_the_host_lacks_stops_it_before_anything_is_changed(empty: Deployer) -> None:
    result = empty.cli("agent", "install", "web1", *ROOT, "--allow", "nobody-here:shop:/srv/shop2")
    refused(result, 2, "nobody-here")
    assert is_empty(empty.fleet.host("web1"))


def test_strangers_files_are_named_and_left(bare: Callable[[int], Deployer]) -> None:
    deployer = bare(1)
    host = deployer.fleet.host("web1")
    mine = host.root / PREFIX / "bin/midstream"
    mine.parent.mkdir(parents=True)
    mine.write_text("#!/bin/sh\necho mine\n")
    refused(deployer.cli("agent", "install", "web1", *ROOT), 2, "/opt/midstream/bin/midstream", "did not write")
    assert mine.read_text() == "#!/bin/sh\necho mine\n"
    assert installed(host) == []
    mine.unlink()
    host.box.sh("chown other /opt/midstream")
    refused(deployer.cli("agent", "install", "web1", *ROOT), 1, "others than root may change", "/opt/midstream")
    assert installed(host) == []


def test_what_an_operator_changed_in_a_definition_stays(bare: Callable[[int], Deployer]) -> None:
    if shutil.which("runsvdir") is None:
        pytest.skip("needs runit")
    deployer = bare(1)
    host = deployer.fleet.host("web1")
    start_runit(host)
    deployer.good("agent", "install", "web1", *ROOT)
    host.box.sh("sed -i 's/^exec 2>&1/exec 2>\\&1\\nulimit -c 0/' /etc/sv/midstream/run")
    again = deployer.good("agent", "install", "web1", *ROOT, "--json")
    assert any("changed by hand" in line.get("text", "") for line in again)
    assert changed(again) == []
    assert "ulimit" in host.box.sh("cat /etc/sv/midstream/run")
    host.box.sh("rm /etc/sv/midstream/run")
    assert len(changed(deployer.good("agent", "install", "web1", *ROOT, "--json"))) == 2, "written, and read by runit"


def test_without_lingering_a_rootless_agent_is_refused_loudly(bare: Callable[[int], Deployer]) -> None:
    """A host where logind runs, and does not do what `loginctl enable-linger` asks."""
    deployer = bare(1)
    host = deployer.fleet.host("web1")
    host.box.sh(
        "mkdir -p /run/systemd/system; printf '#!/bin/sh\\necho no bus >&2; exit 1\\n' > /usr/local/bin/loginctl"
    )
    host.box.sh("chmod 755 /usr/local/bin/loginctl")
    refused(
        deployer.cli("agent", "install", "web1", "--rootless"),
        1,
        "lingering is off",
        "loginctl enable-linger deploy",
        "no bus",
    )
    assert not host.box.sh("ls /home/deploy/.local/lib/midstream/*/midstream.pyz 2>/dev/null || true")


def test_a_full_disk_leaves_what_runs(bare: Callable[[int], Deployer], pyz: Path, tmp_path: Path) -> None:
    deployer = bare(1)
    host = deployer.fleet.host("web1")
    host.box.sh("mount -t tmpfs -o size=6m tmpfs /opt")
    deployer.good("agent", "install", "web1", *ROOT)
    before = host.call("hello")
    newer = Deployer(deployer.fleet, another_version(pyz, tmp_path / "newer.pyz", "9.0.0"))
    refused(newer.cli("agent", "upgrade", "web1", *ROOT), 1, "No space left on device", "what ran goes on")
    assert host.call("hello")["pid"] == before["pid"]
    assert host.box.sh("find /opt -name '*.new'") == ""
    assert host.box.sh("/usr/local/bin/midstream --version").split()[-1] == before["version"]
    host.box.sh("mount -o remount,size=60m /opt")
    newer.good("agent", "upgrade", "web1", *ROOT)
    assert host.call("hello")["version"] == "9.0.0"


def test_the_outcome_of_each_host_is_its_own(bare: Callable[[int], Deployer]) -> None:
    """One host is cut off: the other is installed, and the exit code tells."""
    deployer = bare(2)
    deployer.fleet.host("web2").kill_sshd()
    result = deployer.cli("agent", "install", "web1", "web2", *ROOT, "--json")
    assert result.code == 1, result.text
    found = lines(result)
    assert [line["host"] for line in found if line.get("type") == "result"] == ["web1"]
    assert [line["host"] for line in found if "error" in line] == ["web2"]
    assert "refused" in result.err
    assert deployer.fleet.host("web1").answers()


# ---------------------------------------------------------------------- interrupted, and two at once


@pytest.mark.parametrize("at", ["python", "program", "command", "agent"])
def test_killed_at_a_step_it_goes_on_from_there(bare: Callable[[int], Deployer], at: str) -> None:
    """kill -9 of everything on the host that belongs to the installation, and of the deployer."""
    deployer = bare(1)
    host = deployer.fleet.host("web1")
    process = deployer.spawn("agent", "install", "web1", *ROOT, "--json")
    assert process.stdout is not None
    for line in process.stdout:
        if f'"step": "{at}"' in line:
            break
    host.box.run("pkill", "-9", "-f", "install-here", check=False)
    kill_session(process)
    wait_for("the far end to be gone", lambda: not running(host, "install-here"))
    done = deployer.cli("agent", "install", "web1", *ROOT)
    assert done.code == 0, done.text
    assert host.answers()
    assert host.box.sh("/usr/local/bin/midstream --version").startswith("midstream ")
    assert host.box.sh("find /opt/midstream -name '*.new'") == ""
    assert changed(deployer.good("agent", "install", "web1", *ROOT, "--json")) == []


def test_a_deployer_that_dies_does_not_stop_the_host(bare: Callable[[int], Deployer]) -> None:
    deployer = bare(1)
    host = deployer.fleet.host("web1")
    process = deployer.spawn("agent", "install", "web1", *ROOT, "--json")
    assert process.stdout is not None
    for line in process.stdout:
        if '"step": "program"' in line:
            break
    kill_session(process)
    wait_for("the agent", host.answers)


def test_two_at_once_end_in_one_installation(bare: Callable[[int], Deployer]) -> None:
    deployer = bare(1)
    host = deployer.fleet.host("web1")
    both = [deployer.spawn("agent", "install", "web1", *ROOT) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 4]), said
    if codes == [0, 4]:
        assert any("another installation is running" in text for text in said)
    assert host.answers()
    assert changed(deployer.good("agent", "install", "web1", *ROOT, "--json")) == []


def test_while_another_holds_the_lock_it_is_refused(bare: Callable[[int], Deployer]) -> None:
    deployer = bare(1)
    host = deployer.fleet.host("web1")
    host.box.sh("mkdir -p /opt/midstream")
    holder = host.box.popen(
        "flock",
        "/opt/midstream/install.lock",
        "sh",
        "-c",
        "echo held; cat",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        refused(deployer.cli("agent", "install", "web1", *ROOT), 4, "another installation is running", "install.lock")
        assert installed(host) == []
    finally:
        holder.communicate(b"")
    deployer.good("agent", "install", "web1", *ROOT)


# ---------------------------------------------------------------------- what is written


@pytest.mark.parametrize("rootless", [False, True])
def test_systemd_finds_no_fault_with_the_unit(tmp_path: Path, rootless: bool) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    odd = tmp_path / "a $folder 100%"
    odd.mkdir()
    program = odd / "midstream"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "midstream.service"
    unit.write_text(systemd_unit([str(program), "agent", "run", "--stand-by"], rootless=rootless))
    asked = ["systemd-analyze", "verify", "--man=no", *(["--user"] if rootless else []), str(unit)]
    done = subprocess.run(
        asked, capture_output=True, text=True, env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    )
    about_us = [line for line in done.stderr.splitlines() if "midstream" in line]
    assert (about_us, done.returncode) == ([], 0), done.stderr
