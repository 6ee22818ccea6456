"""`agent upgrade` of hosts: keeper and agent replaced under running services, and back when the new version is no good."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, FleetHost
from machine import Result, wait_for
from setup_fleet import (
    PREFIX,
    Deployer,
    another_version,
    changed,
    installed,
    keeper_of,
    lines,
    load_on,
    parent_of,
    pids_of,
    pyz,
    running,
    start_runit,
    start_systemd,
    why_no_systemd,
)

from midstream import __version__
from midstream.errors import MidstreamError

__all__ = ["pyz"]
ROOT = ("--user", "root")
SURE = "midstream/agent/program.py"


@dataclass(frozen=True)
class Setting:
    """One host with a running service, installed by `deployer`; `version(...)` makes another deployer."""

    deployer: Deployer
    folder: Path
    tmp: Path

    @property
    def host(self) -> FleetHost:
        return self.deployer.fleet.host("web1")

    def version(self, version: str, patches: dict[str, tuple[str, str]] | None = None) -> Deployer:
        target = self.tmp / f"{version}-{len(patches or {})}.pyz"
        return Deployer(self.deployer.fleet, another_version(self.deployer.pyz, target, version, patches))

    def look(self) -> tuple[int, list[int], str]:
        """What no upgrade may change: the keeper's pid, the service's processes, the socket that they listen on."""
        inode = self.host.box.sh("ss -Htlne 'sport = :8000' | grep -o 'ino:[0-9]*'").strip()
        return keeper_of(self.host), pids_of(self.host), inode

    def command(self) -> str:
        """The version that the short name stands for."""
        return self.host.box.sh("/usr/local/bin/midstream --version").split()[-1]


@pytest.fixture
def setting(fleet_of: Callable[..., Fleet], pyz: Path, tmp_path: Path) -> Iterator[Setting]:
    fleet = fleet_of(1, agents=False)
    deployer = Deployer(fleet, pyz)
    if shutil.which("runsvdir") is not None:
        start_runit(fleet.host("web1"))
    project = fleet.project()
    deployer.good("setup", *ROOT, cwd=project.folder)
    deployer.good("deploy", cwd=project.folder)
    yield Setting(deployer, project.folder, tmp_path)


def test_under_load_no_request_fails_and_no_process_changes(setting: Setting) -> None:
    before, host = setting.look(), setting.host
    newer = setting.version("9.0.0")
    with load_on(setting.deployer.fleet, host) as tally:
        done = newer.cli("agent", "upgrade", "production", *ROOT, "--json", cwd=setting.folder)
    assert done.code == 0, done.text
    result = next(line for line in lines(done) if line.get("type") == "result")
    assert (result["before"], result["after"]) == (__version__, "9.0.0")
    assert tally["failed"] == 0, tally
    assert tally["requests"] > 20
    assert setting.look() == before
    hello = host.call("hello")
    assert (hello["version"], hello["keeper"]["version"]) == ("9.0.0", "9.0.0")
    assert setting.command() == "9.0.0"
    assert changed(newer.good("agent", "upgrade", "web1", *ROOT, "--json")) == [], "a second one changes nothing"
    deployed = newer.cli("deploy", cwd=setting.folder)
    assert deployed.code == 0, deployed.text


def test_older_versions_are_cleaned_up_but_for_the_last(setting: Setting) -> None:
    for version in ("9.0.0", "9.0.1", "9.0.2"):
        setting.version(version).good("agent", "upgrade", "web1", *ROOT)
    assert [name.partition("-")[0] for name in installed(setting.host)] == ["9.0.1", "9.0.2"]
    assert setting.command() == "9.0.2"


def test_setup_upgrades_what_is_older_and_leaves_what_is_newer(setting: Setting) -> None:
    before = setting.look()
    newer = setting.version("9.0.0")
    done = newer.cli("setup", *ROOT, cwd=setting.folder)
    assert done.code == 0, done.text
    assert f"upgraded from {__version__}" in done.out
    for words in (("setup",), ("agent", "upgrade", "web1"), ("agent", "install", "web1")):
        older = setting.deployer.cli(*words, *ROOT, cwd=setting.folder)
        assert older.code == 0, older.text
        assert "9.0.0 is there, newer" in older.out
    assert setting.look() == before
    assert (setting.command(), setting.host.call("hello")["version"]) == ("9.0.0", "9.0.0")


def refused(setting: Setting, deployer: Deployer, *words: str) -> Result:
    """The upgrade fails with these words; the old version goes on, and what ran is untouched."""
    before = setting.look()
    with load_on(setting.deployer.fleet, setting.host) as tally:
        result = deployer.cli("agent", "upgrade", "web1", *ROOT)
    assert result.code == 1, result.text
    for word in words:
        assert word in result.err, result.err
    assert f"agent {__version__}" in result.err, "it says what goes on"
    assert setting.look() == before
    assert setting.host.call("hello")["version"] == __version__
    assert setting.command() == __version__
    assert tally["failed"] == 0, tally
    # the next agent, too, is the old one
    setting.host.kill_agent()
    assert setting.host.call("hello")["version"] == __version__
    assert setting.look() == before
    return result


def test_a_keeper_that_cannot_read_the_state_is_refused(setting: Setting) -> None:
    patch = (
        "def validate(fd: int) -> int:\n",
        "def validate(fd: int) -> int:\n    print('no such state', file=sys.stderr); return 1\n",
    )
    bad = setting.version("9.0.0", {"midstream/keeper/__main__.py": patch})
    refused(setting, bad, "the new version was refused", "no such state")
    assert setting.host.call("hello")["keeper"]["version"] == __version__


def test_an_agent_that_python_cannot_load_is_never_started(setting: Setting) -> None:
    before = setting.host.call("hello")["pid"]
    bad = setting.version("9.0.0", {SURE: ("import asyncio\n", "import asyncio\nimport no_such_module\n")})
    result = bad.cli("agent", "upgrade", "web1", *ROOT)
    assert result.code == 1, result.text
    assert "no_such_module" in result.err
    assert setting.host.call("hello")["pid"] == before
    assert setting.host.call("hello")["keeper"]["version"] == __version__


@pytest.mark.parametrize(
    ("how", "code"),
    [("dies", "    sys.exit('cannot go on')\n"), ("hangs", "    time.sleep(3600)\n")],
)
def test_an_agent_that_does_not_come_up_gives_way_to_the_old_one(setting: Setting, how: str, code: str) -> None:
    bad = setting.version(
        "9.0.0", {SURE: ("    options = options_of(argv)\n", f"    options = options_of(argv)\n{code}")}
    )
    refused(setting, bad, "the new version was refused")
    good = setting.version("9.0.1")
    good.good("agent", "upgrade", "web1", *ROOT)
    assert setting.host.call("hello")["version"] == "9.0.1"


def test_killed_between_agent_and_command_the_next_run_ends_it(setting: Setting) -> None:
    newer = setting.version("9.0.0")
    process = newer.spawn("agent", "upgrade", "web1", *ROOT, "--json")
    assert process.stdout is not None
    for line in process.stdout:
        if '"step": "program"' in line:
            break

    def is_new() -> bool:
        try:
            return bool(setting.host.call("hello")["version"] == "9.0.0")
        except (MidstreamError, OSError):  # the old one has just ended
            return False

    wait_for("the new agent", is_new)
    setting.host.box.run("pkill", "-9", "-f", "install-here", check=False)
    process.communicate(timeout=60)
    wait_for("the far end to be gone", lambda: not running(setting.host, "install-here"))
    newer.good("agent", "upgrade", "web1", *ROOT)
    assert setting.command() == "9.0.0"
    assert setting.host.call("hello")["version"] == "9.0.0"
    assert not list((setting.host.root / PREFIX).rglob("*.new"))


def test_after_a_reboot_the_new_version_starts(setting: Setting) -> None:
    if shutil.which("runsvdir") is None:
        pytest.skip("needs runit")
    newer = setting.version("9.0.0")
    newer.good("agent", "upgrade", "web1", *ROOT)
    host = setting.host
    status = host.status()
    host.box.run("kill", "-9", str(status["agent"]["pid"]), str(status["keeper"]["pid"]))
    wait_for("runit's keeper", lambda: host.answers() and parent_of(host, keeper_of(host)) == "runsv")
    hello = host.call("hello")
    assert (hello["version"], hello["keeper"]["version"]) == ("9.0.0", "9.0.0")


# ---------------------------------------------------------------------- under real systemd


@dataclass(frozen=True)
class Systemd:
    """A host whose first process is systemd; all is asked over ssh."""

    fleet: Fleet

    def ssh(self, command: str, user: str = "root") -> str:
        return self.fleet.ssh("web1", command, user=user).out.strip()

    def main_pid(self, user: str = "root") -> int:
        scope = "" if user == "root" else "XDG_RUNTIME_DIR=/run/user/$(id -u) "
        more = "" if user == "root" else "--user "
        return int(self.ssh(f"{scope}systemctl {more}show -p MainPID --value midstream", user) or 0)

    def hello(self) -> dict[str, Any]:
        return dict(self.fleet.host("web1").call("hello"))

    def keeper(self) -> int:
        return int(self.hello()["keeper"].get("pid") or 0)  # none while it is away


@pytest.fixture
def systemd(fleet_of: Callable[..., Fleet]) -> Systemd:
    if reason := why_no_systemd():
        pytest.skip(reason)
    fleet = fleet_of(1, agents=False)
    start_systemd(fleet.host("web1"))
    found = Systemd(fleet)
    wait_for("systemd", lambda: found.ssh("systemctl is-system-running") in ("running", "degraded"))
    return found


def test_systemd_starts_it_again_and_ends_it(systemd: Systemd, pyz: Path, tmp_path: Path) -> None:
    """Keeper killed: the agent starts the next, systemd's own process stands by; both killed: systemd starts them. No
    service notices any of it, nor an upgrade. `systemctl stop` ends all, and `start` brings all back."""
    deployer = Deployer(systemd.fleet, pyz)
    host, project = systemd.fleet.host("web1"), systemd.fleet.project()
    done = deployer.good("setup", *ROOT, "--json", cwd=project.folder)
    assert [line["service"] for line in done if line.get("type") == "result"] == ["systemd"]
    assert systemd.main_pid() == systemd.keeper()
    assert "/system.slice/midstream.service/" in systemd.hello()["keeper"]["cgroup"]
    assert systemd.ssh("systemctl is-enabled midstream") == "enabled"
    deployer.good("deploy", cwd=project.folder)
    served, pids, keeper = project.served(), pids_of(host), systemd.keeper()
    assert changed(deployer.good("setup", *ROOT, "--json", cwd=project.folder)) == []

    newer = Deployer(systemd.fleet, another_version(pyz, tmp_path / "newer.pyz", "9.0.0"))
    with load_on(systemd.fleet, host) as tally:
        newer.good("agent", "upgrade", "web1", *ROOT)
        assert (systemd.keeper(), systemd.main_pid()) == (keeper, keeper)

        systemd.ssh(f"kill -9 {keeper}")
        wait_for("the next keeper", lambda: host.answers() and systemd.keeper() not in (0, keeper))
        wait_for("systemd's own process", lambda: systemd.ssh("systemctl is-active midstream") == "active")

        hello = systemd.hello()
        systemd.ssh(f"kill -9 {hello['pid']} {hello['keeper']['pid']}")
        wait_for("systemd's keeper", lambda: host.answers() and systemd.keeper() == systemd.main_pid())
        assert pids_of(host) == pids
    assert tally["failed"] == 0, tally
    assert systemd.hello()["version"] == "9.0.0"

    systemd.ssh("systemctl stop midstream")
    assert systemd.ssh("pgrep -f 'keeper-|agent-proces[s]|server[.]py'") == ""
    systemd.ssh("systemctl start midstream")
    wait_for("the service", lambda: host.answers() and host.settled() and project.served() == served)


def test_stopping_a_process_that_stands_by_stops_the_keeper(systemd: Systemd, pyz: Path) -> None:
    deployer = Deployer(systemd.fleet, pyz)
    host = systemd.fleet.host("web1")
    deployer.good("agent", "install", "web1", *ROOT)
    keeper = systemd.keeper()
    systemd.ssh(f"kill -9 {keeper}")
    wait_for("the agent's keeper", lambda: host.answers() and systemd.keeper() not in (0, keeper))
    wait_for("systemd's own process", lambda: systemd.main_pid() not in (0, keeper))
    wait_for("it", lambda: systemd.ssh("systemctl is-active midstream") == "active")
    systemd.ssh("systemctl stop midstream")
    wait_for("the end", lambda: not host.answers() and systemd.ssh("pgrep -f 'keeper-|agent-proces[s]'") == "")


def test_rootless_under_the_users_own_systemd(systemd: Systemd, pyz: Path, tmp_path: Path) -> None:
    """With real logind: lingering is enabled, so the agent outlives the session that installed it, and a reboot."""
    fleet, project = systemd.fleet, systemd.fleet.project()
    project.write(config=project.config().replace("/srv/shop", "/home/deploy/shop"))
    project.commit("at home")
    deployer = Deployer(fleet, pyz)
    refusal = deployer.cli("agent", "install", "web1", "--rootless", "--service", "runit")
    assert refusal.code == 2 and "runit does not run" in refusal.err, refusal.text
    done = deployer.good("setup", "--rootless", "--json", cwd=project.folder)
    assert any(line.get("step") == "lingering" and line["state"] == "done" for line in done)
    assert systemd.ssh("ls /var/lib/systemd/linger") == "deploy"
    deployer.good("deploy", cwd=project.folder)
    served = fleet.get("web1")
    assert changed(deployer.good("setup", "--json", cwd=project.folder)) == []
    main = systemd.main_pid("deploy")
    assert main and systemd.ssh(f"ps -o user= -p {main}") == "deploy"
    newer = Deployer(fleet, another_version(pyz, tmp_path / "newer.pyz", "9.0.0"))
    newer.good("agent", "upgrade", "web1")
    assert systemd.main_pid("deploy") == main
    assert fleet.get("web1") == served
    systemd.ssh("systemctl restart user@4001.service")  # as a boot does
    wait_for("the service", lambda: _gets(fleet) == served)
    status = newer.cli("status", cwd=project.folder)
    assert status.code == 0, status.text


def _gets(fleet: Fleet) -> tuple[int, str]:
    try:
        return fleet.get("web1")
    except OSError as error:
        return 0, str(error)
