"""Asking a running master: `reload` and `status`, by its bind or its pid. What a command line calls.

What lives here: the client's side, which blocks until the answer is there. The master's is `master/asking.py`.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from midstream.errors import DriftError, HostError
from midstream.serve import takeover
from midstream.serve.channel import VERSION, Channel, Message


@dataclass(frozen=True, slots=True)
class Answer:
    """ok: for `reload`, whether the new release serves. text: for a person. body: of `status`, all that is known."""

    ok: bool
    text: str
    body: dict[str, Any] = field(default_factory=dict)


def ask(
    what: str,
    *,
    binds: tuple[str, ...] = (),
    pid: int = 0,
    limit_s: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Answer:
    """what: "reload" or "status". One of binds (canonical, as in Settings) or pid names the master. `reload` is answered when
    the upgrade that takes up this question has ended; limit_s: how long to wait at most, None: as long as it takes.
    Raises DriftError when there is no such master, HostError when it does not answer."""
    channel = _reach(binds, pid)
    try:
        channel.send(what, version=VERSION)
        return _wait(channel, limit_s, progress)
    finally:
        channel.close()


def _reach(binds: tuple[str, ...], pid: int) -> Channel:
    found = takeover.masters_by_pid(pid) if pid else takeover.find(binds, "master")
    for one in found:
        channel = takeover.connect(one, None if os.geteuid() == 0 else {os.geteuid()})
        if channel is not None:
            return channel
    named = f"pid {pid}" if pid else ", ".join(binds)
    raise DriftError(f"no master of midstream serve of ours answers for {named}", remedy="start it, or look at --bind")


def _wait(channel: Channel, limit_s: float | None, progress: Callable[[str], None]) -> Answer:
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while poll.poll(None if limit_s is None else limit_s * 1000):
        for message in channel.receive():
            answer = _read(message, progress)
            if answer is not None:
                return answer
        if channel.ended:
            raise HostError("the master ended before it answered", remedy="look at its log")
    raise HostError(f"the master did not answer within {limit_s:g} s", remedy="look at its log")


def _read(message: Message, progress: Callable[[str], None]) -> Answer | None:
    match message.kind:
        case "done":
            return Answer(True, message.text("text"), message.body)
        case "failed":
            return Answer(False, message.text("text"), message.body)
        case "status":
            return Answer(True, message.text("text"), message.body)
        case "progress":
            progress(message.text("text"))
    return None
