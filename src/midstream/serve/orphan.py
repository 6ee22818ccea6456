"""A worker whose zygote is gone: it serves on, and can be found by a master that starts, with the listeners it holds.

What lives here: its takeover names and the one answer that it gives. Needed only when master and zygote were both killed; a
living master knows its orphans. In the worker's event loop; nothing blocks.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from functools import partial

from midstream.linux.accepting import REST_S, accept
from midstream.serve import channel as messages
from midstream.serve import listening, takeover
from midstream.serve.channel import Channel
from midstream.serve.contract import Identity, Listener
from midstream.serve.settings import Settings


class Orphan:
    """Reachable from its making on. folder: the release's."""

    def __init__(self, identity: Identity, settings: Settings, listeners: Sequence[Listener]) -> None:
        self._identity = identity
        self._settings = settings
        self._public = [listener for listener in listeners if not listener.private]
        self._loop = asyncio.get_running_loop()
        addresses = [listening.address_of(listener.sock) for listener in self._public]
        self._doors = takeover.listen(addresses, "worker")
        self._askers: set[Channel] = set()
        for door in self._doors:
            self._watch(door)

    def _watch(self, door: socket.socket) -> None:
        if door in self._doors:
            self._loop.add_reader(door.fileno(), partial(self._knock, door))

    def _rest(self, door: socket.socket) -> None:
        self._loop.remove_reader(door.fileno())
        self._loop.call_later(REST_S, self._watch, door)

    def _knock(self, door: socket.socket) -> None:
        sock = accept(door, partial(self._rest, door))
        if sock is None:
            return
        if not takeover.may_ask(sock):
            sock.close()
            return
        asker = Channel(sock)
        self._askers.add(asker)
        self._loop.add_reader(asker.fileno(), partial(self._asked, asker))

    def _asked(self, asker: Channel) -> None:
        for message in asker.receive():
            if message.kind == "take" and messages.understands(message.body.get("version")):
                self._answer(asker)
        if asker.ended:
            self._loop.remove_reader(asker.fileno())
            self._askers.discard(asker)
            asker.close()

    def _answer(self, asker: Channel) -> None:
        folder = os.getcwd()
        asker.send(
            "taken",
            tuple(listener.sock.fileno() for listener in self._public),
            version=messages.VERSION,
            generation=self._identity.generation,
            release=self._identity.release,
            folder=folder,
            python=sys.executable,
            virtualenv=sys.prefix if sys.prefix.startswith(folder + "/") else "",
            settings=self._settings.to_json(),
            listeners=[listener.name for listener in self._public],
            pids=[os.getpid()],
        )

    def close(self) -> None:
        """When it drains: its listeners are nobody's way back any more."""
        for door in self._doors:
            self._loop.remove_reader(door.fileno())
            door.close()
        self._doors.clear()
