"""Who asks the master: the control sockets, and those who wait for the end of an upgrade. The client is `serve/control.py`.

What lives here: connections. What must not: upgrades. Whoever may not ask is hung up on without a word.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from midstream.linux.accepting import accept
from midstream.linux.fds import close_all
from midstream.serve import takeover
from midstream.serve.channel import Channel, Message
from midstream.serve.loop import Loop, Talk

_ASKERS_MAX = 64


class Askers:
    """on_reload: somebody wants an upgrade; he is among `waiting` then. status: what to tell who asks for it."""

    def __init__(self, loop: Loop, on_reload: Callable[[], None], status: Callable[[], dict[str, Any]]) -> None:
        self._loop = loop
        self._on_reload = on_reload
        self._status = status
        self._doors: list[socket.socket] = []
        self._talks: set[Talk] = set()
        self.waiting: list[Talk] = []  # for the upgrade that runs
        self.waiting_next: list[Talk] = []  # for the one after it
        self.upgrade_runs = False

    def open(self, addresses: Iterable[str]) -> None:
        for door in takeover.listen(addresses, "master"):
            self._doors.append(door)
            self._loop.watch(door.fileno(), partial(self._knock, door))

    def _knock(self, door: socket.socket) -> None:
        sock = accept(door, partial(self._loop.rest, door.fileno()))
        if sock is None:
            return
        if not takeover.may_ask(sock) or len(self._talks) >= _ASKERS_MAX:
            sock.close()
            return
        talk: Talk

        def ended() -> None:
            self._talks.discard(talk)
            for waiting in (self.waiting, self.waiting_next):
                if talk in waiting:
                    waiting.remove(talk)

        talk = Talk(self._loop, Channel(sock), lambda message: self._asked(talk, message), ended)
        self._talks.add(talk)

    def _asked(self, talk: Talk, message: Message) -> None:
        close_all(message.fds)
        match message.kind:
            case "status":
                talk.send("status", **self._status())
            case "reload":
                if self.upgrade_runs:
                    self.waiting_next.append(talk)
                    talk.send("progress", text="an upgrade is under way; the next one takes this up")
                else:
                    self.waiting.append(talk)
                self._on_reload()
            case "take":
                talk.send("refused", master=os.getpid())

    def tell(self, text: str) -> None:
        """How it goes, to those who wait for what runs."""
        for talk in self.waiting:
            talk.send("progress", text=text)

    def answer(self, ok: bool, text: str) -> None:
        """The upgrade that runs has ended."""
        waiting, self.waiting = self.waiting, []
        for talk in waiting:
            talk.send("done" if ok else "failed", text=text)

    def begin_next(self) -> None:
        self.waiting, self.waiting_next = [*self.waiting, *self.waiting_next], []

    def close(self) -> None:
        for talk in list(self._talks):
            talk.close()
        for door in self._doors:
            self._loop.forget(door.fileno())
            door.close()
        self._doors.clear()
