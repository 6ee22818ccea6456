"""The benchmarks: `python tests/bench/run.py [NAME...] [--quick] [--json FILE] [--page FILE]`.

Prints each number beside its peers and its budget; a complete run also writes `docs/benchmarks.md`. Run as root or not,
on an idle machine; everything stays on loopback and in temporary folders, and every process started is gone in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
from cases import FULL, QUICK, Scale, deploying, handover, serving, supervision, upgrading
from measurement import Measurement
from peers import Server, Supervisor
from peers.web import ASGI, RACK, WSGI, WebServer
from sandbox import become_subreaper

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
CASES: dict[str, Callable[[Scale, frozenset[str]], Iterator[Measurement]]] = {
    "supervision": supervision.measure,
    "handover": handover.measure,
    "deploying": deploying.measure,
    "serving": serving.measure,
    "upgrading": upgrading.measure,
}
# They repeat within one run what they measure, subjects taking turns.
ONCE = frozenset({"serving", "upgrading"})


def main() -> int:
    options = _options()
    if options.render:
        record = _joined([json.loads(Path(name).read_text()) for name in options.render])
    else:
        record = _measure(options)
        if options.json:
            Path(options.json).write_text(json.dumps(record, indent=1) + "\n")
    print(report.table(record))
    page = options.page or (str(PAGE) if _is_complete(options) else "")
    if page:
        Path(page).write_text(report.page(record))
    return 0


def _joined(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Of records of the same machine, one; the rest is that of the first."""
    first, *others = records
    machine = {**first["machine"], "load": ", ".join(record["machine"]["load"] for record in records)}
    versions = {name: version for record in records for name, version in record["versions"].items()}
    every = [item for record in records for item in record["measurements"]]
    runs = min(record["runs"] for record in records)
    quick = any(record["quick"] for record in records)
    assert all(record["machine"]["kernel"] == machine["kernel"] for record in others), "measured on different machines"
    return {
        **first,
        "runs": runs,
        "quick": quick,
        "machine": machine,
        "versions": versions,
        "measurements": every,
    }


def _is_complete(options: argparse.Namespace) -> bool:
    """Whether all was measured at full length: then the page is written without asking."""
    chosen = (options.names, options.only, options.services, options.part, options.runs, options.render)
    return not (options.quick or any(chosen))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(CASES)} (default: all)")
    parser.add_argument("--only", metavar="PROGRAM", action="append", help="measure these programs alone")
    parser.add_argument("--services", metavar="N", action="append", type=int, help="how many services (1, 100, 1000)")
    parser.add_argument("--part", metavar="PART", action="append", choices=serving.PARTS, help="of serving, this alone")
    parser.add_argument("--quick", action="store_true", help="one short run, to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write what was measured")
    parser.add_argument("--page", metavar="FILE", nargs="?", const=str(PAGE), help="write docs/benchmarks.md")
    parser.add_argument("--runs", metavar="N", type=int, help="how many times (3; --quick: 1)")
    parser.add_argument("--render", metavar="FILE", nargs="+", help="measure nothing, show files written by --json")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in CASES]
    if unknown:
        parser.error(f"no benchmark {unknown[0]}; there are {', '.join(CASES)}")
    return options


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    become_subreaper()
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit(130))  # so that sandboxes are cleared away
    scale = QUICK if options.quick else FULL
    if options.services:
        scale = replace(scale, counts=tuple(options.services))
    if options.runs:
        scale = replace(scale, runs=options.runs, rounds=options.runs)
    if options.part:
        scale = replace(scale, parts=frozenset(options.part))
    machine = _machine()
    found: list[Measurement] = []
    for number in range(scale.runs):
        for name in options.names or CASES:
            if number and name in ONCE:
                continue
            for item in CASES[name](scale, frozenset(options.only or ())):
                print(
                    f"[{number + 1}/{scale.runs}] {item.metric} {item.subject}: "
                    + (report.reason(item) if item.missing else f"{report.digits(item.value)} {item.unit}"),
                    file=sys.stderr,
                    flush=True,
                )
                found.append(item)
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "quick": scale.quick,
        "runs": scale.runs,
        "machine": machine,
        "versions": _versions(),
        "measurements": [item.to_json() for item in found],
    }


def _versions() -> dict[str, str]:
    every: list[Supervisor | Server | WebServer] = [
        *supervision.subjects(),
        *handover.subjects(),
        *WSGI,
        *ASGI,
        *RACK,
    ]
    return {item.program: item.version() for item in every if not item.missing()}


def _machine() -> dict[str, Any]:
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 1e9),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "load": " ".join(f"{number:.2f}" for number in os.getloadavg()),
    }


if __name__ == "__main__":
    sys.exit(main())
