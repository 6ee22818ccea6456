"""The record of a deploy on the machine it was made from: a full log (ID.log), and what is needed to resume (ID.json).

In $XDG_STATE_HOME/midstream/deploys, readable by the user alone. No secret is ever written: all text comes in redacted.
Runs in the deployer. A disk that cannot be written does not stop a deploy; it is said once.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from midstream.core.wire import WireError, from_wire, to_wire
from midstream.deploy import crashpoint
from midstream.deploy.events import Event, EventKind
from midstream.deploy.order import Target
from midstream.errors import LockedError

KEPT = 50  # records; older ones are removed
_MOMENT = "%Y%m%dT%H%M%S"

UNTOUCHED = "untouched"  # it was refused, or reached no host: what was unfinished before it still is
ENDED = ("finished", "reverted", UNTOUCHED)


@dataclass(frozen=True, slots=True)
class Memo:
    """What is known of a deploy after its deployer died. `state`: the runner's, or one of ENDED: it is over."""

    deploy_id: str
    kind: str
    app: str
    stage: str
    config: str
    socket: str
    user: str
    state: str = "new"
    release: str = ""
    revision: str = ""
    tree: str = ""
    revision_time: int = 0
    branch: str = ""
    subject: str = ""
    began: str = ""
    hosts: tuple[str, ...] = ()

    @property
    def target(self) -> Target | None:
        if not self.revision:
            return None
        return Target(self.revision, self.tree, self.revision_time, self.branch, self.subject)


def new_deploy_id(now: datetime.datetime | None = None, *, folder: str = "") -> str:
    """Sorts by time, unique: `20261121T190501-3fa2b1`. folder: of the records; the id sorts after all that are there, also
    where the clock was set back since the last one: `resume` means the last, and the first are removed."""
    moment = f"{now or datetime.datetime.now(datetime.UTC):{_MOMENT}}"
    newest = max((name.partition("-")[0] for name in _names(folder)), default="") if folder else ""
    if newest >= moment:
        with contextlib.suppress(ValueError, OverflowError):  # a stranger's file
            moment = f"{datetime.datetime.strptime(newest, _MOMENT) + datetime.timedelta(seconds=1):{_MOMENT}}"
    return f"{moment}-{secrets.token_hex(3)}"


@dataclass(slots=True)
class Record:
    """Open one with `begin`; give it every event; `end` closes it."""

    folder: str
    memo: Memo
    complain: Callable[[str], None]
    _log: Any = None
    _broken: bool = False
    _values: dict[str, Any] = field(default_factory=dict)

    @property
    def log_path(self) -> str:
        return os.path.join(self.folder, f"{self.memo.deploy_id}.log")

    @property
    def memo_path(self) -> str:
        return os.path.join(self.folder, f"{self.memo.deploy_id}.json")

    def begin(self) -> None:
        """Makes the files; an old deploy's log is gone on with when it is resumed."""
        self._values = to_wire(self.memo)

        def make() -> None:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            fd = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._log = os.fdopen(fd, "w", encoding="utf-8", buffering=1)
            self._claim()
            self._save()
            _forget_old(self.folder)

        crashpoint.point("before the record")
        self._try(make)
        crashpoint.point("after the record")

    def _claim(self) -> None:
        """One process at a time: a deploy that somebody still runs here is not resumed. Freed by the kernel."""
        try:
            fcntl.flock(self._log.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"the {self.memo.kind} {self.memo.deploy_id} is still being run by another process here",
                where=self.log_path,
                remedy="wait for it, or interrupt it (^C goes back in order)",
            ) from None

    def line(self, text: str) -> None:
        """One line of the log, with its time. Control bytes stay visible as escapes."""
        stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        shown = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
        if self._log is not None:
            self._try(lambda: self._log.write(f"{stamp} {shown}\n"))

    def event(self, event: Event) -> None:
        """Logs it, and keeps in the memo how far the deploy is."""
        self.line(event_line(event))
        if event.kind is EventKind.STATE:
            self._values |= {"state": event.text, "release": event.release}
            crashpoint.point(f"before writing {event.text}")
            self._try(self._save)
            crashpoint.point(f"after writing {event.text}")

    def ended(self, state: str) -> None:
        """Keeps that it is over, in a state that no event told, and closes."""
        self.keep(state)
        self.close()

    def keep(self, state: str) -> None:
        """Keeps a state that no event told."""
        self._values["state"] = state
        self._try(self._save)

    def close(self) -> None:
        if self._log is not None:
            self._try(self._log.close)
            self._log = None

    def _save(self) -> None:
        path = f"{self.memo_path}.new"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self._values, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path, self.memo_path)

    def _try(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except OSError as error:
            if not self._broken:
                self._broken = True
                self.complain(f"the record of this deploy cannot be written: {error}; `midstream resume` will lack it")


def event_line(event: Event) -> str:
    """An event as one line of plain text."""
    head = " ".join(part for part in (event.host, event.phase, event.step, event.service) if part)
    match event.kind:
        case EventKind.BEGIN:
            tail = f"begins{': ' + event.text if event.text else ''}"
        case EventKind.LINE:
            tail = f"| {event.text}"
        case EventKind.END:
            tail = f"{'done' if event.ok else 'FAILED'}{_seconds(event)}{': ' + event.text if event.text else ''}"
        case EventKind.CALL:
            tail = f"answered{_seconds(event)}"
        case EventKind.STATE:
            tail = f"state: {event.text}{' (release ' + event.release + ')' if event.release else ''}"
        case EventKind.NOTE:
            tail = event.text
    return f"{head} {tail}".strip()


def _seconds(event: Event) -> str:
    return f" in {event.seconds:.2f} s" if event.seconds is not None else ""


def last_memo(folder: str, app: str, stage: str = "") -> Memo | None:
    """The newest memo of that app (and stage) that did anything; None where there is none."""
    for name in sorted(_names(folder), reverse=True):
        memo = _read(os.path.join(folder, name))
        if memo is not None and memo.app == app and stage in ("", memo.stage) and memo.state != UNTOUCHED:
            return memo
    return None


def memo_of(folder: str, deploy_id: str) -> Memo | None:
    """The memo of one deploy, None when this machine has none."""
    return _read(os.path.join(folder, f"{os.path.basename(deploy_id)}.json"))


def _names(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.endswith(".json")]
    except OSError:
        return []


def _read(path: str) -> Memo | None:
    try:
        with open(path, encoding="utf-8") as file:
            return from_wire(Memo, json.load(file))
    except (OSError, ValueError, WireError):
        return None


def _forget_old(folder: str) -> None:
    for name in sorted(_names(folder))[:-KEPT]:
        for path in (name, name.removesuffix(".json") + ".log"):
            try:
                os.unlink(os.path.join(folder, path))
            except OSError:
                continue
