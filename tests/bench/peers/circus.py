"""circus: one watcher a service, on unix sockets instead of its fixed ports."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox import Sandbox
from starts import Service

from peers import program, said_version


class Circus:
    name = "circus"
    program = "circus"

    def missing(self) -> str:
        return "" if program("circusd") else "circusd is not installed (pip install circus)"

    def version(self) -> str:
        return said_version(program("circusd"))

    def prepare(self, box: Sandbox, services: Sequence[Service]) -> None:
        lines = [
            "[circus]",
            f"endpoint = ipc://{box.folder}/endpoint",
            f"pubsub_endpoint = ipc://{box.folder}/pubsub",
            f"pidfile = {box.folder}/circus.pid",
        ]
        for service in services:
            lines += [f"[watcher:{service.name}]", f"cmd = {service.script}", "singleton = True"]
        (box.folder / "circus.ini").write_text("\n".join(lines) + "\n")

    def launch(self, box: Sandbox) -> None:
        box.launch("circusd", [program("circusd"), str(box.folder / "circus.ini")])
