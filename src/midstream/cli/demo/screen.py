"""How the demo is shown while it goes on: live on a terminal (rich), as plain lines in a pipe, as JSON for programs.

Reads the board, changes nothing on it. Runs in the demo; rich draws in a thread of its own.
"""

from __future__ import annotations

import json
import time
from typing import Any, Protocol

import click

from midstream.cli.demo.board import Board, Line, SceneState
from midstream.cli.output import clean, span

REFRESH_HZ = 5
SPARK = "▁▂▃▄▅▆▇█"
_LINES = (4, 14)  # of the story, at least and at most
_OTHER_ROWS = 17
_MARKS = {
    SceneState.WAITING: ("·", "bright_black"),
    SceneState.RUNNING: ("▶", "yellow"),
    SceneState.DONE: ("✓", "green"),
    SceneState.FAILED: ("✗", "red"),
}


class Screen(Protocol):
    def start(self) -> None: ...

    def end(self) -> None: ...


class PlainScreen:
    """Each line as it comes, with the seconds since the beginning."""

    def __init__(self, board: Board) -> None:
        board.on_line = self._print

    def start(self) -> None:
        pass

    def end(self) -> None:
        pass

    def _print(self, line: Line) -> None:
        click.echo(f"{line.time:6.1f}  {clean(line.text)}")


class JsonScreen(PlainScreen):
    def _print(self, line: Line) -> None:
        click.echo(json.dumps({"type": "line", "seconds": round(line.time, 3), "text": line.text}, ensure_ascii=False))


class LiveScreen:
    """Scenes and processes side by side, the traffic with a curve of its latency, the latest lines below."""

    def __init__(self, board: Board) -> None:
        from rich.console import Console
        from rich.live import Live

        self._board = board
        self._console = Console(highlight=False)
        self._live = Live(
            console=self._console,
            refresh_per_second=REFRESH_HZ,
            transient=True,
            get_renderable=self._render,
        )

    def start(self) -> None:
        self._live.start()

    def end(self) -> None:
        self._live.stop()

    def _render(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        board = self._board
        upper = Table.grid(expand=True, padding=(0, 1))
        upper.add_column(ratio=5)
        upper.add_column(ratio=4)
        upper.add_row(self._scenes(), self._processes())
        elapsed = time.monotonic() - board.began
        return Group(_framed(upper, f"midstream demo: {board.title}", span(elapsed)), self._traffic(), self._story())

    def _scenes(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        for scene in self._board.scenes:
            mark, style = _MARKS[scene.state]
            since = time.monotonic() - scene.began if scene.state is SceneState.RUNNING else scene.ended - scene.began
            took = span(since) if scene.began else ""
            title = Text(scene.title, style="bold" if scene.state is SceneState.RUNNING else style)
            grid.add_row(Text(mark, style=style), title, Text(took, style="bright_black"))
        return grid

    def _processes(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 1), header_style="bright_black")
        for name in ("service", "pid", "code", "generation"):
            table.add_column(name, no_wrap=True)
        for one in list(self._board.processes)[:7]:
            state = "being proven" if one.throwaway else one.state
            style = {"committed": "green", "draining": "cyan"}.get(state, "yellow")
            label = self._board.label(one.release)
            table.add_row(one.service, str(one.pid), Text(label, style=style), Text(state, style=style))
        return table

    def _traffic(self) -> Any:
        from rich.text import Text

        board = self._board
        if not board.requests:
            return _framed(Text("no clients yet", style="bright_black"), "traffic")
        text = Text()
        text.append(f"{board.requests:,} requests", style="bold")
        text.append(f"  {board.rate:.0f}/s   ")
        text.append(f"{board.failed} failed", style="bold red" if board.failed else "bold green")
        text.append(f"   median {board.p50_ms:.0f} ms\n")
        width = max(10, self._console.width - 27)
        text.append(sparkline(list(board.history)[-width:]), style="red" if board.failed else "cyan")
        text.append("  slowest page, per ¼ s", style="bright_black")
        return _framed(text, "traffic")

    def _story(self) -> Any:
        from rich.text import Text

        text = Text(no_wrap=True, overflow="ellipsis")
        fitting = min(max(self._console.height - _OTHER_ROWS, _LINES[0]), _LINES[1])
        for line in list(self._board.lines)[-fitting:]:
            text.append(f"{line.time:5.1f}  ", style="bright_black")
            text.append(clean(line.text).partition("\n")[0] + "\n", style=line.style)
        text.rstrip()
        return _framed(text, "what happens")


def _framed(content: Any, title: str, right: str = "") -> Any:
    from rich.panel import Panel
    from rich.text import Text

    words = Text(f"{title}  {right}".rstrip(), style="bold")
    return Panel(content, title=words, title_align="left", border_style="bright_black", padding=(0, 1))


def sparkline(values: list[float]) -> str:
    """One character a value; the scale is logarithmic from 1 ms to 1 s, so that a peak is seen and a calm is flat."""
    import math

    steps = len(SPARK) - 1
    return "".join(SPARK[min(steps, max(0, round(math.log10(max(value, 1.0)) / 3 * steps)))] for value in values)


def screen_for(board: Board, *, terminal: bool, as_json: bool) -> Screen:
    """What fits where stdout goes."""
    if as_json:
        return JsonScreen(board)
    return LiveScreen(board) if terminal else PlainScreen(board)
