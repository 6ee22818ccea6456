"""s6: `s6-svscan` over a scan directory."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox import Sandbox
from starts import Service

from peers import debian_version, program


class S6:
    name = "s6"
    program = "s6"

    def __init__(self) -> None:
        self._count = 0

    def missing(self) -> str:
        return "" if program("s6-svscan") else "s6-svscan is not installed"

    def version(self) -> str:
        return debian_version("s6")

    def prepare(self, box: Sandbox, services: Sequence[Service]) -> None:
        self._count = len(services)
        for service in services:
            folder = box.folder / "scan" / service.name
            folder.mkdir(parents=True)
            (folder / "run").symlink_to(service.script)

    def launch(self, box: Sandbox) -> None:
        most = max(500, self._count + 10)
        box.launch("s6-svscan", [program("s6-svscan"), "-c", str(most), str(box.folder / "scan")])
