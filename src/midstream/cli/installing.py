"""`agent install`, `agent upgrade` and `setup` over all their hosts at once: the file is built once, each host has a thread,
and every step is a line.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

import midstream
from midstream.cli.ask import Answer, Answers, in_threads
from midstream.cli.hosts import ALL, HERE, Only, choose, is_here
from midstream.cli.install_options import How
from midstream.cli.output import clean, echo_json
from midstream.cli.programs import copy_path
from midstream.core.wire import to_wire
from midstream.deploy.install.image import Image, image_of
from midstream.deploy.install.request import INSTALL, Folder, Request, Result, ServiceKind, Step
from midstream.deploy.install.session import Goal, perform
from midstream.errors import MidstreamError, OperatorError


@dataclass(frozen=True, slots=True)
class Row:
    """A host and the folders that are to be made there."""

    goal: Goal
    folders: tuple[Folder, ...] = ()

    @property
    def name(self) -> str:
        return self.goal.name


def goals(addresses: Sequence[str], how: How) -> list[Row]:
    """One row for each address, with the folders that `--allow` names. Raises OperatorError for a form that does not fit."""
    folders = tuple(_folder_of(text) for text in how.allow)
    return [Row(goal(address, how), folders) for address in dict.fromkeys(addresses)]


def goal(address: str, how: How) -> Goal:
    """This machine is not reached by ssh."""
    here = is_here(address) and not how.user
    return Goal(address or HERE, "" if here else address, how.user, how.rootless)


def _folder_of(allowance: str) -> Folder:
    owner, _, rest = allowance.partition(":")
    app, _, rest = rest.partition(":")
    path = rest.partition(":")[0]
    if not (owner and app and path.startswith("/")):
        from midstream.cli.grants import FORM

        raise OperatorError(f"{allowance!r} does not fit", where="--allow", remedy=f"write {FORM}")
    return Folder(path, owner)


def goals_of_words(words: Sequence[str], how: How, config_path: str, only: Only = ALL) -> list[Row]:
    """Each word is a stage of the project file, or the address of a host."""
    from midstream.cli.aim import find_config, raw_hosts, raw_stages

    path = find_config(config_path)
    stages = raw_stages(path) if path else {}
    addresses: list[str] = []
    for word in words:
        rows = choose(raw_hosts(stages[word]), only, word) if word in stages else ()
        addresses += [row.address for row in rows] or [word]
    return goals(addresses, how)


def running_image() -> Image:
    """The zipapp of the version that runs: built from its sources, or the very file that this is. Blocks for a second."""
    path = copy_path()
    if os.path.isfile(path):
        return image_of(Path(path).read_bytes(), midstream.__version__)
    from midstream.cli import zipapp_build

    with tempfile.TemporaryDirectory(prefix="midstream-") as folder:
        zipapp_build.build(f"{folder}/midstream.pyz")
        return image_of(Path(folder, "midstream.pyz").read_bytes(), midstream.__version__)


def install(rows: Sequence[Row], action: str, how: How, *, as_json: bool) -> int:
    """Does it on all hosts, tells each step, and returns the exit code; of one host its error is raised."""
    answers = answers_of(rows, action, how, as_json=as_json)
    tell_results(answers, how, as_json=as_json)
    return answers.conclude(as_json)


def answers_of(rows: Sequence[Row], action: str, how: How, *, as_json: bool) -> Answers[Result]:
    """How it ended on each host. Blocks until all are done; steps are printed as they come."""
    image = running_image()
    tell = _Teller(as_json, max(len(row.name) for row in rows))
    several = len(rows) > 1

    def one(row: Row) -> Answer[Result]:
        request = Request(
            action, image.name, image.version, ServiceKind(how.service), how.allow, row.folders, how.dry_run
        )
        try:
            return Answer(row.name, perform(row.goal, image, request, lambda step: tell(row.name, step)))
        except MidstreamError as error:
            return Answer(row.name, error=error)

    return Answers(tuple(in_threads(rows, one)) if several else (one(rows[0]),), several)


class _Teller:
    """Steps of several hosts at once, a line each."""

    def __init__(self, as_json: bool, width: int) -> None:
        self._as_json = as_json
        self._width = width
        self._lock = threading.Lock()

    def __call__(self, host: str, step: Step) -> None:
        with self._lock:
            if self._as_json:
                echo_json({"type": "step", "host": host, **vars_of(step)})
                return
            took = f"  {step.seconds:.1f}s" if step.seconds >= 0.05 else ""
            click.echo(f"{host:<{self._width}}  {step.state:<5}  {step.step:<9}  {clean(step.text)}{took}")


def vars_of(step: Step) -> Mapping[str, object]:
    return {"step": step.step, "state": step.state, "text": step.text, "seconds": step.seconds}


def tell_results(answers: Answers[Result], how: How, *, as_json: bool) -> None:
    """One line for each host that it went well on."""
    for host, result in answers.good():
        if as_json:
            echo_json({"type": "result", "host": host, "before": "", "changed": 0, **dict(to_wire(result))})
        else:
            click.echo(f"{host}: {_in_words(result, how)}")


def _in_words(result: Result, how: How) -> str:
    if how.dry_run:
        return f"{result.changed} changes would be made" if result.changed else "nothing would be changed"
    told = f"midstream {result.after} runs" + (", rootless" if result.rootless else "")
    if not result.changed:
        return f"{told}; nothing was changed"
    if result.before and result.before != result.after:
        return f"{told}, upgraded from {result.before}"
    return told


__all__ = ["INSTALL", "Row", "answers_of", "goal", "goals", "goals_of_words", "install", "tell_results"]
