"""The page of diagrams says what the tables say."""

from __future__ import annotations

from pathlib import Path

from midstream.cli.diagrams import document
from midstream.core.generation import TABLE

PAGE = Path(__file__).parents[2] / "docs" / "state-machines.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == document(), "run: python -m midstream.cli.diagrams"


def test_every_legal_step_of_a_generation_is_drawn() -> None:
    lines = document().split("## Instance")[0].splitlines()
    for (one, event), other in TABLE.items():
        if other is not None:
            [arrow] = [line for line in lines if line.strip().startswith(f"{one.value} --> {other.value}:")]
            assert event.value in arrow.split(": ")[1].split(", ")
