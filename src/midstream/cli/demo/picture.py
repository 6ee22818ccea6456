"""The picture at the end of the demo: one HTML page with the latency of every request over time, as inline SVG.

Pure: an `Ending` in, text out; no file, no network, no script. Light and dark by the reader's setting.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass

from midstream.cli.demo.board import Handover
from midstream.cli.demo.clients import Sample, Seen
from midstream.cli.demo.story import Ending
from midstream.testing.load import percentile

WIDTH, HEIGHT = 1200, 620
LEFT, RIGHT, TOP, BOTTOM = 70, 1180, 96, 470
_LANES = {"code": 500, "kills": 540}
_LABEL_PX = 6.6  # a character of a label, about
_TICKS_MS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
_MEDIAN_BIN_S = 0.5

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2430; --dim: #6b7685; --rule: #e3e7ec; --good: #1a7f37;
  --bad: #d1242f; --handover: #2f6fde; --drain: #2f6fde; --refused: #d9822b; --agent: #8250df; --median: #1c2430;
  --s0: #3b7dd8; --s1: #1fa39a; --s2: #a768b8; --s3: #c78aa0; --s4: #97803c; --s5: #b59d5c;
  --r0: #dbe7fb; --r1: #d5efe0; --r2: #f4e3d0; --r3: #eadcf5; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --ink: #e6ebf1; --dim: #93a0b0; --rule: #28303a;
  --good: #4ac26b; --bad: #ff6b6b; --handover: #5b93f5; --drain: #5b93f5; --refused: #f0a24f; --agent: #b78cff;
  --median: #e6ebf1; --s0: #6aa5f5; --s1: #4fcabf; --s2: #cf9bdf; --s3: #e0aec0; --s4: #cdb46a; --s5: #dcc88a;
  --r0: #22365a; --r1: #1d4030; --r2: #4a3520; --r3: #3a2a4d; } }
body { margin: 2rem auto; max-width: 1240px; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } p { margin: .3rem 0 1rem; color: var(--dim); }
.good { color: var(--good); } .bad { color: var(--bad); }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; } svg text { fill: var(--ink); }
svg .dim { fill: var(--dim); } .rule { stroke: var(--rule); } .axis { stroke: var(--dim); }
.dots { fill: none; stroke-width: 3.2; stroke-linecap: round; stroke-opacity: .55; }
.failure { stroke: var(--bad); stroke-width: 2.5; fill: none; }
.median { fill: none; stroke: var(--median); stroke-width: 1.6; stroke-opacity: .8; }
.band { fill: var(--handover); fill-opacity: .16; } .drain { fill: var(--drain); fill-opacity: .06; }
.edge { stroke: var(--handover); } .refused { fill: var(--refused); fill-opacity: .18; }
.edge-refused { stroke: var(--refused); } .agent { stroke: var(--agent); stroke-width: 1.6; stroke-dasharray: 5 4; }
svg .agent-word { fill: var(--agent); } .kill { stroke: var(--ink); stroke-width: 1.6; }
ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; }
li { display: flex; align-items: center; gap: .45rem; } li svg { width: 26px; height: 14px; flex: none; }
table { border-collapse: collapse; margin: 1.2rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid var(--rule); font-weight: normal; }
th { color: var(--dim); } th:first-child, td:first-child { text-align: left; }
"""
MARGIN_S = 0.3  # before the first request and after the last


@dataclass(frozen=True, slots=True)
class Frame:
    """From seconds (CLOCK_MONOTONIC) and milliseconds to places in the drawing."""

    begin: float
    end: float
    low_ms: float
    high_ms: float

    def x(self, time: float) -> float:
        inside = min(max(time, self.begin), self.end)
        return LEFT + (inside - self.begin) / (self.end - self.begin) * (RIGHT - LEFT)

    def y(self, seconds: float) -> float:
        ms = min(max(seconds * 1000, self.low_ms), self.high_ms)
        share = math.log(ms / self.low_ms) / math.log(self.high_ms / self.low_ms)
        return BOTTOM - share * (BOTTOM - TOP)


def page(ending: Ending) -> str:
    """The whole HTML page."""
    frame = _frame(ending)
    failed = ending.failed
    title = html.escape(ending.board.title[:1].upper() + ending.board.title[1:])
    verdict = f'<span class="{"bad" if failed else "good"}">{failed} failed</span>'
    parts = (
        _bands(ending, frame),
        _axes(frame),
        _dots(ending, frame),
        _median(ending, frame),
        _failures(ending, frame),
        _labels(ending, frame),
        _lanes(ending, frame),
    )
    drawing = "\n".join(part for part in parts if part)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>midstream demo: latency over time</title>
<style>{_STYLE}</style>
<h1>{ending.requests:,} requests, {verdict}</h1>
<p>{title}, deployed by Midstream under load. Each dot is a request, placed at the moment it
was sent; the scale of its latency is logarithmic.</p>
<svg viewBox="0 0 {WIDTH} {HEIGHT - 50}" role="img" aria-label="Latency of requests over time, handovers marked">
{drawing}
</svg>
{_legend(ending)}
{_table(ending)}
{_handover_table(ending)}
<p>{_words(ending)}</p>
</html>
"""


def _frame(ending: Ending) -> Frame:
    samples = [sample for seen in ending.seen for sample in seen.samples]
    begin = min((sample.start for sample in samples), default=0.0)
    end = max((sample.start + sample.seconds for sample in samples), default=1.0)
    slowest = max((sample.seconds for sample in samples), default=0.1) * 1000
    fastest = max(0.1, min((sample.seconds for sample in samples if sample.ok), default=0.001) * 1000)
    high = next((tick for tick in _TICKS_MS if tick >= slowest), _TICKS_MS[-1])
    low = next((tick for tick in reversed(_TICKS_MS) if tick <= fastest), _TICKS_MS[0])
    return Frame(begin - MARGIN_S, end + MARGIN_S, low, max(high, low * 10))


def _axes(frame: Frame) -> str:
    parts = []
    for tick in _TICKS_MS:
        if frame.low_ms <= tick <= frame.high_ms:
            y = frame.y(tick / 1000)
            word = f"{tick:g} ms" if tick < 1000 else f"{tick / 1000:g} s"
            parts.append(f'<line class="rule" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="dim" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{word}</text>')
    length = frame.end - frame.begin
    step = next(step for step in (2, 5, 10, 20, 30, 60, 600) if length / step <= 14 or step == 600)
    for seconds in range(0, int(length) + 1, step):
        x = frame.x(frame.begin + MARGIN_S + seconds)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{BOTTOM}" y2="{BOTTOM + 5}"/>')
        parts.append(f'<text class="dim" x="{x:.1f}" y="{BOTTOM + 19}" text-anchor="middle">{seconds} s</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    return "\n".join(parts)


def _shown(ending: Ending, frame: Frame) -> list[Handover]:
    """The handovers that clients were there to see."""
    return [one for one in ending.board.handovers if one.begin and one.decided > frame.begin + MARGIN_S]


def _bands(ending: Ending, frame: Frame) -> str:
    parts = []
    for handover in _shown(ending, frame):
        refused = "" if handover.committed else "refused"
        parts.append(_band(frame, handover.begin, handover.decided, refused or "band", _told(handover)))
        if handover.drained > handover.decided:
            parts.append(_band(frame, handover.decided, handover.drained, "drain", "the old generation drains"))
        edge = "edge-refused" if refused else "edge"
        for time in (handover.begin, handover.decided):
            x = frame.x(time)
            parts.append(f'<line class="{edge}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{BOTTOM}"/>')
    for kill in ending.board.kills:
        if kill.what == "agent":
            x = frame.x(kill.time)
            parts.append(f'<line class="agent" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{BOTTOM}"/>')
    return "\n".join(parts)


def _band(frame: Frame, begin: float, end: float, kind: str, title: str) -> str:
    x, width = frame.x(begin), max(1.0, frame.x(end) - frame.x(begin))
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{TOP}" width="{width:.1f}" height="{BOTTOM - TOP}">'
        f"<title>{html.escape(title)}</title></rect>"
    )


def _told(handover: Handover) -> str:
    if handover.committed:
        return f"{handover.label}: handover in {handover.took_s:.1f} s"
    return f"{handover.label}: put back after {handover.took_s:.1f} s: {handover.reason}"


def _labels(ending: Ending, frame: Frame) -> str:
    """Two lines above each band, and a word for the agent's death; moved up a storey where they would overlap."""
    words: list[tuple[float, str, str, str]] = []
    for handover in _shown(ending, frame):
        second = f"{handover.took_s:.1f} s" if handover.committed else f"{handover.prospect.value}: put back"
        words.append((frame.x(handover.begin), handover.label, second, ""))
    for kill in ending.board.kills:
        if kill.what == "agent":
            words.append((frame.x(kill.time), "agent: kill -9", "", "agent-word"))
    parts, free_from = [], [0.0, 0.0]
    for x, first, second, kind in sorted(words):
        storey = 0 if x >= free_from[0] else 1
        width = max(len(first), len(second)) * _LABEL_PX + 16
        start = min(x, RIGHT - width)
        free_from[storey] = start + width
        y = TOP - 24 - storey * 34
        weight = ' font-weight="600"' if not kind else ""
        parts.append(f'<text class="{kind}" x="{start:.1f}" y="{y}"{weight}>{html.escape(first)}</text>')
        if second:
            parts.append(f'<text class="dim" x="{start:.1f}" y="{y + 15}">{html.escape(second)}</text>')
    return "\n".join(parts)


def _dots(ending: Ending, frame: Frame) -> str:
    """One path for each kind of client: a dot is a line without length that has round ends."""
    parts = []
    for index, seen in enumerate(ending.seen):
        dots = "".join(_dot(frame, sample) for sample in seen.samples if sample.ok)
        parts.append(f'<path class="dots" style="stroke: var(--s{index % 6})" d="{dots}"/>')
    return "\n".join(parts)


def _dot(frame: Frame, sample: Sample) -> str:
    return f"M{frame.x(sample.start):.1f} {frame.y(sample.seconds):.1f}h0"


def _median(ending: Ending, frame: Frame) -> str:
    """Of the quick pages, by half seconds."""
    bins: dict[int, list[float]] = {}
    for seen in ending.seen:
        if seen.kind.startswith("page"):
            for sample in seen.samples:
                bins.setdefault(int(sample.start / _MEDIAN_BIN_S), []).append(sample.seconds)
    points = [
        f"{frame.x((place + 0.5) * _MEDIAN_BIN_S):.1f},{frame.y(percentile(seconds, 0.5)):.1f}"
        for place, seconds in sorted(bins.items())
        if len(seconds) >= 4
    ]
    return f'<polyline class="median" points="{" ".join(points)}"/>'


def _failures(ending: Ending, frame: Frame) -> str:
    parts = []
    for sample in (sample for seen in ending.seen for sample in seen.samples if not sample.ok):
        x, y = frame.x(sample.start), frame.y(sample.seconds)
        parts.append(f'<path class="failure" d="{_cross(x, y, 5)}"><title>failed</title></path>')
    return "\n".join(parts)


def _cross(x: float, y: float, half: float) -> str:
    return f"M{x - half:.1f} {y - half:.1f}l{2 * half} {2 * half}M{x - half:.1f} {y + half:.1f}l{2 * half} {-2 * half}"


def _lanes(ending: Ending, frame: Frame) -> str:
    """Below the axis: which code was committed when, and each kill of the worker."""
    parts = []
    code, kills = _LANES["code"], _LANES["kills"]
    parts.append(f'<text class="dim" x="{LEFT - 8}" y="{code + 16}" text-anchor="end">code</text>')
    parts.append(f'<text class="dim" x="{LEFT - 8}" y="{kills + 5}" text-anchor="end">kill -9</text>')
    offset = ending.board.wall_offset_s
    colours: dict[str, int] = {}
    for reign in ending.reigns:
        if reign.service != "web" or not reign.committed or reign.end - offset < frame.begin:
            continue
        x, end = frame.x(reign.begin - offset), frame.x(min(reign.end - offset, frame.end))
        colour = colours.setdefault(reign.release, len(colours) % 4)
        label = html.escape(ending.board.label(reign.release))
        size = f'width="{max(0.0, end - x - 1):.1f}" height="24" rx="3"'
        parts.append(f'<rect style="fill: var(--r{colour})" x="{x:.1f}" y="{code}" {size}/>')
        if end - x > len(label) * _LABEL_PX:
            parts.append(f'<text x="{(x + end) / 2:.1f}" y="{code + 16}" text-anchor="middle">{label}</text>')
    for kill in ending.board.kills:
        title = f"{kill.what} {kill.pid}, {ending.board.label(kill.release)}" if kill.release else kill.what
        violet = ' style="stroke: var(--agent)"' if kill.what == "agent" else ""
        cross = _cross(frame.x(kill.time), kills, 4)
        parts.append(f'<path class="kill" d="{cross}"{violet}><title>{html.escape(title)}</title></path>')
    return "\n".join(parts)


def _legend(ending: Ending) -> str:
    items = [
        (
            f'<path class="dots" style="stroke: var(--s{index % 6}); stroke-width: 7; stroke-opacity: 1" d="M13 7h0"/>',
            seen.kind,
        )
        for index, seen in enumerate(ending.seen)
    ]
    items += [
        ('<path class="median" d="M2 7h22"/>', "median of the pages"),
        (f'<path class="failure" d="{_cross(13, 7, 4)}"/>', "a failed request"),
        ('<rect class="band" width="26" height="14"/>', "handover"),
        ('<rect class="drain" width="26" height="14"/>', "the old generation drains"),
        ('<rect class="refused" width="26" height="14"/>', "a bad release, put back"),
        ('<path class="agent" d="M13 0v14"/>', "agent killed"),
        (f'<path class="kill" d="{_cross(13, 7, 4)}"/>', "worker killed"),
    ]
    rows = "".join(f'<li><svg viewBox="0 0 26 14">{mark}</svg>{html.escape(word)}</li>' for mark, word in items)
    return f"<ul>{rows}</ul>"


def _table(ending: Ending) -> str:
    head = "".join(f"<th>{word}</th>" for word in ("clients", "requests", "failed", "median", "p99", "slowest"))
    return f"<table><tr>{head}</tr>{''.join(_rows(ending.seen))}</table>"


def _handover_table(ending: Ending) -> str:
    head = "".join(f"<th>{word}</th>" for word in ("handover", "ended", "took", "requests", "failed", "slowest"))
    rows = []
    for handover in ending.board.handovers:
        within = ending.during(handover)
        failed = sum(not sample.ok for sample in within)
        cells = (
            html.escape(handover.label),
            "committed" if handover.committed else f"put back: {html.escape(handover.prospect.value)}",
            f"{handover.took_s:.1f} s",
            f"{len(within):,}",
            f'<span class="{"bad" if failed else "good"}">{failed}</span>',
            f"{max((sample.seconds for sample in within), default=0.0) * 1000:.0f} ms",
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _words(ending: Ending) -> str:
    verdict = ending.verdict
    words = (
        f"{verdict.processes} processes were started, {len(verdict.stale)} of them on code that was not committed; "
        f"{verdict.jobs:,} jobs were taken, {len(verdict.stale_jobs)} of them by such code."
    )
    if ending.orders is not None:
        words += f" {ending.orders.placed:,} orders were placed, {ending.orders.lost} of them lost."
    return words


def _rows(all_seen: Iterable[Seen]) -> Iterable[str]:
    for seen in all_seen:
        seconds = [sample.seconds for sample in seen.samples]
        cells = (
            html.escape(seen.kind),
            f"{len(seconds):,}",
            f'<span class="{"bad" if seen.failed else "good"}">{seen.failed}</span>',
            f"{percentile(seconds, 0.5) * 1000:.1f} ms",
            f"{percentile(seconds, 0.99) * 1000:.1f} ms",
            f"{max(seconds, default=0.0) * 1000:.0f} ms",
        )
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
