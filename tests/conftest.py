"""What every folder of tests uses: the mark `server(name)`, which skips where that real program is missing, and how
hypothesis looks for examples: the same ones each time, so that a run says something about the change at hand. With
MIDSTREAM_EXPLORE=1 it looks for new ones, and so do the random histories of the simulation.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import settings

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", str(Path(sys.executable).parent)])

settings.register_profile("same", derandomize=True)
settings.register_profile("explore", print_blob=True)
settings.load_profile("explore" if os.environ.get("MIDSTREAM_EXPLORE") else "same")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("server"):
        for program in mark.args:
            if shutil.which(program, path=PATH) is None:
                pytest.skip(f"{program} is not installed (tools/install_peers.py installs it from Debian, as root)")
