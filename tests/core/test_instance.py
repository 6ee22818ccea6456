"""The life of an instance: the table is whole, every process ends, none is lost sight of."""

from __future__ import annotations

import pytest

from midstream.core.instance import ALIVE, JUDGED, SERVING, TABLE, THROWAWAY_SLOT, Action, Instance
from midstream.core.instance import InstanceEvent as E
from midstream.core.instance import InstanceState as S


def test_the_table_has_every_state_and_event() -> None:
    assert set(TABLE) == {(state, event) for state in S for event in E}


@pytest.mark.parametrize("state", list(S))
def test_a_stop_leaves_nothing_that_goes_on_by_itself(state: S) -> None:
    after, action = TABLE[state, E.STOP]
    assert after in (S.STOPPING, S.KILLING, S.ENDED)
    assert (action is Action.SIGNAL) == (state in JUDGED)


@pytest.mark.parametrize("state", [state for state in S if state in ALIVE])
def test_whatever_lives_and_is_late_is_killed(state: S) -> None:
    assert TABLE[state, E.DEADLINE] == (S.KILLING, Action.KILL)


@pytest.mark.parametrize("state", [state for state in S if state in ALIVE])
def test_the_end_of_whatever_lives_is_settled(state: S) -> None:
    assert TABLE[state, E.ENDED] == (S.ENDED, Action.SETTLE)


@pytest.mark.parametrize("state", [state for state in S if state not in ALIVE])
def test_a_process_that_turns_up_is_not_lost_sight_of(state: S) -> None:
    """The keeper was quicker, or it is a stray: it is taken on, or killed."""
    after, action = TABLE[state, E.SPAWNED]
    assert after in ALIVE and action in (Action.WATCH, Action.KILL)


def test_only_what_waits_is_started() -> None:
    starts = {key for key, (_, action) in TABLE.items() if action is Action.SPAWN}
    assert starts == {(S.WAITING, E.DUE)}


@pytest.mark.parametrize("event", list(E))
def test_what_is_being_killed_only_ends(event: E) -> None:
    after, action = TABLE[S.KILLING, event]
    assert after is (S.ENDED if event is E.ENDED else S.KILLING)
    assert action in (Action.NONE, Action.KILL, Action.SETTLE)


@pytest.mark.parametrize("event", list(E))
def test_what_is_stopping_is_signalled_once(event: E) -> None:
    """For some a second TERM means: drop the job (RQ)."""
    assert TABLE[S.STOPPING, event][1] is not Action.SIGNAL


@pytest.mark.parametrize("event", [event for event in E if event is not E.SPAWNED])
def test_what_has_ended_stays_so(event: E) -> None:
    assert TABLE[S.ENDED, event] == (S.ENDED, Action.NONE)


@pytest.mark.parametrize("state", list(S))
def test_every_state_can_end(state: S) -> None:
    seen = {state}
    while True:
        more = {TABLE[here, event][0] for here in seen for event in E} - seen
        if not more:
            break
        seen |= more
    assert S.ENDED in seen


def test_ready_is_reached_by_readiness_alone() -> None:
    assert {key[1] for key, (after, _) in TABLE.items() if after is S.READY and key[0] is not S.READY} == {E.READY}


def test_the_sets_are_nested() -> None:
    assert SERVING < JUDGED < ALIVE
    assert S.WAITING not in ALIVE and S.ENDED not in ALIVE


@pytest.mark.parametrize(("slot", "is_throwaway"), [(0, False), (THROWAWAY_SLOT - 1, False), (THROWAWAY_SLOT, True)])
def test_the_throwaway_slot(slot: int, is_throwaway: bool) -> None:
    assert Instance(1, slot, S.WAITING).is_throwaway is is_throwaway
