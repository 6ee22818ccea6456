"""Commands that a deploy runs on this host: hooks and what the tasks of `deploy.py` do, and how they are undone.

A command is stored in the intent, with its undo, before it is started; so a repeated call attaches to it or is told its
end, and whatever ends the deploy (an error, an interrupt, the deployer's death) finds what has to be undone, also after a
restart of the agent. The process runs as a one-shot under the app's user. Runs in the agent's loop.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from midstream.agent import crashpoint
from midstream.agent.host import Host
from midstream.agent.oneshots import Outcome
from midstream.agent.params import OF_THE_CLIENT
from midstream.agent.spawning import Place, command_spec
from midstream.agent.store import GenerationRecord
from midstream.agent.updating import read_env_files
from midstream.agent.work import Work
from midstream.core import placeholders
from midstream.core.intent import CommandRecord, CommandState
from midstream.core.messages import FdPlacement, ProcessState, SpawnSpec
from midstream.core.names import SpawnKey, parse_key
from midstream.core.plan import Phase
from midstream.core.spec import CommandStep
from midstream.errors import AppError, HostError, MidstreamError, OperatorError

HOOK = "+hook"
UNDO = "+undo"
COMMANDS_MAX = 2000  # of one deploy
STDIN_MAX_BYTES = 1 << 20
CAPTURE_MAX_BYTES = 4 << 20
_WHERE = ("release", "current", "deploy_to")
_NAMES = ("hook ", "task ")  # a step of the journal is called so; built-in ones never are
_PHASES = frozenset(phase.value for phase in Phase)


@dataclass(frozen=True, slots=True)
class Command:
    """The parameters of `deploy.command`, and, without `name`, those of `run`. where: the release that is being made, the
    committed one, or `deploy_to`; cwd: a folder below that, or an absolute one. check: a failure fails the call. capture:
    its stdout is part of the answer, and it may be run again. undo: as `argv`, run when the deploy fails."""

    argv: tuple[str, ...]
    name: str = ""
    shell: bool = False
    env: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 1800.0
    where: str = "current"
    cwd: str = ""
    stdin: str | None = None
    capture: bool = False
    check: bool = True
    undo: tuple[str, ...] = ()
    undo_shell: bool = False
    undo_timeout_s: float = 1800.0
    phase: str = ""

    def refuse_nonsense(self) -> None:
        """Raises OperatorError for what could not be started."""
        words = (*self.argv, *self.undo, *self.env, *self.env.values(), self.cwd)
        if not self.argv or not self.argv[0]:
            raise OperatorError(
                "a command has at least one word", where="argv", remedy="write the program into `run` of that hook"
            )
        if any("\0" in word for word in words):
            raise OperatorError(
                "a NUL byte cannot be passed to a process", where="argv", remedy="take it out of `run` of that hook"
            )
        if any(not name or "=" in name for name in self.env):
            raise OperatorError(
                "that is no name of a variable", where="env", remedy="letters, digits and _, not a digit first"
            )
        for one in (found for word in words for found in placeholders.find(word)):
            if one.word not in placeholders.IN_ENV or one.name:
                raise OperatorError(
                    f"unknown placeholder {one}; write {{{one}}} if it is meant as it stands",
                    where="argv",
                    remedy="docs/configuration.md has a list of them",
                )
        if self.where not in _WHERE:
            raise OperatorError(f"where is one of {', '.join(_WHERE)}", where="where", remedy=OF_THE_CLIENT)
        if len((self.stdin or "").encode()) > STDIN_MAX_BYTES:
            raise OperatorError(f"stdin has at most {STDIN_MAX_BYTES} bytes", where="stdin", remedy="upload a file")
        for seconds in (self.timeout_s, self.undo_timeout_s):
            if not 0 < seconds <= 1e7:
                raise OperatorError(
                    "a time-out is a number of seconds above 0", where="timeout_s", remedy='timeout = "5m" in that hook'
                )


async def run(work: Work, command: Command) -> dict[str, Any]:
    """Runs it, or attaches to it, or tells how it ended. `{code, text, ok, output?}`. Raises AppError when it failed and
    `check` is set, HostError when its end is unknown."""
    command.refuse_nonsense()
    if not command.name.startswith(_NAMES) or not command.name.isprintable() or len(command.name) > 200:
        raise OperatorError(
            "name is missing, or not `hook …` or `task …`: a repeated call is known by it",
            where="name",
            remedy=OF_THE_CLIENT,
        )
    if work.over:
        return {"code": 0, "text": "was passed over: this deploy has ended here", "ok": True, "output": ""}
    known = _find(work, command.name)
    if known is not None and known.state is not CommandState.BEGUN and not command.capture:
        return _answer(work, command, known, known.text, "")
    if command.phase in _PHASES:
        work.phase = command.phase
    with work.step(command.name):
        record = known or await _begin(work, command)
        if known is None or command.capture or _attachable(work, record):
            outcome, output = await _process(work, command, record)
        else:
            outcome, output = Outcome(None, "its end is unknown", lost=True), ""
        if outcome.lost:
            raise HostError(
                f"the end of {command.name} is unknown: its process was lost",
                where=work.spec.deploy_to,
                serving=work.serving(),
                remedy="look what it did; what undoes it is run now",
            )
        ended = _find(work, command.name) or record
        return _answer(work, command, ended, "\n".join(outcome.tail), output)


def _answer(work: Work, command: Command, record: CommandRecord, detail: str, output: str) -> dict[str, Any]:
    ok = record.code == 0
    if not ok and command.check:
        raise AppError(
            f"{command.name} failed: `{' '.join(command.argv)}` {record.text}",
            where=work.spec.deploy_to,
            detail=work.redacted(detail),
            serving=work.serving(),
            remedy="mend it, and deploy again",
        )
    return {"code": record.code, "text": record.text, "ok": ok, "output": output}


def _find(work: Work, name: str) -> CommandRecord | None:
    return next((item for item in work.intent.commands if item.name == name), None)


def _put(work: Work, record: CommandRecord) -> None:
    others = [record if item.name == record.name else item for item in work.intent.commands]
    if record not in others:
        others.append(record)
    work.save(commands=tuple(others))


async def _begin(work: Work, command: Command) -> CommandRecord:
    """Stored before it is started: from here on its undo is run in every way of failing."""
    files = await _env_files(work, command) if command.undo else {}
    slot = len(work.intent.commands)
    if slot >= COMMANDS_MAX:
        raise OperatorError(
            f"a deploy runs at most {COMMANDS_MAX} commands on a host",
            where=command.name,
            remedy="put commands together in a script, and run that",
        )
    undo = None
    if command.undo:
        step = CommandStep(command.undo, shell=command.undo_shell, env=command.env)
        undo = _spawn_spec(work, command, step, UNDO, slot, files)
    record = CommandRecord(command.name, slot, undo=undo, undo_timeout_s=command.undo_timeout_s)
    _put(work, record)
    return record


def _attachable(work: Work, record: CommandRecord) -> bool:
    last = work.host.one_shots.last_attempt(work.intent.app, HOOK, work.intent.number, record.slot)
    return last is not None and last.state is not ProcessState.LOST


async def _process(work: Work, command: Command, record: CommandRecord) -> tuple[Outcome, str]:
    step = CommandStep(command.argv, shell=command.shell, timeout_s=command.timeout_s, env=command.env)
    spec = _spawn_spec(work, command, step, HOOK, record.slot, await _env_files(work, command))
    last = work.host.one_shots.last_attempt(work.intent.app, HOOK, work.intent.number, record.slot)
    if last is not None:
        attempt = parse_key(last.key).attempt + (1 if command.capture else 0)
        spec = replace(spec, key=str(replace(parse_key(spec.key), attempt=attempt)))

    def ended(outcome: Outcome) -> None:
        state = CommandState.DONE if outcome.ok else CommandState.FAILED
        code = outcome.code if not outcome.timed_out else None
        _put(work, replace(record, state=state, code=code, text=outcome.text))

    return await follow(
        work.host,
        spec,
        command,
        on_line=lambda line: work.tell(command.name, "line", line=line),
        on_end=ended,
    )


async def _env_files(work: Work, command: Command) -> dict[str, dict[str, str]]:
    """Of the release that is being made, where the command runs in it."""
    if command.where != "release" or not work.intent.release:
        return {}
    return await read_env_files(work.spec, work.intent.release, work.app.owner_uid, work.host.uid)


def _spawn_spec(
    work: Work, command: Command, step: CommandStep, service: str, slot: int, files: dict[str, dict[str, str]]
) -> SpawnSpec:
    """Environment and folder: of the release that is being made once it is there, else of the committed one."""
    intent, app = work.intent, work.app
    record: GenerationRecord | None = None
    if command.where == "release" and intent.release:
        committed = work.host.record(app.app, app.committed_generation)
        secrets = work.secrets or (dict(committed.secrets) if committed else {})
        record = GenerationRecord(0, intent.release, work.spec, secrets, files)
    else:
        record = work.host.record(app.app, app.committed_generation)
    cwd = ""
    if record is None:  # a first deploy, before its release is there
        record = GenerationRecord(0, "", work.spec, work.secrets)
        cwd = work.spec.deploy_to if work.done("deploy:check") else "/"
    if command.where == "deploy_to":
        cwd = work.spec.deploy_to
    place = Place(
        f"{work.host.runtime}/run/{intent.app}/+deploy/{intent.number}",
        app.owner_uid,
        os.environ.get("PATH", os.defpath),
    )
    key = SpawnKey(intent.app, service, intent.number, slot, 0)
    return placed(command_spec(record, step, key, place, work.host.uid, cwd=cwd), command.cwd)


def placed(spec: SpawnSpec, cwd: str) -> SpawnSpec:
    """The process in `cwd`, an absolute folder or one below its own."""
    return replace(spec, cwd=os.path.join(spec.cwd, cwd)) if cwd else spec


async def follow(host: Host, spec: SpawnSpec, command: Command, **told: Any) -> tuple[Outcome, str]:
    """Runs a one-shot with `stdin`, and with its stdout taken aside where it is to be captured."""
    with _given(command.stdin) as stdin, _Capture.opened(command.capture) as capture:
        fds: list[int] = []
        placements = list(spec.fds)
        for target, fd in ((0, stdin), (1, capture.write_fd if capture else None)):
            if fd is not None:
                placements = [item for item in placements if item.target != target]
                placements.append(FdPlacement(target, f"passed:{len(fds)}"))
                fds.append(fd)
        spec = replace(spec, fds=tuple(placements))
        if capture is not None:
            capture.too_much = lambda: host.keep(asyncio.get_running_loop().create_task(host.one_shots.stop(spec.key)))
        outcome = await host.one_shots.run(spec, fds=tuple(fds), timeout_s=command.timeout_s, **told)
        if capture is None:
            return outcome, ""
        text = capture.text()
        if capture.overflowed:
            raise AppError(
                f"`{' '.join(command.argv)}` printed more than {CAPTURE_MAX_BYTES} bytes",
                remedy="let it write a file, and download that",
            )
        return outcome, text


@contextmanager
def _given(stdin: str | None) -> Iterator[int | None]:
    if stdin is None:
        yield None
        return
    fd = os.memfd_create("midstream-stdin", os.MFD_CLOEXEC)
    try:
        os.write(fd, stdin.encode())
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


class _Capture:
    """The stdout of one process, in memory, up to a limit."""

    def __init__(self) -> None:
        self._read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read_fd, False)
        self._data = bytearray()
        self.overflowed = False
        self.too_much: Any = lambda: None
        asyncio.get_running_loop().add_reader(self._read_fd, self._take)

    @classmethod
    @contextmanager
    def opened(cls, wanted: bool) -> Iterator[_Capture | None]:
        if not wanted:
            yield None
            return
        capture = cls()
        try:
            yield capture
        finally:
            asyncio.get_running_loop().remove_reader(capture._read_fd)
            os.close(capture._read_fd)
            os.close(capture.write_fd)

    def _take(self) -> bool:
        try:
            data = os.read(self._read_fd, 65536)
        except BlockingIOError:
            return False
        if len(self._data) + len(data) > CAPTURE_MAX_BYTES:
            if not self.overflowed:
                self.overflowed = True
                self.too_much()
            return bool(data)  # read and thrown away, until it is stopped
        self._data += data
        return bool(data)

    def text(self) -> str:
        for _ in range(1024):  # what is still in the pipe, and no more than that
            if not self._take():
                break
        return self._data.decode("utf-8", "replace")


async def undo_all(work: Work) -> list[str]:
    """Runs the undo of every command that was begun, the last first. Idempotent. Returns the failures in words: the next
    ones are undone all the same. Called when a deploy ends in any other way than well."""
    app, number = work.intent.app, work.intent.number
    for key in work.host.one_shots.running():
        parsed = parse_key(key)
        if (parsed.app, parsed.service, parsed.generation) == (app, HOOK, number):
            await work.host.one_shots.stop(key)
    failures = []
    for record in reversed(work.intent.commands):
        if record.undo is None or record.state in (CommandState.UNDONE, CommandState.NOT_UNDONE):
            continue
        why = await _undo(work, record, record.undo)
        if why:
            failures.append(f"{record.name}: its undo {why}")
        after = replace(record, state=CommandState.NOT_UNDONE if why else CommandState.UNDONE)
        _quietly(lambda after=after: _put(work, after))  # type: ignore[misc]
    return failures


async def _undo(work: Work, record: CommandRecord, undo: SpawnSpec) -> str:
    """ "" or why it failed. One that an earlier agent began is waited for; one whose end nobody knows is run again."""
    label = f"undo {record.name}"
    last = work.host.one_shots.last_attempt(work.intent.app, UNDO, work.intent.number, record.slot)
    if last is not None:
        key = parse_key(last.key)
        again = last.state is ProcessState.LOST
        undo = replace(undo, key=str(replace(key, attempt=key.attempt + 1) if again else key))
    work.phase = "reverting"
    begun = time.monotonic()
    work.tell(label, "begin")
    _quietly(lambda: work.host.store.journal(work.intent.id, label, "begin"))
    crashpoint.point(f"in {label}", work.host.keeper_pid)
    try:
        outcome = await work.host.one_shots.run(
            undo, timeout_s=record.undo_timeout_s, on_line=lambda line: work.tell(label, "line", line=line)
        )
        why = "" if outcome.ok else f"`{' '.join(undo.argv)}` {outcome.text}"
    except MidstreamError as error:
        why = error.what
    why = work.redacted(why)
    crashpoint.point(f"after {label}", work.host.keeper_pid)
    _quietly(lambda: work.host.store.journal(work.intent.id, label, "failed" if why else "done", why))
    work.tell(label, "end", ok=not why, seconds=time.monotonic() - begun, line=why)
    if why:
        work.host.note(work.intent.app, "", "attention", f"{label}: {why}")
    return why


def _quietly(write: Callable[[], None]) -> None:
    """A full disk must not stop the way back; an undo is made to be run twice."""
    try:
        write()
    except HostError:
        pass
