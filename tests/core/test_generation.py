"""The life of a generation: the table is whole, has no way back, and illegal events change nothing."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core.generation import (
    ENDING,
    PROVISIONAL,
    TABLE,
    Generation,
    GenerationEvent,
    GenerationPlan,
    GenerationState,
    IllegalTransition,
    advance,
    pause_s,
)

_S, _E = GenerationState, GenerationEvent


def test_the_table_has_every_state_and_event() -> None:
    assert set(TABLE) == {(state, event) for state in _S for event in _E}


@pytest.mark.parametrize(("state", "event"), [key for key, after in TABLE.items() if after is None])
def test_an_illegal_event_raises(state: GenerationState, event: GenerationEvent) -> None:
    with pytest.raises(IllegalTransition, match=f"a {state.value} generation cannot {event.value}"):
        advance(state, event)


@pytest.mark.parametrize(("state", "event"), [key for key, after in TABLE.items() if after is not None])
def test_a_legal_event_leads_where_the_table_says(state: GenerationState, event: GenerationEvent) -> None:
    assert advance(state, event) is TABLE[state, event]


def _reachable(state: GenerationState) -> set[GenerationState]:
    found: set[GenerationState] = set()
    open_states = [state]
    while open_states:
        here = open_states.pop()
        for event in _E:
            after = TABLE[here, event]
            if after is not None and after is not here and after not in found:
                found.add(after)
                open_states.append(after)
    return found


@pytest.mark.parametrize("state", list(_S))
def test_a_generation_never_goes_back(state: GenerationState) -> None:
    assert state not in _reachable(state)


@pytest.mark.parametrize("state", [state for state in _S if state is not _S.RETIRED])
def test_every_generation_can_end_as_retired(state: GenerationState) -> None:
    assert _S.RETIRED in _reachable(state)


def test_only_what_was_proven_can_be_committed() -> None:
    assert {state for state in _S if TABLE[state, _E.COMMIT] is not None} == {_S.PROVEN, _S.SOAKING}


def test_only_what_is_not_committed_can_fail() -> None:
    """A committed generation is never given up on."""
    assert {state for state in _S if TABLE[state, _E.FAIL] is not None} == {*PROVISIONAL, _S.FAILED}


def test_ending_and_provisional_exclude_each_other_and_the_committed() -> None:
    assert not ENDING & PROVISIONAL
    assert _S.COMMITTED not in ENDING | PROVISIONAL


def test_a_stored_generation_cannot_be_changed_in_place() -> None:
    generation = Generation(1, "20261121190501", _S.PREPARED, GenerationPlan())
    with pytest.raises(dataclasses.FrozenInstanceError):
        generation.state = _S.COMMITTED  # type: ignore[misc]


_PLANS = st.builds(
    GenerationPlan,
    backoff_first_s=st.floats(0, 10),
    backoff_second_s=st.floats(0.01, 10),
    backoff_max_s=st.floats(10, 600),
    backoff_factor=st.floats(1, 10),
    backoff_jitter=st.floats(0, 0.9),
)
_LUCK = st.floats(0, 1, exclude_max=True)


@given(_PLANS, st.integers(0, 10_000), _LUCK)
def test_a_pause_is_never_negative_and_never_more_than_the_most_with_its_jitter(
    plan: GenerationPlan, streak: int, luck: float
) -> None:
    pause = pause_s(plan, streak, luck)
    assert 0.0 <= pause <= max(plan.backoff_first_s, plan.backoff_max_s * (1.0 + plan.backoff_jitter))


@given(_PLANS, st.integers(2, 200))
def test_pauses_never_shrink_as_crashes_go_on(plan: GenerationPlan, streak: int) -> None:
    assert pause_s(plan, streak, 0.5) <= pause_s(plan, streak + 1, 0.5)


@given(_PLANS, st.integers(2, 60), _LUCK, _LUCK)
def test_luck_only_spreads(plan: GenerationPlan, streak: int, one: float, other: float) -> None:
    middle = pause_s(plan, streak, 0.5)
    for luck in (one, other):
        assert abs(pause_s(plan, streak, luck) - middle) <= middle * plan.backoff_jitter + 1e-9
