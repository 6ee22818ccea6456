"""Reaching hosts over a real ssh: what works, and a clear message for each way it fails."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet import Fleet, new_fleet, why_no_fleet
from machine import Result, wait_for

GOES_ON = "whatever r"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Two hosts for all tests here; each test leaves them as they were."""
    if reason := why_no_fleet():
        pytest.skip(reason)
    with new_fleet(2) as started:
        yield started


@pytest.fixture
def ask(fleet: Fleet, tmp_path: Path) -> Callable[..., Result]:
    """`midstream status` of a stage with that one host."""

    def status(address: str, **env: str) -> Result:
        (tmp_path / "midstream.toml").write_text(
            f'app = "shop"\nrepository = "/nowhere"\ndeploy_to = "/srv/shop"\n[stages.production]\nhosts = ["{address}"]\n'
        )
        return fleet.cli("status", cwd=tmp_path, **env)

    return status


def refused(result: Result, *words: str) -> None:
    assert result.code == 1, result.text
    for word in words:
        assert word in result.err, result.err
    assert "do:" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("address", ["web1", "deploy@web1", "root@10.77.0.11", "ssh://deploy@web1:22"])
def test_addresses_are_what_ssh_takes(ask: Callable[..., Result], address: str) -> None:
    result = ask(address)
    assert result.code == 0, result.text
    assert "web1: agent pid" in result.out


def test_a_jump_host_of_ssh_config(fleet: Fleet, ask: Callable[..., Result]) -> None:
    """ProxyJump is OpenSSH's own."""
    fleet.write_ssh_config("Host inner\n  HostName 10.77.0.11\n  ProxyJump web2\n")
    try:
        result = ask("inner")
        assert result.code == 0, result.text
        assert "web1: agent pid" in result.out
    finally:
        fleet.write_ssh_config()


def test_an_unknown_host_key(fleet: Fleet, ask: Callable[..., Result]) -> None:
    fleet.write_ssh_config("UserKnownHostsFile /dev/null\n")
    try:
        refused(ask("web1"), "the host key is not known here", "once by hand", GOES_ON)
    finally:
        fleet.write_ssh_config()


def test_a_changed_host_key(fleet: Fleet, ask: Callable[..., Result]) -> None:
    other = (fleet.host("web2").root / "root/host_key.pub").read_text()
    fleet.known_hosts.write_text(f"10.77.0.11 {other}")
    try:
        refused(ask("web1"), "the host key is not the one that is known", "ssh-keygen -R web1")
    finally:
        fleet.write_ssh_config()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ssh://web1:2222", "the connection was refused"),
        ("10.77.0.99", "there is no route to the host"),
        ("web9.invalid", "the name of the host cannot be resolved"),
        ("nobody@web1", "the host refused the log-in"),
    ],
)
def test_a_host_that_does_not_let_us_in(ask: Callable[..., Result], address: str, words: str) -> None:
    refused(ask(address), words, address, GOES_ON)


def test_a_cut_host_is_given_up_in_time(fleet: Fleet, ask: Callable[..., Result]) -> None:
    """A claim about time-outs being set at all: without them ssh would wait for minutes."""
    assert ask("web1").code == 0  # its MAC address is known now, so packets are sent and lost
    fleet.cut("web1")
    try:
        began_s = time.monotonic()
        refused(ask("web1"), "web1", "--without web1")
        assert time.monotonic() - began_s < 60
    finally:
        fleet.mend("web1")
        wait_for("the way to web1", lambda: fleet.ssh("web1", "true").code == 0)


def test_a_key_with_a_passphrase_is_named(fleet: Fleet, ask: Callable[..., Result], tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret words", "-f", locked], check=True)
    only = fleet.ssh_config.read_text().replace(fleet.key, str(locked))
    config = tmp_path / "config"
    config.write_text(only)
    refused(
        ask("web1", MIDSTREAM_SSH=f"ssh -F {config}"), "refused the log-in", f"{locked} has a passphrase", "ssh-add"
    )


def test_no_agent_runs(fleet: Fleet, ask: Callable[..., Result]) -> None:
    host = fleet.host("web2")
    host.kill_midstream()
    try:
        refused(ask("web2"), "no agent answers", "web2: /run/midstream/agent.sock", "agent install web2")
    finally:
        host.start_agent()


def test_midstream_is_not_installed(fleet: Fleet, ask: Callable[..., Result]) -> None:
    box = fleet.host("web2").box
    box.sh("mv /opt/midstream/bin/midstream /opt/midstream/bin/away")
    try:
        refused(ask("web2"), "midstream is not installed on the host", "midstream agent install web2")
    finally:
        box.sh("mv /opt/midstream/bin/away /opt/midstream/bin/midstream")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/usr/bin/env python3.99\n", "there is no python3 on the host"),
        ("#!/opt/none/python3\n", "there is no python3 on the host"),
        (
            "#!/bin/sh\necho 'midstream needs Python 3.11 or newer; this is 3.9' >&2; exit 1\n",
            "Python of the host is too old",
        ),
        ("#!/bin/sh\necho 'Error: No such option: --silence' >&2; exit 2\n", "older than this command"),
        (
            '#!/bin/sh\nread l; echo \'{"jsonrpc":"2.0","id":0,"result":{"protocol":0,"version":"0.0.1"}}\'; cat\n',
            "speaks protocol 0",
        ),
        ("#!/bin/sh\necho 'segmentation fault' >&2; exit 139\n", "ended with status 139"),
        ("#!/bin/sh\nexec yes 'no protocol at all'\n", "prints text where the agent should speak"),
    ],
    ids=["env", "interpreter", "old-python", "old-command", "old-protocol", "crash", "noise"],
)
def test_what_is_installed_cannot_speak(fleet: Fleet, ask: Callable[..., Result], script: str, words: str) -> None:
    """The program at the far end is a stand-in for one of another time; ssh and sshd are real."""
    path = fleet.host("web2").root / "opt/midstream/bin/midstream"
    good = path.read_text()
    path.write_text(script)
    try:
        refused(ask("web2"), words, "web2")
    finally:
        path.write_text(good)


def test_a_user_without_a_shell(fleet: Fleet, ask: Callable[..., Result]) -> None:
    box = fleet.host("web2").box
    box.sh("sed -i 's,/home/other:/bin/sh,/home/other:/usr/sbin/nologin,' /etc/passwd")
    try:
        refused(ask("other@web2"), "ended with status 1", "This account is currently not available")
    finally:
        box.sh("sed -i 's,/home/other:/usr/sbin/nologin,/home/other:/bin/sh,' /etc/passwd")


def test_what_the_login_prints_is_passed_over(fleet: Fleet, ask: Callable[..., Result]) -> None:
    host = fleet.host("web2")
    welcome = host.root / "opt/welcome"
    welcome.write_text(
        "#!/bin/sh\necho Welcome to web2\nprintf 'a line without an end: '\neval \"$SSH_ORIGINAL_COMMAND\"\n"
    )
    welcome.chmod(0o755)
    config = host.root / "root/sshd_config"
    before = config.read_text()
    config.write_text(f"{before}Match User other\n  ForceCommand /opt/welcome\n")
    host.kill_sshd()
    host.start_sshd()
    try:
        result = ask("other@web2")
        assert result.code == 0, result.text
        assert "Welcome" not in result.text
    finally:
        config.write_text(before)
        host.kill_sshd()
        host.start_sshd()


def test_ssh_itself_is_missing_or_misconfigured(ask: Callable[..., Result], tmp_path: Path) -> None:
    missing = ask("web1", MIDSTREAM_SSH="/nowhere/ssh")
    assert missing.code == 2
    assert "ssh cannot be started" in missing.err
    assert "MIDSTREAM_SSH" in missing.err
    (tmp_path / "bad").write_text("NoSuchKeyword yes\n")
    bad = ask("web1", MIDSTREAM_SSH=f"ssh -F {tmp_path}/bad")
    assert bad.code == 2, bad.text
    assert "ssh does not accept its own configuration" in bad.err


def test_far_ends_go_when_their_client_does(fleet: Fleet, ask: Callable[..., Result]) -> None:
    """No `agent connect` stays behind: not of a command that ended, nor of a deployer that was killed."""
    assert ask("web1").code == 0
    box = fleet.host("web1").box
    wait_for("the far ends to go", lambda: not box.sh("pgrep -f '[a]gent connect' || true").strip())
