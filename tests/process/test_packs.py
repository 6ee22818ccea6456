"""Objects that a deployer sends, on a disk of the agent's that is full or does not answer."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from midstream.agent import packs
from midstream.errors import HostError


def work_in(folder: Path) -> Any:
    app = SimpleNamespace(owner_uid=os.getuid())
    return SimpleNamespace(app=app, pack_path=str(folder / "d1.pack"), serving=lambda: "release 1")


def test_a_pack_arrives_in_pieces_that_may_be_repeated(tmp_path: Path) -> None:
    async def story() -> None:
        work = work_in(tmp_path)
        for offset, raw, last in ((0, b"abc", False), (0, b"abc", False), (3, b"de", True)):
            assert await packs.upload(work, offset, raw, last) == {"offset": offset + len(raw)}

    asyncio.run(story())
    assert (tmp_path / "d1.pack").read_bytes() == b"abcde"


def test_a_disk_that_does_not_answer_ends_the_upload_and_not_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO that nobody reads stands in for it: opening it hangs, in a real thread."""
    monkeypatch.setattr(packs, "PIECE_S", 0.1)
    os.mkfifo(tmp_path / "d1.pack")

    async def story() -> None:
        with pytest.raises(HostError, match=r"does not answer within 0\.1 s") as failed:
            await packs.upload(work_in(tmp_path), 0, b"abc", True)
        assert failed.value.where == str(tmp_path / "d1.pack")
        assert failed.value.remedy

    asyncio.run(story())
    os.close(os.open(tmp_path / "d1.pack", os.O_RDWR | os.O_NONBLOCK))  # the thread that hung there ends
