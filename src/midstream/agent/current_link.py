"""`current` of an app that is behind its committed release, because it could not be switched: tried again until it is.

That it is behind is stored, so that the next agent goes on; `midstream resume` asks for it at once, and the next deploy makes
it moot. The link is output: nothing that runs waits for it, and one that somebody moved meanwhile is left alone. Runs in the
agent's loop; the switch itself is a one-shot under the app's user.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from midstream.agent.spawning import account_for
from midstream.agent.step_requests import request_file, step_program
from midstream.agent.store import AppRecord
from midstream.core import steps
from midstream.core.names import SpawnKey, parse_key
from midstream.core.spec import AppSpec
from midstream.errors import AttentionError, DriftError, HostError, MidstreamError

if TYPE_CHECKING:
    from midstream.agent.host import Host
    from midstream.agent.work import Work

SERVICE = "+current"  # of its keys
_TIMEOUT_S = 60.0
_STOP_S = 10.0
_FIRST_PAUSE_S = 5.0
_PAUSE_MAX_S = 300.0


@dataclass(frozen=True, slots=True)
class Behind:
    """seen: what `current` named when it could not be switched, "" for nothing. rollback_target: see steps.Switch."""

    release: str
    seen: str = ""
    rollback_target: str | None = None


class CurrentLink:
    """Of all apps of this host. `switching(app)` is held by whoever switches: a deploy's own comes after a late one."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._behind: dict[str, Behind] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._trying: set[str] = set()

    def switching(self, app: str) -> asyncio.Lock:
        return self._locks.setdefault(app, asyncio.Lock())

    def failed(self, work: Work, seen: str, rollback_target: str | None) -> None:
        """The deploy could not switch it: from now on we try."""
        behind = Behind(work.intent.release, seen, rollback_target)
        self._behind[work.intent.app] = behind
        try:
            self._host.store.put_unswitched(work.intent.app, behind.release, behind.seen, behind.rollback_target)
        except HostError:
            pass  # a full disk: this agent knows it
        self._begin(work.intent.app, _FIRST_PAUSE_S)

    def switched(self, app: str) -> None:
        """It names what is committed, or is no longer ours to mend."""
        if self._behind.pop(app, None) is None:
            return
        try:
            self._host.store.put_unswitched(app, "")
        except HostError:
            pass  # the next agent finds it in place

    def resume(self) -> None:
        """After a restart of the agent."""
        for app, behind in self._host.store.unswitched().items():
            self._behind[app] = Behind(*behind)
            self._begin(app, 0.0)

    async def follow(self, app: str) -> None:
        """At once, where it is behind. Raises AttentionError."""
        behind = self._behind.get(app)
        if behind is None:
            return
        try:
            await self._switch(app, behind)
        except MidstreamError as error:
            raise not_switched(self._host.apps[app], error) from error

    def _begin(self, app: str, pause_s: float) -> None:
        if app in self._trying:
            return
        self._trying.add(app)
        task = asyncio.get_running_loop().create_task(self._until_followed(app, pause_s), name=f"current of {app}")
        self._host.keep(task)

    async def _until_followed(self, app: str, pause_s: float) -> None:
        try:
            while True:
                await self._host.until(lambda: app not in self._behind, pause_s)
                # In a deploy `current` may be on its way already, where another supervisor starts by it.
                while app in self._behind and not await self._host.until(lambda: not self._in_deploy(app), 60.0):
                    pass
                behind = self._behind.get(app)
                if behind is None:
                    return
                try:
                    await self._switch(app, behind)
                except DriftError as error:
                    self._host.note(app, "", "attention", f"`current` is left as it is: {error.what}")
                    self.switched(app)
                except MidstreamError as error:
                    self._host.note(app, "", "attention", f"`current` still cannot be switched: {error.what}")
                pause_s = min(max(2 * pause_s, _FIRST_PAUSE_S), _PAUSE_MAX_S)
        finally:
            self._trying.discard(app)

    def _in_deploy(self, app: str) -> bool:
        return app in self._host.intent_of

    async def _switch(self, app: str, behind: Behind) -> None:
        async with self.switching(app):
            record = self._host.apps.get(app)
            if record is None or record.release != behind.release or self._behind.get(app) is not behind:
                if self._behind.get(app) is behind:
                    self.switched(app)
                return
            request = steps.Switch(record.deploy_to, behind.release, behind.seen, behind.rollback_target)
            await self._run(record, request)
            self.switched(app)
        self._host.note(app, "", "current", f"`current` names release {behind.release} now")

    async def _run(self, record: AppRecord, request: steps.Switch) -> dict[str, Any]:
        host = self._host
        await self._end_leftovers(record.app)
        last = host.one_shots.last_attempt(record.app, SERVICE, 0, 0)
        key = SpawnKey(record.app, SERVICE, 0, 0, parse_key(last.key).attempt + 1 if last else 0)
        stored = host.record(record.app, record.committed_generation)
        spec = stored.spec if stored else AppSpec(record.app, record.deploy_to, "", record.stage)
        account = account_for(spec, record.owner_uid, host.uid)
        with request_file("switch", request) as body:
            program = step_program(key, "switch", account, host.uid, 1)
            outcome = await host.one_shots.run(program, fds=(body,), timeout_s=_TIMEOUT_S, on_line=lambda line: None)
        if not outcome.result:
            raise HostError(
                f"step switch gave no answer: {outcome.text}",
                detail="\n".join(outcome.tail),
                remedy="midstream resume: it is switched as soon as that works",
            )
        return steps.read_result(outcome.result)

    async def _end_leftovers(self, app: str) -> None:
        """One of an agent that died must not act after what comes now."""

        def running() -> list[str]:
            keys = ((text, parse_key(text)) for text in self._host.one_shots.running())
            return [text for text, key in keys if (key.app, key.service) == (app, SERVICE)]

        for key in running():
            await self._host.one_shots.stop(key)
        if not await self._host.until(lambda: not running(), _STOP_S):
            raise HostError(
                f"an earlier attempt to switch `current` of {app!r} does not end",
                remedy="look at the file system of deploy_to (a dead NFS server?), then: midstream resume",
            )


def not_switched(record: AppRecord, error: MidstreamError) -> AttentionError:
    return AttentionError(
        f"release {record.release} is committed and serves, but `current` could not be switched: {error.what}",
        where=error.where or record.deploy_to,
        detail=error.detail,
        serving=f"release {record.release} (generation {record.committed_generation})",
        remedy=f"{error.remedy or 'mend it'}; the agent tries it again by itself, `midstream resume` at once",
    )
