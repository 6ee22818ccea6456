"""How Midstream's own programs are started from wherever this copy of it lives: a zipapp, an installed package, or a
source tree. The one place that knows.

A copy is one path that Python can run: `midstream.pyz`, or the package's folder (which holds `__main__.py`). Both work
with -I, which the programs on a host want, so that no PYTHONPATH and no working directory gets into them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import midstream
from midstream.cli.places import Places


def copy_path() -> str:
    """The zipapp, or the folder of the package, that this process runs from; absolute."""
    folder = os.path.dirname(os.path.abspath(midstream.__file__))
    archive = os.path.dirname(folder)
    return archive if os.path.isfile(archive) else folder


def program_argv(program: str, *args: str) -> list[str]:
    """argv of one of our programs (`agent-process`, `steps`) or of a command of the command line."""
    return [sys.executable, "-I", copy_path(), program, *args]


def agent_argv(places: Places) -> list[str]:
    """argv with which the keeper starts the agent."""
    return program_argv(
        "agent-process", "--state", places.state, "--runtime", places.runtime, "--socket", places.socket
    )


def keeper_argv(image: str, places: Places, extra: Sequence[str] = ()) -> list[str]:
    """argv of the keeper, from its own image in the state folder."""
    agent = json.dumps(agent_argv(places))
    return [
        *(sys.executable, "-I", "-S", image, "--state", places.state, "--runtime", places.runtime),
        *("--agent-argv", agent, *extra),
    ]
