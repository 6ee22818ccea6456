"""How to reach the agent of a host: a `Host` opens byte streams to its control socket.

`LocalHost` is the unix socket of this machine. A host behind ssh is the same two streams, from
`ssh ADDRESS midstream agent connect`. What is said on the streams is `client.py`'s business.
Runs in the deployer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from midstream.deploy.rpc import LINE_MAX_BYTES
from midstream.deploy.unreachable import no_agent, not_allowed
from midstream.errors import MidstreamError

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Host(Protocol):
    """One host of a stage, as the runner sees it."""

    @property
    def name(self) -> str:
        """What messages and the plan call it."""

    async def connect(self) -> Streams:
        """New streams to the host's agent. Raises OSError when nothing answers now (worth trying again), and a
        MidstreamError when trying again cannot help."""

    def unreachable(self, last: str) -> MidstreamError:
        """The error for when nothing answered for too long; `last` is the text of the last OSError."""


@dataclass(frozen=True, slots=True)
class LocalHost:
    """The agent of this machine, behind its unix socket."""

    name: str
    socket_path: str

    async def connect(self) -> Streams:
        try:
            return await asyncio.open_unix_connection(self.socket_path, limit=LINE_MAX_BYTES)
        except PermissionError as error:
            raise not_allowed(self.socket_path) from error

    def unreachable(self, last: str) -> MidstreamError:
        return no_agent(self.socket_path, last, where=self.name)
