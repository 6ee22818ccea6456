"""`console`: a program of the app with a terminal of its own, whose bytes go over the control socket.

The agent makes the pseudo-terminal, the keeper starts the program on it as a one-shot under the app's user, with the
environment of the committed release; so no secret leaves the host, and the ssh user need not be the app's. The program ends
with its client: a connection that goes away is a hang-up. It ends with the agent as well. Runs in the agent's loop.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from midstream.agent.accounts import Peer
from midstream.agent.control import Connection, Method
from midstream.agent.host import Host
from midstream.agent.params import data as read_data
from midstream.agent.params import refused, shaped
from midstream.agent.spawning import command_spec, step_argv
from midstream.agent.store import AppRecord, GenerationRecord
from midstream.core.messages import FdPlacement, SpawnSpec
from midstream.core.names import SpawnKey
from midstream.core.spec import CommandStep
from midstream.errors import LockedError, OperatorError

SERVICE = "+console"
SESSIONS_MAX = 32  # of one user
HOST_SESSIONS_MAX = 256
INPUT_MAX_BYTES = 64 * 1024
_PIECE_BYTES = 32 * 1024
_LONGEST_S = 7 * 86400.0
_TERM_MAX = 100

AppOf = Callable[[Connection, dict[str, Any]], AppRecord]


@dataclass(slots=True, eq=False)
class Session:
    """One terminal: `fd` is our end of it, not blocking."""

    connection: Connection
    number: int
    fd: int
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def pump(self) -> None:
        """What the program writes, to the client, at the client's pace."""
        while True:
            await _ready(self.fd, reading=True)
            self.take()
            await self.connection.keep_pace()

    def take(self) -> bool:
        """Passes on what is there; False when there is nothing. The agent has the other end open, too, as long as the
        session lasts, so there is no end of it before that."""
        try:
            data = os.read(self.fd, _PIECE_BYTES)
        except BlockingIOError:
            return False
        body = {"session": self.number, "data": base64.b64encode(data).decode("ascii")}
        self.connection.notify("console", body)
        return True

    async def write(self, data: bytes) -> None:
        """To the program, all of it, in the order of the calls; waits while it does not read. Raises OperatorError when it
        ends meanwhile."""
        async with self.writing:
            while data and not self.over.is_set():
                try:
                    data = data[os.write(self.fd, data) :]
                except BlockingIOError:
                    await self._writable()
        if data:
            raise OperatorError(
                "the program has ended, and did not read all of it",
                where="session",
                remedy="begin another: midstream console",
            )

    async def _writable(self) -> None:
        ready = [asyncio.ensure_future(_ready(self.fd, reading=False)), asyncio.ensure_future(self.over.wait())]
        try:
            await asyncio.wait(ready, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in ready:
                one.cancel()
            await asyncio.gather(*ready, return_exceptions=True)

    async def close(self) -> None:
        """Ends whoever still writes; then the number of the descriptor may be another's."""
        self.over.set()
        try:
            async with self.writing:
                pass
        finally:
            os.close(self.fd)

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


class Consoles:
    """`app_of` checks who asks, and for what. A session belongs to the connection that opened it."""

    def __init__(self, host: Host, app_of: AppOf) -> None:
        self.host = host
        self._app_of = app_of
        self._sessions: dict[int, Session] = {}

    def table(self) -> dict[str, Method]:
        return {"console": self.open, "console.write": self.write, "console.resize": self.resize}

    async def open(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """Runs it to its end. Notifications `console {session}` once it is there, `console {session, data}` for what it
        writes."""
        record = self._app_of(connection, params)
        stored = self.host.record(record.app, record.committed_generation)
        if stored is None:
            raise OperatorError(f"nothing of {record.app!r} is deployed here", remedy="midstream deploy")
        argv = _argv(params) or stored.spec.console
        if not argv:
            raise OperatorError(
                f"release {stored.release} has no console",
                where="console",
                remedy='write console = "COMMAND" into midstream.toml and deploy; or name it: midstream console -- COMMAND',
            )
        rows, cols = _size(params)
        term = str(params.get("term") or "")
        term = term if term.isascii() and term.isprintable() and len(term) <= _TERM_MAX else ""
        self._refuse_too_many(connection.peer)
        number = self.host.store.next_number("run")
        key = SpawnKey(record.app, SERVICE, number, 0, 0)
        spec = self._spec(record, stored, argv, key, term or "dumb")
        ours, theirs = os.openpty()
        session = Session(connection, number, ours)
        self._sessions[number] = session
        try:
            os.set_blocking(ours, False)
            if spec.uid is not None:
                os.fchown(theirs, spec.uid, -1)
            session.resize(rows, cols)
            self.host.note(record.app, "", "console", " ".join(argv)[:200], who=connection.peer.name)
            connection.notify("console", {"session": number, "command": list(argv), "release": stored.release})
            return await self._run(session, spec, theirs)
        finally:
            del self._sessions[number]
            os.close(theirs)
            await session.close()

    def _refuse_too_many(self, peer: Peer) -> None:
        mine = sum(session.connection.peer.uid == peer.uid for session in self._sessions.values())
        if mine >= SESSIONS_MAX:
            raise LockedError(f"{SESSIONS_MAX} consoles of {peer.name} are open already", remedy="end some of them")
        if len(self._sessions) >= HOST_SESSIONS_MAX:
            raise LockedError(
                f"{HOST_SESSIONS_MAX} consoles are open on this host already",
                remedy="have some of them ended; `midstream status` tells whose apps are here",
            )

    def _spec(
        self, record: AppRecord, stored: GenerationRecord, argv: tuple[str, ...], key: SpawnKey, term: str
    ) -> SpawnSpec:
        step = CommandStep(argv, env={"TERM": term})
        place = self.host.place(record.app, SERVICE, stored.number)
        spec = command_spec(stored, step, key, place, self.host.uid)
        terminal = tuple(FdPlacement(target, "passed:0") for target in (0, 1, 2))
        return replace(spec, argv=(*step_argv("terminal"), *spec.argv), fds=terminal)

    async def _run(self, session: Session, spec: SpawnSpec, theirs: int) -> dict[str, Any]:
        pump = asyncio.get_running_loop().create_task(session.pump())
        try:
            outcome = await self.host.one_shots.run(
                spec, fds=(theirs,), timeout_s=_LONGEST_S, on_line=lambda line: None
            )
        except asyncio.CancelledError:  # the client went away: a hang-up
            await self.host.one_shots.stop(spec.key)
            self.host.one_shots.abandon(spec.key)
            raise
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
        while not session.connection.is_gone and session.take():
            await session.connection.keep_pace()
        return {"code": outcome.code, "text": outcome.text, "ok": outcome.ok}

    async def write(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        session = self._session(connection, params)
        await session.write(read_data(params, INPUT_MAX_BYTES))
        return {}

    async def resize(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        self._session(connection, params).resize(*_size(params))
        return {}

    def _session(self, connection: Connection, params: dict[str, Any]) -> Session:
        number = params.get("session")
        session = self._sessions.get(number) if isinstance(number, int) else None
        if session is None or session.connection is not connection:
            raise refused("this connection has no such console", "session")
        return session


def _argv(params: dict[str, Any]) -> tuple[str, ...]:
    argv = shaped(tuple[str, ...], params.get("argv") or [], "console", "argv")
    if any("\0" in word for word in argv) or (argv and not argv[0]):
        raise OperatorError(
            "a command is words without NUL bytes, the first not empty",
            where="argv",
            remedy="midstream console -- COMMAND",
        )
    return tuple(argv)


def _size(params: dict[str, Any]) -> tuple[int, int]:
    found = [params.get("rows", 24), params.get("cols", 80)]
    if not all(isinstance(one, int) and 0 <= one <= 10_000 for one in found):
        raise refused("rows and cols are whole numbers up to 10000", "rows")
    return int(found[0]), int(found[1])


async def _ready(fd: int, *, reading: bool) -> None:
    """Waits until the terminal has something, or takes something."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def now() -> None:
        if not ready.done():
            ready.set_result(None)

    add, remove = (loop.add_reader, loop.remove_reader) if reading else (loop.add_writer, loop.remove_writer)
    add(fd, now)
    try:
        await ready
    finally:
        remove(fd)
