"""What a Ruby expression is worth without Ruby: settings are looked up, strings put together, lists joined.

Pure. The function is total: what cannot be known is `Unread` with the reason, what the environment decides is
`FromEnv`. Nothing is read from the real environment, so the same files give the same result everywhere.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from midstream.deploy.scaffold.capistrano_methods import (
    METHODS,
    FromEnv,
    Lazy,
    Question,
    Symbol,
    Unread,
    first_unknown,
    joined,
    text_of,
    to_i,
    truth,
    uniq,
)
from midstream.deploy.scaffold.capistrano_nodes import (
    Assign,
    Both,
    Call,
    Choice,
    Function,
    If,
    Items,
    Literal,
    Node,
    Not,
    Opaque,
    Pairs,
    SymbolOf,
    Text,
)

_DEPTH_MAX = 30
_LENGTH_MAX = 20_000
_ITEMS_MAX = 1_000

DEFAULTS: Mapping[str, Any] = {"branch": "master", "tmp_dir": "/tmp", "keep_releases": 5, "pty": False}


@dataclass(slots=True)
class Scope:
    """What names mean. settings: Capistrano's variables. environment: what was asked of ENV, with the value taken in
    its place. files: of the project, which `File.read` may name."""

    settings: dict[str, Any] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)
    environment: list[tuple[str, Any]] = field(default_factory=list)
    files: Mapping[str, str] = field(default_factory=dict)
    depth: int = 0

    def fetch(self, key: str, default: Any = None) -> Any:
        """A setting; a lambda is called once and its value kept, as Capistrano does."""
        if key not in self.settings:
            return self.default(key) if default is None else default
        value = self.settings[key]
        for _ in range(_DEPTH_MAX):
            if not isinstance(value, Lazy):
                break
            value = self.settings[key] = self.called(value.function)
        return value

    def default(self, key: str) -> Any:
        if key == "deploy_to":
            name = self.fetch("application")
            return joined(["/var/www/", name])
        return DEFAULTS.get(key)

    def called(self, function: Function) -> Any:
        statements = function.block.body
        if len(statements) != 1 or statements[0].node is None:
            return Unread("the code of the lambda is not known")
        return evaluate(statements[0].node, self)


def evaluate(node: Node, scope: Scope) -> Any:
    """The value: str, Symbol, int, float, bool, None, list, dict, or one of the classes above. Never raises."""
    if scope.depth >= _DEPTH_MAX:
        return Unread("it refers to itself, or is nested too deeply")
    scope.depth += 1
    try:
        return _bounded(_EVALUATE[type(node)](node, scope))
    finally:
        scope.depth -= 1


def _bounded(value: Any) -> Any:
    too_long = isinstance(value, str) and len(value) > _LENGTH_MAX
    too_many = isinstance(value, list | dict) and len(value) > _ITEMS_MAX
    return Unread("it is too long") if too_long or too_many else value


def _literal(node: Literal, scope: Scope) -> Any:
    return node.value


def _text(node: Text, scope: Scope) -> Any:
    return joined([part if isinstance(part, str) else evaluate(part, scope) for part in node.parts])


def _symbol(node: SymbolOf, scope: Scope) -> Any:
    name = joined([part if isinstance(part, str) else evaluate(part, scope) for part in node.parts])
    return Symbol(name) if isinstance(name, str) else name


def _items(node: Items, scope: Scope) -> Any:
    return list(flattened_once(node.items, scope))


def flattened_once(nodes: tuple[Node, ...], scope: Scope) -> list[Any]:
    """The values of `nodes`, with the items of a `*list` in its place."""
    out: list[Any] = []
    for node in nodes:
        if isinstance(node, Call) and node.name == "*" and node.receiver is not None:
            inner = evaluate(node.receiver, scope)
            out += inner if isinstance(inner, list) else [inner]
        else:
            out.append(evaluate(node, scope))
    return out


def _pairs(node: Pairs, scope: Scope) -> Any:
    return options_of(node.pairs, scope)


def options_of(pairs: tuple[tuple[Node, Node], ...], scope: Scope) -> dict[Any, Any]:
    """A Ruby hash. A key that is not known is left out under its reason. Of a key that is written twice Ruby drops the
    first, also its place."""
    out: dict[Any, Any] = {}
    for key_node, value_node in pairs:
        key = evaluate(key_node, scope)
        if isinstance(key, str | int):
            out.pop(key, None)
        out[key if isinstance(key, str | int) else f"?{len(out)}"] = (
            evaluate(value_node, scope) if isinstance(key, str | int) else Unread("its key is not known")
        )
    return out


def _function(node: Function, scope: Scope) -> Any:
    return Lazy(node)


def _opaque(node: Opaque, scope: Scope) -> Any:
    kind = "its command runs when a deploy begins" if node.text.startswith(("`", "%x")) else "it is Ruby code"
    return Unread(kind)


def _not(node: Not, scope: Scope) -> Any:
    found = truth(evaluate(node.operand, scope))
    return Unread("the condition is not known") if found is None else not found


def _choice(node: Choice, scope: Scope) -> Any:
    found = truth(evaluate(node.test, scope))
    if found is None:
        return Unread("the condition is not known")
    return evaluate(node.yes if found else node.no, scope)


def _if(node: If, scope: Scope) -> Any:
    for test, body in node.branches:
        found = True if test is None else truth(evaluate(test, scope))
        if found is None:
            return Unread("the condition is not known")
        if found:
            one = body[0].node if len(body) == 1 else None
            return Unread("it is Ruby code") if one is None else evaluate(one, scope)
    return None


def _assign(node: Assign, scope: Scope) -> Any:
    return Unread("it is Ruby code")


def _both(node: Both, scope: Scope) -> Any:
    left = evaluate(node.left, scope)
    if node.operator in ("||", "or"):
        return _either(left, node.right, scope)
    if node.operator in ("&&", "and"):
        found = truth(left)
        return Unread("the condition is not known") if found is None else evaluate(node.right, scope) if found else left
    right = evaluate(node.right, scope)
    unknown = first_unknown(left, right)
    if unknown:
        return unknown
    if node.operator in ("==", "!="):
        same = type(left) is type(right) and left == right
        return same == (node.operator == "==")
    return _combined(left, node.operator, right)


def _either(left: Any, right: Node, scope: Scope) -> Any:
    if isinstance(left, FromEnv):
        value = evaluate(right, scope)
        scope.environment.append((left.name, value))
        return value
    if isinstance(left, Unread):
        return left
    return left if truth(left) else evaluate(right, scope)


def _combined(left: Any, operator: str, right: Any) -> Any:
    if isinstance(left, list) and operator in ("+", "|", "-", "<<"):
        other = [right] if operator == "<<" else right
        if isinstance(other, list):
            if operator == "-":
                return [item for item in left if item not in other]
            both = [*left, *other]
            return uniq(both) if operator == "|" else both
    if isinstance(left, str) and isinstance(right, str) and operator in ("+", "<<"):
        return str(left) + right
    if isinstance(left, str) and operator == "/":  # Pathname
        return posixpath.join(left, text_of(right))
    numbers = type(left) in (int, float) and type(right) in (int, float)
    if numbers and operator in ("+", "-") and abs(left) < 1e15 and abs(right) < 1e15:
        return left + right if operator == "+" else left - right
    return Unread("it is Ruby code")


def _call(node: Call, scope: Scope) -> Any:
    if node.receiver is None:
        return _bare(node, scope)
    constant = _constant(node.receiver)
    if constant:
        return _of_constant(constant, node, scope)
    receiver = evaluate(node.receiver, scope)
    if isinstance(receiver, FromEnv) and node.name in ("to_s", "to_i", "to_sym", "strip", "chomp", "downcase"):
        return receiver
    if isinstance(receiver, Lazy) and node.name == "call":
        return scope.called(receiver.function)
    args = flattened_once(node.args, scope)
    method = METHODS.get(node.name)
    if method is None or node.block is not None or node.options:
        return first_unknown(receiver) or Unread("it is Ruby code")
    # a list may hold what is not known, and still be added to
    unknown = first_unknown(receiver) if isinstance(receiver, list) else first_unknown(receiver, *args)
    if unknown:
        return unknown
    try:
        return method(receiver, *args)
    except (TypeError, ValueError, AttributeError, IndexError, KeyError):
        return Unread("it is Ruby code")


def _constant(node: Node) -> str:
    """`ENV`, `File`, …; "" for anything else."""
    plain = isinstance(node, Call) and node.receiver is None and not node.args and not node.options
    return node.name if plain and isinstance(node, Call) and node.name[:1].isupper() else ""


def _of_constant(constant: str, node: Call, scope: Scope) -> Any:
    args = flattened_once(node.args, scope)
    if constant == "ENV":
        return _environment(node, args, scope)
    unknown = first_unknown(*args)
    if unknown:
        return unknown
    if constant == "File" and node.name == "join":
        return _file_join([text_of(item) for item in args])
    if constant in ("File", "IO") and node.name == "read" and len(args) == 1 and text_of(args[0]) in scope.files:
        return scope.files[text_of(args[0])]
    if constant == "File" and node.name in ("basename", "dirname") and len(args) == 1:
        return getattr(posixpath, node.name)(text_of(args[0]))
    if constant == "Pathname" and node.name == "new" and len(args) == 1:
        return text_of(args[0])
    return Unread("it is Ruby code")


def _file_join(parts: list[str]) -> str:
    """As Ruby's: one slash between, none taken away at the ends."""
    out = parts[0] if parts else ""
    for part in parts[1:]:
        out = out.rstrip("/") + "/" + part.lstrip("/")
    return out


def _environment(node: Call, args: list[Any], scope: Scope) -> Any:
    if not args or not isinstance(args[0], str):
        return Unread("the environment decides it when a deploy runs")
    if node.name == "[]":
        return FromEnv(str(args[0]))
    if node.name != "fetch":
        return Unread(f"the variable {args[0]} decides it when a deploy runs")
    if len(args) > 1:
        scope.environment.append((str(args[0]), args[1]))
        return args[1]
    if node.block is not None:
        value = scope.called(Function(node.block))
        scope.environment.append((str(args[0]), value))
        return value
    return FromEnv(str(args[0]))


def _bare(node: Call, scope: Scope) -> Any:
    if node.name in scope.names and not node.args:
        return scope.names[node.name]
    if node.name in ("fetch", "fetch_for"):
        return _fetched(node, scope)
    if node.name in ("lambda", "proc") and node.block:
        return Lazy(Function(node.block))
    if node.name in _PATHS and not node.args:
        return _path(node.name, scope)
    if node.name in ("Pathname", "String", "Array", "Integer") and len(node.args) == 1:
        value = evaluate(node.args[0], scope)
        if node.name == "Array":
            return value if isinstance(value, list) else [] if value is None else [value]
        return first_unknown(value) or (text_of(value) if node.name != "Integer" else to_i(value))
    if node.name == "ask":
        return Question(None)
    return Unread("it is Ruby code")


def _fetched(node: Call, scope: Scope) -> Any:
    args = flattened_once(node.args[:1], scope)
    if not args or not isinstance(args[0], str):
        return Unread("which setting is fetched is not known")
    key = str(args[0])
    if key not in scope.settings and scope.default(key) is None:
        if node.block is not None:
            return scope.called(Function(node.block))
        if len(node.args) > 1:
            value = evaluate(node.args[1], scope)
            return scope.called(value.function) if isinstance(value, Lazy) else value
    value = scope.fetch(key)
    return list(value) if isinstance(value, list) else value


_PATHS = {
    "deploy_to": "",
    "deploy_path": "",
    "current_path": "current",
    "release_path": "current",
    "shared_path": "shared",
    "releases_path": "releases",
    "repo_path": "repo",
}


def _path(name: str, scope: Scope) -> Any:
    base = scope.fetch("deploy_to")
    if isinstance(base, str):
        return posixpath.join(base, _PATHS[name]) if _PATHS[name] else str(base)
    return first_unknown(base) or Unread("deploy_to is not known")


_EVALUATE: Mapping[type, Callable[[Any, Scope], Any]] = {
    Literal: _literal,
    Text: _text,
    SymbolOf: _symbol,
    Items: _items,
    Pairs: _pairs,
    Function: _function,
    Call: _call,
    Both: _both,
    Not: _not,
    Choice: _choice,
    If: _if,
    Assign: _assign,
    Opaque: _opaque,
}
