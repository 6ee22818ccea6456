"""Writing grants: `USER:APP:PATH[:run-as=…][:port=…]…` into a root-owned file. Runs in the command line, as root.

What a grant means, and who reads it: `agent/accounts.py`.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
from dataclasses import fields, replace

from midstream.agent.accounts import Grant, read_grant
from midstream.core.names import is_name
from midstream.errors import HostError, NotAllowedError, OperatorError

FORM = (
    "USER:APP:PATH[:run-as=USER,…][:group=GROUP,…][:port=N,…][:path=FOLDER,…][:raise-limits][:monit=SERVICE[@FILE],…]"
)


def parse_allowance(text: str) -> tuple[str, Grant]:
    """-> the app and its grant. Raises OperatorError for what does not fit, users and groups that there are not included."""
    owner, app, path, *rest = text.split(":") if text.count(":") >= 2 else (text, "", "")
    if not owner or not is_name(app):
        raise OperatorError(f"{text!r} does not fit", where="agent allow", remedy=f"write {FORM}")
    grant = Grant(_user(owner), _folder(path))
    for item in rest:
        key, _, value = item.partition("=")
        words = tuple(word for word in value.split(",") if word)
        match key:
            case "run-as" if words:
                grant = replace(grant, run_as=tuple(_user(word) for word in words))
            case "group" if words:
                grant = replace(grant, groups=tuple(_group(word) for word in words))
            case "port" if words:
                grant = replace(grant, ports=tuple(_port(word) for word in words))
            case "path" if words:
                grant = replace(grant, paths=tuple(_folder(word) for word in words))
            case "monit" if words:
                grant = replace(grant, monit=words)
            case "raise-limits" if not value:
                grant = replace(grant, raise_limits=True)
            case _:
                raise OperatorError(f"{item!r} is nothing that can be allowed", remedy=f"write {FORM}")
    return app, grant


def _user(name: str) -> str:
    try:
        return pwd.getpwnam(name).pw_name
    except KeyError:
        raise OperatorError(f"there is no user {name!r} on this host", remedy=f"create it: adduser {name}") from None


def _group(name: str) -> str:
    try:
        return grp.getgrnam(name).gr_name
    except KeyError:
        raise OperatorError(f"there is no group {name!r} on this host", remedy=f"create it: addgroup {name}") from None


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1024:
        raise OperatorError(f"{text!r} is no port below 1024", remedy="other ports need no grant")
    return int(text)


def _folder(path: str) -> str:
    path = path.rstrip("/")
    if not path.startswith("/") or os.path.normpath(path) != path:
        raise OperatorError(f"{path or '/'!r} is not an absolute, plain path", remedy=f"write {FORM}")
    return path


def joined(old: Grant | None, new: Grant) -> Grant:
    """What was allowed before and what is now, of the same owner and folder. Raises OperatorError for another one's."""
    if old is None:
        return new
    if (old.owner, old.deploy_to) != (new.owner, new.deploy_to):
        raise OperatorError(
            f"the app is granted to {old.owner} in {old.deploy_to}", remedy="remove that file first, if it is wrong"
        )
    return Grant(
        new.owner,
        new.deploy_to,
        run_as=tuple(dict.fromkeys((*old.run_as, *new.run_as))),
        groups=tuple(dict.fromkeys((*old.groups, *new.groups))),
        ports=tuple(dict.fromkeys((*old.ports, *new.ports))),
        paths=tuple(dict.fromkeys((*old.paths, *new.paths))),
        raise_limits=old.raise_limits or new.raise_limits,
        monit=tuple(dict.fromkeys((*old.monit, *new.monit))),
    )


def write_grant(app: str, new: Grant, folder: str) -> str:
    """Adds to the app's grant and returns the file's path. Raises NotAllowedError when not root, HostError."""
    if os.geteuid() != 0:
        raise NotAllowedError("only root grants", remedy="sudo midstream agent allow …")
    path = os.path.join(folder, f"{app}.toml")
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        text = _text(joined(read_grant(app, folder), new))
        temporary = f"{path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError as error:
        raise HostError(
            f"the grant cannot be written: {error.strerror}", where=path, remedy="run it as root"
        ) from error
    return path


def _text(grant: Grant) -> str:
    """TOML; JSON's strings, numbers and lists are TOML's."""
    lines = [
        f"{field.name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}\n"
        for field in fields(grant)
        if (value := getattr(grant, field.name))
    ]
    return "".join(lines)
