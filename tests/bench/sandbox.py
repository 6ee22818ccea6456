"""A temporary folder with processes of our own in it, and the certainty that none of them stays.

The benchmark makes itself the subreaper, so that whatever is started by what it started, however detached, stays its
descendant; only descendants are ever killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
TIDYING_S = 3.0


def become_subreaper() -> None:
    """Processes whose parent dies become our children from now on."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(root: int) -> set[int]:
    """All living processes below `root`, itself not included."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                children.setdefault(int(stat.rsplit(")", 1)[1].split()[1]), []).append(int(entry))
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found:
                found.add(pid)
                waiting.append(pid)
    return found


@dataclass(slots=True)
class Sandbox:
    """A folder, and what was started in it. Output of the programs goes to `folder/NAME.out`."""

    folder: Path

    def launch(
        self,
        name: str,
        argv: Sequence[str],
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        session: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start a program in the background; `session`: in one of its own, as a supervisor would. The kernel shares out
        its time by sessions (autogroup), so what is compared must be alike in that."""
        with (self.folder / f"{name}.out").open("ab") as output:
            return subprocess.Popen(
                argv,
                cwd=cwd or self.folder,
                env=os.environ | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=session,
            )

    def output(self, name: str) -> str:
        """The last lines that a program wrote."""
        path = self.folder / f"{name}.out"
        return "\n".join(path.read_text(errors="replace").splitlines()[-15:]) if path.exists() else ""

    def kill_all(self, last: frozenset[int] = frozenset()) -> None:
        """SIGKILL to every descendant until there is none; `last` (services) after those who would restart them."""
        me, patience_s = os.getpid(), time.monotonic() + TIDYING_S
        while alive := descendants(me):
            tidying = {pid for pid in alive if _tidies_up(pid)} if time.monotonic() < patience_s else set()
            for pid in (alive - last - tidying) or (alive - tidying):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.005)


def _tidies_up(pid: int) -> bool:
    """Python's own helper, which removes semaphores (of hypercorn, say) once those who used them are dead."""
    with contextlib.suppress(OSError):
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _in_memory() -> str | None:
    """Runtime folders are on a tmpfs on real hosts (/run), whosever they are: on a disk with a journal the numbers would
    be the file system's."""
    path = "/dev/shm"
    return path if os.access(path, os.W_OK) else None


@contextlib.contextmanager
def sandbox() -> Iterator[Sandbox]:
    """A sandbox under the temporary folder; when it ends, its processes are dead and its files gone."""
    # Short: paths of unix sockets end at 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="msb", dir=_in_memory()))
    box = Sandbox(folder)
    try:
        yield box
    finally:
        box.kill_all()
        shutil.rmtree(folder, ignore_errors=True)
