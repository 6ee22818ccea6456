"""The short way of `midstream agent connect`, as the far end of an ssh runs it: no click, no client, no dataclasses.

Each deploy starts it on each host, and the imports of the long way (`agent_commands`) took four times as long as all else
that it does. Whatever is out of the ordinary is left to the long way, with its patience and its words.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

SOCKET_NAME = "agent.sock"
SYSTEM_RUNTIME = "/run/midstream"


def connect(words: Sequence[str], path: str = f"{SYSTEM_RUNTIME}/{SOCKET_NAME}") -> int | None:
    """`words`: what came after `agent connect`; path: of the system's agent. The exit code; None, and nothing was done, when
    that is another's task: options beyond `--silence SECONDS`, another agent, one that does not answer at once."""
    silence_s = _silence_s(words)
    if silence_s is None or os.environ.get("MIDSTREAM_SOCKET") or _has_own():
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(path)
        except OSError:
            return None
        from midstream.cli.bridge import bridge
        from midstream.errors import MidstreamError

        try:
            bridge(sock, silence_s)
        except BrokenPipeError:  # ssh is gone
            return 0
        except (MidstreamError, OSError) as error:
            os.write(2, f"midstream: {error}\n".encode())
            return getattr(error, "exit_code", 1)
    return 0


def _silence_s(words: Sequence[str]) -> float | None:
    if not words:
        return 0.0
    if len(words) == 2 and words[0] == "--silence" and words[1].isdecimal():
        return float(words[1])
    return None


def _has_own() -> bool:
    """Whether this user may have an agent of his own: which one is meant is said in `places.py`."""
    if os.geteuid() == 0:
        return False
    folders = [os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.geteuid()}"]
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.environ.get("HOME", "/"), ".local/state")
    own = [f"{folder}/midstream/{SOCKET_NAME}" for folder in folders if folder] + [
        f"{home}/midstream/run/{SOCKET_NAME}"
    ]
    return any(os.path.exists(path) for path in own)
