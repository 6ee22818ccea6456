"""The texts a configuration comes from, and where in them a problem is.

Pure. Two texts count, the working copy's and the revision's, and within the first a stage may override any key: a
problem in the merged whole is blamed on the place that brought it in.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from midstream.core.config_lines import Path, line_of, locate
from midstream.core.config_mistakes import ConfigError, Misfit, Mistake, show_path
from midstream.core.values import dataclass

# what the working copy's file says; the revision's says all else (DESIGN 6)
WORKING_KEYS = frozenset(
    {"app", "repository", "repo_tree", "branch", "source", "deploy_to", "user", "secrets", "stages", "notify"}
)

_AT_LINE = re.compile(r" ?\(at line (\d+), column (\d+)\)\Z")


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is valid TOML. name: what messages call it. lines: of every key path in it."""

    name: str
    table: dict[str, Any]
    lines: dict[Path, int]


def parse(text: str, name: str) -> Document:
    """Raises ConfigError with the line and column of a syntax error."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what = str(error)
        at = _AT_LINE.search(what)
        line = int(at[1]) if at else text.count("\n") + 1
        column = f" (column {at[2]})" if at else " (at the end)"
        raise ConfigError([Mistake(name, line, "", f"not valid TOML: {_AT_LINE.sub('', what)}{column}")]) from None
    return Document(name, table, locate(text))


def read_both(
    revision_text: str | None, working_text: str | None, file: str, revision: str
) -> tuple[Document, Document, tuple[str, ...]]:
    """The working copy's document, the revision's, and notes."""
    if working_text is None and revision_text is None:
        raise ValueError("no text at all")
    if revision_text is None or working_text is None or revision_text == working_text:
        only = parse(working_text if working_text is not None else revision_text or "", file)
        note = f"revision {revision} has no {file}: the working copy's counts" if revision else ""
        return only, only, (note,) if note and revision_text is None else ()
    mistakes: list[Mistake] = []
    documents = []
    for text, name in ((working_text, file), (revision_text, f"{file} in {revision or 'the revision'}")):
        try:
            documents.append(parse(text, name))
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
    return documents[0], documents[1], ()


@dataclass(frozen=True, slots=True)
class Blame:
    """Finds whose key a problem in the merged configuration is."""

    working: Document
    revision: Document
    stage: str | None
    override: Mapping[str, Any]

    def mistake(self, problem: Misfit) -> Mistake:
        path = problem.path
        anchor = path[:-1] if problem.missing else path
        base = self.working if path and path[0] in WORKING_KEYS else self.revision
        in_stage = _depth(self.override, anchor)
        in_base = _depth(base.table, anchor)
        if in_stage and in_stage >= in_base and self.stage is not None:
            prefix: Path = ("stages", self.stage)
            shown = path if problem.missing else path[:in_stage]
            return self._at(self.working, prefix + shown, problem.what)
        shown = path if problem.missing or not in_base else path[:in_base]
        return self._at(base, shown, problem.what)

    @staticmethod
    def _at(document: Document, path: Path, what: str) -> Mistake:
        return Mistake(document.name, line_of(document.lines, path) or 0, show_path(path), what)


def _depth(raw: Any, path: Path) -> int:
    """How much of the path there is in `raw`."""
    for depth, part in enumerate(path):
        known = range(len(raw)) if isinstance(raw, list) else raw if isinstance(raw, dict) else ()
        if part not in known:
            return depth
        raw = raw[part]
    return len(path)
