"""Writes that do not wait for the disk: only those that say so, and no kill of the agent loses them."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from midstream.agent.store import Store
from midstream.errors import HostError

FULL, NORMAL = 2, 1  # https://sqlite.org/pragma.html#pragma_synchronous


def synchronous(store: Store) -> int:
    return int(store._db.execute("PRAGMA synchronous").fetchone()[0])


def test_only_a_relaxed_transaction_is_relaxed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.transaction():
        store.set_meta("a", "1")
        assert synchronous(store) == FULL
    with store.transaction(relaxed=True):
        store.set_meta("a", "2")
        assert synchronous(store) == NORMAL
    assert synchronous(store) == FULL
    with store.transaction(), store.transaction(relaxed=True):  # what is decided around it is not
        assert synchronous(store) == FULL


@pytest.mark.parametrize(("error", "seen"), [(KeyError("x"), KeyError), (sqlite3.OperationalError("x"), HostError)])
def test_one_that_fails_is_undone_and_the_next_waits_again(
    tmp_path: Path, error: Exception, seen: type[Exception]
) -> None:
    store = Store(str(tmp_path))
    undone: list[str] = []
    with pytest.raises(seen), store.transaction(relaxed=True):
        store.set_meta("a", "1")
        store.if_undone(lambda: undone.append("a"))
        raise error
    assert (store.meta("a"), undone, synchronous(store)) == ("", ["a"], FULL)


def test_a_kill_right_after_it_loses_nothing(tmp_path: Path) -> None:
    Store(str(tmp_path)).close()
    pid = os.fork()
    if pid == 0:
        store = Store(str(tmp_path))
        with store.transaction(relaxed=True):
            store.set_meta("a", "1")
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert Store(str(tmp_path)).meta("a") == "1"
