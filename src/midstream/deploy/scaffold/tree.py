"""A project's files as a value, and the one function that reads them.

Bounded: at most so many files and bytes, no folder of somebody else's code, no link followed. A project too large for
that is looked at in part, its top first.
"""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

FILES_MAX = 5000
TEXTS_MAX = 800
TEXT_MAX_BYTES = 256 * 1024

FOREIGN = frozenset(
    {".git", ".hg", "node_modules", "__pycache__", "venv", "env", "site-packages", "vendor", "dist", "build"}
)
_READ = (
    "*.py",
    "*.rb",
    "*.ru",
    "*.js",
    "*.mjs",
    "*.cjs",
    "*.ts",
    "*.toml",
    "*.json",
    "*.txt",
    "*.in",
    "Gemfile",
    "Gemfile.lock",
    "Pipfile",
    "Procfile",
    ".gitignore",
    ".ruby-version",
    ".node-version",
    ".nvmrc",
)


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of a project. name: of its folder. files: relative paths. texts: of those worth reading. tracked: what
    git has; None: it is not known. branch: the one checked out, "" where there is none."""

    name: str
    files: frozenset[str]
    texts: Mapping[str, str]
    tracked: frozenset[str] | None = None
    branch: str = ""

    def text(self, path: str) -> str:
        """The text of a file; "" when there is none or it was not read."""
        return self.texts.get(path, "")

    def has(self, path: str) -> bool:
        return path in self.files

    def has_folder(self, path: str) -> bool:
        return any(file.startswith(path + "/") for file in self.files)

    def matching(self, pattern: str) -> tuple[str, ...]:
        """Paths that fit `pattern`, those nearest to the top first. `*` does not cross a slash."""
        parts = pattern.split("/")
        return tuple(
            path
            for path in sorted(self.files, key=lambda path: (path.count("/"), path))
            if path.count("/") == len(parts) - 1
            and all(fnmatchcase(name, part) for name, part in zip(path.split("/"), parts, strict=True))
        )

    def under(self, folder: str, suffix: str) -> Iterator[tuple[str, str]]:
        """Path and text of the files in `folder` ("" is all) that end with `suffix`, the top first."""
        prefix = f"{folder}/" if folder else ""
        for path in sorted(self.texts, key=lambda path: (path.count("/"), path)):
            if path.startswith(prefix) and path.endswith(suffix):
                yield path, self.texts[path]

    def is_left_out(self, path: str) -> bool:
        """Whether the file is there and will not come with a revision. Before the first `git add` .gitignore tells."""
        if path not in self.files:
            return False
        if self.tracked is not None:
            return path not in self.tracked
        rules = (line.strip().strip("/") for line in self.text(".gitignore").splitlines())
        return any(fnmatchcase(path, rule) or fnmatchcase(path.rpartition("/")[2], rule) for rule in rules if rule)

    def first(self, *paths: str) -> str | None:
        """The first of `paths` that there is."""
        return next((path for path in paths if path in self.files), None)


def read_tree(folder: Path) -> Tree:
    """The project in `folder`. Raises OSError when the folder itself cannot be read; files that cannot are left out."""
    os.listdir(folder)
    files = tuple(_walk(folder))
    texts: dict[str, str] = {}
    for path in files:
        if len(texts) < TEXTS_MAX and any(fnmatchcase(path.rpartition("/")[2], pattern) for pattern in _READ):
            text = _text_of(folder / path)
            if text is not None:
                texts[path] = text
    return Tree(folder.name, frozenset(files), texts, _tracked(folder), _branch(folder))


def _walk(folder: Path) -> Iterator[str]:
    """Relative paths of plain files, breadth first."""
    todo = deque([""])
    count = 0
    while todo:
        here = todo.popleft()
        try:
            entries = sorted(os.scandir(folder / here), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            path = f"{here}/{entry.name}" if here else entry.name
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in FOREIGN and not _is_virtualenv(entry):
                    todo.append(path)
            elif entry.is_file() and count < FILES_MAX:
                count += 1
                yield path


def _is_virtualenv(entry: os.DirEntry[str]) -> bool:
    return os.path.exists(os.path.join(entry.path, "pyvenv.cfg"))


def _text_of(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return stream.read(TEXT_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return None


def _tracked(folder: Path) -> frozenset[str] | None:
    listed = _git(folder, "ls-files", "-z")
    if listed is None:
        return None
    names = frozenset(name.decode("utf-8", "surrogateescape") for name in listed.split(b"\0") if name)
    return names or None  # nothing added yet: what will be in the first commit is not known


def _branch(folder: Path) -> str:
    return (_git(folder, "symbolic-ref", "--quiet", "--short", "HEAD") or b"").decode("utf-8", "replace").strip()


def _git(folder: Path, *words: str) -> bytes | None:
    """What git prints; None where it fails or there is none."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
