"""What every folder of tests uses: the mark `server(name)`, which skips where that real program is missing, and how
hypothesis looks for examples: the same ones each time, so that a run says something about the change at hand. With
MIDSTREAM_EXPLORE=1 it looks for new ones, and so do the random histories of the simulation.

A run that leaves processes, mounts or files behind fails (leftovers.py), with an exit code of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import leftovers
import longest_first

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", str(Path(sys.executable).parent)])

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", print_blob=True, deadline=None)
settings.load_profile("explore" if os.environ.get("MIDSTREAM_EXPLORE") else "same")

_LEFT_BEHIND, _AND_FAILED = 8, 9  # exit codes; see tools/run_tests.py
_folder = pytest.StashKey[Path]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    for ignored in (signal.SIGINT, signal.SIGQUIT):  # in the background of a script: all that tests start would be deaf
        if signal.getsignal(ignored) is signal.SIG_IGN:
            signal.signal(ignored, signal.default_int_handler if ignored is signal.SIGINT else signal.SIG_DFL)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup: a handler is not inherited, what is ignored is
        signal.signal(signal.SIGHUP, lambda *_: None)
    if not hasattr(config, "workerinput"):  # the process that the run began with, not those of pytest-xdist
        config.stash[_folder] = leftovers.begin()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = longest_first.dealt(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    yield
    folder = session.config.stash.get(_folder, None)
    if folder is None:
        return
    left = leftovers.found(folder)
    leftovers.clear(folder)
    if left:
        session.exitstatus = _LEFT_BEHIND if session.exitstatus == pytest.ExitCode.OK else _AND_FAILED
        session.config.get_terminal_writer().line("\n".join(["left behind by these tests:", *left]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("server"):
        for program in mark.args:
            if shutil.which(program, path=PATH) is None:
                pytest.skip(f"{program} is not installed (tools/install_peers.py installs it from Debian, as root)")
