"""Steps one after the other in one process, for the length of a deploy: to start one takes longer than most steps do.

Here is how they are asked for (`core.steps`, `session`); what they do is in their own modules, and each leaves nothing in
the process for the next one. Runs as a one-shot of the keeper under the app's uid, and may be killed at any instant.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import select
import socket
import sys
from collections.abc import Callable

from midstream.core.steps import PACK_FD, REQUEST_FD, REQUESTS
from midstream.errors import EXIT_OK, EXIT_USAGE

_NAME_MAX_BYTES = 64
_PLACES = (REQUEST_FD, PACK_FD)
_SOON = ("mirror", "checkout", "specs", "switch", "removal")  # what the steps of a deploy need, in their order


def main(perform: Callable[[str], int]) -> int:
    """Blocks until the agent hangs up; each step is `perform`ed with its descriptors in their places."""
    asked, soon = _take_socket(), list(_SOON)
    while True:
        data, fds, _, _ = socket.recv_fds(asked, _NAME_MAX_BYTES, len(_PLACES), socket.MSG_CMSG_CLOEXEC)
        if not data:
            break
        name = data.decode("ascii", "replace")
        if name not in REQUESTS or not fds:
            print(f"steps session: {name!r} is no step, or came without its request", file=sys.stderr, flush=True)
            return EXIT_USAGE
        _place(fds)
        perform(name)
        _place([])
        while soon and not select.select([asked], [], [], 0)[0]:  # loaded while nobody waits, not when it is asked for
            importlib.import_module(f"midstream.steps.{soon.pop(0)}")
    sys.stdout.flush()
    os._exit(EXIT_OK)  # nothing is left to be done, and somebody may wait for the end


def _take_socket() -> socket.socket:
    """The socket, moved away from where the descriptors of steps go. None of them is for the programs that steps start."""
    asked = socket.socket(fileno=fcntl.fcntl(REQUEST_FD, fcntl.F_DUPFD_CLOEXEC, max(_PLACES) + 1))
    _place([])
    return asked


def _place(fds: list[int]) -> None:
    """Puts each into its place and something empty into the others, so that nothing that is opened takes these numbers."""
    empty = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for place, fd in zip(_PLACES, [*fds, empty, empty], strict=False):
        if fd != place:
            os.dup2(fd, place, inheritable=False)
    for fd in (*fds, empty):
        if fd not in _PLACES:
            os.close(fd)
