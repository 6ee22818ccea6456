"""What is wrong with a configuration: values that do not fit, mistakes with their place, the error that carries them.

Pure. Nothing here knows a key. A reader raises `Misfit` (or `Misfits`, several at once) with the path below the value
it was given; `core/config.py` turns them into `Mistake`s with file, line and whole path.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from midstream.core.config_lines import Path
from midstream.errors import OperatorError

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")


class Misfit(ValueError):
    """One value that does not fit. `path`: from the value that was read; `missing`: the path is not in the text."""

    def __init__(self, what: str, path: Path = (), *, missing: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.path = path
        self.missing = missing

    def below(self, path: Path) -> Misfit:
        return Misfit(self.what, path + self.path, missing=self.missing)


class Misfits(ValueError):
    """Several of them, found in one value."""

    def __init__(self, problems: Iterable[Misfit]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problem.what for problem in self.problems))


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """A place and what was expected there. `line` counts from 1; 0: the file as a whole."""

    file: str
    line: int
    path: str
    what: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.path}: {self.what}" if self.path else f"{place}: {self.what}"


class ConfigError(OperatorError):
    """The configuration cannot be used. `mistakes` are all that were found, in the order of the file."""

    code = "operator"

    def __init__(self, mistakes: Iterable[Mistake], *, where: str = "") -> None:
        self.mistakes = tuple(sorted(set(mistakes)))
        count = len(self.mistakes)
        files = list(dict.fromkeys(mistake.file for mistake in self.mistakes))
        super().__init__(
            f"{' and '.join(files)}: {'one mistake' if count == 1 else f'{count} mistakes'}",
            where=where,
            detail="\n".join(str(mistake) for mistake in self.mistakes),
            serving="unchanged: nothing was done yet",
            remedy=f"correct {'it' if count == 1 else 'them'} and run the command again",
        )


def show_path(path: Path) -> str:
    """The path as TOML would write it, list items by index: `services.web.listen[0]`, `env."odd key"`."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            key = part if _PLAIN_KEY.match(part) else '"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"'
            out += f".{key}" if out else key
    return out


def nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The known word that was probably meant; None when none is near. likeness: from 0 to 1, the same."""
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=likeness)
    return found[0] if found else None


def shown(value: object) -> str:
    """A value as it is quoted in a message: short, in TOML's words for its type."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}…"'
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    return str(value)[:60]
