"""Hosts made of namespaces: own network, processes, mounts, name, cgroups. For tests that need several machines.

A `Box` is a tree of processes whose first one holds the namespaces; killing that one kills all of them, so nothing is left
behind. `Switch` is the box with the bridge that the others are plugged into; commands that should be "on the network" (the
deployer, clients) run in its network namespace, with everything else as it is on this machine.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PYTHON = "/usr/bin/python3"  # the hosts see no other: /root is their own
CLONE_NEWNET = 0x40000000
_UNIFIED = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")
_REAPER = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
print("ready", flush=True)
while True:
    signal.sigwait({signal.SIGCHLD})
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str:
    """Why there can be no boxes here; "" when there can."""
    if os.geteuid() != 0:
        return "needs root: hosts are made of namespaces"
    for program in ("ip", "nsenter", "unshare", "setpriv"):
        if shutil.which(program) is None:
            return f"needs {program}"
    made = subprocess.run(
        [
            "unshare",
            "--net",
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "ip",
            "link",
            "add",
            "br0",
            "type",
            "bridge",
        ],
        capture_output=True,
        text=True,
    )
    return "" if made.returncode == 0 else f"namespaces cannot be made here: {made.stderr.strip()}"


def cgroup_mount() -> str:
    """Where cgroup2 is mounted; "" when it is not."""
    return next((path for path in _UNIFIED if os.path.exists(f"{path}/cgroup.controllers")), "")


def _join(cgroup: str) -> None:
    """In the child before exec: nsenter of Debian 12 does not join a cgroup."""
    if cgroup:
        with open(f"{cgroup}/cgroup.procs", "w") as file:
            file.write("0")


@dataclass
class Box:
    """`setup`: shell lines that run inside before it is ready, as root, with `$R` the box's own folder."""

    name: str
    root: Path
    setup: str
    namespaces: tuple[str, ...] = ("--net", "--mount", "--uts", "--ipc", "--pid", "--cgroup")
    pid: int = 0
    cgroup: str = ""
    _holder: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Blocks until `setup` is done. Fails with what it printed."""
        self.root.mkdir(mode=0o755, exist_ok=True)
        if "--cgroup" in self.namespaces and cgroup_mount():
            self.cgroup = f"{cgroup_mount()}/{self.root.parent.name}-{self.name}"
            os.makedirs(self.cgroup, exist_ok=True)
        script = self.setup + f"\nexec {PYTHON} -ISc '{_REAPER}'"
        cgroup = self.cgroup
        self._holder = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig=KILL", "unshare", *self.namespaces, "--fork", "--kill-child=KILL"),
                *("sh", "-ec", script),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(self.root / "setup.err").open("w"),
            text=True,
            env={"PATH": os.environ["PATH"], "R": str(self.root), "NAME": self.name, "CGROUP2": cgroup_mount()},
            preexec_fn=lambda: _join(cgroup),
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline().strip() != "ready":
            self._holder.wait()
            raise AssertionError(f"{self.name} did not come up: {(self.root / 'setup.err').read_text()}")
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self.pid = int(children[0])

    def inside(self, *argv: str, user: str = "") -> list[str]:
        """argv that runs argv in all namespaces of the box, as `user` with that user's own groups and home."""
        wrapped = [shutil.which("nsenter") or "nsenter", "-t", str(self.pid), "-a", "--wd=/"]
        if user:
            return [*wrapped, "setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--reset-env", *argv]
        return [*wrapped, *argv]

    def popen(self, *argv: str, user: str = "", **kwargs: Any) -> subprocess.Popen[Any]:
        """A process in the box; its streams as `kwargs` say, else none."""
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        cgroup = self.cgroup
        env = kwargs.pop(
            "env", {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        )
        return subprocess.Popen(
            self.inside(*argv, user=user), preexec_fn=lambda: _join(cgroup), env=env, **(streams | kwargs)
        )

    def run(self, *argv: str, user: str = "", check: bool = True, text: str = "") -> str:
        """Runs argv in the box to its end; its output, both streams. Fails when it fails and `check`."""
        process = self.popen(
            *argv, user=user, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        out, _ = process.communicate(text, timeout=120)
        if check and process.returncode != 0:
            raise AssertionError(f"{self.name}: {' '.join(argv)} ended with {process.returncode}: {out}")
        return str(out)

    def sh(self, script: str, user: str = "", check: bool = True) -> str:
        """`run` of a few shell lines."""
        return self.run("sh", "-ec", script, user=user, check=check)

    def stop(self) -> None:
        """Kills every process in the box, at once, and takes its cgroups away."""
        if self._holder is not None:
            if self.pid:
                _kill_and_wait(self.pid)
            self._holder.kill()
            self._holder.wait()
            if self._holder.stdout is not None:
                self._holder.stdout.close()
            self._holder = None
        _remove_cgroup(self.cgroup)


def _kill_and_wait(pid: int) -> None:
    """Of a process that is not our child: a pidfd says when it is gone."""
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(20_000), "the first process of a box does not die"
    finally:
        os.close(pidfd)


def _remove_cgroup(path: str) -> None:
    """Deepest folders first; those of processes that were just killed may need a moment."""
    if not path or not os.path.isdir(path):
        return
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        try:
            for folder, _, _ in os.walk(path, topdown=False):
                os.rmdir(folder)
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"{path} cannot be removed")


class Switch(Box):
    """The network: a bridge with the address of this side, and a port for each host."""

    def __init__(self, root: Path, address: str) -> None:
        setup = f"""
ip link set lo up
ip link add br0 type bridge
ip addr add {address}/24 dev br0
ip link set br0 up
"""
        super().__init__("switch", root, setup, ("--net",))

    def plug(self, box: Box, number: int, address: str) -> None:
        """A cable between the bridge and eth0 of the box."""
        port = self.port(number)
        self.net("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", f"/proc/{box.pid}/ns/net")
        self.net("ip", "link", "set", port, "master", "br0", "up")
        box.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
        box.run("ip", "link", "set", "eth0", "up")

    def port(self, number: int) -> str:
        return f"port{number}"

    def set_link(self, number: int, up: bool) -> None:
        self.net("ip", "link", "set", self.port(number), "up" if up else "down")

    def on_the_network(self, *argv: str) -> list[str]:
        """argv that runs argv on this side of the network: only the network namespace is another."""
        return [shutil.which("nsenter") or "nsenter", f"--net=/proc/{self.pid}/ns/net", *argv]

    def net(self, *argv: str) -> None:
        done = subprocess.run(self.on_the_network(*argv), capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"

    def dial(self, address: str, port: int, timeout_s: float = 10.0) -> socket.socket:
        """A TCP connection from this side of the network. Raises OSError as connect does."""
        return _in_network(self.pid, lambda: socket.create_connection((address, port), timeout_s))


def _in_network(pid: int, work: Any) -> Any:
    """The result of `work`, called in a thread of its own that has moved to the network of `pid`: sockets stay there."""
    result: list[Any] = []

    def call() -> None:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(fd, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            result.append(work())
        except OSError as error:
            result.append(error)
        finally:
            os.close(fd)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if isinstance(result[0], OSError):
        raise result[0]
    return result[0]


def mount_lines(folders: Sequence[str], overlays: Sequence[str]) -> str:
    """Shell lines that give a box its own empty `folders` (absolute), and its own copy of `overlays`, below `$R`."""
    lines = ["mount -t proc proc /proc"]
    for path in overlays:
        name = path.strip("/").replace("/", "_")
        lines += [
            f'mkdir -p "$R/{name}" "$R/.work/{name}"',
            f'mount -t overlay -o "lowerdir={path},upperdir=$R/{name},workdir=$R/.work/{name}" overlay {path}',
        ]
    for path in folders:
        lines += [f'mkdir -p "$R{path}"', f'mount --bind "$R{path}" {path}']
    return "\n".join(lines)
