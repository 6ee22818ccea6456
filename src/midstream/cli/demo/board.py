"""What the demo knows while it goes on, for whoever shows it: scenes, processes, traffic, handovers, lines of text.

Values, written by the story and its helpers, read by the screen and the report. No I/O. Times are CLOCK_MONOTONIC
seconds; `wall_offset_s` turns stored times (epoch) into them.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from midstream.cli.demo.project_kind import Prospect

HISTORY = 480  # glimpses of the traffic that are kept for the sparkline: two minutes


class SceneState(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(slots=True)
class Scene:
    """One step of the story. note: how it went, or how it goes."""

    title: str
    state: SceneState = SceneState.WAITING
    note: str = ""
    began: float = 0.0
    ended: float = 0.0


@dataclass(slots=True)
class Handover:
    """One deploy or rollback. begin: the new generation was asked for; decided: committed or put back; drained: the
    last process of the old web generation was gone. as_meant: it ended as its release was made to end."""

    label: str
    command: str
    prospect: Prospect
    deploy_id: str = ""
    release: str = ""
    whole_s: float = 0.0
    begin: float = 0.0
    decided: float = 0.0
    drained: float = 0.0
    committed: bool = False
    as_meant: bool = False
    reason: str = ""

    @property
    def took_s(self) -> float:
        return self.decided - self.begin if self.begin and self.decided else 0.0


@dataclass(frozen=True, slots=True)
class Process:
    """A row of the live table."""

    service: str
    pid: int
    release: str
    state: str
    throwaway: bool


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill -9 by the demo. release: of the victim."""

    time: float
    pid: int
    what: str
    release: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the story. style: a name of a colour, or ""."""

    time: float
    text: str
    style: str


@dataclass(slots=True)
class Board:
    title: str
    folder: str
    began: float = field(default_factory=time.monotonic)
    wall_offset_s: float = field(default_factory=lambda: time.time() - time.monotonic())
    scenes: list[Scene] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    handovers: list[Handover] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    lines: deque[Line] = field(default_factory=lambda: deque(maxlen=200))
    labels: dict[str, str] = field(default_factory=dict)  # release -> what the story calls it
    requests: int = 0
    failed: int = 0
    rate: float = 0.0
    p50_ms: float = 0.0
    max_ms: float = 0.0
    history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))  # slowest of each glimpse, ms
    on_line: Callable[[Line], None] = lambda line: None

    def say(self, text: str, style: str = "") -> None:
        line = Line(time.monotonic() - self.began, text, style)
        self.lines.append(line)
        self.on_line(line)

    def label(self, release: str) -> str:
        """`release 2` for a release of the story; its id for any other."""
        return self.labels.get(release, release or "?")
