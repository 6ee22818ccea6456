"""`python -m midstream`, `python -I midstream.pyz`, `python -I .../midstream`: the command line and the programs.

The first word may name a program (`agent-process`, `steps`, `install-here`, `serve`), which gets on without click, as does
`agent connect` at the far end of an ssh; all else is a command. The console script begins here too. Started as a folder,
Python puts the package's own folder on the path, where its modules would be found under wrong names: the parent takes its
place.
"""

import os
import sys

_PROGRAMS = {
    "agent-process": "midstream.agent.__main__",
    "steps": "midstream.steps.__main__",
    "install-here": "midstream.cli.install_program",
    "serve": "midstream.serve.program",
}

# Objects made between two looks for garbage. Of the 700 that are usual, importing a command makes a hundred times as many,
# none of it garbage: that was a tenth of the time of the imports.
GARBAGE_WORTH_A_LOOK = 20_000


def _mend_path() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path and os.path.abspath(sys.path[0]) == here:
        sys.path[0] = os.path.dirname(here)


def main() -> int:
    """Runs what the command line names; the exit code."""
    if sys.argv[1:3] == ["agent", "connect"]:
        from midstream.cli.straight_connect import connect

        code = connect(sys.argv[3:])
        if code is not None:
            return code
    import importlib

    program = _PROGRAMS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if program is not None:
        return int(importlib.import_module(program).main(sys.argv[2:]) or 0)
    import gc

    gc.set_threshold(GARBAGE_WORTH_A_LOOK)
    if sys.argv[1:2] in (["deploy"], ["rollback"]) and "_MIDSTREAM_COMPLETE" not in os.environ:
        from midstream.cli.early import begin

        begin(sys.argv[2:])
    try:
        from midstream.cli.main import run
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print(
            "midstream: only `midstream serve` is installed here; the commands: pip install 'midstream[cli]'",
            file=sys.stderr,
        )
        return 2
    code = run(sys.argv[1:])
    gc.freeze()  # nothing is looked through at the exit: it took longer than a call to a host
    return code


if __name__ == "__main__":
    _mend_path()
    sys.exit(main())
