"""Reading Python texts without running them: what is assigned, called and defined at the top of a module."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Module:
    """What is at the top of a module. assigned: name -> the last expression. functions: name -> definition. imported:
    name -> "module.name" as written, with leading dots where relative."""

    assigned: dict[str, ast.expr]
    functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef]
    imported: dict[str, str]


def parse(text: str) -> Module:
    """The module in `text`; an empty one where it is no Python that we can read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the project's own invalid escapes
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Module({}, {}, {})
    module = Module({}, {}, {})
    for node in _statements(tree.body):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    module.assigned[target.id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            module.assigned[node.target.id] = node.value
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            module.functions[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                source = "." * node.level + (node.module or "")
                module.imported[alias.asname or alias.name] = f"{source}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                module.imported[alias.asname or alias.name.split(".")[0]] = alias.name
    return module


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those inside `if` and `try` too."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _statements([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _statements([*node.body, *node.orelse, *node.finalbody])


def called(expression: ast.expr) -> str:
    """The name of what an expression calls, without its module: `flask.Flask(__name__)` -> "Flask"; "" for no call."""
    if not isinstance(expression, ast.Call):
        return ""
    function = expression.func
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def strings(expression: ast.expr) -> tuple[str, ...]:
    """The string literals in an expression, from left to right."""
    found = [node for node in ast.walk(expression) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    found.sort(key=lambda node: (node.lineno, node.col_offset))
    return tuple(str(node.value) for node in found)


def literal(expression: ast.expr) -> object:
    """The value of a literal expression; None where it is computed."""
    try:
        return ast.literal_eval(expression)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def needs_no_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = function.args
    given = len(arguments.defaults)
    required = len(arguments.posonlyargs) + len(arguments.args) - given
    return required <= 0 and all(default is not None for default in arguments.kw_defaults)
