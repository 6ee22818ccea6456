"""Runs one deploy or rollback from the command line: record, printer, signals, connections around the runner.

Used by `deploy`, `rollback`, `resume` and `abort`. Owns the event loop for the time of the command.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import click

from midstream.cli.notices import Notices
from midstream.cli.output import clean, short
from midstream.cli.places import records_folder
from midstream.cli.progress import Printer, printer
from midstream.cli.project import Project
from midstream.cli.task_book import Asking
from midstream.core.names import is_release
from midstream.core.plan import Kind, Plan
from midstream.core.releases import next_release_id, release_id
from midstream.deploy.catching_up import CatchingUp
from midstream.deploy.client import AgentClient
from midstream.deploy.events import Event, HostOutcome, Outcome
from midstream.deploy.order import Order, Pack, Target
from midstream.deploy.record import UNTOUCHED, Memo, Record, new_deploy_id
from midstream.deploy.redact import Redactor
from midstream.deploy.tasks.book import TaskBook
from midstream.deploy.transport import Host, LocalHost
from midstream.deploy.unreachable import NOT_INSTALLED
from midstream.errors import HostError, MidstreamError

A_YEAR_S = 366 * 86400
CONNECT_S = 5.0


@dataclass(frozen=True, slots=True)
class Show:
    """How to print: `--json`, `--verbose`."""

    as_json: bool = False
    verbose: bool = False


def operator_name() -> str:
    """Who deploys, for locks and revisions.log."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def pick_release(taken: list[str], now_s: float | None = None) -> str:
    """The id of the new release: now, but later than all that the hosts have, so that ids sort as they were made.

    An id more than a year ahead is somebody's mistake, and not followed.
    """
    now_s = time.time() if now_s is None else now_s
    now, limit = release_id(now_s), release_id(now_s + A_YEAR_S)
    newest = max((release for release in taken if is_release(release) and release < limit), default="")
    if newest < now:
        return now
    try:
        return next_release_id(newest)
    except ValueError:  # 14 digits that are no date
        return now


def new_order(
    project: Project,
    plan: Plan,
    *,
    release: str = "",
    secrets: Mapping[str, str] | None = None,
    wait: bool = False,
    force: bool = False,
    tasks: TaskBook | None = None,
) -> Order:
    """The order of a new deploy or rollback."""
    return Order(
        deploy_id=new_deploy_id(folder=records_folder()),
        plan=plan,
        specs=project.specs,
        user=operator_name(),
        pick_release=pick_release,
        target=project.target,
        release=release,
        pack=packer(project),
        pack_upon=_packer_upon(project),
        checkout=_checkout(project),
        secrets=secrets or {},
        wait=wait,
        force=force,
        tasks=tasks or TaskBook(),
        left_out=project.left_out if len(project.stage.hosts) > 1 else None,
    )


def with_agent_here(project: Project, socket: str) -> Project:
    """The project with an agent that answers on this machine, if the stage is on it: one is started where there is none,
    which is said. Raises HostError when none comes up."""
    if not any(isinstance(host, LocalHost) for host in project.reach.values()):
        return project
    from midstream.cli.private_agent import ensure_agent

    path, started = ensure_agent(socket)
    if started:
        click.echo(f"midstream: {started}", err=True)
    ways: dict[str, Host] = {
        name: LocalHost(name, path) if isinstance(host, LocalHost) else host for name, host in project.reach.items()
    }
    return replace(project, reach=ways)


def packer(project: Project) -> Callable[[str, list[str]], Pack | None]:
    """Makes the pack for a host, from the project's repository."""
    source = project.source
    if source is None:
        return lambda sha, have: None
    submodules = any(spec.submodules for spec in project.specs.values())
    return lambda sha, have: source.pack(sha, have, submodules=submodules)


def _packer_upon(project: Project) -> Callable[[str, str], Pack | None]:
    return project.source.pack_upon if project.source is not None else lambda sha, revision: None


def _checkout(project: Project) -> Callable[[Target, str], None] | None:
    source = project.source
    if source is None:
        return None
    submodules = any(spec.submodules for spec in project.specs.values())
    return lambda target, folder: source.checkout(target, folder, submodules=submodules)


def memo_for(order: Order, config: str, socket: str) -> Memo:
    """What is kept of the order, so that another command can resume it. socket: of `--socket`, "" when not named."""
    target = order.target
    memo = Memo(
        order.deploy_id,
        order.plan.kind.value,
        order.plan.app,
        order.plan.stage,
        config,
        os.path.abspath(socket) if socket else "",
        order.user,
        hosts=order.plan.hosts,
        release=order.release,
        began=time.strftime("%Y-%m-%d %H:%M:%S %z"),
    )
    if target is None:
        return memo
    return replace(
        memo,
        revision=target.sha,
        tree=target.tree,
        revision_time=target.time_s,
        branch=target.branch,
        subject=target.subject,
    )


def headline(order: Order) -> str:
    """The first line: what goes where."""
    plan, target = order.plan, order.target
    head = f"{plan.app} ({plan.stage}) on {', '.join(plan.hosts)}"
    if plan.kind is Kind.ROLLBACK:
        return f"rollback of {head} to {order.release or 'the last proven release before this one'}"
    return f"{head}: {target.branch} at {short(target.sha)} “{clean(target.subject)}”" if target else head


def perform(order: Order, project: Project, show: Show, *, socket: str = "", resumed: bool = False) -> int:
    """Runs the order to its end and shows it. Returns 0 or raises the MidstreamError that the outcome carries; it is
    shown with the path of the full log. socket: as named by `--socket`. resumed: the deploy was begun before."""
    redact = Redactor(order.secrets)
    out = printer(as_json=show.as_json, terminal=sys.stdout.isatty(), verbose=show.verbose)
    record = Record(records_folder(), memo_for(order, str(project.file.path), socket), _complain)
    record.begin()
    record.line(headline(order))
    for note in project.notes:
        record.line(f"note: {note}")
        click.echo(f"note: {note}", err=True)
    notices = Notices(order, project, redact, record.line)
    report = _Reporter(redact, record, out, notices)
    asking = order.tasks.ask = Asking(out.pause, out.go_on)
    order.tasks.keep_secret = redact.keep
    report.begin(order)
    try:
        outcome = asyncio.run(_run(order, project.reach, report))
    except MidstreamError as error:  # no connection at all
        out.close()
        _without_secrets(error, redact)
        record.line(f"error: {error}")
        notices.could_not_begin(error)
        if resumed:  # what was begun is still unfinished
            record.close()
        else:
            record.ended(UNTOUCHED)
        raise _with_log(error, record) from None
    except BaseException:
        out.close()
        raise
    finally:
        asking.restore()
    if all(host.state == "untouched" for host in outcome.hosts):
        record.keep("refused" if resumed else UNTOUCHED)  # nothing was done: what was begun is still unfinished
    return _conclude(outcome, redact, record, report, notices)


def _complain(text: str) -> None:
    click.echo(f"midstream: {text}", err=True)


class _Reporter:
    """Every event goes into the record, and to the printer for as long as somebody reads it: a terminal or a pipe that
    is gone (`| head`) must not end a deploy."""

    def __init__(self, redact: Redactor, record: Record, out: Printer, notices: Notices) -> None:
        self._redact, self._record, self._out, self._notices = redact, record, out, notices
        self._is_read = True

    def begin(self, order: Order) -> None:
        self._print(lambda: self._out.begin(order.plan, order.deploy_id, headline(order)))

    def __call__(self, event: Event) -> None:
        safe = replace(event, text=self._redact(event.text), step=self._redact(event.step))
        self._record.event(safe)
        self._notices.event(safe)
        self._print(lambda: self._out.event(safe))

    def close(self, outcome: Outcome) -> None:
        safe = replace(outcome, hosts=tuple(self._safe_host(host) for host in outcome.hosts))
        self._print(self._out.close)
        self._print(lambda: self._out.outcome(safe, self._record.log_path))

    def _safe_host(self, host: HostOutcome) -> HostOutcome:
        services = tuple(self._redact.value(dict(row)) for row in host.services)
        return replace(host, services=services, serving=self._redact(host.serving))

    def _print(self, work: Callable[[], None]) -> None:
        if not self._is_read:
            return
        try:
            work()
            sys.stdout.flush()
        except OSError as error:
            self._is_read = False
            self._record.line(f"nobody reads the output any more ({error}); going on")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


async def _run(order: Order, reach: Mapping[str, Host], report: Callable[[Event], None]) -> Outcome:
    clients = {name: AgentClient(reach[name]) for name in order.plan.hosts}
    deployment = CatchingUp(order, clients, report)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` leaves it
            loop.add_signal_handler(number, deployment.interrupt)
    try:
        await _start_all(order, list(clients.values()))
        return await deployment.run()
    finally:
        await asyncio.gather(*(client.close() for client in clients.values()))


async def _start_all(order: Order, clients: Sequence[AgentClient]) -> None:
    """Connects to all hosts. Raises one error that names every host that cannot be reached, before anything is begun."""
    results = await asyncio.gather(*(client.start(give_up_s=CONNECT_S) for client in clients), return_exceptions=True)
    failed: dict[str, MidstreamError] = {}
    for client, result in zip(clients, results, strict=True):
        if isinstance(result, MidstreamError):
            failed[client.host.name] = result
        elif isinstance(result, BaseException):
            raise result
    if not failed:
        return
    if len(clients) == 1:
        raise next(iter(failed.values()))
    raise _not_reached(order, failed)


def _not_reached(order: Order, failed: Mapping[str, MidstreamError]) -> HostError:
    names = ", ".join(failed)
    told: list[str] = []
    for what in dict.fromkeys(error.what for error in failed.values()):
        same = {name: error for name, error in failed.items() if error.what == what}
        told.append(f"{', '.join(same)}: {what}")
        told += dict.fromkeys(f"  {said}" for error in same.values() for said in error.detail.splitlines())
        told += [f"  do: {next(iter(same.values())).remedy}"] if what != NOT_INSTALLED else []
    missing = all(error.what == NOT_INSTALLED for error in failed.values())
    remedy = f"put it there: `midstream setup {order.plan.stage}`" if missing else "bring them back"
    if len(failed) < len(order.plan.hosts):
        command = f"midstream {order.plan.kind.value} {order.plan.stage} --without {','.join(failed)}"
        remedy += f", or go past them: `{command}` (recorded as behind)"
    return HostError(
        f"{len(failed)} of {len(order.plan.hosts)} hosts cannot be reached: {names}",
        where=names,
        detail="\n".join(told),
        serving="unchanged: nothing was begun",
        remedy=remedy,
    )


def _conclude(outcome: Outcome, redact: Redactor, record: Record, report: _Reporter, notices: Notices) -> int:
    error = outcome.error
    if error is not None:
        _without_secrets(error, redact)
        record.line(str(error))
    report.close(outcome)
    notices.end(outcome)
    record.close()
    if error is None:
        return 0
    raise _with_log(error, record)


def _without_secrets(error: MidstreamError, redact: Redactor) -> None:
    for name in ("what", "where", "serving", "remedy", "detail"):
        setattr(error, name, redact(getattr(error, name)))


def _with_log(error: MidstreamError, record: Record) -> MidstreamError:
    """The same, with the place of the full log."""
    error.detail = f"{error.detail}\nfull log: {record.log_path}".lstrip("\n")
    return error
