"""`TaskBook`: a registry with what this run gives to it: settings from the command line, a terminal, a place for secrets.

Made by the command line, carried by the order. No I/O of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from midstream.deploy.tasks.registry import Registry
from midstream.errors import OperatorError


def _no_terminal(question: str, echo: bool) -> str:
    raise OperatorError("there is no terminal to ask at", remedy="give it on the command line")


@dataclass(slots=True)
class TaskBook:
    """given: settings of the command line, which win. ask: puts a question to the operator, blocks; called from a thread.
    keep_secret: told of every value (name, value) that must not be printed."""

    registry: Registry = field(default_factory=Registry)
    given: Mapping[str, str] = field(default_factory=dict)
    ask: Callable[[str, bool], str] = _no_terminal
    keep_secret: Callable[[str, str], None] = lambda name, value: None
