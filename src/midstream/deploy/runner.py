"""Walks through the plan of a deploy or rollback over the hosts, and goes back when something fails.

Runs in the deployer, on one event loop. The plan (`core/plan.py`) says which calls on which hosts; this module has
them made (`host_run.py`), and on failure has the hosts hand back what was begun, and frees them. It decides nothing
about processes: the agents do. It prints nothing: it emits events, and returns an `Outcome`. Once the decision was
sent to the coordinator there is no way back any more, only forward (DESIGN 6).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from midstream.core.builds import HERE, Carry
from midstream.core.plan import Call, Kind, Move, lock_order
from midstream.core.points import BACK_AFTER, BACK_BEFORE, Gap, Part
from midstream.core.releases import common_target
from midstream.core.spec import HoldSpec
from midstream.deploy.carrying import Carrier
from midstream.deploy.client import AgentClient
from midstream.deploy.events import Event, EventKind, Outcome
from midstream.deploy.host_run import HostRun
from midstream.deploy.order import Order, Pack, Target
from midstream.deploy.tasks.performance import Performance
from midstream.deploy.tasks.seat import Seat
from midstream.deploy.verdict import Facts, judge
from midstream.errors import AttentionError, HostError, InterruptedDeploy, MidstreamError

__all__ = ["Deployment", "Order", "Pack", "Target"]

Report = Callable[[Event], None]
Perform = Callable[[Move, HostRun], Awaitable[None]]
PROOF_GOOD_FOR_S = 0.5


class HostFailed(Exception):
    """Carries the host with its error from a move to the way back."""

    def __init__(self, host: str, error: MidstreamError) -> None:
        super().__init__(str(error))
        self.host = host
        self.error = error


class Deployment:
    """One run. `run` once; `interrupt` from a signal handler of the same loop, at any time, also twice."""

    def __init__(self, order: Order, clients: Mapping[str, AgentClient], report: Report) -> None:
        self.order = order
        self.plan = order.plan
        self.hosts = {name: HostRun(name, clients[name], order, self._tell) for name in order.plan.hosts}
        self.release = order.release
        self.revision = order.target.sha if order.target else ""
        self.branch = order.target.branch if order.target else ""
        self._report = report
        self._carrier = Carrier(order, self._tell)
        self._interrupts = 0
        self._interrupted = asyncio.Event()
        self._left = asyncio.Event()
        self._decided = False
        self._afterwards: list[MidstreamError] = []  # what failed once the decision was made
        self._half_followed = False  # a host stored the decision, and could not follow it to its end
        self._performers: dict[Call, Perform] = {
            Call.OPEN: lambda move, host: host.open(move.until),
            Call.SELECT: self._select,
            Call.UPDATE: self._update,
            Call.CARRY: self._deliver,
            Call.PUBLISH: self._hand_over,
            Call.COMMAND: lambda move, host: self._command(move, host),
            Call.HOLD: self._held(HostRun.hold),
            Call.UNHOLD: self._held(HostRun.unhold),
        }
        self.tasks = Performance(order.tasks, [seat_of(host, self) for host in self.hosts.values()], self._tell_task)

    def interrupt(self) -> None:
        """The first time: an orderly way back (or, when decided already, a word). The second: leave at once."""
        self._interrupts += 1
        if self._interrupts > 1:
            self._left.set()
        elif self._decided:
            self._note("the decision was made already; finishing (once more leaves at once)")
        else:
            self._note("interrupted: putting back what was begun (once more leaves at once)")
            self._interrupted.set()

    @property
    def behind(self) -> tuple[str, ...]:
        """The hosts that refused a decision which others took, after `run`: they can be asked again. None when nobody wants to
        go on, or when it is not known of a host what it did."""
        refused = tuple(name for name, host in self.hosts.items() if host.state == "failed")
        known = all(host.state in ("committed", "failed") for host in self.hosts.values())
        return refused if self._decided and known and not self._interrupts else ()

    async def run(self) -> Outcome:
        """All moves; on failure the way back. Never raises a MidstreamError: it is in the outcome."""
        started = time.monotonic()
        try:
            error = await self._or_left(self._run())
        finally:
            self._carrier.close()
        return Outcome(
            deploy_id=self.order.deploy_id,
            kind=self.plan.kind.value,
            app=self.plan.app,
            stage=self.plan.stage,
            release=self.release,
            revision=self.revision,
            branch=self.branch,
            seconds=time.monotonic() - started,
            hosts=tuple(host.outcome(self.release) for host in self.hosts.values()),
            error=error,
            previous=str((self.hosts[self.plan.coordinator].opened.get("committed") or {}).get("revision", "")),
        )

    async def _or_left(self, work: Awaitable[MidstreamError | None]) -> MidstreamError | None:
        task = asyncio.ensure_future(work)
        left = asyncio.ensure_future(self._left.wait())
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return self._left_error()

    def _left_error(self) -> MidstreamError:
        if self._decided:
            return AttentionError(
                "left before the deploy was finished; the decision had been made",
                serving=f"release {self.release} where it is committed",
                remedy=f"midstream resume {self.plan.stage}",
            )
        return InterruptedDeploy(
            "left in the middle of the deploy",
            serving=", ".join(f"{host.before} on {host.name}" for host in self.hosts.values() if host.before),
            remedy=f"the agents put it back by themselves within {self._lease_s():g} s; "
            f"`midstream status {self.plan.stage}` tells",
        )

    async def _run(self) -> MidstreamError | None:
        try:
            for move in self.plan.moves:
                if move.call is Call.COMMIT:
                    await self._commit_all(move)
                elif move.call is Call.FINISH:
                    await self._finish_part(move)
                elif self._decided:
                    self._afterwards += await self._all_through(move)
                else:
                    await self._perform(move)
        except HostFailed as failed:
            return await self._go_back(failed.host, failed.error)
        except MidstreamError as error:
            return await self._go_back("", error)
        return self._end()

    # ------------------------------------------------------------------ forward

    async def _perform(self, move: Move) -> None:
        """One move on its hosts, with its barrier; the first failure cancels the others."""
        self._stop_if_interrupted()
        if move.call is Call.TASK:
            await self._together([self._task(move)], patient=False)
            return
        if move.call is Call.CARRY and move.carry is not None:
            await self._together([self._load(move.carry)], patient=False)
        perform = self._performers[move.call]
        hosts = [self.hosts[name] for name in move.hosts]
        groups = self._in_turn(move, hosts)
        if move.call is Call.PUBLISH:
            self._state("publishing")
        for group in groups:
            locking = move.call is Call.OPEN and any(host.token is None for host in group)
            works: list[Awaitable[None]] = [self._on_host(perform, move, host) for host in group] if not locking else []
            if locking:
                works = self._one_lock_after_the_other(perform, move)
            # What is being handed over when another host fails is not cut where no way back is: the proven ones go on.
            final = move.call is Call.PUBLISH and self._no_way_back()
            await self._together(works, patient=final or (locking and not self.order.wait))
        if move.call is Call.OPEN and not move.until:
            self._pick_release()
        elif move.call in (Call.UPDATE, Call.SELECT) and move.until != Part.RELEASE.value:
            self._require_one_release(move)

    def _in_turn(self, move: Move, hosts: list[HostRun]) -> list[list[HostRun]]:
        """Hosts that are asked together, one group after the other. The release of a rollback is chosen by the first host, or
        known already: the others are asked for that one, all at the same time."""
        if not move.in_order or (move.call is Call.SELECT and self.release):
            return [hosts]
        return [hosts[:1], hosts[1:]] if move.call is Call.SELECT else [[host] for host in hosts]

    def _one_lock_after_the_other(self, perform: Perform, move: Move) -> list[Awaitable[None]]:
        """The next host is asked as soon as the one before says that its lock is ours, while that one goes on checking.
        So two deploys with hosts in common meet at the first of these; neither waits for what the other has."""
        works: list[Awaitable[None]] = []
        before: HostRun | None = None
        for name in lock_order(move.hosts):
            host = self.hosts[name]
            works.append(self._lock_after(before, perform, move, host))
            before = host
        return works

    async def _lock_after(self, before: HostRun | None, perform: Perform, move: Move, host: HostRun) -> None:
        if before is not None and not await before.has_lock():
            host.pass_over()
            return
        await self._on_host(perform, move, host)

    async def _command(self, move: Move, host: HostRun) -> None:
        assert move.hook is not None
        await host.command(move.hook, move.tasks[0].phase.value)

    def _held(self, do: Callable[[HostRun, HoldSpec], Awaitable[None]]) -> Perform:
        def perform(move: Move, host: HostRun) -> Awaitable[None]:
            assert move.hold is not None
            return do(host, move.hold)

        return perform

    async def _hand_over(self, move: Move, host: HostRun) -> None:
        """One host's handover, with what its hooks do just before and after: out of the load balancer, and in again."""
        for one in move.around:
            if one.point.startswith("before ") and host.name in one.hosts:
                await self._around(one, host)
        await host.publish()
        for one in move.around:
            if one.point.startswith("after ") and host.name in one.hosts:
                await self._around(one, host)

    async def _around(self, move: Move, host: HostRun) -> None:
        if move.call is Call.TASK:
            await self._task(move, only=(host.name,))
            return
        started = time.monotonic()
        await self._performers[move.call](move, host)
        host.called(move.call.value, started)

    async def _task(self, move: Move, only: tuple[str, ...] = ()) -> None:
        """A task of deploy.py, in a thread of its own."""
        for name in only or tuple(self.hosts):
            if self.hosts[name].state == "open":
                self.hosts[name].state = "changing"
        await self.tasks.perform(move.task, move.tasks[0].phase.value, only)

    async def _all_through(self, move: Move) -> list[MidstreamError]:
        """A hook or a task to its end on all its hosts, whatever fails: on the way back, and after the decision."""
        try:
            if move.call is Call.TASK:
                await self._task(move)
                return []
        except MidstreamError as error:
            self._note(f"failed: {error.what}")
            return [error]
        hosts = [self.hosts[name] for name in move.hosts if self.hosts[name].token is not None]
        failed = await self._each(hosts, lambda host: self._performers[move.call](move, host))
        for name, why in failed.items():
            why.where = why.where if name in why.where else f"{name}: {why.where}".removesuffix(": ")
            self.hosts[name].note(f"failed: {why.what}")
        return list(failed.values())

    async def _on_host(self, perform: Perform, move: Move, host: HostRun) -> None:
        started = time.monotonic()
        try:
            await perform(move, host)
        except MidstreamError as error:
            raise HostFailed(host.name, error) from error
        host.called(move.call.value, started)

    async def _together(self, works: list[Awaitable[None]], patient: bool) -> None:
        """All at the same time, until they have ended, one fails, a host is lost that waits for them, or we are interrupted;
        then the rest is cancelled. patient: when one fails the others may end first (an opening that is cancelled would
        leave its host locked)."""
        tasks: set[asyncio.Future[Any]] = {asyncio.ensure_future(work) for work in works}
        losses: set[asyncio.Future[Any]] = {asyncio.ensure_future(self._until_lost(host)) for host in self._to_watch()}
        stop: asyncio.Future[Any] = asyncio.ensure_future(self._interrupted.wait())
        pending: set[asyncio.Future[Any]] = {*tasks, *losses, stop}
        try:
            while tasks & pending and not self._interrupted.is_set():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done - {stop}, key=lambda task: task in losses):  # a call's own failure says more
                    task.result()
            if tasks & pending:
                self._stop_if_interrupted()
        finally:
            if patient and not self._interrupted.is_set():
                await asyncio.wait(tasks)
            for task in (*tasks, *losses, stop):
                task.cancel()
            await asyncio.gather(*tasks, *losses, stop, return_exceptions=True)

    def _to_watch(self) -> list[HostRun]:
        """The hosts whose loss ends the deploy also while others are worked on; after the decision none does."""
        return [] if self._decided else [host for host in self.hosts.values() if host.token is not None]

    async def _until_lost(self, host: HostRun) -> None:
        try:
            await host.client.until_lost()
        except MidstreamError as error:
            raise HostFailed(host.name, error) from error

    def _stop_if_interrupted(self) -> None:
        if self._interrupted.is_set():
            raise InterruptedDeploy("interrupted; what was begun has been put back")

    def _pick_release(self) -> None:
        """One id for all hosts, free on each; of a rollback, one that is proven on each."""
        if self.plan.kind is Kind.ROLLBACK and not self.release:
            self._pick_common()
        if self.plan.kind is Kind.DEPLOY and not self.release:
            taken = {str(release) for host in self.hosts.values() for release in host.opened["releases"]}
            self.release = self.order.pick_release(sorted(taken))
        self._state("opened")

    def _pick_common(self) -> None:
        """Of one host, and where an agent is too old to tell, the coordinator chooses (`_select`)."""
        opened = {name: host.opened for name, host in self.hosts.items()}
        if len(opened) == 1 or not all("proven" in answer for answer in opened.values()):
            return
        committed = {name: str((answer.get("committed") or {}).get("release", "")) for name, answer in opened.items()}
        self.release, passed = common_target({name: row["proven"] for name, row in opened.items()}, committed)
        for release, hosts in passed.items():
            self._note(
                f"release {release} is not proven on {', '.join(hosts)}: going back to {self.release}, which all have"
            )

    async def _select(self, move: Move, host: HostRun) -> None:
        """The coordinator chooses, the other hosts are asked for the same release."""
        await host.select(self.release)
        self.release = self.release or str(host.updated["release"])
        self.revision = self.revision or str(host.updated.get("revision", ""))
        self.branch = self.branch or str(host.updated.get("branch", ""))

    async def _update(self, move: Move, host: HostRun) -> None:
        assert self.order.target is not None
        await host.update(self.order.target, self.release, migrate=move.migrate, until=move.until, before=move.carry)

    async def _load(self, carry: Carry) -> None:
        """Has the files made that are carried then; what fails on the builder is that host's failure."""
        try:
            await self._carrier.load(carry, {name: host.artifact for name, host in self.hosts.items()})
        except MidstreamError as error:
            if carry.builder == HERE:
                raise
            raise HostFailed(carry.builder, error) from error

    async def _deliver(self, move: Move, host: HostRun) -> None:
        assert move.carry is not None
        await self._carrier.deliver(move.carry, host.name, host.artifact)

    def _require_one_release(self, move: Move) -> None:
        releases = {name: str(self.hosts[name].updated["release"]) for name in move.hosts}
        if len(self.hosts) == 1:
            self.release = next(iter(releases.values()))
        elif set(releases.values()) != {self.release}:
            shown = ", ".join(f"{release} on {name}" for name, release in releases.items())
            raise HostError(
                f"the hosts did not make the same release: asked for {self.release}, got {shown}",
                remedy=f"midstream deploy {self.plan.stage}: the next one picks an id that is free everywhere",
            )
        self._state("updated")

    # ------------------------------------------------------------------ the decision

    async def _commit_all(self, move: Move) -> None:
        """The coordinator first. Its refusal is a failure like any other; once it has agreed, or may have, nobody
        goes back: hosts that could not be told are undecided, never guessed about."""
        self._stop_if_interrupted()
        await self._prove_again(move)
        self._decided = True
        self._state("deciding")
        first, *others = (self.hosts[name] for name in move.hosts)
        try:
            await self._commit(first, then_finish=self._ends_with(move))
        except MidstreamError as error:
            if first.client.lost:
                first.state = "undecided"
            else:
                self._decided = False
            raise HostFailed(first.name, error) from error
        refused = await self._each(others, self._commit)
        for name, why in refused.items():
            self.hosts[name].refused(why)
        self._state("committed")

    async def _prove_again(self, move: Move) -> None:
        """Of several hosts those that were proven a while ago are asked once more (a repeated `deploy.publish` tells of a
        generation that has died since): the first host's decision would leave them behind. One host alone needs no
        question, its own commit refuses."""
        if len(move.hosts) == 1:
            return
        now_s = time.monotonic()
        aged = [host for host in self.hosts.values() if now_s - host.proven_s > PROOF_GOOD_FOR_S]
        if aged:
            await self._together([self._on_host(lambda _, host: host.publish(), move, host) for host in aged], False)

    def _ends_with(self, decision: Move) -> bool:
        """Whether it can be told in one call with the end: no other host has to follow first, and no hook lies between."""
        after = self.plan.moves[self.plan.moves.index(decision) + 1 :]
        return len(self.hosts) == 1 and [move.call for move in after] == [Call.FINISH]

    async def _commit(self, host: HostRun, *, then_finish: bool = False) -> None:
        """Raises what kept the host from the decision. What failed after it was stored (`current` could not be switched)
        is told at the end, and keeps no other host from following."""
        started = time.monotonic()
        try:
            await host.commit(then_finish=then_finish)
        except MidstreamError as error:
            if not await host.has_committed(self.release):
                raise
            error.where = error.where if host.name in error.where else f"{host.name}: {error.where}".removesuffix(": ")
            self._afterwards.append(error)
            self._half_followed = True
            host.note(f"failed: {error.what}")
        host.called(Call.COMMIT.value, started)

    async def _finish_part(self, move: Move) -> None:
        """Tells all hosts that it is done, as far as `until`; the last time frees their locks."""
        well = not self._afterwards and all(host.state == "committed" for host in self.hosts.values())
        if not move.until and not well:
            await self._undo_tasks()
        outcome = "done" if move.until or well else "failed"
        failed = await self._finish_hosts(outcome, move.until)
        for name, error in failed.items():
            error.where = name
            if self.hosts[name].client.lost:
                error.what = (
                    f"could not be told that the deploy has ended: {error.what}; its agent finishes by itself within "
                    f"{self._lease_s():g} s of hearing nothing"
                )
        self._afterwards += failed.values()

    def _end(self) -> MidstreamError | None:
        """What needs attention, although the release is committed."""
        behind = [host for host in self.hosts.values() if host.state != "committed"]
        if behind:
            return self._behind(behind)
        rows = [f"{error.where}: {error.what}" if error.where else error.what for error in self._afterwards]
        rows += [f"{host.name}: {text}" for host in self.hosts.values() for text in host.not_undone]
        rows += [row for host in self.hosts.values() for row in host.drift()]
        if not rows:
            self._state("finished")
            return None
        if not self._half_followed:  # else `midstream resume` has something to do
            self._state("finished")
        return AttentionError(
            "the release is committed, but not everything is as it should be",
            where=", ".join(dict.fromkeys(error.where for error in self._afterwards if error.where)) or self.plan.stage,
            detail="\n".join([*rows, *(error.detail for error in self._afterwards if error.detail)]),
            serving=f"release {self.release}",
            remedy=self._remedy_afterwards(),
        )

    def _remedy_afterwards(self) -> str:
        if not self._half_followed:
            return f"midstream status --check {self.plan.stage}"
        remedies = "; ".join(dict.fromkeys(error.remedy for error in self._afterwards if error.remedy))
        return remedies or f"mend it, then: midstream resume {self.plan.stage}"

    def _behind(self, behind: list[HostRun]) -> MidstreamError:
        names = ", ".join(host.name for host in behind)
        lost = any(host.state == "undecided" for host in behind)
        serving = [f"release {self.release} on {host.name}" for host in self.hosts.values() if host not in behind]
        serving += [f"{_left_on(host)} on {host.name}" for host in behind]
        then = " once they can be reached" if lost else " when that is mended"
        return AttentionError(
            f"the fleet is not on one release: {names} did not take the decision",
            where=names,
            detail="\n".join(f"{host.name} {host.state}: {host.refusal}" for host in behind),
            serving="; ".join(serving),
            remedy=f"`midstream resume {self.plan.stage}`{then}",
        )

    async def _finish_hosts(self, outcome: str, until: str = "") -> dict[str, MidstreamError]:
        opened = [host for host in self.hosts.values() if host.token is not None]
        return await self._each(opened, lambda host: host.finish(outcome, self.release, until))

    async def _undo_tasks(self) -> None:
        """What tasks of deploy.py say undoes them, the last first."""
        for error in await self.tasks.undo():
            self._afterwards.append(error)
            self._note(f"failed: {error.what}")

    async def _each(
        self, hosts: list[HostRun], work: Callable[[HostRun], Awaitable[None]]
    ) -> dict[str, MidstreamError]:
        """The same on all hosts, each to its end; the errors by host."""
        results = await asyncio.gather(*(work(host) for host in hosts), return_exceptions=True)
        failed = {}
        for host, result in zip(hosts, results, strict=True):
            if isinstance(result, MidstreamError):
                failed[host.name] = result
            elif isinstance(result, BaseException):
                raise result
        return failed

    # ------------------------------------------------------------------ the way back

    async def _go_back(self, where: str, error: MidstreamError) -> MidstreamError:
        """Puts back the hosts on which anything was begun, frees all, and says what came of it."""
        undecided = tuple(host.name for host in self.hosts.values() if host.state == "undecided")
        facts = self._facts(where, error, undecided)
        if undecided:
            self._state("undecided")
            return judge(facts)
        await self._back_moves(BACK_BEFORE)
        over = [host for host in self.hosts.values() if host.was_over]
        for host in over:
            host.stands()
        begun = [host for host in self.hosts.values() if host.state in ("changing", "proven", "deciding")]
        went_on: tuple[str, ...] = ()
        why = self._why_go_on(facts)
        if why:
            went_on = await self._go_on([host for host in begun if host.state == "proven"])
            begun = [host for host in begun if host.name not in went_on]
        put_back_failed = await self._revert_hosts(begun, error)
        await self._back_moves(BACK_AFTER)
        await self._undo_tasks()
        outcome = "interrupted" if isinstance(error, InterruptedDeploy) else "failed"
        not_closed = await self._finish_hosts(outcome)
        self._state("committed" if over else "reverted")  # `midstream resume` may try again to bring the others there
        return judge(
            replace(
                facts,
                serving={host.name: host.serving for host in self.hosts.values() if host.serving},
                migrated_release="" if went_on else facts.migrated_release,
                put_back_failed=put_back_failed,
                lost=tuple(host.name for host in self.hosts.values() if host.client.lost),
                not_closed=not_closed,
                over=tuple(host.name for host in over),
                went_on=went_on,
                went_on_why=why,
                not_undone=self._not_undone(),
            )
        )

    async def _back_moves(self, gap: Gap) -> None:
        """Hooks and tasks of the way back; what fails among them is told, and stops nothing."""
        for move in self.plan.back:
            if move.point in gap:
                await self._all_through(move)

    def _not_undone(self) -> dict[str, str]:
        found = {host.name: "; ".join(host.not_undone) for host in self.hosts.values() if host.not_undone}
        tasks = "; ".join(error.what for error in self._afterwards)
        return found | ({"deploy.py": tasks} if tasks else {})

    def _why_go_on(self, facts: Facts) -> str:
        """Why hosts that are proven stay on the new release although another one failed; "" where they go back."""
        if facts.irreversible:
            return "its migrations cannot be reversed"
        if isinstance(facts.error, InterruptedDeploy) or all(spec.auto_revert for spec in self.order.specs.values()):
            return ""
        return "auto_revert = false"

    def _facts(self, where: str, error: MidstreamError, undecided: tuple[str, ...]) -> Facts:
        return Facts(
            error=error,
            host=where,
            stage=self.plan.stage,
            kind=self.plan.kind.value,
            before={host.name: host.before for host in self.hosts.values() if host.opened},
            migrated_release=self.release if any(host.migrated for host in self.hosts.values()) else "",
            irreversible=self._no_way_back(),
            undecided=undecided,
            lease_s=self._lease_s(),
        )

    async def _revert_hosts(self, hosts: list[HostRun], error: MidstreamError) -> dict[str, MidstreamError]:
        if hosts:
            self._note("putting back " + ", ".join(host.name for host in hosts))
        failed = await self._each(hosts, lambda host: host.revert(error.what))
        for name in failed:
            self.hosts[name].state = "failed"
        return failed

    async def _go_on(self, hosts: list[HostRun]) -> tuple[str, ...]:
        """Commits proven hosts whose way back is refused, because the old code cannot work with the new schema."""
        failed = await self._each(hosts, self._commit)
        return tuple(host.name for host in hosts if host.name not in failed)

    def _no_way_back(self) -> bool:
        """Migrations ran that say `reversible = false`: the old code cannot work with the new schema."""
        final = any(spec.migrate is not None and not spec.migrate.reversible for spec in self.order.specs.values())
        return final and any(host.migrated for host in self.hosts.values())

    # ------------------------------------------------------------------ what is told

    def _lease_s(self) -> float:
        return max((host.lease_s for host in self.hosts.values()), default=15.0)

    def _state(self, text: str) -> None:
        self._tell(Event(EventKind.STATE, text=text))

    def _note(self, text: str) -> None:
        self._tell(Event(EventKind.NOTE, text=text))

    def _tell_task(self, task: str, phase: str, kind: EventKind, text: str, seconds: float | None) -> None:
        ok = None if kind is not EventKind.END else not text
        self._tell(Event(kind, phase=phase, step=task, text=text, ok=ok, seconds=seconds))

    def _tell(self, event: Event) -> None:
        self._report(replace(event, release=self.release) if event.kind is EventKind.STATE else event)


def _left_on(host: HostRun) -> str:
    """What serves on a host that did not take the decision, in words."""
    before = f"release {host.before}" if host.before else "nothing"
    return f"{before}, or the new one, which is not known," if host.state == "undecided" else before


def seat_of(host: HostRun, run: Deployment) -> Seat:
    """The host as the tasks of deploy.py see it: their commands belong to the deploy, and are journalled with it."""

    def mark() -> dict[str, Any]:
        if host.token is None:
            raise HostError(
                f"the lock of {host.name} is not ours",
                where=host.name,
                remedy=f"midstream status {run.plan.stage} tells who has it",
            )
        return {"deploy_id": run.order.deploy_id, "token": host.token}

    return Seat(host.name, host.spec, host.client, mark, lambda: str(host.updated.get("release") or ""))
