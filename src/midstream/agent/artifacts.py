"""`deploy.artifact.read` and `.write`: what a build made on another machine, into or out of the release of a deploy.

The archive lies in the agent's own folder until the deploy ends; packing and unpacking are step programs under the app's
user. Pieces may come in any order and more than once; the last one is sent when all others have been answered. Runs in the
agent's loop.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Any

from midstream.agent import packs
from midstream.agent.apart import PIECE_S, apart, within
from midstream.agent.control import Connection, Method
from midstream.agent.deploys import Deploys
from midstream.agent.params import data as read_data
from midstream.agent.params import shaped, text, whole
from midstream.agent.piece_files import write_piece
from midstream.agent.work import Progress, Work
from midstream.core import steps
from midstream.core.intent import IntentState
from midstream.core.layout import check_relative
from midstream.errors import HostError, OperatorError

PIECE_MAX_BYTES = 1 << 20
ARTIFACT_MAX_BYTES = 8 << 30
_FILES_MAX = 100
_NUMBER_MAX = 1000
_SUM_S = 900.0  # to read the largest archive once

WorkOf = Callable[[Connection, dict[str, Any]], Work]
TellerOf = Callable[[Connection], Callable[[Progress], None]]


class Artifacts:
    """`work_of` checks who asks, and for which deploy."""

    def __init__(self, deploys: Deploys, work_of: WorkOf, teller: TellerOf) -> None:
        self._deploys = deploys
        self._work_of = work_of
        self._teller = teller

    def table(self) -> dict[str, Method]:
        return {"deploy.artifact.read": self.read, "deploy.artifact.write": self.write}

    async def read(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """One piece of the archive of `files`. It is packed when it is first asked for."""
        work = self._open_work(connection, params)
        number, files, tree = _number(params), _files(params), text(params, "tree")
        offset = whole(params, "offset", 0, ARTIFACT_MAX_BYTES)
        size = whole(params, "size", 0, PIECE_MAX_BYTES)
        path, label = _path(work, "out", number), f"artifact {number}: pack"
        if not (work.done(label) and os.path.exists(path)):

            async def pack() -> dict[str, Any]:
                request = steps.PackFiles(work.spec.deploy_to, work.intent.release, tree, files)
                packs.refuse_full_disk(work, PIECE_MAX_BYTES)
                most_bytes = min(ARTIFACT_MAX_BYTES, packs.room_bytes(work))
                with work.step(label):
                    return await _with_file(work, path, "pack_files", request, most_bytes)

            await self._deploys.call(work, label, pack, self._teller(connection))
        try:
            return await within(apart(work.app.owner_uid, _read_piece, path, offset, size), PIECE_S, path)
        except OSError as error:
            raise _disk(work, path, error) from error

    async def write(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """One piece; with the last one the whole is checked and put into the release. `{offset, files?}`"""
        work = self._open_work(connection, params)
        number, files, tree = _number(params), _files(params), text(params, "tree")
        offset, last = whole(params, "offset", 0, ARTIFACT_MAX_BYTES), bool(params.get("last"))
        data = read_data(params, PIECE_MAX_BYTES)
        path = _path(work, "in", number)
        packs.refuse_full_disk(work, len(data))
        try:
            await within(apart(work.app.owner_uid, write_piece, path, data, offset, last), PIECE_S, path)
        except OSError as error:
            raise _disk(work, path, error) from error
        if not last:
            return {"offset": offset + len(data)}
        wanted = text(params, "sha256")
        label = f"artifact {number} {wanted[:12]}"
        _refuse_other_files(work, number, label)
        if work.done(label):  # said again after its answer was lost
            return {"offset": offset + len(data), "files": 0}

        async def unpack() -> dict[str, Any]:
            with work.step(label):
                found = await within(apart(work.app.owner_uid, _sum_of(), path), _SUM_S, path)
                if found != wanted:
                    raise HostError(
                        "the files of the build arrived damaged",
                        where=f"release {work.intent.release} in {work.spec.deploy_to}",
                        detail=f"sha256 {found}, expected {wanted}",
                        serving=work.serving(),
                        remedy="deploy again",
                    )
                request = steps.UnpackFiles(work.spec.deploy_to, work.intent.release, tree, files)
                answer = await _with_file(work, path, "unpack_files", request)
            os.unlink(path)
            return answer

        answer = await self._deploys.call(work, label, unpack, self._teller(connection))
        return {"offset": offset + len(data), "files": answer.get("files", 0)}

    def _open_work(self, connection: Connection, params: dict[str, Any]) -> Work:
        work = self._work_of(connection, params)
        if work.over or work.intent.state is not IntentState.UPDATING or not work.done("git:create_release"):
            raise OperatorError(
                "files of a build belong into a release that is being made",
                where="deploy.artifact",
                serving=work.serving(),
                remedy="begin again: midstream deploy",
            )
        return work


def _refuse_other_files(work: Work, number: int, label: str) -> None:
    """A deployer that took the deploy up again may have built anew. What came of the first build is in other hosts, or in
    what was built here since."""
    before = [name for name in work.intent.steps if name.startswith(f"artifact {number} ") and name != label]
    if before:
        raise HostError(
            "other files of the same build were put into this release before: what is built in it no longer fits",
            where=f"release {work.intent.release} in {work.spec.deploy_to}",
            serving=work.serving(),
            remedy="begin again: midstream deploy",
        )


def _stem(work: Work) -> str:
    return work.pack_path.removesuffix(".pack")


def _path(work: Work, way: str, number: int) -> str:
    return f"{_stem(work)}.artifact-{way}-{number}"


async def _with_file(work: Work, path: str, step: str, request: object, file_max_bytes: int = 0) -> dict[str, Any]:
    """Runs the step with the archive as its second descriptor; on the agent's disk, so it gets no larger than that."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        return await work.run_step(step, request, (fd,), "deploy:build", file_max_bytes)
    finally:
        os.close(fd)


def _read_piece(path: str, offset: int, size: int) -> dict[str, Any]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        whole = os.fstat(fd).st_size
        data = os.pread(fd, size, offset)
    finally:
        os.close(fd)
    return {"data": base64.b64encode(data).decode("ascii"), "size_bytes": whole, "last": offset + len(data) >= whole}


def _sum_of() -> Callable[[str], str]:
    """What sums a file up. hashlib brings OpenSSL along, 4 MB that an agent which gets no artifacts does without; it is
    loaded here and not in the owner's thread, who may not be able to read it."""
    from hashlib import file_digest

    def sha256(path: str) -> str:
        with open(path, "rb") as file:
            return file_digest(file, "sha256").hexdigest()

    return sha256


def _files(params: dict[str, Any]) -> tuple[str, ...]:
    files = shaped(tuple[str, ...], params.get("files"), "deploy.artifact", "files")
    if not files or len(files) > _FILES_MAX:
        raise OperatorError(
            f"files: 1 to {_FILES_MAX} paths", where="files", remedy="name folders in `files` of that [[build]] step"
        )
    return tuple(check_relative(path, "files") for path in files)


def _number(params: dict[str, Any]) -> int:
    return whole(params, "number", 0, _NUMBER_MAX)


def _disk(work: Work, path: str, error: OSError) -> HostError:
    return HostError(
        f"the files of the build could not be kept: {error.strerror}",
        where=os.path.dirname(path),
        serving=work.serving(),
        remedy="free some space, then deploy again",
    )
