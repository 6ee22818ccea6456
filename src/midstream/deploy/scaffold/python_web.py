"""How a Python web app is served: the command, its listener, its check, its `.env`. Pure."""

from __future__ import annotations

import shlex

from midstream.deploy.scaffold.draft import Setting
from midstream.deploy.scaffold.tree import Tree

NO_LIST = (
    "no list of dependencies was found, so this installs whatever is newest: write a requirements.txt with versions, "
    "and every release is built from the same"
)
_ASGI_SERVERS = ("uvicorn", "hypercorn")
_LISTEN = '"tcp://127.0.0.1:8000"'
_DOTENV_USERS = (".env.example", ".env.dist", ".env.sample", ".env.template", "env.example")


def asgi_server(names: frozenset[str]) -> str:
    """The ASGI server among the dependencies that takes a listener, else uvicorn."""
    return next((server for server in _ASGI_SERVERS if server in names), "uvicorn")


def server_command(tree: Tree, server: str, module: str, attribute: str, *, factory: bool = False) -> str:
    """The command line that serves `module:attribute` in the foreground."""
    if server == "uvicorn":
        return f"uvicorn {module}:{attribute}{' --factory' if factory else ''} --fd {{fd}}"
    if server == "hypercorn":
        return f"hypercorn {shlex.quote(f'{module}:{attribute}()') if factory else f'{module}:{attribute}'} --bind fd://{{fd}}"
    target = shlex.quote(f"{module}:{attribute}()") if factory else f"{module}:{attribute}"
    # gunicorn reads gunicorn.conf.py by itself, and the command line would win over it
    return f"gunicorn {target}" + ("" if tree.has("gunicorn.conf.py") else " --workers 2")


def listen(server: str) -> Setting:
    how = (
        "as {fd} in the command" if server in _ASGI_SERVERS else "without being told; a `--bind` of its own is ignored"
    )
    return Setting("listen", _LISTEN, f"held open from release to release; {server} gets it {how}")


def dotenv_of(tree: Tree) -> tuple[tuple[str, ...], tuple[Setting, ...]]:
    """linked_files for a `.env` that git has not, and a setting to turn on where there is only an example of one."""
    if tree.is_left_out(".env"):
        return (".env",), ()
    if not tree.has(".env") and tree.first(*_DOTENV_USERS):
        return (), (Setting("linked_files", '[".env"]', "once there is one in shared/ on the host", off=True),)
    return (), ()
