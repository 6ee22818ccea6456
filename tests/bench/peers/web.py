"""Web servers and how each is started, as its manual says: a line in a table for each.

Two or more workers are given to each; all else is a server's default, but for the access log, which is switched where it
is compared. A server that writes one by default is told not to.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sandbox import Sandbox

from peers import program, said_version
from peers.midstream import COMMAND, SOURCE

APPS = Path(__file__).resolve().parents[1] / "web_apps"
BOOT_TIMEOUT_S = 60.0
QUESTION = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a server is to be started. `app`: MODULE:NAME, or the name of a rackup file. `more`: further options."""

    app: str
    port: int
    workers: int = 1
    logged: bool = False
    more: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WebServer:
    """`name`: the subject's; `program`: what has the version; `interface`: wsgi, asgi or rack."""

    name: str
    program: str
    interface: str
    options: Callable[[Wanted], list[str]]

    def missing(self) -> str:
        """Why it cannot be measured here, or ""."""
        if self.program == "midstream":
            return "" if _has("uvloop") else "uvloop is not installed (pip install 'midstream[serve]')"
        source = "apt-get install" if self.interface == "rack" else "pip install"
        return "" if program(self.program) else f"{self.program} is not installed ({source} {self.program})"

    def version(self) -> str:
        try:
            return version(self.program)
        except PackageNotFoundError:
            return said_version(program(self.program))

    def argv(self, wanted: Wanted) -> list[str]:
        first = [*COMMAND, "serve"] if self.program == "midstream" else [program(self.program)]
        return [*first, *self.options(wanted), *wanted.more, wanted.app]


def _has(package: str) -> bool:
    with contextlib.suppress(PackageNotFoundError):
        return bool(version(package))
    return False


def _midstream(wanted: Wanted) -> list[str]:
    log = ["--access-log", "-"] if wanted.logged else []
    return ["--bind", f"127.0.0.1:{wanted.port}", "--workers", str(wanted.workers), *log]


def _gunicorn(*own: str) -> Callable[[Wanted], list[str]]:
    def options(wanted: Wanted) -> list[str]:
        log = ["--access-logfile", "-"] if wanted.logged else []
        return [*own, "-b", f"127.0.0.1:{wanted.port}", "-w", str(wanted.workers), *log]

    return options


def _granian(interface: str) -> Callable[[Wanted], list[str]]:
    def options(wanted: Wanted) -> list[str]:
        log = "--access-log" if wanted.logged else "--no-access-log"
        return ["--interface", interface, "--port", str(wanted.port), "--workers", str(wanted.workers), log]

    return options


def _uvicorn(wanted: Wanted) -> list[str]:
    log = [] if wanted.logged else ["--no-access-log"]
    return ["--port", str(wanted.port), "--workers", str(wanted.workers), *log]


def _hypercorn(wanted: Wanted) -> list[str]:
    log = ["--access-logfile", "-"] if wanted.logged else []
    return ["-b", f"127.0.0.1:{wanted.port}", "-w", str(wanted.workers), *log]


def _unicorn(wanted: Wanted) -> list[str]:
    # Its own words: deployment is production with Rack's CommonLogger.
    environment = "deployment" if wanted.logged else "production"
    return ["-E", environment, "-l", f"127.0.0.1:{wanted.port}", "-c", "unicorn.rb"]


def _puma(wanted: Wanted) -> list[str]:
    cluster = ["-w", str(wanted.workers)] if wanted.workers > 1 else []
    log = ["-v"] if wanted.logged else []
    return ["-e", "production", "-b", f"tcp://127.0.0.1:{wanted.port}", *cluster, *log]


SYNC = WebServer("gunicorn sync", "gunicorn", "wsgi", _gunicorn("-k", "sync"))
GTHREAD = WebServer("gunicorn gthread", "gunicorn", "wsgi", _gunicorn("-k", "gthread", "--threads", "4"))
WSGI = (
    WebServer("midstream", "midstream", "wsgi", _midstream),
    WebServer("granian", "granian", "wsgi", _granian("wsgi")),
    SYNC,
    GTHREAD,
)
ASGI = (
    WebServer("midstream", "midstream", "asgi", _midstream),
    WebServer("granian", "granian", "asgi", _granian("asgi")),
    WebServer("uvicorn", "uvicorn", "asgi", _uvicorn),
    WebServer("hypercorn", "hypercorn", "asgi", _hypercorn),
)
RACK = (
    WebServer("unicorn", "unicorn", "rack", _unicorn),
    WebServer("puma", "puma", "rack", _puma),
)


def named(name: str, interface: str) -> WebServer:
    return next(each for each in (*WSGI, *ASGI, *RACK) if (each.name, each.interface) == (name, interface))


def write_apps(folder: Path) -> None:
    """The applications, as the servers will load them."""
    shutil.copytree(APPS, folder, ignore=shutil.ignore_patterns("__pycache__"))


def make_shop(folder: Path) -> None:
    """The Django project's database. Raises RuntimeError, without Django above all."""
    done = subprocess.run([sys.executable, "make_shop.py"], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the Django project: {done.stderr[-300:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(box: Sandbox, server: WebServer, wanted: Wanted, folder: Path) -> subprocess.Popen[bytes]:
    """Start it in `folder`, and wait for its first answer. Raises TimeoutError, RuntimeError with what it said."""
    environment = {
        "PYTHONPATH": f"{folder}:{SOURCE}",
        "WORKERS": str(wanted.workers),
        "HOME": str(box.folder),  # gunicorn makes a socket there
    }
    name = f"{server.interface}{wanted.port}"
    process = box.launch(name, server.argv(wanted), folder, environment, session=True)
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{server.name} ended: {box.output(name)}")
        if answers(wanted.port):
            return process
        time.sleep(0.02)
    raise TimeoutError(f"{server.name} did not answer within {BOOT_TIMEOUT_S:g} s: {box.output(name)}")


def answers(port: int, timeout_s: float = 5.0) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout_s) as sock:
        sock.sendall(QUESTION)
        return sock.recv(100).startswith(b"HTTP/1.1 200")
    return False


def stop(process: subprocess.Popen[bytes], timeout_s: float = 5.0) -> None:
    """TERM, then KILL; what else it leaves behind the sandbox ends."""
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
