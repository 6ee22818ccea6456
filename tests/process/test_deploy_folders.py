"""What the agent sees of `deploy_to`: read apart from its loop, so that a file system that hangs stops nobody."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from midstream.agent import apart
from midstream.agent import deploy_folders as module
from midstream.agent.deploy_folders import DeployFolders
from midstream.agent.store import AppRecord
from midstream.errors import HostError

RELEASE = "20261121190501"


def folders(*records: AppRecord) -> DeployFolders:
    return DeployFolders(SimpleNamespace(uid=1, apps={record.app: record for record in records}))  # type: ignore[arg-type]


@pytest.fixture
def shop(tmp_path: Path) -> AppRecord:
    """Reached through a link."""
    release = tmp_path / "real" / "releases" / RELEASE
    release.mkdir(parents=True)
    (release / "REVISION").write_text("1" * 40 + "\n")
    (tmp_path / "real" / "current").symlink_to(release)
    (tmp_path / "srv").symlink_to(tmp_path / "real")
    return AppRecord("shop", str(tmp_path / "srv"), 1)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Links below any folder called `dead` are never read; the paths that somebody tried."""
    gate, tried, read = threading.Event(), [], os.readlink

    def readlink(path: Any, **how: Any) -> str:
        if "/dead/" in str(path):
            tried.append(str(path))
            gate.wait()
        return read(path, **how)

    monkeypatch.setattr(os, "readlink", readlink)
    monkeypatch.setattr(module, "LOOK_S", 0.2)
    yield tried
    gate.set()


def test_it_sees_the_link_and_the_releases(shop: AppRecord) -> None:
    async def story() -> None:
        seen = folders(shop)
        assert seen.of("shop") is None and seen.resolved(shop) == shop.deploy_to
        await seen.look(["shop", "unknown"])
        found = seen.of("shop")
        assert found is not None and found.target is not None and os.path.basename(found.target) == RELEASE
        assert seen.resolved(shop) == os.path.realpath(shop.deploy_to) != shop.deploy_to
        assert await seen.releases(shop, frozenset()) == {RELEASE: "1" * 40}
        assert await seen.releases(shop, frozenset({RELEASE})) == {RELEASE: ""}
        os.unlink(f"{shop.deploy_to}/current")
        await seen.look(["shop"])
        found = seen.of("shop")
        assert found is not None and found.target is None and "No such file" in found.error

    asyncio.run(story())


def test_one_that_hangs_is_told_and_stops_no_other_owners(shop: AppRecord, tmp_path: Path, hanging: list[str]) -> None:
    dead = AppRecord("dead", str(tmp_path / "dead"), 2)

    async def story() -> None:
        seen = folders(shop, dead)
        for _ in range(3):
            await seen.look(["shop", "dead"])
        here, gone = seen.of("shop"), seen.of("dead")
        assert here is not None and here.target is not None
        assert gone is not None and gone.target is None and "does not answer" in gone.error
        assert len(hanging) == 1, "no further thread is sent after one that hangs"

    asyncio.run(story())


def test_the_list_of_releases_of_one_that_hangs_is_an_error(shop: AppRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(module, "_list_releases", lambda *_: gate.wait())
    monkeypatch.setattr(apart, "LIST_S", 0.1)

    async def story() -> None:
        try:
            with pytest.raises(HostError, match="does not answer") as refused:
                await folders(shop).releases(shop, frozenset())
            assert refused.value.where == shop.deploy_to and "mounted" in refused.value.remedy
        finally:
            gate.set()

    asyncio.run(story())
