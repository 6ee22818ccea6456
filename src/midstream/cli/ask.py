"""The same question to all hosts that a command is about, at the same time; a host that cannot be reached hides no other.

Each host has a thread with a blocking client: an answer takes as long as the slowest host, and nothing here needs asyncio.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import click

from midstream.cli.output import echo_json
from midstream.core.values import dataclass
from midstream.deploy.sync_client import SyncClient, connect
from midstream.deploy.transport import Host
from midstream.deploy.unreachable import name_of
from midstream.errors import EXIT_ATTENTION, EXIT_BUG, EXIT_FAILED, MidstreamError

T = TypeVar("T")


class Named(Protocol):
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)
_SOME_HOST = "HOST"
_GRAVEST_FIRST = (EXIT_BUG, EXIT_ATTENTION, EXIT_FAILED)


class NothingToDo(Exception):
    """Raised by the work on a host that the question is not about: it has none of the services."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """Of one host: exactly one of `value` and `error`, or none of them when there was nothing to do."""

    host: str
    value: T | None = None
    error: MidstreamError | None = None


@dataclass(frozen=True, slots=True)
class Answers(Generic[T]):
    """In the order of the stage's hosts. `several`: the stage has several, so that output names them."""

    rows: tuple[Answer[T], ...]
    several: bool

    def good(self) -> Iterator[tuple[str, T]]:
        for row in self.rows:
            if row.value is not None:
                yield row.host, row.value

    @property
    def failed(self) -> tuple[Answer[T], ...]:
        return tuple(row for row in self.rows if row.error is not None)

    def conclude(self, as_json: bool = False, code: int = 0) -> int:
        """Tells of the hosts that failed, and returns the exit code: `code`, or the gravest of theirs. Of a stage with
        one host its error is raised as it is."""
        failed = self.failed
        if failed and not self.several:
            assert failed[0].error is not None
            raise failed[0].error
        for row in failed:
            if as_json and row.error is not None:
                echo_json({"host": row.host, "error": row.error.to_wire()})
        for text in _told(failed):
            click.echo(f"midstream: {text}", err=True)
        codes = {code, *(row.error.exit_code for row in failed if row.error is not None)} - {0}
        return next((grave for grave in _GRAVEST_FIRST if grave in codes), max(codes, default=0))


def _told(failed: Sequence[Answer[Any]]) -> Iterator[str]:
    """What failed, in words; once where it is the same on several hosts."""
    same: dict[str, list[tuple[str, MidstreamError]]] = {}
    for row in failed:
        if row.error is not None:
            same.setdefault(_without_host(row.host, str(row.error)), []).append((row.host, row.error))
    for text, rows in same.items():
        if len(rows) == 1:
            yield _with_host(*rows[0])
            continue
        lines = [line for line in text.splitlines() if line.split() != ["where:", _SOME_HOST]]
        what = lines[0].removeprefix(f"{_SOME_HOST}: ")
        yield "\n".join([f"{', '.join(host for host, _ in rows)}: {what}", *lines[1:]])


def _without_host(host: str, text: str) -> str:
    names = sorted({host, name_of(host)}, key=len, reverse=True)
    return re.sub("|".join(rf"(?<![\w.-]){re.escape(name)}(?![\w-])" for name in names), _SOME_HOST, text)


def _with_host(host: str, error: MidstreamError) -> str:
    text = str(error)
    return text if host in f"{error.what} {error.where}" else f"{host}: {text}"


def ask_all(
    hosts: Sequence[Host], work: Callable[[SyncClient, str], T], *, several: bool, give_up_s: float = 5.0
) -> Answers[T]:
    """Calls `work(client, host name)` for each host, at the same time, each in a thread of its own when there are several.
    Blocks until all are done. What is no MidstreamError is raised at once."""

    def one(host: Host) -> Answer[T]:
        try:
            with connect(host, give_up_s=give_up_s) as client:
                return Answer(host.name, work(client, host.name))
        except NothingToDo:
            return Answer(host.name)
        except MidstreamError as error:
            return Answer(host.name, error=error)

    if len(hosts) == 1:
        return Answers((one(hosts[0]),), several)
    return Answers(tuple(in_threads(hosts, one)), several)


def in_threads(hosts: Sequence[N], one: Callable[[N], Answer[Any]]) -> list[Answer[Any]]:
    """`one` of each, each in a thread of its own; in their order. Blocks until all are done."""
    ended: queue.Queue[tuple[int, Answer[Any] | BaseException]] = queue.Queue()

    def run(number: int, host: N) -> None:
        try:
            ended.put((number, one(host)))
        except BaseException as error:
            ended.put((number, error))

    for number, host in enumerate(hosts):
        # daemons: ^C ends the command, not the wait for a host that does not answer
        threading.Thread(target=run, args=(number, host), daemon=True, name=host.name).start()
    answers: dict[int, Answer[Any]] = {}
    while len(answers) < len(hosts):
        number, result = ended.get()
        if isinstance(result, BaseException):
            raise result
        answers[number] = result
    return [answers[number] for number in sorted(answers)]


def services_here(client: SyncClient, app: str, wanted: Sequence[str], *, several: bool) -> list[str]:
    """Those of `wanted` that this host has; all of them where the stage has one host, so that its agent says what is
    wrong. Raises NothingToDo when it has none; an empty `wanted` means all and stays so."""
    if not several or not wanted:
        return list(wanted)
    rows = client.call("status", app=app)["apps"]
    known = {str(service["service"]) for row in rows if row["app"] == app for service in row["services"]}
    here = [name for name in wanted if name in known]
    if not here:
        raise NothingToDo
    return here
