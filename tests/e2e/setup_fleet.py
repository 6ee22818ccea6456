"""For tests of `setup`, `agent install` and `agent upgrade`: a deployer that is one zipapp, and other versions of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, FleetHost, built_pyz
from machine import Result, wait_for
from netns import cgroup_mount

PREFIX = "opt/midstream"


@pytest.fixture(scope="session")
def pyz() -> Path:
    """This version. All tests of a run use one file, whoever edits the sources meanwhile."""
    return built_pyz()


def another_version(
    pyz: Path, target: Path, version: str, patches: Mapping[str, tuple[str, str]] | None = None
) -> Path:
    """A copy that calls itself `version`. patches: file -> (old text, new text)."""
    changed = {"midstream/__init__.py": ("__version__ = ", f'__version__ = "{version}"  # was '), **(patches or {})}
    left_out = {f"{name}c" for name in changed}
    with zipfile.ZipFile(pyz) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename in changed:
                before, after = changed[item.filename]
                assert before in data.decode(), f"{item.filename} has no {before!r}"
                data = data.decode().replace(before, after, 1).encode()
            if item.filename not in left_out:
                new.writestr(item, data)
    return target


@dataclass(frozen=True)
class Deployer:
    """`midstream` of one version, on this side of the fleet's network."""

    fleet: Fleet
    pyz: Path

    def argv(self, *args: str) -> list[str]:
        return self.fleet.switch.on_the_network(sys.executable, "-I", str(self.pyz), *args)

    def cli(self, *args: str, cwd: Path | None = None, **env: str) -> Result:
        done = subprocess.run(
            self.argv(*args),
            cwd=cwd or self.fleet.root,
            env=self.fleet.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def good(self, *args: str, cwd: Path | None = None) -> list[dict[str, Any]]:
        """Insists on exit code 0. With --json: the lines."""
        result = self.cli(*args, cwd=cwd)
        assert result.code == 0, result.text
        return lines(result) if "--json" in args else []

    def spawn(self, *args: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*args),
            cwd=cwd or self.fleet.root,
            env=self.fleet.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def lines(result: Result) -> list[dict[str, Any]]:
    return [dict(json.loads(line)) for line in result.out.splitlines() if line.startswith("{")]


def changed(found: list[dict[str, Any]]) -> list[str]:
    """What was done, of JSON lines."""
    return [f"{line['step']}: {line['text']}" for line in found if line.get("state") in ("done", "would")]


def installed(host: FleetHost) -> list[str]:
    """Names of the versions on the host."""
    folder = host.root / PREFIX
    return (
        sorted(path.name for path in folder.iterdir() if (path / "midstream.pyz").exists()) if folder.exists() else []
    )


def pids_of(host: FleetHost, service: str = "web") -> list[int]:
    row = next(row for row in host.app()["services"] if row["service"] == service)
    return sorted(item["pid"] for generation in row["generations"] for item in generation["instances"] if item["pid"])


def keeper_of(host: FleetHost) -> int:
    return int(host.status()["keeper"]["pid"])


def parent_of(host: FleetHost, pid: int) -> str:
    """The command name of a process's parent."""
    return host.box.sh(f"cat /proc/$(ps -o ppid= -p {pid} | tr -d ' ')/comm").strip()


def running(host: FleetHost, pattern: str) -> str:
    """pids of processes on the host whose command line matches."""
    return host.box.run("pgrep", "-f", pattern, check=False).strip()


@contextlib.contextmanager
def load_on(fleet: Fleet, host: FleetHost) -> Iterator[dict[str, Any]]:
    """Clients of the host's service; the dict has their tally once the block has ended."""
    light = ("--pause", "0.03", "--keep-alive", "2", "--closing", "2")
    argv = [sys.executable, "-m", "midstream.testing.load", f"tcp://{host.address}:8000", *light]
    load = subprocess.Popen(
        fleet.switch.on_the_network(*argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=fleet.env
    )
    assert load.stdin is not None and load.stdout is not None
    tally: dict[str, Any] = {}
    try:
        assert load.stdout.readline().strip() == "started"
        yield tally
    finally:
        load.stdin.close()
        tally.update(json.loads(load.stdout.readline() or "{}"))
        load.stdout.close()
        load.wait(60.0)


def start_runit(host: FleetHost) -> subprocess.Popen[Any]:
    """runsvdir on the host, watching /etc/service, which is empty."""
    host.box.sh("rm -rf /etc/service && mkdir /etc/service")
    process = host.box.popen("runsvdir", "-P", "/etc/service")
    wait_for("runsvdir", lambda: host.box.sh("pgrep -x runsvdir || true").strip())
    return process


# Run on a host, in process, mount and cgroup namespaces of its own. What systemd does to hardware and to the kernel's
# settings at boot is masked, and /dev, /var/log, /proc/sys are not the machine's: nothing of it gets out.
_BOOT_SYSTEMD = """
mount -t proc proc /proc
mount -o bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
umount -R -l /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir /run/dev
mount -t tmpfs -o mode=755 tmpfs /run/dev
for name in null zero full random urandom tty; do touch /run/dev/$name; mount -o bind /dev/$name /run/dev/$name; done
mkdir /run/dev/pts /run/dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts /run/dev/pts
ln -s pts/ptmx /run/dev/ptmx
ln -s /proc/self/fd /run/dev/fd
mount --move /run/dev /dev
for folder in /var/log /var/tmp; do mount -t tmpfs tmpfs $folder; done
rm -rf /etc/systemd/system /etc/init.d /etc/rc?.d
mkdir -p /etc/systemd/system/multi-user.target.wants
cd /lib/systemd/system
for unit in $(ls *.target.wants | grep -v : | sort -u); do
  case $unit in systemd-journald*|dbus*) ;; *) ln -sf /dev/null /etc/systemd/system/$unit;; esac
done
printf '[Service]\\nExecStart=/usr/sbin/sshd -D -f /root/sshd_config\\n' > /etc/systemd/system/fleet-sshd.service
ln -s ../fleet-sshd.service /etc/systemd/system/multi-user.target.wants/
rm -f /etc/systemd/system/systemd-logind.service
ln -s /lib/systemd/system/systemd-logind.service /etc/systemd/system/dbus-org.freedesktop.login1.service
exec env -i container=fleet PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=0
"""


def why_no_systemd() -> str:
    """Why no host can run systemd here; "" when one can."""
    if not Path("/lib/systemd/systemd").exists():
        return "needs systemd"
    if shutil.which("dbus-daemon") is None or shutil.which("loginctl") is None:
        return "needs dbus and systemd's logind"
    return "" if cgroup_mount() else "needs cgroup2"


def start_systemd(host: FleetHost) -> subprocess.Popen[Any]:
    """Real systemd as the first process of that host; sshd is a unit of it. `ssh` reaches it, `box.run` does not."""
    host.kill_sshd()
    log = (host.root / "root/systemd.out").open("wb")
    own = ("unshare", "--pid", "--mount", "--cgroup", "--fork", "--kill-child=KILL")
    process = host.box.popen(*own, "sh", "-ec", _BOOT_SYSTEMD, stdout=log, stderr=log)
    log.close()
    return process
