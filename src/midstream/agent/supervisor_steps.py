"""The step programs that speak to another supervisor: run, read, and ended when they are in the way.

Each runs as a one-shot of the keeper, as the user whose supervisor it is; so it survives the agent, and the agent ends
what it left before it asks for something else. Runs in the agent's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from midstream.agent import accounts
from midstream.agent.spawning import one_shot, step_argv
from midstream.agent.step_requests import request_file, step_environment
from midstream.core import steps
from midstream.core.names import SpawnKey, parse_key
from midstream.errors import HostError

if TYPE_CHECKING:
    from midstream.agent.host import Host

SERVICE = "+external"
_STOP_S = 10.0
_PASSED_ON = ("XDG_RUNTIME_DIR",)


class SupervisorSteps:
    """`number` names the one-shots of one hold, or of one look."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._attempts: dict[int, int] = {}

    async def run(
        self,
        app: str,
        number: int,
        uid: int,
        request: object,
        timeout_s: float,
        tell: Callable[[str], None] = lambda line: None,
    ) -> dict[str, Any]:
        """The answer of the step that takes such a request. Raises what the step raised, or HostError."""
        name = next(name for name, kind in steps.REQUESTS.items() if isinstance(request, kind))
        account = accounts.account_of_uid(uid)
        env = step_environment(account, self._host.uid, _PASSED_ON)
        spec = one_shot(self._key(app, number), step_argv(name), env, "/", account, self._host.uid, passed_fds=1)
        with request_file(name, request) as body:
            try:
                outcome = await self._host.one_shots.run(spec, fds=(body,), timeout_s=timeout_s, on_line=tell)
            except asyncio.CancelledError:
                self._host.one_shots.abandon(spec.key)  # nobody asks how it ended; the keeper must not keep it for ever
                raise
        if outcome.result:
            return steps.read_result(outcome.result)
        raise HostError(
            f"step {name} gave no answer: {outcome.text}",
            where=str(getattr(request, "service", "")),
            detail="\n".join(outcome.tail),
            remedy="look at the lines above",
        )

    def _key(self, app: str, number: int) -> SpawnKey:
        last = self._host.one_shots.last_attempt(app, SERVICE, number, 0)
        attempt = max(self._attempts.get(number, -1), parse_key(last.key).attempt if last else -1) + 1
        self._attempts[number] = attempt
        return SpawnKey(app, SERVICE, number, 0, attempt)

    async def end_leftovers(self, app: str, number: int) -> None:
        """What an earlier call (of this agent or of the one before) left running must not act after the next one."""

        def running() -> list[str]:
            keys = ((text, parse_key(text)) for text in self._host.one_shots.running())
            return [text for text, key in keys if (key.app, key.service, key.generation) == (app, SERVICE, number)]

        for key in running():
            await self._host.one_shots.stop(key)
        if not await self._host.until(lambda: not running(), _STOP_S):
            raise HostError(
                f"a step of {app!r} that speaks to its supervisor does not end",
                where=", ".join(running()),
                remedy="look whether that supervisor still answers on the host, then repeat the command",
            )

    def forget(self, number: int) -> None:
        self._attempts.pop(number, None)
