"""What one deploy from the command line tells by `[notify]`, and when. The telling itself is `deploy/notify.py`.

Nothing here raises: a deploy is not failed by those who want to hear of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import click

from midstream.cli.project import Project
from midstream.deploy import notify
from midstream.deploy.events import Event, EventKind, Outcome
from midstream.deploy.order import Order
from midstream.deploy.redact import Redactor
from midstream.errors import MidstreamError


class Notices:
    """`event` for every event, then exactly one of `end` and `could_not_begin`. log: a line for the record."""

    def __init__(self, order: Order, project: Project, redact: Redactor, log: Callable[[str], None]) -> None:
        self._table = project.stage.notify
        self._source = project.source
        self._log = log
        self._is_begun = False
        target = order.target
        self._about = notify.About(
            order.plan.app,
            order.plan.stage,
            order.plan.kind.value,
            order.user,
            order.plan.hosts,
            target.branch if target else "",
            target.sha if target else "",
            target.subject if target else "",
        )
        urls: tuple[str, ...] = ()
        if self._table.urls:
            try:
                urls = notify.read_urls(self._table, project.file.folder)
            except MidstreamError as error:
                self._warn(f"nobody is notified: {error.what}: {' '.join(error.detail.split())}")
        for number, url in enumerate(urls):
            redact.keep(f"notify.urls[{number}]", url)
        self._notifier = notify.Notifier(urls, self._warn, redact)

    def _warn(self, text: str) -> None:
        self._log(f"warning: {text}")
        click.echo(f"midstream: warning: {text}", err=True)

    def event(self, event: Event) -> None:
        """Tells of the beginning: once all locks are held and all checks passed."""
        if event.kind is EventKind.STATE and event.text == "opened" and not self._is_begun:
            self._is_begun = True
            if "started" in self._table.on:
                self._notifier.tell(notify.started(self._about))

    def end(self, outcome: Outcome) -> None:
        """How it ended; waits a little for what is on its way."""
        if notify.occasions(outcome.error) & set(self._table.on):
            about = replace(
                self._about,
                branch=outcome.branch or self._about.branch,
                revision=outcome.revision or self._about.revision,
                commits=self._commits(outcome),
            )
            self._notifier.tell(notify.ended(about, outcome))
        self._notifier.close()

    def could_not_begin(self, error: MidstreamError) -> None:
        """Not even connected to all hosts."""
        if notify.occasions(error) & set(self._table.on):
            self._notifier.tell(notify.failed(self._about, error))
        self._notifier.close()

    def _commits(self, outcome: Outcome) -> tuple[str, ...]:
        """What it brings, or would have; none when the repository does not know what was committed before."""
        if not self._table.urls or self._source is None or not outcome.previous:
            return ()
        try:
            found = self._source.log(outcome.previous, outcome.revision)
        except (MidstreamError, OSError):
            return ()
        return tuple(f"{one.sha[:10]} {one.author}: {one.subject}" for one in found)
