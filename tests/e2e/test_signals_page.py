"""SIGNALS.md against the programs: what they catch and ignore, from /proc/PID/status."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from machine import Machine, wait_for

PAGE = Path(__file__).parents[2] / "SIGNALS.md"
NEVER = {"KILL", "STOP"}


def said(program: str) -> dict[str, str]:
    """The page's table of a program: signal -> what it does."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {program}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z0-9, ]+) \| (.+) \|$", section, re.MULTILINE)
    assert rows, section
    return {name: text for names, text in rows for name in names.split(", ")}


def masks(pid: int) -> tuple[set[str], set[str]]:
    """The signals that a process catches, and those that it ignores."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())

    def names(mask: str) -> set[str]:
        bits = int(mask.strip(), 16)
        return {item.name.removeprefix("SIG") for item in signal.Signals if bits >> (item - 1) & 1}

    return names(fields["SigCgt"]), names(fields["SigIgn"])


@pytest.mark.parametrize("program", ["keeper", "agent"])
def test_the_page_says_what_the_program_does(machine: Machine, program: str) -> None:
    status = machine.status()
    caught, ignored = masks(int(status[program]["pid"]))
    rows = said(program)
    assert NEVER & rows.keys() == {"KILL"}
    on_page = {name for name in rows if name not in NEVER}
    assert on_page == caught | ignored
    assert {name for name in on_page if rows[name].startswith("ignored")} == ignored


def test_term_ends_the_agent_alone(machine: Machine) -> None:
    keeper, agent = machine.keeper_pid, machine.agent_pid
    os.kill(agent, signal.SIGTERM)

    def another() -> bool:
        try:
            return machine.agent_pid != agent
        except Exception:
            return False

    wait_for("another agent", another)
    assert machine.keeper_pid == keeper
