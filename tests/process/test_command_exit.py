"""How a command ends: nothing is looked through for garbage at the exit, and whoever is to be told of the exit is told."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import atexit, gc, sys, weakref

class Told:
    def __del__(self):
        print("looked through")

atexit.register(lambda: print("told"))
ring = Told()
ring.itself = ring
sys.argv = ["midstream", "--version"]
from midstream.__main__ import main
code = main()
del ring
sys.exit(code)
"""


def test_the_exit_looks_for_no_garbage() -> None:
    """It took longer than a call to a host: 200 modules, all of them referring to each other."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "told" in done.stdout, done
    assert "looked through" not in done.stdout
