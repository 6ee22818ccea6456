"""`TaskRun`: what a task of `deploy.py` is given: hosts, settings, questions, other tasks.

One for each performance of a task, all on the same desk. Plain blocking methods, called in threads of the deployer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from midstream.deploy.tasks.registry import Question
from midstream.deploy.tasks.remote import Hosts, RemoteHost
from midstream.deploy.tasks.selection import Selection, all_hosts
from midstream.errors import OperatorError

if TYPE_CHECKING:
    from midstream.deploy.tasks.performance import Performance

_MISSING = object()


class TaskRun:
    """`task`, `phase`: which one this is, and where in the deploy ("" outside of one). only: the hosts it is limited to,
    as at `handover`; empty: all."""

    def __init__(self, performance: Performance, task: str, phase: str, only: tuple[str, ...] = ()) -> None:
        self._performance = performance
        self.task = task
        self.phase = phase
        self._only = only

    # -- hosts -----------------------------------------------------------------------------------------------------

    def on(self, selection: Selection = all_hosts, *, at_once: int = 0, pause_s: float = 0.0) -> Hosts:
        """The hosts that are meant, in the stage's order; none is no error, and is told. at_once: see `Hosts`."""
        hosts = [
            RemoteHost(seat, self)
            for seat in self._performance.seats
            if selection.takes(seat.name, seat.spec.roles) and (not self._only or seat.name in self._only)
        ]
        if not hosts:
            meant = "/".join((*selection.roles, *selection.names)) or "any"
            self._performance.note(
                self.task, self.phase, f"{self.task}: no host here is {meant}: nothing is done there"
            )
        return Hosts(tuple(hosts), at_once, pause_s)

    def primary(self, role: str) -> RemoteHost:
        """The first host of the role. Raises OperatorError when there is none."""
        for seat in self._performance.seats:
            if role in seat.spec.roles:
                return RemoteHost(seat, self)
        raise OperatorError(
            f'no host of the stage has role "{role}"',
            where=self.task,
            remedy="give a host of the stage that role in midstream.toml, or name another one in deploy.py",
        )

    def _any(self) -> RemoteHost:
        return RemoteHost(self._performance.seats[0], self)

    @property
    def release_path(self) -> str:
        """Of the first host; see `RemoteHost.release_path`."""
        return self._any().release_path

    @property
    def current_path(self) -> str:
        return self._any().current_path

    @property
    def shared_path(self) -> str:
        return self._any().shared_path

    @property
    def deploy_to(self) -> str:
        return self._any().deploy_to

    @property
    def app(self) -> str:
        return self._performance.seats[0].spec.app

    @property
    def stage(self) -> str:
        return self._performance.seats[0].spec.stage

    @property
    def branch(self) -> str:
        return self._performance.seats[0].spec.branch

    # -- settings --------------------------------------------------------------------------------------------------

    def fetch(self, name: str, default: Any = _MISSING) -> Any:
        """A setting: from the command line, `set`, or the registry; a function or a question is answered once."""
        return self._performance.setting(name, default, self, _MISSING)

    def set(self, name: str, value: Any) -> None:
        """Sets it for the rest of this run."""
        self._performance.settings[name] = value

    def ask(self, question: str, *, echo: bool = True, default: str | None = None) -> str:
        """The operator's answer, at the terminal. echo False: what is typed is not shown, and never printed."""
        return self._performance.answer(question, Question(question, echo, default))

    # -- the rest --------------------------------------------------------------------------------------------------

    def invoke(self, task: str | Callable[..., Any], *, again: bool = False) -> None:
        """Runs another task, with what is before and after it; one that has run already only `again`."""
        entry = self._performance.book.registry.entry(task)
        self._performance.invoke(entry.name, self.phase, self._only, again=again)

    def say(self, text: str) -> None:
        """One line of the deploy's output and log."""
        self._performance.say(self.task, self.phase, str(text))

    def wait_for(self, work: Any) -> Any:
        """For hosts: has the event loop do it."""
        return self._performance.wait_for(work)

    def next_name(self, host: str) -> str:
        return self._performance.next_name(self.task, host)


def called_with(value: Callable[..., Any], run: TaskRun) -> Any:
    """A lazily computed setting: with the run where it takes an argument."""
    return value(run) if inspect.signature(value).parameters else value()
