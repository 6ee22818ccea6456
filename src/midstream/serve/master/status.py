"""What a master tells of itself: the line for systemd and the answer to `status`. Reads, decides nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from midstream.serve import metrics
from midstream.serve.board import add_up, traffic_text
from midstream.serve.master.generation import Generation
from midstream.serve.upgrade import Phase

if TYPE_CHECKING:
    from midstream.serve.master.master import Master


def line(master: Master) -> str:
    """One line for a person."""
    parts = []
    if master.committed is not None:
        parts.append(f"serving {master.committed.source.release} (#{master.committed.number})")
    if master.phase is Phase.STOPPING:
        parts.append("stopping")
    elif master.new is not None:
        parts.append(f"upgrade to {master.new.source.release}: {master.phase.value}")
    elif master.phase is Phase.WAITING:
        parts.append("an upgrade waits for room")
    parts.append(traffic_text(add_up(one.traffic() for one in _shown(master))))
    if master.draining:
        parts.append(
            f"{len(master.draining)} draining: {traffic_text(add_up(one.traffic() for one in master.draining))}"
        )
    if master.last_failure:
        parts.append(f"the last upgrade failed: {master.last_failure}")
    return "; ".join(parts)


def report(master: Master) -> dict[str, Any]:
    """All of it, as JSON values."""
    return {
        "text": line(master),
        "pid": os.getpid(),
        "phase": master.phase.value,
        "binds": list(master.addresses),
        "workers": master.count,
        "last_failure": master.last_failure,
        "generations": [_of(one) for one in (*_shown(master), *master.draining)],
    }


def page(master: Master) -> str:
    """The metrics of all generations that there are."""
    return metrics.text(_view(one, master.count) for one in (*_shown(master), *master.draining))


def _view(generation: Generation, count: int) -> metrics.View:
    rows = generation.board.rows() if generation.board is not None else []
    name, number, state = generation.source.release, generation.number, generation.state.value
    wanted = 0 if generation.leaving_since_s else count
    return metrics.View(name, number, state, wanted, rows, *generation.cuts)


def _shown(master: Master) -> list[Generation]:
    return [one for one in (master.committed, master.new) if one is not None]


def _of(generation: Generation) -> dict[str, Any]:
    traffic = generation.traffic()
    return {
        "number": generation.number,
        "release": generation.source.release,
        "folder": generation.source.folder,
        "python": generation.source.python,
        "state": generation.state.value,
        "zygote": generation.pid,
        "workers": [*generation.worker_pids, *generation.orphans],
        "in_flight": traffic.in_flight,
        "idle": traffic.idle,
        "websockets": traffic.websockets,
        "oldest_s": round(traffic.oldest_s, 3),
    }
