"""The step `empty_trash`, and how releases are deleted: renamed into `.midstream/trash` first, then deleted there.

Whoever lists `releases` in between sees whole releases only. Renaming takes no time, deleting a large virtualenv may
take a minute: so steps of a deploy only rename, and the agent has the trash emptied when the deploy is over. Small ones,
which take a few milliseconds, are deleted by the step `cleanup` itself.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any

from midstream.core.layout import check_deploy_to
from midstream.core.steps import EmptyTrash
from midstream.errors import MidstreamError
from midstream.steps.folder import Folder
from midstream.steps.place import Place, open_root

_TRASH = ".midstream/trash"
_SMALL_ENTRIES = 300


def to_trash(place: Place, release: str) -> bool:
    """Renames the release into the trash; whether it was there. A link of that name is not a release and stays."""
    try:
        with place.root.open("releases") as releases, place.ours.make("trash") as trash:
            if releases.kind(release) != stat.S_IFDIR:
                return False
            name = next(f"{release}.{n}" for n in range(10_000) if not trash.kind(f"{release}.{n}"))
            releases.rename(release, trash, name)
            return True
    except FileNotFoundError:
        return False


def has_trash(root: Folder) -> bool:
    """Whether anything waits to be deleted."""
    try:
        with root.open(_TRASH) as trash:
            return bool(trash.names())
    except FileNotFoundError:
        return False


def delete_small(root: Folder) -> None:
    """Deletes what is small: that takes less time than another process does. What cannot be deleted is left for the step
    that tells of it."""
    try:
        trash = root.open(_TRASH)
    except FileNotFoundError:
        return
    with trash:
        for name in trash.names():
            if _is_small(f"{trash.path}/{name}"):
                with contextlib.suppress(OSError, MidstreamError):
                    trash.remove_tree(name)


def _is_small(path: str) -> bool:
    left = _SMALL_ENTRIES
    for _, folders, files in os.walk(path):
        left -= len(folders) + len(files)
        if left < 0:
            return False
    return True


def empty_trash(request: EmptyTrash) -> dict[str, Any]:
    """Takes no lock: a deploy that begins meanwhile goes on, adding to the trash, or emptying it too."""
    check_deploy_to(request.deploy_to)
    with open_root(request.deploy_to) as root:
        return {"left": delete_trash(root)}


def delete_trash(root: Folder) -> list[dict[str, str]]:
    """Deletes what lies in the trash, also what comes meanwhile; what could not be, as {path, reason}."""
    left: dict[str, dict[str, str]] = {}
    try:
        trash = root.open(_TRASH)
    except FileNotFoundError:
        return []
    with trash:
        while names := [name for name in trash.names() if name not in left]:
            for name in names:
                try:
                    trash.remove_tree(name)
                except (OSError, MidstreamError) as error:
                    path = str(getattr(error, "filename", None) or f"{trash.path}/{name}")
                    left[name] = {"path": path, "reason": getattr(error, "strerror", None) or str(error)}
    return list(left.values())
