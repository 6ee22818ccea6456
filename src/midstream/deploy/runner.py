"""Walks through the plan of a deploy or rollback over the hosts, and goes back when something fails.

Runs in the deployer, on one event loop. The plan (`core/plan.py`) says which calls on which hosts; this module makes
them, keeps what the hosts answered, and on failure hands back the hosts that were switched and frees all of them.
It decides nothing about processes: the agents do. It prints nothing: it emits events, and returns an `Outcome`.
Once the decision was sent to the coordinator there is no way back any more, only forward (DESIGN 6).
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from midstream.core.plan import Call, Kind, Move, Phase
from midstream.core.spec import Source
from midstream.core.wire import to_wire
from midstream.deploy.client import AgentClient
from midstream.deploy.events import Event, EventKind, HostOutcome, Outcome
from midstream.deploy.order import Order, Pack, Target
from midstream.deploy.verdict import Facts, judge
from midstream.errors import AttentionError, HostError, InterruptedDeploy, LockedError, MidstreamError

__all__ = ["Deployment", "Order", "Pack", "Target"]

PIECE_BYTES = 1024 * 1024

Report = Callable[[Event], None]


@dataclass(slots=True)
class HostRun:
    """What is known of one host during the run."""

    name: str
    client: AgentClient
    opened: dict[str, Any] = field(default_factory=dict)
    updated: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    finished: dict[str, Any] = field(default_factory=dict)
    token: Any = None
    state: str = "untouched"  # open, changing, proven, deciding, committed, reverted, undecided, failed
    serving: str = ""

    @property
    def before(self) -> str:
        return str((self.opened.get("committed") or {}).get("release", ""))


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
        self.hosts = {name: HostRun(name, clients[name]) for name in order.plan.hosts}
        self.release = order.release
        self.revision = order.target.sha if order.target else ""
        self.branch = order.target.branch if order.target else ""
        self._report = report
        self._interrupts = 0
        self._interrupted = asyncio.Event()
        self._left = asyncio.Event()
        self._decided = False
        self._performers: dict[Call, Callable[[Move, HostRun], Awaitable[None]]] = {
            Call.OPEN: self._open,
            Call.SELECT: self._select,
            Call.UPDATE: self._update,
            Call.PUBLISH: self._publish,
        }
        for host in self.hosts.values():
            host.client.on_notice = self._notices_of(host)
            host.client.on_words = lambda text, name=host.name: self._note(text, name)  # type: ignore[misc]

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
        seconds = time.monotonic() - started
        return self._outcome(error, seconds)

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
            serving=self._old_serving(),
            remedy=f"the agents put it back by themselves within {self._lease_s():g} s; "
            f"`midstream status {self.plan.stage}` tells",
        )

    async def _run(self) -> MidstreamError | None:
        try:
            for move in self.plan.moves:
                if move.call is Call.COMMIT:
                    await self._commit_all(move)
                elif move.call is Call.FINISH:
                    return await self._finish_all("done")
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
        if self._interrupted.is_set():
            raise self._interrupt_error()
        perform = self._performers[move.call]
        hosts = [self.hosts[name] for name in move.hosts]
        groups = [[host] for host in hosts] if move.in_order else [hosts]
        if move.call is Call.PUBLISH:
            self._state("publishing")
        for group in groups:
            patient = move.call is Call.OPEN and not self.order.wait
            await self._together([self._on_host(perform, move, host) for host in group], patient)
        if move.call is Call.OPEN:
            self._after_open()
        elif move.call in (Call.UPDATE, Call.SELECT):
            self._require_one_release(move)

    async def _on_host(self, perform: Callable[[Move, HostRun], Awaitable[None]], move: Move, host: HostRun) -> None:
        started = time.monotonic()
        try:
            await perform(move, host)
        except MidstreamError as error:
            raise HostFailed(host.name, error) from error
        self._emit(EventKind.CALL, host=host.name, step=move.call.value, seconds=time.monotonic() - started, ok=True)

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
                raise self._interrupt_error()
        finally:
            if patient and not self._interrupted.is_set():
                await asyncio.wait(tasks)
            for task in (*tasks, stop):
                task.cancel()
            await asyncio.gather(*tasks, stop, return_exceptions=True)

    def _interrupt_error(self) -> InterruptedDeploy:
        return InterruptedDeploy("interrupted; what was begun has been put back")

    async def _open(self, move: Move, host: HostRun) -> None:
        spec = self.order.specs[host.name]
        host.opened = await host.client.call(
            "deploy.open",
            deploy_id=self.order.deploy_id,
            spec=to_wire(spec),
            kind=self.plan.kind.value,
            user=self.order.user,
            wait=self.order.wait,
        )
        host.token = str(host.opened.get("token", ""))
        host.state = "open"
        attach = {"app": self.plan.app, "deploy_id": self.order.deploy_id, "token": host.token}
        host.client.attach = ("deploy.status", attach)
        self._warnings(host.opened, host.name)

    def _after_open(self) -> None:
        if self.plan.kind is Kind.DEPLOY and not self.release:
            taken = {str(release) for host in self.hosts.values() for release in host.opened["releases"]}
            self.release = self.order.pick_release(sorted(taken))
        self._state("opened")

    async def _select(self, move: Move, host: HostRun) -> None:
        """The coordinator chooses, the other hosts are asked for the same release."""
        host.state = "changing"
        wanted: dict[str, Any] = {"release": self.release} if self.release else {}
        if self.order.force:
            wanted["force"] = True
        host.updated = await self._call(host, "deploy.select", **wanted)
        self.release = self.release or str(host.updated["release"])
        self.revision = self.revision or str(host.updated.get("revision", ""))
        self.branch = self.branch or str(host.updated.get("branch", ""))
        if warning := host.updated.get("schema_warning"):
            self._note(str(warning), host.name)

    async def _update(self, move: Move, host: HostRun) -> None:
        target = self.order.target
        assert target is not None
        host.state = "changing"
        spec = self.order.specs[host.name]
        sent = await self._upload(host, target) if spec.source is Source.PUSH else False
        host.updated = await self._call(
            host,
            "deploy.update",
            spec=to_wire(spec),
            revision=target.sha,
            tree=target.tree,
            revision_time=target.time_s,
            branch=target.branch,
            release=self.release,
            secrets=dict(self.order.secrets),
            pack=sent,
            migrate=move.migrate,
        )

    async def _upload(self, host: HostRun, target: Target) -> bool:
        """Sends what the host lacks of the revision. Returns whether anything was sent."""
        have = [str(sha) for sha in host.opened.get("have", ())]
        pack = await asyncio.to_thread(self.order.pack, target.sha, have)
        if pack is None:
            return False
        step = {"host": host.name, "phase": Phase.UPDATING.value, "step": "git:update"}
        self._emit(EventKind.BEGIN, text=f"sending {pack.size_bytes} bytes", **step)
        started = time.monotonic()
        with open(pack.path, "rb") as file:
            piece, offset = file.read(PIECE_BYTES), 0
            while True:
                following = file.read(PIECE_BYTES)
                data = base64.b64encode(piece).decode("ascii")
                await self._call(host, "deploy.upload", offset=offset, data=data, last=not following)
                offset += len(piece)
                if not following:
                    break
                piece = following
        sent = f"sent {pack.size_bytes} bytes"
        self._emit(EventKind.END, ok=True, seconds=time.monotonic() - started, text=sent, **step)
        return True

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

    async def _publish(self, move: Move, host: HostRun) -> None:
        host.state = "changing"
        host.published = await self._call(host, "deploy.publish")
        host.state = "proven"

    # ------------------------------------------------------------------ the decision

    async def _commit_all(self, move: Move) -> None:
        """The coordinator first. Its refusal is a failure like any other; once it has agreed, or may have, nobody
        goes back: hosts that could not be told are undecided, never guessed about."""
        if self._interrupted.is_set():
            raise self._interrupt_error()
        self._decided = True
        self._state("deciding")
        first, *others = (self.hosts[name] for name in move.hosts)
        try:
            await self._commit(first)
        except MidstreamError as error:
            if first.client.lost:
                first.state = "undecided"
                raise HostFailed(first.name, error) from error
            self._decided = False
            raise HostFailed(first.name, error) from error
        results = await asyncio.gather(*(self._commit(host) for host in others), return_exceptions=True)
        self._state("committed")
        for host, result in zip(others, results, strict=True):
            if isinstance(result, MidstreamError):
                host.state = "undecided" if host.client.lost else "failed"
                self._note(f"not committed: {result.what}", host.name)
            elif isinstance(result, BaseException):
                raise result

    async def _commit(self, host: HostRun) -> None:
        host.state = "deciding"
        started = time.monotonic()
        answer = await self._call(host, "deploy.commit")
        host.published.setdefault("generation", answer.get("generation"))
        host.state = "committed"
        host.serving = f"release {answer.get('release', self.release)}"
        self._emit(
            EventKind.CALL,
            host=host.name,
            step=Call.COMMIT.value,
            ok=True,
            seconds=time.monotonic() - started,
        )

    async def _finish_all(self, outcome: str) -> MidstreamError | None:
        """Tells all hosts that it is over. Returns what needs attention: the release is committed all the same."""
        failed = await self._finish_hosts(list(self.hosts.values()), outcome)
        behind = [host.name for host in self.hosts.values() if host.state != "committed"]
        if behind:
            return self._behind(behind)
        drift = [f"{name}: {row}" for name, host in self.hosts.items() for row in _drift_rows(host.finished)]
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

    def _behind(self, behind: list[str]) -> MidstreamError:
        undecided = [name for name in behind if self.hosts[name].state == "undecided"]
        return AttentionError(
            f"the fleet is not on one release: {', '.join(behind)} did not take the decision",
            where=", ".join(behind),
            detail="\n".join(f"{name}: {self.hosts[name].state}" for name in behind),
            serving=f"release {self.release} on the others",
            remedy=f"midstream resume {self.plan.stage}" + (" once they can be reached" if undecided else ""),
        )

    async def _finish_hosts(self, hosts: list[HostRun], outcome: str) -> dict[str, MidstreamError]:
        async def finish(host: HostRun) -> None:
            try:
                host.finished = await self._call(host, "deploy.finish", outcome=outcome)
            except LockedError:  # it may have ended in the call that a lost agent could not answer
                host.finished = await self._look_at_end(host)
            self._warnings(host.finished, host.name)

        return await self._each([host for host in hosts if host.token is not None], finish)

    async def _look_at_end(self, host: HostRun) -> dict[str, Any]:
        """For a host that says that our deploy is over: what it is on, from its status. Raises LockedError when it
        is not where it should be, or somebody else's deploy goes on there already."""
        rows = (await host.client.call("status", app=self.plan.app))["apps"]
        row: dict[str, Any] = next((row for row in rows if row["app"] == self.plan.app), {})
        expected = self.release if host.state == "committed" else host.before
        going_on = row.get("deploy") or {}
        if going_on.get("id") == self.order.deploy_id or (row.get("release") or "") != expected:
            raise LockedError(
                f"the deploy was ended on {host.name} by somebody else",
                serving=f"release {row.get('release') or 'none'}",
                remedy=f"midstream status {self.plan.stage}",
            )
        return {"drift": row.get("drift", []) if host.state == "committed" else []}

    async def _each(
        self, hosts: list[HostRun], work: Callable[[HostRun], Awaitable[None]]
    ) -> dict[str, MidstreamError]:
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
        switched = [host for host in self.hosts.values() if host.state in ("changing", "proven", "deciding")]
        put_back_failed: dict[str, MidstreamError] = {}
        went_on: tuple[str, ...] = ()
        migrated = self._migrated()
        if not undecided:
            if migrated and not self._reversible():
                went_on = await self._go_on([host for host in switched if host.state == "proven"])
                switched = [host for host in switched if host.name not in went_on]
            put_back_failed = await self._revert_hosts(switched, error)
        outcome = "interrupted" if isinstance(error, InterruptedDeploy) else "failed"
        not_closed = {} if undecided else await self._finish_hosts(list(self.hosts.values()), outcome)
        self._state("undecided" if undecided else "reverted")
        return judge(
            Facts(
                error=error,
                host=where,
                stage=self.plan.stage,
                kind=self.plan.kind.value,
                before={host.name: host.before for host in self.hosts.values() if host.token is not None},
                serving={host.name: host.serving for host in self.hosts.values() if host.serving},
                migrated_release=self.release if migrated and not went_on else "",
                put_back_failed=put_back_failed,
                not_closed=not_closed,
                undecided=undecided,
                went_on=went_on,
                lease_s=self._lease_s(),
            )
        )

    async def _revert_hosts(self, hosts: list[HostRun], error: MidstreamError) -> dict[str, MidstreamError]:
        async def revert(host: HostRun) -> None:
            try:
                answer = await self._call(host, "deploy.revert", reason=error.what)
            except LockedError:  # the agent has put it back already: its lease ran out, or `midstream abort`
                await self._look_at_end(host)
                answer = {}
            host.state = "reverted"
            host.serving = str(answer.get("serving", ""))

        if hosts:
            self._note("putting back " + ", ".join(host.name for host in hosts))
        failed = await self._each(hosts, revert)
        for name in failed:
            self.hosts[name].state = "failed"
        return failed

    async def _go_on(self, hosts: list[HostRun]) -> tuple[str, ...]:
        """Commits proven hosts whose way back is refused, because the old code cannot work with the new schema."""
        failed = await self._each(hosts, self._commit)
        return tuple(host.name for host in hosts if host.name not in failed)

    def _migrated(self) -> bool:
        return self.plan.kind is Kind.DEPLOY and any(bool(host.updated.get("migrated")) for host in self.hosts.values())

    def _reversible(self) -> bool:
        return all(spec.migrate is None or spec.migrate.reversible for spec in list(self.order.specs.values()))

    # ------------------------------------------------------------------ small things

    async def _call(self, host: HostRun, method: str, **params: Any) -> dict[str, Any]:
        return await host.client.call(method, deploy_id=self.order.deploy_id, token=host.token, **params)

    def _lease_s(self) -> float:
        return max((float(host.opened.get("lease_s", 15)) for host in self.hosts.values()), default=15.0)

    def _old_serving(self) -> str:
        before = {host.name: host.before for host in self.hosts.values() if host.before}
        return ", ".join(f"{release} on {name}" for name, release in before.items())

    def _notices_of(self, host: HostRun) -> Callable[[str, dict[str, Any]], None]:
        def take(method: str, params: dict[str, Any]) -> None:
            if method == "progress" and params.get("deploy_id") == self.order.deploy_id:
                self._report(_progress_event(host.name, params))

        return take

    def _warnings(self, answer: dict[str, Any], host: str) -> None:
        for warning in answer.get("warnings", ()):
            self._note(f"warning: {warning}", host)

    def _state(self, text: str) -> None:
        self._emit(EventKind.STATE, text=text)

    def _note(self, text: str, host: str = "") -> None:
        self._emit(EventKind.NOTE, host=host, text=text)

    def _emit(self, kind: EventKind, **fields: Any) -> None:
        self._report(Event(kind, release=self.release, **fields))

    def _outcome(self, error: MidstreamError | None, seconds: float) -> Outcome:
        return Outcome(
            deploy_id=self.order.deploy_id,
            kind=self.plan.kind.value,
            app=self.plan.app,
            stage=self.plan.stage,
            release=self.release,
            revision=self.revision,
            branch=self.branch,
            seconds=seconds,
            hosts=tuple(_host_outcome(host, self.release) for host in self.hosts.values()),
            error=error,
        )


def _host_outcome(host: HostRun, release: str) -> HostOutcome:
    committed = host.state == "committed"
    return HostOutcome(
        host=host.name,
        state=host.state,
        release=release if committed else host.before,
        generation=host.published.get("generation") if committed else None,
        services=tuple(host.published.get("services", ())),
        draining=int(host.finished.get("draining", 0)),
        removed=tuple(host.finished.get("removed", ())),
        serving=host.serving,
    )


def _drift_rows(finished: dict[str, Any]) -> list[str]:
    return [
        f"{row.get('service')}/{row.get('slot')} pid {row.get('pid')}: {row.get('kind')}, "
        f"expected {row.get('expected')}, found {row.get('found')}"
        for row in finished.get("drift", ())
    ]


_STEP_KINDS = {"begin": EventKind.BEGIN, "line": EventKind.LINE, "end": EventKind.END}


def _progress_event(host: str, params: dict[str, Any]) -> Event:
    ok, seconds = params.get("ok"), params.get("seconds")
    return Event(
        _STEP_KINDS.get(str(params.get("state")), EventKind.NOTE),
        host=host,
        phase=str(params.get("phase", "")),
        step=str(params.get("step", "")),
        service=str(params.get("service") or ""),
        text=str(params.get("line") or ""),
        ok=bool(ok) if ok is not None else None,
        seconds=float(seconds) if seconds is not None else None,
    )
