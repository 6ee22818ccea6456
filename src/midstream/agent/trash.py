"""Deleting what deploys have moved to the trash of `deploy_to`, after them: a large release may take a minute.

One one-shot an app at a time, under the app's user. That there is something to delete is stored, so that the next agent
goes on; what fails is an event, and tried again after the next deploy. Runs in the agent's loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from midstream.agent.host import Host
from midstream.agent.oneshots import Outcome
from midstream.agent.spawning import account_for
from midstream.agent.step_requests import request_file, step_program
from midstream.agent.store import AppRecord
from midstream.core import steps
from midstream.core.messages import ProcessState
from midstream.core.names import SpawnKey, parse_key
from midstream.core.spec import AppSpec
from midstream.errors import HostError, MidstreamError

SERVICE = "+trash"  # of its keys
_TIMEOUT_S = 3600.0
_NICE = 10
_TRIES = 3
_OVER = (ProcessState.EXITED, ProcessState.FAILED, ProcessState.LOST)


class Trash:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._wanted: set[str] = set()  # apps that are being emptied
        self._more: set[str] = set()  # those of them to which more came meanwhile

    def empty(self, app: str) -> None:
        """Begins, unless it is at work for the app: then it goes over it once more."""
        if app in self._wanted:
            self._more.add(app)
            return
        try:
            self._host.store.note_trash(app, True)
        except HostError:
            pass  # a full disk is no reason not to begin; after a crash the next deploy finds what is left
        self._wanted.add(app)
        self._host.keep(asyncio.get_running_loop().create_task(self._work(app), name=f"trash of {app}"))

    def resume(self) -> None:
        """After a restart of the agent."""
        for app in self._host.store.apps_with_trash():
            self.empty(app)

    def keeps(self, key: SpawnKey) -> bool:
        """Whether a one-shot of an earlier agent is waited for."""
        return key.service == SERVICE and key.app in self._wanted

    async def _work(self, app: str) -> None:
        try:
            while True:
                self._more.discard(app)
                record = self._host.apps.get(app)
                if record is None:
                    return
                problem = await self._empty(record)
                if problem:
                    self._host.note(app, "", "trash", problem)
                if app not in self._more:
                    return
        finally:
            self._wanted.discard(app)

    async def _empty(self, record: AppRecord) -> str:
        """Until it is empty; "" or what is wrong."""
        for _ in range(_TRIES):
            outcome = await self._once(record)
            if not outcome.lost:
                break
        if not outcome.result:
            return f"{record.deploy_to}/.midstream/trash could not be emptied: {outcome.text}"
        try:
            left = steps.read_result(outcome.result)["left"]
        except MidstreamError as error:
            return f"the trash could not be emptied: {error.what}"
        if not left:
            return ""
        more = f", and {len(left) - 1} more" if len(left) > 1 else ""
        return f"{left[0]['path']} could not be deleted: {left[0]['reason']}{more}"

    async def _once(self, record: AppRecord) -> Outcome:
        host = self._host
        last = host.one_shots.last_attempt(record.app, SERVICE, 0, 0)
        attempt = 0
        if last is not None:  # one that runs is attached to
            attempt = parse_key(last.key).attempt + (1 if last.state in _OVER else 0)
        key = SpawnKey(record.app, SERVICE, 0, 0, attempt)
        stored = host.record(record.app, record.committed_generation)
        spec = stored.spec if stored else AppSpec(record.app, record.deploy_to, "", record.stage)
        account = account_for(spec, record.owner_uid, host.uid)
        with request_file("empty_trash", steps.EmptyTrash(record.deploy_to)) as body:
            return await host.one_shots.run(
                replace(step_program(key, "empty_trash", account, host.uid, 1), nice=_NICE),
                fds=(body,),
                timeout_s=_TIMEOUT_S,
                on_line=lambda line: None,
                on_end=lambda outcome: self._ended(record.app, outcome),
            )

    def _ended(self, app: str, outcome: Outcome) -> None:
        """What could not be deleted is not tried again before the next deploy."""
        if outcome.result and app not in self._more:
            try:
                self._host.store.note_trash(app, False)
            except HostError:
                pass  # once more after the next start
