"""A server under Midstream, its code replaced by `midstream deploy` to the same machine.

The handover begins when the deploy says that it publishes: what comes before it (git, checks) touches nothing that
serves, as the other programs' preparations are not counted either.
"""

from __future__ import annotations

import json
import os
import subprocess
import time

from sandbox import Sandbox

from peers import program
from peers.apps import FILES
from peers.gunicorn import GTHREAD
from peers.midstream import (
    COMMAND,
    SOURCE,
    Midstream,
    await_agent,
    environment,
    make_repository,
    midstream,
    project,
    start_agent,
)
from peers.midstream_serve import OPTIONS, missing_serve

UNICORN = "worker_processes 2\npreload_app true\n"


class MidstreamServer:
    """`server`: gunicorn, unicorn or serve (ours)."""

    program = "midstream"

    def __init__(self, name: str, server: str) -> None:
        self.name = name
        self._server = server
        self._own = Midstream()

    def missing(self) -> str:
        if self._server == "serve":
            return self._own.missing() or missing_serve()
        return self._own.missing() or ("" if program(self._server) else f"{self._server} is not installed")

    def version(self) -> str:
        return self._own.version()

    def _command(self) -> list[str]:
        if self._server == "serve":
            return [*COMMAND, *OPTIONS]
        if self._server == "gunicorn":
            return [program("gunicorn"), *GTHREAD, "app:app"]
        return [program("unicorn"), "-E", "production", "-c", "unicorn.rb", "config.ru"]

    def launch(self, box: Sandbox, port: int) -> None:
        service = f"""[services.web]
command = {json.dumps(self._command())}
listen = ["tcp://127.0.0.1:{port}"]
health = {{ http = "/" }}
env = {{ PYTHONPATH = {json.dumps(str(SOURCE))} }}
"""
        files = FILES | {"midstream.toml": project(box, service), "unicorn.rb": UNICORN, "VERSION": "0\n"}
        make_repository(box.folder / "app", files)
        start_agent(box)
        await_agent(box)
        midstream(box, "deploy", cwd=box.folder / "app")

    def handover(self, box: Sandbox, version: int) -> float:
        make_repository(box.folder / "app", {"VERSION": f"{version}\n"})
        began = time.monotonic()
        with subprocess.Popen(
            [*COMMAND, "deploy", "--json"],
            cwd=box.folder / "app",
            env=os.environ | environment(box),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as deploy:
            said = []
            for line in deploy.stdout or ():
                said.append(line)
                if line.startswith("{") and json.loads(line).get("text") == "publishing":
                    began = time.monotonic()
        if deploy.returncode != 0:
            raise RuntimeError(f"midstream deploy: exit {deploy.returncode}: {''.join(said[-5:])}")
        return began
