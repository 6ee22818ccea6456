"""`Seat`: one host as tasks reach it, asynchronously: commands and files, within a deploy or outside of one.

Runs in the deployer, on its event loop. Tasks themselves see `remote.RemoteHost`, from threads.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from midstream.core.spec import AppSpec
from midstream.errors import HostError

PIECE_BYTES = 1 << 20


class Caller(Protocol):
    """What is needed of `client.AgentClient`."""

    async def call(self, method: str, /, *, idempotent: bool = True, **params: Any) -> dict[str, Any]: ...


def _no_mark() -> dict[str, Any] | None:
    return None


@dataclass(frozen=True, slots=True)
class Seat:
    """mark: the ids of the deploy that commands belong to, None outside of one. release: the one that is being made, ""
    as long as there is none."""

    name: str
    spec: AppSpec
    client: Caller
    mark: Callable[[], dict[str, Any] | None] = _no_mark
    release: Callable[[], str] = lambda: ""

    async def command(self, name: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Runs one command. `name` is unique in the deploy, so that a lost agent is not asked to do it twice."""
        mark = self.mark()
        if mark is None:
            plain = {key: value for key, value in wanted.items() if key not in _OF_A_DEPLOY}
            return await self.client.call("run", idempotent=False, app=self.spec.app, **plain)
        return await self.client.call("deploy.command", **mark, name=name, **wanted)

    async def write(self, path: str, data: bytes, mode: int) -> None:
        """Puts a file there; it takes its place at once, whole."""
        upload = secrets.token_hex(8)
        for offset in range(0, max(len(data), 1), PIECE_BYTES):
            piece = data[offset : offset + PIECE_BYTES]
            await self.client.call(
                "file.write",
                app=self.spec.app,
                path=path,
                offset=offset,
                data=base64.b64encode(piece).decode("ascii"),
                last=offset + PIECE_BYTES >= len(data),
                mode=mode,
                id=upload,
            )

    async def read(self, path: str, limit_bytes: int) -> bytes:
        """A whole file. Raises HostError when it is larger than `limit_bytes`."""
        data = bytearray()
        while True:
            answer = await self.client.call(
                "file.read", app=self.spec.app, path=path, offset=len(data), size=PIECE_BYTES
            )
            data += base64.b64decode(answer["data"])
            if len(data) > limit_bytes:
                raise HostError(
                    f"{path} has more than {limit_bytes} bytes",
                    where=self.name,
                    remedy="fetch a file of that size by scp or rsync",
                )
            if answer["last"]:
                return bytes(data)


_OF_A_DEPLOY = frozenset(("undo", "undo_shell", "undo_timeout_s", "phase", "check"))
