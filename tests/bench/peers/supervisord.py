"""supervisord: one program a service, its own log files as by default."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox import Sandbox
from starts import Service

from peers import program, said_version


class Supervisord:
    name = "supervisord"
    program = "supervisor"

    def missing(self) -> str:
        return "" if program("supervisord") else "supervisord is not installed"

    def version(self) -> str:
        return said_version(program("supervisord"))

    def prepare(self, box: Sandbox, services: Sequence[Service]) -> None:
        (box.folder / "logs").mkdir()
        lines = [
            "[supervisord]",
            f"logfile={box.folder}/supervisord.log",
            f"pidfile={box.folder}/supervisord.pid",
            f"childlogdir={box.folder}/logs",
            f"minfds={1024 + 8 * len(services)}",
        ]
        for service in services:
            lines += [f"[program:{service.name}]", f"command={service.script}", "autorestart=true"]
        (box.folder / "supervisord.conf").write_text("\n".join(lines) + "\n")

    def launch(self, box: Sandbox) -> None:
        box.launch("supervisord", [program("supervisord"), "-n", "-c", str(box.folder / "supervisord.conf")])
