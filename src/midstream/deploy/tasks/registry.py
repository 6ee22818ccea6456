"""`Registry`: the tasks of one `deploy.py`, where they are attached to the deploy, and its settings.

No I/O and no hidden state: whoever wants tasks makes a registry and fills it. What is wrong in the file is told with its
file and line (`errors_at`). What a task may do is `run.py`.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any, TypeVar

from midstream.core.plan import Attached
from midstream.core.points import POINTS, point_of
from midstream.core.values import dataclass
from midstream.errors import OperatorError

F = TypeVar("F", bound=Callable[..., Any])
Words = str | Sequence[str]


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """One task. roles: its hosts; empty: all. once: on the first of them alone. per_host: its function takes a host and
    is called for each of them. undo: the task that takes it back when the deploy fails."""

    name: str
    work: Callable[..., Any]
    description: str = ""
    roles: tuple[str, ...] = ()
    once: bool = False
    per_host: bool = False
    undo: str = ""
    where: str = ""  # file:line


@dataclass(frozen=True, slots=True)
class Question:
    """A setting that the operator is asked for when it is first wanted. echo False: it is a secret."""

    text: str
    echo: bool = True
    default: str | None = None


@dataclass(slots=True)
class Registry:
    """Tasks by name, in the order in which they were made."""

    tasks: dict[str, TaskEntry] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    _attached: list[tuple[str, str, str]] = field(default_factory=list)  # when, point or task, task

    def task(
        self,
        name: str,
        *,
        description: str = "",
        roles: Words = (),
        once: bool = False,
        undo: str | Callable[..., Any] = "",
    ) -> Callable[[F], F]:
        """Makes a task of the function below: `def work(run)`, or `def work(run, host)`, which is called for each of its
        hosts. Its description is the first line of its docstring where none is given."""
        where = _caller()

        def make(work: F) -> F:
            if not _is_task_name(name):
                raise OperatorError(
                    f"{name!r} is no name for a task: words of letters, digits, _ and -",
                    where=where,
                    remedy="rename it in deploy.py",
                )
            if point_of(name) is not None or name.startswith("deploy:"):
                raise OperatorError(
                    f"{name!r} is a task of Midstream itself", where=where, remedy="choose another name"
                )
            if name in self.tasks:
                raise OperatorError(
                    f"there are two tasks called {name!r}",
                    where=where,
                    detail=f"the other: {self.tasks[name].where}",
                    remedy="rename one, or put it into a namespace",
                )
            text = description or (inspect.getdoc(work) or "").partition("\n")[0]
            back = self._name_of(undo, where) if undo else ""
            per_host = _parameters(work, where) == 2
            self.tasks[name] = TaskEntry(name, work, text, _words(roles), once, per_host, back, where)
            return work

        return make

    def namespace(self, name: str) -> Namespace:
        """`registry.namespace("sidekiq").task("stop")` is the task `sidekiq:stop`."""
        return Namespace(self, name)

    def before(self, point: str, task: str | Callable[..., Any]) -> None:
        """Runs `task` before a phase, a built-in task, `handover`, or another task of this file."""
        self._attach("before", point, task, _caller())

    def after(self, point: str, task: str | Callable[..., Any]) -> None:
        """Runs `task` after it. After a phase: once the phase has ended on all hosts."""
        self._attach("after", point, task, _caller())

    def set(self, name: str, value: Any) -> None:
        """A setting; a function is called when it is first wanted: with the run when it takes one argument."""
        self.settings[name] = value

    def ask(self, name: str, question: str = "", *, echo: bool = True, default: str | None = None) -> None:
        """A setting that the operator is asked for at the terminal when it is first wanted."""
        self.settings[name] = Question(question or f"{name}", echo, default)

    def entry(self, task: str | Callable[..., Any]) -> TaskEntry:
        """The task of that name, or of that function. Raises OperatorError when there is none."""
        return self.tasks[self._name_of(task, "")]

    def around(self, when: str, task: str) -> list[str]:
        """The tasks of this file that run before or after another one."""
        return [own for at, point, own in self._attached if at == when and point == task]

    def places(self) -> tuple[tuple[str, str, str], ...]:
        """All that was said with `before` and `after`: (when, point or task, task)."""
        return tuple(self._attached)

    def attached(self) -> tuple[Attached, ...]:
        """What lies at points of the deploy, for the plan. Raises OperatorError for what is attached to nothing."""
        found = []
        for when, point, task in self._attached:
            if point in self.tasks:
                continue
            meant = point_of(point)
            entry = self.tasks[task]
            if meant is None:
                near = difflib.get_close_matches(point, [*POINTS, *self.tasks], 1)
                raise OperatorError(
                    f"{when} {point}: there is no such phase or task",
                    where=entry.where,
                    remedy=f'did you mean "{near[0]}"?' if near else f"phases and tasks: {', '.join(POINTS)}",
                )
            found.append(Attached(when, meant, task, entry.description, entry.roles, entry.once))
        return tuple(found)

    def _attach(self, when: str, point: str, task: str | Callable[..., Any], where: str) -> None:
        self._attached.append((when, point, self._name_of(task, where)))

    def _name_of(self, task: str | Callable[..., Any], where: str) -> str:
        if isinstance(task, str):
            if task in self.tasks:
                return task
            near = difflib.get_close_matches(task, self.tasks, 1)
            raise OperatorError(
                f"there is no task {task!r}",
                where=where,
                remedy=f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self.tasks) or 'none yet'}",
            )
        for entry in self.tasks.values():
            if entry.work is task:
                return entry.name
        raise OperatorError(
            f"{getattr(task, '__name__', task)!r} is no task", where=where, remedy="put @registry.task(…) above it"
        )


@dataclass(frozen=True, slots=True)
class Namespace:
    """A registry whose names begin with `name:`."""

    registry: Registry
    name: str

    def task(
        self,
        name: str,
        *,
        description: str = "",
        roles: Words = (),
        once: bool = False,
        undo: str | Callable[..., Any] = "",
    ) -> Callable[[F], F]:
        return self.registry.task(f"{self.name}:{name}", description=description, roles=roles, once=once, undo=undo)

    def namespace(self, name: str) -> Namespace:
        return Namespace(self.registry, f"{self.name}:{name}")


def _words(value: Words) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _is_task_name(name: str) -> bool:
    return bool(name) and all(part.replace("_", "a").replace("-", "a").isalnum() for part in name.split(":"))


def _parameters(work: Callable[..., Any], where: str) -> int:
    if inspect.iscoroutinefunction(work):
        raise OperatorError(
            "a task is a plain function, not an `async def`",
            where=where,
            remedy="write `def`: tasks run in a thread of their own and may block",
        )
    try:
        needed = [p for p in inspect.signature(work).parameters.values() if p.default is p.empty]
    except (TypeError, ValueError):
        needed = []
    if len(needed) not in (1, 2):
        raise OperatorError(
            "a task takes (run), or (run, host)",
            where=where,
            remedy="def name(run), or def name(run, host) for one that runs once for each host",
        )
    return len(needed)


def _caller() -> str:
    """file:line of the first frame outside of this module."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""
