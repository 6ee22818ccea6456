"""wrk, the client of the throughput rows: what it is told, and what its report says."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from peers import program

UPLOAD = Path(__file__).with_name("upload.lua")


@dataclass(frozen=True, slots=True)
class Load:
    """`connections` clients that ask again as soon as they are answered."""

    path: str = "/"
    connections: int = 4
    closing: bool = False
    upload: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    requests: int
    seconds: float


WARM_S = 0.3


def warm(port: int) -> None:
    """Some requests that are not counted. Blocks for a moment."""
    process = subprocess.Popen(
        [program("wrk"), "-t1", "-c4", "-d5", f"http://127.0.0.1:{port}/"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(WARM_S)
    process.terminate()
    process.wait()


def run(port: int, load: Load, seconds: int) -> Counts:
    """Blocks for `seconds`. Raises RuntimeError where an answer was missing or no 2xx."""
    extra = ["-H", "Connection: close"] if load.closing else []
    extra += ["-s", str(UPLOAD)] if load.upload else []
    where = f"http://127.0.0.1:{port}{load.path}"
    argv = [program("wrk"), "-t1", f"-c{load.connections}", f"-d{seconds}", *extra, where]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode != 0:
        raise RuntimeError(f"wrk: {done.stderr or done.stdout}")
    return counts(done.stdout)


def counts(said: str) -> Counts:
    """From wrk's report. Raises RuntimeError where it tells of failures."""
    found = re.search(r"(\d+) requests in ([\d.]+)(m?)s", said)
    if found is None or not int(found.group(1)) or "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"wrk: {' '.join(said.split())}")
    return Counts(int(found.group(1)), float(found.group(2)) * (60 if found.group(3) else 1))
