"""What a Wagtail site's clients lose while it is replaced, release by release, under real servers.

    python tests/bench/wagtail.py [SERVER ...] [--handovers 20] [--pause 0.5] [--links]

Each release is a `midstream deploy`: a virtualenv of its own by pip from wheels, migration, collectstatic, a throw-away
instance that proves it, the handover, the drain. Prints rows of the table in docs/servers.md. Keep-alive clients lose
what the server loses at its own graceful stop; closing clients must lose nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from machine import new_machine
from traffic import record
from wagtail_site import BY_LINKS, BY_PIP, SERVERS, make_kit, replace_under_load

COLUMNS = (
    *("server", "handovers", "requests", "failed, closing", "failed, keep-alive", "idle connections closed"),
    *("p99 steady, ms", "p99 within, ms", "slowest, ms", "s a handover"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("servers", nargs="*", choices=[[], *SERVERS], metavar="SERVER")
    parser.add_argument("--handovers", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between a client's requests")
    parser.add_argument("--links", action="store_true", help="releases link the files of one virtualenv: less work")
    options = parser.parse_args()
    by = BY_LINKS if options.links else BY_PIP
    table = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    with tempfile.TemporaryDirectory(prefix="midstream-wagtail-") as folder:
        kit = make_kit(Path(folder))
        for server in options.servers or SERVERS:
            with new_machine() as machine:
                running = replace_under_load(machine, kit, server, options.handovers, options.pause, 5.0, by)
                figures = running.figures()
            name = f"{server} {kit.versions[server.split()[0].rstrip(',')]}"
            failed = figures["failed"]
            row = (
                *(name, figures["handovers"], figures["requests"], failed["closing"] + failed["admin"]),
                *(failed["keep-alive"], figures["idle closes"], figures["steady p99 ms"], figures["within p99 ms"]),
                *(figures["slowest ms"], figures["handover s, median"]),
            )
            table.append("| " + " | ".join(str(cell) for cell in row) + " |")
            record(f"wagtail {kit.versions['wagtail']}, {name}", figures | {"failures": running.failures})
    print("\n".join(table))


if __name__ == "__main__":
    main()
