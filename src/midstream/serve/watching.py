"""`--reload`: a program beside the master that asks for an upgrade whenever a source file changes. For development.

The master has no threads and imports nothing but the standard library, so the watching is a child's, with watchfiles; it
sends HUP, and dies with the master. A file that does not parse is a failed upgrade: what served before goes on.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence

from midstream.errors import OperatorError
from midstream.linux import prctl
from midstream.serve.settings import Settings

_CHILD = "import sys; from midstream.serve.watching import main; sys.exit(main(sys.argv[1:]))"
_LEFT_OUT = frozenset(
    (
        ".git",
        ".hg",
        ".svn",
        ".venv",
        "venv",
        "__pycache__",
        "node_modules",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
    )
)


def start(settings: Settings) -> None:
    """Starts the child of this process, which is or becomes the master. Raises OperatorError without watchfiles."""
    if importlib.util.find_spec("watchfiles") is None:
        raise OperatorError(
            "--reload needs watchfiles", where=sys.executable, remedy="pip install watchfiles, or leave --reload out"
        )
    package = importlib.util.find_spec("midstream")
    assert package is not None and package.origin is not None
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(package.origin))}
    argv = [sys.executable, "-c", _CHILD, str(os.getpid()), settings.chdir, *settings.reload_paths]
    os.posix_spawn(sys.executable, argv, environment)


def is_source(path: str, folder: str, named: Sequence[str]) -> bool:
    """Whether a change of it is one of the app's code. folder: of the app, named: what --reload-path names."""
    for one in named:
        if path == one or path.startswith(one.rstrip("/") + "/"):
            return not _LEFT_OUT & set(path[len(one) :].split("/"))
    return path.endswith(".py") and not _LEFT_OUT & set(os.path.relpath(path, folder).split("/"))


def main(argv: Sequence[str]) -> int:
    """argv: the master's pid, the app's folder, further paths. Ends with the master."""
    watchfiles = importlib.import_module("watchfiles")  # optional, and never the master's
    master, folder, named = int(argv[0]), os.path.realpath(argv[1]), [os.path.realpath(path) for path in argv[2:]]
    os.closerange(3, 1024)  # listeners that a supervisor passed to the master
    prctl.die_with_parent(signal.SIGTERM)
    if os.getppid() != master:
        return 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for the master, whose end is ours
    wanted = lambda _, path: is_source(path, folder, named)  # noqa: E731
    for changes in watchfiles.watch(folder, *named, watch_filter=wanted, raise_interrupt=False):
        names = ", ".join(sorted({os.path.relpath(path, folder) for _, path in changes})[:3])
        print(f"midstream serve: {names} changed", file=sys.stderr, flush=True)
        os.kill(master, signal.SIGHUP)
    return 0
