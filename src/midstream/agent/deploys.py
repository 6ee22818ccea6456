"""Deploys on this host from the outside: begin, attach, lease, the calls of `docs/control-protocol.md`, end.

One deploy an app at a time; its lock is its intent. A deployer that goes away leaves a lease; when that runs out, what was
not committed is put back and what was is finished. Nothing here is guessed: the intent's state says which. What the calls
do is in `opening`, `packs`, `selecting`, `updating`, `publishing` and `finishing`. Runs in the agent's loop.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from midstream.agent import accounts, finishing, hooks, opening, packs, publishing, selecting
from midstream.agent.accounts import Peer
from midstream.agent.admission import read_spec
from midstream.agent.current_link import CurrentLink
from midstream.agent.dropped import forget_dropped
from midstream.agent.environment import with_pushed
from midstream.agent.external import Externals
from midstream.agent.host import Host
from midstream.agent.oneshots import is_of_deploy
from midstream.agent.opening import Opening, lease_s
from midstream.agent.params import refused
from midstream.agent.store import GenerationRecord
from midstream.agent.trash import Trash
from midstream.agent.updating import UpdateRequest, read_env_files, update
from midstream.agent.work import Progress, Work
from midstream.core.intent import Intent, IntentState
from midstream.core.names import SpawnKey, is_release
from midstream.core.spec import AppSpec
from midstream.errors import AppError, AttentionError, HostError, LockedError, MidstreamError, OperatorError
from midstream.linux import clock

T = TypeVar("T")

_AGAIN_S = 5.0  # after a way back that failed

_ENDED = (
    IntentState.OPEN,
    IntentState.COMMITTED,
    IntentState.REVERTED,
    IntentState.CLOSED,
)  # nothing is to be put back
_GOING_BACK = (IntentState.REVERTING, IntentState.REVERTED)
_UPDATED = (IntentState.UPDATED, IntentState.PUBLISHING, IntentState.PROVISIONAL, IntentState.COMMITTED)


class Deploys:
    """All deploys of this host. `tell` of each call is where its progress goes."""

    def __init__(self, host: Host, state_folder: str) -> None:
        self.host = host
        self._incoming = os.path.join(state_folder, "incoming")
        self._works: dict[str, Work] = {}  # by app
        self._outlive: set[asyncio.Task[Any]] = set()
        self._settling: dict[int, asyncio.Task[bool]] = {}  # by number of the intent
        self._trash = Trash(host)
        host.externals = Externals(host)
        host.current = CurrentLink(host)
        os.makedirs(self._incoming, mode=0o700, exist_ok=True)

    # -- begin, attach, lease ----------------------------------------------------------------------------------------

    def of(self, app: str) -> Work | None:
        return self._works.get(app)

    def is_busy(self, app: str, own: str = "") -> bool:
        """Whether a deploy is under way, other than the one of that id."""
        work = self._works.get(app)
        return work is not None and work.intent.id != own

    async def open(
        self,
        peer: Peer,
        asked: Opening,
        tell: Callable[[Progress], None],
        begun: Callable[[Work], None] = lambda work: None,
    ) -> dict[str, Any]:
        """Takes the lock (or waits for it), checks everything that can be checked before anything is done.

        begun: told of the deploy once it has the lock. A caller that is cancelled before that leaves nothing behind; after
        it, the deploy is settled when its lease runs out.
        """
        spec = read_spec(asked.spec)
        owner_uid = opening.authorise(self.host, peer, spec)
        opening.refuse_used_id(self.host, asked.deploy_id, spec.app)
        while True:
            over = self._committed_before(peer, asked.deploy_id)  # or others may deploy over it while it waits
            if over is not None:
                return opening.facts_of_over(over)
            work = self._works.get(spec.app)
            if work is None:
                break
            if work.intent.id == asked.deploy_id:
                accounts.require_owner(peer, self.host.apps[spec.app].owner_uid, self.host.uid, spec.app)
                if work.intent.state not in _GOING_BACK:
                    begun(work)
                    if asked.until == "check":
                        return opening.lock_facts(work)
                    return await self._outliving(opening.facts(peer, work, tell))
            elif not asked.wait:
                raise opening.locked(work)
            gone = work  # ours that is being put back, its lease being over, can be made anew after that
            await self.host.until(lambda gone=gone: self._works.get(spec.app) is not gone, timeout_s=2.0)  # type: ignore[misc]
        # While we waited, the app may have been removed, and made by another.
        owner_uid = opening.authorise(self.host, peer, spec)
        opening.refuse_manual_lock(self.host, spec.app, peer)
        work = self._begin(peer, asked, spec, owner_uid)
        begun(work)
        if asked.until == "check":
            return opening.lock_facts(work)
        return await self._outliving(self._first_facts(peer, work, tell))

    async def _outliving(self, work: Coroutine[Any, Any, T]) -> T:
        """It goes on when its caller goes away."""
        task = asyncio.get_running_loop().create_task(work)
        self._outlive.add(task)
        task.add_done_callback(self._outlive.discard)
        return await asyncio.shield(task)

    async def _first_facts(self, peer: Peer, work: Work, tell: Callable[[Progress], None]) -> dict[str, Any]:
        """The facts of a deploy that was just begun, which ends at once when something is wrong."""
        try:
            return await opening.facts(peer, work, tell)
        except BaseException as error:
            what = error.what if isinstance(error, MidstreamError) else str(error)
            await publishing.revert(work, what)
            self._close(work)
            raise

    def _committed_before(self, peer: Peer, deploy_id: str) -> Work | None:
        """A deploy that was committed and is over, as long as what it committed still stands. To begin it anew would
        empty the folder that its processes run from. One that was put back may be made anew (`midstream resume`), unless
        others have deployed since: their release would be taken back."""
        intent = self.host.store.intent(deploy_id)
        if intent is None or intent.ended not in ("committed", "reverted"):
            return None
        app = self.host.apps.get(intent.app)
        spec = self._spec_for(intent)
        if app is None or spec is None:
            return None
        accounts.require_owner(peer, app.owner_uid, self.host.uid, app.app)
        was_committed = intent.ended == "committed"
        if app.release not in ((intent.release,) if was_committed else (intent.release, intent.previous)):
            how = "committed" if was_committed else "put back"
            raise LockedError(
                f"deploy {deploy_id} is over: it was {how}, and release {app.release} has come after it",
                serving=f"release {app.release}",
                remedy="begin a new one: midstream deploy",
            )
        return Work(self.host, replace(intent, state=IntentState.COMMITTED), spec, over=True) if was_committed else None

    def _begin(self, peer: Peer, asked: Opening, spec: AppSpec, owner_uid: int) -> Work:
        host = self.host
        record = host.apps.get(spec.app) or opening.new_app(self.host, spec, owner_uid)
        record = replace(record, token=record.token + 1)
        with host.store.transaction():
            intent = Intent(
                id=asked.deploy_id,
                number=host.store.next_number("intent"),
                app=spec.app,
                kind=asked.kind,
                state=IntentState.OPEN,
                user=" ".join(asked.user.split())[:100] or peer.name,
                token=record.token,
                uid=peer.uid,
                started_wall_s=time.time(),
                previous=record.release,
            )
            host.store.put_app(record)
            host.store.put_intent(intent)
        host.apps[spec.app] = record
        work = Work(host, intent, spec)
        work.pack_path = os.path.join(self._incoming, f"{intent.number}.pack")
        self._works[spec.app] = work
        host.note(spec.app, "", asked.kind, f"begun by {intent.user}", who=intent.user)
        return work

    def connection_opened(self, app: str) -> None:
        work = self._works.get(app)
        if work is not None:
            work.connected += 1

    def connection_lost(self, app: str, deploy_id: str) -> None:
        """The lease begins to run when the last connection that spoke for the deploy is gone."""
        work = self._works.get(app)
        if work is None or work.intent.id != deploy_id:
            return
        work.connected -= 1
        if work.connected <= 0:
            self._lease(work)

    def _lease(self, work: Work) -> None:
        self.host.keep(asyncio.get_running_loop().create_task(self._lapse(work, clock.boottime_s() + lease_s())))

    async def _lapse(self, work: Work, deadline_s: float) -> None:
        await self.host.until(
            lambda: work.connected > 0 or self._works.get(work.intent.app) is not work,
            timeout_s=max(0.0, deadline_s - clock.boottime_s()),
        )
        if work.connected > 0 or self._works.get(work.intent.app) is not work:
            return
        self.host.note(work.intent.app, "", "lease", f"the deployer of {work.intent.user} is gone: settling its deploy")
        await self._settle_alone(work, "the deployer went away before the decision")

    async def settle(self, work: Work, reason: str, *, undecided: bool = False) -> bool:
        """Ends a deploy that nobody drives: forward if it was committed, back if not. Who asks while that is under way
        waits for the same end; it goes on when he goes away. undecided: back, or not at all: False when the decision came
        first."""
        number, mine = work.intent.number, False
        while True:
            task = self._settling.get(number)
            if task is None:
                task, mine = asyncio.get_running_loop().create_task(self._settle(work, reason, undecided)), True
                self._settling[number] = task
                task.add_done_callback(lambda done: self._settling.pop(number, None))
            settled = await asyncio.shield(task)
            if settled or mine:
                return settled and not (undecided and work.intent.ended == "committed")

    async def _settle(self, work: Work, reason: str, undecided: bool) -> bool:
        if undecided and work.intent.state is IntentState.COMMITTED:
            return False  # from here to the record of the way back nothing waits, so no decision can come in between
        for task in list(work.running.values()):
            task.cancel()
        try:
            if work.intent.state is IntentState.COMMITTED:
                await self._follow_decision(work)
            else:
                await publishing.revert(work, reason)
            await self._finish(work, "abandoned")
        except MidstreamError as error:
            self.host.note(work.intent.app, "", "attention", error.what)
            if publishing.handed_over(work):
                self._go_back_later(work, error)
                raise
            try:
                await hooks.undo_all(work)
            finally:
                self._close(work)
        return True

    def _go_back_later(self, work: Work, error: Exception) -> None:
        """What was handed over and could not be put back: its deploy stays open, and locked, until it is. Closed, its
        generation would be nobody's."""
        what = getattr(error, "what", "") or f"{type(error).__name__}: {error}"
        self.host.note(work.intent.app, "", "attention", f"could not be put back, and is tried again: {what}")
        self.host.keep(asyncio.get_running_loop().create_task(self._go_back_again(work), name="a way back"))

    async def _go_back_again(self, work: Work) -> None:
        await self.host.until(lambda: self._works.get(work.intent.app) is not work, _AGAIN_S)
        await self._settle_alone(work, work.intent.failure or "it could not be put back at first")

    async def _settle_alone(self, work: Work, reason: str) -> None:
        """For nobody in particular. What fails is noted; where it has to, it is tried again."""
        if self._works.get(work.intent.app) is work:
            with suppress(MidstreamError):
                await self.settle(work, reason)

    async def _follow_decision(self, work: Work) -> None:
        """What the deployer would have been told; the rest of the deploy's end does not depend on it."""
        try:
            await publishing.commit(work)
        except AttentionError as error:
            self.host.note(work.intent.app, "", "attention", error.what)

    # -- the calls ---------------------------------------------------------------------------------------------------

    def work_for(self, peer: Peer, deploy_id: str, token: int) -> Work:
        """The open deploy of that id, or one that was committed before (`over`). Raises LockedError when it was put back or
        taken over (fencing)."""
        for work in self._works.values():
            if work.intent.id == deploy_id:
                accounts.require_owner(peer, work.app.owner_uid, self.host.uid, work.intent.app)
                if work.intent.token != token:
                    raise LockedError("this deploy's token is out of date", remedy="begin again: midstream deploy")
                return work
        before = self._committed_before(peer, deploy_id)
        if before is not None and before.intent.token == token:
            return before
        raise self._is_over(deploy_id)

    def _is_over(self, deploy_id: str) -> LockedError:
        intent = self.host.store.intent(deploy_id)
        how = "it is not known here"
        if intent is not None and intent.ended:
            how = "it was committed" if intent.ended == "committed" else "it was put back"
        return LockedError(f"deploy {deploy_id} is over: {how}", remedy="midstream status tells what runs")

    def went_back(self, peer: Peer, deploy_id: str, token: int) -> AppError | None:
        """For who asks a deploy to go on that goes back, or did: why. After a restart on the way back the agent ends it by
        itself, and the deployer repeats the call whose answer it has not got. None: it does not go back."""
        intent = self.host.store.intent(deploy_id)
        if intent is None or not intent.failure or intent.token != token or intent.app not in self.host.apps:
            return None
        if intent.state not in _GOING_BACK and intent.ended != "reverted":
            return None
        app = self.host.apps[intent.app]
        accounts.require_owner(peer, app.owner_uid, self.host.uid, intent.app)
        return AppError(
            intent.failure,
            serving=f"release {app.release}, unchanged" if app.release else "nothing, as before",
            remedy="midstream logs and `midstream why SERVICE` show more; mend it, and deploy again",
        )

    async def call(
        self, work: Work, name: str, do: Callable[[], Awaitable[dict[str, Any]]], tell: Callable[[Progress], None]
    ) -> dict[str, Any]:
        """Runs one call of a deploy, or attaches to it when it is running already. It outlives its caller."""
        work.listeners.append(tell)
        try:
            task = work.running.get(name)
            if task is None:

                async def run() -> dict[str, Any]:
                    return await do()

                task = asyncio.get_running_loop().create_task(run())
                work.running[name] = task
                task.add_done_callback(lambda done: work.running.pop(name, None))
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if name in work.running:
                raise
            raise AttentionError("the deploy was ended meanwhile", remedy="midstream status") from None
        finally:
            if tell in work.listeners:
                work.listeners.remove(tell)

    async def upload(self, work: Work, offset: int, data: bytes, last: bool) -> dict[str, Any]:
        if work.over:
            raise self._is_over(work.intent.id)
        return await packs.upload(work, offset, data, last)

    async def select(self, work: Work, named: str, force: bool = False) -> dict[str, Any]:
        return await selecting.select(work, named, force)

    async def update(
        self, work: Work, request: UpdateRequest, spec: AppSpec, secrets: dict[str, str]
    ) -> dict[str, Any]:
        to_migrate = request.migrate and work.spec.migrate is not None and not work.done("deploy:migrate")
        if work.intent.state in _UPDATED and not (to_migrate and work.intent.state is IntentState.UPDATED):
            return self._updated(work)
        if not is_release(request.release):
            raise refused(f"{request.release!r} is no release id", "release")
        work.spec = spec
        work.secrets = dict(secrets)
        try:
            await update(work, request)
        except MidstreamError as error:
            await publishing.revert(work, error.what)
            raise self._with_schema(work, error) from error
        finally:
            packs.drop(work)
        return self._updated(work)

    def _updated(self, work: Work) -> dict[str, Any]:
        return {"release": work.intent.release, "migrated": work.intent.migrated}

    async def publish(self, work: Work) -> dict[str, Any]:
        intent = work.intent
        done: dict[str, Any] = {"generation": intent.generation, "release": intent.release, "services": []}
        if intent.state is IntentState.COMMITTED:
            return done
        if not intent.release:
            raise refused("nothing to publish: no release was made or chosen", "deploy.publish")
        secrets = work.secrets or self._stored_secrets(work)
        try:
            if intent.state is IntentState.PROVISIONAL:
                publishing.raise_if_failed(work)  # who resumes must not be told that what died since is proven
                return done
            files = await read_env_files(work.spec, intent.release, work.app.owner_uid, self.host.uid)
            services = await publishing.publish(work, GenerationRecord(0, intent.release, work.spec, secrets, files))
        except MidstreamError as error:
            await publishing.revert(work, error.what)
            raise self._with_schema(work, error) from error
        return {"generation": work.intent.generation, "release": work.intent.release, "services": services}

    def _stored_secrets(self, work: Work) -> dict[str, str]:
        """A rollback takes the values that are in force now, or were sent since; they are not stored with releases."""
        pushed = self.host.store.pushed(work.intent.app)
        if pushed is not None:
            return dict(pushed.secrets)
        record = self.host.record(work.intent.app, work.app.committed_generation)
        return dict(record.secrets) if record else {}

    def _with_schema(self, work: Work, error: MidstreamError) -> MidstreamError:
        """A failure after the migration is one that somebody has to know of: old code runs on the new schema."""
        if not work.intent.migrated or isinstance(error, AttentionError):
            return error
        code = work.app.release or "none"
        return AttentionError(
            error.what,
            where=error.where,
            detail=error.detail,
            serving=f"{work.serving()}; schema: {work.intent.release}, code: {code}",
            remedy=error.remedy,
        )

    async def commit(self, work: Work) -> dict[str, Any]:
        if work.over:
            await self.host.current.follow(work.intent.app)
        else:
            await publishing.commit(work)
        return {"generation": work.intent.generation, "release": work.intent.release}

    async def revert(self, work: Work, reason: str) -> dict[str, Any]:
        if work.over:
            raise self._is_over(work.intent.id)
        if work.intent.state is IntentState.COMMITTED:
            raise OperatorError(
                f"release {work.intent.release} is committed; going back is a rollback",
                serving=work.serving(),
                remedy="midstream rollback",
            )
        for name, task in list(work.running.items()):
            if name != "revert" and not name.startswith("finish"):
                task.cancel()
        await publishing.revert(work, reason)
        return {"serving": work.serving(), "migrated": work.intent.migrated}

    async def finish(self, work: Work, outcome: str = "done", until: str = "") -> dict[str, Any]:
        """outcome: how the deploy went, `done` if well. until: stops before that part, with the lock still held."""
        if work.over:
            await self.host.folders.look([work.intent.app])
            return finishing.found(work, [], [])
        if (
            not until and work.intent.state not in _ENDED
        ):  # the decision could not be taken here, for want of disk space
            await self.revert(work, f"the deploy has ended ({outcome}), and nothing was decided here")
        return await self._finish(work, outcome, until)

    async def _finish(self, work: Work, outcome: str, until: str = "") -> dict[str, Any]:
        """Verify, clean up, write the log, free the lock. What fails here is told, and leaves nothing locked. When the
        deploy did not go well its hooks are undone first: their undo may need what cleaning up takes away."""
        not_undone = [] if outcome in ("done", "checked") else await hooks.undo_all(work)
        if not until:
            not_undone += await self.host.externals.end_deploy(work)
            await self.host.externals.look([work.intent.app])
        work.phase = "finishing"
        removed: list[str] = []
        warnings: list[str] = []
        if work.intent.kind in ("deploy", "rollback"):
            await finishing.verify(work)
            try:
                removed = await finishing.tidy(work, until)
            except MidstreamError as error:
                warnings.append(f"{error.what} ({error.where})" if error.where else error.what)
        await self.host.folders.look([work.intent.app])
        found = finishing.found(work, removed, warnings) | {"not_undone": not_undone}
        if not until:
            with work.telling("deploy:unlock"):
                self._close(work)
        return found

    def _close(self, work: Work) -> None:
        """Frees the lock; whatever else there is to say is in the journal. Once: a second one who ends the same deploy
        (its lease ran out while somebody said abort) must not touch the next one's."""
        if self._works.get(work.intent.app) is not work:
            return
        work.end_steps()
        packs.drop(work)
        packs.drop_artifacts(work)
        intent = work.intent
        try:
            ended = "committed" if intent.state is IntentState.COMMITTED else "reverted"
            with self.host.store.transaction():
                work.save(state=IntentState.CLOSED, ended=ended, commands=())
                self.host.store.forget_old_intents(intent.app, work.app.release)
        except HostError:
            pass  # the lock is ours to free all the same; a restart settles the stored intent again
        del self._works[intent.app]
        self._abandon(lambda key: key.app == intent.app and is_of_deploy(key) and key.generation == intent.number)
        app = self.host.apps.get(intent.app)
        if app is not None and not app.release and not self._has_processes(intent.app):
            self._forget_app(intent.app)
        self.host.intent_of.pop(intent.app, None)
        forget_dropped(self.host, intent.app)
        self.host.externals.let_go(intent.id)
        if work.trash:
            self._trash.empty(intent.app)
        self.host.poke()

    def _abandon(self, gone: Callable[[SpawnKey], bool]) -> None:
        """One-shots that nobody will ask for any more are not kept for ever."""
        for key in self.host.one_shots.known_of():
            if gone(key):
                self.host.one_shots.abandon(str(key))

    def _has_processes(self, app: str) -> bool:
        return any(owner == app and service.instances for (owner, _), service in self.host.services.items())

    def _forget_app(self, app: str) -> None:
        """A first deploy that failed leaves no claim on the name."""
        try:
            self.host.drop_app(app)
        except HostError:
            return

    # -- after a restart of the agent --------------------------------------------------------------------------------

    async def resume_all(self) -> None:
        """Takes up what the last agent was asked to do. Deployers come back within their lease; what was being put back
        goes on at once."""
        for intent in self.host.store.open_intents():
            spec = self._spec_for(intent)
            if spec is None:
                self.host.store.put_intent(replace(intent, state=IntentState.CLOSED))
                continue
            work = Work(self.host, intent, spec)
            work.pack_path = os.path.join(self._incoming, f"{intent.number}.pack")
            self._works[intent.app] = work
            self.host.intent_of[intent.app] = intent.id
            record = self.host.record(intent.app, intent.generation) if intent.generation else None
            if record is not None:
                work.secrets = dict(record.secrets)
            if intent.state in (IntentState.REVERTING, IntentState.REVERTED):
                self.host.keep(asyncio.get_running_loop().create_task(self._settle_alone(work, intent.failure)))
            else:
                self._lease(work)
        open_ones = {(work.intent.app, work.intent.number) for work in self._works.values()}
        self._trash.resume()
        self.host.current.resume()

        def over(key: SpawnKey) -> bool:
            return not is_of_deploy(key) or (key.app, key.generation) not in open_ones

        self._abandon(lambda key: over(key) and not self._trash.keeps(key))
        for app in list(self.host.apps):
            forget_dropped(self.host, app)
        self.host.externals.resume({work.intent.id for work in self._works.values()})

    def _spec_for(self, intent: Intent) -> AppSpec | None:
        """The configuration an open intent works with: its own generation's if it has one, else the committed."""
        app = self.host.apps.get(intent.app)
        if app is None:
            return None
        for number in (intent.generation, app.committed_generation):
            record = self.host.record(intent.app, number) if number else None
            if record is not None:
                return record.spec
        return AppSpec(app.app, app.deploy_to, "", app.stage)

    # -- restart: a handover to the same release -------------------------------------------------------------------

    async def restart(
        self,
        peer: Peer,
        app: str,
        services: list[str],
        tell: Callable[[Progress], None],
        user: str = "",
        under: Work | None = None,
    ) -> dict[str, Any]:
        """New processes of the committed release by the same handover as a deploy: nothing is dropped, and what does not
        come up changes nothing. under: the lock that was taken for it, which stays."""
        record = self.host.apps[app]
        if under is not None:
            _require_configuring(under, app)
        elif self._works.get(app) is not None:
            raise opening.locked(self._works[app])
        generation = self.host.record(app, record.committed_generation)
        if generation is None or not record.release:
            raise OperatorError(f"nothing of {app!r} is deployed here", remedy="midstream deploy")
        generation = with_pushed(generation, self.host.store.pushed(app))
        asked = Opening(f"restart-{app}-{record.token + 1}", {}, "restart", user or peer.name)
        work = under or self._begin(peer, asked, generation.spec, record.owner_uid)
        chosen = services or list(generation.spec.services)
        work.spec = replace(generation.spec, services={name: generation.spec.services[name] for name in chosen})
        work.save(release=record.release, revision=record.revision, branch=record.branch)
        work.secrets = dict(generation.secrets)
        work.listeners.append(tell)
        work.connected = max(work.connected, 1)
        try:
            files = await read_env_files(work.spec, record.release, record.owner_uid, self.host.uid)
            fresh = GenerationRecord(0, record.release, generation.spec, generation.secrets, files)
            await publishing.publish(work, fresh)
            work.spec = generation.spec
            work.save(steps={**work.intent.steps, "deploy:symlink:release": "done"})
            await publishing.commit(work)
        except Exception as error:
            await self._put_back(work, getattr(error, "what", str(error)), close=under is None)
            raise
        finally:
            work.listeners.remove(tell)
        if under is None:
            self._close(work)
        return {"generation": work.intent.generation, "release": record.release}

    async def _put_back(self, work: Work, reason: str, close: bool) -> None:
        try:
            await publishing.revert(work, reason)
        except Exception as error:
            if publishing.handed_over(work):
                self._go_back_later(work, error)
                return
            self.host.note(work.intent.app, "", "attention", f"the way back failed: {error}")
        if close:
            self._close(work)


def _require_configuring(work: Work, app: str) -> None:
    intent = work.intent
    if work.over or intent.app != app or intent.kind != "configure" or intent.state is not IntentState.OPEN:
        raise OperatorError(
            "a restart within a deploy needs a lock that was taken for it, and once",
            where="deploy_id",
            remedy="open one of kind `configure`, or restart without: midstream restart",
        )
