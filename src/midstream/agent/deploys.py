"""Deploys on this host from the outside: begin, attach, lease, the calls of `docs/control-protocol.md`, end.

One deploy an app at a time; its lock is its intent. A deployer that goes away leaves a lease; when that runs out, what was
not committed is put back and what was is finished. Nothing here is guessed: the intent's state says which. Runs in the
agent's loop.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from midstream.agent import accounts, hooks, publishing
from midstream.agent.accounts import Peer
from midstream.agent.admission import read_spec
from midstream.agent.drift import drift_of
from midstream.agent.dropped import forget_dropped
from midstream.agent.environment import with_pushed
from midstream.agent.external import Externals
from midstream.agent.host import Host
from midstream.agent.locks import lock_of
from midstream.agent.store import AppRecord, GenerationRecord, ReleaseRecord
from midstream.agent.supervisor_steps import SERVICE as EXTERNAL
from midstream.agent.trash import SERVICE as TRASH
from midstream.agent.trash import Trash
from midstream.agent.updating import UpdateRequest, read_env_files, update
from midstream.agent.work import Part, Progress, Work
from midstream.core import releases, steps
from midstream.core.generation import ENDING, PROVISIONAL, GenerationState
from midstream.core.intent import Intent, IntentEvent, IntentState
from midstream.core.layout import Layout
from midstream.core.names import SpawnKey, is_release
from midstream.core.spec import AppSpec
from midstream.errors import AttentionError, HostError, LockedError, MidstreamError, OperatorError
from midstream.linux import clock
from midstream.linux.file_identity import FileUser, files_as
from midstream.linux.root_owned import require_root_owned

T = TypeVar("T")

LEASE_S = 15.0
_UPDATED = (IntentState.UPDATED, IntentState.PUBLISHING, IntentState.PROVISIONAL, IntentState.COMMITTED)
_PACK_MAX_BYTES = 8 << 30
_SPARE_BYTES = 256 << 20
_REVISIONS_LOG_MAX_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Opening:
    """The parameters of `deploy.open`."""

    deploy_id: str
    spec: dict[str, Any]
    kind: str = "deploy"
    user: str = ""
    wait: bool = False
    until: str = ""  # "check": takes the lock and answers; the same call without it goes on


class Deploys:
    """All deploys of this host. `tell` of each call is where its progress goes."""

    def __init__(self, host: Host, state_folder: str) -> None:
        self.host = host
        self._incoming = os.path.join(state_folder, "incoming")
        self._works: dict[str, Work] = {}  # by app
        self._outlive: set[asyncio.Task[Any]] = set()
        self._trash = Trash(host)
        host.externals = Externals(host)
        os.makedirs(self._incoming, mode=0o700, exist_ok=True)

    # -- begin, attach, lease ----------------------------------------------------------------------------------------

    def of(self, app: str) -> Work | None:
        return self._works.get(app)

    async def open(
        self,
        peer: Peer,
        opening: Opening,
        tell: Callable[[Progress], None],
        begun: Callable[[Work], None] = lambda work: None,
    ) -> dict[str, Any]:
        """Takes the lock (or waits for it), checks everything that can be checked before anything is done.

        begun: told of the deploy once it has the lock. A caller that is cancelled before that leaves nothing behind; after
        it, the deploy is settled when its lease runs out.
        """
        spec = read_spec(opening.spec)
        owner_uid = self._authorise(peer, spec)
        self._refuse_used_id(opening.deploy_id, spec.app)
        over = self._committed_before(peer, opening.deploy_id)
        if over is not None:
            return self._facts_of_over(over)
        while True:
            work = self._works.get(spec.app)
            if work is None:
                break
            if work.intent.id == opening.deploy_id:
                accounts.require_owner(peer, self.host.apps[spec.app].owner_uid, self.host.uid, spec.app)
                begun(work)
                if opening.until == "check":
                    return self._lock_facts(work)
                return await self._outliving(self._facts(peer, work, tell))
            if not opening.wait:
                raise self._locked(work)
            gone = work
            await self.host.until(lambda gone=gone: self._works.get(spec.app) is not gone, timeout_s=2.0)  # type: ignore[misc]
        owner_uid = self._authorise(peer, spec)  # while we waited, the app may have been removed, and made by another
        self._refuse_manual_lock(spec.app, peer)
        work = self._begin(peer, opening, spec, owner_uid)
        begun(work)
        if opening.until == "check":
            return self._lock_facts(work)
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
            return await self._facts(peer, work, tell)
        except BaseException as error:
            what = error.what if isinstance(error, MidstreamError) else str(error)
            await publishing.revert(work, what)
            self._close(work)
            raise

    def _authorise(self, peer: Peer, spec: AppSpec) -> int:
        record = self.host.apps.get(spec.app)
        if record is None:
            owner_uid = accounts.owner_for_new_app(peer, spec, self.host.uid)
            self._refuse_shared_folder(spec)
        else:
            owner_uid = record.owner_uid
            accounts.require_owner(peer, owner_uid, self.host.uid, spec.app)
            if record.deploy_to != spec.deploy_to:
                raise OperatorError(
                    f"app {spec.app!r} lives in {record.deploy_to} on this host, not in {spec.deploy_to}",
                    where="deploy_to",
                    serving=f"release {record.release or 'none'}",
                    remedy=f"keep deploy_to, or take the old one away first: midstream app remove {spec.app}",
                )
        accounts.check_spec(spec, owner_uid, peer, self.host.uid)
        return owner_uid

    def _refuse_used_id(self, deploy_id: str, app: str) -> None:
        """An id names one app's deploy for ever: with another's, his record would be replaced and his journal shown."""
        if len(deploy_id) > 100 or not deploy_id.isascii() or not deploy_id.isprintable():
            raise OperatorError("not an id for a deploy", where="deploy_id")
        intent = self.host.store.intent(deploy_id)
        if intent is not None and intent.app != app:
            raise OperatorError("this deploy_id was used already", where="deploy_id", remedy="begin again")

    def _committed_before(self, peer: Peer, deploy_id: str) -> Work | None:
        """A deploy that was committed and is over, as long as what it committed still stands. To begin it anew would
        empty the folder that its processes run from; one that was put back may be made anew (`midstream resume`)."""
        intent = self.host.store.intent(deploy_id)
        if intent is None or intent.ended != "committed":
            return None
        app = self.host.apps.get(intent.app)
        spec = self._spec_for(intent)
        if app is None or spec is None:
            return None
        accounts.require_owner(peer, app.owner_uid, self.host.uid, app.app)
        if app.release != intent.release:
            raise LockedError(
                f"deploy {deploy_id} is over: it was committed, and release {app.release} has come after it",
                serving=f"release {app.release}",
                remedy="begin a new one: midstream deploy",
            )
        return Work(self.host, replace(intent, state=IntentState.COMMITTED), spec, over=True)

    def _facts_of_over(self, work: Work) -> dict[str, Any]:
        """What `open` answers for it: its revision is here, nothing has to be sent."""
        return {
            "token": work.intent.token,
            "lease_s": LEASE_S,
            "committed": self._committed(work.app),
            "releases": [work.intent.release],
            "have": [work.intent.revision],
            "free_bytes": 0,
            "current": None,
            "over": "committed",
            "warnings": [f"this deploy was finished here before: release {work.intent.release} is committed"],
        }

    def _lock_facts(self, work: Work) -> dict[str, Any]:
        return {"token": work.intent.token, "lease_s": LEASE_S, "committed": self._committed(work.app), "warnings": []}

    def _committed(self, app: AppRecord) -> dict[str, str] | None:
        return {"release": app.release, "revision": app.revision, "branch": app.branch} if app.release else None

    def _refuse_shared_folder(self, spec: AppSpec) -> None:
        for other in self.host.apps.values():
            if other.deploy_to == spec.deploy_to:
                raise OperatorError(
                    f"{spec.deploy_to} belongs to app {other.app!r}", where="deploy_to", remedy="choose another folder"
                )

    def _refuse_manual_lock(self, app: str, peer: Peer) -> None:
        record = self.host.apps.get(app)
        lock = lock_of(record) if record is not None else None
        if record is not None and lock is not None:
            raise LockedError(
                f"app {app!r} is locked by {record.lock_owner} since {_clock(record.lock_since_wall_s)}"
                + (f": {record.lock_reason}" if record.lock_reason else "")
                + (f" (for another {lock['expires_in_s']:.0f} s)" if "expires_in_s" in lock else ""),
                serving=f"release {record.release or 'none'}",
                remedy="midstream unlock",
            )

    def _locked(self, work: Work) -> LockedError:
        intent = work.intent
        return LockedError(
            f"{intent.user or 'somebody'} has been running a {intent.kind} of {intent.app!r} since"
            f" {_clock(intent.started_wall_s)} ({intent.state.value})",
            where=intent.where,
            serving=work.serving(),
            remedy="wait for it (--wait), or end it: midstream abort",
        )

    def _begin(self, peer: Peer, opening: Opening, spec: AppSpec, owner_uid: int) -> Work:
        host = self.host
        record = host.apps.get(spec.app) or self._new_app(spec, owner_uid)
        record = replace(record, token=record.token + 1)
        intent = Intent(
            id=opening.deploy_id,
            number=host.store.next_number("intent"),
            app=spec.app,
            kind=opening.kind,
            state=IntentState.OPEN,
            user=" ".join(opening.user.split())[:100] or peer.name,
            token=record.token,
            uid=peer.uid,
            started_wall_s=time.time(),
            previous=record.release,
        )
        with host.store.transaction():
            host.store.put_app(record)
            host.store.put_intent(intent)
        host.apps[spec.app] = record
        work = Work(host, intent, spec)
        work.pack_path = os.path.join(self._incoming, f"{intent.number}.pack")
        self._works[spec.app] = work
        host.note(spec.app, "", opening.kind, f"begun by {intent.user}", who=intent.user)
        return work

    def _new_app(self, spec: AppSpec, owner_uid: int) -> AppRecord:
        """Its numbers go on where those of an app that had the name ended. When that was another user's, what was recorded
        and logged under the name is not for the new owner's eyes."""
        record = AppRecord(spec.app, spec.deploy_to, owner_uid, spec.stage)
        former = self.host.store.former(spec.app)
        if former is None:
            return record
        former_uid, generation, token = former
        if former_uid != owner_uid:
            self.host.store.drop_events(spec.app)
            self.host.logs.set_aside(spec.app, f"uid{former_uid}-{generation}-{token}")
        return replace(record, generation=generation, token=token)

    async def _facts(self, peer: Peer, work: Work, tell: Callable[[Progress], None]) -> dict[str, Any]:
        """What the deployer has to know. For a deploy the folders are made and checked on the way."""
        spec = work.spec
        work.listeners.append(tell)
        try:
            work.phase = "starting"
            with work.step("deploy:check"):
                if work.intent.kind == "deploy":
                    request: object = steps.Prepare(
                        spec.deploy_to, spec.linked_dirs, spec.linked_files, spec.min_free_bytes
                    )
                    self._make_folder(peer, work)
                    facts = await work.run_step("prepare", request, label="deploy:check")
                    await self._try_ports(work)
                else:
                    facts = await work.run_step("inspect", steps.Inspect(spec.deploy_to), label="deploy:check")
        finally:
            work.listeners.remove(tell)
        return {
            "token": work.intent.token,
            "lease_s": LEASE_S,
            "committed": self._committed(work.app),
            "releases": facts.get("releases", []),
            "have": facts.get("have", []),
            "free_bytes": facts.get("free_bytes", 0),
            "current": facts.get("current"),
            "warnings": work.warnings,
        }

    def _make_folder(self, peer: Peer, work: Work) -> None:
        """deploy_to itself: the one folder that the agent makes, when the owner cannot. Where he can, it is made with his
        rights; with root's only where root named the path and nobody else can change where it leads."""
        path, owner = work.spec.deploy_to, accounts.account_of_uid(work.app.owner_uid)
        if self.host.uid != 0 or owner.uid == 0:
            return
        try:
            with files_as(FileUser(owner.uid, owner.gid)):
                os.makedirs(path, exist_ok=True)
            return
        except PermissionError as error:
            if not accounts.may_make_as_root(peer, work.spec, owner):
                raise HostError(f"{path} cannot be made: {error.strerror}", where="deploy_to") from error
        except OSError:
            return  # the step that prepares it will say what is wrong there
        try:
            require_root_owned(os.path.dirname(path))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.mkdir(path, 0o755)
            os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
        except FileExistsError:
            return
        except OSError as error:
            raise HostError(
                f"{path} cannot be made: {error.strerror}",
                where="deploy_to",
                detail=str(error.filename or ""),
                remedy=f"as root: install -d -o {owner.name} {path}",
            ) from error

    async def _try_ports(self, work: Work) -> None:
        """A port that is taken is found before the build, not after it. What nothing refers to yet is let go again."""
        try:
            for service in work.spec.services.values():
                await self.host.listeners.open_service(work.spec, service, work.app.owner_uid)
        finally:
            await self.host.drop_unused_listeners()

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
        self.host.keep(asyncio.get_running_loop().create_task(self._lapse(work, clock.boottime_s() + LEASE_S)))

    async def _lapse(self, work: Work, deadline_s: float) -> None:
        await self.host.until(
            lambda: work.connected > 0 or self._works.get(work.intent.app) is not work,
            timeout_s=max(0.0, deadline_s - clock.boottime_s()),
        )
        if work.connected > 0 or self._works.get(work.intent.app) is not work:
            return
        self.host.note(work.intent.app, "", "lease", f"the deployer of {work.intent.user} is gone: settling its deploy")
        await self.settle(work, "the deployer went away before the decision")

    async def settle(self, work: Work, reason: str) -> None:
        """Ends a deploy that nobody drives: forward if it was committed, back if not."""
        for task in list(work.running.values()):
            task.cancel()
        try:
            if work.intent.state is IntentState.COMMITTED:
                await publishing.commit(work)
            else:
                await publishing.revert(work, reason)
            await self._finish(work, "abandoned")
        except MidstreamError as error:
            self.host.note(work.intent.app, "", "attention", error.what)
            await hooks.undo_all(work)
            self._close(work)

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

    def upload(self, work: Work, offset: int, data: str, last: bool) -> dict[str, Any]:
        """Appends to the pack; a repeated part is written over itself."""
        if work.over:
            raise self._is_over(work.intent.id)
        try:
            raw = base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise OperatorError("deploy.upload: data is not base64") from error
        if offset < 0 or offset + len(raw) > _PACK_MAX_BYTES:
            raise OperatorError("deploy.upload: the pack is too large")
        self._refuse_full_disk(work, len(raw))
        try:
            fd = os.open(work.pack_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                done = 0
                while done < len(raw):
                    done += os.pwrite(fd, raw[done:], offset + done)
                if last:
                    os.ftruncate(fd, offset + len(raw))
            finally:
                os.close(fd)
        except OSError as error:
            raise HostError(
                f"the objects could not be stored: {error.strerror}",
                where=self._incoming,
                serving=work.serving(),
                remedy="free some space, then deploy again",
            ) from error
        return {"offset": offset + len(raw)}

    def _refuse_full_disk(self, work: Work, size_bytes: int) -> None:
        """Packs lie on the agent's own disk: the last of it is not for them."""
        disk = os.statvfs(self._incoming)
        spare_bytes = min(_SPARE_BYTES, disk.f_blocks * disk.f_frsize // 20)
        if disk.f_bavail * disk.f_frsize < size_bytes + spare_bytes:
            raise HostError(
                "the objects could not be stored: no space left on the disk of the agent's state",
                where=self._incoming,
                serving=work.serving(),
                remedy="free some space, then deploy again",
            )

    async def update(
        self, work: Work, request: UpdateRequest, spec: AppSpec, secrets: dict[str, str]
    ) -> dict[str, Any]:
        to_migrate = request.migrate and work.spec.migrate is not None and not work.done("deploy:migrate")
        if work.intent.state in _UPDATED and not (to_migrate and work.intent.state is IntentState.UPDATED):
            return self._updated(work)
        if not is_release(request.release):
            raise OperatorError(f"{request.release!r} is no release id")
        work.spec = spec
        work.secrets = dict(secrets)
        try:
            await update(work, request)
        except MidstreamError as error:
            await publishing.revert(work, error.what)
            raise self._with_schema(work, error) from error
        finally:
            self._drop_pack(work)
        return self._updated(work)

    def _updated(self, work: Work) -> dict[str, Any]:
        return {"release": work.intent.release, "migrated": work.intent.migrated}

    def _drop_pack(self, work: Work) -> None:
        try:
            os.unlink(work.pack_path)
        except FileNotFoundError:
            pass

    async def select(self, work: Work, named: str, force: bool = False) -> dict[str, Any]:
        """For a rollback: which release, and with which configuration it was deployed."""
        if work.intent.state is not IntentState.OPEN:
            record = self.host.store.releases(work.intent.app).get(work.intent.release)
            return {"release": work.intent.release, "revision": record.revision if record else ""}
        deploy_to = work.spec.deploy_to
        inspected = await work.run_step("inspect", steps.Inspect(deploy_to))
        known = self.host.store.releases(work.intent.app)
        good = {release for release, record in known.items() if record.state == "good"}
        foreign = set(releases.deployed_releases(self._revisions_log(work))) - set(known)
        bad = {release for release, record in known.items() if record.state == "bad"}
        target = releases.rollback_target(
            inspected["releases"],
            committed=work.app.release or None,
            proven=good | foreign,
            bad=() if force else bad,
            named=named,
        )
        warning = self._check_schema(work, known, target, force)
        stored = await work.run_step("read_spec", steps.ReadSpec(deploy_to, target))
        body = stored.get("spec")
        spec = read_spec(body) if body else work.spec
        if body is None:
            work.warnings.append(f"release {target} has no stored configuration (another tool made it): using today's")
        # It lay in a folder of the owner's: whoever asks for the rollback, these are the owner's words.
        accounts.check_spec(spec, work.app.owner_uid, Peer(0, work.app.owner_uid, 0), self.host.uid)
        if spec.deploy_to != deploy_to or spec.app != work.intent.app:
            raise OperatorError("the stored configuration belongs to another app", where=target)
        work.spec = spec
        revision = str(stored.get("revision") or inspected.get("revisions", {}).get(target, ""))
        branch = known[target].branch if target in known else ""
        work.save(release=target, revision=revision, branch=branch)
        if target not in known:
            self.host.store.put_release(work.intent.app, ReleaseRecord(target, revision, branch))
        return {"release": target, "revision": revision, "branch": branch, "schema_warning": warning}

    def _revisions_log(self, work: Work) -> str:
        """What other tools deployed here; read with the rights of the app's user."""
        account = accounts.account_of_uid(work.app.owner_uid)
        user = FileUser(account.uid, account.gid) if self.host.uid == 0 else None
        try:
            with files_as(user):
                fd = os.open(Layout(work.spec.deploy_to).revisions_log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return ""
        with os.fdopen(fd, "rb") as file:
            return file.read(_REVISIONS_LOG_MAX_BYTES).decode("utf-8", "replace")

    def _check_schema(self, work: Work, known: dict[str, ReleaseRecord], target: str, force: bool) -> str:
        """Whether the old code may run on the schema that newer migrations left (DESIGN 6.5)."""
        newer = [record for release, record in known.items() if release > target and record.migrated]
        if not newer:
            return ""
        last = max(newer, key=lambda record: record.release)
        final = [record for record in newer if not record.reversible]
        if final and not force:
            raise OperatorError(
                f"release {final[-1].release} migrated the database and says `reversible = false`:"
                f" no way back to {target}",
                where="[migrate] reversible",
                serving=work.serving(),
                remedy="deploy a release that goes forward; or, knowing better, midstream rollback --force",
            )
        return f"schema: {last.release}, code: {target}"

    async def publish(self, work: Work) -> dict[str, Any]:
        intent = work.intent
        if intent.state in (IntentState.PROVISIONAL, IntentState.COMMITTED):
            return {"generation": intent.generation, "release": intent.release, "services": []}
        if not intent.release:
            raise OperatorError("nothing to publish: no release was made or chosen")
        secrets = work.secrets or self._stored_secrets(work)
        try:
            files = read_env_files(work.spec, intent.release, work.app.owner_uid, self.host.uid)
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
        if not work.over:
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
            return self._found(work, [], [])
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
        if work.intent.kind != "restart":
            try:
                removed = await self._tidy(work, until)
            except MidstreamError as error:
                warnings.append(f"{error.what} ({error.where})" if error.where else error.what)
        found = self._found(work, removed, warnings) | {"not_undone": not_undone}
        if not until:
            self._close(work)
        return found

    async def _tidy(self, work: Work, until: str) -> list[str]:
        """Cleanup and revisions.log, as far as `until`; returns the releases that were removed."""
        removed: list[str] = []
        if until == "deploy:cleanup":
            return removed
        parts = [] if work.done("deploy:cleanup") else [self._cleanup(work, removed)]
        committed = work.intent.state is IntentState.COMMITTED
        if committed and until != "deploy:log_revision" and not work.done("deploy:log_revision"):
            line = steps.LogRevision(work.spec.deploy_to, self._line(work))
            parts.append(Part("deploy:log_revision", "log_revision", line))
        await work.run_parts(parts)
        return removed

    def _found(self, work: Work, removed: list[str], warnings: list[str]) -> dict[str, Any]:
        """What `finish` answers, from the processes as they are now."""
        app = work.intent.app
        drift = drift_of(self.host, app) if work.intent.state is IntentState.COMMITTED else []
        draining = sum(
            item.state is GenerationState.DRAINING
            for (owner, _), service in self.host.services.items()
            if owner == app
            for item in service.generations
        )
        return {"removed": removed, "drift": drift, "draining": draining, "warnings": warnings}

    def _line(self, work: Work) -> str:
        intent = work.intent
        if intent.kind == "rollback":
            return releases.rolled_back_line(intent.user, intent.release)
        return releases.deployed_line(intent.branch, intent.revision, intent.release, intent.user)

    def _cleanup(self, work: Work, removed: list[str]) -> Part:
        host, app = self.host, work.app
        known = host.store.releases(app.app)
        bad = tuple(release for release, record in known.items() if record.state == "bad")
        good = [release for release, record in known.items() if record.state == "good" and release < app.release]
        live = live_releases(host, app.app)
        cleanup = steps.Cleanup(
            work.spec.deploy_to,
            work.spec.keep_releases,
            tuple(sorted(live)),
            app.release or None,
            good[-1] if good else None,
            app.release or None,
            bad,
        )

        def cleaned(answer: dict[str, Any]) -> None:
            removed[:] = [str(release) for release in answer.get("removed", [])]
            for release in removed:
                record = known.get(release)
                if record is not None and record.state != "bad":
                    host.store.drop_release(app.app, release)

        return Part("deploy:cleanup", "cleanup", cleanup, cleaned)

    def _close(self, work: Work) -> None:
        """Frees the lock; whatever else there is to say is in the journal."""
        self._drop_pack(work)
        intent = work.intent
        try:
            ended = "committed" if intent.state is IntentState.COMMITTED else "reverted"
            work.save(state=IntentState.CLOSED, ended=ended, commands=())
        except HostError:
            pass  # the lock is ours to free all the same; a restart settles the stored intent again
        if self._works.get(intent.app) is work:
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
            self.host.store.drop_app(app)
        except HostError:
            return
        self.host.forget_app(app)

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
                self.host.keep(asyncio.get_running_loop().create_task(self.settle(work, intent.failure)))
            else:
                self._lease(work)
        open_ones = {(work.intent.app, work.intent.number) for work in self._works.values()}
        self._trash.resume()

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
        self, peer: Peer, app: str, services: list[str], tell: Callable[[Progress], None], user: str = ""
    ) -> dict[str, Any]:
        """New processes of the committed release by the same handover as a deploy: nothing is dropped, and what does not
        come up changes nothing."""
        record = self.host.apps[app]
        if self._works.get(app) is not None:
            raise self._locked(self._works[app])
        generation = self.host.record(app, record.committed_generation)
        if generation is None or not record.release:
            raise OperatorError(f"nothing of {app!r} is deployed here", remedy="midstream deploy")
        generation = with_pushed(generation, self.host.store.pushed(app))
        deploy_id = f"restart-{app}-{record.token + 1}"
        opening = Opening(deploy_id, {}, "restart", user or peer.name)
        work = self._begin(peer, opening, generation.spec, record.owner_uid)
        chosen = services or list(generation.spec.services)
        work.spec = replace(generation.spec, services={name: generation.spec.services[name] for name in chosen})
        work.save(release=record.release, revision=record.revision, branch=record.branch)
        work.secrets = dict(generation.secrets)
        work.listeners.append(tell)
        work.connected = 1
        try:
            files = read_env_files(work.spec, record.release, record.owner_uid, self.host.uid)
            fresh = GenerationRecord(0, record.release, generation.spec, generation.secrets, files)
            await publishing.publish(work, fresh)
            work.spec = generation.spec
            work.save(steps={**work.intent.steps, "deploy:symlink:release": "done"})
            await publishing.commit(work)
        except Exception as error:
            await publishing.revert(work, getattr(error, "what", str(error)))
            raise
        finally:
            self._close(work)
        return {"generation": work.intent.generation, "release": record.release}


def is_of_deploy(key: SpawnKey) -> bool:
    """Whether a one-shot belongs to a deploy: then its key has the intent's number. Others have numbers of their own."""
    return key.service not in ("+run", "+console", "+check", "+look", TRASH, EXTERNAL)


def live_releases(host: Host, app: str) -> set[str]:
    """Releases that a process runs from, or may have to be started from."""
    found = {
        item.release
        for (owner, _), service in host.services.items()
        if owner == app
        for item in service.generations
        if item.state is GenerationState.COMMITTED or item.state in PROVISIONAL or item.state in ENDING
    }
    record = host.apps.get(app)
    if record is not None and record.release:
        found.add(record.release)
    return found


def _clock(wall_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(wall_s))


__all__ = ["Deploys", "IntentEvent", "Opening", "live_releases"]
