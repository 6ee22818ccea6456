"""Installs from Debian the real programs that tests (and with --bench, benchmarks) run, where that is allowed.

It is when: apt-get is there, we are root, and MIDSTREAM_NO_INSTALL is not set. Nothing is started by it. Never fails:
tests of what is missing skip, and say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# program -> Debian package
FOR_TESTS = {
    "git": "git",
    "nginx": "nginx-light",
    "haproxy": "haproxy",
    "unicorn": "unicorn",
    "puma": "puma",
    "cap": "capistrano",
    "sshd": "openssh-server",
    "node": "nodejs",
    "make": "make",
    "cc": "build-essential",
    "runsvdir": "runit",
    "sudo": "sudo",
    "redis-server": "redis-server",
    "sidekiq": "ruby-sidekiq",
    "monit": "monit",
    "chromium": "chromium",
    "slowhttptest": "slowhttptest",
}
FOR_BENCH = {"s6-svscan": "s6", "supervisord": "supervisor", "wrk": "wrk"}
POLICY = Path("/usr/sbin/policy-rc.d")


def missing(programs: dict[str, str]) -> list[str]:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return sorted({package for program, package in programs.items() if not shutil.which(program, path=path)})


def install(packages: list[str]) -> bool:
    """apt-get install, with a policy in place that keeps Debian from starting the new servers."""
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        for command in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            if done.returncode:
                print(f"peers: apt-get {command[0]} failed: {done.stderr.strip()[-300:]}")
                return False
    finally:
        if ours:
            POLICY.unlink(missing_ok=True)
    return True


def main(arguments: list[str]) -> int:
    wanted = FOR_TESTS | (FOR_BENCH if "--bench" in arguments else {})
    packages = missing(wanted)
    if not packages:
        return 0
    if os.environ.get("MIDSTREAM_NO_INSTALL") or os.getuid() != 0 or not shutil.which("apt-get"):
        print(f"peers: not installing {', '.join(packages)} (root and apt-get are needed); their tests skip")
        return 0
    print(f"peers: installing {', '.join(packages)}", flush=True)
    if not install(packages):
        for package in packages:  # one that cannot be had must not keep the others away
            install([package])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
