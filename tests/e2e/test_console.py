"""`midstream console` on a real terminal: bytes both ways, ^C, window size, exit status, hang-up, rights."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet
from machine import PATIENCE_S, Machine, Project, wait_for

from midstream.cli.terminal_bridge import Escape, Left, exit_code
from midstream.deploy.sync_client import connect
from midstream.errors import MidstreamError


class Terminal:
    """A command on a pseudo-terminal of its own, as its controlling one."""

    def __init__(self, argv: list[str], cwd: Path, env: dict[str, str], rows: int = 31, cols: int = 97) -> None:
        self.fd, theirs = os.openpty()
        self.resize(rows, cols)

        def own() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=env, start_new_session=True, preexec_fn=own
        )
        os.close(theirs)
        self.seen = ""

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, pattern: str, nudge: str = "") -> re.Match[str]:
        """Waits until what came since the last match has it. nudge: typed again and again meanwhile."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline_s, f"no {pattern!r} in {self.seen!r}"
            self.type(nudge)
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.fd, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"the terminal is closed; no {pattern!r} in {self.seen!r}") from None
        self.seen = self.seen[found.end() :]
        return found

    def wait(self) -> int:
        """The exit code; goes on reading meanwhile."""
        while self.process.poll() is None:
            if select.select([self.fd], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.fd, 65536).decode(errors="replace")
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.fd)


@contextlib.contextmanager
def terminal(project: Project, *args: str) -> Iterator[Terminal]:
    machine = project.machine
    made = Terminal(
        [sys.executable, "-m", "midstream", "console", *args], project.folder, machine.env | {"TERM": "xterm"}
    )
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def shop(project: Project) -> Project:
    """A release with a console, and a variable."""
    project.commit(config=project.config(top='console = "sh"\n[env]\nCOLOUR = "teal"\n'))
    project.deployed()
    return project


def consoles(machine: Machine) -> list[int]:
    """Processes that run as a console."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and b"/+console/" in Path(f"/proc/{name}/environ").read_bytes():
                found.append(int(name))
    return [pid for pid in found if pid in machine.left_over()]


def test_it_is_the_apps_shell_in_its_release_on_a_terminal(shop: Project) -> None:
    with terminal(shop) as console:
        console.type("tty; pwd; echo $COLOUR-$MIDSTREAM_RELEASE-$TERM; stty size; ps -o tty= -p $$\n")
        console.expect(r"/dev/pts/\d+")
        release = console.expect(r"/releases/(\d{14})\r")[1]
        console.expect(rf"teal-{release}-xterm")
        console.expect(r"31 97")
        console.expect(r"pts/\d+")
        console.type("exit 7\n")
        assert console.wait() == 7
    assert release == shop.machine.app()["release"]


def test_the_window_may_change_its_size(shop: Project) -> None:
    with terminal(shop) as console:
        console.type("trap 'echo changed-$(stty size)' WINCH; echo rea''dy\n")
        console.expect("ready")
        console.resize(40, 111)
        os.kill(console.process.pid, signal.SIGWINCH)
        console.expect("changed-40 111", nudge="\n")  # a shell that waits for a line runs its trap after it


def test_ctrl_c_goes_to_the_program_and_not_to_the_command(shop: Project) -> None:
    with terminal(shop) as console:
        console.type("echo rea''dy; cat\n")
        console.expect("ready")
        console.type("hello\n")
        console.expect("hello\r+\nhello")
        console.type("\x03")
        console.expect("[#$] ")  # until then cat may take what is typed, and die with it
        console.type("echo sta''tus $?\n")
        console.expect("status 130")
        console.type("kill -TERM $$; kill -KILL $$\n")
        assert console.wait() == 128 + signal.SIGKILL


def test_another_command_and_a_large_paste(shop: Project) -> None:
    text = "".join(f"{number:05d}" + "x" * 60 + "\n" for number in range(300))
    with terminal(shop, "--", "sh", "-c", "stty -echo; echo ready; wc -c; echo do''ne") as console:
        console.expect("ready")
        for start in range(0, len(text), 1000):
            console.type(text[start : start + 1000])
        console.type("\x04")
        console.expect(rf"\b{len(text)}\b")
        console.expect("done")
        assert console.wait() == 0


def test_a_flood_of_output_arrives_whole(shop: Project) -> None:
    with terminal(shop, "--", "sh", "-c", "seq 1 60000; exit 3") as console:
        assert console.wait() == 3
        console.expect("59999\r\n60000")


@pytest.mark.parametrize("how", ["kill", "tilde", "hang-up"])
def test_what_runs_ends_with_its_client(shop: Project, how: str) -> None:
    with terminal(shop, "--", "sh", "-c", "trap '' INT; echo pid=$$; exec sleep 1000") as console:
        pid = int(console.expect(r"pid=(\d+)")[1])
        if how == "kill":
            console.process.kill()
        elif how == "hang-up":
            console.process.send_signal(signal.SIGHUP)
        else:
            console.type("\r~.")
            assert console.wait() == 1
        wait_for("the program to end", lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid))
    wait_for("no console", lambda: not consoles(shop.machine))
    assert shop.machine.settled()


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_an_agent_that_is_killed_ends_it_and_the_command_says_so(shop: Project) -> None:
    pids = shop.machine.pids()
    with terminal(shop) as console:
        console.type("echo rea''dy\n")
        console.expect("ready")
        shop.machine.kill_agent()
        console.expect("was cut off")
        assert console.wait() == 1
    wait_for("no console", lambda: not consoles(shop.machine))
    assert shop.machine.pids() == pids


def test_the_terminal_is_as_it_was_before(shop: Project) -> None:
    with terminal(shop) as console:
        console.type("exit 0\n")
        before = termios.tcgetattr(console.fd)[:4]
        assert console.wait() == 0
        assert termios.tcgetattr(console.fd)[3] & termios.ECHO
        assert before is not None


def test_without_a_terminal_without_a_console_and_of_an_unknown_program(project: Project) -> None:
    project.deployed()
    assert "needs a terminal" in project.cli("console").err
    with terminal(project) as console:
        console.expect("has no console")
        assert console.wait() == 2
    with terminal(project, "--", "no-such-program") as console:
        console.expect("no-such-program: not found in PATH")
        assert console.wait() == 127


def test_a_session_belongs_to_its_connection(shop: Project) -> None:
    with terminal(shop) as console, connect(str(shop.machine.socket)) as other:
        console.type("echo rea''dy\n")
        console.expect("ready")
        numbers = [number for number in range(1, 50) if _may(other, number)]
        assert numbers == []


def _may(client: Any, number: int) -> bool:
    try:
        client.call("console.write", session=number, data="")
    except MidstreamError as error:
        assert "no such console" in error.what
        return False
    return True


@pytest.mark.slow
def test_over_ssh_as_the_apps_user(fleet_of: Callable[..., Fleet]) -> None:
    fleet = fleet_of(2)
    project = fleet.project()
    config = project.folder / "midstream.toml"
    config.write_text('console = "sh"\n' + config.read_text())
    project.commit()
    assert project.deploy().code == 0
    made = Terminal(fleet.argv("console", "--hosts", "web2"), project.folder, fleet.env | {"TERM": "xterm"})
    try:
        made.type("echo $(id -un)@$MIDSTREAM_RELEASE $(stty size)\n")
        found = made.expect(r"(\w+)@(\d{14}) 31 97")
        assert found.groups() == ("deploy", fleet.host("web2").release())
        made.type("exit 5\n")
        assert made.wait() == 5
    finally:
        made.close()


# ---------------------------------------------------------------------- small parts


def test_the_escape_is_found_only_at_the_beginning_of_a_line() -> None:
    escape = Escape()
    assert escape(b"a~.b\r") == b"a~.b\r"
    assert escape(b"~") == b""
    assert escape(b"~x") == b"~x"
    assert escape(b"\n~a") == b"\n~a"
    with pytest.raises(Left):
        escape(b"\r~.")


@pytest.mark.parametrize(
    ("answer", "code"),
    [({"code": 0}, 0), ({"code": 3}, 3), ({"code": None, "text": "killed by SIGINT"}, 130), ({"text": "lost"}, 1)],
)
def test_exit_codes_as_shells_have_them(answer: dict[str, Any], code: int) -> None:
    assert exit_code(answer) == code
