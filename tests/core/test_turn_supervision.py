"""Histories of a committed generation: crashes, back-off, holds, stop and start, checks, time-outs, as data."""

from __future__ import annotations

import pytest
from turn_story import PLAN, Story

from midstream.core.events import Said
from midstream.core.generation import GenerationPlan, Park
from midstream.core.service import at_once, standing_orders, wake_s


def test_a_crash_after_health_is_made_good_at_once() -> None:
    Story().running().tell("""
        killed 1/0           -> sweep 1/0, spawn 1/0#1
        spawned 1/0          -> watch 1/0#1
        ready 1/0
        == 1 committed: 0 ready#1
    """)


@pytest.mark.parametrize("code", [0, 1])
def test_always_means_that_a_good_exit_is_made_good_too(code: int) -> None:
    Story().running().tell(f"exit 1/0 {code} -> sweep 1/0, spawn 1/0#1")


def test_pauses_grow_to_the_most_and_never_end() -> None:
    """0, then 0.5 s doubling up to 30 s; never given up."""
    story = Story().running()
    pauses = []
    for attempt in range(12):
        story.play(f"killed 1/0#{attempt}")
        woken = wake_s(story.service)
        assert woken is not None
        waiting = story.service.of(1)[0].state.value == "waiting"
        pauses.append(woken - story.now_s if waiting else 0.0)
        if waiting:
            assert story.play("wake") == [f"spawn 1/0#{attempt + 1}"]
        story.play(f"spawned 1/0#{attempt + 1}")
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0, 30.0]


def test_a_failed_spawn_counts_as_a_crash() -> None:
    Story().running().tell("""
        killed 1/0           -> sweep 1/0, spawn 1/0#1
        unborn 1/0           -> sweep 1/0#1
        == 1 committed: 0 waiting#2
        +0.5                 -> spawn 1/0#2
    """)


def test_the_pause_is_forgotten_after_health() -> None:
    Story().running().tell("""
        killed 1/0           -> sweep 1/0, spawn 1/0#1
        killed 1/0           -> sweep 1/0#1
        +0.5                 -> spawn 1/0#2
        spawned 1/0          -> watch 1/0#2
        ready 1/0
        +9
        killed 1/0           -> sweep 1/0#2         · 9 s of health are not enough
        +1                   -> spawn 1/0#3
        spawned 1/0          -> watch 1/0#3
        ready 1/0
        +10
        killed 1/0           -> sweep 1/0#3, spawn 1/0#4
    """)


@pytest.mark.parametrize(("luck", "pause"), [(0.0, 0.45), (0.5, 0.5), (0.999999, 0.55)])
def test_pauses_are_spread_by_luck(luck: float, pause: float) -> None:
    story = Story(luck=luck).running()
    story.play("killed 1/0")
    story.play("killed 1/0")
    assert wake_s(story.service) == pytest.approx(story.now_s + pause, abs=1e-5)


def test_one_crash_concerns_one_slot() -> None:
    Story(GenerationPlan(instances=3)).running().tell("""
        killed 1/1           -> sweep 1/1, spawn 1/1#1
        == 1 committed: 0 ready, 1 starting#1, 2 ready
    """)


def test_what_an_earlier_attempt_says_is_ignored() -> None:
    Story().running().tell("""
        killed 1/0           -> sweep 1/0, spawn 1/0#1
        spawned 1/0          -> watch 1/0#1
        ready 1/0#0
        unhealthy 1/0#0
        refuted 1/0#0
        killed 1/0#0         -> sweep 1/0
        == 1 committed: 0 running#1
    """)


def test_restart_on_failure_lets_a_good_exit_stand() -> None:
    story = Story().with_plan(restart_on="failure", ok_codes=(0, 3)).running()
    story.tell("""
        exit 1/0 3           -> sweep 1/0
        +1000
        == 1 committed: 0 ended
        up                   -> spawn 1/0#1
        spawned 1/0          -> watch 1/0#1
        exit 1/0 1           -> sweep 1/0#1, spawn 1/0#2
        spawned 1/0          -> watch 1/0#2
        killed 1/0           -> sweep 1/0#2
        == 1 committed: 0 waiting#3
    """)


def test_restart_never_lets_any_end_stand() -> None:
    Story().with_plan(restart_on="never").running().tell("""
        killed 1/0           -> sweep 1/0
        +1000
        == 1 committed: 0 ended
    """)


@pytest.mark.parametrize("restart_on", ["never", "failure"])
def test_what_could_not_be_started_has_not_ended_for_good(restart_on: str) -> None:
    """No memory for a fork: `restart_on` speaks of processes, and there was none."""
    Story().with_plan(restart_on=restart_on).running().tell("""
        down                 -> signal 1/0 TERM
        exit 1/0 0           -> sweep 1/0
        up                   -> spawn 1/0#1
        unborn 1/0           -> sweep 1/0#1, spawn 1/0#2
        unborn 1/0           -> sweep 1/0#2
        +0.5                 -> spawn 1/0#3
    """)


def test_an_end_that_was_asked_for_is_not_the_last_one() -> None:
    """Stopped, wanted again before it was gone, and then the agent died with the exit code 0 in the table."""
    Story().with_plan(restart_on="failure").running().tell("""
        down                 -> signal 1/0 TERM
        up
        restart: ended 1/0=0 -> sweep 1/0, spawn 1/0#1
    """)


def test_what_was_told_to_stop_is_not_taken_on_by_the_next_agent() -> None:
    """It may have closed its doors and hang: it is told again, and killed if need be. What came after it is not."""
    Story().running().tell("""
        down                 -> signal 1/0 TERM
        up
        restart: live 1/0    -> signal 1/0 TERM
        +10                  -> kill 1/0
        restart: ended 1/0   -> sweep 1/0, spawn 1/0#1
        restart: live 1/0#1  -> watch 1/0#1
        == 1 committed: 0 running#1
    """)


@pytest.mark.parametrize("restart_on", ["never", "failure"])
def test_what_is_stopped_to_be_started_again_is_so_although_the_agent_dies(restart_on: str) -> None:
    story = Story().with_plan(restart_on=restart_on).running()
    story.tell("""
        unhealthy 1/0        -> signal 1/0 TERM
        restart: ended 1/0=0 -> sweep 1/0, spawn 1/0#1
        restart: ended 1/0#0=0 -> sweep 1/0, spawn 1/0#1
        spawned 1/0          -> watch 1/0#1
        ready 1/0
        exit 1/0 0           -> sweep 1/0#1
        == 1 committed: 0 ended#1
    """)


def test_what_ended_for_good_stays_so_when_the_agent_restarts() -> None:
    """The keeper has forgotten it (it was acknowledged); the store has not."""
    Story().with_plan(restart_on="never", instances=2).running().tell("""
        exit 1/0 0           -> sweep 1/0
        restart: live 1/1    -> watch 1/1
        == 1 committed: 0 ended, 1 running
        restart: ended 1/1=0 -> sweep 1/1
        == 1 committed: 0 ended, 1 ended
        +1000
        up                   -> spawn 1/0#1, spawn 1/1#1
    """)


def test_what_ended_for_good_is_replaced_by_a_deploy() -> None:
    story = Story().with_plan(restart_on="never").running()
    story.play("exit 1/0 0")
    story.running(2)
    assert story.picture() == "2 committed: 0 ready"


def test_stop_and_start() -> None:
    Story().running().tell("""
        down                 -> signal 1/0 TERM
        exit 1/0 0           -> sweep 1/0
        +1000
        up                   -> spawn 1/0#1          · an attempt is named once
        spawned 1/0          -> watch 1/0#1
        up
    """)


def test_stop_kills_what_does_not_go() -> None:
    Story().running().tell("""
        down                 -> signal 1/0 TERM
        extended 1/0 25
        +20
        +5                   -> kill 1/0
        killed 1/0           -> sweep 1/0
        == 1 committed: 0 ended
    """)


def test_stop_during_a_pause_starts_nothing() -> None:
    Story().running().tell("""
        killed 1/0           -> sweep 1/0, spawn 1/0#1
        killed 1/0           -> sweep 1/0#1
        == 1 committed: 0 waiting#2
        down
        +1000
        up                   -> spawn 1/0#3
    """)


def test_stop_while_the_start_is_under_way_reaches_the_process() -> None:
    """Monit's start that completes after `unmonitor` (PEERS 2). Spawns and signals reach the keeper in this order, so
    once is enough; and twice would be too much for a worker that dies of a second TERM."""
    Story().running().tell("""
        killed 1/0           -> sweep 1/0, spawn 1/0#1
        down                 -> signal 1/0#1 TERM
        spawned 1/0
        +10                  -> kill 1/0#1
        killed 1/0           -> sweep 1/0#1
    """)


def test_start_while_it_is_stopping_starts_it_again_once_it_is_gone() -> None:
    Story().running().tell("""
        down                 -> signal 1/0 TERM
        up
        exit 1/0 0           -> sweep 1/0, spawn 1/0#1
    """)


def test_start_shortens_a_pause() -> None:
    Story().running().tell("""
        killed 1/0           -> sweep 1/0, spawn 1/0#1
        killed 1/0           -> sweep 1/0#1
        up                   -> spawn 1/0#2
    """)


def test_a_hold_starts_nothing_and_stops_nothing() -> None:
    Story(GenerationPlan(instances=2)).running().tell("""
        hold 100
        == 1 committed: 0 ready, 1 ready
        killed 1/0           -> sweep 1/0
        +60
        == 1 committed: 0 waiting#1, 1 ready
        unhold               -> spawn 1/0#1
    """)


def test_a_hold_expires_by_itself() -> None:
    story = Story().running()
    story.tell("""
        hold 100
        killed 1/0           -> sweep 1/0
        wake                 -> spawn 1/0#1
    """)
    assert story.service.hold is None
    assert any(note.kind == "hold" for note in story.notes)


def test_a_hold_outlives_the_agent_and_still_expires() -> None:
    Story().running().tell("""
        hold 100
        restart: ended 1/0   -> sweep 1/0
        +50
        wake                 -> spawn 1/0#1
    """)


def test_an_unhealthy_one_is_stopped_and_started_again() -> None:
    Story().running().tell("""
        unhealthy 1/0        -> signal 1/0 TERM
        unhealthy 1/0
        exit 1/0 0           -> sweep 1/0, spawn 1/0#1
    """)


def test_a_parked_one_is_not_judged() -> None:
    """It does not accept, so its check cannot be answered; a restart would make it accept in the middle of the soak."""
    story = Story().with_plan(park=Park.PAUSE).running().with_plan(soak_s=30.0)
    story.after("begin 2; spawned 2/0; healthy 2/0; soak").tell("""
        unhealthy 1/0
        == 1 committed: 0 ready | 2 soaking: 0 ready | soaking 2
        revert               -> signal 1/0 TTIN, signal 2/0 QUIT
        unhealthy 1/0        -> signal 1/0 TERM
    """)


def test_an_unhealthy_one_that_does_not_stop_is_killed() -> None:
    Story().running().tell("""
        unhealthy 1/0        -> signal 1/0 TERM
        +10                  -> kill 1/0
        killed 1/0           -> sweep 1/0, spawn 1/0#1
    """)


def test_a_draining_one_is_not_judged() -> None:
    Story().running().running(2).tell("""
        unhealthy 1/0
        refuted 1/0
        == 1 draining: 0 stopping | 2 committed: 0 ready
    """)


def test_a_start_that_hangs_is_killed_and_tried_again() -> None:
    Story().running().tell("""
        killed 1/0           -> sweep 1/0, spawn 1/0#1
        spawned 1/0          -> watch 1/0#1
        +60                  -> kill 1/0#1
        killed 1/0           -> sweep 1/0#1
        +0.5                 -> spawn 1/0#2
    """)


def test_readiness_heard_early_leaves_no_time_out_behind() -> None:
    """READY=1 may be read before the keeper's answer to the spawn: the start's time-out must not outlive it."""
    Story().running().tell("""
        killed 1/0           -> sweep 1/0, spawn 1/0#1
        ready 1/0            -> watch 1/0#1
        spawned 1/0
        +1000
        == 1 committed: 0 ready#1
    """)


def test_what_an_instance_says_of_itself_is_kept() -> None:
    story = Story().running()
    story.take(Said(1, 0, 0, "3 jobs in hand"))
    assert story.service.of(1)[0].status_text == "3 jobs in hand"


def test_what_the_keeper_started_meanwhile_is_adopted() -> None:
    Story().running().tell("""
        spawned 1/0#1        -> sweep 1/0, watch 1/0#1
        ready 1/0
        killed 1/0#0         -> sweep 1/0
        == 1 committed: 0 ready#1
    """)


def test_what_the_keeper_started_in_our_pause_fills_the_slot() -> None:
    """The link to the keeper was lost while the slot waited: the standing order was quicker."""
    Story().running().tell("""
        killed 1/0           -> sweep 1/0, spawn 1/0#1
        killed 1/0           -> sweep 1/0#1
        == 1 committed: 0 waiting#2
        spawned 1/0#2        -> watch 1/0#2
        == 1 committed: 0 running#2
        down                 -> signal 1/0#2 TERM
    """)


def test_what_the_keeper_started_of_a_superseded_generation_is_drained() -> None:
    Story().running().running(2).tell("""
        spawned 1/0#1        -> sweep 1/0, watch 1/0#1, signal 1/0#1 QUIT
    """)


def test_what_the_keeper_started_of_a_generation_that_is_gone_is_killed() -> None:
    """It crashed as it was superseded: by the time its successor by standing order is seen, nothing is left of it."""
    Story().running().running(2).tell("""
        killed 1/0           -> sweep 1/0, retired 1
        spawned 1/0#1        -> kill 1/0#1
        killed 1/0#1         -> sweep 1/0#1
        == 2 committed: 0 ready
    """)


def test_a_process_beside_a_later_one_of_its_slot_is_killed() -> None:
    Story().running().tell("""
        spawned 1/0#3        -> sweep 1/0, watch 1/0#3
        spawned 1/0#2        -> kill 1/0#2
        spawned 1/0#3
        == 1 committed: 0 running#3
    """)


def test_a_crash_that_the_keeper_answered_at_once_is_one_restart() -> None:
    """With an agent attached: the keeper was quicker, and the agent's own start names the same attempt."""
    Story().running().tell("""
        killed 1/0           -> sweep 1/0, spawn 1/0#1
        spawned 1/0#1        -> watch 1/0#1
        ready 1/0
        == 1 committed: 0 ready#1
    """)


def test_the_keeper_answers_a_first_crash_at_once_but_not_in_a_handover() -> None:
    """Where old and new take turns, a start that nobody has decided yet would make two of them."""
    story = Story().with_plan(policy="replace").running()

    def quick() -> bool:
        return at_once(story.service, story.service.of(1)[0])

    assert quick()
    story.play("begin 2 queued")
    assert not quick()
    story.play("revert")
    assert quick()
    story.after("killed 1/0; spawned 1/0#1; killed 1/0#1; wake; spawned 1/0#2; ready 1/0#2")
    assert not quick(), "in a crash loop the pauses are the agent's"


def test_orders_stand_for_every_committed_slot_that_may_come_back() -> None:
    story = Story(GenerationPlan(instances=2)).running()
    assert sorted(standing_orders(story.service)) == [0, 1]
    story.play("killed 1/0")
    story.play("unhealthy 1/1")
    assert sorted(standing_orders(story.service)) == [0, 1], "starting and stopping to start again"


@pytest.mark.parametrize("event", ["hold 60", "down", "remove"])
def test_no_order_stands_for_what_is_held_stopped_or_removed(event: str) -> None:
    story = Story().running()
    story.play(event)
    assert standing_orders(story.service) == {}


def test_orders_stand_for_the_old_until_the_commit_and_for_the_new_from_then_on() -> None:
    story = Story().running()
    for event in ("begin 2", "spawned 2/0", "healthy 2/0", "soak"):
        story.play(event)
        assert {item.generation for item in standing_orders(story.service).values()} == {1}
    story.play("commit")
    assert {item.generation for item in standing_orders(story.service).values()} == {2}


def test_no_order_stands_while_replace_has_the_old_one_down() -> None:
    story = Story().running().with_plan(policy="replace")
    story.play("begin 2 queued")
    assert len(standing_orders(story.service)) == 1
    for event in ("go", "exit 1/0 0", "spawned 2/0", "refuted 2/0"):
        story.play(event)
        assert standing_orders(story.service) == {}, event
    story.play("exit 2/0 0")
    assert len(standing_orders(story.service)) == 1


def test_the_keeper_judges_no_exit_code() -> None:
    story = Story(PLAN).with_plan(restart_on="failure").running()
    assert standing_orders(story.service) == {}
