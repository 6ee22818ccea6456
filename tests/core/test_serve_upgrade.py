"""The pure parts of `midstream serve`: upgrades, the crew of workers, the meanings of signals, health answers."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.serve import crew, signals, upgrade
from midstream.serve.board import LATENCY_BUCKETS_S, Board
from midstream.serve.contract import NO_RIVAL, Traffic
from midstream.serve.crew import Aim, At, Crew, Fork, Tell
from midstream.serve.master.health import verdict
from midstream.serve.signals import Act, WorkerAct
from midstream.serve.upgrade import Effect, Event, Phase

# ---- upgrades


def test_the_table_of_upgrades_is_whole() -> None:
    assert set(upgrade.TABLE) == {(phase, event) for phase in Phase for event in Event}


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_an_upgrade_is_committed_only_when_it_was_proven_healthy_and_serves(events: list[Event]) -> None:
    """And there is never more than one new generation, and each one that begins comes to one end."""
    phase, seen, running = Phase.STEADY, [], 0
    for event in events:
        step = upgrade.step(phase, event)
        phase = step.phase
        for effect in step.effects:
            seen.append(effect)
            running += (effect is Effect.START) - (effect in (Effect.COMMIT, Effect.DISCARD, Effect.RETREAT))
        assert running in (0, 1)
        if phase in (Phase.STEADY, Phase.WAITING, Phase.LEAVING):
            assert running == 0
    last: dict[Effect, int] = {}
    for index, effect in enumerate(seen):
        if effect is Effect.COMMIT:
            assert last[Effect.START] < last[Effect.CHECK] < last[Effect.SWITCH]
        last[effect] = index


def test_who_asks_during_an_upgrade_is_not_forgotten() -> None:
    for phase in (Phase.BOOTING, Phase.CHECKING, Phase.SWITCHING, Phase.LEAVING):
        for event in (Event.ASKED, Event.ASKED_FULL):
            assert upgrade.step(phase, event) == upgrade.Step(phase, (Effect.REMEMBER,))
    ends = [step for step in upgrade.TABLE.values() if {Effect.TELL_FAILED, Effect.TELL_DONE} & set(step.effects)]
    assert all(step.effects[-1] in (Effect.NEXT, Effect.TELL_STOPPING) for step in ends)


def test_a_failure_before_the_switch_discards_and_after_it_drains() -> None:
    assert Effect.DISCARD in upgrade.step(Phase.BOOTING, Event.FAILED).effects
    assert Effect.DISCARD in upgrade.step(Phase.CHECKING, Event.FAILED).effects
    assert Effect.RETREAT in upgrade.step(Phase.SWITCHING, Event.FAILED).effects


# ---- the crew


def play(one: Crew, now_s: float) -> list[crew.Action]:
    """Carries the actions out as the zygote does; workers are named by slot + 100."""
    actions = crew.next_actions(one, now_s)
    for action in actions:
        if isinstance(action, Fork):
            crew.began(one, action.slot, action.slot + 100, now_s)
        else:
            one.members[action.slot].told = action.to_be
            if action.to_be is At.LEAVING:
                one.members[action.slot].at = At.LEAVING
    return actions


def serving(count: int) -> Crew:
    one = Crew(count, 16)
    play(one, 0.0)
    for slot in range(count):
        crew.became(one, slot, At.IDLE, 1.0)
    one.aim = Aim.SERVE
    play(one, 1.0)
    for slot in range(count):
        crew.became(one, slot, At.SERVING, 1.0)
    return one


def test_a_crew_is_proven_when_all_are_ready_and_told_to_serve_once() -> None:
    one = Crew(2, 16)
    assert play(one, 0.0) == [Fork(0), Fork(1)]
    crew.became(one, 0, At.IDLE, 1.0)
    assert not one.is_proven and play(one, 1.0) == []
    crew.became(one, 1, At.IDLE, 1.0)
    assert one.is_proven
    one.aim = Aim.SERVE
    assert play(one, 1.0) == [Tell(0, At.SERVING), Tell(1, At.SERVING)]
    assert play(one, 1.0) == []


def test_a_worker_that_dies_is_replaced_in_its_slot_at_once() -> None:
    one = serving(2)
    crew.ended(one, 0, 50.0)
    assert play(one, 50.0) == [Fork(0)]


def test_workers_that_do_not_boot_are_tried_again_ever_more_slowly() -> None:
    one = serving(1)
    crew.ended(one, 0, 50.0)
    waits = []
    now = 50.0
    for _ in range(12):
        assert play(one, now) == [Fork(0)]
        crew.ended(one, 0, now)
        assert play(one, now) == []
        wake = crew.wake_s(one, now)
        assert wake is not None
        waits.append(wake - now)
        now = wake
    assert waits == sorted(waits) and waits[0] < 1 and 29 < waits[-1] <= 30.1


def test_one_that_retires_leaves_only_when_its_successor_serves() -> None:
    one = serving(2)
    one.members[1].retiring = "memory"
    assert play(one, 5.0) == [Fork(2)]
    crew.became(one, 2, At.IDLE, 6.0)
    assert play(one, 6.0) == [Tell(2, At.SERVING)]
    crew.became(one, 2, At.SERVING, 6.0)
    assert play(one, 6.0) == [Tell(1, At.LEAVING)]


def test_fewer_workers_drain_the_last_ones_and_none_stops_all() -> None:
    one = serving(3)
    one.count = 1
    assert play(one, 5.0) == [Tell(1, At.LEAVING), Tell(2, At.LEAVING)]
    one.count = 0
    assert play(one, 5.0) == [Tell(0, At.LEAVING)]
    one.count = 2
    assert play(one, 5.0) == [Fork(3), Fork(4)]


def test_a_crew_that_is_parked_comes_back_when_it_is_told() -> None:
    one = serving(1)
    one.aim = Aim.PARK
    assert play(one, 5.0) == [Tell(0, At.PARKED)]
    one.aim = Aim.SERVE  # before it said that it is parked
    assert play(one, 5.0) == [Tell(0, At.SERVING)]
    one.aim = Aim.LEAVE
    assert play(one, 5.0) == [Tell(0, At.LEAVING)]
    assert play(one, 5.0) == []
    assert not one.nobody_accepts
    one.members[0].has_left = True
    assert one.nobody_accepts


# ---- signals


def test_every_dialect_says_what_each_of_the_nine_signals_means() -> None:
    nine = {
        getattr(signal, f"SIG{name}")
        for name in ["HUP", "INT", "TERM", "QUIT", "USR1", "USR2", "TTIN", "TTOU", "WINCH"]
    }
    for table in (*signals.DIALECTS.values(), signals.ALONE, *signals.WORKER.values()):
        assert set(table) == nine


@pytest.mark.parametrize(
    ("dialect", "graceful", "quick"),
    [
        ("midstream", {"TERM", "QUIT"}, {"INT"}),
        ("unicorn", {"QUIT"}, {"TERM", "INT"}),
        ("gunicorn", {"TERM"}, {"QUIT", "INT"}),
    ],
)
def test_dialects_differ_in_what_ends_gracefully(dialect: str, graceful: set[str], quick: set[str]) -> None:
    for table, kinds in ((signals.DIALECTS[dialect], Act), (signals.WORKER[dialect], WorkerAct)):
        of = {kind: {number.name[3:] for number, act in table.items() if act is kind} for kind in kinds}
        assert (of[kinds.GRACEFUL], of[kinds.QUICK]) == (graceful, quick)


# ---- health


@pytest.mark.parametrize(
    ("head", "wanted", "words"),
    [
        (b"HTTP/1.1 200 OK", (), ""),
        (b"HTTP/1.1 204 No Content", (), ""),
        (b"HTTP/1.1 301 Moved\r\nLocation: https://x/", (), "Location: https://x/"),
        (b"HTTP/1.1 301 Moved", (301,), ""),
        (b"HTTP/1.1 200 OK", (301,), "200"),
        (b"HTTP/1.1 500 Oops", (), "it answered 500 Oops"),
        (b"SSH-2.0-OpenSSH", (), "no HTTP"),
        (b"", (), "no HTTP"),
    ],
)
def test_what_a_health_check_makes_of_an_answer(head: bytes, wanted: tuple[int, ...], words: str) -> None:
    found = verdict(head, wanted)
    assert words in found and bool(found) == bool(words)


# ---- the board


def test_what_a_worker_writes_another_process_reads() -> None:
    board = Board.make(8)
    seat = board.seat(3)
    seat.beat(12.5)
    seat.show(Traffic(2, 7, 1, 3.25))
    seat.stuck(9.0)
    seat.count(200, 0.004, 100)
    seat.count(503, 45.0, 20)
    seat.count(999, 0.3, 0)
    seat.refused(431)
    seat.refused(499)
    row = Board(os.dup(board.fd)).row(3)
    assert (row.pid, row.beat_s, row.stuck_since_s) == (os.getpid(), 12.5, 9.0)
    assert row.traffic == Traffic(2, 7, 1, 3.25)
    assert row.by_class == (1, 0, 1, 0, 0, 1) and row.answered == 3
    assert (row.bytes_sent, row.seconds) == (120, pytest.approx(45.304))
    assert row.latency[0] == 1 and row.latency[-1] == 1 and sum(row.latency) == 3
    assert len(row.latency) == len(LATENCY_BUCKETS_S) + 1
    assert row.refused == {431: 1, 0: 1}


def test_counters_go_on_over_the_workers_of_a_slot_and_what_was_in_hand_does_not() -> None:
    board = Board.make(8)
    first = board.seat(0)
    first.count(200, 0.1, 5)
    first.show(Traffic(4, 4, 0, 1.0))
    board.clear(0)
    row = board.row(0)
    assert (row.pid, row.traffic, row.answered) == (0, Traffic(), 1)
    board.seat(0).count(200, 0.1, 5)
    assert board.row(0).answered == 2
    assert [row.slot for row in board.rows()] == [0]


def test_a_worker_is_told_once_that_it_has_answered_enough() -> None:
    told: list[int] = []
    seat = Board.make(1).seat(0, lambda: told.append(1), 3)
    for _ in range(8):
        seat.count(200, 0.0, 0)
    assert told == [1]
    unlimited = Board.make(1).seat(0, lambda: told.append(2), 0)
    for _ in range(8):
        unlimited.count(200, 0.0, 0)
    assert told == [1]


def test_a_board_of_another_layout_is_refused() -> None:
    fd = os.memfd_create("other")
    os.write(fd, b"something else" * 100)
    with pytest.raises(ValueError):
        Board(fd)
    os.close(fd)


def test_each_worker_sees_how_many_connections_the_others_have_that_take_some() -> None:
    board = Board.make(4)
    one, two = board.seat(0, workers=2), board.seat(1, workers=2)
    one.hold(5)
    assert one.fewest() == NO_RIVAL, "the other takes none yet"
    two.hold(0)
    assert (one.fewest(), two.fewest()) == (0, 5)
    added = board.seat(2, workers=2)
    added.hold(2)
    two.hold(7)
    assert one.fewest() == 7
    one.beat(1.0)
    assert one.fewest() == 2, "one that was added is seen within a second"
    added.hold(-1)
    assert one.fewest() == 7, "and forgotten when it drains"
    board.clear(1)
    assert one.fewest() == NO_RIVAL, "or is gone"
