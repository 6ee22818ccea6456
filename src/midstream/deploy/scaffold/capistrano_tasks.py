"""Hooks of Capistrano into `[[hooks]]`: the commands of a task, where it consists of commands alone. Pure.

Carried over: `on … do` with `within`, `with`, `execute`, `sudo` and `invoke` of such tasks. A task that asks or decides
(`test`, `capture`, `if`, `upload!`) is a program: it is named in the list, to be written again in deploy.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from midstream.core.placeholders import escape
from midstream.core.points import point_of
from midstream.deploy.scaffold.capistrano_methods import Symbol, known, text_of
from midstream.deploy.scaffold.capistrano_nodes import Block, Call, Statement
from midstream.deploy.scaffold.capistrano_plugins import NEEDLESS_TASK_PREFIXES, POINTS
from midstream.deploy.scaffold.capistrano_recipe import Hook, Recipe, Task
from midstream.deploy.scaffold.capistrano_values import evaluate, flattened_once, options_of
from midstream.deploy.scaffold.foreign import needs_shell

_DEPTH_MAX = 5
_SUPERVISOR = re.compile(r"\b(?:systemctl|service|monit|supervisorctl|sv|initctl|pm2)\b")
_UNWATCHED = re.compile(r"(\bmonit\s(?:[^;&|]*\s)?)unmonitor(?=\s)")
_HARMLESS = frozenset({"info", "puts", "warn", "debug", "p", "next"})
_BUNDLED = frozenset({"rake", "rails", "sidekiq", "puma", "unicorn", "cap", "whenever"})


@dataclass(frozen=True, slots=True)
class HookDraft:
    """One `[[hooks]]` table. comment: where it comes from. undo: for every way of failing, "" for none."""

    when: str
    point: str
    run: tuple[str, ...]
    shell: bool = False
    roles: tuple[str, ...] = ()
    primary: bool = False
    env: tuple[tuple[str, str], ...] = ()
    comment: str = ""
    undo: str = ""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A hook without a table. needless: the handover does what it did."""

    why: str
    needless: bool = False


class _Program(Exception):
    """The task is more than commands; the message says what."""


@dataclass(frozen=True, slots=True)
class _Around:
    """What surrounds a command."""

    roles: tuple[str, ...] = ()
    primary: bool = False
    folder: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


def hook_drafts(recipe: Recipe, hook: Hook) -> tuple[HookDraft, ...] | Dropped:
    """The tables for one hook, or why there are none."""
    point = _point(hook, recipe, 0)
    name = _resolved(hook.task, hook.scope, recipe)
    task = recipe.tasks.get(name)
    if task is None and (point_of(name) is not None or name in POINTS):
        return Dropped(f"{name} is a step of a deploy already, or there is nothing for it to do", needless=True)
    if task is None and name.startswith(NEEDLESS_TASK_PREFIXES):
        return Dropped("a deploy hands services over; no restart is asked for", needless=True)
    if task is None:
        return Dropped(f"what {name} does is not in these files; write it as a [[hooks]] table or in deploy.py")
    if point is None:
        return Dropped(f"{hook.point} is no point of a deploy in Midstream; choose one (docs/configuration.md, Points)")
    try:
        found = list(_commands(recipe, task, 0))
    except _Program as error:
        return Dropped(f"{name} {error}; write it again in Python in deploy.py")
    if not found:
        return Dropped("a deploy hands services over; nothing else is left to do", needless=True)
    return tuple(_draft(hook, point, name, around, lines) for around, lines in found)


def commands_of(recipe: Recipe, task: Task) -> bool:
    """Whether a task consists of commands alone."""
    try:
        return bool(list(_commands(recipe, task, 0)))
    except _Program:
        return False


def _draft(hook: Hook, point: str, name: str, around: _Around, lines: tuple[str, ...]) -> HookDraft:
    exact = point_of(hook.point) or point_of(f"deploy:{hook.point}")
    comment = f"{name}, {hook.place}" + ("" if exact else f"; there it was {hook.when} {hook.point}")
    if any(_SUPERVISOR.search(line) for line in lines):
        comment += "; it goes when that process is one of the [services] here"
    undo = _UNWATCHED.sub(r"\1monitor", lines[0]) if len(lines) == 1 and _UNWATCHED.search(lines[0]) else ""
    if undo:  # Capistrano leaves it unwatched when a deploy fails between the two tasks
        comment += "; `undo` has it watched again in every way of failing"
    shell = any(needs_shell(line) for line in lines)
    return HookDraft(
        hook.when, point, lines, shell, around.roles, around.primary, tuple(sorted(around.env.items())), comment, undo
    )


def _resolved(name: str, scope: tuple[str, ...], recipe: Recipe) -> str:
    """The task that `name` means inside the namespaces of `scope`."""
    for length in range(len(scope), 0, -1):
        full = ":".join((*scope[:length], name))
        if full in recipe.tasks or full in POINTS or point_of(full) is not None:
            return full
    return name.lstrip("^")


def _point(hook: Hook, recipe: Recipe, depth: int) -> str | None:
    """Midstream's point. A task of the team's own is where its own hook is."""
    name = _resolved(hook.point, hook.scope, recipe)
    if name == "deploy":
        return "starting" if hook.when == "before" else "finished"
    found = point_of(name) or POINTS.get(name)
    if found is not None or depth >= _DEPTH_MAX:
        return found
    outer = next((one for one in recipe.hooks if _resolved(one.task, one.scope, recipe) == name), None)
    return _point(outer, recipe, depth + 1) if outer is not None and outer is not hook else None


def _commands(recipe: Recipe, task: Task, depth: int) -> Iterator[tuple[_Around, tuple[str, ...]]]:
    """The commands of a task, those of one `on` together."""
    if depth > _DEPTH_MAX:
        raise _Program("invokes itself")
    for other in task.prerequisites:
        yield from _invoked(recipe, other, task, depth)
    if task.block is None:
        return
    for statement in task.block.body:
        node = statement.node
        if not isinstance(node, Call) or node.receiver is not None:
            raise _Program("is Ruby code")
        if node.name == "on" and node.block is not None:
            around = _hosts(recipe, node)
            lines = list(_lines(recipe, node.block, around))
            yield from _grouped(lines)
        elif node.name in ("invoke", "invoke!"):
            name = evaluate(node.args[0], recipe.scope) if node.args else None
            yield from _invoked(recipe, text_of(name), task, depth)
        elif node.name not in _HARMLESS:
            raise _Program(f"uses `{node.name}`")


def _invoked(recipe: Recipe, name: str, task: Task, depth: int) -> Iterator[tuple[_Around, tuple[str, ...]]]:
    scope = tuple(task.name.split(":")[:-1])
    full = _resolved(name, scope, recipe)
    if full in recipe.tasks and recipe.tasks[full] is not task:
        yield from _commands(recipe, recipe.tasks[full], depth + 1)
    elif not full.startswith(NEEDLESS_TASK_PREFIXES):
        raise _Program(f"invokes {full or 'a task'}")


def _hosts(recipe: Recipe, call: Call) -> _Around:
    """`on roles(:web)`, `on primary(:db)`, `on release_roles(:all)`."""
    node = call.args[0] if len(call.args) == 1 else None
    if not isinstance(node, Call) or node.receiver is not None or node.options:
        raise _Program("runs on hosts that are not known")
    names = [
        name for one in flattened_once(node.args, recipe.scope) for name in (one if isinstance(one, list) else [one])
    ]
    if not all(isinstance(name, str) for name in names) or node.name not in ("roles", "release_roles", "primary"):
        raise _Program("runs on hosts that are not known")
    roles = tuple(str(name) for name in names if name != "all")
    return _Around(roles, node.name == "primary")


def _grouped(lines: list[tuple[_Around, str]]) -> Iterator[tuple[_Around, tuple[str, ...]]]:
    """Commands with the same environment become one table."""
    start = 0
    for index in range(1, len(lines) + 1):
        if index == len(lines) or lines[index][0] != lines[start][0]:
            yield lines[start][0], tuple(line for _, line in lines[start:index])
            start = index


def _lines(recipe: Recipe, block: Block, around: _Around) -> Iterator[tuple[_Around, str]]:
    for statement in block.body:
        node = statement.node
        if not isinstance(node, Call) or node.receiver is not None:
            raise _Program("is Ruby code")
        if node.name == "within" and node.block is not None and len(node.args) == 1:
            yield from _lines(recipe, node.block, replace(around, folder=_folder(recipe, node)))
        elif node.name == "with" and node.block is not None:
            yield from _lines(recipe, node.block, replace(around, env={**around.env, **_variables(recipe, node)}))
        elif node.name in ("execute", "sudo"):
            yield replace(around, folder=""), _in_folder(around.folder, _line(recipe, node, statement))
        elif node.name in ("invoke", "invoke!"):
            _refuse_needed(recipe, node)
        elif node.name not in _HARMLESS:
            raise _Program(f"uses `{node.name}`")


def _refuse_needed(recipe: Recipe, node: Call) -> None:
    """An `invoke` among commands: nothing, where a handover does it; else it is a program."""
    name = text_of(evaluate(node.args[0], recipe.scope)) if node.args else ""
    if not name.startswith(NEEDLESS_TASK_PREFIXES):
        raise _Program(f"invokes {name or 'a task'}")


def _folder(recipe: Recipe, node: Call) -> str:
    value = evaluate(node.args[0], recipe.scope)
    if not isinstance(value, str):
        raise _Program("works in a folder that is not known")
    text = placed(recipe, value)
    return "" if text == "{release}" else text


def _in_folder(folder: str, line: str) -> str:
    return f"cd {folder if folder.startswith('{') else shlex.quote(folder)} && {line}" if folder else line


def _variables(recipe: Recipe, node: Call) -> dict[str, str]:
    values = options_of(node.options, recipe.scope)
    for value in flattened_once(node.args, recipe.scope):
        if not isinstance(value, dict):
            raise _Program("sets variables that are not known")
        values |= value
    if not known(values):
        raise _Program("sets variables that are not known")
    names = {str(key).upper() if isinstance(key, Symbol) else str(key): text_of(value) for key, value in values.items()}
    if not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in names):
        raise _Program("sets variables that are not known")
    return {name: placed(recipe, value) for name, value in names.items()}


def _line(recipe: Recipe, node: Call, statement: Statement) -> str:
    """The command line as SSHKit makes it: the words joined, for a shell."""
    values = flattened_once(node.args, recipe.scope)
    words = [word for value in values for word in (value if isinstance(value, list) else [value])]
    options = options_of(node.options, recipe.scope)
    if not words or not all(isinstance(word, str | int) for word in words) or node.block is not None:
        raise _Program("runs a command that is not known")
    if set(options) - {"raise_on_non_zero_exit", "verbosity", "interaction_handler"}:
        raise _Program("runs a command with options")
    first, *rest = [re.sub(r"\s*\n\s*", " ", placed(recipe, text_of(word))).strip() for word in words]
    if isinstance(words[0], Symbol) and first in _BUNDLED and _is_bundled(recipe):
        first = f"bundle exec {first}"
    line = " ".join([*(["sudo"] if node.name == "sudo" else []), first, *rest]).strip()
    if not line or re.search(r"[\x00-\x08\x0b-\x1f\x7f]", line):
        raise _Program("runs a command that is not known")
    return f"{line} || true" if options.get("raise_on_non_zero_exit") is False else line


def _is_bundled(recipe: Recipe) -> bool:
    return any(name in recipe.plugins for name in ("capistrano/bundler", "capistrano/rails"))


def placed(recipe: Recipe, text: str) -> str:
    """`text` with the folders of the deploy as placeholders, and other braces meant as they stand."""
    text = escape(text)
    base = recipe.scope.fetch("deploy_to")
    if not isinstance(base, str) or len(base) < 2:
        return text
    base = re.escape(escape(base.rstrip("/")))
    for folder, word in (("/current", "{release}"), ("/shared", "{shared}"), ("", "{deploy_to}")):
        text = re.sub(rf"(?<![\w.-]){base}{folder}(?![\w.-])", word, text)
    return text
