"""The end of a deploy on a host: once, whoever asks for it, and with its lock freed whatever fails on the way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from midstream.agent import deploys as module
from midstream.agent.accounts import Peer
from midstream.agent.deploys import Deploys
from midstream.agent.host import Host
from midstream.agent.keeper_link import KeeperLost
from midstream.agent.logs import Logs
from midstream.agent.methods import Methods
from midstream.agent.oneshots import OneShots
from midstream.agent.opening import Opening
from midstream.agent.store import AppRecord, GenerationRecord, Store
from midstream.agent.work import Work
from midstream.core.generation import IllegalTransition
from midstream.core.intent import IntentEvent, IntentState
from midstream.core.phases import Handover, Phase
from midstream.core.service import Service
from midstream.core.spec import AppSpec, ServiceSpec
from midstream.core.wire import to_wire
from midstream.errors import HostError, LockedError

ME = Peer(os.getpid(), os.getuid(), os.getgid())
SPEC = AppSpec("shop", "/srv/shop", "/repo")

Story = Callable[[Deploys], Awaitable[None]]


@pytest.fixture
def told(tmp_path: Path) -> Callable[[Story], None]:
    """Runs a story with the deploys of an agent that has no keeper."""

    def tell(story: Story) -> None:
        async def main() -> None:
            store = Store(str(tmp_path / "s"))
            host = Host(store, Logs(str(tmp_path / "log"), lambda event: None), str(tmp_path / "r"), os.getuid())
            await story(Deploys(host, str(tmp_path / "s")))
            store.close()

        asyncio.run(main())

    return tell


def begun(deploys: Deploys, name: str) -> Work:
    return deploys._begin(ME, Opening(name, {}), SPEC, os.getuid())


def test_two_who_end_a_deploy_at_once_end_it_once(
    told: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, cleaned = asyncio.Event(), []

    async def tidy(work: Work, until: str) -> list[str]:
        cleaned.append(work.intent.id)
        await gate.wait()
        return []

    monkeypatch.setattr(module.finishing, "tidy", tidy)

    async def story(deploys: Deploys) -> None:
        work = begun(deploys, "d1")
        first, gone, other = (asyncio.create_task(deploys.settle(work, "aborted")) for _ in range(3))
        while not cleaned:
            await asyncio.sleep(0)
        await deploys.host.until(lambda: len(cleaned) > 1, 0.5)  # the other would have come by now
        gone.cancel()
        gate.set()
        await asyncio.gather(first, other)
        assert cleaned == ["d1"]
        assert deploys.of("shop") is None

    told(story)


def test_a_second_end_leaves_the_next_deploy_alone(told: Callable[[Story], None]) -> None:
    async def story(deploys: Deploys) -> None:
        first = begun(deploys, "d1")
        deploys._close(first)
        second = begun(deploys, "d2")
        deploys.host.intent_of["shop"] = "d2"
        deploys._close(first)
        assert deploys.of("shop") is second
        assert "shop" in deploys.host.apps
        assert deploys.host.intent_of["shop"] == "d2"

    told(story)


def test_the_lock_is_freed_when_the_way_back_and_the_undo_fail(
    told: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> Any:
        raise HostError("the keeper keeps dying")

    monkeypatch.setattr(module.publishing, "revert", fail)
    monkeypatch.setattr(module.hooks, "undo_all", fail)

    async def story(deploys: Deploys) -> None:
        with pytest.raises(HostError):
            await deploys.settle(begun(deploys, "d1"), "aborted")
        assert deploys.of("shop") is None

    told(story)


def test_a_build_that_cannot_be_stopped_keeps_nothing_from_going_back(
    told: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(key: str) -> None:
        raise HostError("the keeper refused")

    async def story(deploys: Deploys) -> None:
        work = begun(deploys, "d1")
        monkeypatch.setattr(deploys.host.one_shots, "running", lambda: [f"shop/+build/{work.intent.number}/0/0"])
        monkeypatch.setattr(deploys.host.one_shots, "stop", refuse)
        await module.publishing.revert(work, "aborted")
        assert work.intent.state is IntentState.REVERTED

    told(story)


def test_what_is_to_be_stopped_is_stopped_by_the_next_keeper(told: Callable[[Story], None]) -> None:
    class Link:
        def __init__(self, dies: bool) -> None:
            self.dies = dies
            self.killed: list[str] = []

        async def kill_tree(self, key: str) -> None:
            if self.dies:
                raise KeeperLost("the keeper is gone")
            self.killed.append(key)

    async def story(_: Deploys) -> None:
        dying, following = Link(True), Link(False)
        links = [dying, following]

        async def connected() -> Any:
            return links.pop(0)

        await OneShots(connected).stop("shop/+build/1/0/0")
        assert following.killed == ["shop/+build/1/0/0"]

    told(story)


def test_the_lock_is_freed_when_what_was_sent_cannot_be_deleted(told: Callable[[Story], None]) -> None:
    async def story(deploys: Deploys) -> None:
        work = begun(deploys, "d1")
        os.makedirs(work.pack_path)  # unlink fails, as on a disk that became read-only
        deploys._close(work)
        assert deploys.of("shop") is None

    told(story)


def test_an_app_whose_deploy_begins_while_it_is_stopped_is_not_removed(
    told: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(deploys: Deploys) -> None:
        deploys.host.apps["shop"] = module.opening.new_app(deploys.host, SPEC, os.getuid())
        methods = Methods(deploys.host, deploys, "", lambda seconds: None, lambda argv, image: None)

        async def stop(*_: Any) -> Any:
            begun(deploys, "d1")

        monkeypatch.setattr(methods, "stop", stop)
        with pytest.raises(LockedError, match="under way"):
            await methods.app_remove(SimpleNamespace(peer=ME), {"app": "shop"})  # type: ignore[arg-type]
        assert "shop" in deploys.host.apps

    told(story)


async def nothing_to_tidy(work: Work, until: str) -> list[str]:
    return []


def test_who_wants_it_undecided_is_refused_once_it_is_decided(
    told: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision comes between his look and his word: nothing is touched, and the deployer goes on."""

    async def commit(work: Work) -> None:
        return None

    monkeypatch.setattr(module.publishing, "commit", commit)
    monkeypatch.setattr(module.finishing, "tidy", nothing_to_tidy)

    async def story(deploys: Deploys) -> None:
        work = begun(deploys, "d1")
        asked = asyncio.create_task(deploys.settle(work, "aborted", undecided=True))
        work.save(state=IntentState.COMMITTED, release="20261121190501")
        assert await asked is False
        assert deploys.of("shop") is work and work.intent.state is IntentState.COMMITTED
        assert await deploys.settle(work, "its deployer is gone") is True
        assert deploys.of("shop") is None

    told(story)


def test_a_way_back_that_is_recorded_refuses_the_decision(
    told: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.finishing, "tidy", nothing_to_tidy)

    async def story(deploys: Deploys) -> None:
        work = begun(deploys, "d1")
        work.save(state=IntentState.PROVISIONAL)
        asked = asyncio.create_task(deploys.settle(work, "aborted", undecided=True))
        while work.intent.state is IntentState.PROVISIONAL:
            await asyncio.sleep(0)
        with pytest.raises(IllegalTransition):
            work.move(IntentEvent.COMMIT)
        assert await asked is True

    told(story)


@pytest.mark.parametrize("way", ["restart", "settle"])
def test_what_cannot_be_put_back_stays_open_and_is_put_back_later(
    told: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The keeper dies in the handover, and in the way back: closed now, the new generation would be nobody's."""
    asked = []

    async def publish(work: Work, record: Any) -> Any:
        hand_over(work)
        raise KeeperLost("the keeper keeps dying")

    def hand_over(work: Work) -> None:
        work.save(state=IntentState.PUBLISHING, generation=2, services=("web",))
        work.host.services["shop", "web"] = Service("shop", "web", handover=Handover(2, Phase.STARTING, 0.0))

    async def revert(work: Work, reason: str) -> None:
        asked.append(work.intent.id)
        if len(asked) < 3:
            raise KeeperLost("the keeper keeps dying")
        work.host.services["shop", "web"] = Service("shop", "web")
        work.save(state=IntentState.REVERTED)

    monkeypatch.setattr(module.publishing, "publish", publish)
    monkeypatch.setattr(module.publishing, "revert", revert)
    monkeypatch.setattr(module.finishing, "tidy", nothing_to_tidy)
    monkeypatch.setattr(module, "_AGAIN_S", 0.01)

    async def story(deploys: Deploys) -> None:
        if way == "restart":
            record = AppRecord("shop", "/srv/shop", ME.uid, release="20261121190501", committed_generation=1)
            deploys.host.store.put_app(record)
            deploys.host.apps["shop"] = record
            spec = replace(SPEC, services={"web": ServiceSpec("web", ("serve",))})
            deploys.host.generations["shop", 1] = GenerationRecord(1, record.release, spec)
            with pytest.raises(KeeperLost):
                await deploys.restart(ME, "shop", [], lambda progress: None)
        else:
            work = begun(deploys, "d1")
            hand_over(work)
            with pytest.raises(KeeperLost):
                await deploys.settle(work, "aborted")
        open_now = deploys.of("shop")
        assert open_now is not None and deploys.host.store.open_intents()
        assert await deploys.host.until(lambda: deploys.of("shop") is None, 10.0)
        assert len(asked) == 3 and not deploys.host.store.open_intents()

    told(story)


def test_a_deploy_that_others_deploy_over_while_it_waits_for_them_is_over(
    told: Callable[[Story], None], tmp_path: Path
) -> None:
    """`midstream resume --wait` would take their release back."""
    spec = replace(SPEC, deploy_to=str(tmp_path / "shop"))
    (tmp_path / "shop").mkdir()
    old, new = "20261121190501", "20261121190502"

    async def story(deploys: Deploys) -> None:
        host = deploys.host
        host.apps["shop"] = AppRecord("shop", spec.deploy_to, os.getuid(), release=old)
        deploys._close(begun(deploys, "put back"))
        hotfix = begun(deploys, "hotfix")
        asked = Opening("put back", to_wire(spec), wait=True, until="check")
        resumed = asyncio.create_task(deploys.open(ME, asked, lambda progress: None))
        await host.until(lambda: resumed.done(), 0.05)
        assert not resumed.done()
        host.apps["shop"] = replace(host.apps["shop"], release=new)
        deploys._close(hotfix)
        with pytest.raises(LockedError, match=f"is over: it was put back, and release {new} has come after it"):
            await resumed
        assert deploys.of("shop") is None

    told(story)
