"""`midstream run` of a task of `deploy.py`: connects to the hosts, performs it, prints what it says. And `run --list`.

Owns the event loop for the time of the command.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from typing import Any

import click

from midstream.cli.hosts import Only
from midstream.cli.output import clean, echo_json, span
from midstream.cli.task_book import Asking
from midstream.core.points import PHASES, TASKS
from midstream.core.spec import AppSpec
from midstream.deploy.client import AgentClient
from midstream.deploy.events import EventKind
from midstream.deploy.redact import Redactor
from midstream.deploy.tasks.book import TaskBook
from midstream.deploy.tasks.performance import Performance
from midstream.deploy.tasks.registry import Registry
from midstream.deploy.tasks.seat import Seat
from midstream.deploy.transport import Host
from midstream.errors import InterruptedDeploy

MIGRATE = "deploy:migrate"
CONNECT_S = 5.0


def list_tasks(registry: Registry, as_json: bool) -> None:
    """The tasks that can be run, then the points that `before` and `after` can name."""
    rows: list[dict[str, Any]] = [{"task": MIGRATE, "description": "The commands of [migrate]", "builtin": True}]
    for name, entry in registry.tasks.items():
        where = [f"{when} {point}" for when, point, task in registry.places() if task == name]
        more = {"roles": list(entry.roles), "once": entry.once, "at": where, "where": entry.where}
        rows.append({"task": name, "description": entry.description, "builtin": False, **more})
    if as_json:
        for row in rows:
            echo_json(row)
        return
    width = max(len(row["task"]) for row in rows)
    for row in rows:
        at = f" ({', '.join(row['at'])})" if row.get("at") else ""
        click.echo(f"{row['task']:<{width}}  {row['description']}{at}".rstrip())
    click.echo(f"\nphases, for before and after: {', '.join(PHASES)}, handover")
    click.echo(f"tasks, likewise: {', '.join(TASKS)}")


def perform(
    book: TaskBook, task: str, stage: str | None, only: Only, config_path: str, socket: str, as_json: bool
) -> int:
    """Runs it to its end on the hosts of the stage. Raises the error it failed with, InterruptedDeploy after ^C."""
    from midstream.cli import project
    from midstream.deploy.config_file import read_secrets

    chosen = project.of_working_copy(config_path, stage, socket=socket, only=only)
    redact = Redactor(read_secrets(chosen.stage.secrets, chosen.file.folder))
    asking = book.ask = Asking()
    book.keep_secret = redact.keep
    show = _Show(redact, as_json, len(chosen.specs) > 1)
    try:
        asyncio.run(_perform(book, task, chosen.specs, chosen.reach, show))
    except asyncio.CancelledError:
        raise InterruptedDeploy(f"interrupted: task {task} did not end") from None
    finally:
        asking.restore()
    return 0


class _Show:
    """Prints what comes, a line at a time; from several threads and the loop."""

    def __init__(self, redact: Redactor, as_json: bool, several: bool) -> None:
        self._redact, self._as_json, self._several = redact, as_json, several

    def line(self, host: str, text: str) -> None:
        text = self._redact(text)
        if self._as_json:
            echo_json({"type": "output", "host": host, "line": text})
        else:
            click.echo((f"{host} | " if self._several and host else "") + clean(text))

    def task(self, task: str, phase: str, kind: EventKind, text: str, seconds: float | None) -> None:
        if kind is EventKind.LINE:
            self.line("", text)
        elif self._as_json:
            more = {"seconds": round(seconds, 3), "ok": not text} if seconds is not None else {}
            echo_json({"type": kind.value, "task": task, "text": self._redact(text), **more})
        elif kind is EventKind.NOTE:
            click.echo(f"note: {self._redact(text)}", err=True)
        elif kind is EventKind.END and not text and seconds is not None:
            click.echo(f"{task}: done in {span(seconds)}", err=True)


async def _perform(
    book: TaskBook, task: str, specs: Mapping[str, AppSpec], reach: Mapping[str, Host], show: _Show
) -> None:
    clients = {name: AgentClient(reach[name]) for name in specs}
    for name, client in clients.items():
        client.on_notice = _taker(name, show)
    loop, main = asyncio.get_running_loop(), asyncio.current_task()
    assert main is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, main.cancel)
    try:
        await asyncio.gather(*(client.start(give_up_s=CONNECT_S) for client in clients.values()))
        seats = [Seat(name, spec, clients[name]) for name, spec in specs.items()]
        await Performance(book, seats, show.task).perform(task, "")
    finally:
        await asyncio.gather(*(client.close() for client in clients.values()))


def _taker(host: str, show: _Show) -> Any:
    def take(method: str, params: dict[str, Any]) -> None:
        if method == "output":
            show.line(host, str(params.get("line", "")))

    return take
