"""Begins to connect to the hosts of a deploy before the command is loaded, the configuration checked, the revision resolved.

ssh's log-in and the start of the far end take as long as all of that, and need nothing of it but the addresses. What is
wrong with the command line, the file, the stage or the hosts is not this module's business: then nothing is begun, and who
reads them properly says what it is; where he reads something else, what was begun is ended. A far end takes a client that
is silent for gone, and fetching from a slow repository may take longer than that: until a link is used, a thread says that
we are there.
"""

from __future__ import annotations

import atexit
import importlib
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from midstream.cli.aim import take_aim
from midstream.cli.hosts import Only, only_of
from midstream.deploy.transport import Host, Link, SshHost
from midstream.errors import MidstreamError


@dataclass(slots=True, eq=False)
class DialledHost:
    """A host that was dialled before it was needed: the first `dial` gets that link."""

    host: Host
    link: Link | None = None
    _using: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return self.host.name

    def dial(self) -> Link:
        link = self.take()
        return link if link is not None else self.host.dial()

    def take(self) -> Link | None:
        """The link, once. Nothing is said on it for us any more."""
        with self._using:
            link, self.link = self.link, None
            return link

    def say_something(self) -> None:
        """An empty line, which goes no further than the far end."""
        with self._using, suppress(OSError):
            if self.link is not None:
                self.link.sock.send(b"\n", socket.MSG_DONTWAIT)

    def unreachable(self, last: str) -> MidstreamError:
        return self.host.unreachable(last)


@dataclass(slots=True, eq=False)
class EarlyLinks:
    """Links by host name. Each is used once, by `using`, or ended by `hang_up`."""

    _hosts: dict[str, DialledHost] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    def using(self, reach: Mapping[str, Host]) -> dict[str, Host]:
        """The same hosts, those that were dialled with their links."""
        return {
            name: self._hosts.get(name, host) if isinstance(host, SshHost) else host for name, host in reach.items()
        }

    def add(self, host: Host) -> None:
        """Dials it. Raises as that does."""
        self._hosts[host.name] = DialledHost(host, host.dial())

    def keep_up(self) -> None:
        """Begins to say that we are there; ends with `hang_up`."""
        pauses = [host.link.ping_s for host in self._hosts.values() if host.link is not None and host.link.ping_s]
        if pauses:
            threading.Thread(target=self._keep_up, args=(min(pauses),), daemon=True).start()

    def _keep_up(self, every_s: float) -> None:
        while not self._over.wait(every_s):
            for host in self._hosts.values():
                host.say_something()

    def hang_up(self) -> None:
        """What nobody took is ended."""
        self._over.set()
        for host in self._hosts.values():
            link = host.take()
            if link is not None:
                link.close()


_FLAGS = frozenset({"--wait", "--verbose", "-v", "--json", "--force"})
_WITH_A_WORD = {"-c": "--config", "-b": "--branch"} | {
    word: word for word in ("--config", "--branch", "--to", "--set", "--socket", "--hosts", "--roles", "--without")
}
Meant = tuple[str | None, str, str, Only]  # stage, config, socket, only
_begun: list[tuple[Meant, EarlyLinks]] = []


def begin(words: Sequence[str]) -> None:
    """Dials what a deploy or rollback with these words means, for `dialled` to find. Does not wait. At the exit, what nobody
    asked for is ended."""
    meant = meant_by(words)
    if meant is not None:
        _begun.append((meant, _dial(*meant)))
        atexit.register(_begun[-1][1].hang_up)


def meant_by(words: Sequence[str]) -> Meant | None:
    """What the words say of hosts, as click will read them; None for all that is out of the ordinary."""
    stage, said, left = None, dict[str, str](), list(words)
    while left:
        word, equals, value = left.pop(0).partition("=")
        if equals and not word.startswith("--"):
            return None
        if word in _WITH_A_WORD and (equals or left):
            said[_WITH_A_WORD[word]] = value if equals else left.pop(0)
        elif stage is None and not word.startswith("-"):
            stage = word
        elif equals or word not in _FLAGS:
            return None
    only = only_of(*(said.get(name, "") for name in ("--hosts", "--roles", "--without")))
    return stage, said.get("--config", ""), said.get("--socket", ""), only


def _dial(stage: str | None, config: str, socket: str, only: Only) -> EarlyLinks:
    early = EarlyLinks()
    with suppress(MidstreamError, OSError):
        aim = take_aim([stage] if stage else [], config=config, socket_path=socket, only=only)
        if aim.stage:
            for host in aim.hosts:
                if isinstance(host, SshHost):
                    early.add(host)
    early.keep_up()
    return early


@contextmanager
def dialled(stage: str | None, config: str, socket: str, only: Only) -> Iterator[EarlyLinks]:
    """Starts ssh to the hosts that the command line means, unless that was begun; does not wait for it."""
    meant, early = _begun.pop() if _begun else (None, None)
    if early is not None and meant != (stage, config, socket, only):
        early.hang_up()
        early = None
    early = early or _dial(stage, config, socket, only)
    try:
        yield early
    finally:
        early.hang_up()


@contextmanager
def loading(module: str) -> Iterator[None]:
    """Imports it in a thread meanwhile; it is there at the end, or who imports it then is told why it is not. (Not before:
    who waits for an import that fails in another thread gets half a module.)"""
    thread = threading.Thread(target=_load, args=(module,))
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _load(module: str) -> None:
    with suppress(Exception):
        importlib.import_module(module)
