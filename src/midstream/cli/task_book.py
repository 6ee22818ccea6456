"""The tasks of the project's `deploy.py` for one command: loaded, with the terminal to ask at.

Runs in the command line. What tasks are is `deploy/tasks/`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from midstream.deploy.tasks.book import TaskBook
from midstream.deploy.tasks.loading import load_tasks
from midstream.errors import OperatorError


def open_book(folder: str | os.PathLike[str], given: Mapping[str, str] | None = None) -> TaskBook:
    """The book of the project in `folder` ("": here). Raises OperatorError with file and line."""
    registry, note = load_tasks(os.fspath(folder) or os.getcwd())
    if note:
        click.echo(f"note: {note}", err=True)
    return TaskBook(registry, dict(given or {}))


def open_book_with(folder: str | os.PathLike[str], words: Sequence[str]) -> TaskBook:
    """The same, with the NAME=VALUE of each `--set`, which only a deploy.py could read. Raises OperatorError too for words
    of another form."""
    book = open_book(folder, settings_of(words, "--set NAME=VALUE"))
    if words and not book.registry.tasks:
        raise OperatorError(
            "--set is for the tasks of deploy.py, and there are none",
            where=os.fspath(folder) or os.getcwd(),
            remedy="leave --set out; a variable of the app goes into [env] of midstream.toml",
        )
    return book


def settings_of(words: Sequence[str], usage: str = "midstream run [STAGE] TASK [NAME=VALUE]…") -> dict[str, str]:
    """`NAME=VALUE…` of a command line. usage: what to write. Raises OperatorError for a word of another form."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.strip():
            raise OperatorError(f"{word!r} is not NAME=VALUE", remedy=usage)
        found[name] = value
    return found


class Asking:
    """Asks at the terminal, from a task's thread, while the display is out of the way. `restore` when the command ends:
    a question that was interrupted has left the terminal as it was during the question."""

    def __init__(self, pause: Callable[[], None] = lambda: None, go_on: Callable[[], None] = lambda: None) -> None:
        self._pause, self._go_on = pause, go_on
        self._terminal: list[Any] | None = None

    def __call__(self, question: str, echo: bool) -> str:
        if not sys.stdin.isatty():
            raise OperatorError(
                "there is no terminal to ask at",
                remedy="run it at a terminal, or give the answer on the command line",
            )
        import termios

        self._terminal = termios.tcgetattr(sys.stdin.fileno())
        self._pause()
        try:
            return str(click.prompt(question, default="", show_default=False, hide_input=not echo, err=True))
        except click.Abort:
            raise OperatorError("the question was not answered", remedy="run it again, and answer") from None
        finally:
            self._go_on()

    def restore(self) -> None:
        if self._terminal is not None:
            import termios

            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._terminal)
