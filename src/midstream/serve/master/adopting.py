"""What an earlier master left behind: zygotes that serve on, found by our binds and taken over. The master, at its start.

What lives here: the questions and the checks of what is handed over. It blocks for a moment, before anything else runs.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from dataclasses import dataclass

from midstream.errors import HostError
from midstream.linux import process, tree
from midstream.linux.fds import close_all
from midstream.serve import channel as messages
from midstream.serve import listening, takeover
from midstream.serve.account import RunAs
from midstream.serve.channel import Channel, Message

_ANSWER_S = 5.0
_ORPHANED_S = 5.0  # for the workers of a zygote that was killed to take names of their own
_LOOK_AGAIN_S = 0.02


@dataclass(slots=True)
class Taken:
    """One zygote that is ours now, or one worker without a zygote (board_fd -1). listeners: (name, address, socket)."""

    role: str
    pid: int
    channel: Channel
    words: Message
    board_fd: int
    listeners: list[tuple[str, str, socket.socket]]


def take(addresses: list[str], account: RunAs) -> list[Taken]:
    """All that serve or drain on one of these addresses and have no master, oldest first. Raises HostError when there is a
    master: that address is served already."""
    uids = {os.geteuid(), account.uid if account.uid is not None else os.geteuid()}
    found = []
    for role in ("master", "zygote", "worker"):
        for one in takeover.find(addresses, role):
            channel = takeover.connect(one, uids)
            if channel is None:
                continue
            channel.send("take", version=messages.VERSION)
            answer = _answer(channel)
            if answer is not None and answer.kind == "taken":
                found.append(_checked(one, channel, answer, addresses))
                continue
            says_nothing = answer is None and not channel.ended
            channel.close()
            if answer is not None:
                raise _served(addresses, answer.number("master"))
            if role == "zygote" and says_nothing and not takeover.find(addresses, "master"):
                _kill_hung(one, addresses)
    return sorted(found, key=lambda taken: taken.words.number("generation"))


def _kill_hung(zygote: takeover.Found, addresses: list[str]) -> None:
    """One that lives, has no master and says nothing: it holds the address, and its workers are found only without it. (One
    that hangs up is about to end, or does not understand us: it goes on serving, and the address is in use.)"""
    workers = {pid for pid, stat in tree.snapshot().items() if stat.ppid == stat.sid == zygote.pid}
    pidfd = process.open_pidfd(zygote.pid)
    if pidfd is None:
        return
    process.send_by_pidfd(pidfd, signal.SIGKILL)
    os.close(pidfd)
    until_s = time.monotonic() + _ORPHANED_S
    while time.monotonic() < until_s:  # a name in /proc/net/unix announces itself to nobody
        named = {one.pid for one in takeover.find(addresses, "worker")}
        if all(pid in named or process.read_stat(pid) is None for pid in workers):
            return
        time.sleep(_LOOK_AGAIN_S)


def _served(addresses: list[str], master: int) -> HostError:
    return HostError(
        f"{', '.join(addresses)}: served already by the master with pid {master}",
        where="--bind",
        remedy=f"an upgrade is: kill -HUP {master}; a stop: kill -TERM {master}",
    )


def _answer(channel: Channel) -> Message | None:
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    until_s = time.monotonic() + _ANSWER_S
    while not channel.ended and (left_s := until_s - time.monotonic()) > 0:
        poll.poll(left_s * 1000)
        for message in channel.receive():
            if message.kind in ("taken", "refused"):
                return message
            close_all(message.fds)
    return None


def _checked(one: takeover.Found, channel: Channel, answer: Message, addresses: list[str]) -> Taken:
    board_fd, fds = (answer.fds[0], answer.fds[1:]) if one.role == "zygote" and answer.fds else (-1, answer.fds)
    names = answer.body.get("listeners")
    named = [str(name) for name in names] if isinstance(names, list) else []
    listeners = []
    for index, fd in enumerate(fds):
        sock = socket.socket(fileno=fd)
        address = takeover.listens_on(sock, addresses)
        if address:
            listeners.append((named[index] if index < len(named) else address, address, sock))
        else:
            sock.close()  # of a bind that is not ours any more
    return Taken(one.role, one.pid, channel, answer, board_fd, listeners)


def wanted_addresses(binds: tuple[str, ...], given: list[tuple[str, socket.socket]]) -> list[str]:
    """What we are to serve: the addresses of the sockets that we were given, else the binds."""
    if given:
        return [listening.address_of(sock) for _, sock in given]
    return [bind for bind in binds if not bind.startswith("fd://") and not bind.endswith(":0")]
