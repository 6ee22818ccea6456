"""One host during a deploy: its calls, in the words of the control protocol, and what it answered.

Runs in the deployer. Which calls on which hosts, and what to do when one fails, is `runner.py`'s business. All
coroutines raise the MidstreamError that the agent sent, or HostError when it is gone for good.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from midstream.core.builds import Carry, carries, stretch
from midstream.core.plan import Hook, Kind, Phase
from midstream.core.points import phase_of
from midstream.core.spec import AppSpec, HoldSpec, Source
from midstream.core.wire import to_wire
from midstream.deploy.client import AgentClient
from midstream.deploy.events import Event, EventKind, HostOutcome
from midstream.deploy.order import Order, Pack, Target
from midstream.errors import HostError, LockedError, MidstreamError

PIECE_BYTES = 1024 * 1024
ALONG = "objects along"  # a feature of agents: objects may come with the update
ALONG_BYTES = 256 * 1024
FINISH_ALONG = "finish along"  # another: the decision may be told together with the end
WORDS_MAX = 72
STARTING = "deploy:starting"
PIECE_S = 600.0  # 2 kB/s; a connection that is dead is noticed long before, by ssh and by the agent's pings

Tell = Callable[[Event], None]


@dataclass(slots=True, eq=False)
class HostRun:
    """`state`: untouched, open, changing (something was begun), proven, deciding, committed, reverted, undecided,
    failed. `serving`: what the agent says that serves now, where it said so. `not_undone`: hooks whose undo failed."""

    name: str
    client: AgentClient
    order: Order
    tell: Tell
    opened: dict[str, Any] = field(default_factory=dict)
    updated: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    finished: dict[str, Any] = field(default_factory=dict)
    token: Any = None
    proven_s: float = 0.0  # monotonic; when the agent last said that the new generation is proven
    state: str = "untouched"
    serving: str = ""
    not_undone: tuple[str, ...] = ()
    refusal: str = ""  # why it did not take the decision
    _finished_along: dict[str, Any] | None = None  # what the end answered, which came with the decision
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    _sent: bool | None = None
    _words: dict[str, str] = field(default_factory=dict)  # step -> the command that it is
    _phases: dict[str, str] = field(default_factory=dict)  # task -> the phase that the plan has it in
    _asked_s: float | None = None  # monotonic; since when the lock is asked for
    _likely: tuple[str, asyncio.Task[Pack | None]] | None = None  # a revision that the host has, and a pack upon it

    def __post_init__(self) -> None:
        self.client.on_notice = self._take
        self.client.on_words = self.note
        self._phases = {task.name: task.phase.value for task in self.order.plan.tasks}

    @property
    def spec(self) -> AppSpec:
        return self.order.specs[self.name]

    @property
    def before(self) -> str:
        """The release that was committed when the deploy was opened, "" for none."""
        return str((self.opened.get("committed") or {}).get("release", ""))

    @property
    def was_over(self) -> bool:
        """It was committed and ended here before this command."""
        return self.opened.get("over") == "committed"

    def stands(self) -> None:
        """On the way back of the others: here it was over, and nothing is put back."""
        self.state, self.serving = "committed", f"release {self.before}"

    @property
    def lease_s(self) -> float:
        return float(self.opened.get("lease_s", 15))

    def outcome(self, release: str) -> HostOutcome:
        committed = self.state == "committed"
        return HostOutcome(
            host=self.name,
            state=self.state,
            release=release if committed else self.before,
            generation=self.published.get("generation") if committed else None,
            services=tuple(self.published.get("services", ())),
            draining=int(self.finished.get("draining", 0)),
            removed=tuple(self.finished.get("removed", ())),
            serving=self.serving,
        )

    # ------------------------------------------------------------------ the calls, in their order

    async def open(self, until: str = "") -> None:
        """Takes the lock and checks. until: "check" takes the lock alone; the next call goes on."""
        if self.token is None:
            self._asked_s = time.monotonic()
            self._emit(EventKind.BEGIN, step=STARTING, phase=phase_of(STARTING))
        part: dict[str, Any] = {"until": until} if until else {}
        try:
            answer = await self.client.call(
                "deploy.open",
                deploy_id=self.order.deploy_id,
                spec=to_wire(self.spec),
                kind=self.order.plan.kind.value,
                user=self.order.user,
                wait=self.order.wait,
                **part,
            )
            self._hold(answer["token"])
        except MidstreamError as error:
            self._has_started(error.what)
            if not self.opened:  # refused, or ended by the agent itself: there is no deploy of ours
                self.token, self.state = None, "untouched"
            raise
        finally:
            self._settled.set()
        self.opened = {**self.opened, **answer}
        self._warn(answer)

    async def has_lock(self) -> bool:
        """Waits until it is known whether this host's lock is ours: its agent says so before it begins its checks."""
        await self._settled.wait()
        return self.token is not None

    def pass_over(self) -> None:
        """It was not asked for its lock, and will not be."""
        self._settled.set()

    def _has_started(self, why_not: str = "") -> None:
        """The lock is ours, or was refused: told once."""
        if self._asked_s is None:
            return
        took, self._asked_s = time.monotonic() - self._asked_s, None
        self._emit(EventKind.END, step=STARTING, phase=phase_of(STARTING), ok=not why_not, seconds=took, text=why_not)

    def _hold(self, token: Any) -> None:
        self._has_started()
        self.token = token
        if self.state == "untouched":
            self.state = "open"
        attach = {"app": self.order.plan.app, "deploy_id": self.order.deploy_id, "token": token}
        self.client.attach = ("deploy.status", attach)
        self._settled.set()

    async def select(self, release: str) -> None:
        """Chooses the release of a rollback; "" lets the agent choose."""
        self.state = "changing"
        wanted: dict[str, Any] = {"release": release} if release else {}
        if self.order.force:
            wanted["force"] = True
        with self._telling("deploy:revert_release"):
            self.updated = await self._call("deploy.select", **wanted)
        if warning := self.updated.get("schema_warning"):
            self.note(f"warning: {warning}")

    async def update(
        self, target: Target, release: str, *, migrate: bool, until: str = "", before: Carry | None = None
    ) -> None:
        """Makes the release, as far as `until`; sends the objects that the host lacks before. before: runs the build
        steps up to the one whose files are carried then."""
        self.state = "changing"
        part: dict[str, Any] = {"until": until} if until else {}
        if self._sent is None:
            part |= await self._objects(target) if self.spec.source is Source.PUSH else {}
            self._sent = self._sent or False
        if carries(self.order.specs):
            part["build"] = stretch(self.order.specs, self.name, before)
        self.updated = await self._call(
            "deploy.update",
            spec=to_wire(self.spec),
            revision=target.sha,
            tree=target.tree,
            revision_time=target.time_s,
            branch=target.branch,
            release=release,
            secrets=dict(self.order.secrets),
            pack=self._sent,
            migrate=migrate,
            **part,
        )

    async def artifact(self, verb: str, **params: Any) -> dict[str, Any]:
        """`read` or `write` a piece of what a build made."""
        return await self._call(f"deploy.artifact.{verb}", **params)

    async def command(self, hook: Hook, phase: str) -> None:
        """Runs a hook. Its undo is the agent's from now on, whatever becomes of us. Raises AppError when it failed."""
        if self.state == "open":
            self.state = "changing"
        self._words[hook.name] = _shown(hook.step.run)
        undo: dict[str, Any] = {}
        if hook.undo is not None:
            undo = {"undo": hook.undo.run, "undo_shell": hook.undo.shell, "undo_timeout_s": hook.undo.timeout_s}
        await self._call(
            "deploy.command",
            name=hook.name,
            argv=hook.step.run,
            shell=hook.step.shell,
            env=hook.step.env,
            timeout_s=hook.step.timeout_s,
            where=hook.where,
            phase=phase,
            **undo,
        )

    async def hold(self, spec: HoldSpec) -> None:
        """Another supervisor leaves its service alone; the agent guards that, and ends it whatever becomes of us."""
        answer = await self._call("deploy.hold", hold=to_wire(spec), ttl_s=spec.ttl_s)
        self._warn(answer)

    async def unhold(self, spec: HoldSpec) -> None:
        with self._telling(f"unhold:{spec.supervisor}:{spec.service}"):
            await self._call("deploy.unhold", supervisor=spec.supervisor, service=spec.service)

    async def publish(self) -> None:
        """Has the handover made, to the decision; or asks a proven one whether it still is. It stays proven when that
        question is given up."""
        if self.state != "proven":
            self.state = "changing"
        try:
            answer = await self._call("deploy.publish")
        except MidstreamError:
            self.state = "changing"
            raise
        told = answer.get("services") or self.published.get("services", ())  # only the first answer has them
        self.published = {**answer, "services": told}
        self.proven_s = time.monotonic()
        self.state = "proven"

    async def commit(self, *, then_finish: bool = False) -> None:
        """then_finish: once it is committed, the agent finishes in the same call, if it can; `finish` then asks nothing."""
        self.state = "deciding"
        more: dict[str, Any] = {} if self.order.left_out is None else {"behind": list(self.order.left_out)}
        if then_finish and FINISH_ALONG in self.client.hello.get("features", ()):
            more["then"] = "finish"
        answer = await self._call("deploy.commit", **more)
        self._finished_along = answer.get("finished")
        self.published.setdefault("generation", answer.get("generation"))
        self.state = "committed"
        self.serving = f"release {answer['release']}"

    async def has_committed(self, release: str) -> bool:
        """After `commit` has failed: whether the agent says that it stored the decision all the same."""
        if self.was_over and not self.client.lost:
            self.state, self.serving = "committed", f"release {release}"
            return True
        mark = {"deploy_id": self.order.deploy_id, "token": self.token}
        try:
            deploy = (await self.client.call("deploy.status", app=self.order.plan.app, **mark)).get("deploy") or {}
        except MidstreamError:
            return False
        if deploy.get("id") != self.order.deploy_id or deploy.get("state") != "committed":
            return False
        self.state = "committed"
        self.serving = f"release {release}"
        return True

    async def revert(self, reason: str) -> None:
        try:
            answer = await self._call("deploy.revert", reason=reason)
        except LockedError:  # it was put back already: its lease ran out, or somebody said `midstream abort`
            await self._look_at_end(self.before)
            answer = {}
        self.state = "reverted"
        self.serving = str(answer.get("serving", ""))

    async def finish(self, outcome: str, release: str, until: str = "") -> None:
        """Ends the deploy here and frees the lock. `release`: the one that is to be committed if this host did. until:
        stops before that part, with the lock still held."""
        expected = release if self.state == "committed" else self.before
        part: dict[str, Any] = {"until": until} if until else {}
        along, self._finished_along = self._finished_along, None
        try:
            answer = along or await self._call("deploy.finish", outcome=outcome, **part)
        except LockedError:  # it may have ended in the call whose answer was lost with its agent
            answer = await self._look_at_end(expected)
        removed = [*self.finished.get("removed", ()), *answer.get("removed", ())]
        self.finished = {**answer, "removed": removed}
        self.not_undone = tuple(str(text) for text in answer.get("not_undone", ()))
        self._warn(answer)

    async def _look_at_end(self, expected: str) -> dict[str, Any]:
        """For a host that says that our deploy is over: what became of it, from its status. Raises LockedError when it
        is not on `expected`."""
        app = self.order.plan.app
        rows = (await self.client.call("status"))["apps"]
        row: dict[str, Any] = next((row for row in rows if row["app"] == app), {})
        going_on = row.get("deploy") or {}
        if going_on.get("id") == self.order.deploy_id or (row.get("release") or "") != expected:
            raise LockedError(
                f"the deploy was ended on {self.name} by somebody else",
                serving=f"release {row.get('release') or 'none'}",
                remedy=f"midstream status {self.order.plan.stage}",
            )
        return {"drift": row.get("drift", []) if self.state == "committed" else []}

    async def _objects(self, target: Target) -> dict[str, Any]:
        """What the host lacks of the revision: sent a MiB at a time; or, what is small, as a parameter of the update, which
        saves a round trip. Returns that."""
        have = [str(sha) for sha in self.opened.get("have", ())]
        pack = await self._likely_pack(have)
        if pack is None:
            pack = await asyncio.to_thread(self.order.pack, target.sha, have)
        if pack is None:
            return {}
        self._sent = True
        step = {"phase": Phase.UPDATING.value, "step": "git:update"}
        if pack.size_bytes <= ALONG_BYTES and ALONG in self.client.hello.get("features", ()):
            self._emit(EventKind.LINE, text=f"sending {pack.size_bytes} bytes along", **step)
            with open(pack.path, "rb") as file:
                return {"data": base64.b64encode(file.read()).decode("ascii")}
        self._emit(EventKind.BEGIN, text=f"sending {pack.size_bytes} bytes", **step)
        started = time.monotonic()
        await self._send(pack)
        took = time.monotonic() - started
        self._emit(EventKind.END, ok=True, seconds=took, text=f"sent {pack.size_bytes} bytes", **step)
        return {}

    def _pack_upon(self, revision: str) -> None:
        """While the host checks, a pack is made of what it most likely lacks: all but what its committed revision has."""
        target = self.order.target if self.spec.source is Source.PUSH and not self.spec.submodules else None
        if target is not None and revision and self._likely is None:
            task = asyncio.ensure_future(asyncio.to_thread(self.order.pack_upon, target.sha, revision))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # who needs it asks again
            self._likely = revision, task

    async def _likely_pack(self, have: Sequence[str]) -> Pack | None:
        """The one that was begun, if the host has all that it leaves out and it is small; None: make one."""
        if self._likely is None or self._likely[0] not in have:
            return None
        try:
            pack = await self._likely[1]
        except MidstreamError:
            return None
        return pack if pack is not None and pack.size_bytes <= ALONG_BYTES else None

    async def _send(self, pack: Pack) -> None:
        offset = 0
        with open(pack.path, "rb") as file:
            piece = file.read(PIECE_BYTES)
            while True:
                following = file.read(PIECE_BYTES)
                data = base64.b64encode(piece).decode("ascii")
                try:
                    async with asyncio.timeout(PIECE_S):
                        await self._call("deploy.upload", offset=offset, data=data, last=not following)
                except TimeoutError:
                    raise self._too_slow(offset, pack.size_bytes) from None
                if not following:
                    return
                offset += len(piece)
                piece = following

    def _too_slow(self, offset: int, size_bytes: int) -> HostError:
        return HostError(
            f"the objects do not get through: {offset} of {size_bytes} bytes were taken, and then none for {PIECE_S:g} s",
            where=self.name,
            serving=f"release {self.before}" if self.before else "",
            remedy='look at the line to that host, or have it fetch them itself: source = "fetch"',
        )

    async def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return await self.client.call(method, deploy_id=self.order.deploy_id, token=self.token, **params)

    # ------------------------------------------------------------------ what is told

    def drift(self) -> list[str]:
        """What the agent found to differ at the end, in words."""
        return [
            f"{self.name}: {row.get('service')}/{row.get('slot')} pid {row.get('pid')}: {row.get('kind')}, "
            f"expected {row.get('expected')}, found {row.get('found')}"
            for row in self.finished.get("drift", ())
        ]

    @property
    def migrated(self) -> bool:
        """Whether this host ran migrations in this deploy."""
        return self.order.plan.kind is Kind.DEPLOY and bool(self.updated.get("migrated"))

    def called(self, method: str, started: float) -> None:
        """Tells of a round trip that ended."""
        self._emit(EventKind.CALL, step=method, ok=True, seconds=time.monotonic() - started)

    def note(self, text: str) -> None:
        self._emit(EventKind.NOTE, text=text)

    def refused(self, error: MidstreamError) -> None:
        """The host did not take the decision that others took."""
        self.state = "undecided" if self.client.lost else "failed"
        self.refusal = error.what
        self.note(f"not committed: {error.what}")

    def _warn(self, answer: dict[str, Any]) -> None:
        for warning in answer.get("warnings", ()):
            self.note(f"warning: {warning}")

    @contextmanager
    def _telling(self, task: str) -> Iterator[None]:
        """A task that the agent does without telling of it."""
        phase = self._phases.get(task, phase_of(task))
        self._emit(EventKind.BEGIN, step=task, phase=phase)
        started, ok, text = time.monotonic(), False, ""
        try:
            yield
            ok = True
        except MidstreamError as error:
            text = error.what
            raise
        finally:
            self._emit(EventKind.END, step=task, phase=phase, ok=ok, seconds=time.monotonic() - started, text=text)

    def _emit(self, kind: EventKind, **fields: Any) -> None:
        self.tell(Event(kind, host=self.name, **fields))

    def _take(self, method: str, params: dict[str, Any]) -> None:
        if params.get("deploy_id") != self.order.deploy_id:
            return
        if method == "locked":
            self._hold(params.get("token"))
            self._pack_upon(str(params.get("revision") or ""))
        elif method == "progress":
            event = _progress_event(self.name, params)
            event = replace(event, phase=self._phases.get(event.step, event.phase))
            if event.kind is EventKind.END and not event.text:
                event = replace(event, text=self._words.get(event.step, ""))
            self.tell(event)


def _shown(argv: Sequence[str]) -> str:
    """A command in a line that may stand behind a step's name."""
    line = " ".join(argv)
    return line if len(line) <= WORDS_MAX else f"{line[: WORDS_MAX - 1]}…"


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
