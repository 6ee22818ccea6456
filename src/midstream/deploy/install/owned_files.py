"""Files that an installation writes on a host: known by a marker line, replaced in one step, never anybody else's.

The marker carries a hash of the rest of the file, so that what an operator has changed by hand is seen and left alone. Runs
on the host. Everything here blocks on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from enum import Enum

from midstream.errors import HostError

_MARKER = re.compile(r"^# Written by `midstream agent install` \(([0-9a-f]{16})\).*\n", re.MULTILINE)
_READ_MAX_BYTES = 65536


class Found(Enum):
    """What is at a path: nothing; what is wanted; an older one of ours; one of ours that somebody changed; a stranger's."""

    ABSENT = "absent"
    SAME = "same"
    OURS = "ours"
    CHANGED = "changed"
    FOREIGN = "foreign"


def marked(text: str) -> str:
    """The text with its marker: after a first line that names the interpreter, else in front."""
    head, rest = "", text
    if text.startswith("#!"):
        head, _, rest = text.partition("\n")
        head += "\n"
    marker = f"# Written by `midstream agent install` ({_hash(head + rest)}), which replaces it unless it was changed."
    return f"{head}{marker}\n{rest}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def found_at(path: str, wanted: str) -> Found:
    """What is there. wanted: a marked text. Raises HostError when it cannot be looked at."""
    try:
        if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
            return Found.FOREIGN
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(_READ_MAX_BYTES)
    except FileNotFoundError:
        return Found.ABSENT
    except OSError as error:
        raise HostError(
            f"it cannot be read: {error.strerror}", where=path, remedy="run it as root, or look at its permissions"
        ) from error
    if text == wanted:
        return Found.SAME
    marker = _MARKER.search(text)
    if marker is None:
        return Found.FOREIGN
    return Found.OURS if _hash(text[: marker.start()] + text[marker.end() :]) == marker[1] else Found.CHANGED


def link_at(path: str, target: str) -> Found:
    """The same of a symlink that is to lead to `target`."""
    try:
        return Found.SAME if os.readlink(path) == target else Found.FOREIGN
    except FileNotFoundError:
        return Found.ABSENT
    except OSError:
        return Found.FOREIGN


def replace_file(path: str, data: bytes, mode: int) -> None:
    """In one step: who looks sees the old one or the new one, whole. Makes the folder. Raises HostError."""
    temporary = f"{path}.{os.getpid()}.new"
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            with os.fdopen(fd, "wb") as file:
                os.fchmod(fd, mode)
                file.write(data)
                file.flush()
                os.fsync(fd)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise _not_written(path, error) from error


def make_link(path: str, target: str) -> None:
    """Raises HostError."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        os.symlink(target, path)
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: str, error: OSError) -> HostError:
    return HostError(
        f"it cannot be written: {error.strerror}",
        where=path,
        serving="what ran goes on, unchanged",
        remedy="make room, or mend the rights of the folder, and run it again",
    )
