"""What a Python project depends on, and the commands that install it into the release's own virtualenv. Pure."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from midstream.core.placeholders import escaped
from midstream.deploy.scaffold.draft import Line
from midstream.deploy.scaffold.tree import Tree

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REQUIREMENTS = (
    "requirements.txt",
    "requirements/production.txt",
    "requirements/prod.txt",
    "requirements/base.txt",
    "requirements-prod.txt",
    "requirements/requirements.txt",
)


@dataclass(frozen=True, slots=True)
class Packages:
    """names: normalised names of what is required, as far as files tell. install: the commands that install it.
    add: the command that installs further packages, which are appended to it. env: for those commands. listed: the
    project names its dependencies somewhere."""

    names: frozenset[str]
    install: tuple[Line, ...]
    add: str
    env: tuple[tuple[str, str], ...] = ()
    listed: bool = True

    def build(self, *missing: str) -> tuple[Line, ...]:
        """The commands that install the project's dependencies and those of `missing` that they lack."""
        wanted = [name for name in missing if _normal(name) not in self.names]
        if not wanted:
            return self.install
        extra = " ".join(wanted)
        last = self.install[-1] if self.install else None
        if last is not None and last.command.startswith("pip install"):
            return (*self.install[:-1], Line(f"{last.command} {extra}", last.comment))
        return (
            *self.install,
            Line(f"{self.add} {extra}", f"{extra} is not among the dependencies" if self.listed else ""),
        )


_VENV = Line("python3 -m venv .venv", "each release has its own: the old one is not touched")


def packages_of(tree: Tree) -> Packages:
    """How the project is installed, from the files that say so; uv, poetry, pipenv, pip in this order."""
    project = _toml(tree, "pyproject.toml")
    names = frozenset(_normal(name) for name in _named(tree, project))
    if tree.has("uv.lock") and project:
        sync = Line("uv sync --frozen --no-dev", "makes .venv; uv must be installed on the host")
        return Packages(names, (sync,), "uv pip install")
    if tree.has("poetry.lock") and project:
        install = Line("poetry install --only main --no-interaction", "poetry must be installed on the host")
        return Packages(names, (install,), "pip install", (("POETRY_VIRTUALENVS_IN_PROJECT", "true"),))
    if tree.has("Pipfile.lock"):
        sync = Line("pipenv sync", "pipenv must be installed on the host")
        return Packages(names, (sync,), "pip install", (("PIPENV_VENV_IN_PROJECT", "1"),))
    requirements = tree.first(*_REQUIREMENTS)
    if requirements:
        return Packages(names, (_VENV, Line(f"pip install -r {requirements}")), "pip install")
    if "build-system" in project or tree.has("setup.py"):
        return Packages(names, (_VENV, Line("pip install .")), "pip install")
    declared = _strings(project.get("project", {}).get("dependencies"))
    if declared:
        # without a build system setuptools would guess what the packages are, and often refuse
        written = escaped(" ".join(_shell_word(one) for one in declared))
        return Packages(names, (_VENV, Line(f"pip install {written}", "as in pyproject.toml")), "pip install")
    return Packages(names, (_VENV,), "pip install", listed=False)


def _shell_word(requirement: str) -> str:
    word = re.sub(r"\s*([<>=!~;,])\s*", r"\1", requirement.strip())
    return word if re.fullmatch(r"[A-Za-z0-9._\[\],=~+-]+", word) else "'" + requirement.strip().replace("'", '"') + "'"


def _normal(name: str) -> str:
    match = _NAME.match(name)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""


def _toml(tree: Tree, path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(tree.text(path))
    except tomllib.TOMLDecodeError:
        return {}


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _named(tree: Tree, project: dict[str, Any]) -> Iterator[str]:
    yield from _strings(_table(project.get("project")).get("dependencies"))
    poetry = _table(_table(project.get("tool")).get("poetry"))
    yield from _table(poetry.get("dependencies"))
    yield from _table(_toml(tree, "Pipfile").get("packages"))
    for path in ("requirements.txt", *_REQUIREMENTS):
        yield from _required(tree, path, frozenset())
    setup = tree.text("setup.py") + tree.text("setup.cfg")
    listed = re.search(r"install_requires\s*=\s*\[?(.*?)(?:\]|\n\[|\Z)", setup, re.DOTALL)
    yield from re.findall(r"[A-Za-z][A-Za-z0-9._-]*", listed[1]) if listed else ()


def _required(tree: Tree, path: str, seen: frozenset[str]) -> Iterator[str]:
    """The names in a requirements file and in those that it includes."""
    if path in seen:
        return
    for raw in tree.text(path).splitlines():
        line = raw.split("#", 1)[0].strip()
        included = re.match(r"(?:-r|--requirement)[ =]?(.+)", line)
        if included:
            folder = path.rpartition("/")[0]
            other = included[1].strip()
            yield from _required(tree, f"{folder}/{other}" if folder else other, seen | {path})
        elif line and not line.startswith("-"):
            egg = re.search(r"#egg=([A-Za-z0-9._-]+)", raw)
            yield egg[1] if egg else line
