"""`{shared}`, `{fd}` and the other placeholders of commands, addresses and environment values.

Pure, standard library only. The configuration checks them on the deployer; the agent fills them in when it starts a
process, because only it knows them then. The rule is one for both: a lower-case word in braces is a placeholder;
`{{word}}` stands for `{word}`; `${word}` belongs to the shell; braces around anything else are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# where each may stand, and what it means; the reference page prints this table
MEANINGS = {
    "deploy_to": "the app's folder",
    "shared": "`deploy_to/shared`",
    "release": "the folder of the release the process is pinned to",
    "run": "a private folder of the generation, for pid files and sockets; gone with it",
    "slot": "the instance's number, from 0",
    "fd": "the number of the first listener's descriptor; `{fd:NAME}` that of listener NAME",
    "ready_fd": 'the descriptor for the newline of `ready = "fd"`',
}
IN_ADDRESS = frozenset({"deploy_to", "shared"})
IN_STEP = frozenset({"deploy_to", "shared", "release"})
IN_ENV = IN_STEP | {"run"}
IN_SERVICE = frozenset(MEANINGS)

_PLACEHOLDER = re.compile(
    r"\{\{(?P<escaped>[a-z][a-z_]*(?::[a-z][a-z0-9_-]*)?)\}\}|(?<!\$)\{(?P<word>[a-z][a-z_]*)(?::(?P<name>[a-z][a-z0-9_-]*))?\}"
)


def escaped(text: str) -> str:
    """Text that stands for itself: what would be a placeholder in it gets its braces doubled."""
    return _PLACEHOLDER.sub(lambda found: "{" + found[0] + "}", text)


@dataclass(frozen=True, slots=True)
class Placeholder:
    """`{word}` or `{word:name}`; name is "" where there is none."""

    word: str
    name: str = ""

    def __str__(self) -> str:
        return f"{{{self.word}:{self.name}}}" if self.name else f"{{{self.word}}}"


def find(text: str) -> tuple[Placeholder, ...]:
    """The placeholders in `text`, in order, known ones and others."""
    return tuple(
        Placeholder(match["word"], match["name"] or "")
        for match in _PLACEHOLDER.finditer(text)
        if match["word"] is not None
    )


def escape(text: str) -> str:
    """`text` so that `fill` gives it back as it is: for text that was written for another program."""
    return _PLACEHOLDER.sub(lambda match: "{" + match[0] + "}", text)


def fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with `{word}` replaced by `values["word"]` and `{word:name}` by `values["word:name"]`, in one pass: what
    is put in is not looked at again. A placeholder without a value raises KeyError with its text."""

    def replacement(match: re.Match[str]) -> str:
        if match["escaped"] is not None:
            return "{" + match["escaped"] + "}"
        key = f"{match['word']}:{match['name']}" if match["name"] else match["word"]
        if key not in values:
            raise KeyError(match[0])
        return values[key]

    return _PLACEHOLDER.sub(replacement, text)
