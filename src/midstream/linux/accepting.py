"""`accept`: one connection of a control socket, in a loop that tells of it as long as it waits. Any process.

Where no descriptor is to be had, the connection stays in the queue and the loop would come back at once, for ever: whoever
has the door lets it rest then. What must not live here: loops.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

REST_S = 1.0

NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def accept(door: socket.socket, rest: Callable[[], None]) -> socket.socket | None:
    """The next connection; None: it has gone again, or there is nothing to hold it with. Then `rest` was called: to look at
    the door no more for `REST_S`."""
    try:
        return door.accept()[0]
    except OSError as error:
        if error.errno in NONE_LEFT:
            rest()
        return None
