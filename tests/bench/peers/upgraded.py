"""How each web server takes new code while it serves, by its own manual.

`Upgraded` has the app's folder and the ways; what is started is in `peers/web.py`. The code of all but Midstream is replaced
where it lies, which is the easiest for them; Midstream gets a release folder and the symlink `current`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

from sandbox import Sandbox

from peers.unicorn import RETIRE_THE_OLD
from peers.web import ASGI, GTHREAD, RACK, SYNC, WSGI, Wanted, WebServer, launch, named, write_apps

GONE_TIMEOUT_S = 30.0
APPS = {"wsgi": "upgraded_wsgi:app", "asgi": "upgraded_asgi:app", "rack": "upgraded.ru"}
UNICORN = (
    """\
worker_processes 2
preload_app true
pid "{folder}/unicorn.pid"
"""
    + RETIRE_THE_OLD
)


@dataclass(frozen=True, slots=True)
class Way:
    """`server`, started as it must be for that; `ask` is the signal to its master, `retire` the one to the old master once
    the new one serves, if there are two."""

    name: str
    server: WebServer
    ask: signal.Signals
    retire: signal.Signals | None = None
    more: tuple[str, ...] = ()


MIDSTREAM_ASGI, GRANIAN_ASGI = replace(ASGI[0], name="midstream asgi"), named("granian", "asgi")
UVICORN, HYPERCORN = named("uvicorn", "asgi"), named("hypercorn", "asgi")
UNICORN_SERVER, PUMA = RACK
HUP, USR1, USR2 = signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
WAYS = (
    Way("midstream", WSGI[0], USR2),
    Way("midstream asgi", MIDSTREAM_ASGI, HUP),
    Way("gunicorn gthread HUP", GTHREAD, HUP),
    Way("gunicorn gthread USR2, TERM", GTHREAD, USR2, signal.SIGTERM),
    Way("gunicorn gthread USR2, QUIT", GTHREAD, USR2, signal.SIGQUIT),
    Way("gunicorn sync HUP", SYNC, HUP),
    Way("granian HUP", named("granian", "wsgi"), HUP),
    Way("granian asgi HUP", GRANIAN_ASGI, HUP),
    Way("uvicorn HUP", UVICORN, HUP),
    Way("hypercorn HUP", HYPERCORN, HUP),
    Way("unicorn USR2", UNICORN_SERVER, USR2),
    Way("puma USR1 (phased)", PUMA, USR1),
    Way("puma USR2 (hot)", PUMA, USR2),
)


class Upgraded:
    """A running server, version 0 of the app in it."""

    def __init__(self, way: Way, box: Sandbox, port: int) -> None:
        self._way, self._box = way, box
        self._releases = box.folder / "releases"
        self._releases.mkdir()
        self._pid_file = box.folder / "server.pid"
        self._write(0)
        self._process = launch(box, way.server, self._wanted(port), self._folder())

    def _wanted(self, port: int) -> Wanted:
        wanted = Wanted(APPS[self._way.server.interface], port, workers=2)
        program = self._way.server.program
        if program == "midstream":
            return replace(wanted, more=("--chdir", str(self._folder())))
        if program == "gunicorn":
            return replace(wanted, more=("-p", str(self._pid_file)))
        if program == "unicorn":
            (self._folder() / "unicorn.rb").write_text(UNICORN.format(folder=self._box.folder))
        if program == "puma":
            # A phased restart needs workers that load the app themselves.
            (self._folder() / "puma.rb").write_text(f"preload_app! {'false' if self._way.ask == USR1 else 'true'}\n")
            return replace(wanted, more=("-C", "puma.rb"))
        return wanted

    def _folder(self) -> Path:
        """What the server is given: `current` for Midstream, for the others a folder that is written over."""
        return self._box.folder / "current" if self._way.server.program == "midstream" else self._releases / "0"

    def _write(self, version: int) -> None:
        ours = self._way.server.program == "midstream"
        folder = self._releases / (str(version) if ours else "0")
        if not folder.exists():
            write_apps(folder)
        (folder / "VERSION").write_text(f"{version}\n")
        if ours:
            link = self._box.folder / "next"
            link.symlink_to(folder)
            link.rename(self._box.folder / "current")

    def ask(self, version: int) -> float:
        """Give it that version; when it was asked, by CLOCK_MONOTONIC."""
        self._write(version)
        master = self.master()
        if not master:
            raise RuntimeError("it has written no pid file")
        began = time.monotonic()
        os.kill(master, self._way.ask)
        return began

    def retire(self, old: int) -> None:
        """The second step, where there is one: to the old master. Blocks until it is gone; raises TimeoutError."""
        if self._way.retire is None:
            return
        os.kill(old, self._way.retire)
        deadline = time.monotonic() + GONE_TIMEOUT_S
        while self._lives(old) or self.master() in (0, old):
            if time.monotonic() > deadline:
                raise TimeoutError("the old master does not end")
            time.sleep(0.05)

    def master(self) -> int:
        """Its pid at present. Raises RuntimeError when it has ended."""
        name = {"gunicorn": "server.pid", "unicorn": "unicorn.pid"}.get(self._way.server.program)
        if name is None:
            if self._process.poll() is not None:
                raise RuntimeError(f"it ended with {self._process.returncode}")
            return self._process.pid
        with contextlib.suppress(OSError, ValueError):
            return int((self._box.folder / name).read_text())
        return 0

    def said(self) -> str:
        """The last lines that it wrote."""
        return " ".join(self._box.output(path.stem) for path in self._box.folder.glob("*.out"))

    def _lives(self, pid: int) -> bool:
        """Whoever loses its parent is ours to reap."""
        if pid == self._process.pid:
            return self._process.poll() is None
        with contextlib.suppress(ChildProcessError):
            return os.waitpid(pid, os.WNOHANG)[0] == 0
        return Path(f"/proc/{pid}").exists()
