"""A deploy on one host: before the decision every way leads back, after it every way leads forward."""

from __future__ import annotations

import pytest

from midstream.core.generation import IllegalTransition
from midstream.core.intent import TABLE, Intent, advance
from midstream.core.intent import IntentEvent as E
from midstream.core.intent import IntentState as S
from midstream.core.wire import from_wire, to_wire

BEFORE = (S.OPEN, S.UPDATING, S.UPDATED, S.PUBLISHING, S.PROVISIONAL)
BACK = (S.REVERTING, S.REVERTED)


def _reachable(state: S) -> set[S]:
    seen = {state}
    while True:
        more = {after for here in seen for event in E if (after := TABLE[here, event]) is not None} - seen
        if not more:
            return seen
        seen |= more


def test_the_table_has_every_state_and_event() -> None:
    assert set(TABLE) == {(state, event) for state in S for event in E}


@pytest.mark.parametrize(("state", "event"), [key for key, after in TABLE.items() if after is None])
def test_an_illegal_event_raises(state: S, event: E) -> None:
    with pytest.raises(IllegalTransition, match=f"a deploy that is {state.value} cannot {event.value}"):
        advance(state, event)


@pytest.mark.parametrize(("state", "event"), [key for key, after in TABLE.items() if after is not None])
def test_a_legal_event_leads_where_the_table_says(state: S, event: E) -> None:
    assert advance(state, event) is TABLE[state, event]


@pytest.mark.parametrize("state", BEFORE)
def test_before_the_decision_it_can_always_be_put_back(state: S) -> None:
    assert TABLE[state, E.REVERT] is S.REVERTING


def test_only_what_is_proven_is_decided() -> None:
    assert {state for state in S if TABLE[state, E.COMMIT] is S.COMMITTED} == {S.PROVISIONAL, S.COMMITTED}


@pytest.mark.parametrize("state", BACK)
def test_what_is_put_back_is_never_committed(state: S) -> None:
    assert S.COMMITTED not in _reachable(state)


def test_what_is_committed_is_never_put_back() -> None:
    assert not _reachable(S.COMMITTED) & {*BACK, *BEFORE}


@pytest.mark.parametrize("state", list(S))
def test_every_deploy_can_end(state: S) -> None:
    """Nothing stays locked."""
    assert S.CLOSED in _reachable(state)


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (S.UPDATING, E.UPDATE),
        (S.PUBLISHING, E.PUBLISH),
        (S.COMMITTED, E.COMMIT),
        (S.REVERTING, E.REVERT),
        (S.REVERTED, E.REVERT),
        (S.CLOSED, E.CLOSE),
    ],
)
def test_a_deployer_may_ask_again_after_a_lost_answer(state: S, event: E) -> None:
    assert advance(state, event) is state


def test_what_is_stored_survives_the_wire() -> None:
    intent = Intent("01", 3, "shop", "deploy", S.PUBLISHING, "ann", 7, services=("web",), steps={"migrate": "done"})
    assert from_wire(Intent, to_wire(intent)) == intent
