"""Every error that a user can meet says what to do next: `remedy` is given wherever one of ours is made (STYLE, Errors).

Read from the source, as text: an error that no test provokes counts too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import midstream
from midstream import errors

SOURCE = Path(midstream.__file__).parent
KINDS = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.MidstreamError) and kind is not errors.MidstreamError
}
# A bug is reported, an interrupt was the user's own: neither has a next step that they do not know.
WITHOUT = {
    "BugError": "its exit says: report it",
    "InterruptedDeploy": "the user's own doing; the verdict says the rest",
}
# folder -> why what is raised there needs none
NOT_MET = {"testing": "fakes for tests of those who build on this"}


def errors_made(code: str) -> Iterator[tuple[int, str]]:
    """Line and kind of each error of ours that is made without a remedy, or with an empty one."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        kind = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if kind not in KINDS - set(WITHOUT):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if None in given:  # **details
            continue
        remedy = given.get("remedy")
        if remedy is None or (isinstance(remedy, ast.Constant) and not str(remedy.value).strip()):
            yield node.lineno, kind


def modules() -> list[str]:
    paths = (path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))
    return sorted(str(path) for path in paths if path.parts[0] not in NOT_MET)


def test_each_error_says_what_to_do_next() -> None:
    rows = [f"{name}:{line}: {kind} without a remedy" for name in modules() for line, kind in errors_made(_text(name))]
    assert not rows, "\n".join(rows)


def test_the_exceptions_are_still_there() -> None:
    assert set(WITHOUT) <= KINDS
    assert all((SOURCE / folder).is_dir() for folder in NOT_MET)


@pytest.mark.parametrize(
    ("code", "rows"),
    [
        ('raise HostError("no room")', [(1, "HostError")]),
        ('raise HostError("no room", remedy="")', [(1, "HostError")]),
        ('raise errors.HostError("no room")', [(1, "HostError")]),
        ('raise HostError("no room", remedy="make some")', []),
        ('raise BugError("no room")', []),
        ("raise HostError(what, **details)", []),
    ],
)
def test_the_rule_is_seen_where_it_is_broken(code: str, rows: list[tuple[int, str]]) -> None:
    assert list(errors_made(code)) == rows


def _text(name: str) -> str:
    return (SOURCE / name).read_text()
