"""The step `publish_assets`: files of a release copied to `shared/assets`, where pages of any release find them.

Adding only: during a handover old and new pages are asked for at the same time, on any host. Which release published
what is kept in `.midstream/assets`; a file goes when no release that is left has it.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from midstream.core.layout import check_relative
from midstream.core.names import is_release
from midstream.core.steps import PublishAssets
from midstream.errors import AppError, OperatorError
from midstream.steps.claims import claimed_release
from midstream.steps.folder import Folder
from midstream.steps.place import Place, open_place, open_release

_CHUNK_BYTES = 1 << 20
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(slots=True)
class _Tally:
    copied: int = 0
    same: int = 0
    size_bytes: int = 0
    replaced: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


def publish_assets(request: PublishAssets) -> dict[str, Any]:
    """Run again after a kill it copies what is missing. The list is written first: a file that is copied but in no
    list would stay for ever, one that is listed but not there harms nothing."""
    for path in request.dirs:
        check_relative(path, "assets")
    with open_place(request.deploy_to) as place:
        name = request.release or claimed_release(place, request.deploy_id)
        with open_release(place.root, place.layout, name) as release:
            found = {path: list(_files(release, path)) for path in request.dirs}
            tally = _Tally()
            with place.ours.make("assets") as lists:
                names = sorted({path for paths in found.values() for path in paths})
                lists.write(f"{name}.json", json.dumps(names).encode(), durable=False)
            for paths in found.values():
                for path in paths:
                    _publish(place, release, path, tally)
        return {
            "copied": tally.copied,
            "same": tally.same,
            "replaced": tally.replaced,
            "skipped": tally.skipped,
            "bytes": tally.size_bytes,
        }


def _files(release: Folder, path: str) -> Iterator[str]:
    """The paths of all files below `path`, links to files included. A folder that is itself a link into shared (linked
    assets, as Rails people have them) has nothing to publish."""
    parent, name = posixpath.split(path)
    try:
        with release.open(parent) if parent else release.open(".") as inside:
            kind = inside.kind(name)
    except FileNotFoundError:
        kind = 0
    if kind == stat.S_IFLNK:
        print(f"{path} is a link, nothing to publish")
        return
    if kind != stat.S_IFDIR:
        raise AppError(
            f"there is no folder {path} in the release to publish assets from",
            where=f"{release.path}/{path}",
            remedy="have the build make it (collectstatic, assets:precompile), or take it out of assets",
        )
    with release.open(path) as folder:
        for name in folder.names():
            kind = folder.kind(name)
            if kind == stat.S_IFDIR:
                yield from _files(release, f"{path}/{name}")
            elif kind in (stat.S_IFREG, stat.S_IFLNK):
                yield f"{path}/{name}"


def _publish(place: Place, release: Folder, path: str, tally: _Tally) -> None:
    source = _open_source(release, path)
    if source is None:
        tally.skipped.append(path)
        return
    parent, name = posixpath.split(path)
    with open(source, "rb") as file, place.root.make(f"shared/assets/{parent}") as folder:
        status = os.fstat(source)
        kind = folder.kind(name)
        if kind == stat.S_IFDIR:
            raise OperatorError(
                f"{folder.path}/{name} is a folder, the release has a file there",
                where=f"{folder.path}/{name}",
                remedy="remove that folder, or rename the file",
            )
        if kind == stat.S_IFREG and _same(folder, name, source, status.st_size):
            tally.same += 1
            return
        if kind:
            tally.replaced.append(path)
        file.seek(0)
        _copy(folder, name, source, status)
        tally.copied += 1
        tally.size_bytes += status.st_size


def _open_source(release: Folder, path: str) -> int | None:
    """The file to copy. A link is followed as long as it stays in the release (`collectstatic --link`)."""
    full = f"{release.path}/{path}"
    try:
        try:
            fd = os.open(path, _FILE, dir_fd=release.fd)
        except OSError:
            real = os.path.realpath(full)
            if not real.startswith(os.path.realpath(release.path) + "/"):
                print(f"{path} is a link that leads out of the release; it is not published")
                return None
            fd = os.open(real, _FILE)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            return None
        raise OSError(error.errno, error.strerror, full) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return fd


def _same(folder: Folder, name: str, source: int, size_bytes: int) -> bool:
    if folder.status(name).st_size != size_bytes:
        return False
    fd = os.open(name, _FILE, dir_fd=folder.fd)
    with open(fd, "rb") as old:
        offset = 0
        while True:
            theirs = old.read(_CHUNK_BYTES)
            if theirs != os.pread(source, _CHUNK_BYTES, offset):
                return False
            if not theirs:
                return True
            offset += len(theirs)


def _copy(folder: Folder, name: str, source: int, status: os.stat_result) -> None:
    """By a temporary file and rename: a reader has the old file or the new one, whole."""
    temporary = f".{name}.new"
    path = f"{folder.path}/{name}"
    folder.unlink(temporary)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o666, dir_fd=folder.fd)
        try:
            offset = 0
            while sent := os.sendfile(fd, source, offset, _CHUNK_BYTES):
                offset += sent
            os.utime(fd, ns=(status.st_mtime_ns, status.st_mtime_ns))
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder.fd)
        raise OSError(error.errno, error.strerror, path) from error


def forget(place: Place, releases: list[str]) -> None:
    """Removes the shared files that only releases published which are no more, and their lists."""
    with place.ours.make("assets") as lists:
        gone, kept = set[str](), set[str]()
        old = []
        for name in lists.names():
            release = name.removesuffix(".json")
            if is_release(release):
                (kept if release in releases else gone).update(_read_list(lists, name))
                if release not in releases:
                    old.append(name)
        for path in sorted(gone - kept):
            _remove_shared(place, path)
        for name in old:
            lists.unlink(name)


def _read_list(lists: Folder, name: str) -> list[str]:
    try:
        paths = json.loads(lists.read(name) or b"[]")
    except ValueError:
        return []
    return [path for path in paths if isinstance(path, str)]


def _remove_shared(place: Place, path: str) -> None:
    parent, name = posixpath.split(check_relative(path, "assets"))
    with contextlib.suppress(FileNotFoundError, OperatorError):
        with place.root.open(f"shared/assets/{parent}" if parent else "shared/assets") as folder:
            if folder.kind(name) in (stat.S_IFREG, stat.S_IFLNK):
                folder.unlink(name)
        while parent:
            above, _, last = parent.rpartition("/")
            with place.root.open(f"shared/assets/{above}" if above else "shared/assets") as folder:
                try:
                    os.rmdir(last, dir_fd=folder.fd)
                except OSError:
                    return
            parent = above
