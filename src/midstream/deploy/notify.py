"""Tells people of a deploy, through apprise: what is told, and the telling, which never delays or fails the deploy.

Each address has a thread of its own, so that one that hangs keeps no other waiting, and each gets what it is told in
order. What goes wrong is one warning. An address holds tokens, so none is ever part of a message: only its number in
`[notify] urls` and its scheme are. Runs in the deployer. apprise is imported when there is something to tell.
"""

from __future__ import annotations

import importlib.util
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from midstream.core.config_tables import NotifyTable
from midstream.core.values import dataclass
from midstream.deploy.config_file import read_secrets
from midstream.deploy.events import Outcome
from midstream.deploy.redact import Redactor
from midstream.errors import EXIT_ATTENTION, EXIT_INTERRUPTED, LockedError, MidstreamError

PATIENCE_S = 10.0  # at the end of a deploy, for what is still on its way
COMMITS_MAX = 20
_MARKS = {"started": "info", "finished": "success", "failed": "failure", "interrupted": "warning"}

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Message:
    """What is told. mark: info, success, warning or failure, in the words of apprise."""

    title: str
    body: str
    mark: str = "info"


@dataclass(frozen=True, slots=True)
class About:
    """The deploy that is told of. kind: deploy or rollback. commits: what it brings, newest first, a line each."""

    app: str
    stage: str
    kind: str
    user: str
    hosts: tuple[str, ...]
    branch: str = ""
    revision: str = ""
    subject: str = ""
    commits: tuple[str, ...] = ()


def occasions(error: MidstreamError | None) -> frozenset[str]:
    """The words of `[notify] on` that the end of a deploy is. A deploy that was refused because somebody else has the
    lock is none: he who asked was told."""
    if error is None:
        return frozenset({"finished"})
    if isinstance(error, LockedError):
        return frozenset()
    if error.exit_code == EXIT_INTERRUPTED:
        return frozenset({"interrupted"})
    return frozenset({"failed", "attention"} if error.exit_code == EXIT_ATTENTION else {"failed"})


def started(about: About) -> Message:
    """It has its locks, and begins."""
    return Message(f"{_name(about)}: {about.kind} started by {about.user}", "\n".join(_what(about)), _MARKS["started"])


def ended(about: About, outcome: Outcome) -> Message:
    """How it ended, with what failed and what to do about it."""
    if outcome.error is not None:
        return failed(about, outcome.error, outcome.seconds)
    verb = "is on" if about.kind == "deploy" else "is back on"
    title = f"{_name(about)} {verb} release {outcome.release}"
    lines = [*_what(about), f"by {about.user}, in {outcome.seconds:.1f} s", *_commits(about)]
    return Message(title, "\n".join(lines), _MARKS["finished"])


def failed(about: About, error: MidstreamError, seconds: float | None = None) -> Message:
    """It did not go through. seconds: None when it could not even begin."""
    interrupted = error.exit_code == EXIT_INTERRUPTED
    words = "was interrupted" if interrupted else "FAILED"
    if error.exit_code == EXIT_ATTENTION:
        words += " and needs attention"
    took = f", after {seconds:.1f} s" if seconds is not None else ""
    lines = [*_what(about), f"by {about.user}{took}", "", str(error), *_commits(about)]
    mark = _MARKS["interrupted" if interrupted else "failed"]
    return Message(f"{_name(about)}: {about.kind} {words}", "\n".join(lines), mark)


def trial(app: str, stage: str, user: str) -> Message:
    """What `midstream notify --test` sends."""
    return Message(f"{app} ({stage}): a test", f"{user} tries whether notifications of deploys arrive here.")


def _name(about: About) -> str:
    return f"{about.app} ({about.stage})"


def _what(about: About) -> list[str]:
    lines = [f"on {', '.join(about.hosts)}"]
    if about.revision:
        subject = f" “{about.subject}”" if about.subject else ""
        lines.insert(0, f"{about.branch or '?'} at {about.revision[:10]}{subject}")
    return lines


def _commits(about: About) -> list[str]:
    if not about.commits:
        return []
    shown = about.commits[:COMMITS_MAX]
    more = len(about.commits) - len(shown)
    lines = ["", f"{len(about.commits)} commit{'s' if len(about.commits) > 1 else ''}:", *(f"  {one}" for one in shown)]
    return [*lines, f"  … and {more} more"] if more else lines


# the telling


def read_urls(table: NotifyTable, folder: Path) -> tuple[str, ...]:
    """The addresses, those in files, variables and commands read. Blocks. Raises OperatorError."""
    wanted = {f"notify.urls[{n}]": one for n, one in enumerate(table.urls) if not isinstance(one, str)}
    values = read_secrets(wanted, folder)
    return tuple(
        one if isinstance(one, str) else values[f"notify.urls[{n}]"].strip() for n, one in enumerate(table.urls)
    )


class Notifier:
    """`tell` never blocks; `close` waits at most `PATIENCE_S`. Every trouble is one call of `warn`."""

    def __init__(self, urls: Sequence[str], warn: Warn, redact: Callable[[str], str] = lambda text: text) -> None:
        self._warn = warn
        self._redact = redact
        if urls and importlib.util.find_spec("apprise") is None:
            warn("nobody is notified: apprise is not installed here (pip install apprise)")
            urls = ()
        self._lines = [_Line(number, url, warn) for number, url in enumerate(urls, start=1)]

    def tell(self, message: Message) -> None:
        safe = Message(self._redact(message.title), self._redact(message.body), message.mark)
        for line in self._lines:
            line.put(safe)

    def close(self, patience_s: float = PATIENCE_S) -> bool:
        """Waits for what is on its way; what is not gone by then is given up. Returns whether all was accepted."""
        deadline_s = time.monotonic() + patience_s
        for line in self._lines:
            line.put(None)
        accepted = [line.join(deadline_s) for line in self._lines]
        return all(accepted)


class _Line:
    """One address and its thread, a daemon: a server that never answers does not keep the command from ending."""

    def __init__(self, number: int, url: str, warn: Warn) -> None:
        scheme = url.partition("://")[0]
        self._name = f"notification to notify.urls[{number - 1}] ({scheme if scheme.isalnum() else '?'})"
        self._url, self._warn = url, warn
        self._waiting: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._good = True
        self._given_up = False
        self._thread: threading.Thread | None = None

    def put(self, message: Message | None) -> None:
        if self._thread is None:
            if message is None:
                return
            self._thread = threading.Thread(target=self._run, daemon=True, name=self._name)
            self._thread.start()
        self._waiting.put(message)

    def join(self, deadline_s: float) -> bool:
        if self._thread is None:
            return True
        self._thread.join(max(deadline_s - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self._given_up = True
            self._warn(f"the {self._name} did not go through in time")
            return False
        return self._good

    def _run(self) -> None:
        while (message := self._waiting.get()) is not None:
            if self._good:  # one warning is enough
                why = _send(self._url, message)
                self._good = why is None
                if why is not None and not self._given_up:
                    self._warn(f"the {self._name} failed{': ' if why else ''}{why}")


def _send(url: str, message: Message) -> str | None:
    """None when it was accepted, else why not, as far as apprise says, without anything of the address. Blocks."""
    said = _Said(url)
    try:
        import apprise

        logger = logging.getLogger("apprise")
        logger.propagate = False
        logger.addHandler(said)
        try:
            target = apprise.Apprise()
            if not target.add(url):
                return "apprise does not understand it"
            if target.notify(title=message.title, body=message.body, notify_type=message.mark, body_format="text"):
                return None
        finally:
            logger.removeHandler(said)
    except Exception as error:  # whatever a plug-in does: a deploy does not fail by it
        return said.clean(f"{type(error).__name__}: {error}")
    return said.text


class _Said(logging.Handler):
    """The last warning of apprise in this thread."""

    def __init__(self, url: str) -> None:
        super().__init__(logging.WARNING)
        parts = {part for part in re.split(r"[/:@?&=+#]+", url) if len(part) > 3} - {url.partition("://")[0]}
        self._redact = Redactor({"…": url, **{"…" + str(number): part for number, part in enumerate(sorted(parts))}})
        self._thread = threading.get_ident()
        self.text = ""

    def clean(self, text: str) -> str:
        return re.sub(r"\[…\d*\]", "…", self._redact(" ".join(text.split())))[:200]

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.text = self.clean(record.getMessage())
