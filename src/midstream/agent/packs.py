"""Objects that a deployer sends: one file for each deploy in the agent's own state folder, until they are in the mirror; and
archives of built files (`artifacts.py`), until the deploy ends.

Runs in the agent, blocking, a MiB at a time.
"""

from __future__ import annotations

import base64
import binascii
import glob
import os
from contextlib import suppress
from typing import Any

from midstream.agent.work import Work
from midstream.errors import HostError, OperatorError

_PACK_MAX_BYTES = 8 << 30
_SPARE_BYTES = 256 << 20


def upload(work: Work, offset: int, data: str, last: bool) -> dict[str, Any]:
    """Appends to the pack; a repeated part is written over itself."""
    try:
        raw = base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise OperatorError("deploy.upload: data is not base64") from error
    if offset < 0 or offset + len(raw) > _PACK_MAX_BYTES:
        raise OperatorError("deploy.upload: the pack is too large")
    refuse_full_disk(work, len(raw))
    try:
        fd = os.open(work.pack_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            done = 0
            while done < len(raw):
                done += os.pwrite(fd, raw[done:], offset + done)
            if last:
                os.ftruncate(fd, offset + len(raw))
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(
            f"the objects could not be stored: {error.strerror}",
            where=os.path.dirname(work.pack_path),
            serving=work.serving(),
            remedy="free some space, then deploy again",
        ) from error
    return {"offset": offset + len(raw)}


def room_bytes(work: Work) -> int:
    """Packs lie on the agent's own disk: the last of it is not for them. Below 0: it has come to that already."""
    disk = os.statvfs(os.path.dirname(work.pack_path))
    spare_bytes = min(_SPARE_BYTES, disk.f_blocks * disk.f_frsize // 20)
    return disk.f_bavail * disk.f_frsize - spare_bytes


def refuse_full_disk(work: Work, size_bytes: int) -> None:
    if room_bytes(work) < size_bytes:
        raise HostError(
            "the objects could not be stored: no space left on the disk of the agent's state",
            where=os.path.dirname(work.pack_path),
            serving=work.serving(),
            remedy="free some space, then deploy again",
        )


def drop(work: Work) -> None:
    """Raises nothing: a file that stays must not keep the deploy's lock."""
    _unlink(work.pack_path)


def drop_artifacts(work: Work) -> None:
    """Removes the archives of built files of a deploy that has ended."""
    for path in glob.glob(f"{glob.escape(work.pack_path.removesuffix('.pack'))}.artifact-*"):
        _unlink(path)


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
