"""A transaction of the agent's database that fails at its end leaves memory as it was, too."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from midstream.agent.store import Store
from midstream.agent.work import Work
from midstream.core.intent import Intent, IntentEvent, IntentState
from midstream.core.spec import AppSpec
from midstream.errors import HostError


@pytest.fixture
def work(tmp_path: Path) -> Work:
    host = SimpleNamespace(store=Store(str(tmp_path)), keeper_pid=0)
    intent = Intent("d1", 1, "shop", "deploy", IntentState.PROVISIONAL, "anna", 1)
    host.store.put_intent(intent)
    return Work(host, intent, AppSpec("shop", "/srv/shop", ""))  # type: ignore[arg-type]


def fill(store: Store) -> None:
    """The database may not grow by a page: what does not fit fails as on a full disk."""
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")


def test_a_decision_that_the_disk_did_not_take_is_not_remembered(work: Work) -> None:
    store = work.host.store
    fill(store)
    with pytest.raises(HostError), store.transaction():
        work.move(IntentEvent.COMMIT)
        store.set_meta("large", "x" * 100_000)
    assert work.intent.state is IntentState.PROVISIONAL
    stored = store.intent("d1")
    assert stored is not None and stored.state is IntentState.PROVISIONAL


def test_a_decision_that_was_stored_is_kept_whatever_fails_later(work: Work) -> None:
    store = work.host.store
    with store.transaction():
        work.move(IntentEvent.COMMIT)
    with pytest.raises(RuntimeError), store.transaction():
        raise RuntimeError
    assert work.intent.state is IntentState.COMMITTED
    stored = store.intent("d1")
    assert stored is not None and stored.state is IntentState.COMMITTED
