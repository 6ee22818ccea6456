"""Where agents keep their state and listen, and where this user's records are (DESIGN 4, packaging).

As root /run/midstream and /var/lib/midstream, else the XDG folders. No I/O but for looking whether a path exists.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from midstream.cli.straight_connect import SOCKET_NAME, SYSTEM_RUNTIME

SYSTEM_STATE = "/var/lib/midstream"


@dataclass(frozen=True, slots=True)
class Places:
    """Absolute paths of one agent."""

    state: str
    runtime: str
    socket: str

    @property
    def agent_log(self) -> str:
        """Output of an agent that was started in the background."""
        return os.path.join(self.state, "agent.log")


def places(
    *,
    state: str = "",
    runtime: str = "",
    socket: str = "",
    env: Mapping[str, str] | None = None,
    uid: int | None = None,
) -> Places:
    """The places of an agent that is to run here; what is given wins over the defaults of this user.

    With a state folder of its own an agent also gets a runtime folder of its own (STATE/run), so that two agents of
    one user never share one.
    """
    env = os.environ if env is None else env
    uid = os.geteuid() if uid is None else uid
    if state:
        state = os.path.abspath(state)
        runtime = runtime or os.path.join(state, "run")
    else:
        state = SYSTEM_STATE if uid == 0 else os.path.join(state_home(env), "midstream")
    runtime = os.path.abspath(runtime) if runtime else _default_runtime(env, uid, state)
    return Places(state, runtime, os.path.abspath(socket) if socket else os.path.join(runtime, SOCKET_NAME))


def _default_runtime(env: Mapping[str, str], uid: int, state: str) -> str:
    if uid == 0:
        return SYSTEM_RUNTIME
    if folder := env.get("XDG_RUNTIME_DIR"):
        return os.path.join(folder, "midstream")
    if os.path.isdir(f"/run/user/{uid}"):
        return f"/run/user/{uid}/midstream"
    return os.path.join(state, "run")


def closed_to_others(path: str, uid: int | None = None) -> str:
    """Asked by root: the folder on the way to `path` that other users may not pass, "" when there is none. What is not
    there yet is made open."""
    if (os.geteuid() if uid is None else uid) != 0:
        return ""
    while path != "/":
        path = os.path.dirname(path)
        try:
            if not os.stat(path).st_mode & 0o001:
                return path
        except OSError:
            continue
    return ""


def socket_to_ask(given: str = "", env: Mapping[str, str] | None = None) -> str:
    """The socket a command talks to: `--socket`, MIDSTREAM_SOCKET, this user's own agent, the system's agent.

    When there is none at all, the path at which this user's own would be.
    """
    env = os.environ if env is None else env
    if named := given or env.get("MIDSTREAM_SOCKET", ""):
        return os.path.abspath(named)
    own = places(env=env).socket
    system = os.path.join(SYSTEM_RUNTIME, SOCKET_NAME)
    return system if not os.path.exists(own) and os.path.exists(system) else own


def state_home(env: Mapping[str, str] | None = None) -> str:
    """$XDG_STATE_HOME or its default."""
    env = os.environ if env is None else env
    return env.get("XDG_STATE_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".local", "state")


def records_folder(env: Mapping[str, str] | None = None) -> str:
    """Logs and records of deploys made from this machine by this user."""
    return os.path.join(state_home(env), "midstream", "deploys")
