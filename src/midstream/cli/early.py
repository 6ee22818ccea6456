"""Begins to connect to the hosts of a deploy before the configuration is checked and the revision resolved.

ssh's log-in and the start of the far end take longer than all of that, and need nothing of it but the addresses. What is
wrong with the file, the stage or the hosts is not this module's business: then nothing is begun, and who reads them
properly says what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from midstream.cli.aim import take_aim
from midstream.cli.hosts import Only
from midstream.deploy.transport import Host, Link, SshHost
from midstream.errors import MidstreamError


@dataclass(slots=True, eq=False)
class DialledHost:
    """A host that was dialled before it was needed: the first `dial` gets that link."""

    host: Host
    link: Link | None = None

    @property
    def name(self) -> str:
        return self.host.name

    def dial(self) -> Link:
        link, self.link = self.link, None
        return link if link is not None else self.host.dial()

    def unreachable(self, last: str) -> MidstreamError:
        return self.host.unreachable(last)


@dataclass(slots=True, eq=False)
class EarlyLinks:
    """Links by host name. Each is used once, by `using`, or ended by `hang_up`."""

    _hosts: dict[str, DialledHost] = field(default_factory=dict)

    def using(self, reach: Mapping[str, Host]) -> dict[str, Host]:
        """The same hosts, those that were dialled with their links."""
        return {
            name: self._hosts.get(name, host) if isinstance(host, SshHost) else host for name, host in reach.items()
        }

    def hang_up(self) -> None:
        """What nobody took is ended."""
        for host in self._hosts.values():
            link, host.link = host.link, None
            if link is not None:
                link.close()


@contextmanager
def dialled(stage: str | None, config: str, socket: str, only: Only) -> Iterator[EarlyLinks]:
    """Starts ssh to the hosts that the command line means; does not wait for it."""
    early = EarlyLinks()
    with suppress(MidstreamError, OSError):
        aim = take_aim([stage] if stage else [], config=config, socket_path=socket, only=only)
        if aim.stage:
            for host in aim.hosts:
                if isinstance(host, SshHost):
                    early._hosts[host.name] = DialledHost(host, host.dial())
    try:
        yield early
    finally:
        early.hang_up()
