"""The zygote below a master: the program that the master executes with the release's own interpreter.

What lives here: the messages with the master, and what becomes of the zygote when the master is gone: one that serves goes
on and waits for the next master on its takeover socket; one that was never proven ends. What must not: workers
(`zygote.py`).

Messages, all by `channel.py`. To us: `boot` (settings, generation, release, listeners; descriptors of the listeners), then
`serve`, `park`, `leave`, `stop`, `workers`, `reopen`, `ask` (whether our loop turns: we say `here`). From us: `hello`, then
`proven` (with the board), `serving`, `parked`, `workers`, `failed`, `asked` (somebody signalled us), `ended`.
"""

from __future__ import annotations

import os
import platform
import select
import signal
import socket
import sys
import traceback
from dataclasses import asdict
from functools import partial

import midstream
from midstream.errors import BugError, MidstreamError
from midstream.linux.accepting import accept
from midstream.serve import channel as messages
from midstream.serve import listening, signals, takeover
from midstream.serve.channel import Channel, Message
from midstream.serve.contract import Cuts
from midstream.serve.crew import Aim
from midstream.serve.loop import Talk
from midstream.serve.settings import Settings
from midstream.serve.zygote import Release, Zygote

CHANNEL_FD = 3
EXIT_BOOT = 1


def main() -> int:
    """Its whole life. The exit status: 0 when it was told to end, 1 when the release did not boot."""
    os.set_inheritable(CHANNEL_FD, False)
    channel = Channel(socket.socket(fileno=CHANNEL_FD))
    channel.send(
        "hello",
        version=messages.VERSION,
        midstream=midstream.__version__,
        python=platform.python_version(),
        pid=os.getpid(),
        answers=True,
    )
    boot = _wait_for_boot(channel)
    if boot is None:
        return EXIT_BOOT
    try:
        return _Below(channel, boot).live()
    except MidstreamError as error:
        return _told(channel, error)
    except Exception as error:
        traceback.print_exc()
        return _told(channel, BugError("the zygote failed", detail="".join(traceback.format_exception(error))))


def _wait_for_boot(channel: Channel) -> Message | None:
    """Blocks. None: the master is gone, or does not want us."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while not channel.ended:
        poll.poll()
        for message in channel.receive():
            if message.kind == "boot":
                return message
    return None


def _told(channel: Channel, error: MidstreamError) -> int:
    channel.sock.setblocking(True)
    _send_failure(channel, error)
    return EXIT_BOOT


def _send_failure(channel: Channel, error: MidstreamError) -> None:
    channel.send("failed", what=error.what, where=error.where, detail=error.detail, remedy=error.remedy)


class _Below:
    """`Above` for the zygote: the master, or nobody for a while."""

    def __init__(self, channel: Channel, boot: Message) -> None:
        self.settings = Settings.from_json(boot.body.get("settings") or {})
        self.master_pid = os.getppid()
        self.takers: list[Channel] = []
        names = boot.body.get("listeners")
        named = [str(name) for name in names] if isinstance(names, list) else []
        sockets = [socket.socket(fileno=fd) for fd in boot.fds]
        self.sockets = list(zip(named, sockets, strict=True))
        release = Release(boot.text("release"), boot.number("generation"), os.getcwd())
        listeners = listening.of_contract(self.sockets, bool(self.settings.certfile))
        self.zygote = Zygote(self.settings, release, listeners, self)
        self.zygote.crew.count = boot.number("workers", self.settings.workers)
        self.talk = Talk(self.zygote.loop, channel, self._heard, self._master_gone)
        self.addresses = [listening.address_of(sock) for name, sock in self.sockets if name != listening.PRIVATE_NAME]
        self.doors = takeover.listen(self.addresses, "zygote")
        self.zygote.close_in_child.append(self._close_in_child)
        self.zygote.ours = lambda: [self.talk.channel.fileno()]
        self.is_alone = False

    def live(self) -> int:
        zygote = self.zygote
        zygote.load()
        numbers = [*signals.DIALECTS[self.settings.signals], signal.SIGCHLD]
        zygote.loop.take_signals(numbers, self._signalled)
        for door in self.doors:
            zygote.loop.watch(door.fileno(), partial(self._knock, door))
        zygote.begin()
        zygote.loop.run()
        return zygote.status

    def _close_in_child(self) -> None:
        self.talk.channel.sock.close()
        for door in self.doors:
            door.close()
        for taker in self.takers:
            taker.sock.close()

    # ---- told by the zygote, for the master

    def proven(self) -> None:
        self.talk.send("proven", (self.zygote.board.fd,))

    def serving(self) -> None:
        self.talk.send("serving")

    def parked(self) -> None:
        self.talk.send("parked")

    def left(self) -> None:
        self.talk.send("left")

    def workers(self, pids: list[int]) -> None:
        self.talk.send("workers", pids=pids)

    def failed(self, error: MidstreamError) -> None:
        _send_failure(self.talk.channel, error)

    def ended(self, cuts: Cuts) -> None:
        self.talk.send("ended", **asdict(cuts))

    # ---- the master's words

    def _heard(self, message: Message) -> None:
        zygote = self.zygote
        match message.kind:
            case "serve":
                zygote.serve()
            case "park":
                zygote.park()
            case "leave":
                settings = self.settings
                zygote.leave(
                    message.seconds("graceful_s", settings.graceful_timeout_s),
                    message.seconds("linger_s", settings.linger_s),
                    last=message.body.get("last") is True,
                )
            case "stop":
                zygote.stop()
            case "workers":
                zygote.count(message.number("count", zygote.crew.count))
            case "reopen":
                zygote.reopen()
            case "ask":
                self.talk.send("here")

    def _master_gone(self) -> None:
        """What serves goes on, and so does what drains; what is not yet needed ends."""
        self.is_alone = True
        if self.zygote.crew.aim is Aim.PROVE:
            self.zygote.stop()
        elif self.zygote.crew.aim is not Aim.LEAVE:
            self.zygote.voice.warning("the master is gone; this zygote serves on until the next one takes over")
            self.zygote.title("without a master")

    # ---- the next master

    def _knock(self, door: socket.socket) -> None:
        sock = accept(door, partial(self.zygote.loop.rest, door.fileno()))
        if sock is None:
            return
        if not takeover.may_ask(sock) or len(self.takers) > 16:
            sock.close()
            return
        taker = Channel(sock)
        self.takers.append(taker)
        self.zygote.loop.watch(taker.fileno(), lambda: self._asked_by(taker))

    def _asked_by(self, taker: Channel) -> None:
        found = taker.receive()
        if not found and not taker.ended:
            return
        self.zygote.loop.forget(taker.fileno())
        self.takers.remove(taker)
        if taker.ended or found[0].kind != "take" or not messages.understands(found[0].body.get("version")):
            taker.close()
            return
        if not self._is_without_master():
            taker.send("refused", master=self.master_pid)
            taker.close()
            return
        self._taken(taker)

    def _is_without_master(self) -> bool:
        if not self.is_alone and self.talk.channel.sock.fileno() >= 0:
            poll = select.poll()
            poll.register(self.talk.channel.fileno(), select.POLLHUP)
            return bool(poll.poll(0))
        return self.is_alone

    def _taken(self, taker: Channel) -> None:
        """The one who asked is the master from now on; what he needs to be it goes with the answer."""
        self.talk.close()
        self.talk = Talk(self.zygote.loop, taker, self._heard, self._master_gone)
        self.is_alone = False
        self.master_pid = takeover.credentials(taker.sock)[0]
        zygote = self.zygote
        public = [
            (name, sock)
            for name, sock in self.sockets
            if name != listening.PRIVATE_NAME and sock.fileno() >= 0  # one that drains has closed them
        ]
        self.talk.send(
            "taken",
            (zygote.board.fd, *(sock.fileno() for _, sock in public)),
            version=messages.VERSION,
            generation=zygote.release.generation,
            release=zygote.release.name,
            folder=zygote.release.folder,
            python=sys.executable,
            virtualenv=sys.prefix if sys.prefix.startswith(zygote.release.folder + "/") else "",
            settings=self.settings.to_json(),
            listeners=[name for name, _ in public],
            leaving=zygote.crew.aim is Aim.LEAVE,
            count=zygote.crew.count,
            pids=list(zygote.pids()),
            answers=True,
        )
        zygote.title()

    # ---- signals of people

    def _signalled(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self.zygote.reap()
            return
        act = signals.DIALECTS[self.settings.signals][signal.Signals(number)]
        if act is signals.Act.REOPEN:
            self.zygote.reopen()
        elif not self.is_alone:
            self.talk.send("asked", act=act.name, signal=signal.Signals(number).name)
        elif act is signals.Act.GRACEFUL:
            self.zygote.leave(last=True)
        elif act is signals.Act.QUICK:
            self.zygote.stop()
        elif act in (signals.Act.MORE, signals.Act.FEWER):
            self.zygote.count(max(1, self.zygote.crew.count + (1 if act is signals.Act.MORE else -1)))
        elif act is signals.Act.FEWER_TO_NONE:
            self.zygote.count(self.zygote.crew.count - 1)
        else:
            self.zygote.voice.warning("nothing is upgraded while there is no master: start one with the same --bind")


if __name__ == "__main__":
    sys.exit(main())
