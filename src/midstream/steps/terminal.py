"""The step `terminal`: makes the terminal on descriptor 0 its own, and becomes the program that is to run on it.

Not like other steps: no request, no result line; it is replaced by the program. Runs as a one-shot under the app's uid,
leader of its session (the keeper's children are).
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import termios
from collections.abc import Sequence

EXIT_NOT_FOUND = 127
EXIT_NOT_RUNNABLE = 126


def main(argv: Sequence[str]) -> int:
    """Returns only when the program cannot be started, as a shell would."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # Python ignores some, and that would be inherited
    try:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.execvp(argv[0], list(argv))
    except FileNotFoundError:
        print(f"{argv[0]}: not found in PATH", file=sys.stderr, flush=True)
        return EXIT_NOT_FOUND
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return EXIT_NOT_RUNNABLE
