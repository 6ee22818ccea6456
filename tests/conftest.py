"""Marks that every folder of tests uses: `server(name)` skips where that real program is missing."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", str(Path(sys.executable).parent)])


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("server"):
        for program in mark.args:
            if shutil.which(program, path=PATH) is None:
                pytest.skip(f"{program} is not installed (tools/install_peers.py installs it from Debian, as root)")
