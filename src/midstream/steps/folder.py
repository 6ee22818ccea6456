"""Folders held open by descriptor, so that nothing is written or deleted through a link.

What lives here: every write below `deploy_to` that is not git's. Paths are opened one component at a time with
O_NOFOLLOW; only the way to `deploy_to` itself may lead through links, it is the operator's. Used by the step programs.
Errors are OSError with the full path; `program` turns them into HostError at its boundary.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from types import TracebackType

from midstream.errors import OperatorError

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Folder:
    """An open folder. `path` is what people call it; the descriptor is what is used."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.fd)

    @contextlib.contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Gives an OSError the full path: with a dir_fd the kernel's error knows only the last name."""
        try:
            yield
        except OSError as error:
            path = f"{self.path}/{name}" if name else self.path
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise _through_link(path) from error
            raise OSError(error.errno, error.strerror, path) from error

    def open(self, relative: str) -> Folder:
        """The folder at `relative`, no component of which may be a link (OperatorError). OSError when missing."""
        return self._descend(relative, make=False)

    def make(self, relative: str) -> Folder:
        """Like `open`, making what is missing (mode 0777 less the umask)."""
        return self._descend(relative, make=True)

    def _descend(self, relative: str, *, make: bool) -> Folder:
        fd = os.dup(self.fd)
        done: list[str] = []
        try:
            for name in relative.split("/"):
                done.append(name)
                with self._naming("/".join(done)):
                    if make:
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(name, dir_fd=fd)
                    inner = os.open(name, _OPEN_FOLDER, dir_fd=fd)
                os.close(fd)
                fd = inner
        except BaseException:
            os.close(fd)
            raise
        return Folder(fd, f"{self.path}/{relative}")

    def claim(self, name: str) -> None:
        """Makes the folder `name`. Raises FileExistsError when there is anything of that name."""
        with self._naming(name):
            os.mkdir(name, dir_fd=self.fd)

    def kind(self, name: str) -> int:
        """The file type bits of `name` itself (a link is a link); 0 when there is nothing."""
        try:
            with self._naming(name):
                return stat.S_IFMT(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return 0

    def status(self, name: str) -> os.stat_result:
        with self._naming(name):
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def names(self) -> list[str]:
        with self._naming(""):
            return sorted(os.listdir(self.fd))

    def link_text(self, name: str) -> str | None:
        """What the link `name` says; None when it is no link."""
        try:
            with self._naming(name):
                return os.readlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    def read(self, name: str) -> bytes | None:
        """The content of the file `name`, which must not be a link; None when missing."""
        try:
            with self._naming(name):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            return file.read()

    def write(self, name: str, data: bytes, *, mode: int = 0o666, durable: bool = True) -> None:
        """Puts `data` at `name` by a temporary file and rename: readers see the old or the new, never half.

        A kill leaves at most one temporary file `.NAME.new`, which the next write of that name takes over.
        """
        temporary = f".{name}.new"
        with self._naming(name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self.fd)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(temporary, flags, mode, dir_fd=self.fd)
            try:
                with open(fd, "wb") as file:
                    file.write(data)
                    file.flush()
                    if durable:
                        os.fsync(file.fileno())
                os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=self.fd)
                raise
            if durable:
                os.fsync(self.fd)

    def create(self, name: str, data: bytes) -> None:
        """Makes the file `name`. Raises FileExistsError when there is anything of that name."""
        with self._naming(name):
            fd = os.open(
                name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=self.fd
            )
            with open(fd, "wb") as file:
                file.write(data)

    def link(self, name: str, target: str) -> None:
        with self._naming(name):
            os.symlink(target, name, dir_fd=self.fd)

    def unlink(self, name: str) -> bool:
        """Removes the file or link `name`; False when there was none."""
        try:
            with self._naming(name):
                os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        return True

    def rename(self, name: str, into: Folder, new_name: str) -> None:
        with self._naming(name):
            os.rename(name, new_name, src_dir_fd=self.fd, dst_dir_fd=into.fd)

    def sync(self) -> None:
        with self._naming(""):
            os.fsync(self.fd)

    def remove_tree(self, name: str) -> None:
        """Deletes `name` and all below it, never through a link. Done already: fine.

        Folders without write permission (Go's module cache is one) are made writable first, being ours.
        """
        found = self.kind(name)
        if found == 0:
            return
        if found != stat.S_IFDIR:
            self.unlink(name)
            return
        try:
            inner = self._open_writable(name)
        except FileNotFoundError:
            return  # another one deletes it, too
        with inner:
            inner.empty()
        with self._naming(name), contextlib.suppress(FileNotFoundError):
            os.rmdir(name, dir_fd=self.fd)

    def empty(self) -> None:
        """Deletes all that is in this folder, never through a link."""
        for name in self.names():
            self.remove_tree(name)

    def _open_writable(self, name: str) -> Folder:
        with self._naming(name):
            mode = os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode
            if mode & 0o700 != 0o700:
                with contextlib.suppress(OSError):  # not ours: the deletion itself says so
                    os.chmod(name, (mode & 0o7777) | 0o700, dir_fd=self.fd)
        return self.open(name)


def open_folder(path: str) -> Folder:
    """The folder at `path`, which the operator named: links on the way to it are followed."""
    return Folder(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), path)


def _through_link(path: str) -> OperatorError:
    text = ""
    with contextlib.suppress(OSError):
        text = os.readlink(path)
    return OperatorError(
        f"{path} is a link" + (f" to {text}" if text else "") + " or no folder; nothing is written through it",
        where=path,
        remedy="make it a real folder; to keep the data on another disk, use a bind mount in its place",
    )
