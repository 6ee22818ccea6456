"""The steps `pack_files` and `unpack_files`: what a build made, out of one host's release and into another's.

The archive is on descriptor 4: the agent opens it in its own folder, where the app's user could not.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from typing import Any

from midstream.core.layout import check_relative
from midstream.core.steps import PACK_FD, PackFiles, UnpackFiles
from midstream.errors import AppError, HostError, OperatorError
from midstream.linux import archive
from midstream.steps import git
from midstream.steps.folder import Folder
from midstream.steps.place import Place, open_place, open_release, read_revision

_STAGING = "artifact"


def pack_files(request: PackFiles) -> dict[str, Any]:
    """Writes the archive to descriptor 4, from its beginning. It lies on the agent's disk, so how large a file we may write
    is limited (RLIMIT_FSIZE)."""
    try:
        return _pack_files(request)
    except OSError as error:  # also when what is left in the buffer is written at the end
        if error.errno != errno.EFBIG:
            raise
        raise _too_large(request) from None


def _pack_files(request: PackFiles) -> dict[str, Any]:
    for path in request.files:
        check_relative(path, "files")
    with open_place(request.deploy_to) as place, open(os.dup(PACK_FD), "wb") as out:
        with open_release(place.root, place.layout, request.release) as release:
            _check_tree(place, request.release, request.tree)
            out.truncate(0)
            try:
                count = archive.pack(release.path, archive.Label(request.tree, request.files), out)
                out.flush()
            except archive.CannotPack as error:
                raise AppError(
                    str(error),
                    where=release.path,
                    remedy="correct `files` of that [[build]] step, or what it makes; then deploy again",
                ) from None
        return {"files": count, "size_bytes": out.tell()}


def _too_large(request: PackFiles) -> AppError:
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0] >> 20
    return AppError(
        f"what the build made is larger, packed, than the {most} MiB that may be carried from here",
        where=", ".join(request.files),
        remedy="name less in `files` of that [[build]] step; or free some space on the disk of the agent's state",
    )


def unpack_files(request: UnpackFiles) -> dict[str, Any]:
    """Checks the whole archive beside the release first; then each path takes its place by rename."""
    for path in request.files:
        check_relative(path, "files")
    with open_place(request.deploy_to) as place, open(os.dup(PACK_FD), "rb") as source:
        with open_release(place.root, place.layout, request.release) as release, place.ours.open("tmp") as tmp:
            _check_tree(place, request.release, request.tree)
            source.seek(0)
            tmp.remove_tree(_STAGING)
            tmp.claim(_STAGING)
            try:
                with tmp.open(_STAGING) as staging:
                    count = archive.unpack(source, archive.Label(request.tree, request.files), staging.path)
                    for number, path in enumerate(request.files):
                        _put(staging, release, path, number)
            except archive.BadArchive as error:
                raise HostError(
                    f"the files of the build were refused: {error}",
                    where=release.path,
                    remedy="deploy again; if it happens again, something changes them on the way",
                ) from None
            finally:
                tmp.remove_tree(_STAGING)
        return {"files": count}


def _check_tree(place: Place, release: str, tree: str) -> None:
    """Raises HostError unless the release was made of that git tree: built files belong to the very same source."""
    revision = read_revision(place.root, release)
    try:
        found = git.run(place.layout.repo, "rev-parse", "--verify", "--quiet", f"{revision}^{{tree}}").strip()
    except git.GitFailed:
        found = ""
    if not revision or found != tree:
        raise HostError(
            f"release {release} is made of tree {found or 'unknown'}, the build of {tree}",
            where=place.layout.release(release),
            remedy="deploy again",
        )


def _put(staging: Folder, release: Folder, path: str, number: int) -> None:
    """What is there now goes aside, and away with the staging folder."""
    above, _, name = path.rpartition("/")
    target = release.make(above) if above else release.open(".")
    source = staging.open(above) if above else staging.open(".")
    with target, source:
        if target.kind(name) == stat.S_IFLNK:
            raise OperatorError(
                f"{path} is a link in the release (to {target.link_text(name)}): built files are not put behind it",
                where=target.path,
                remedy="take it out of linked_dirs and linked_files, or out of `files` of the build step",
            )
        if target.kind(name):
            target.rename(name, staging, f".old-{number}")
        source.rename(name, target, name)
