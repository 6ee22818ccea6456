"""The commands that there are, against those that are promised: in the contract, in the README, in the help pages."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from midstream.cli import main as cli_main
from midstream.cli.main import ALIASES, COMMANDS, SECTIONS
from midstream.cli.manpage import ManCommand

README = Path(__file__).parents[2] / "README.md"

# What midstream is to have, all parts built; `agent` and `env` with their own commands.
_WORDS = """
init setup check plan diff deploy resume abort rollback releases status why logs start stop restart reload quiet hold unhold
signal run exec console env lock unlock agent serve work herd dashboard top doctor demo
"""
PROMISED = _WORDS.split()
PROMISED_BELOW = {"agent": {"run", "install", "connect", "upgrade"}, "env": {"push"}}
NOT_YET = {"work", "herd", "dashboard", "top"}  # programs of their own, built later
ALSO = {"notify"}


def _command(name: str) -> click.Command:
    module, _, attribute = COMMANDS[name].target.partition(":")
    found = getattr(importlib.import_module(f"midstream.cli.{module}"), attribute)
    assert isinstance(found, click.Command)
    return found


def _leaves() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with the words that call it."""
    for name in COMMANDS:
        command = _command(name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {below}", one) for below, one in command.commands.items())
        else:
            yield name, command


def test_nothing_that_is_promised_is_missing_but_what_is_known_to_be() -> None:
    missing = {name for name in PROMISED if name not in COMMANDS}
    assert missing == NOT_YET, f"not there yet: {', '.join(sorted(missing))}"
    assert set(COMMANDS) - set(PROMISED) == ALSO
    for group, names in PROMISED_BELOW.items():
        command = _command(group)
        assert isinstance(command, click.Group)
        assert names <= set(command.commands)


def test_the_readme_names_every_command_and_none_that_there_is_not() -> None:
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|\$ |^)midstream ([a-z][a-z-]*)", text, re.M))
    table = "\n".join(line for line in text.splitlines() if line.startswith("| `midstream "))
    mentioned = set(re.findall(r"[a-z-]+", " ".join(re.findall(r"`([^`]*)`", table))))
    assert named - set(COMMANDS) - NOT_YET == set()
    assert set(COMMANDS) - mentioned == set(), "not in the README's table of commands"


def test_the_overview_is_a_table_by_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.run(["--help"]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"\n{title}:\n") for title in SECTIONS]
    assert places == sorted(places)
    for entry in COMMANDS.values():
        assert len(entry.summary) <= 80 and not entry.summary.endswith(".")
    assert {target[0] for target in ALIASES.values()} <= set(COMMANDS)


@pytest.mark.parametrize(
    ("words", "command"), list(_leaves()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_has_examples_that_its_own_options_understand(words: str, command: click.Command) -> None:
    assert isinstance(command, ManCommand) and command.examples, f"midstream {words} has no examples"
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for example in command.examples:
        mine = re.match(rf"midstream {words}\b(.*)", example)
        if mine is None:
            assert f"midstream {words}" in example or "midstream" in example, example
            continue  # an example may show what goes before or after it
        arguments = re.split(r"\s{2,}|\s\|\s|\s--\s|\s--$", mine[1])[0]
        if not command.context_settings.get(
            "allow_interspersed_args", True
        ):  # what comes after the first word belongs to another program
            arguments = re.match(r"(?: -[^ ]*(?: [a-z0-9,]+(?= -))?)*", arguments)[0]  # type: ignore[index]
        for option in re.findall(r"(?<=\s)(--[a-z][a-z-]*|-[a-z])(?=[\s=]|$)", arguments):
            assert option in {*options, "--help"}, f"{example}: {option}"
