"""One app's `deploy_to`, opened for a step: its folder, its lock, and the look at what is in it.

Only one step at a time changes a `deploy_to`: they share a lock file that the kernel frees when its holders are gone,
the git commands a step has started included. Used by the step programs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from midstream.core.layout import OUR_FOLDERS, CurrentKind, Layout, check_deploy_to, classify_current, release_of
from midstream.core.names import is_release
from midstream.errors import HostError, NotAllowedError, OperatorError
from midstream.steps.folder import Folder, open_folder

REVISION_MAX_BYTES = 200


@dataclass(frozen=True, slots=True)
class Place:
    """`root` is deploy_to; `ours` its `.midstream`; `lock_fd` holds the lock, -1 when only reading."""

    layout: Layout
    root: Folder
    ours: Folder
    lock_fd: int

    @property
    def keep_fds(self) -> tuple[int, ...]:
        return (self.lock_fd,)


@contextlib.contextmanager
def open_place(deploy_to: str) -> Iterator[Place]:
    """deploy_to for changing: makes `.midstream`, waits for a step that is still at work there.

    Raises OperatorError when there is no deploy_to or it is not a plain path, NotAllowedError when root would work in
    another user's folder.
    """
    with open_root(deploy_to) as root, root.make(".midstream") as ours:
        for name in OUR_FOLDERS:
            ours.make(name).__exit__(None, None, None)
        lock_fd = _lock(ours)
        try:
            yield Place(Layout(deploy_to), root, ours, lock_fd)
        finally:
            os.close(lock_fd)


@contextlib.contextmanager
def open_root(deploy_to: str) -> Iterator[Folder]:
    """deploy_to for reading only."""
    check_deploy_to(deploy_to)
    try:
        root = open_folder(deploy_to)
    except FileNotFoundError:
        raise OperatorError(
            f"there is no folder {deploy_to}", where=deploy_to, remedy="midstream setup makes it, or run prepare"
        ) from None
    with root:
        refuse_strange_root(root)
        yield root


def refuse_strange_root(root: Folder) -> None:
    """Root never works in a folder that another user can rearrange under its hands (DESIGN 4, Trust)."""
    owner = os.fstat(root.fd).st_uid
    if os.geteuid() == 0 and owner != 0:
        raise NotAllowedError(
            f"{root.path} belongs to uid {owner}; this step runs as root",
            where=root.path,
            remedy="run it as that user: set user in midstream.toml, or chown the folder to root",
        )


def _lock(ours: Folder) -> int:
    try:
        fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=ours.fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{ours.path}/lock") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another step that is at work in {ours.path}", flush=True)
            fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd


@dataclass(frozen=True, slots=True)
class Current:
    """What `current` is: the link's text and, where it arrives at one of our releases, that one."""

    kind: CurrentKind
    target: str | None
    release: str | None

    @property
    def named(self) -> str | None:
        """The release id where there is one, else the raw target."""
        return self.release or self.target


def read_current(layout: Layout, root: Folder) -> Current:
    """Looks at `current`; follows it only to find where it arrives."""
    if root.kind("current") == stat.S_IFDIR:
        return Current(CurrentKind.FOLDER, None, None)
    target = root.link_text("current")
    if target is None:
        if root.kind("current"):
            raise OperatorError(
                f"{layout.current} is a file, not a link to a release",
                where=layout.current,
                remedy="move it away, then deploy again",
            )
        return Current(CurrentKind.MISSING, None, None)
    resolved = os.path.realpath(layout.current)
    parent, name = os.path.split(resolved)
    arrived = name if parent == os.path.realpath(layout.releases) and is_release(name) else None
    exists = os.path.isdir(resolved)
    kind = classify_current(layout, target, arrived, exists)
    return Current(kind, target, arrived if exists else release_of(layout, target))


def release_names(root: Folder) -> tuple[list[str], list[str]]:
    """What is in `releases`: the real folders with 14 digits, oldest first, and all other names."""
    try:
        folder = root.open("releases")
    except FileNotFoundError:
        return [], []
    with folder:
        names = folder.names()
        mine = [name for name in names if is_release(name) and folder.kind(name) == stat.S_IFDIR]
        return mine, [name for name in names if name not in set(mine)]


def read_revision(root: Folder, release: str) -> str:
    """The sha in the release's REVISION file; empty when there is none."""
    try:
        with root.open(f"releases/{release}") as folder:
            data = folder.read("REVISION") or b""
    except (OSError, OperatorError):
        return ""
    return data[:REVISION_MAX_BYTES].decode("ascii", "replace").strip()


def open_release(root: Folder, layout: Layout, release: str) -> Folder:
    """The folder of an existing release. OperatorError when it is none."""
    if not is_release(release):
        raise OperatorError(f"{release!r} is not a release id", remedy="midstream releases lists them")
    try:
        return root.open(f"releases/{release}")
    except FileNotFoundError:
        raise OperatorError(
            f"release {release} is not on this host",
            where=layout.release(release),
            remedy="midstream releases lists those that are",
        ) from None


def free_bytes(root: Folder) -> int:
    """What an ordinary user may still write on deploy_to's disk."""
    status = os.fstatvfs(root.fd)
    return status.f_bavail * status.f_frsize


def refuse_full_disk(root: Folder, min_free_bytes: int) -> int:
    """The free bytes, or HostError when they are too few."""
    free = free_bytes(root)
    if free < min_free_bytes:
        raise HostError(
            f"only {free // 1024**2} MiB are free on the disk of {root.path}, "
            f"{min_free_bytes // 1024**2} MiB are asked for",
            where=root.path,
            remedy="free some space, or lower keep_releases or min_free in midstream.toml",
        )
    return free
