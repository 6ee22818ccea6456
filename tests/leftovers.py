"""What a run of tests leaves behind: processes, mounts, files. Used by conftest.py, in the process that the run began with.

Each run has a temporary folder of its own, `/tmp/msXXXXXXXX`, and TMPDIR names it, so whatever tests start has its path in
its environment, its command line or its folder, also what made itself a daemon. Paths of unix sockets have 107 bytes: the
name is short, and it is below /tmp whatever TMPDIR was. pytest's own `tmp_path` stays where it is kept for a look afterwards.

A run that was killed cannot look; the next one does, and clears away what it left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

PARENT = Path("/tmp")
_PREFIX = "ms"
_OWNER = ".owner"  # pid and start time of the run
_SHARED = ".shared"  # what is made once in a run, for all its processes (`once` of e2e/machine.py)
_ALLOWED_S = 10.0  # to end: what was told to just before
_SWEPT_BY_ITS_PROGRAM = ("midstream-packs-", "midstream-builds-")  # of killed deployers: the next one removes them


def begin() -> Path:
    """The run's folder, which TMPDIR names from now on. Clears what killed runs have left."""
    for folder in _of_the_dead():
        clear(folder)
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=PARENT))
    folder.chmod(0o1777)  # tests run things as other users
    (folder / _OWNER).write_text(_stamp(os.getpid()))
    (folder / _SHARED).mkdir()
    os.environ["TMPDIR"] = str(folder)
    os.environ["MIDSTREAM_RUN_SHARED"] = str(folder / _SHARED)
    tempfile.tempdir = None
    return folder


def found(folder: Path) -> list[str]:
    """A line for each thing that is left. Waits a little for processes that are about to end."""
    give_up_s = time.monotonic() + _ALLOWED_S
    while processes(folder) and time.monotonic() < give_up_s:
        time.sleep(0.05)
    left = [f"process {pid}: {_command(pid)}" for pid in processes(folder)]
    left += [f"mount {path}" for path in mounts(folder)]
    names = sorted(path.name for path in folder.iterdir())
    return left + [f"file {folder}/{name}" for name in names if not name.startswith((".", *_SWEPT_BY_ITS_PROGRAM))]


def clear(folder: Path) -> None:
    """Ends the processes, takes the mounts away, removes the folder. Raises nothing: what stays is named next time."""
    for pid in processes(folder):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    for path in reversed(mounts(folder)):
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)
    if not mounts(folder):  # never into a mount
        shutil.rmtree(folder, ignore_errors=True)


def processes(folder: Path) -> list[int]:
    """Those that name the folder in their environment or command line, or are in it. Not this one."""
    mark = os.fsencode(folder)
    return [
        int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid() and _names(name, mark)
    ]


def _names(pid: str, mark: bytes) -> bool:
    try:
        text = b"\0".join(Path(f"/proc/{pid}/{what}").read_bytes() for what in ("environ", "cmdline"))
        return mark in text or mark in os.readlink(os.fsencode(f"/proc/{pid}/cwd"))
    except OSError:  # gone, or not ours to look into
        return False


def mounts(folder: Path) -> list[str]:
    """Mount points below the folder, in the order in which they were made."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return [point for point in (line.split()[4] for line in lines) if point.startswith(f"{folder}/")]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()[:200]
    except OSError:
        return "(it ended)"


def _stamp(pid: int) -> str:
    """The pid with its start time, which tells it from a later process of the same number; "" when it is gone."""
    try:
        return f"{pid} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except OSError:
        return ""


def _of_the_dead() -> list[Path]:
    """Folders of runs whose first process is gone, of this user."""
    dead = []
    for owner in PARENT.glob(f"{_PREFIX}*/{_OWNER}"):
        try:
            stamp = owner.read_text()
            if owner.stat().st_uid == os.geteuid() and stamp and stamp != _stamp(int(stamp.split()[0])):
                dead.append(owner.parent)
        except (OSError, ValueError):
            continue
    return dead
