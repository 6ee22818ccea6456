"""The asyncio client of one agent: calls, notifications, and reconnecting when the agent is restarted.

A deploy outlives its agent: when the connection is lost the client connects again (for up to `give_up_s`), attaches
to what was going on, and sends its unanswered idempotent calls once more; the agent answers those with the work in
progress or its result. Calls that are not idempotent fail with the lost connection.
Runs in the deployer, on its event loop. Bytes to messages is `rpc.py`, reaching the host is `transport.py`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from midstream.core.lease import lease_of
from midstream.deploy import crashpoint, rpc
from midstream.deploy.transport import Host, Link, gave_up
from midstream.deploy.unreachable import NotNow, noisy, told_by_far_end
from midstream.errors import HostError, MidstreamError

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
SENDS_MAX = 8  # of one call: an agent that dies at each attempt would otherwise be asked for ever

NoticeCallback = Callable[[str, dict[str, Any]], None]
Words = Callable[[str], None]


@dataclass(slots=True)
class _Pending:
    method: str
    params: dict[str, Any]
    future: asyncio.Future[dict[str, Any]]
    idempotent: bool
    sends: int = 0


@dataclass(slots=True, eq=False)
class AgentClient:
    """Speaks with the agent of `host`. Use `start` first, `close` last; `call` in between, also several at a time.

    on_notice(method, params) is called for each notification. on_words(text) is told when the agent was lost and is
    back. attach: a call (method, params) that is made first on each new connection but the first, so that the agent
    knows whose deploy this is before the lease runs out; its failure is ignored, the repeated calls bring the reason.
    """

    host: Host
    on_notice: NoticeCallback = lambda method, params: None
    on_words: Words = lambda text: None
    give_up_s: float = field(default_factory=lambda: lease_of(os.environ).give_up_s)
    attach: tuple[str, dict[str, Any]] | None = None
    hello: dict[str, Any] = field(default_factory=dict)
    _pending: dict[int, _Pending] = field(default_factory=dict)
    _writer: asyncio.StreamWriter | None = None
    _link: Link | None = None
    _pings: asyncio.Task[None] | None = None
    _task: asyncio.Task[None] | None = None
    _last_id: int = 0
    _dead: MidstreamError | None = None

    @property
    def lost(self) -> bool:
        """Whether the agent is gone for good: what it did last is not known."""
        return self._dead is not None

    async def start(self, *, give_up_s: float = 0.0) -> dict[str, Any]:
        """Connects and says hello; returns the agent's answer. Raises HostError when nothing answers.

        give_up_s: how long to go on trying, seconds; 0 tries once.
        """
        reader = await self._reach(give_up_s)
        crashpoint.point(f"connected to {self.host.name}")
        self._task = asyncio.create_task(self._converse(reader))
        return self.hello

    async def call(self, method: str, /, *, idempotent: bool = True, **params: Any) -> dict[str, Any]:
        """The answer to one call; waits as long as the agent works on it. Raises the MidstreamError it sent, or
        HostError when the agent is gone for good (or was lost, where the call is not idempotent)."""
        if self._dead is not None:
            raise self._dead
        crashpoint.point(f"before {method} on {self.host.name}")
        self._last_id += 1
        request_id = self._last_id
        pending = _Pending(method, params, asyncio.get_running_loop().create_future(), idempotent)
        self._pending[request_id] = pending
        if self._writer is not None:
            self._send(request_id, pending)
        crashpoint.point(f"sent {method} to {self.host.name}")
        try:
            answer = await pending.future
            crashpoint.point(f"after {method} on {self.host.name}")
            return answer
        finally:
            self._pending.pop(request_id, None)

    async def until_lost(self) -> None:
        """Waits, and raises why once the agent is gone for good; returns when the client is closed."""
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._dead is not None:
            raise self._dead

    async def close(self) -> None:
        """Ends the connection. Calls still waiting are cancelled. May be called twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for pending in self._pending.values():
            pending.future.cancel()
        await self._hang_up()

    async def _hang_up(self) -> None:
        pings, self._pings = self._pings, None
        if pings is not None:
            pings.cancel()
        writer, self._writer = self._writer, None
        link, self._link = self._link, None
        if writer is not None and link is not None:
            await _let_go(writer, link)

    def _send(self, request_id: int, pending: _Pending) -> None:
        assert self._writer is not None
        pending.sends += 1
        self._writer.write(rpc.request_line(request_id, pending.method, pending.params))

    async def _reach(self, give_up_s: float) -> asyncio.StreamReader:
        """Connects and greets, trying again with growing pauses until give_up_s have passed."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        deadline = began + give_up_s
        pause = FIRST_PAUSE_S
        while True:
            try:
                return await self._greet()
            except OSError as error:
                last = error
            if loop.time() + pause > deadline:
                raise gave_up(self.host, last, loop.time() - began if give_up_s else 0.0) from None
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def _greet(self) -> asyncio.StreamReader:
        link = self.host.dial()
        link.sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=link.sock, limit=rpc.LINE_MAX_BYTES)
        try:
            writer.write(rpc.request_line(0, "hello", {"protocol": list(rpc.PROTOCOLS), "client": "midstream"}))
            self.hello = await self._first_answer(reader, link)
        except BaseException:
            await _let_go(writer, link)
            raise
        self._writer, self._link = writer, link
        if link.ping_s:
            self._pings = asyncio.create_task(_ping(writer, link.ping_s))
        return reader

    async def _first_answer(self, reader: asyncio.StreamReader, link: Link) -> dict[str, Any]:
        """The answer to hello, after what a login shell may have printed."""
        noise = bytearray()
        try:
            async with asyncio.timeout(link.hello_timeout_s):
                while not (line := await self._first_line(reader, link, noise)):
                    continue
        except TimeoutError:
            raise link.mute() from None
        reply = rpc.parse_line(line, where=self.host.name, methods={0: "hello"})
        if isinstance(reply, rpc.Reply) and reply.error is not None:
            if reply.code == rpc.NO_AGENT_CODE:
                raise NotNow(told_by_far_end(self.host.name, reply.error))
            raise reply.error
        hello = (reply.result if isinstance(reply, rpc.Reply) else None) or {}
        rpc.check_hello(hello, self.host.name)
        return hello

    async def _first_line(self, reader: asyncio.StreamReader, link: Link, noise: bytearray) -> bytes:
        """The next line if it is of the protocol, else b"" and it is added to the noise. Raises what the end means."""
        try:
            line = await reader.readline()
        except ConnectionError:  # ssh ended before it read our hello
            line = b""
        if not line.endswith(b"\n"):
            failure = await asyncio.to_thread(link.ended, (noise + line).decode(errors="replace"))
            raise failure
        word = rpc.first_word(line)
        if word or not link.noise_max_bytes:
            return word or line
        noise += line
        if len(noise) > link.noise_max_bytes:
            raise noisy(self.host.name, noise.decode(errors="replace"))
        return b""

    async def _converse(self, reader: asyncio.StreamReader) -> None:
        """Reads until the agent is gone for good. Ends by failing whatever still waits."""
        try:
            while True:
                why = await self._read_until_lost(reader)
                why = (self._link.last_words() if self._link is not None else "") or why
                await self._hang_up()
                self._forget_what_cannot_be_repeated(why)
                self.on_words(f"lost the agent ({why}); connecting again")
                before = self.hello.get("pid")
                reader = await self._reach(self.give_up_s)
                after = self.hello.get("pid")
                self.on_words(
                    f"the agent is back (pid {after}, was {before})" if before != after else "connected again"
                )
                self._resume_calls()
        except MidstreamError as error:
            self._fail_all(error)
        except Exception as error:  # a bug here must fail the deploy, not hang it
            self._fail_all(
                HostError(
                    f"the connection broke: {error!r}",
                    where=self.host.name,
                    remedy="midstream resume carries the deploy on",
                )
            )

    async def _read_until_lost(self, reader: asyncio.StreamReader) -> str:
        while True:
            try:
                line = await reader.readline()
            except (OSError, ValueError) as error:  # ValueError: a line beyond the limit
                return str(error) or type(error).__name__
            if not line.endswith(b"\n"):
                return "it closed the connection"
            self._take(line)

    def _take(self, line: bytes) -> None:
        methods = {request_id: pending.method for request_id, pending in self._pending.items()}
        message = rpc.parse_line(line, where=self.host.name, methods=methods)
        if isinstance(message, rpc.Notice):
            self.on_notice(message.method, message.params)
            return
        pending = self._pending.get(message.id)
        if pending is None or pending.future.done():
            return
        if message.error is not None:
            pending.future.set_exception(message.error)
        else:
            pending.future.set_result(message.result or {})

    def _forget_what_cannot_be_repeated(self, why: str) -> None:
        for pending in self._pending.values():
            if pending.future.done():
                continue
            if not pending.idempotent or pending.sends >= SENDS_MAX:
                pending.future.set_exception(self._lost(pending, why))

    def _lost(self, pending: _Pending, why: str) -> HostError:
        times = f", {pending.sends} times" if pending.sends > 1 else ""
        return HostError(
            f"the agent was lost during {pending.method}{times}: {why}",
            where=self.host.name,
            remedy="see the agent's log, and `midstream status` for what it did",
        )

    def _resume_calls(self) -> None:
        if self.attach is not None and self._writer is not None:
            method, params = self.attach
            self._last_id += 1  # nobody waits for its answer
            self._writer.write(rpc.request_line(self._last_id, method, params))
        for request_id, pending in list(self._pending.items()):
            if not pending.future.done():
                self._send(request_id, pending)

    def _fail_all(self, error: MidstreamError) -> None:
        self._dead = error
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(error)


async def _ping(writer: asyncio.StreamWriter, every_s: float) -> None:
    """Empty lines, so that the far end knows that there is still somebody."""
    while True:
        await asyncio.sleep(every_s)
        writer.write(b"\n")


async def _let_go(writer: asyncio.StreamWriter, link: Link) -> None:
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    await asyncio.to_thread(link.close)
