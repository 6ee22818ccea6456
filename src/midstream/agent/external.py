"""Services that another supervisor owns: held for a deploy, guarded, and given back whatever happens.

The guard is the agent: it stores the hold before the supervisor is told, the keeper restarts it, and it gives the service
back when the span ends, when the deploy ends in any way, when its deployer is gone, when the TTL runs out, and after a
restart of its own. A supervisor that cannot be told is told again until it can. How a held service is brought to the new
release: `external_handover.py`. What is decided: `core/external.py`. Runs in the agent's loop.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from midstream.agent import accounts
from midstream.agent.accounts import Account, Peer
from midstream.agent.keeper_link import KeeperLost
from midstream.agent.supervisor_steps import SupervisorSteps
from midstream.core.external import ExternalHold, HoldState, heirs, inherited, left_s, taken, to_give_back
from midstream.core.spec import HoldSpec
from midstream.core.steps import MonitHold, MonitLook, MonitRelease, MonitRestart
from midstream.errors import HostError, MidstreamError, OperatorError
from midstream.linux import clock, process
from midstream.linux.drift import runs

if TYPE_CHECKING:
    from midstream.agent.host import Host
    from midstream.agent.work import Work

HOLD_TIMEOUT_S = 120.0  # a start program of any of its services keeps Monit busy for as long as its own time-out
RELEASE_TIMEOUT_S = 60.0
STEP_SPARE_S = 30.0
RESTART_MAX_S = 900.0
_FRESH_S = 2.0
_LOOK_TIMEOUT_S = 10.0
_PAUSE_MAX_S = 30.0
_IN_FORCE = (HoldState.TAKING, HoldState.HELD)

Name3 = tuple[str, str, str]  # app, supervisor, service


@dataclass(frozen=True, slots=True)
class Sight:
    """One service as its supervisor showed it at `at_s` (boot time). trouble: why nobody knows."""

    at_s: float
    is_watched: bool = False
    status: str = ""
    pid: int = 0
    start_ticks: int = 0
    trouble: str = ""


class Externals:
    """All held services of this host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.steps = SupervisorSteps(host)
        self.holds: dict[Name3, ExternalHold] = {hold.name: hold for hold in host.store.external_holds()}
        self.troubles: dict[str, list[str]] = {}  # deploy id -> what somebody has to look at
        self._locks: dict[str, asyncio.Lock] = {}
        self._nudges: dict[int, asyncio.Event] = {}
        self._sights: dict[Name3, Sight] = {}
        self._returning: set[int] = set()

    def lock(self, app: str) -> asyncio.Lock:
        """One thing at a time is asked of an app's supervisors."""
        return self._locks.setdefault(app, asyncio.Lock())

    def of_deploy(self, deploy_id: str) -> list[ExternalHold]:
        return [hold for hold in self.holds.values() if hold.deploy_id == deploy_id]

    def put(self, hold: ExternalHold, **changes: Any) -> ExternalHold:
        """Stores it, then counts. Raises HostError (disk full), and nothing is changed."""
        hold = replace(hold, **changes)
        self.host.store.put_external(hold)
        self.remember(hold)
        return hold

    def remember(self, hold: ExternalHold) -> None:
        self.holds[hold.name] = hold
        if nudge := self._nudges.get(hold.number):
            nudge.set()

    async def ask(
        self,
        hold: ExternalHold,
        request: object,
        timeout_s: float,
        tell: Callable[[str], None] = lambda line: None,
    ) -> dict[str, Any]:
        """One step for this hold; what an earlier one left running is ended first."""
        await self.steps.end_leftovers(hold.app, hold.number)
        return await self.steps.run(hold.app, hold.number, hold.uid, request, timeout_s + STEP_SPARE_S, tell)

    def note(self, hold: ExternalHold, kind: str, text: str) -> None:
        """`midstream why monit:NAME` tells them."""
        self.host.note(hold.app, hold.label, kind, text, who=hold.owner)

    # -- hold and give back ------------------------------------------------------------------------------------------

    async def hold(self, work: Work, peer: Peer, spec: HoldSpec, ttl_s: float = 0.0) -> dict[str, Any]:
        """Answered when the supervisor leaves the service alone and nothing that it began is under way. Idempotent.
        Raises OperatorError (unknown there), NotAllowedError, HostError (not running, does not let go)."""
        supervisor, service = spec.supervisor, spec.service
        account = accounts.account_for_hold(work.spec, spec, work.app.owner_uid, peer, self.host.uid)
        async with self.lock(work.intent.app):
            old = self.holds.get((work.intent.app, supervisor, service))
            if old is not None and old.deploy_id == work.intent.id:
                if old.state is HoldState.HELD:
                    return _answer(old)
                self._refuse_expired(work, old)
            with work.step(f"hold:{supervisor}:{service}"):
                return await self._take(work, spec, account, ttl_s or spec.ttl_s, old)

    def _refuse_expired(self, work: Work, hold: ExternalHold) -> None:
        if hold.expired:
            raise HostError(
                f"the hold on {hold.label} ran out after {hold.ttl_s:g} s; it is watched again",
                where=f"holds, {hold.service}",
                serving=work.serving(),
                remedy="let it begin later (`from`), or last longer (`ttl`)",
            )

    async def _take(
        self, work: Work, spec: HoldSpec, account: Account, ttl_s: float, old: ExternalHold | None
    ) -> dict[str, Any]:
        step = f"hold:{spec.supervisor}:{spec.service}"
        hold = ExternalHold(
            number=self.host.store.next_number("external"),
            app=work.intent.app,
            supervisor=spec.supervisor,
            service=spec.service,
            deploy_id=work.intent.id,
            owner=work.intent.user,
            uid=account.uid,
            control=spec.control,
            ttl_s=ttl_s,
            deadline_s=clock.boottime_s() + ttl_s,
            boot_id=clock.boot_id(),
            since_wall_s=time.time(),
            restart=spec.restart,
            quiet=spec.quiet,
            quiet_timeout_s=spec.quiet_timeout_s,
            min_uptime_s=spec.min_uptime_s,
        )
        if old is not None:
            await self.steps.end_leftovers(old.app, old.number)
        found = await self.ask(hold, MonitLook(spec.control, spec.service), _LOOK_TIMEOUT_S)
        hold = replace(hold, watched_before=tuple(found["watched"]), pid=found["pid"], start_ticks=found["start_ticks"])
        hold = self.put(inherited(hold, old))  # before it is told anything
        self._guard(hold)
        found = await self.ask(
            hold,
            MonitHold(spec.control, spec.service, HOLD_TIMEOUT_S),
            HOLD_TIMEOUT_S,
            lambda line: work.tell(step, "line", line=line),
        )
        hold = self.put(taken(hold, found["watched"]), **_process(hold, found))
        self._see(hold, found)
        self.note(hold, "hold", f"held, {ttl_s:g} s" + (f", and {', '.join(hold.along)} with it" if hold.along else ""))
        answer = _answer(hold)
        if not hold.was_watched:
            answer["warnings"] = [f"{hold.label} was not watched before the deploy, and will be left so"]
            work.tell(step, "line", line=answer["warnings"][0])
        return answer

    async def unhold(self, deploy_id: str, app: str, supervisor: str, service: str) -> dict[str, Any]:
        """The end of the span. Idempotent: what is not held by this deploy is left as it is."""
        async with self.lock(app):
            hold = self.holds.get((app, supervisor, service))
            if hold is None or hold.deploy_id != deploy_id or hold.state is HoldState.RELEASED:
                return {"released": False}
            await self.give_back(hold)
        return {"released": True}

    async def give_back(self, hold: ExternalHold) -> None:
        """Watched again, with all that went along. Called with the app's lock. On failure it is tried again in the
        background for as long as it takes, and what failed is raised."""
        try:
            hold = self.put(hold, state=HoldState.RELEASING)
        except HostError:
            self.remember(
                hold := replace(hold, state=HoldState.RELEASING)
            )  # the disk must not keep it from being watched
        try:
            await self._give_back(hold)
        except (MidstreamError, KeeperLost) as error:
            what = getattr(error, "what", str(error))
            self.remember(replace(hold, note=what))
            self.note(hold, "attention", f"could not be given back yet: {what}")
            self._return(hold)
            raise HostError(
                f"{hold.label} is not watched: {what}",
                where=getattr(error, "where", ""),
                detail=getattr(error, "detail", ""),
                remedy="the agent goes on trying; midstream status shows when it is watched again",
            ) from error

    async def _give_back(self, hold: ExternalHold) -> None:
        for heir in heirs(hold, self.holds.values()):
            self.put(heir)
        names = to_give_back(hold, self.holds.values())
        if names:
            found = await self.ask(hold, MonitRelease(hold.control, names, RELEASE_TIMEOUT_S), RELEASE_TIMEOUT_S)
            if found["unknown"]:
                self.note(hold, "attention", f"{', '.join(found['unknown'])}: no longer known to {hold.supervisor}")
        self._sights.pop(hold.name, None)
        self.note(hold, "hold", f"given back: {', '.join(names) or 'nothing was watched before'}")
        hold = replace(hold, state=HoldState.RELEASED, note="")
        if self._deploy_is_open(hold):
            try:
                self.put(hold)
            except HostError:
                self.remember(hold)
        else:
            self._drop(hold)

    def _deploy_is_open(self, hold: ExternalHold) -> bool:
        return any(intent.id == hold.deploy_id for intent in self.host.store.open_intents())

    def _drop(self, hold: ExternalHold) -> None:
        try:
            self.host.store.drop_external(hold)
        except HostError:
            pass  # a row too many: the next agent gives the service back once more, which changes nothing
        if self.holds.get(hold.name) is hold or self.holds.get(hold.name, hold).number == hold.number:
            self.holds.pop(hold.name, None)
        self.steps.forget(hold.number)

    async def end_deploy(self, work: Work) -> list[str]:
        """Gives back what a deploy that ends still holds. -> what somebody has to look at."""
        troubles = self.troubles.pop(work.intent.id, [])
        async with self.lock(work.intent.app):
            for hold in self.of_deploy(work.intent.id):
                if hold.state is HoldState.RELEASED:
                    continue
                try:
                    await self.give_back(hold)
                except MidstreamError as error:
                    troubles.append(error.what)
        return troubles

    def let_go(self, deploy_id: str) -> None:
        """The deploy is over, however that came. What it still holds is given back in the background."""
        self.troubles.pop(deploy_id, None)
        for hold in self.of_deploy(deploy_id):
            if hold.state is HoldState.RELEASED:
                self._drop(hold)
            else:
                self._return(hold)

    def _return(self, hold: ExternalHold) -> None:
        if hold.number not in self._returning:
            self._returning.add(hold.number)
            self.host.keep(asyncio.get_running_loop().create_task(self._until_given_back(hold.name, hold.number)))

    async def _until_given_back(self, name: Name3, number: int) -> None:
        pause_s = 0.0
        try:
            while True:
                await asyncio.sleep(pause_s)
                pause_s = min(_PAUSE_MAX_S, pause_s * 2 or 1.0)
                async with self.lock(name[0]):
                    hold = self.holds.get(name)
                    if hold is None or hold.number != number or hold.state is HoldState.RELEASED:
                        return
                    try:
                        await self.give_back(hold)
                        return
                    except MidstreamError:
                        continue
        finally:
            self._returning.discard(number)

    # -- the guard ---------------------------------------------------------------------------------------------------

    def resume(self, open_deploys: Collection[str]) -> None:
        """After a restart of the agent: holds of deploys that go on are guarded again, the others end."""
        for hold in list(self.holds.values()):
            if hold.boot_id != clock.boot_id():
                left = left_s(hold, clock.boottime_s(), clock.boot_id(), time.time())
                deadline_s = clock.boottime_s() + left
                hold = replace(hold, deadline_s=deadline_s, boot_id=clock.boot_id(), pid=0, start_ticks=0)
                self.remember(hold)
            if hold.deploy_id not in open_deploys or hold.state is HoldState.RELEASING:
                if hold.state is HoldState.RELEASED:
                    self._drop(hold)
                else:
                    self._return(hold)
            elif hold.state in _IN_FORCE:
                self._guard(hold)

    def _guard(self, hold: ExternalHold) -> None:
        self._nudges[hold.number] = asyncio.Event()
        self.host.keep(asyncio.get_running_loop().create_task(self._keep(hold.name, hold.number)))

    async def _keep(self, name: Name3, number: int) -> None:
        """For as long as it is held: it ends with its TTL, and what dies in it is brought back."""
        pause_s = 0.0
        try:
            while (hold := self._in_force(name, number)) is not None:
                left = hold.deadline_s - clock.boottime_s()
                if left <= 0:
                    await self._expire(name, number)
                elif await self._has_died(hold, min(left, 60.0)):
                    await asyncio.sleep(pause_s)
                    pause_s = min(_PAUSE_MAX_S, pause_s * 2 or 1.0)
                    await self._bring_back(name, number)
        finally:
            self._nudges.pop(number, None)

    def _in_force(self, name: Name3, number: int) -> ExternalHold | None:
        hold = self.holds.get(name)
        return hold if hold is not None and hold.number == number and hold.state in _IN_FORCE else None

    async def _expire(self, name: Name3, number: int) -> None:
        async with self.lock(name[0]):
            hold = self._in_force(name, number)
            if hold is None:
                return
            self.note(hold, "attention", f"the hold of {hold.owner}'s deploy ran out after {hold.ttl_s:g} s")
            try:
                await self.give_back(replace(hold, expired=True))
            except MidstreamError:
                pass  # told, and tried again

    async def _has_died(self, hold: ExternalHold, timeout_s: float) -> bool:
        """Waits for the end of its process, a change of the hold, or the time. A service whose restarts are somebody else's
        business (`restart = false`), or that was not watched before, is not brought back."""
        nudge = self._nudges[hold.number]
        nudge.clear()
        pidfd = None
        if hold.state is HoldState.HELD and hold.restart and hold.was_watched and hold.pid:
            pidfd = process.open_pidfd(hold.pid, hold.start_ticks)
            if pidfd is None:
                return True
            asyncio.get_running_loop().add_reader(pidfd, nudge.set)
        try:
            async with asyncio.timeout(timeout_s):
                await nudge.wait()
        except TimeoutError:
            pass
        finally:
            if pidfd is not None:
                asyncio.get_running_loop().remove_reader(pidfd)
        if pidfd is None:
            return False
        try:
            return process.has_ended(pidfd)
        finally:
            os.close(pidfd)

    async def _bring_back(self, name: Name3, number: int) -> None:
        """Its supervisor was told to look away, so a crash would last as long as the hold."""
        async with self.lock(name[0]):
            hold = self._in_force(name, number)
            if hold is None or process.is_alive(hold.pid, hold.start_ticks):
                return
            self.note(hold, "restart", f"pid {hold.pid} died within the hold; starting it")
            request = MonitRestart(hold.control, hold.service, start=True, min_uptime_s=0.5)
            try:
                found = await self.ask(hold, request, RESTART_MAX_S)
                self.put(hold, **_process(hold, found))
                self._see(hold, found)
            except (MidstreamError, KeeperLost) as error:
                self.note(hold, "attention", f"could not be started: {getattr(error, 'what', error)}")

    # -- what there is to see ----------------------------------------------------------------------------------------

    def _see(self, hold: ExternalHold, found: dict[str, Any]) -> None:
        self._sights[hold.name] = _sight(found)

    async def look(self, apps: Collection[str]) -> None:
        """Asks the supervisors of these apps' external services, where nobody did just now, or where the process that was
        seen is gone. Bounded; raises nothing."""
        fresh_s = clock.boottime_s() - _FRESH_S
        stale = []
        for app in apps:
            for spec in self._declared(app):
                sight = self._sights.get((app, spec.supervisor, spec.service))
                if sight is None or sight.at_s < fresh_s or not self._pid(sight):
                    stale.append(self._look(app, spec))
        await asyncio.gather(*stale)

    def _declared(self, app: str) -> list[HoldSpec]:
        """Of the committed release's configuration, and what is held besides."""
        record = self.host.apps.get(app)
        stored = self.host.record(app, record.committed_generation) if record and record.committed_generation else None
        found = {(spec.supervisor, spec.service): spec for spec in (stored.spec.holds if stored else ())}
        for (owner, supervisor, service), hold in self.holds.items():
            if owner == app and (supervisor, service) not in found:
                found[supervisor, service] = HoldSpec(supervisor, service, "", "", control=hold.control)
        return list(found.values())

    async def _look(self, app: str, spec: HoldSpec) -> None:
        name = (app, spec.supervisor, spec.service)
        number = clock.boottime_us()
        try:
            uid = self._uid(app, spec)
            request = MonitLook(spec.control, spec.service)
            async with asyncio.timeout(_LOOK_TIMEOUT_S):
                found = await self.steps.run(app, number, uid, request, _LOOK_TIMEOUT_S)
            self._sights[name] = _sight(found)
        except TimeoutError:
            self._sights[name] = Sight(clock.boottime_s(), trouble=f"{spec.supervisor} does not answer")
        except (MidstreamError, KeeperLost) as error:
            self._sights[name] = Sight(clock.boottime_s(), trouble=getattr(error, "what", str(error)))
        finally:
            self.steps.forget(number)

    def _uid(self, app: str, spec: HoldSpec) -> int:
        hold = self.holds.get((app, spec.supervisor, spec.service))
        if hold is not None:
            return hold.uid
        record = self.host.apps[app]
        stored = self.host.record(app, record.committed_generation)
        if stored is None:
            raise OperatorError(
                f"nothing of {app!r} is deployed here",
                remedy="midstream status lists the apps of this host; midstream deploy brings the first release",
            )
        # Only looked at; what was allowed when it was deployed may be looked at.
        return accounts.account_for_hold(stored.spec, spec, record.owner_uid, Peer(0, 0, 0), self.host.uid).uid

    def status(self, app: str) -> list[dict[str, Any]]:
        """As last seen; `release_running` from /proc, now."""
        return [self._row(app, spec) for spec in self._declared(app)]

    def _row(self, app: str, spec: HoldSpec) -> dict[str, Any]:
        name = (app, spec.supervisor, spec.service)
        hold, sight = self.holds.get(name), self._sights.get(name)
        in_force = hold is not None and hold.state is not HoldState.RELEASED
        pid = self._pid(sight)
        row: dict[str, Any] = {
            "supervisor": spec.supervisor,
            "service": spec.service,
            "watched": sight.is_watched if sight and not sight.trouble else None,
            "status": sight.status if sight else "",
            "pid": pid,
            "release_running": runs(pid, self.host.folders.resolved(self.host.apps[app])).release if pid else None,
            "hold": None,
            "note": (hold.note if hold else "") or (sight.trouble if sight else ""),
        }
        if hold is not None and in_force:
            left = round(hold.deadline_s - clock.boottime_s(), 1)
            row["hold"] = {
                "owner": hold.owner,
                "state": hold.state.value,
                "expires_in_s": left,
                "along": list(hold.along),
            }
        return row

    def _pid(self, sight: Sight | None) -> int:
        return sight.pid if sight and sight.pid and process.is_alive(sight.pid, sight.start_ticks) else 0

    def moved(self, app: str) -> str:
        """The release to which an open deploy has moved `current` before its decision; "" for none."""
        return next((hold.touched for hold in self.holds.values() if hold.app == app and hold.touched), "")

    def drift(self, app: str) -> list[dict[str, Any]]:
        """Services that are down, unwatched, or on another release than the committed one, while nothing holds them."""
        record = self.host.apps[app]
        found = []
        for row in self.status(app):
            label = f"{row['supervisor']}:{row['service']}"
            hold = row["hold"]
            if hold is not None and hold["state"] != HoldState.RELEASING.value:
                continue
            known = self._sights.get((app, row["supervisor"], row["service"]))
            if known is None:
                continue
            if row["watched"] is None or not row["watched"]:
                kind = "unknown" if row["watched"] is None else "unwatched"
                found.append(_drift(label, row["pid"], kind, "watched", row["note"] or row["status"]))
            if row["watched"] is not None and not row["pid"]:
                found.append(_drift(label, 0, "down", record.release, "no process"))
            elif row["release_running"] not in (None, record.release):
                found.append(_drift(label, row["pid"], "release", record.release, row["release_running"]))
        return found


def declared(work: Work, supervisor: str, service: str) -> HoldSpec:
    """The configuration's words on it. Raises OperatorError for what it does not have: only what is declared, and was
    checked, is held."""
    for spec in work.spec.holds:
        if (spec.supervisor, spec.service) == (supervisor, service):
            return spec
    raise OperatorError(
        f"the configuration holds no service {service!r} of {supervisor!r}",
        where="holds",
        remedy="name it in [[holds]], commit, and deploy again",
    )


def _process(hold: ExternalHold, found: dict[str, Any]) -> dict[str, int]:
    """Its process as found. One that died meanwhile stays the one that is missed: so its guard sees that it is gone."""
    if not found["pid"]:
        return {"pid": hold.pid, "start_ticks": hold.start_ticks}
    return {"pid": int(found["pid"]), "start_ticks": int(found["start_ticks"])}


def _answer(hold: ExternalHold) -> dict[str, Any]:
    return {
        "hold": hold.number,
        "deadline_s": hold.deadline_s,
        "expires_in_s": round(hold.deadline_s - clock.boottime_s(), 1),
        "along": list(hold.along),
        "warnings": [],
    }


def _sight(found: dict[str, Any]) -> Sight:
    return Sight(
        clock.boottime_s(),
        bool(found["is_watched"]),
        str(found["status"]) + (f" - {found['pending']} pending" if found["pending"] else ""),
        int(found["pid"]),
        int(found["start_ticks"]),
    )


def _drift(label: str, pid: int, kind: str, expected: str, seen: str) -> dict[str, Any]:
    return {"service": label, "slot": -1, "pid": pid, "kind": kind, "expected": expected, "found": seen}


__all__ = ["RESTART_MAX_S", "Externals", "Sight", "declared"]
