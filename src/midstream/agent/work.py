"""`Work`: one deploy in progress on this host: its intent, its journal, its one-shots, and who is told of progress.

Lives here: what all parts of a deploy need. The parts are `updating` (make the release), `publishing` (hand over) and
`deploys` (begin, lease, end). Runs in the agent's loop.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from midstream.agent import crashpoint
from midstream.agent.accounts import Account
from midstream.agent.host import Host
from midstream.agent.oneshots import Outcome
from midstream.agent.spawning import Place, account_for, command_spec
from midstream.agent.step_requests import request_body, request_file, step_program
from midstream.agent.step_session import SERVICE as SESSION_SERVICE
from midstream.agent.step_session import StepSession
from midstream.agent.store import AppRecord, GenerationRecord
from midstream.core import steps
from midstream.core.intent import Intent, IntentEvent, advance
from midstream.core.messages import ProcessState, SpawnSpec
from midstream.core.names import SpawnKey, parse_key
from midstream.core.points import task_of
from midstream.core.spec import AppSpec, CommandStep
from midstream.errors import AppError, HostError, MidstreamError

STEP_TIMEOUT_S = 900.0

# What a power cut may forget to have begun: nothing has to be thrown away for it, and beginning it twice is as good as once.
_LEAVES_NOTHING = frozenset(
    {"deploy:check", "handover", "deploy:symlink:release", "deploy:cleanup", "deploy:log_revision"}
)
_ONCE = frozenset({"deploy:migrate"})  # a power cut must not forget that it was done


@dataclass(frozen=True, slots=True)
class Progress:
    """What the deployer is told while a call runs. state: begin, line, end."""

    deploy_id: str
    phase: str
    step: str
    state: str
    ok: bool = True
    seconds: float = 0.0
    line: str = ""
    service: str = ""


Listener = Callable[[Progress], None]


def without_secrets(text: str, secrets: Mapping[str, str]) -> str:
    """Without their values, nor the lines of those that have several: output comes line by line. A net for mistakes: who
    may run a command can have it print them in another form."""
    forms = {value for value in secrets.values() if len(value) >= 4}
    forms |= {line for value in secrets.values() if "\n" in value for line in value.splitlines() if len(line) >= 8}
    for form in sorted(forms, key=len, reverse=True):  # else the rest of one that begins as another does would stay
        text = text.replace(form, "[secret]")
    return text


def _what_of(error: BaseException) -> str:
    """Why a step or a task did not go through, in a line."""
    if isinstance(error, MidstreamError):
        return error.what
    return "interrupted" if isinstance(error, asyncio.CancelledError) else f"{type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True)
class Part:
    """One of the steps that share a process. step: its name in the journal; phase: it is told under ("" as it is);
    program, request: what is run; took: is given the answer, before the step counts as done."""

    step: str
    program: str
    request: object
    took: Callable[[dict[str, Any]], None] = lambda answer: None
    phase: str = ""


@dataclass(slots=True)
class Work:
    """`intent` is replaced, and stored, at each change. `phase` is what progress is reported under."""

    host: Host
    intent: Intent
    spec: AppSpec
    listeners: list[Listener] = field(default_factory=list)
    phase: str = "starting"
    secrets: dict[str, str] = field(default_factory=dict)
    connected: int = 0
    running: dict[str, asyncio.Task[dict[str, Any]]] = field(default_factory=dict)
    pack_path: str = ""
    warnings: list[str] = field(default_factory=list)
    trash: bool = False  # something that was removed waits to be deleted (`agent/trash.py`)
    verified: bool = False  # what its processes run was told
    over: bool = False  # it was committed and closed before: its calls are answered, and do nothing
    looked: dict[str, Any] | None = None  # what `inspect` told of `deploy_to` when it was opened
    session: StepSession | None = None
    sessions: int = 0  # how many there were

    @property
    def app(self) -> AppRecord:
        return self.host.apps[self.intent.app]

    # the record

    def save(self, *, relaxed: bool = False, **changes: Any) -> None:
        """Stores the intent with these changes; raises HostError and changes nothing when the disk does not take it. Within
        a transaction that is known at its end only: a decision that was not stored must not be remembered as one."""
        before, after = self.intent, replace(self.intent, **changes)

        def restore() -> None:
            self.intent = before

        with self.host.store.transaction(relaxed=relaxed):
            self.host.store.put_intent(after)
            self.host.store.if_undone(restore)
            self.intent = after

    def move(self, event: IntentEvent, *, relaxed: bool = False, **changes: Any) -> None:
        """To the next state of the intent's table, stored. Raises IllegalTransition."""
        crashpoint.point(f"intent {event.value}", self.host.keeper_pid)
        self.save(relaxed=relaxed, state=advance(self.intent.state, event), **changes)

    def done(self, step: str) -> bool:
        return self.intent.steps.get(step) == "done"

    @contextmanager
    def step(self, *names: str) -> Iterator[Callable[[], None]]:
        """One journalled step, or several that go together: written before they begin and after they ended; told to who
        listens. What is yielded is called when one has ended and the next begins."""
        begun = time.monotonic()
        name, left = names[0], list(names[1:])
        self._points("before", names)
        marks = {**self.intent.steps, **dict.fromkeys(names, "begun")}
        self._journal(names, "begin", marks, relaxed=_LEAVES_NOTHING.issuperset(names))
        self.tell(name, "begin")
        self._points("in", names)

        def passed() -> None:
            nonlocal begun, name
            self.tell(name, "end", seconds=time.monotonic() - begun)
            begun, name = time.monotonic(), left.pop(0)
            self.tell(name, "begin")

        try:
            yield passed
        except BaseException as error:
            what = _what_of(error)
            if isinstance(error, MidstreamError) and self.app.release and self.app.release not in error.serving:
                error.serving = f"{self.serving()}; {error.serving}".removesuffix("; ")
            self._journal_failure(names, name, self.redacted(what))
            self.tell(name, "end", ok=False, seconds=time.monotonic() - begun, line=what)
            raise
        self._points("after", names)
        marks = {**self.intent.steps, **dict.fromkeys(names, "done")}
        self._journal(names, "done", marks, relaxed=_ONCE.isdisjoint(names))
        self.tell(name, "end", seconds=time.monotonic() - begun)

    @contextmanager
    def telling(self, *tasks: str, failed: Callable[[], Sequence[str]] = tuple) -> Iterator[None]:
        """Tasks of the plan that are told, and not journalled by themselves: parts of a step, or nothing that could be begun
        again. failed: those of them that an error is about, where not all are."""
        begun = time.monotonic()
        for task in tasks:
            self.tell(task, "begin")
        try:
            yield
        except BaseException as error:
            what = _what_of(error)
            guilty = failed() or tasks
            for task in tasks:
                ok = task not in guilty
                self.tell(task, "end", ok=ok, seconds=time.monotonic() - begun, line="" if ok else what)
            raise
        for task in tasks:
            self.tell(task, "end", seconds=time.monotonic() - begun)

    def _points(self, when: str, names: tuple[str, ...]) -> None:
        for name in names:
            crashpoint.point(f"{when} {name}", self.host.keeper_pid)

    def _journal(
        self, names: Iterable[str], what: str, marks: dict[str, str], detail: str = "", *, relaxed: bool = False
    ) -> None:
        """Lines of the journal and the marks that go with them, in one transaction. Raises HostError, nothing changed."""
        after = replace(self.intent, steps=marks)
        with self.host.store.transaction(relaxed=relaxed):
            for name in names:
                self.host.store.journal(self.intent.id, name, what, detail)
            self.host.store.put_intent(after)
        self.intent = after

    def _journal_failure(self, names: tuple[str, ...], failed: str, what: str) -> None:
        """What came before the failed one is done. What would have come after it stays marked as begun: when we were
        interrupted, the process that they share may be that far already."""
        ended = names[: names.index(failed)]
        marks = {**self.intent.steps, **dict.fromkeys(ended, "done")}
        try:
            with self.host.store.transaction():
                self._journal(ended, "done", marks)
                self.host.store.journal(self.intent.id, failed, "failed", what)
        except HostError:
            self.intent = replace(self.intent, steps=marks)  # the disk is full, which may be the failure itself

    def forget(self, *names: str) -> None:
        """These steps have to be done again."""
        self.save(steps={name: state for name, state in self.intent.steps.items() if name not in names})

    def tell(
        self, step: str, state: str, *, ok: bool = True, seconds: float = 0.0, line: str = "", service: str = ""
    ) -> None:
        """What is told is told by the names of the plan (`core/points.py`)."""
        task = task_of(step) or (step if state == "line" else "")
        if not task:
            return
        progress = Progress(
            self.intent.id, self.phase, task, state, ok, round(seconds, 3), self.redacted(line), service
        )
        for listener in dict.fromkeys(self.listeners):
            listener(progress)

    def redacted(self, text: str) -> str:
        return without_secrets(text, self.secrets)

    def serving(self) -> str:
        """What answers now, for messages."""
        record = self.app
        if not record.release:
            return f"nothing of {record.app} yet"
        return f"release {record.release} (generation {record.committed_generation}), unchanged"

    # steps and commands

    async def run_parts(self, parts: Sequence[Part], fds: tuple[int, ...] = ()) -> None:
        """Journalled steps one after the other in one process: to start one takes longer than most of them."""
        if not parts:
            return
        done, trouble = 0, ""
        with self.step(*(part.step for part in parts)) as passed:
            self.phase = parts[0].phase or self.phase

            def took(number: int, answer: dict[str, Any]) -> None:
                nonlocal done, trouble
                if number != done or trouble:
                    return  # of a process that ran a second time
                try:
                    parts[number].took(answer)
                except HostError as error:  # a full disk
                    trouble = error.what
                    return
                done += 1
                self.trash = self.trash or bool(answer.get("trash"))
                if done < len(parts):
                    self.phase = parts[done].phase or self.phase
                    passed()

            def on_line(line: str) -> None:
                part = steps.read_part(line)
                if part is not None:
                    took(*part)
                else:
                    self.tell(parts[min(done, len(parts) - 1)].step, "line", line=line)

            if len(parts) == 1:
                took(0, await self._run_step(parts[0].program, parts[0].request, fds, on_line))
            else:
                bodies = tuple({"step": part.program, "request": request_body(part.request)} for part in parts)
                answer = await self._run_step("several", steps.Several(bodies), fds, on_line)
                for number, result in enumerate(answer["results"]):
                    took(number, result)
            if trouble:
                raise HostError(trouble, remedy="free some space, then deploy again")

    async def run_step(
        self, name: str, request: object, fds: tuple[int, ...] = (), label: str = "", file_max_bytes: int = 0
    ) -> dict[str, Any]:
        """Runs a step program under the app's user. Returns its answer; raises the error that it reported. One whose end
        is unknown is run again: steps are made for that. file_max_bytes: of any file that it writes (0: no limit)."""
        on_line = partial(self._tell_line, label or name)
        return await self._run_step(name, request, fds, on_line, file_max_bytes)

    def _tell_line(self, step: str, line: str) -> None:
        self.tell(step, "line", line=line)

    async def _run_step(
        self,
        name: str,
        request: object,
        fds: tuple[int, ...],
        on_line: Callable[[str], None],
        file_max_bytes: int = 0,
    ) -> dict[str, Any]:
        outcome = Outcome(None, "was not run")
        for _ in range(3):
            outcome = await self._run_step_once(name, request, fds, on_line, file_max_bytes)
            if outcome.result:
                answer = steps.read_result(outcome.result)
                self.trash = self.trash or bool(answer.get("trash"))
                return answer
            if not outcome.lost:
                break
        raise HostError(
            f"step {name} gave no answer: {outcome.text}",
            where=self.spec.deploy_to,
            detail=self.redacted("\n".join(outcome.tail)),
            serving=self.serving(),
            remedy="look at the lines above; the step can be run again: deploy again",
        )

    async def _run_step_once(
        self, name: str, request: object, fds: tuple[int, ...], on_line: Callable[[str], None], file_max_bytes: int
    ) -> Outcome:
        """In the process that all steps of the deploy share, unless it is busy or the step has a limit of its own."""
        with request_file(name, request) as body:
            session = None if file_max_bytes else self._session()
            if session is not None:
                return await session.run(name, body, fds, timeout_s=STEP_TIMEOUT_S, on_line=on_line)
            spec = self._step_spec(self._next_key("+" + name.replace("_", "-"), 0), name, 1 + len(fds))
            if file_max_bytes:
                spec = replace(spec, rlimits={"fsize": (file_max_bytes, file_max_bytes)})
            return await self.host.one_shots.run(spec, fds=(body, *fds), timeout_s=STEP_TIMEOUT_S, on_line=on_line)

    def _session(self) -> StepSession | None:
        """The process for the steps, begun when there is none; None when it is at work. A rollback learns in its course which
        user the release had: what ran as another is ended."""
        account = self._account()
        if self.session is not None and self.session.is_free and self.session.account != account:
            self.session.close()
        if self.session is None or self.session.is_over:
            program = self._step_spec(self._session_key(), steps.SESSION, 1)
            self.session = StepSession(self.host.one_shots, program, account)
            self.host.keep(self.session.life)
        return self.session if self.session.is_free else None

    def _account(self) -> Account:
        return account_for(self.spec, self.app.owner_uid, self.host.uid)

    def _session_key(self) -> SpawnKey:
        """Each has a slot of its own, and so a FIFO: what an earlier one still says is not taken for its answers."""
        known = [key for key in self.host.one_shots.known_of(self.intent.app) if key.service == SESSION_SERVICE]
        slots = [key.slot for key in known if key.generation == self.intent.number]
        self.sessions = max([self.sessions, *(slot + 1 for slot in slots)]) + 1
        return SpawnKey(self.intent.app, SESSION_SERVICE, self.intent.number, self.sessions - 1, 0)

    def end_steps(self) -> None:
        """No more steps are to come for now: their process ends."""
        if self.session is not None:
            self.session.close()

    def _step_spec(self, key: SpawnKey, name: str, passed_fds: int) -> SpawnSpec:
        return step_program(key, name, self._account(), self.host.uid, passed_fds)

    def _next_key(self, service: str, slot: int) -> SpawnKey:
        last = self.host.one_shots.last_attempt(self.intent.app, service, self.intent.number, slot)
        attempt = parse_key(last.key).attempt + 1 if last else 0
        return SpawnKey(self.intent.app, service, self.intent.number, slot, attempt)

    async def run_command(
        self,
        record: GenerationRecord,
        step: CommandStep,
        service: str,
        slot: int,
        label: str,
        *,
        may_rerun: bool,
        on_end: Callable[[Outcome], None] = lambda outcome: None,
    ) -> Outcome:
        """A build step, migration or hook. One that an earlier agent began is found and waited for; one whose end nobody
        knows is run again, once, only if it `may_rerun`, else its outcome is `lost`."""
        last = self.host.one_shots.last_attempt(self.intent.app, service, self.intent.number, slot)
        begun = self.intent.steps.get(label) == "begun-before"
        if last is not None and last.state is not ProcessState.LOST:
            key = parse_key(last.key)
        elif (last is not None or begun) and not may_rerun:
            return Outcome(None, "its end is unknown", lost=True)
        else:
            key = self._next_key(service, slot)
        place = Place(
            f"{self.host.runtime}/run/{self.intent.app}/+deploy/{self.intent.number}",
            self.app.owner_uid,
            os.environ.get("PATH", os.defpath),
        )

        def run(key: SpawnKey) -> Awaitable[Outcome]:
            return self.host.one_shots.run(
                command_spec(record, step, key, place, self.host.uid),
                timeout_s=step.timeout_s,
                on_line=lambda line: self.tell(label, "line", line=line),
                on_end=on_end,
            )

        outcome = await run(key)
        if outcome.lost and may_rerun:
            self.tell(label, "line", line="its process was lost, nobody knows how it ended: it is run once more")
            outcome = await run(self._next_key(service, slot))
        return outcome

    def command_failed(self, label: str, step: CommandStep, outcome: Outcome) -> AppError:
        command = " ".join(step.run)
        return AppError(
            f"{label} failed: `{command}` {outcome.text}",
            where=f"release {self.intent.release} in {self.spec.deploy_to}",
            detail=self.redacted("\n".join(outcome.tail)),
            serving=self.serving(),
            remedy="mend it, commit, and deploy again",
        )
