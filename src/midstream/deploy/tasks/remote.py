"""What a task does on hosts: `RemoteHost` and `Hosts`, plain blocking objects. `within`, `with_env` and `as_user` give new
ones and change nothing, so that no state outlives the line it was meant for.

Used in threads of the deployer; the event loop does the work (`desk`).
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field, replace
from typing import Any, Protocol, TypeVar

from midstream.core.layout import Layout
from midstream.core.placeholders import escape
from midstream.core.values import dataclass
from midstream.deploy.tasks.seat import Seat
from midstream.errors import AppError, MidstreamError, OperatorError

T = TypeVar("T")
DOWNLOAD_MAX_BYTES = 1 << 30


class Desk(Protocol):
    """What a host needs of the run it belongs to."""

    task: str
    phase: str

    def wait_for(self, work: Any) -> Any: ...
    def next_name(self, host: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended. code None: by a signal or a time-out. output: its stdout, where it was captured."""

    code: int | None
    text: str
    output: str = ""

    @property
    def ok(self) -> bool:
        return self.code == 0


@dataclass(frozen=True, slots=True)
class RemoteHost:
    """One host. Commands run as the app's user with the app's environment, in the new release once it is there, else in
    the committed one. A string is split by shell rules and no shell runs, unless `shell=True`."""

    _seat: Seat
    _desk: Desk
    _cwd: str = ""
    _env: Mapping[str, str] = field(default_factory=dict)
    _user: str = ""

    @property
    def name(self) -> str:
        return self._seat.name

    @property
    def roles(self) -> tuple[str, ...]:
        return self._seat.spec.roles

    @property
    def release_path(self) -> str:
        """The folder of the new release. Raises OperatorError as long as there is none: it never means `current`."""
        release = self._seat.release()
        if not release:
            raise OperatorError(
                f"there is no new release on {self.name} yet",
                where=self._desk.task,
                remedy="attach the task to a later point (after updating), or use current_path",
            )
        return Layout(self.deploy_to).release(release)

    @property
    def current_path(self) -> str:
        return Layout(self.deploy_to).current

    @property
    def shared_path(self) -> str:
        return Layout(self.deploy_to).shared

    @property
    def deploy_to(self) -> str:
        return self._seat.spec.deploy_to

    def within(self, path: str) -> RemoteHost:
        """The same host, with commands run in `path`: absolute, or below the folder they would run in."""
        return replace(self, _cwd=os.path.join(self._cwd, path))

    def with_env(self, **variables: object) -> RemoteHost:
        """The same host, with further variables for its commands."""
        return replace(self, _env={**self._env, **{name: str(value) for name, value in variables.items()}})

    def as_user(self, user: str) -> RemoteHost:
        """The same host, with commands run by `sudo` as `user`; sudo must allow it without a password."""
        return replace(self, _user=user)

    def __enter__(self) -> RemoteHost:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(
        self,
        *command: str | Sequence[str],
        shell: bool = False,
        sudo: bool = False,
        user: str = "",
        timeout_s: float = 1800.0,
        stdin: str | None = None,
        undo: str | Sequence[str] = (),
    ) -> Result:
        """Runs it to its end; its output is shown. Raises AppError when it fails.

        undo: a command that takes back what this one did; the host's agent runs it in every way in which the deploy can
        fail from now on, also when this deployer is killed.
        """
        return self._command(command, shell, sudo, user, timeout_s=timeout_s, stdin=stdin, undo=undo)

    def test(
        self, *command: str | Sequence[str], shell: bool = False, sudo: bool = False, user: str = "",
        timeout_s: float = 1800.0,
    ) -> bool:  # fmt: skip
        """Whether it ends with exit code 0."""
        return self._command(command, shell, sudo, user, timeout_s=timeout_s, check=False).ok

    def capture(
        self, *command: str | Sequence[str], shell: bool = False, sudo: bool = False, user: str = "",
        timeout_s: float = 1800.0,
    ) -> str:  # fmt: skip
        """What it prints to stdout, without the newlines at its end; at most 4 MiB. A question: it may be asked twice."""
        return self._command(command, shell, sudo, user, timeout_s=timeout_s, capture=True).output.rstrip("\n")

    def upload(self, source: str | os.PathLike[str] | bytes, path: str, *, mode: int = 0o644) -> None:
        """Puts a file there, whole at once: a local path, or bytes. A relative `path` begins at deploy_to."""
        if isinstance(source, bytes):
            data = source
        else:
            try:
                with open(source, "rb") as file:
                    data = file.read()
            except OSError as error:
                raise OperatorError(
                    f"cannot be uploaded: {error.strerror}",
                    where=str(source),
                    remedy="name a file that is there and may be read",
                ) from error
        self._desk.wait_for(self._seat.write(os.path.join(self._base(), path), data, mode))

    def download(self, path: str, target: str | os.PathLike[str] | None = None) -> bytes:
        """The bytes of a file; also written to the local file `target` where one is given."""
        work = self._seat.read(os.path.join(self._base(), path), DOWNLOAD_MAX_BYTES)
        data: bytes = self._desk.wait_for(work)
        if target is not None:
            try:
                with open(target, "wb") as file:
                    file.write(data)
            except OSError as error:
                raise OperatorError(
                    f"cannot be written: {error.strerror}",
                    where=str(target),
                    remedy="name a file in a folder that is there and may be written",
                ) from error
        return data

    def _base(self) -> str:
        return self._cwd if os.path.isabs(self._cwd) else self.deploy_to

    def _command(
        self,
        command: Sequence[str | Sequence[str]],
        shell: bool,
        sudo: bool,
        user: str,
        *,
        check: bool = True,
        undo: str | Sequence[str] = (),
        **more: Any,
    ) -> Result:
        user = user or self._user or ("root" if sudo else "")
        argv = words_of(command, shell, user, self._env)
        env = {} if user else {key: escape(value) for key, value in self._env.items()}
        wanted: dict[str, Any] = {name: value for name, value in more.items() if value is not None}
        wanted |= {"argv": _as_they_are(argv), "cwd": self._cwd, "env": env, "shell": shell and not user}
        wanted |= {"where": "release" if self._seat.release() else "current", "phase": self._desk.phase}
        if undo:
            wanted["undo"] = _as_they_are(words_of((undo,), shell, user, self._env))
            wanted["undo_shell"] = shell and not user
        answer = self._desk.wait_for(self._seat.command(self._desk.next_name(self.name), {**wanted, "check": False}))
        result = Result(answer.get("code"), str(answer.get("text", "")), str(answer.get("output", "")))
        if check and not result.ok:
            raise AppError(
                f"`{' '.join(argv)}` {result.text} on {self.name}",
                where=self.name,
                remedy="its own lines above say why; host.test(…) takes a failure for an answer",
            )
        return result


def words_of(command: Sequence[str | Sequence[str]], shell: bool, user: str, env: Mapping[str, str]) -> list[str]:
    """The argv: one string is split by shell rules; several words, or a list, are taken as they are."""
    parts: list[str] = []
    for one in command:
        parts += [one] if isinstance(one, str) else [str(word) for word in one]
    if len(command) == 1 and isinstance(command[0], str) and not shell:
        try:
            parts = shlex.split(command[0])
        except ValueError as error:
            raise OperatorError(f"{command[0]!r}: {error}", remedy="mend the quotes, or give a list of words") from None
    if not parts:
        raise OperatorError("a command has at least one word", remedy='host.run("PROGRAM", "ARGUMENT")')
    if not user:
        return [" ".join(parts)] if shell else parts
    inner = ["/bin/sh", "-c", " ".join(parts)] if shell else parts
    variables = [f"{name}={value}" for name, value in env.items()]
    return ["sudo", "-n", "-u", user, "--", *(["env", *variables] if variables else []), *inner]


def _as_they_are(words: Sequence[str]) -> list[str]:
    """Braces in a task's command are the command's own: what Midstream fills in elsewhere, Python has here."""
    return [escape(word) for word in words]


@dataclass(frozen=True, slots=True)
class Hosts:
    """Several hosts: `for host in hosts` is one after the other; `each` and the commands are at the same time, or
    `at_once` of them, with `pause_s` between the groups."""

    hosts: tuple[RemoteHost, ...]
    at_once: int = 0
    pause_s: float = 0.0

    def __iter__(self) -> Iterator[RemoteHost]:
        return iter(self.hosts)

    def __len__(self) -> int:
        return len(self.hosts)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(host.name for host in self.hosts)

    def within(self, path: str) -> Hosts:
        return replace(self, hosts=tuple(host.within(path) for host in self.hosts))

    def with_env(self, **variables: object) -> Hosts:
        return replace(self, hosts=tuple(host.with_env(**variables) for host in self.hosts))

    def as_user(self, user: str) -> Hosts:
        return replace(self, hosts=tuple(host.as_user(user) for host in self.hosts))

    def in_groups(self, at_once: int, pause_s: float = 0.0) -> Hosts:
        """The same hosts, `at_once` of them at a time; 1 is one after the other."""
        return replace(self, at_once=at_once, pause_s=pause_s)

    def each(self, work: Callable[[RemoteHost], T]) -> list[T]:
        """`work(host)` on each; the results in the order of the hosts. Every one of a group runs to its end; the first
        error is raised then, and no further group begins."""
        size = self.at_once if self.at_once > 0 else max(len(self.hosts), 1)
        results: list[T] = []
        for start in range(0, len(self.hosts), size):
            if start and self.pause_s:
                time.sleep(self.pause_s)
            group = self.hosts[start : start + size]
            with ThreadPoolExecutor(max_workers=len(group)) as pool:
                futures = [pool.submit(work, host) for host in group]
            failed = [future.exception() for future in futures if future.exception() is not None]
            if failed:
                raise _first(failed)
            results += [future.result() for future in futures]
        return results

    def run(self, *command: str | Sequence[str], **how: Any) -> list[Result]:
        return self.each(lambda host: host.run(*command, **how))

    def capture(self, *command: str | Sequence[str], **how: Any) -> list[str]:
        return self.each(lambda host: host.capture(*command, **how))

    def test(self, *command: str | Sequence[str], **how: Any) -> list[bool]:
        return self.each(lambda host: host.test(*command, **how))

    def upload(self, source: str | os.PathLike[str] | bytes, path: str, *, mode: int = 0o644) -> None:
        self.each(lambda host: host.upload(source, path, mode=mode))


def _first(errors: Sequence[BaseException | None]) -> BaseException:
    """The first of ours, else the first."""
    found = [error for error in errors if error is not None]
    return next((error for error in found if isinstance(error, MidstreamError)), found[0])
