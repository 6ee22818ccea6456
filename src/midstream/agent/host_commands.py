"""Methods for running one command on this host, and for carrying files there and back.

`deploy.command` is a hook or part of a task within a deploy (`agent/hooks.py`), `run` a command outside of one. Files are
read and written with the rights of the app's user (setfsuid(2)), in threads of their own, so a path on a dead NFS server
stops nobody (`apart.py`). Runs in the agent's loop.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import stat
from collections.abc import Callable
from typing import Any

from midstream.agent import hooks
from midstream.agent.accounts import account_of_uid
from midstream.agent.apart import PIECE_S, apart, within
from midstream.agent.control import Connection, Method
from midstream.agent.deploys import Deploys
from midstream.agent.host import Host
from midstream.agent.params import data as read_data
from midstream.agent.params import refused, shaped, whole
from midstream.agent.piece_files import write_all
from midstream.agent.spawning import account_for, command_spec
from midstream.agent.store import AppRecord
from midstream.agent.work import Progress, Work, without_secrets
from midstream.core.names import SpawnKey
from midstream.core.spec import CommandStep
from midstream.errors import HostError, OperatorError
from midstream.linux.file_identity import FileUser, files_as, open_as

PIECE_MAX_BYTES = 1 << 20
_FILE_MAX_BYTES = 64 << 30
_ID = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)

AppOf = Callable[[Connection, dict[str, Any]], AppRecord]
WorkOf = Callable[[Connection, dict[str, Any]], Work]
TellerOf = Callable[[Connection], Callable[[Progress], None]]


class HostCommands:
    """`app_of` and `work_of` check who asks, and for what."""

    def __init__(self, host: Host, deploys: Deploys, app_of: AppOf, work_of: WorkOf) -> None:
        self.host = host
        self.deploys = deploys
        self._app_of = app_of
        self._work_of = work_of
        self._teller: TellerOf = lambda connection: lambda progress: None

    def table(self, teller: TellerOf) -> dict[str, Method]:
        self._teller = teller
        return {
            "run": self.run,
            "deploy.command": self.deploy_command,
            "file.read": self.file_read,
            "file.write": self.file_write,
        }

    async def deploy_command(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        work = self._work_of(connection, params)
        command = _command({key: value for key, value in params.items() if key not in ("deploy_id", "token")})
        name = f"command {command.name}"
        return await self.deploys.call(work, name, lambda: hooks.run(work, command), self._teller(connection))

    async def run(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """A command in the committed release, with its environment, as the app's user. What it prints is told without the
        values of secrets; `output` (of `capture`) is what it printed: a task may need to have it."""
        record = self._app_of(connection, params)
        stored = self.host.record(record.app, record.committed_generation)
        if stored is None:
            raise OperatorError(f"nothing of {record.app!r} is deployed here", remedy="midstream deploy")
        given = {key: value for key, value in params.items() if key != "app"}
        command = _command({"timeout_s": 3600.0, **{key: value for key, value in given.items() if value is not None}})
        command.refuse_nonsense()
        step = CommandStep(command.argv, shell=command.shell, timeout_s=command.timeout_s, env=command.env)
        key = SpawnKey(record.app, "+run", self.host.store.next_number("run"), 0, 0)
        cwd = record.deploy_to if command.where == "deploy_to" else ""
        place = self.host.place(record.app, "+run", stored.number)
        spec = hooks.placed(command_spec(stored, step, key, place, self.host.uid, cwd=cwd), command.cwd)
        self.host.note(record.app, "", "run", " ".join(command.argv)[:200], who=connection.peer.name)

        def show(line: str) -> None:
            connection.notify("output", {"line": without_secrets(line, stored.secrets)})

        try:
            outcome, output = await hooks.follow(self.host, spec, command, on_line=show)
        except asyncio.CancelledError:
            await self.host.one_shots.stop(spec.key)  # nobody waits for it any more
            self.host.one_shots.abandon(spec.key)
            raise
        answer = {"code": outcome.code, "text": outcome.text, "ok": outcome.ok}
        return answer | {"output": output} if command.capture else answer

    # -- files -----------------------------------------------------------------------------------------------------

    async def file_read(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """One piece of a plain file."""
        record = self._app_of(connection, params)
        path, user = self._path(record, params), self._user(record)
        offset, size = whole(params, "offset", 0, _FILE_MAX_BYTES, 0), whole(params, "size", 1, PIECE_MAX_BYTES, 1)
        try:
            return await within(apart(record.owner_uid, _read_piece, path, user, offset, size), PIECE_S, path)
        except OSError as error:
            raise _refused("read", path, error) from error

    async def file_write(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """One piece of a new file, which takes its place by rename with the last one. id: of this upload."""
        record = self._app_of(connection, params)
        path, user = self._path(record, params), self._user(record)
        name = params.get("id")
        if not isinstance(name, str) or not _ID.fullmatch(name):
            raise refused("id: letters, digits and -, at most 64", "id")
        data = read_data(params, PIECE_MAX_BYTES)
        offset = whole(params, "offset", 0, _FILE_MAX_BYTES, 0)
        mode = whole(params, "mode", 0, 0o777, 0o644)
        last = bool(params.get("last"))
        folder, base = os.path.split(path)
        beside = os.path.join(folder, f".{base[:100]}.midstream-{name}")
        try:
            piece = (data, offset, mode if last else None)
            await within(apart(record.owner_uid, _write_piece, path, beside, user, *piece), PIECE_S, path)
        except OSError as error:
            raise _refused("written", path, error) from error
        if last:
            self.host.note(record.app, "", "file", f"{path} was written", who=connection.peer.name)
        return {"offset": offset + len(data), "path": path}

    def _path(self, record: AppRecord, params: dict[str, Any]) -> str:
        """An absolute path, or one below deploy_to."""
        path = params.get("path")
        if not isinstance(path, str) or not path or "\0" in path or path.endswith("/") or len(path) > 4000:
            raise OperatorError("path: of a file", where="path", remedy="name a file, not a folder")
        return os.path.normpath(os.path.join(record.deploy_to, path))

    def _user(self, record: AppRecord) -> FileUser | None:
        """Whose rights apply: the app's user's, as for its commands."""
        if self.host.uid != 0:
            return None
        work = self.deploys.of(record.app)
        stored = self.host.record(record.app, record.committed_generation)
        spec = work.spec if work is not None else stored.spec if stored is not None else None
        owner = record.owner_uid
        account = account_for(spec, owner, self.host.uid) if spec is not None else account_of_uid(owner)
        return FileUser(account.uid, account.gid)


def _command(params: dict[str, Any]) -> hooks.Command:
    return shaped(hooks.Command, params, "the command does not fit")


def _read_piece(path: str, user: FileUser | None, offset: int, size: int) -> dict[str, Any]:
    fd = open_as(user, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise IsADirectoryError(21, "it is no plain file", path)
        data = os.pread(fd, size, offset)
        end = offset + len(data) >= found.st_size or not data
        return {"data": base64.b64encode(data).decode(), "size_bytes": found.st_size, "last": end}
    finally:
        os.close(fd)


def _write_piece(path: str, beside: str, user: FileUser | None, data: bytes, offset: int, mode: int | None) -> None:
    """mode: of the whole file, once this was its last piece; else None. A repeated piece is written over itself; so the
    last one, repeated after it was renamed, finds nothing and is done."""
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | (0 if offset else os.O_CREAT)
    with files_as(user):
        try:
            fd = os.open(beside, flags, 0o600)
        except FileNotFoundError:
            if mode is not None and os.stat(path).st_size == offset + len(data):
                return
            raise
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != (user.uid if user is not None else os.geteuid()):
                raise FileExistsError(17, "something else has that name", beside)
            write_all(fd, data, offset)
            if mode is None:
                return
            os.ftruncate(fd, offset + len(data))
            os.fchmod(fd, mode)
            os.fsync(fd)
            os.rename(beside, path)
        except OSError:
            os.unlink(beside)
            raise
        finally:
            os.close(fd)


def _refused(what: str, path: str, error: OSError) -> HostError:
    return HostError(
        f"{path} cannot be {what}: {error.strerror}",
        where=str(error.filename or path),
        remedy="it is done with the rights of the app's user: look who owns the folder",
    )
