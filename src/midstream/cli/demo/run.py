"""Runs the story from the command line: place, screen, signals, ending, cleaning up. Owns the event loop.

A signal ends the story where it is; cleaning up is then done as at any other end.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import webbrowser
from dataclasses import dataclass
from pathlib import Path

import click

from midstream.cli.demo import picture, report
from midstream.cli.demo.board import Board
from midstream.cli.demo.django_project import DJANGO
from midstream.cli.demo.place import Place
from midstream.cli.demo.screen import screen_for
from midstream.cli.demo.small_project import small
from midstream.cli.demo.story import Ending, Story
from midstream.cli.output import echo_json
from midstream.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, MidstreamError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Options:
    """show: open the picture; None if there is a display."""

    quick: bool = False
    keep: bool = False
    picture: str = ""
    show: bool | None = None
    seed: int | None = None
    as_json: bool = False
    terminal: bool = False


def run(options: Options) -> int:
    """The exit code. Raises MidstreamError where the demo could not be played to its end."""
    place = Place()
    kind = small() if options.quick else DJANGO
    board = Board(kind.name, str(place.folder))
    screen = screen_for(board, terminal=options.terminal, as_json=options.as_json)
    story = Story(kind, place, board, random.Random(options.seed))
    screen.start()
    try:
        ending, complaints = asyncio.run(_tell(story, place, board))
        screen.end()
        for complaint in complaints:
            click.echo(f"midstream demo: {complaint}", err=True)
        if ending is None:
            click.echo("midstream demo: interrupted; nothing is left running", err=True)
            return EXIT_INTERRUPTED
        _show(options, ending)
        return EXIT_OK if ending.good and not complaints else EXIT_FAILED
    except MidstreamError as error:
        error.detail = f"{error.detail}\n{_tail(place)}".strip()
        raise
    finally:
        screen.end()
        _leave(options, place)


async def _tell(story: Story, place: Place, board: Board) -> tuple[Ending | None, list[str]]:
    """The story's end, or None when a signal came first; and complaints about what did not end well. No process is
    left in any case: once the story is over a signal changes nothing, so that a second ^C does not stop what tidies."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(story.tell())
    for number in _SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    ending: Ending | None = None
    try:
        ending = await task
    except asyncio.CancelledError:
        pass
    finally:
        for number in _SIGNALS:
            loop.add_signal_handler(number, lambda: None)
        board.say("stopping the agent, its keeper and the services")
        complaints = await place.stop()
    return ending, complaints


def _show(options: Options, ending: Ending) -> None:
    path = _picture_path(options)
    path.write_text(picture.page(ending), encoding="utf-8")
    if options.as_json:
        echo_json({**report.as_json(ending), "picture": str(path)})
    else:
        click.echo(f"\n{report.text(ending)}\n\nlatency over time: {path.as_uri()}")
    if options.show or (options.show is None and options.terminal and _has_display()):
        webbrowser.open(path.as_uri())


def _picture_path(options: Options) -> Path:
    if options.picture:
        return Path(options.picture).absolute()
    fd, name = tempfile.mkstemp(prefix="midstream-demo-", suffix=".html")
    os.close(fd)
    return Path(name)


def _has_display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _leave(options: Options, place: Place) -> None:
    """The folder goes last: what there is to say has been said."""
    if options.keep:
        click.echo(f"kept: {place.folder}", err=True)
        return
    for complaint in place.remove():
        click.echo(f"midstream demo: {complaint}", err=True)


def _tail(place: Place) -> str:
    """The last words of the agent, for an error that ends the demo."""
    try:
        lines = Path(place.places.agent_log).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(f"agent: {line}" for line in lines[-8:])
