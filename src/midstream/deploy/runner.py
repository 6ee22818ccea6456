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

from midstream.core.plan import Call, Kind, Move
from midstream.deploy.client import AgentClient
from midstream.deploy.events import Event, EventKind, Outcome
from midstream.deploy.host_run import HostRun
from midstream.deploy.order import Order, Pack, Target
from midstream.deploy.verdict import Facts, judge
from midstream.errors import AttentionError, HostError, InterruptedDeploy, MidstreamError

__all__ = ["Deployment", "Order", "Pack", "Target"]

Report = Callable[[Event], None]
Perform = Callable[[Move, HostRun], Awaitable[None]]


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
        self._interrupts = 0
        self._interrupted = asyncio.Event()
        self._left = asyncio.Event()
        self._decided = False
        self._performers: dict[Call, Perform] = {
            Call.OPEN: lambda move, host: host.open(),
            Call.SELECT: self._select,
            Call.UPDATE: self._update,
            Call.PUBLISH: lambda move, host: host.publish(),
        }

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

    async def run(self) -> Outcome:
        """All moves; on failure the way back. Never raises a MidstreamError: it is in the outcome."""
        started = time.monotonic()
        error = await self._or_left(self._run())
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
                    return await self._finish_all()
                else:
                    await self._perform(move)
        except HostFailed as failed:
            return await self._go_back(failed.host, failed.error)
        except MidstreamError as error:
            return await self._go_back("", error)
        return None

    # ------------------------------------------------------------------ forward

    async def _perform(self, move: Move) -> None:
        """One move on its hosts, with its barrier; the first failure cancels the others."""
        self._stop_if_interrupted()
        perform = self._performers[move.call]
        hosts = [self.hosts[name] for name in move.hosts]
        groups = [[host] for host in hosts] if move.in_order else [hosts]
        if move.call is Call.PUBLISH:
            self._state("publishing")
        for group in groups:
            patient = move.call is Call.OPEN and not self.order.wait
            await self._together([self._on_host(perform, move, host) for host in group], patient)
        if move.call is Call.OPEN:
            self._pick_release()
        elif move.call in (Call.UPDATE, Call.SELECT):
            self._require_one_release(move)

    async def _on_host(self, perform: Perform, move: Move, host: HostRun) -> None:
        started = time.monotonic()
        try:
            await perform(move, host)
        except MidstreamError as error:
            raise HostFailed(host.name, error) from error
        host.called(move.call.value, started)

    async def _together(self, works: list[Awaitable[None]], patient: bool) -> None:
        """All at the same time, until they have ended, one fails, or we are interrupted; then the rest is cancelled.
        patient: when one fails the others may end first (an opening that is cancelled would leave its host locked)."""
        tasks: set[asyncio.Future[Any]] = {asyncio.ensure_future(work) for work in works}
        stop: asyncio.Future[Any] = asyncio.ensure_future(self._interrupted.wait())
        pending: set[asyncio.Future[Any]] = {*tasks, stop}
        try:
            while tasks & pending and not self._interrupted.is_set():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done & tasks:
                    task.result()
            if tasks & pending:
                self._stop_if_interrupted()
        finally:
            if patient and not self._interrupted.is_set():
                await asyncio.wait(tasks)
            for task in (*tasks, stop):
                task.cancel()
            await asyncio.gather(*tasks, stop, return_exceptions=True)

    def _stop_if_interrupted(self) -> None:
        if self._interrupted.is_set():
            raise InterruptedDeploy("interrupted; what was begun has been put back")

    def _pick_release(self) -> None:
        """One id for all hosts, free on each."""
        if self.plan.kind is Kind.DEPLOY and not self.release:
            taken = {str(release) for host in self.hosts.values() for release in host.opened["releases"]}
            self.release = self.order.pick_release(sorted(taken))
        self._state("opened")

    async def _select(self, move: Move, host: HostRun) -> None:
        """The coordinator chooses, the other hosts are asked for the same release."""
        await host.select(self.release)
        self.release = self.release or str(host.updated["release"])
        self.revision = self.revision or str(host.updated.get("revision", ""))
        self.branch = self.branch or str(host.updated.get("branch", ""))

    async def _update(self, move: Move, host: HostRun) -> None:
        assert self.order.target is not None
        await host.update(self.order.target, self.release, migrate=move.migrate)

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
        self._decided = True
        self._state("deciding")
        first, *others = (self.hosts[name] for name in move.hosts)
        try:
            await self._commit(first)
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

    async def _commit(self, host: HostRun) -> None:
        started = time.monotonic()
        await host.commit()
        host.called(Call.COMMIT.value, started)

    async def _finish_all(self) -> MidstreamError | None:
        """Tells all hosts that it is done. Returns what needs attention: the release is committed all the same."""
        failed = await self._finish_hosts("done")
        behind = [host for host in self.hosts.values() if host.state != "committed"]
        if behind:
            return self._behind(behind)
        drift = [row for host in self.hosts.values() for row in host.drift()]
        if failed or drift:
            rows = [f"{name}: {error.what}" for name, error in failed.items()]
            return AttentionError(
                "the release is committed, but not everything is as it should be",
                where=", ".join(failed) or self.plan.stage,
                detail="\n".join([*rows, *drift]),
                serving=f"release {self.release}",
                remedy=f"midstream status --check {self.plan.stage}",
            )
        self._state("finished")
        return None

    def _behind(self, behind: list[HostRun]) -> MidstreamError:
        names = ", ".join(host.name for host in behind)
        lost = any(host.state == "undecided" for host in behind)
        return AttentionError(
            f"the fleet is not on one release: {names} did not take the decision",
            where=names,
            detail="\n".join(f"{host.name}: {host.state}" for host in behind),
            serving=f"release {self.release} on the others",
            remedy=f"midstream resume {self.plan.stage}" + (" once they can be reached" if lost else ""),
        )

    async def _finish_hosts(self, outcome: str) -> dict[str, MidstreamError]:
        opened = [host for host in self.hosts.values() if host.token is not None]
        return await self._each(opened, lambda host: host.finish(outcome, self.release))

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
        begun = [host for host in self.hosts.values() if host.state in ("changing", "proven", "deciding")]
        went_on: tuple[str, ...] = ()
        if facts.migrated_release and not self._reversible():
            went_on = await self._go_on([host for host in begun if host.state == "proven"])
            begun = [host for host in begun if host.name not in went_on]
        put_back_failed = await self._revert_hosts(begun, error)
        outcome = "interrupted" if isinstance(error, InterruptedDeploy) else "failed"
        not_closed = await self._finish_hosts(outcome)
        self._state("reverted")
        return judge(
            replace(
                facts,
                serving={host.name: host.serving for host in self.hosts.values() if host.serving},
                migrated_release="" if went_on else facts.migrated_release,
                put_back_failed=put_back_failed,
                not_closed=not_closed,
                went_on=went_on,
            )
        )

    def _facts(self, where: str, error: MidstreamError, undecided: tuple[str, ...]) -> Facts:
        return Facts(
            error=error,
            host=where,
            stage=self.plan.stage,
            kind=self.plan.kind.value,
            before={host.name: host.before for host in self.hosts.values() if host.token is not None},
            migrated_release=self.release if any(host.migrated for host in self.hosts.values()) else "",
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

    def _reversible(self) -> bool:
        return all(spec.migrate is None or spec.migrate.reversible for spec in self.order.specs.values())

    # ------------------------------------------------------------------ what is told

    def _lease_s(self) -> float:
        return max((host.lease_s for host in self.hosts.values()), default=15.0)

    def _state(self, text: str) -> None:
        self._tell(Event(EventKind.STATE, text=text))

    def _note(self, text: str) -> None:
        self._tell(Event(EventKind.NOTE, text=text))

    def _tell(self, event: Event) -> None:
        self._report(replace(event, release=self.release) if event.kind is EventKind.STATE else event)
