"""How a deploy is shown while it runs and when it has ended: live on a terminal, plain lines when piped, JSON lines.

Gets events that are redacted already. rich is imported for a terminal only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import click

from midstream.cli.output import clean, echo_json, short, span
from midstream.core.plan import Plan
from midstream.core.wire import to_wire
from midstream.deploy.events import Event, EventKind, Outcome


class Printer(Protocol):
    """Shows one deploy. `begin` once, `event` often, `close` once, before the outcome is shown."""

    def begin(self, plan: Plan, deploy_id: str, headline: str) -> None: ...
    def event(self, event: Event) -> None: ...
    def pause(self) -> None: ...  # while the operator is asked something
    def go_on(self) -> None: ...
    def close(self) -> None: ...
    def outcome(self, outcome: Outcome, log_path: str) -> None: ...


def printer(*, as_json: bool, terminal: bool, verbose: bool) -> Printer:
    """The one that fits where stdout goes."""
    if as_json:
        return JsonPrinter()
    return LivePrinter(verbose) if terminal else PlainPrinter(verbose)


def event_wire(event: Event) -> dict[str, Any]:
    """An event for `--json`: `{"type": "begin", "host": …}`; fields that say nothing are left out."""
    wire: dict[str, Any] = to_wire(event)
    return {"type": wire.pop("kind"), **wire}


def outcome_wire(outcome: Outcome, log_path: str) -> dict[str, Any]:
    """The last line of `--json`."""
    error = outcome.error
    return {
        "type": "summary",
        "deploy_id": outcome.deploy_id,
        "kind": outcome.kind,
        "app": outcome.app,
        "stage": outcome.stage,
        "ok": error is None,
        "exit_code": outcome.exit_code,
        "release": outcome.release,
        "previous": outcome.previous,
        "revision": outcome.revision,
        "branch": outcome.branch,
        "seconds": round(outcome.seconds, 3),
        "hosts": [to_wire(host) for host in outcome.hosts],
        "error": error.to_wire() if error else None,
        "log": log_path,
    }


class _AlwaysReady:
    """A printer that is in nobody's way when the operator is asked something."""

    def pause(self) -> None:
        pass

    def go_on(self) -> None:
        pass


class JsonPrinter(_AlwaysReady):
    def begin(self, plan: Plan, deploy_id: str, headline: str) -> None:
        echo_json({"type": "plan", "deploy_id": deploy_id, "plan": to_wire(plan)})

    def event(self, event: Event) -> None:
        echo_json(event_wire(event))

    def close(self) -> None:
        pass

    def outcome(self, outcome: Outcome, log_path: str) -> None:
        echo_json(outcome_wire(outcome, log_path))


class PlainPrinter(_AlwaysReady):
    """A line for each finished step and each note; what steps print is in the log, and here with --verbose."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self._many = False

    def begin(self, plan: Plan, deploy_id: str, headline: str) -> None:
        self._many = len(plan.hosts) > 1
        click.echo(headline)

    def event(self, event: Event) -> None:
        line = step_line(event, with_host=self._many, verbose=self.verbose)
        if line:
            click.echo(line)

    def close(self) -> None:
        pass

    def outcome(self, outcome: Outcome, log_path: str) -> None:
        click.echo("\n".join(summary_lines(outcome)))


def step_line(event: Event, *, with_host: bool, verbose: bool) -> str:
    """An event in words, "" when it is not worth a line."""
    host = f"{event.host:<16} " if with_host and event.host else ""
    step = f"{event.phase:<11} {event.step}{' ' + event.service if event.service else ''}"
    match event.kind:
        case EventKind.END:
            took = span(event.seconds) if event.seconds is not None else ""
            mark = "" if event.ok is not False else "FAILED "
            text = f"  {clean(event.text)}" if event.text else ""
            return f"  {host}{step:<44} {mark}{took}{text}".rstrip()
        case EventKind.NOTE:
            return f"  {host}{clean(event.text)}"
        case EventKind.LINE if verbose:
            return f"  {host}  | {clean(event.text)}"
    return ""


@dataclass(slots=True)
class HostLine:
    """What one host is at: its phase, the step in it, since when; and the steps of the phase that are done."""

    since_s: float
    phase: str = ""
    words: str = "connecting"
    done: list[str] = field(default_factory=list)

    def take(self, event: Event, now_s: float) -> str:
        """Follows an event. Returns the line of the phase that it ends, "" when it ends none."""
        ended = ""
        if event.phase and event.phase != self.phase and event.kind is not EventKind.NOTE:
            ended = self.summary(now_s)
            self.phase, self.since_s, self.done = event.phase, now_s, []
        step = " ".join(part for part in (event.step, event.service) if part)
        if event.kind is EventKind.BEGIN:
            self.words = f"{event.phase:<11} {step}".strip()
        elif event.kind is EventKind.LINE:
            self.words = f"{self.words.partition(' | ')[0]} | {clean(event.text)}"
        elif event.kind is EventKind.END and event.ok is not False:
            self.done.append(step)
        return ended

    def summary(self, now_s: float) -> str:
        """The phase so far in one line; "" when nothing was done in it."""
        if not self.done:
            return ""
        steps = [step.removeprefix("deploy:") for step in dict.fromkeys(self.done)]
        return f"{self.phase:<11} {span(now_s - self.since_s):>6}  {', '.join(steps)}"


class LivePrinter:
    """A line for each host that is rewritten in place. Above it, of one host each step when it is done; of several one
    line for each host and phase, and what fails. With --verbose each step, and what steps print, of all."""

    def __init__(self, verbose: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self.verbose = verbose
        self._now: dict[str, HostLine] = {}  # rich's thread reads it at each refresh
        self._many = False
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True, get_renderable=self._render)

    def begin(self, plan: Plan, deploy_id: str, headline: str) -> None:
        self._many = len(plan.hosts) > 1
        self._console.print(headline, markup=False, style="bold")
        self._now = {host: HostLine(time.monotonic()) for host in plan.hosts}
        self._live.start()

    def event(self, event: Event) -> None:
        row = self._now.get(event.host)
        ended = row.take(event, time.monotonic()) if row is not None else ""
        by_phase = self._many and not self.verbose
        if by_phase and ended:
            self._print_phase(event.host, ended)
        line = step_line(event, with_host=self._many, verbose=self.verbose)
        if line and not (by_phase and row is not None and event.kind is EventKind.END and event.ok is not False):
            self._console.print(line, markup=False, style="red" if event.ok is False else None)

    def _print_phase(self, host: str, ended: str) -> None:
        self._console.print(f"  {host:<16} {ended}", markup=False)

    def _render(self) -> Any:
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        grid.add_column()
        grid.add_column(no_wrap=True, overflow="ellipsis")
        now_s = time.monotonic()
        for host, row in list(self._now.items()):
            line = Text.assemble((host, "cyan"), f"  {span(now_s - row.since_s)}  {row.words}")
            grid.add_row(Spinner("dots"), line)
        return grid

    def pause(self) -> None:
        self._live.stop()

    def go_on(self) -> None:
        self._live.start()

    def close(self) -> None:
        self._live.stop()
        if self._many and not self.verbose:
            for host, row in self._now.items():
                if ended := row.summary(time.monotonic()):
                    self._print_phase(host, ended)

    def outcome(self, outcome: Outcome, log_path: str) -> None:
        style = "green" if outcome.error is None else None
        first, *rest = summary_lines(outcome)
        self._console.print(first, markup=False, style=style)
        for line in rest:
            self._console.print(line, markup=False)


def summary_lines(outcome: Outcome) -> Sequence[str]:
    """What came of it, in a few lines; the error itself is printed by the one boundary for errors."""
    took = span(outcome.seconds)
    if outcome.error is not None:
        return [f"{outcome.kind} of {outcome.app} ({outcome.stage}) did not go through, after {took}"]
    verb = "is on" if outcome.kind == "deploy" else "is back on"
    revision = f"{outcome.branch or '?'} at {short(outcome.revision)}"
    lines = [f"{outcome.app} ({outcome.stage}) {verb} release {outcome.release} ({revision}), in {took}"]
    for host in outcome.hosts:
        lines.append(f"  {host.host}: generation {host.generation}")
        for row in host.services:
            proof = f", {row['proof']}" if row.get("proof") else ""
            took = span(row["seconds"]) if row.get("seconds") is not None else "-"
            lines.append(f"    {row.get('service')}: {row.get('policy')}{proof}, {took}")
        if host.draining:
            many = "s" if host.draining > 1 else ""
            lines.append(f"    {host.draining} old generation{many} still draining behind it (midstream status)")
        if host.removed:
            lines.append(f"    cleaned up: {', '.join(host.removed)}")
    return lines
