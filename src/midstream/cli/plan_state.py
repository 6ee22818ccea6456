"""What the hosts of a plan are on now: committed release, lock, a deploy that is under way. Asked at the same time, read-only.

Runs in `midstream plan`. Nothing is decided by it: a deploy looks again, under its lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from midstream.cli.ask import Answers, ask_all
from midstream.cli.fleet_view import fleet_problems
from midstream.cli.output import clean, moment, short
from midstream.cli.status_view import lock_words

if TYPE_CHECKING:
    from midstream.cli.project import Project
    from midstream.deploy.sync_client import SyncClient

_TOLD = ("release", "revision", "branch", "lock", "deploy", "behind")
_DECISIONS = {"provisional": "undecided", "committed": "decided, not finished", "reverting": "being put back"}


@dataclass(frozen=True, slots=True)
class HostsNow:
    """Of each host, in the stage's order, what its agent says of the app (no app: nothing of it is there), or why it was not
    reached."""

    answers: Answers[dict[str, Any]]

    @property
    def exit_code(self) -> int:
        """1 when one of several hosts was not reached: a deploy would be refused. Of the only one, which may have no agent
        before its first deploy, it is told and no more."""
        return 1 if self.answers.several and self.answers.failed else 0

    def rows(self) -> list[dict[str, Any]]:
        """For `--json`: `{host, reached, error?, release, revision, branch, lock, deploy, behind}`; release null: nothing
        yet."""
        told = []
        for answer in self.answers.rows:
            row: dict[str, Any] = {"host": answer.host, "reached": answer.error is None}
            if answer.error is not None:
                row["error"] = answer.error.to_wire()
            else:
                found = self._of(answer.value)
                row |= {name: found.get(name) or ([] if name == "behind" else None) for name in _TOLD}
            told.append(row)
        return told

    def lines(self) -> Iterator[str]:
        """A line a host, and what differs between them."""
        for answer in self.answers.rows:
            if answer.error is not None:
                yield f"{answer.host}: NOT REACHED: {answer.error.what}" + (
                    f" (do: {answer.error.remedy})" if answer.error.remedy else ""
                )
            else:
                yield f"{answer.host}: {'; '.join(_words(self._of(answer.value)))}"
        yield from fleet_problems(dict(self.answers.good()))

    def _of(self, value: dict[str, Any] | None) -> Mapping[str, Any]:
        return next(iter((value or {}).get("apps", ())), {})


def ask_hosts(project: Project) -> HostsNow:
    """Asks all hosts for their status. Blocks until the slowest has answered; who cannot be reached is in the answer."""
    several = len(project.stage.hosts) > 1
    return HostsNow(ask_all(list(project.reach.values()), partial(_status, project.app), several=several))


def _status(app: str, client: SyncClient, host: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.call("status")
    return {**answer, "apps": [row for row in answer["apps"] if row["app"] == app]}


def _words(row: Mapping[str, Any]) -> Iterator[str]:
    if row.get("release"):
        yield f"release {row['release']}, {clean(str(row.get('branch') or '?'))} at {short(str(row.get('revision') or ''))}"
    else:
        yield "nothing yet: first generation"
    if deploy := row.get("deploy"):
        state = _DECISIONS.get(str(deploy.get("state")), "")
        yield (
            f"a {deploy.get('kind')} by {clean(str(deploy.get('user')))} holds the lock since {moment(deploy.get('since'))} "
            f"({deploy.get('phase')}{', ' + state if state else ''})"
        )
    if lock := row.get("lock"):
        yield lock_words(lock)
