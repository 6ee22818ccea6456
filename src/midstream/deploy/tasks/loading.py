"""Finds and runs the `deploy.py` beside `midstream.toml`, and takes the registry that it fills.

It is the operator's program: it comes from the working copy, never from the revision that is deployed (ARCHITECTURE says
why), and is read before anything is asked of a host. Blocks. Writes nothing, no bytecode either.
"""

from __future__ import annotations

import ast
import os
import sys
import traceback
import types

from midstream.deploy.tasks.registry import Registry
from midstream.errors import MidstreamError, OperatorError

NAME = "deploy.py"


def load_tasks(folder: str) -> tuple[Registry, str]:
    """The registry of the deploy.py in `folder`, and a note for the operator ("" for none); an empty one where there is
    no such file, or one that has nothing to do with Midstream. Raises OperatorError with file and line."""
    path = os.path.join(folder, NAME)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return Registry(), ""
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(
            f"{NAME} cannot be read: {error}",
            where=path,
            remedy="look at its permissions, or move it away: it is optional",
        ) from error
    if not _is_ours(text, path):
        return Registry(), f"{path} does not import midstream: it is taken for something else, and not run"
    registry = _run(text, path, folder)
    registry.attached()  # what is attached to nothing is found now
    return registry, ""


def _is_ours(text: str, path: str) -> bool:
    """Whether the file means us: a deploy.py of another tool must not be run because it is there."""
    try:
        tree = ast.parse(text, path)
    except SyntaxError as error:
        if "midstream" not in text:
            return False
        raise OperatorError(
            f"{NAME} is no valid Python: {error.msg}",
            where=f"{path}:{error.lineno}",
            detail=(error.text or "").rstrip(),
            remedy="mend that line: python -m py_compile deploy.py",
        ) from None
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if any(name.partition(".")[0] == "midstream" for name in names):
            return True
        if (
            isinstance(node, ast.FunctionDef)
            and node.name == "tasks"
            and [a.arg for a in node.args.args] == ["registry"]
        ):
            return True
    return False


def _run(text: str, path: str, folder: str) -> Registry:
    module = types.ModuleType("midstream_deploy_py")
    module.__file__ = path
    if folder not in sys.path:
        sys.path.append(folder)  # what lies beside it can be imported; at the end, so that it hides nothing
    try:
        exec(compile(text, path, "exec"), module.__dict__)
        return _registry_of(module, path)
    except MidstreamError:
        raise
    except BaseException as error:
        lines = [number for frame, number in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == path]
        raise OperatorError(
            f"{type(error).__name__}: {error}",
            where=f"{path}:{lines[-1]}" if lines else path,
            detail="".join(traceback.format_exception(error)[-4:]),
            remedy="mend it; nothing was done yet",
        ) from error


def _registry_of(module: types.ModuleType, path: str) -> Registry:
    found = {id(value): value for value in vars(module).values() if isinstance(value, Registry)}
    fill = vars(module).get("tasks")
    if callable(fill):
        registry = next(iter(found.values()), None) or Registry()
        fill(registry)
        return registry
    if len(found) == 1:
        return next(iter(found.values()))
    raise OperatorError(
        f"{NAME} makes no Registry, and has no tasks(registry)"
        if not found
        else f"{NAME} makes {len(found)} registries",
        where=path,
        remedy="registry = Registry(), once, at the top",
    )
