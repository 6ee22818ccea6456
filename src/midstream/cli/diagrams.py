"""Draws `docs/state-machines.md` from the tables of the core: `python -m midstream.cli.diagrams` writes it anew.

Runs on a developer's machine only. A test compares the file with what would be drawn.
"""

from __future__ import annotations

import enum
import sys
from collections import defaultdict
from collections.abc import Iterable

from midstream.core import generation, instance, intent
from midstream.core.phases import Phase

_ABOUT = """# State machines

Drawn from the tables in `src/midstream/core`; do not edit, run `python -m midstream.cli.diagrams`.
Each table is keyed by (state, event) and has every pair. What is not drawn cannot happen: it raises
`IllegalTransition` and changes nothing, or (for instances) it is an event that changes nothing.
"""

_GENERATION = """## Generation

All instances of one service that were started from one release and one configuration (`core/generation.py`).
It never goes back: putting an old release back after the commit makes a new generation of it.
"""

_INSTANCE = """## Instance

One slot of a generation, over all the processes that fill it one after the other (`core/instance.py`). The words after
the slash are what is done about it; `settle` starts a committed generation's slot again (it waits, then), and nothing
else.
"""

_INTENT = """## Deploy on one host

What the agent was asked to do, and how far it is (`core/intent.py`). `committed` is the decision: before it a crash
leads back to the old release, after it forward to the new one.
"""

_PHASES = """## Phases of a handover

Where a candidate stands (`core/phases.py`); `core/handover.py` moves it on when what its phase waits for has come. Any
failure before the commit ends the handover: the candidate is failed, and the old generation serves as before; or, when
its workers were told to be quiet, which cannot be undone, a fresh generation of the old release does.

```mermaid
stateDiagram-v2
{lines}
```
"""

_PHASE_STEPS = (
    ("[*]", Phase.QUEUED, "begin"),
    (Phase.QUEUED, Phase.TRYING, "go, with a throw-away instance"),
    (Phase.QUEUED, Phase.CLEARING, "go, policy replace"),
    (Phase.QUEUED, Phase.STARTING, "go"),
    (Phase.TRYING, Phase.STARTING, "the throw-away instance is healthy"),
    (Phase.CLEARING, Phase.STARTING, "the old one is gone"),
    (Phase.STARTING, Phase.CLEARING, "the old one runs after all"),
    (Phase.STARTING, Phase.PROVEN, "all instances are healthy"),
    (Phase.PROVEN, Phase.SOAKING, "soak"),
    (Phase.PROVEN, Phase.QUIETING, "soak, policy drain"),
    (Phase.QUIETING, Phase.SOAKING, "each old worker is proven quiet, or gone"),
    (Phase.SOAKING, Phase.SOAKED, "the time is over"),
    (Phase.SOAKED, "[*]", "commit"),
)


def document() -> str:
    """The whole page."""
    phases = "\n".join(f"    {_name(one)} --> {_name(other)}: {why}" for one, other, why in _PHASE_STEPS)
    legal = ((one, event.value, other) for (one, event), other in generation.TABLE.items() if other is not None)
    moved = (
        (one, event.value + ("" if action is instance.Action.NONE else f" / {action.value}"), other)
        for (one, event), (other, action) in instance.TABLE.items()
        if other is not one or action is not instance.Action.NONE
    )
    asked = ((one, event.value, other) for (one, event), other in intent.TABLE.items() if other is not None)
    sections = (
        _ABOUT,
        _GENERATION + _diagram(legal, first="prepared", last=("retired",)),
        _INSTANCE + _diagram(moved, first="waiting", last=("ended",)),
        _PHASES.format(lines=phases),
        _INTENT + _diagram(asked, first="open", last=("closed",)),
    )
    return "\n".join(sections)


def _diagram(steps: Iterable[tuple[enum.Enum, str, enum.Enum]], first: str, last: tuple[str, ...]) -> str:
    """A mermaid diagram; events that lead from one state to the same other share an arrow."""
    arrows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one, event, other in steps:
        arrows[_name(one), _name(other)].append(event)
    lines = [f"    [*] --> {first}"]
    lines += [f"    {one} --> {other}: {', '.join(events)}" for (one, other), events in arrows.items()]
    lines += [f"    {state} --> [*]" for state in last]
    return "\n```mermaid\nstateDiagram-v2\n" + "\n".join(lines) + "\n```\n"


def _name(state: enum.Enum | str) -> str:
    return state if isinstance(state, str) else str(state.value)


def main() -> None:
    """Writes the page to the path given, by default `docs/state-machines.md`."""
    path = sys.argv[1] if len(sys.argv) > 1 else "docs/state-machines.md"
    with open(path, "w", encoding="utf-8") as file:
        file.write(document())


if __name__ == "__main__":
    main()
