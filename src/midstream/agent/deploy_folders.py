"""What lies in the `deploy_to` of the apps, as far as the agent itself looks: `current`, and the list of releases.

The folder is the owner's: it may be on a dead NFS server, and any part of it may be a link. So it is read with his rights, in
a thread of his (`apart.py`), for a bounded time; what is told of it is what was seen last. Runs in the agent's loop.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from midstream.agent.accounts import account_of_uid
from midstream.agent.apart import apart, read_apart, within
from midstream.core.names import is_release
from midstream.errors import HostError
from midstream.linux.file_identity import FileUser, files_as

if TYPE_CHECKING:
    from midstream.agent.host import Host
    from midstream.agent.store import AppRecord

LOOK_S = 3.0


@dataclass(frozen=True, slots=True)
class Seen:
    """resolved: deploy_to without symlinks. target: what `current` points to, as it is written, or None: `error` says why."""

    resolved: str
    target: str | None = None
    error: str = ""


class DeployFolders:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._seen: dict[str, Seen] = {}
        self._reading: dict[int, asyncio.Task[dict[str, Seen]]] = {}  # by uid

    def of(self, app: str) -> Seen | None:
        """As it was when somebody looked last; None: nobody did."""
        return self._seen.get(app)

    def resolved(self, record: AppRecord) -> str:
        seen = self._seen.get(record.app)
        return seen.resolved if seen is not None else record.deploy_to

    def forget(self, app: str) -> None:
        self._seen.pop(app, None)

    async def look(self, apps: list[str]) -> None:
        """At all of them at the same time, for at most `LOOK_S`. What hangs, or cannot be read, is what is seen."""
        of_owner: dict[int, list[AppRecord]] = {}
        for app in apps:
            record = self._host.apps.get(app)
            if record is not None:
                of_owner.setdefault(record.owner_uid, []).append(record)
        await asyncio.gather(*(self._look_of(uid, records) for uid, records in of_owner.items()))

    async def _look_of(self, uid: int, records: list[AppRecord]) -> None:
        try:
            found = await within(self._read_once(uid, records), LOOK_S, "deploy_to")
        except (HostError, OSError) as error:
            text = error.what if isinstance(error, HostError) else str(error)
            found = {record.app: Seen(self.resolved(record), None, text) for record in records}
        known = {record.app for record in records if record.app in self._host.apps}
        self._seen |= {app: seen for app, seen in found.items() if app in known}

    async def _read_once(self, uid: int, records: list[AppRecord]) -> dict[str, Seen]:
        """One thread for an owner: where the last one hangs another would, too."""
        while (running := self._reading.get(uid)) is not None:
            await asyncio.wait({running})
        places = {record.app: record.deploy_to for record in records}
        task = asyncio.get_running_loop().create_task(apart(uid, _read_links, places, self._user(uid)))
        self._reading[uid] = task
        task.add_done_callback(lambda done: self._ended(uid, done))
        return await asyncio.shield(task)

    def _ended(self, uid: int, task: asyncio.Task[dict[str, Seen]]) -> None:
        del self._reading[uid]
        if not task.cancelled():
            task.exception()  # whoever waited for it may be gone

    async def releases(self, record: AppRecord, without: frozenset[str]) -> dict[str, str]:
        """The releases on the disk, with their revisions; "" for those of `without`, which are known. Raises HostError when
        it does not answer; a folder that cannot be read has none."""
        user = self._user(record.owner_uid)
        where = record.deploy_to
        return await read_apart(record.owner_uid, where, _list_releases, where, user, without)

    def _user(self, uid: int) -> FileUser | None:
        if self._host.uid != 0:
            return None
        account = account_of_uid(uid)
        return FileUser(account.uid, account.gid)


def _read_links(places: dict[str, str], user: FileUser | None) -> dict[str, Seen]:
    found = {}
    with files_as(user):
        for app, deploy_to in places.items():
            seen = Seen(os.path.realpath(deploy_to))
            try:
                found[app] = replace(seen, target=os.readlink(f"{deploy_to}/current"))
            except OSError as error:
                found[app] = replace(seen, error=error.strerror or str(error))
    return found


def _list_releases(deploy_to: str, user: FileUser | None, without: frozenset[str]) -> dict[str, str]:
    try:
        with files_as(user):
            names = [name for name in os.listdir(f"{deploy_to}/releases") if is_release(name)]
    except OSError:
        return {}
    return {name: "" if name in without else _revision(user, deploy_to, name) for name in names}


def _revision(user: FileUser | None, deploy_to: str, release: str) -> str:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with files_as(user):
            fd = os.open(f"{deploy_to}/releases/{release}/REVISION", flags)
        with os.fdopen(fd, "rb") as file:
            text = (file.read(64) or b"").decode("ascii", "replace").strip()
    except OSError:
        return ""
    return text if all(char in "0123456789abcdef" for char in text) else ""
