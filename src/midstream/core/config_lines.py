"""Which line a key of a TOML text stands on.

Pure. `tomllib` gives values without places, and a message without a line sends the operator searching. This reads a
text that `tomllib` has accepted already, so it may trust the syntax and looks at keys and brackets only.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'',
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


def locate(text: str) -> dict[Path, int]:
    """The first line, from 1, of every key path and list item in `text`, which is valid TOML. Tables that are only
    implied (`a` in `[a.b]`) stand where they are implied first."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of `path`, or of the longest part of it that the text has; None when it has none of it."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.arrays: dict[Path, int] = {}  # arrays of tables -> index of the last one
        self.starts = [0, *(index + 1 for index, char in enumerate(text) if char == "\n")]

    def document(self) -> None:
        table: Path = ()
        self.blank()
        while self.at < len(self.text):
            if self.text.startswith("[[", self.at):
                table = self.header(2)
            elif self.text[self.at] == "[":
                table = self.header(1)
            else:
                self.pair(table)
            self.blank()

    def header(self, brackets: int) -> Path:
        start = self.at
        self.at += brackets
        keys = self.keys()
        self.at += brackets
        path: Path = ()
        for key in keys[:-1]:
            path = self.inside((*path, key))
        path += (keys[-1],)
        if brackets == 2:
            self.arrays[path] = self.arrays.get(path, -1) + 1
            self.mark(path, start)
        path = self.inside(path)
        self.mark(path, start)
        return path

    def inside(self, path: Path) -> Path:
        return (*path, self.arrays[path]) if path in self.arrays else path

    def pair(self, table: Path) -> None:
        start = self.at
        path = table + tuple(self.keys())
        self.mark(path, start)
        self.at += 1  # the equals sign
        self.value(path)

    def keys(self) -> list[str]:
        keys = []
        while True:
            self.blank()
            keys.append(self.key())
            self.blank()
            if self.text[self.at] != ".":
                return keys
            self.at += 1

    def key(self) -> str:
        match = _BARE_KEY.match(self.text, self.at)
        if match is not None:
            self.at = match.end()
            return match[0]
        literal = self.string()
        value = tomllib.loads(f"x={literal}")["x"]
        assert isinstance(value, str)
        return value

    def string(self) -> str:
        match = _STRING.match(self.text, self.at)
        assert match is not None, "tomllib accepted this text"
        self.at = match.end()
        return match[0]

    def value(self, path: Path) -> None:
        self.blank()
        first = self.text[self.at]
        if first in "\"'":
            self.string()
        elif first == "[":
            self.items(path)
        elif first == "{":
            self.inline(path)
        else:
            match = _SCALAR.match(self.text, self.at)
            assert match is not None
            self.at = match.end()

    def items(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self.separated("]"):
            self.mark((*path, index), self.at)
            self.value((*path, index))
            index += 1

    def inline(self, path: Path) -> None:
        self.at += 1
        while self.separated("}"):
            self.pair(path)

    def separated(self, closing: str) -> bool:
        """Go to the next item of a list or inline table; False, and past the bracket, when there is none."""
        self.blank()
        if self.text[self.at] == ",":
            self.at += 1
            self.blank()
        if self.text[self.at] == closing:
            self.at += 1
            return False
        return True

    def blank(self) -> None:
        match = _BLANK.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def mark(self, path: Path, at: int) -> None:
        line = bisect_right(self.starts, at)
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], line)
