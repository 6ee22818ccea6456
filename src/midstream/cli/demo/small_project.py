"""The project of `midstream demo --quick`: the same story with a small server and worker that need nothing but Python.

Here: files and commits, nothing else. The server is `midstream.testing.drain_server`, copied.
"""

from __future__ import annotations

import importlib.resources

from midstream.cli.demo.process_log import PROCESSES
from midstream.cli.demo.project_kind import Change, ProjectKind, Prospect, Traffic

_TOML = """\
app = "shop"
repository = "${repository}"
branch = "main"
deploy_to = "${deploy_to}"
linked_dirs = ["log"]

[services.web]
command = "${python} web.py"
listen = ["tcp://127.0.0.1:${port}"]
ready = "notify"
health = "/up"

[services.jobs]
command = "${python} work.py"
handover = "drain"
ready = "notify"
"""

_WEB = """\
import asyncio
import sys

import processes
import server

processes.began()
sys.exit(asyncio.run(server.main()))
"""

_WORK = """\
import signal
import threading

import processes
import server

processes.began()
quiet = threading.Event()
signal.signal(signal.SIGTERM, lambda number, frame: quiet.set())
server.notify("READY=1")
job = 0
while not quiet.wait(0.1):
    job += 1
    processes.write("job", job=job)
"""


def small() -> ProjectKind:
    """Reads the server's text from this copy of Midstream."""
    server = importlib.resources.files("midstream.testing").joinpath("drain_server.py").read_text(encoding="utf-8")
    first = {
        "midstream.toml": _TOML,
        "server.py": server,
        "web.py": _WEB,
        "work.py": _WORK,
        "processes.py": PROCESSES,
        "misbehave": "",
    }
    return ProjectKind(
        name="a small server and a worker",
        wheels="",
        changes=(
            Change("Open the shop", Prospect.GOOD, first),
            Change("Offer gift wrapping", Prospect.GOOD, {"gifts": "yes\n"}),
            Change("Deliver in order of priority", Prospect.GOOD, {"priority": "yes\n"}),
            Change("Import a module that was not committed", Prospect.DOES_NOT_BOOT, {"misbehave": "exit\n"}),
            Change("Read a setting that nobody has set", Prospect.ANSWERS_500, {"misbehave": "unhealthy\n"}),
        ),
        traffic=Traffic(host="localhost", page="/", slow_page="/slow?ms=250", order=""),
        database="",
    )
