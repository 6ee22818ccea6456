"""The operator's hooks: functions of these names in one Python file (`--hooks FILE`). Zygote and workers.

| name | runs in | when |
|---|---|---|
| `before_exec(settings)` | the new zygote | first of all, before the app is imported |
| `before_fork(worker)` | the zygote | before each fork: close what must not be shared |
| `after_fork(worker)` | the worker | at once after it: open connections anew |
| `worker_ready(worker)` | the worker | it accepts on its private listener |
| `worker_exit(worker)` | the worker | it has answered everything and ends |
| `pre_request(worker, request)` | the worker | before the app is called: the WSGI environ or the ASGI scope |
| `post_request(worker, request)` | the worker | after the answer's end |

Where the import has left threads or connections, before_fork runs once more, in front of all, before it is refused.
worker: contract.Identity. What a hook raises before a worker is ready lets its boot fail, later it is told in the log.
"""

from __future__ import annotations

import os
import runpy
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from midstream.errors import AppError, OperatorError
from midstream.serve.application import App, failed, is_asgi2
from midstream.serve.contract import Identity

Hook = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Hooks:
    """Those that the file has."""

    before_exec: Hook | None = None
    before_fork: Hook | None = None
    after_fork: Hook | None = None
    worker_ready: Hook | None = None
    worker_exit: Hook | None = None
    pre_request: Hook | None = None
    post_request: Hook | None = None

    def run(self, name: str, *arguments: Any) -> None:
        """Raises AppError that says which hook failed, SystemExit of a hook too."""
        hook = getattr(self, name)
        if hook is None:
            return
        try:
            hook(*arguments)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:
            raise failed(f"hook {name} failed", error) from error


NAMES = tuple(item.name for item in fields(Hooks))


def load(path: str) -> Hooks:
    """ "": none. Raises OperatorError for a file that is not there or has a name that is nearly a hook's, AppError when its
    code fails."""
    if not path:
        return Hooks()
    if not os.path.isfile(path):
        raise OperatorError(
            f"there is no file {path}", where="--hooks", remedy="name a file by its path from the app's folder"
        )
    try:
        found = runpy.run_path(path, run_name="midstream_serve_hooks")
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        raise failed(f"{path} cannot be run", error) from error
    hooks = {name: found[name] for name in NAMES if name in found}
    wrong = next((name for name, value in hooks.items() if not callable(value)), None)
    if wrong is not None:
        raise OperatorError(
            f"{wrong} is no function",
            where=path,
            remedy="def NAME(…): docs/recipes/serve_hooks.md has each hook with what it is given",
        )
    if not hooks:
        raise AppError(f"{path} has no hook", remedy=f"define one of: {', '.join(NAMES)}")
    return Hooks(**hooks)


def around(app: App, hooks: Hooks, worker: Identity, interface: str) -> App:
    """The app with pre_request and post_request around each call; the app itself when there are none. With post_request a
    file that a WSGI app returns goes through Python, not by sendfile."""
    if hooks.pre_request is None and hooks.post_request is None:
        return app
    before, after = hooks.pre_request or _nothing, hooks.post_request or _nothing
    return _around_asgi(app, before, after, worker) if interface == "asgi" else _around_wsgi(app, before, after, worker)


def _nothing(*_arguments: Any) -> None:
    return None


def _around_wsgi(app: App, before: Hook, after: Hook, worker: Identity) -> App:
    def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        before(worker, environ)
        try:
            body = app(environ, start_response)
        except BaseException:
            after(worker, environ)
            raise
        return body if after is _nothing else _Body(body, lambda: after(worker, environ))

    return call


class _Body:
    """An answer that says when it is at its end: at close(), which the server always calls."""

    def __init__(self, body: Iterable[bytes], ended: Callable[[], None]) -> None:
        self._body = body
        self._ended = ended

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        finally:
            self._ended()


def _around_asgi(app: App, before: Hook, after: Hook, worker: Identity) -> App:
    """Of either version of ASGI; what comes of it is of version 3."""
    of_two_steps = is_asgi2(app)

    async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await (app(scope)(receive, send) if of_two_steps else app(scope, receive, send))

    async def call(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await answer(scope, receive, send)
            return
        await _awaited(before(worker, scope))
        try:
            await answer(scope, receive, send)
        finally:
            await _awaited(after(worker, scope))

    return call


async def _awaited(value: Awaitable[None] | None) -> None:
    if value is not None:
        await value
