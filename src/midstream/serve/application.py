"""Loading the app: `MODULE:NAME`, `MODULE:FACTORY()`, `MODULE` (then `application` or `app`). Zygote, or each worker.

What lives here: the import and what kind of app it is. Errors are told as the operator has to read them: an AppError with
the traceback of the app's own code, without our frames.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from midstream.errors import AppError, OperatorError
from midstream.serve.settings import Settings

App = Callable[..., Any]
_DEFAULT_NAMES = ("application", "app")


def load(settings: Settings) -> App:
    """Imports the app. Raises AppError when its code fails, OperatorError when the name leads nowhere. SystemExit of the
    app's code is an AppError as well."""
    module_name, _, expression = settings.app.partition(":")
    module = _import(module_name)
    found = _evaluate(module, module_name, expression, settings.factory)
    if not callable(found):
        raise OperatorError(
            f"{settings.app} is a {type(found).__name__}, no app", remedy="name the WSGI or ASGI callable"
        )
    return found  # type: ignore[no-any-return]


def interface_of(app: App, wanted: str) -> str:
    """ "wsgi" or "asgi". wanted "auto": an app whose call is a coroutine function, or that takes the scope alone (ASGI 2), is
    ASGI."""
    if wanted != "auto":
        return wanted
    call = app if inspect.isroutine(app) or inspect.isclass(app) else type(app).__call__
    if inspect.iscoroutinefunction(inspect.unwrap(call)) or inspect.iscoroutinefunction(app):
        return "asgi"
    if inspect.isclass(app) and hasattr(app, "__await__"):
        return "asgi"
    return "asgi" if _takes_scope(app) else "wsgi"


def _takes_scope(app: App) -> bool:
    """scope, receive, send, where a plain function passes the call on to a coroutine; or one argument, where WSGI has two."""
    try:
        parameters = inspect.signature(app).parameters
    except (TypeError, ValueError):
        return False
    alone = len(parameters) == 1 and all(one.kind is not one.VAR_POSITIONAL for one in parameters.values())
    return alone or list(parameters)[:3] == ["scope", "receive", "send"]


def is_asgi2(app: Any) -> bool:
    """Whether it takes the scope alone, and gives what takes receive and send."""
    try:
        signature = inspect.signature(app)
        signature.bind(None, None, None)
    except TypeError:
        try:
            inspect.signature(app).bind(None)
        except TypeError:
            return False
        return True
    except ValueError:
        return False
    return False


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise OperatorError(
                f"there is no module {error.name!r}",
                where=f"import path: {', '.join(sys.path[:4])} …",
                remedy="let --chdir name the folder that holds it, or --pythonpath",
            ) from error
        raise failed(f"{name} cannot be imported", error) from error
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        raise failed(f"{name} cannot be imported", error) from error


def _evaluate(module: ModuleType, module_name: str, expression: str, factory: bool) -> Any:
    if not expression:
        expression = next((name for name in _DEFAULT_NAMES if hasattr(module, name)), _DEFAULT_NAMES[0])
    name, arguments = _parse(expression)
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise OperatorError(
                f"module {module_name} has no {name!r}",
                where=getattr(module, "__file__", "") or "",
                remedy=_near(module),
            ) from None
    if arguments is None and not factory:
        return found
    args, kwargs = arguments or ([], {})
    try:
        return found(*args, **kwargs)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        raise failed(f"{module_name}:{expression} failed", error) from error


def _near(module: ModuleType) -> str:
    there = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    return "name one of: " + ", ".join(sorted(there)[:12]) if there else "name the app in it"


def _parse(expression: str) -> tuple[str, tuple[list[Any], dict[str, Any]] | None]:
    """`name` or `name(literals)`, as gunicorn reads it."""
    try:
        tree = ast.parse(expression, mode="eval").body
        if isinstance(tree, ast.Call):
            args = [ast.literal_eval(arg) for arg in tree.args]
            kwargs = {str(word.arg): ast.literal_eval(word.value) for word in tree.keywords if word.arg}
            return ast.unparse(tree.func), (args, kwargs)
        if isinstance(tree, ast.Name | ast.Attribute):
            return ast.unparse(tree), None
    except (SyntaxError, ValueError) as error:
        raise OperatorError(f"{expression!r} is no name of an app", remedy="MODULE:NAME or MODULE:FACTORY()") from error
    raise OperatorError(f"{expression!r} is no name of an app", remedy="MODULE:NAME or MODULE:FACTORY()")


def failed(what: str, error: BaseException) -> AppError:
    """The app's own error, with its traceback from where our frames end."""
    lines = traceback.format_exception(type(error), error, _app_part(error))
    last = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    return AppError(
        f"{what}: {last}",
        detail="".join(lines),
        remedy="mend the app: the lines above are its own traceback; `midstream serve --check` tries it without serving",
    )


def _app_part(error: BaseException) -> Any:
    part = error.__traceback__
    while part is not None:
        name = part.tb_frame.f_globals.get("__name__", "")
        if name != __name__ and not name.startswith("importlib"):
            return part
        part = part.tb_next
    return error.__traceback__
