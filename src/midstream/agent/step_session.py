"""One process for the steps of a deploy, under the app's user: to start one takes longer than most steps do.

Here is who asks it (`core.steps`, `session`) and what is made of its end; what is asked is its caller's. It is a one-shot
like any other: whoever kills those of the deploy kills it. It ends when it is closed, and with the agent. Runs in the
agent's loop.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from midstream.agent.accounts import Account
from midstream.agent.oneshots import TAIL_LINES, OneShots, Outcome
from midstream.core.messages import SpawnSpec
from midstream.errors import HostError

SERVICE = "+steps"  # of its keys
IDLE_S = 30.0  # during a long build or soak it gives its memory back
_LONGEST_S = 7 * 86400.0
_KILLED_S = 30.0


@dataclass(slots=True, eq=False)
class _Asked:
    """The step that is under way."""

    ended: asyncio.Future[Outcome]
    on_line: Callable[[str], None]
    tail: list[str] = field(default_factory=list)


class StepSession:
    """`program`: how its process is started (at once), as `account`. `is_free`: whether a step may be asked of it now;
    `is_over`: that none may any more."""

    def __init__(self, one_shots: OneShots, program: SpawnSpec, account: Account) -> None:
        self.account = account
        self._one_shots = one_shots
        self._program = program
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self._asked: _Asked | None = None
        self._answered = 0
        self._closed = False
        self._idle: asyncio.TimerHandle | None = None
        self.life = asyncio.get_running_loop().create_task(self._live(), name="the steps of a deploy")

    @property
    def is_free(self) -> bool:
        return not self._closed and self._asked is None

    @property
    def is_over(self) -> bool:
        return self._closed

    async def run(
        self, name: str, request_fd: int, fds: tuple[int, ...], *, timeout_s: float, on_line: Callable[[str], None]
    ) -> Outcome:
        """One step; only when `is_free`. A time-out kills the process. A caller that is cancelled leaves the step running,
        and nothing more is asked of the process."""
        asked = self._asked = _Asked(asyncio.get_running_loop().create_future(), on_line)
        self._wake()
        try:
            socket.send_fds(self._ours, [name.encode()], [request_fd, *fds])
            return await asyncio.wait_for(asyncio.shield(asked.ended), timeout_s)
        except TimeoutError:
            self.close()
            return await self._stop(asked, f"was stopped after {timeout_s:g} s")
        except OSError as error:
            self.close()
            return Outcome(None, f"its process cannot be asked: {error.strerror}", lost=True)
        except asyncio.CancelledError:
            self.close()  # what it answers now would be taken for the answer to the next step
            raise
        finally:
            self._asked = None
            self._rest()

    async def _stop(self, asked: _Asked, text: str) -> Outcome:
        try:
            await self._one_shots.stop(self._program.key)
        except HostError as error:
            return Outcome(None, error.what, lost=True, tail=tuple(asked.tail))
        ended = await asyncio.wait_for(asked.ended, _KILLED_S)
        return replace(ended, text=text, timed_out=True, lost=False)

    def close(self) -> None:
        """Its process ends, after the step that is under way. May be called twice."""
        self._wake()
        if not self._closed:
            self._closed = True
            self._ours.close()

    def _rest(self) -> None:
        if not self._closed:
            self._idle = asyncio.get_running_loop().call_later(IDLE_S, self.close)

    def _wake(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    async def _live(self) -> None:
        """From its start to its end, and the keeper's forgetting it."""
        try:
            outcome = await self._one_shots.run(
                self._program,
                fds=(self._theirs.fileno(),),
                timeout_s=_LONGEST_S,
                on_line=self._take_line,
                on_result=self._take_result,
                on_end=self._ended,
            )
            self._ended(outcome)
        finally:
            self._ended(Outcome(None, "its end is unknown", lost=True))
            self._theirs.close()

    def _ended(self, outcome: Outcome) -> None:
        """It may have been killed while it waited, for want of memory say: then it is not the next step's fault."""
        self.close()
        if self._asked is not None and not self._asked.ended.done():
            lost = outcome.lost or self._answered > 0
            self._asked.ended.set_result(replace(outcome, tail=tuple(self._asked.tail), result="", lost=lost))

    def _take_line(self, line: str) -> None:
        if self._asked is not None:
            self._asked.tail.append(line)
            del self._asked.tail[:-TAIL_LINES]
            self._asked.on_line(line)

    def _take_result(self, line: str) -> None:
        self._answered += 1
        if self._asked is not None and not self._asked.ended.done():
            self._asked.ended.set_result(Outcome(0, "exit 0", tail=tuple(self._asked.tail), result=line))
