"""runit: `runsvdir` over a folder of services, without log services."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox import Sandbox
from starts import Service

from peers import debian_version, program


class Runit:
    name = "runit"
    program = "runit"

    def missing(self) -> str:
        return "" if program("runsvdir") else "runsvdir is not installed"

    def version(self) -> str:
        return debian_version("runit")

    def prepare(self, box: Sandbox, services: Sequence[Service]) -> None:
        for service in services:
            folder = box.folder / "sv" / service.name
            folder.mkdir(parents=True)
            (folder / "run").symlink_to(service.script)

    def launch(self, box: Sandbox) -> None:
        box.launch("runsvdir", [program("runsvdir"), str(box.folder / "sv")])
