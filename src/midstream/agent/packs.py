"""Objects that a deployer sends: one file for each deploy in the agent's own state folder, until they are in the mirror; and
archives of built files (`artifacts.py`), until the deploy ends.

Runs in the agent; a MiB at a time is written apart from its loop, which a disk that hangs must not hold up.
"""

from __future__ import annotations

import glob
import os
from contextlib import suppress
from typing import Any

from midstream.agent.apart import PIECE_S, apart, within
from midstream.agent.piece_files import write_piece
from midstream.agent.work import Work
from midstream.errors import HostError, OperatorError

PIECE_MAX_BYTES = 1 << 20
_PACK_MAX_BYTES = 8 << 30
_SPARE_BYTES = 256 << 20


async def upload(work: Work, offset: int, raw: bytes, last: bool) -> dict[str, Any]:
    """Appends to the pack; a repeated part is written over itself. Raises HostError when the disk is full, broken or does not
    answer."""
    if offset < 0 or offset + len(raw) > _PACK_MAX_BYTES:
        raise OperatorError(
            f"the objects that the deploy sends are more than {_PACK_MAX_BYTES >> 30} GiB",
            where="deploy.upload",
            serving=work.serving(),
            remedy='have the host fetch them itself: source = "fetch"',
        )
    try:
        writing = apart(work.app.owner_uid, _write, work, raw, offset, last)
        await within(writing, PIECE_S, work.pack_path)
    except OSError as error:
        raise HostError(
            f"the objects could not be stored: {error.strerror}",
            where=os.path.dirname(work.pack_path),
            serving=work.serving(),
            remedy="free some space, then deploy again",
        ) from error
    return {"offset": offset + len(raw)}


def _write(work: Work, raw: bytes, offset: int, last: bool) -> None:
    refuse_full_disk(work, len(raw))
    write_piece(work.pack_path, raw, offset, last)


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
