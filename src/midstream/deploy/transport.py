"""How to reach the agent of a host: a `Host` opens a link, which is a socket to its control socket.

`LocalHost` is the unix socket of this machine, `SshHost` the same behind `ssh ADDRESS midstream agent connect`. What is said
on the socket is the business of `client.py` and `sync_client.py`. Runs in the deployer and in the command line; no asyncio
here, so that short commands start fast.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

from midstream.core.values import dataclass
from midstream.deploy.unreachable import NotNow, no_agent, not_allowed
from midstream.errors import MidstreamError

if TYPE_CHECKING:
    from midstream.deploy.ssh import SshChild

_CONNECT_S = 10.0  # of a unix socket: only an agent that hangs, with a full queue, takes any time


class Link(Protocol):
    """One connection. `ping_s`: how often an empty line has to be sent; 0 for never."""

    sock: socket.socket

    @property
    def hello_timeout_s(self) -> float:
        """How long the agent's first word may take."""

    @property
    def ping_s(self) -> float: ...

    @property
    def noise_max_bytes(self) -> int:
        """How much text that is not the agent's may come first."""

    def ended(self, noise: str = "") -> MidstreamError | OSError:
        """Why it ended before the agent's first word; may block for 3 s. An OSError: try again."""

    def mute(self) -> OSError:
        """The error of an agent that is silent within `hello_timeout_s`."""

    def last_words(self) -> str:
        """What the transport said of the loss of a connection that stood; "" for nothing."""

    def close(self) -> None: ...


class Host(Protocol):
    """One host of a stage, as the runner sees it."""

    @property
    def name(self) -> str:
        """What messages and the plan call it."""

    def dial(self) -> Link:
        """A new link. Blocks for milliseconds. Raises OSError when nothing answers now (worth trying again), and a
        MidstreamError when trying again cannot help."""

    def unreachable(self, last: str) -> MidstreamError:
        """The error for when nothing answered for too long; `last` is the text of the last OSError."""


@dataclass(slots=True, eq=False)
class LocalLink:
    sock: socket.socket

    hello_timeout_s = 10.0
    ping_s = 0.0
    noise_max_bytes = 0

    def ended(self, noise: str = "") -> OSError:
        return ConnectionResetError("the agent hung up before it said hello")

    def mute(self) -> OSError:
        return TimeoutError(f"the agent said nothing within {self.hello_timeout_s:g} s")

    def last_words(self) -> str:
        return ""

    def close(self) -> None:
        self.sock.close()


@dataclass(frozen=True, slots=True)
class LocalHost:
    """The agent of this machine, behind its unix socket."""

    name: str
    socket_path: str

    def dial(self) -> LocalLink:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(_CONNECT_S)
            sock.connect(self.socket_path)
        except PermissionError as error:
            sock.close()
            raise not_allowed(self.socket_path) from error
        except BaseException:
            sock.close()
            raise
        return LocalLink(sock)

    def unreachable(self, last: str) -> MidstreamError:
        return no_agent(self.socket_path, last, where=self.name)


@dataclass(frozen=True, slots=True)
class SshHost:
    """The agent of a host behind ssh. `name`: the address, as OpenSSH takes it."""

    name: str

    def dial(self) -> SshChild:
        from midstream.deploy import ssh  # imports subprocess and tempfile: not for who asks the agent of this machine

        return ssh.connect(self.name)

    def unreachable(self, last: str) -> MidstreamError:
        return no_agent(self.name, last)


def gave_up(host: Host, last: OSError, tried_s: float) -> MidstreamError:
    """The error to raise when there is no more time to try again."""
    note = f"tried for {tried_s:.0f} s" if tried_s else ""
    if isinstance(last, NotNow):
        error = last.error
        if note and note not in error.detail:
            error.detail = f"{error.detail}\n({note})".strip()
        return error
    text = str(last) or type(last).__name__
    return host.unreachable(f"{text} ({note})" if note else text)
