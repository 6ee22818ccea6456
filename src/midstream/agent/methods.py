"""The methods of the control socket: each checks who asks, then asks the part that does it. Runs in the agent's loop."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from typing import Any

from midstream import __version__
from midstream.agent import accounts, left_behind, locks, packs, quieting, reports
from midstream.agent.admission import check_hold, read_spec
from midstream.agent.artifacts import Artifacts
from midstream.agent.console import Consoles
from midstream.agent.control import Connection, Method
from midstream.agent.deploys import Deploys
from midstream.agent.environment import Environments
from midstream.agent.external import declared
from midstream.agent.host import Host
from midstream.agent.host_commands import HostCommands
from midstream.agent.keeper_link import KeeperRefused
from midstream.agent.opening import Opening
from midstream.agent.params import data, refused, seconds, shaped, text, whole
from midstream.agent.plans import profile_of
from midstream.agent.processes import Name
from midstream.agent.store import AppRecord, EventRow
from midstream.agent.updating import UpdateRequest
from midstream.agent.work import Progress, Work
from midstream.core.events import SetHold, Want
from midstream.core.instance import ALIVE, InstanceState
from midstream.core.intent import IntentState
from midstream.core.names import SpawnKey
from midstream.core.phases import Hold
from midstream.core.service import Service
from midstream.core.spec import HoldSpec
from midstream.core.wire import WireError, from_wire
from midstream.errors import AttentionError, HostError, LockedError, NotAllowedError, OperatorError
from midstream.linux import clock

PROTOCOL = 1
_HOLD_MAX_S = 86400.0


@dataclass(frozen=True, slots=True)
class _Teller:
    """Tells one client how a deploy goes. Two of one client are equal: it may have several calls under way, as one that was
    given up and the `deploy.revert` behind it, and hears everything once (`Work.tell`)."""

    connection: Connection

    def __call__(self, progress: Progress) -> None:
        self.connection.notify("progress", asdict(progress))


class Methods:
    """`stop_all` begins the ordered stop; `upgrade` re-executes agent and keeper."""

    def __init__(
        self,
        host: Host,
        deploys: Deploys,
        state_folder: str,
        stop_all: Callable[[float], Any],
        upgrade: Callable[[list[str], str], Any],
    ) -> None:
        self.host = host
        self.deploys = deploys
        self._state = state_folder
        self._stop_all = stop_all
        self._upgrade = upgrade
        self._started_s = time.monotonic()
        self._followers: set[asyncio.Queue[EventRow]] = set()
        host.on_event = self._on_event
        self._environments = Environments(
            host,
            self._app,
            lambda app, own: deploys.is_busy(app, own),
            lambda connection, params: self._work(connection, params).intent.id,
        )

    def table(self) -> dict[str, Method]:
        return {
            "hello": self.hello,
            "status": self.status,
            "why": self.why,
            "events": self.events,
            "logs": self.logs,
            "start": self.start,
            "stop": self.stop,
            "restart": self.restart,
            "reload": self.reload,
            "signal": self.signal,
            "hold": self.hold,
            "unhold": self.unhold,
            "quiet": self.quiet,
            "releases": self.releases,
            "lock": self.lock,
            "unlock": self.unlock,
            "app.remove": self.app_remove,
            "agent.stop": self.agent_stop,
            "agent.upgrade": self.agent_upgrade,
            "deploy.open": self.deploy_open,
            "deploy.upload": self.deploy_upload,
            "deploy.update": self.deploy_update,
            "deploy.select": self.deploy_select,
            "deploy.publish": self.deploy_publish,
            "deploy.commit": self.deploy_commit,
            "deploy.revert": self.deploy_revert,
            "deploy.hold": self.deploy_hold,
            "deploy.unhold": self.deploy_unhold,
            "deploy.finish": self.deploy_finish,
            "deploy.status": self.deploy_status,
            "deploy.settle": self.deploy_settle,
            **Consoles(self.host, self._app).table(),
            **self._environments.table(),
            **Artifacts(self.deploys, self._work, self._teller).table(),
            **HostCommands(self.host, self.deploys, self._app, self._work).table(self._teller),
        }

    # -- who asks ----------------------------------------------------------------------------------------------------

    def _app(self, connection: Connection, params: dict[str, Any]) -> AppRecord:
        name = text(params, "app")
        record = self.host.apps.get(name)
        if record is None:
            known = ", ".join(sorted(self._visible(connection)))
            remedy = f"choose from {known}" if known else "midstream deploy brings one"
            raise OperatorError(f"there is no app {name!r} on this host", remedy=remedy)
        accounts.require_owner(connection.peer, record.owner_uid, self.host.uid, name)
        return record

    def _visible(self, connection: Connection) -> list[str]:
        peer = connection.peer
        return [name for name, record in self.host.apps.items() if peer.uid in (0, record.owner_uid, self.host.uid)]

    def _root(self, connection: Connection) -> None:
        if connection.peer.uid not in (0, self.host.uid):
            raise NotAllowedError("that is for root", remedy="sudo midstream …")

    def _chosen(self, app: str, params: dict[str, Any]) -> list[Service]:
        wanted = params.get("services") or []
        if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
            raise refused("services must be a list of names", "services")
        mine = {name: service for (owner, name), service in self.host.services.items() if owner == app}
        missing = [name for name in wanted if name not in mine]
        if missing:
            raise OperatorError(
                f"app {app!r} has no service {missing[0]!r}", remedy=f"it has: {', '.join(sorted(mine)) or 'none yet'}"
            )
        return [mine[name] for name in (wanted or sorted(mine))]

    # -- reading -----------------------------------------------------------------------------------------------------

    async def hello(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        asked = params.get("protocol", [PROTOCOL, PROTOCOL])
        words = asked if isinstance(asked, list) and len(asked) == 2 else [asked, asked]
        if not all(isinstance(word, int) for word in words):
            raise refused("protocol is a number, or the lowest and the highest", "protocol")
        low, high = words
        if not low <= PROTOCOL <= high:
            raise OperatorError(
                f"this agent ({__version__}) speaks protocol {PROTOCOL}; the client speaks {low} to {high}",
                remedy="midstream agent upgrade" if low > PROTOCOL else "upgrade the command line tool",
            )
        told = self.host.link.hello if self.host.link else None
        keeper = {}
        if told is not None:
            keeper = {
                "pid": told.pid,
                "epoch": told.epoch,
                "version": told.version,
                "cgroup": told.cgroup,
                "note": "; ".join(told.notes),
            }
        return {
            "protocol": PROTOCOL,
            "version": __version__,
            "host": os.uname().nodename,
            "boot_id": clock.boot_id(),
            "pid": os.getpid(),
            "uid": self.host.uid,
            "root": self.host.uid == 0,
            "keeper": keeper,
            "state_dir": self._state,
            "runtime_dir": self.host.runtime,
            "features": ["objects along", "finish along"],
        }

    async def status(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        apps = [self._app(connection, params).app] if params.get("app") else sorted(self._visible(connection))
        await self.host.looks.refresh(apps)
        await self.host.externals.look(apps)
        await self.host.folders.look(apps)
        apps = [app for app in apps if app in self.host.apps]  # one may have been removed meanwhile
        return reports.host_status(self.host, self.deploys, apps, self._started_s, __version__)

    async def why(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        record = self._app(connection, params)
        return reports.why(self.host, record.app, text(params, "service"), whole(params, "limit", 1, 1000, 50))

    async def releases(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        record = self._app(connection, params)
        await self.host.folders.look([record.app])
        on_disk = await self.host.folders.releases(record, frozenset(self.host.store.releases(record.app)))
        return reports.releases(self.host, self._app(connection, params).app, on_disk)

    def _on_event(self, row: EventRow) -> None:
        for queue in self._followers:
            if queue.qsize() < 10_000:
                queue.put_nowait(row)

    async def events(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        app = self._app(connection, params).app if params.get("app") else ""
        visible = set(self._visible(connection))
        everything = connection.peer.uid in (0, self.host.uid)
        queue: asyncio.Queue[EventRow] = asyncio.Queue()
        if params.get("follow"):
            self._followers.add(queue)
        last = whole(params, "after", 0, 2**62, 0)
        try:
            for row in self.host.store.events(app=app, after=last, limit=1000):
                last = max(last, row.id)
                if everything or row.app in visible:
                    connection.notify("event", asdict(row))
            while params.get("follow") and not connection.is_gone:
                row = await queue.get()
                if (not app or row.app == app) and (everything or row.app in visible):
                    connection.notify("event", asdict(row))
        finally:
            self._followers.discard(queue)
        return {"last": last}

    async def logs(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        record = self._app(connection, params)
        chosen = [service.name for service in self._chosen(record.app, params)]
        lines = self.host.logs.follow(
            record.app, chosen, whole(params, "lines", 0, 100_000, 100), follow=bool(params.get("follow"))
        )
        async with aclosing(lines) as stream:  # type: ignore[type-var]
            async for line in stream:
                connection.notify("log", line.to_wire())
                await connection.keep_pace()
        return {"now": time.time()}

    # -- services ----------------------------------------------------------------------------------------------------

    async def start(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        record = self._app(connection, params)
        chosen = self._chosen(record.app, params)
        timeout_s = _wait_s(params)
        self._refuse_held(chosen)
        self._environments.take_where_stopped(record.app)
        await self._want(connection, chosen, True)
        await self._settled(chosen, timeout_s, lambda service: reports.state_of(service) in ("running", "exited"))
        return self._states(chosen)

    async def stop(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        record = self._app(connection, params)
        chosen = self._chosen(record.app, params)
        timeout_s = _wait_s(params)
        await self._want(connection, chosen, False)

        def stopped(service: Service) -> bool:
            return not any(item.state in ALIVE for item in service.instances)

        await self._settled(chosen, timeout_s, stopped)
        return self._states(chosen)

    async def _want(self, connection: Connection, chosen: list[Service], up: bool) -> None:
        names: list[Name] = [(service.app, service.name) for service in chosen]
        for name in names:
            self.host.who[name] = connection.peer.name
        await self.host.decide([(name, Want(up)) for name in names])
        for name in names:
            self.host.note(*name, "want", "up" if up else "down", who=connection.peer.name)

    def _refuse_held(self, chosen: list[Service]) -> None:
        for service in chosen:
            if service.hold is not None:
                left_s = service.hold.deadline_s - clock.boottime_s()
                raise LockedError(
                    f"{service.name} is held by {service.hold.owner} for another {left_s:.0f} s"
                    + (f": {service.hold.reason}" if service.hold.reason else ""),
                    remedy=f"midstream unhold {service.name}",
                )

    async def _settled(self, chosen: list[Service], timeout_s: float, good: Callable[[Service], bool]) -> None:
        """timeout_s 0: not at all."""
        if not timeout_s:
            return
        names = [(service.app, service.name) for service in chosen]

        def all_good() -> bool:
            return all(name not in self.host.services or good(self.host.services[name]) for name in names)

        if not await self.host.until(all_good, timeout_s):
            late = [name for _, name in names if not good(self.host.services[_, name])]
            raise HostError(
                f"{', '.join(late)} did not get there within {timeout_s:g} s; it goes on",
                remedy=f"midstream why {late[0]}; midstream logs {late[0]}",
            )

    def _states(self, chosen: list[Service]) -> dict[str, Any]:
        rows = []
        for old in chosen:
            service = self.host.services.get((old.app, old.name), old)
            pids = [item.pid for item in service.instances if item.state in ALIVE]
            rows.append({"service": service.name, "state": reports.state_of(service), "pids": pids})
        return {"services": rows}

    async def restart(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        record = self._app(connection, params)
        chosen = [service for service in self._chosen(record.app, params) if service.committed is not None]
        self._refuse_held(chosen)
        if not chosen:
            raise OperatorError(f"nothing of {record.app!r} is deployed here", remedy="midstream deploy")
        names = [service.name for service in chosen]
        under = self._work(connection, params) if "token" in params else None
        peer, tell = connection.peer, self._teller(connection)
        # It goes on when the client goes away: half a restart helps nobody.
        work = asyncio.ensure_future(self.deploys.restart(peer, record.app, names, tell, peer.name, under))
        await asyncio.shield(work)
        return self._states(chosen)

    async def reload(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """The server's own reload where its profile calls it safe; else a handover to new processes."""
        record = self._app(connection, params)
        chosen = [service for service in self._chosen(record.app, params) if service.committed is not None]
        hand_over: list[str] = []
        for service in chosen:
            assert service.committed is not None
            stored = self.host.record(record.app, service.committed.number)
            spec = stored.spec.services.get(service.name) if stored else None
            profile = profile_of(spec) if spec else None
            name = spec.reload_signal if spec and spec.reload_signal else ""
            if not name and profile is not None and profile.reload_signal and not profile.reload_unsafe:
                name = profile.reload_signal
            if name:
                await self._send(service, name, None)
            else:
                hand_over.append(service.name)
        if hand_over:
            return await self.restart(connection, {"app": record.app, "services": hand_over})
        return self._states(chosen)

    async def signal(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        record = self._app(connection, params)
        wanted = text(params, "signal").upper().removeprefix("SIG")
        if f"SIG{wanted}" not in signal.Signals.__members__:
            raise OperatorError(f"there is no signal {wanted!r}", where="signal", remedy="kill -l lists them")
        slot = None if params.get("slot") is None else whole(params, "slot", 0, 10_000, 0)
        pids: list[int] = []
        for service in self._chosen(record.app, params):
            pids.extend(await self._send(service, wanted, slot))
            self.host.note(record.app, service.name, "signal", f"SIG{wanted} on request", who=connection.peer.name)
        return {"pids": pids}

    async def _send(self, service: Service, wanted: str, slot: int | None) -> list[int]:
        pids = []
        number = int(getattr(signal, f"SIG{wanted}"))
        for item in service.instances:
            if item.state not in ALIVE or (slot is not None and item.slot != slot) or self.host.link is None:
                continue
            key = SpawnKey(service.app, service.name, item.generation, item.slot, item.attempt)
            try:
                if await self.host.link.signal(str(key), number):
                    pids.append(item.pid)
            except KeeperRefused:
                continue
        return pids

    # -- holds -------------------------------------------------------------------------------------------------------

    async def hold(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """Answered when no start is in flight and none will be made while it lasts."""
        record = self._app(connection, params)
        service = self._one(record.app, params)
        ttl_s = seconds(params, "ttl_s", 900.0)
        if not 0 < ttl_s <= _HOLD_MAX_S:
            raise _too_long("a hold")
        owner = str(params.get("owner") or connection.peer.name)
        name = (record.app, service.name)
        if service.hold is not None and service.hold.owner != owner:
            self._refuse_held([service])
        token = service.hold.token if service.hold is not None else self.host.store.next_number("hold")
        reason = str(params.get("reason", ""))
        hold = Hold(owner, token, clock.boottime_s() + ttl_s, reason, ttl_s, time.time() + ttl_s)
        await self.host.decide([(name, SetHold(hold))])
        self.host.note(*name, "hold", f"{owner}, {ttl_s:g} s: {hold.reason}", who=connection.peer.name)

        def settled() -> bool:
            now = self.host.services.get(name)
            return now is None or not any(item.state is InstanceState.STARTING for item in now.instances)

        await self.host.until(settled, 60.0)
        return {"token": token, "deadline_s": hold.deadline_s, "expires_in_s": ttl_s}

    async def unhold(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        record = self._app(connection, params)
        service = self._one(record.app, params)
        if service.hold is None:
            return {}
        if not params.get("force") and params.get("token") != service.hold.token:
            raise LockedError(
                f"{service.name} is held by {service.hold.owner}, with another token",
                remedy=f"midstream unhold {service.name} --force",
            )
        await self.host.decide([((record.app, service.name), SetHold(None))])
        self.host.note(record.app, service.name, "hold", "ended", who=connection.peer.name)
        return {}

    async def quiet(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """Workers begin no further job until it ends: by itself, or with `end`."""
        record = self._app(connection, params)
        service = self._one(record.app, params)
        owner = str(params.get("owner") or connection.peer.name)
        if self.deploys.of(record.app) is not None:
            raise LockedError(f"a deploy of {record.app!r} is under way", remedy="wait for it, or: midstream abort")
        if params.get("end"):
            return await quieting.end(self.host, service, owner)
        ttl_s = seconds(params, "ttl_s", 900.0)
        if ttl_s > _HOLD_MAX_S:
            raise _too_long("a quiet")
        reason, wait = str(params.get("reason", "")), bool(params.get("wait", True))
        return await quieting.begin(self.host, record, service, ttl_s, owner, reason, wait)

    def _one(self, app: str, params: dict[str, Any]) -> Service:
        return self._chosen(app, {"services": [text(params, "service")]})[0]

    # -- app ---------------------------------------------------------------------------------------------------------

    async def lock(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """ttl_s: it ends by itself; without, it lasts until unlock."""
        record = self._app(connection, params)
        owner = str(params.get("owner") or connection.peer.name)
        standing = locks.lock_of(record)
        if standing is not None and standing["owner"] != owner:
            raise self._locked_by(record, standing)
        ttl_s = seconds(params, "ttl_s", locks.LONGEST_S) if params.get("ttl_s") else 0.0
        if ttl_s > locks.LONGEST_S:
            raise OperatorError(
                f"a lock with an end lasts at most {locks.LONGEST_S:g} s",
                where="ttl_s",
                remedy="midstream lock without --for lasts until unlock",
            )
        after = locks.locked(record, owner, str(params.get("reason", "")), ttl_s)
        self.host.store.put_app(after)
        self.host.apps[record.app] = after
        self.host.note(record.app, "", "lock", f"{owner}: {after.lock_reason}", who=connection.peer.name)
        return {"lock": locks.lock_of(after)}

    async def unlock(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """owner: who asks; another's lock is freed with `force` only. Without an owner it is freed, whoever's it is."""
        record = self._app(connection, params)
        standing = locks.lock_of(record)
        owner = str(params.get("owner") or "")
        if standing is not None and owner not in ("", standing["owner"]) and not params.get("force"):
            raise self._locked_by(record, standing)
        after = locks.unlocked(record)
        self.host.store.put_app(after)
        self.host.apps[record.app] = after
        self.host.note(record.app, "", "lock", "ended", who=connection.peer.name)
        return {"lock": None}

    def _locked_by(self, record: AppRecord, standing: dict[str, Any]) -> LockedError:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(standing["since"]))
        return LockedError(
            f"app {record.app!r} is locked by {standing['owner']} since {since}"
            + (f": {standing['reason']}" if standing["reason"] else ""),
            serving=f"release {record.release or 'none'}",
            remedy="ask who it is; or midstream unlock --force",
        )

    async def app_remove(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        self._refuse_in_deploy(self._app(connection, params))
        await self.stop(connection, {"app": text(params, "app")})
        record = self._app(
            connection, params
        )  # meanwhile a deploy may have begun, or somebody else's app have the name
        self._refuse_in_deploy(record)
        self.host.drop_app(record.app)
        self.host.note(record.app, "", "remove", "the app is forgotten; its files stay", who=connection.peer.name)
        return {}

    def _refuse_in_deploy(self, record: AppRecord) -> None:
        if self.deploys.of(record.app) is not None:
            raise LockedError(f"a deploy of {record.app!r} is under way", remedy="midstream abort")

    async def agent_stop(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        self._root(connection)
        await self._stop_all(seconds(params, "timeout_s", 30.0))
        return {}

    async def agent_upgrade(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        self._root(connection)
        result: dict[str, Any] = await self._upgrade(
            list(params.get("argv") or []), str(params.get("keeper_image", ""))
        )
        return result

    # -- deploy ------------------------------------------------------------------------------------------------------

    def _teller(self, connection: Connection) -> Callable[[Progress], None]:
        return _Teller(connection)

    def _keep_alive(self, connection: Connection, work: Work) -> None:
        mark = (work.intent.app, work.intent.id)
        if mark not in connection.deploys:
            connection.deploys.add(mark)
            self.deploys.connection_opened(work.intent.app)

    def gone(self, connection: Connection) -> None:
        """A client went away: what it kept alive begins to run out."""
        while connection.deploys:
            self.deploys.connection_lost(*connection.deploys.pop())

    async def deploy_open(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        opening = Opening(
            text(params, "deploy_id"),
            params.get("spec") or {},
            str(params.get("kind", "deploy")),
            str(params.get("user", "")),
            bool(params.get("wait")),
            str(params.get("until") or ""),
        )
        if opening.kind not in ("deploy", "rollback", "configure"):
            raise refused(f"there is no kind of deploy {opening.kind!r}", "kind")
        # `begun` is called as soon as the lock is taken: from then on this connection keeps the deploy alive, and what was
        # begun goes on when the client goes away; while it waits for the lock, going away ends it. The client is told at
        # once, because it takes the locks of its hosts one after the other.
        return await self.deploys.open(
            connection.peer, opening, self._teller(connection), lambda work: self._locked(connection, work)
        )

    def _locked(self, connection: Connection, work: Work) -> None:
        self._keep_alive(connection, work)
        locked = {"deploy_id": work.intent.id, "token": work.intent.token, "revision": work.app.revision}
        connection.notify("locked", locked)

    def _work(self, connection: Connection, params: dict[str, Any]) -> Work:
        work = self.deploys.work_for(connection.peer, text(params, "deploy_id"), whole(params, "token", -1, 2**62, -1))
        if not work.over:
            self._keep_alive(connection, work)
        return work

    def _work_going_on(self, connection: Connection, params: dict[str, Any], call: str) -> Work:
        """For calls that take it further. Raises AppError when it goes back, or did: why. (While `call` itself brings it
        back, who repeats it waits for that.)"""
        asked = connection.peer, text(params, "deploy_id"), whole(params, "token", -1, 2**62, -1)
        try:
            work = self._work(connection, params)
        except LockedError as over:
            raise self.deploys.went_back(*asked) or over from None
        error = None if work.over or call in work.running else self.deploys.went_back(*asked)
        if error is not None:
            raise error
        return work

    async def deploy_upload(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        work = self._work_going_on(connection, params, "upload")
        offset, raw = whole(params, "offset", 0, 2**62, 0), data(params, packs.PIECE_MAX_BYTES)
        return await self.deploys.upload(work, offset, raw, bool(params.get("last")))

    async def deploy_update(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        work = self._work_going_on(connection, params, "update")
        known = UpdateRequest.__dataclass_fields__
        try:
            request = from_wire(UpdateRequest, {key: value for key, value in params.items() if key in known})
            spec = read_spec(params["spec"]) if params.get("spec") else work.spec
            secrets = from_wire(dict[str, str], params.get("secrets") or {}, "secrets")
        except WireError as error:
            raise refused(f"deploy.update: {error}") from error
        accounts.check_spec(spec, work.app.owner_uid, connection.peer, self.host.uid)
        if (spec.app, spec.deploy_to) != (work.spec.app, work.spec.deploy_to):
            raise refused("deploy.update speaks of another app or folder than deploy.open did", "spec")
        along = data(params, packs.PIECE_MAX_BYTES) if params.get("data") else None

        async def made() -> dict[str, Any]:
            if along is not None and not work.done("git:update"):
                await self.deploys.upload(work, 0, along, True)
            return await self.deploys.update(work, request, spec, secrets)

        return await self._call(connection, work, "update", made)

    async def deploy_select(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        work = self._work_going_on(connection, params, "select")
        named = str(params.get("release") or "")
        force = bool(params.get("force"))
        return await self._call(connection, work, "select", lambda: self.deploys.select(work, named, force))

    async def deploy_publish(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        work = self._work_going_on(connection, params, "publish")
        return await self._call(connection, work, "publish", lambda: self.deploys.publish(work))

    async def deploy_commit(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        work = self._work(connection, params)
        hosts = left_behind.names(params["behind"]) if "behind" in params else None
        answer = await self._call(connection, work, "commit", lambda: self.deploys.commit(work))
        if hosts is not None:
            record = self.host.apps[work.intent.app]
            try:
                left_behind.note(self.host.store, record, work.intent.user, hosts, time.time())
            except (HostError, OSError, sqlite3.Error) as error:  # it is committed; the note is not worth failing that
                answer = {**answer, "warnings": [f"the hosts that were left out could not be noted: {error}"]}
        if params.get("then") == "finish":
            with suppress(Exception):  # it is asked for by itself then, and told how it fails
                answer = {**answer, "finished": await self.deploy_finish(connection, {**params, "until": ""})}
        return answer

    async def deploy_revert(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        work = self._work(connection, params)
        reason = str(params.get("reason") or "on request")
        return await self._call(connection, work, "revert", lambda: self.deploys.revert(work, reason))

    async def deploy_hold(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """`hold`: a whole HoldSpec; else `supervisor` and `service` name one of the configuration."""
        work = self._work(connection, params)
        if work.over:
            return {"warnings": []}
        if params.get("hold"):
            spec = shaped(HoldSpec, params["hold"], "deploy.hold", "hold")
            check_hold(spec, "hold")
        else:
            spec = declared(work, text(params, "supervisor"), text(params, "service"))
        ttl_s = seconds(params, "ttl_s", spec.ttl_s)
        if ttl_s > _HOLD_MAX_S:
            raise _too_long("a hold")
        externals, peer = self.host.externals, connection.peer
        name = f"hold {spec.supervisor}:{spec.service}"
        return await self._call(connection, work, name, lambda: externals.hold(work, peer, spec, ttl_s))

    async def deploy_unhold(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        work = self._work(connection, params)
        supervisor, service = text(params, "supervisor"), text(params, "service")
        intent, externals = work.intent, self.host.externals
        name = f"unhold {supervisor}:{service}"
        return await self._call(
            connection, work, name, lambda: externals.unhold(intent.id, intent.app, supervisor, service)
        )

    async def deploy_finish(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        work = self._work(connection, params)
        well = "done" if work.intent.state is IntentState.COMMITTED else "failed"
        outcome, until = str(params.get("outcome") or well), str(params.get("until") or "")
        name = f"finish {until}".strip()
        answer = await self._call(connection, work, name, lambda: self.deploys.finish(work, outcome, until))
        if not until:
            connection.deploys.discard((work.intent.app, work.intent.id))
        return answer

    async def _call(self, connection: Connection, work: Work, name: str, do: Callable[[], Any]) -> dict[str, Any]:
        return await self.deploys.call(work, name, do, self._teller(connection))

    async def deploy_status(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        record = self._app(connection, params)
        work = self.deploys.of(record.app)
        if work is None:
            return {"deploy": None}
        if "token" in params:  # a deployer that is back: its lease stops running
            work = self._work(connection, params)
        intent = work.intent
        return {
            "deploy": {
                "id": intent.id,
                "kind": intent.kind,
                "state": intent.state.value,
                "phase": work.phase,
                "user": intent.user,
                "release": intent.release,
                "failure": intent.failure,
                "journal": self.host.store.journal_of(intent.id),
            }
        }

    async def deploy_settle(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """`midstream abort`: ends a deploy whose deployer is gone, forward or back. deploy_id: that one and no other.
        undecided: back; when it is committed here, nothing is touched."""
        record = self._app(connection, params)
        work = self.deploys.of(record.app)
        if work is None:
            return {"settled": False, "release": record.release}
        if params.get("deploy_id") not in (None, "", work.intent.id):
            raise LockedError(
                f"another {work.intent.kind} of {record.app!r} has begun meanwhile, by {work.intent.user}",
                serving=work.serving(),
                remedy="look at it: midstream status; then, if it is that one: midstream abort",
            )
        reason = str(params.get("reason") or f"ended by {connection.peer.name}")
        if not await self.deploys.settle(work, reason, undecided=bool(params.get("undecided"))):
            raise AttentionError(
                f"the deploy was decided meanwhile: release {work.intent.release} is committed here",
                serving=f"release {work.intent.release}",
                remedy="carry it to its end: midstream resume, on the machine that deployed",
            )
        after = self.host.apps.get(record.app)
        return {"settled": True, "release": after.release if after else ""}


def _wait_s(params: dict[str, Any]) -> float:
    """How long the caller waits for what was asked to have come about; 0: not at all."""
    return seconds(params, "timeout_s", 120.0) if params.get("wait", True) else 0.0


def _too_long(what: str) -> OperatorError:
    return OperatorError(
        f"{what} lasts at most {_HOLD_MAX_S:g} s, and expires",
        where="ttl_s",
        remedy="give a shorter time, and begin it again before it is over",
    )
