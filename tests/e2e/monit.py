"""A private Monit: its own control file, socket, state and log in a folder of the test, and services that it owns.

The daemon runs in the foreground under a small subreaper, so that what its services leave behind is reaped as init would
(in a container, process 1 may not). Nothing here listens on the network.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from machine import wait_for

MISSING = not shutil.which("monit")

# prctl(PR_SET_CHILD_SUBREAPER): init for all that Monit starts, also when Monit itself is gone. A line of stdin starts a
# daemon; its end ends this.
_INIT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)

def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

signal.signal(signal.SIGCHLD, reap)
for _ in sys.stdin:
    silent = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
    print(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent), flush=True)
"""

_START = """#!/bin/sh
# what people write: into `current`, start it in the background, note its pid
if [ -e {folder}/{name}.slow ]; then sleep $(cat {folder}/{name}.slow); fi
cd {current} || exit 1
if [ -e {folder}/{name}.broken ]; then exit 1; fi
setsid {command} </dev/null >>{folder}/{name}.out 2>&1 &
echo $! >{folder}/{name}.pid
"""

_STOP = """#!/bin/sh
pid=$(cat {folder}/{name}.pid) || exit 0
kill -TERM $pid
for i in $(seq 200); do kill -0 $pid 2>/dev/null || break; sleep 0.05; done
rm -f {folder}/{name}.pid
"""


@dataclass
class PrivateMonit:
    """`cycle_s`: how often it looks; what it is told wakes it at once. Call `service` for each, then `start`."""

    folder: Path
    cycle_s: int = 1
    init: subprocess.Popen[str] | None = None
    pid: int = 0
    sections: list[str] = field(default_factory=list)

    @property
    def control(self) -> Path:
        return self.folder / "monitrc"

    def service(
        self,
        name: str,
        current: Path,
        command: str,
        *,
        depends_on: str = "",
        more: str = "",
        start_timeout_s: int = 30,
        stop_timeout_s: int = 20,
    ) -> None:
        for word, text in (("start", _START), ("stop", _STOP)):
            path = self.folder / f"{name}.{word}"
            path.write_text(text.format(folder=self.folder, name=name, current=current, command=command))
            path.chmod(0o755)
        depends = f"  depends on {depends_on}\n" if depends_on else ""
        self.sections.append(
            f'check process {name} with pidfile "{self.folder}/{name}.pid"\n'
            f'  start program = "{self.folder}/{name}.start" with timeout {start_timeout_s} seconds\n'
            f'  stop program = "{self.folder}/{name}.stop" with timeout {stop_timeout_s} seconds\n{depends}{more}\n'
        )

    def write(self) -> None:
        head = (
            f"set daemon {self.cycle_s}\nset pidfile {self.folder}/monit.pid\nset idfile {self.folder}/monit.id\n"
            f"set statefile {self.folder}/monit.state\nset logfile {self.folder}/monit.log\n"
            f'set httpd unixsocket {self.folder}/monit.sock\n  allow user:"pass word"\n'
        )
        self.control.write_text(head + "".join(self.sections))
        self.control.chmod(0o600)

    def start(self) -> None:
        """Also once more, after `stop` or `kill`."""
        self.write()
        program = shutil.which("monit")
        assert program is not None
        if self.init is None:
            self.init = subprocess.Popen(
                [sys.executable, "-c", _INIT, program, "-I", "-c", str(self.control)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=self.folder,
                start_new_session=True,
            )
        assert self.init.stdin is not None and self.init.stdout is not None
        self.init.stdin.write("start\n")
        self.init.stdin.flush()
        self.pid = int(self.init.stdout.readline())
        wait_for("Monit to answer", self.answers)

    def answers(self) -> bool:
        return self.run("status").returncode == 0

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["monit", "-B", "-c", str(self.control), *words],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def say(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def field(self, service: str, key: str) -> str:
        found = re.search(rf"^  {key} {{2,}}(.*?)\s*$", self.say("status", service), re.MULTILINE)
        return found[1] if found else ""

    def is_watched(self, service: str) -> bool:
        """Watched, and nothing asked for that would end that."""
        status = self.field(service, "status")
        return self.field(service, "monitoring status") != "Not monitored" and "pending" not in status

    def is_left_alone(self, service: str) -> bool:
        return self.field(service, "status") == "Not monitored"

    def pid_of(self, service: str) -> int:
        """0 when it does not run."""
        try:
            pid = int((self.folder / f"{service}.pid").read_text())
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            return 0
        return 0 if state in "ZX" else pid

    def cwd_of(self, service: str) -> str:
        """The folder that it truly runs in: its release."""
        pid = self.pid_of(service)
        try:
            return os.path.basename(os.readlink(f"/proc/{pid}/cwd")) if pid else ""
        except OSError:
            return ""

    def log(self) -> str:
        return (self.folder / "monit.log").read_text(errors="replace")

    def kill(self) -> None:
        """kill -9 of the daemon alone; its services go on."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """The daemon alone, in order."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        wait_for("Monit to be gone", lambda: not Path(f"/proc/{self.pid}").exists())

    def close(self) -> None:
        if self.init is None:
            return
        self.stop()
        for path in self.folder.glob("*.pid"):
            pid = self.pid_of(path.stem) if path.stem != "monit" else 0
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.init.communicate(timeout=30.0)


@contextlib.contextmanager
def private_monit(folder: Path, cycle_s: int = 1) -> Iterator[PrivateMonit]:
    folder.mkdir(parents=True, exist_ok=True)
    monit = PrivateMonit(folder, cycle_s)
    try:
        yield monit
    finally:
        monit.close()
