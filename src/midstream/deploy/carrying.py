"""What a build made in one place, on its way to the hosts: fetched or made once, then sent to each (`core/builds.py`).

Runs in the deployer. The archive lies in a folder of its own until the deploy ends. A piece is asked for or sent again by
the client when a connection was lost, so a transfer goes on where it was.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from midstream.core.builds import HERE, Carry, steps_here
from midstream.core.plan import Phase
from midstream.deploy import local_build
from midstream.deploy.events import Event, EventKind
from midstream.deploy.order import Order, Target
from midstream.deploy.scratch import Scratch
from midstream.errors import AppError, HostError, OperatorError
from midstream.linux import archive

PIECE_BYTES = 1024 * 1024
_AT_A_TIME = 4

Ask = Callable[..., Awaitable[dict[str, Any]]]  # ask("read", **params) of one host


@dataclass(frozen=True, slots=True)
class Cargo:
    """An archive on this machine's disk."""

    path: str
    size_bytes: int
    sha256: str


class Carrier:
    """Of one deploy. `close` deletes what it kept. All coroutines raise MidstreamError."""

    def __init__(self, order: Order, tell: Callable[[Event], None]) -> None:
        self._order = order
        self._tell = tell
        self._folder: Scratch | None = None
        self._checkout: local_build.Checkout | None = None
        self._cargo: dict[int, Cargo] = {}

    def close(self) -> None:
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    async def load(self, carry: Carry, asks: Mapping[str, Ask]) -> None:
        """Has the archive made: by the builder, or here. asks: by host."""
        path = os.path.join(self._home(), f"{carry.number}.tar.gz")
        try:
            if carry.builder == HERE:
                await self._make_here(carry, path)
            else:
                await self._fetch(carry, asks[carry.builder], path)
            digest = await asyncio.to_thread(_sha256, path)
            self._cargo[carry.number] = Cargo(path, os.path.getsize(path), digest)
        except OSError as error:
            raise local_build.disk_trouble(error, self._home()) from error

    async def deliver(self, carry: Carry, host: str, ask: Ask) -> None:
        """Sends the archive to a host, which puts it into its release."""
        cargo = self._cargo[carry.number]
        begun = time.monotonic()
        self._say(carry, EventKind.BEGIN, host, f"sending {cargo.size_bytes} bytes")
        pieces = list(range(0, cargo.size_bytes, PIECE_BYTES)) or [0]
        with open(cargo.path, "rb") as file:

            async def send(offset: int) -> None:
                data = base64.b64encode(os.pread(file.fileno(), PIECE_BYTES, offset)).decode("ascii")
                last: dict[str, Any] = {"last": False}
                if offset == pieces[-1]:
                    last = {"last": True, "sha256": cargo.sha256}
                await ask("write", **self._about(carry), offset=offset, data=data, **last)

            for start in range(0, len(pieces) - 1, _AT_A_TIME):
                await _all(send(offset) for offset in pieces[:-1][start : start + _AT_A_TIME])
            await send(pieces[-1])
        self._say(carry, EventKind.END, host, ", ".join(carry.files), time.monotonic() - begun)

    # -- where it comes from ---------------------------------------------------------------------------------------

    async def _fetch(self, carry: Carry, ask: Ask, path: str) -> None:
        """From the host that built it."""
        about = self._about(carry)
        first = await ask("read", **about, offset=0, size=PIECE_BYTES)
        size = int(first["size_bytes"])
        with open(path, "wb") as file:

            def keep(offset: int, answer: dict[str, Any]) -> None:
                data = base64.b64decode(answer["data"])
                if len(data) != min(PIECE_BYTES, size - offset) or int(answer["size_bytes"]) != size:
                    raise HostError(
                        "what was built changed while it was fetched",
                        where=carry.builder,
                        remedy="look for a build that goes on after its command has ended; then deploy again",
                    )
                os.pwrite(file.fileno(), data, offset)

            async def fetch(offset: int) -> None:
                keep(offset, await ask("read", **about, offset=offset, size=PIECE_BYTES))

            keep(0, first)
            offsets = list(range(PIECE_BYTES, size, PIECE_BYTES))
            for start in range(0, len(offsets), _AT_A_TIME):
                await _all(fetch(offset) for offset in offsets[start : start + _AT_A_TIME])

    async def _make_here(self, carry: Carry, path: str) -> None:
        begun = time.monotonic()
        self._say(carry, EventKind.BEGIN, "", "building here", step="deploy:build")
        checkout = await self._clean_checkout(carry)
        steps = steps_here(self._order.specs, carry)

        def say(line: str) -> None:
            self._say(carry, EventKind.LINE, "", line, step="deploy:build")

        await local_build.build(checkout, steps, say)
        await asyncio.to_thread(_pack, checkout.folder, archive.Label(self._target.tree, carry.files), path)
        self._say(carry, EventKind.END, "", "", time.monotonic() - begun, step="deploy:build")

    async def _clean_checkout(self, carry: Carry) -> local_build.Checkout:
        """One for all steps of this deploy: a later one finds what an earlier one made."""
        if self._checkout is None:
            if self._order.checkout is None:
                raise OperatorError(
                    "there is no repository here to build from",
                    where=local_build.WHERE,
                    remedy="run it where midstream.toml and its repository are",
                )
            folder = os.path.join(self._home(), "checkout")
            spec = self._order.specs[carry.hosts[0]]
            await asyncio.to_thread(self._order.checkout, self._target, folder)
            folder = os.path.join(folder, spec.repo_tree) if spec.repo_tree else folder
            self._checkout = local_build.Checkout(folder, spec, self._order.secrets)
        return self._checkout

    # -- ---------------------------------------------------------------------------------------------------------------

    @property
    def _target(self) -> Target:
        assert self._order.target is not None
        return self._order.target

    def _about(self, carry: Carry) -> dict[str, Any]:
        return {"number": carry.number, "files": carry.files, "tree": self._target.tree}

    def _home(self) -> str:
        if self._folder is None:
            try:
                self._folder = Scratch("midstream-builds-")
            except OSError as error:
                raise local_build.disk_trouble(error, tempfile.gettempdir()) from error
        return self._folder.path

    def _say(
        self, carry: Carry, kind: EventKind, host: str, text: str, seconds: float | None = None, step: str = ""
    ) -> None:
        label = f":{carry.name}" if carry.name else ""
        ok = True if kind is EventKind.END else None
        step = f"{step or 'deploy:carry'}{label}"
        self._tell(Event(kind, host, Phase.UPDATED.value, step, text=text, ok=ok, seconds=seconds))


async def _all(works: Any) -> None:
    """All at the same time; the first failure cancels the others, and is raised as it is."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _pack(folder: str, label: archive.Label, path: str) -> None:
    try:
        with open(path, "wb") as out:
            archive.pack(folder, label, out)
    except archive.CannotPack as error:
        raise AppError(
            str(error),
            where=local_build.WHERE,
            remedy="correct `files` of that [[build]] step, or what it makes; then deploy again",
        ) from None


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
