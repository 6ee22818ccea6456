"""How much of past deploys the agent's database keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from midstream.agent.store import INTENTS_KEPT, AppRecord, Store
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
