"""How much of past deploys the agent's database keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from midstream.agent import left_behind
from midstream.agent import store as module
from midstream.agent.store import INTENTS_KEPT, AppRecord, EventRow, Store
from midstream.core.intent import Intent, IntentState


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path))
    yield made
    made.close()


def closed(store: Store, number: int, app: str = "shop", release: str = "") -> str:
    name = f"{app}-{number}"
    store.put_intent(Intent(name, number, app, "deploy", IntentState.CLOSED, "anna", number, release=release))
    store.journal(name, "deploy:check", "begin")
    return name


def journals(store: Store) -> set[str]:
    return {row[0] for row in store._db.execute("SELECT DISTINCT intent FROM journal")}


def test_a_thousand_deploys_do_not_pile_up(store: Store) -> None:
    with store.transaction():
        standing = closed(store, 0, release="20261121190501")
        names = [closed(store, number, release="20261121190502") for number in range(1, INTENTS_KEPT + 50)]
        others = closed(store, 1, app="blog")
        store.put_intent(Intent("open", 2, "shop", "deploy", IntentState.OPEN, "anna", 2))
        store.journal("open", "deploy:check", "begin")
    store.forget_old_intents("shop", "20261121190501")
    assert journals(store) == {standing, others, "open", *names[-INTENTS_KEPT:]}
    assert all(store.intent(name) is not None for name in (standing, others, "open", names[-1]))
    assert store.intent(names[0]) is None


def test_an_app_that_is_forgotten_leaves_no_journal_for_who_takes_its_ids(store: Store) -> None:
    store.put_app(AppRecord("shop", "/srv/shop", 0))
    name = closed(store, 1)
    others = closed(store, 1, app="blog")
    store.drop_app("shop")
    assert not store.journal_of(name)
    assert journals(store) == {others}


def names_of_meta(store: Store) -> set[str]:
    return {row[0] for row in store._db.execute("SELECT name FROM meta")} - {"schema"}


def test_an_app_that_is_forgotten_leaves_its_name_and_numbers_alone(store: Store) -> None:
    for app in ("shop", "shopping"):
        store.put_app(AppRecord(app, f"/srv/{app}", 0, generation=7))
        left_behind.note(store, AppRecord(app, f"/srv/{app}", 0), "anna", ["web3"], 1.0)
        store.note_trash(app, True)
        store.put_unswitched(app, "20261121190501")
        store.set_meta(f"ready.{app}/web/7/0/0", "1")
    store.drop_app("shop")
    left = {f"{word}.shopping" for word in ("behind", "trash", "unswitched")}
    assert names_of_meta(store) == {"former.shop", "ready.shopping/web/7/0/0", *left}
    assert store.former("shop") == (0, 7, 0)


def test_what_an_instance_said_goes_with_its_generation(store: Store) -> None:
    for key in ("shop/web/7/0/0", "shop/web/7/1/2", "shop/web/77/0/0", "shop/jobs/6/0/7", "shopping/web/7/0/0"):
        store.set_meta(f"ready.{key}", "1")
    store.drop_generation("shop", 7)
    assert names_of_meta(store) == {"ready.shop/web/77/0/0", "ready.shop/jobs/6/0/7", "ready.shopping/web/7/0/0"}


def test_names_of_removed_apps_do_not_pile_up_and_leave_nothing_for_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORMERS_KEPT", 2)
    for number in range(5):
        store.put_app(AppRecord(f"app{number}", f"/srv/{number}", 1000, generation=number))
        store.note(EventRow(1.0, f"app{number}", "", 0, -1, "deploy", "his word", "anna", ""))
    for number in (1, 0, 2, 3):
        store.drop_app(f"app{number}")
    store.put_app(AppRecord("app1", "/srv/1", 1000))  # it is there again: it keeps its past, and does not count
    assert store.forget_old_formers() == {"app0": "uid1000-0-0"}
    assert store.former("app0") is None and not store.events(app="app0")
    assert all(store.events(app=f"app{number}") for number in (1, 2, 3, 4))
    assert store.forget_old_formers() == {}
