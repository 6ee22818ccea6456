"""Built files as an archive: packing what a build made, and unpacking it elsewhere without trusting what is in it.

A gzipped tar whose first member says what it was built from. Only plain files and folders: no links of any kind, no
devices, nothing outside the paths that were agreed on. Owners are dropped; of the mode the x bit is kept. Used by the
steps on hosts and by the deployer; blocks.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import stat
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import IO

LABEL = "midstream-artifact.json"
_LABEL_MAX_BYTES = 1 << 20
_PADDING_MAX_BYTES = 64 * 1024
_PIECE_BYTES = 1 << 20
_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Label:
    """What an archive was built from: the git tree, and the paths that are in it."""

    tree: str
    files: tuple[str, ...]


class CannotPack(Exception):
    """What was built is not there, or cannot be carried."""


class BadArchive(Exception):
    """Not what was agreed on; nothing of it is used."""


def pack(folder: str, label: Label, out: IO[bytes]) -> int:
    """Writes the archive of `label.files` below `folder`; the number of files. Raises CannotPack, OSError."""
    count = 0
    with (
        gzip.GzipFile(fileobj=out, mode="wb", compresslevel=_LEVEL, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        text = json.dumps(asdict(label)).encode()
        head = tarfile.TarInfo(LABEL)
        head.size = len(text)
        tar.addfile(head, io.BytesIO(text))
        for path in label.files:
            _refuse_links_on_the_way(folder, path)
            for name, status in _walk(folder, path):
                count += _add(tar, folder, name, status)
    return count


def _refuse_links_on_the_way(folder: str, path: str) -> None:
    parts = path.split("/")
    for end in range(1, len(parts)):
        above = "/".join(parts[:end])
        if os.path.islink(os.path.join(folder, above)):
            raise CannotPack(f"{path} lies behind the link {above}: it is not part of the release")


def _walk(folder: str, path: str) -> Iterator[tuple[str, os.stat_result]]:
    full = os.path.join(folder, path)
    try:
        status = os.lstat(full)
    except FileNotFoundError:
        raise CannotPack(f"the build did not make {path}") from None
    yield path, status
    if stat.S_ISDIR(status.st_mode):
        for name in sorted(os.listdir(full)):
            yield from _walk(folder, f"{path}/{name}")


def _add(tar: tarfile.TarFile, folder: str, name: str, status: os.stat_result) -> int:
    info = tarfile.TarInfo(name)
    info.mtime = int(status.st_mtime)
    if stat.S_ISDIR(status.st_mode):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(info)
        return 0
    if not stat.S_ISREG(status.st_mode):
        kind = "a link" if stat.S_ISLNK(status.st_mode) else "no plain file"
        raise CannotPack(f"{name} is {kind}; only plain files and folders are carried (cp -rL makes files of links)")
    fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        info.size = os.fstat(fd).st_size
        info.mode = 0o755 if status.st_mode & 0o111 else 0o644
        tar.addfile(info, file)
    return 1


def unpack(source: IO[bytes], label: Label, folder: str) -> int:
    """Extracts into the empty folder `folder`; the number of files. Raises BadArchive, OSError; what is there then is to
    be thrown away."""
    count = 0
    try:
        packed = gzip.GzipFile(fileobj=source, mode="rb")
        with tarfile.open(fileobj=packed, mode="r|") as tar:
            _check_label(tar, label)
            while (member := tar.next()) is not None:
                name = _checked_name(member, label.files)
                target = os.path.join(folder, name)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                if member.type == tarfile.DIRTYPE:
                    os.makedirs(target, exist_ok=True)
                    continue
                content = tar.extractfile(member)
                if content is None:
                    raise BadArchive(f"{name} has no content")
                _write(target, content, member)
                count += 1
        if len(packed.read(_PADDING_MAX_BYTES + 1)) > _PADDING_MAX_BYTES:  # the check sum comes after the last byte
            raise BadArchive("the archive goes on after its end")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, UnicodeError) as error:
        raise BadArchive(f"the archive is damaged: {error}") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise BadArchive(f"the archive has {os.path.basename(str(error.filename))} twice") from error
    missing = next((path for path in label.files if not os.path.lexists(os.path.join(folder, path))), None)
    if missing is not None:
        raise BadArchive(f"{missing} is not in the archive")
    return count


def _check_label(tar: tarfile.TarFile, label: Label) -> None:
    member = tar.next()
    content = tar.extractfile(member) if member is not None and member.isreg() else None
    if member is None or content is None or member.name != LABEL or member.size > _LABEL_MAX_BYTES:
        raise BadArchive("the archive does not say what it was built from")
    found = json.loads(content.read())
    if not isinstance(found, dict) or found.get("files") != list(label.files):
        raise BadArchive("the archive has other files than were asked for")
    if found.get("tree") != label.tree:
        raise BadArchive(f"the archive was built from tree {str(found.get('tree'))[:40]}, not from {label.tree}")


def _checked_name(member: tarfile.TarInfo, files: Sequence[str]) -> str:
    name = member.name
    shown = name.encode("unicode_escape").decode()[:200]
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.issparse():
        raise BadArchive(f"{shown} is no plain file or folder")
    if name.startswith("/") or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise BadArchive(f"{shown} is no plain path")
    if not any(name == path or name.startswith(f"{path}/") for path in files):
        raise BadArchive(f"{shown} is not below {', '.join(files)}")
    return name


def _write(path: str, content: IO[bytes], member: tarfile.TarInfo) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        shutil.copyfileobj(content, file, _PIECE_BYTES)
        file.flush()
        if file.tell() != member.size:
            raise BadArchive(f"{member.name} is shorter than it says")
        os.fchmod(fd, 0o755 if member.mode & 0o111 else 0o644)
        moment_s = max(0, min(int(member.mtime), int(time.time())))
        os.utime(fd, (moment_s, moment_s))
