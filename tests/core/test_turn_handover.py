"""Histories of handovers, each policy's and each failure's, as data (see `turn_story`)."""

from __future__ import annotations

import pytest
from turn_story import Story

from midstream.core.generation import Park
from midstream.core.service import wake_s


def test_overlap_starts_the_new_beside_the_old_and_drains_the_old_after_the_commit() -> None:
    Story().running().tell("""
        begin 2              -> spawn 2/0
        == 1 committed: 0 ready | 2 prepared: 0 starting | starting 2
        spawned 2/0          -> confirm 2/0
        ready 2/0
        healthy 2/0          -> news 2 proven
        == 1 committed: 0 ready | 2 proven: 0 ready | proven 2
        soak                 -> news 2 soaked
        commit               -> signal 1/0 QUIT
        == 1 draining: 0 stopping | 2 committed: 0 ready
        exit 1/0 0           -> sweep 1/0, retired 1
        == 2 committed: 0 ready
    """)


def test_the_first_generation_has_nothing_to_hand_over_from() -> None:
    Story().tell("""
        begin 1              -> spawn 1/0
        spawned 1/0          -> confirm 1/0
        healthy 1/0          -> news 1 proven
        soak                 -> news 1 soaked
        commit
        == 1 committed: 0 ready
    """)


def test_a_throwaway_instance_proves_the_release_before_the_real_ones_start() -> None:
    Story().running().with_plan(throwaway=True, instances=2).tell("""
        begin 2              -> spawn 2/900
        spawned 2/900        -> confirm 2/900
        ready 2/900
        healthy 2/900        -> signal 2/900 TERM, spawn 2/0, spawn 2/1
        == 1 committed: 0 ready | 2 prepared: 0 starting, 1 starting, 900 stopping | starting 2
        spawned 2/0          -> confirm 2/0
        spawned 2/1          -> confirm 2/1
        exit 2/900 0         -> sweep 2/900
        healthy 2/0
        healthy 2/1          -> news 2 proven
        soak                 -> news 2 soaked
        commit               -> signal 1/0 QUIT
    """)


@pytest.mark.parametrize("end", ["exit 2/900 1", "killed 2/900", "refuted 2/900"])
def test_a_release_whose_throwaway_fails_starts_no_real_instance(end: str) -> None:
    story = Story().running().with_plan(throwaway=True)
    story.tell("""
        begin 2              -> spawn 2/900
        spawned 2/900        -> confirm 2/900
    """)
    effects = story.play(end)
    assert "news 2 failed" in effects
    assert not any(effect.startswith("spawn") for effect in effects)
    assert story.picture().startswith("1 committed: 0 ready")


def test_the_first_generation_needs_no_throwaway() -> None:
    Story().with_plan(throwaway=True).tell("begin 1 -> spawn 1/0")


def test_replace_stops_the_old_before_the_new_starts() -> None:
    Story().running().with_plan(policy="replace").tell("""
        begin 2              -> signal 1/0 TERM
        == 1 committed: 0 stopping | 2 prepared | clearing 2
        exit 1/0 0           -> sweep 1/0, spawn 2/0
        spawned 2/0          -> confirm 2/0
        healthy 2/0          -> news 2 proven
        soak                 -> news 2 soaked
        commit               -> retired 1
        == 2 committed: 0 ready
    """)


def test_replace_waits_for_the_word_and_the_old_goes_on_meanwhile() -> None:
    Story().running().with_plan(policy="replace").tell("""
        begin 2 queued
        killed 1/0           -> sweep 1/0, spawn 1/0#1
        spawned 1/0          -> watch 1/0#1
        go                   -> signal 1/0#1 TERM
        killed 1/0           -> sweep 1/0#1, spawn 2/0
    """)


def test_replace_never_runs_two_at_once_when_the_new_one_fails() -> None:
    """What cannot run twice must not: the old one waits until the failed one is gone."""
    Story().running().with_plan(policy="replace").tell("""
        begin 2              -> signal 1/0 TERM
        exit 1/0 0           -> sweep 1/0, spawn 2/0
        spawned 2/0          -> confirm 2/0
        refuted 2/0          -> news 2 failed, signal 2/0 TERM
        tick
        +10                  -> kill 2/0
        killed 2/0           -> sweep 2/0, spawn 1/0#1, retired 2
    """)


def test_replace_never_runs_beside_a_failed_one_of_the_last_try() -> None:
    Story().running().with_plan(policy="replace").tell("""
        begin 2              -> signal 1/0 TERM
        exit 1/0 0           -> sweep 1/0, spawn 2/0
        spawned 2/0          -> confirm 2/0
        refuted 2/0          -> news 2 failed, signal 2/0 TERM
        begin 3
        exit 2/0 0           -> sweep 2/0, spawn 3/0, retired 2
    """)


def test_a_first_replace_that_failed_is_gone_before_the_next_starts() -> None:
    Story().with_plan(policy="replace").tell("""
        begin 1              -> spawn 1/0
        spawned 1/0          -> confirm 1/0
        refuted 1/0          -> news 1 failed, signal 1/0 TERM
        begin 2
        exit 1/0 0           -> sweep 1/0, spawn 2/0, retired 1
    """)


def test_an_overlap_after_a_failed_replace_is_not_kept_down_by_it() -> None:
    story = Story().running().with_plan(policy="replace")
    story.tell("""
        begin 2              -> signal 1/0 TERM
        exit 1/0 0           -> sweep 1/0, spawn 2/0
        spawned 2/0          -> confirm 2/0
        refuted 2/0          -> news 2 failed, signal 2/0 TERM
    """)
    story.with_plan(policy="overlap").tell("""
        begin 3              -> spawn 3/0
        spawned 3/0          -> confirm 3/0
        healthy 3/0          -> news 3 proven
        soak                 -> news 3 soaked
        commit               -> retired 1
        == 2 failed: 0 stopping | 3 committed: 0 ready
    """)


def test_replace_given_up_while_the_old_is_still_stopping_starts_the_old_again() -> None:
    Story().running().with_plan(policy="replace").tell("""
        begin 2              -> signal 1/0 TERM
        revert               -> retired 2
        exit 1/0 0           -> sweep 1/0, spawn 1/0#1
        == 1 committed: 0 starting#1
    """)


def test_replace_given_up_before_the_word_touches_nothing() -> None:
    Story().running().with_plan(policy="replace").tell("""
        begin 2 queued
        revert               -> retired 2
        == 1 committed: 0 ready
    """)


@pytest.mark.parametrize(
    ("steps", "failure"),
    [
        ("", "exit 2/0 1"),
        ("spawned 2/0", "exit 2/0 1"),
        ("spawned 2/0", "exit 2/0 0"),
        ("spawned 2/0", "killed 2/0"),
        ("spawned 2/0", "refuted 2/0"),
        ("spawned 2/0", "wake"),
        ("spawned 2/0; ready 2/0", "exit 2/0 1"),
        ("spawned 2/0; ready 2/0", "refuted 2/0"),
        ("spawned 2/0; ready 2/0", "unhealthy 2/0"),
        ("spawned 2/0; ready 2/0", "wake"),
        ("spawned 2/0; ready 2/0; healthy 2/0", "killed 2/0"),
        ("spawned 2/0; ready 2/0; healthy 2/0", "unhealthy 2/0"),
        ("spawned 2/0; ready 2/0; healthy 2/0; soak", "killed 2/0"),
        ("spawned 2/0; ready 2/0; healthy 2/0; soak", "unhealthy 2/0"),
        ("spawned 2/0; ready 2/0; healthy 2/0; soak; +30", "killed 2/0"),
        ("spawned 2/0; ready 2/0; healthy 2/0; soak; +30", "revert"),
    ],
)
def test_whatever_fails_before_the_commit_the_old_still_serves(steps: str, failure: str) -> None:
    story = Story().running().with_plan(soak_s=30.0)
    story.play("begin 2")
    story.after(steps)
    effects = story.play(failure)
    assert ("news 2 failed" in effects) == (failure != "revert")
    assert not [effect for effect in effects if " 1/" in effect]
    assert story.picture().startswith("1 committed: 0 ready")
    assert story.service.handover is None and story.service.candidate is None
    for _ in range(10):
        if len(story.service.generations) == 1:
            break
        [left] = story.service.of(2)
        story.play("killed 2/0" if left.state.value == "killing" else "wake")
    assert story.picture() == "1 committed: 0 ready"


@pytest.mark.parametrize(
    "steps",
    [
        "begin 2",
        "begin 2; spawned 2/0",
        "begin 2; spawned 2/0; ready 2/0",
        "begin 2; spawned 2/0; healthy 2/0",
        "begin 2; spawned 2/0; healthy 2/0; soak",
        "begin 2; spawned 2/0; healthy 2/0; soak; +30",
    ],
)
def test_a_crash_of_the_old_before_the_commit_starts_the_old_again(steps: str) -> None:
    story = Story().running().with_plan(soak_s=30.0)
    story.after(steps)
    assert story.play("killed 1/0") == ["sweep 1/0", "spawn 1/0#1"]


def test_a_crash_of_a_draining_one_is_not_made_good() -> None:
    Story().running().running(2).tell("""
        == 1 draining: 0 stopping | 2 committed: 0 ready
        killed 1/0           -> sweep 1/0, retired 1
    """)


def test_commit_of_what_is_not_proven_is_refused() -> None:
    Story().running().tell("""
        begin 2              -> spawn 2/0
        commit               -> illegal
        soak                 -> illegal
        spawned 2/0          -> confirm 2/0
        ready 2/0
        commit               -> illegal
        == 1 committed: 0 ready | 2 prepared: 0 ready | starting 2
    """)


def test_a_second_handover_during_one_is_refused() -> None:
    Story().running().tell("""
        begin 2              -> spawn 2/0
        begin 3              -> illegal
        up                   -> illegal
        down                 -> illegal
        remove               -> illegal
    """)


def test_a_generation_number_is_used_once() -> None:
    """It names processes for ever: another generation under it would take them over."""
    Story().running().running(3).tell("""
        begin 3              -> illegal
        begin 1              -> illegal
        begin 2              -> illegal
    """)


def test_a_pause_park_stops_the_old_from_accepting_and_a_commit_drains_it() -> None:
    Story().with_plan(park=Park.PAUSE).running().with_plan(soak_s=30.0).tell("""
        begin 2              -> spawn 2/0
        spawned 2/0          -> confirm 2/0
        healthy 2/0          -> news 2 proven
        soak                 -> signal 1/0 WINCH
        +29
        +1                   -> news 2 soaked
        commit               -> signal 1/0 QUIT
        exit 1/0 0           -> sweep 1/0, retired 1
    """)


def test_going_back_from_a_soak_wakes_the_parked_one_before_the_new_one_stops_accepting() -> None:
    Story().with_plan(park=Park.PAUSE, instances=2).running().with_plan(soak_s=30.0, instances=1).tell("""
        begin 2              -> spawn 2/0
        spawned 2/0          -> confirm 2/0
        healthy 2/0          -> news 2 proven
        soak                 -> signal 1/0 WINCH, signal 1/1 WINCH
        killed 1/0           -> sweep 1/0, spawn 1/0#1      · a fresh process is not parked
        spawned 1/0          -> watch 1/0#1
        ready 1/0
        revert               -> signal 1/1 TTIN, signal 2/0 QUIT
        tick
        exit 2/0 0           -> sweep 2/0, retired 2
        == 1 committed: 0 ready#1, 1 ready
    """)


def test_an_agent_that_dies_before_it_has_woken_the_parked_one_wakes_it_when_it_is_back() -> None:
    """What is stored says `parked` until the signal is out: else nobody would ever wake it."""
    Story().with_plan(park=Park.PAUSE).running().with_plan(soak_s=30.0).tell("""
        begin 2              -> spawn 2/0
        spawned 2/0          -> confirm 2/0
        healthy 2/0          -> news 2 proven
        soak                 -> signal 1/0 WINCH
        revert               -> signal 1/0 TTIN, signal 2/0 QUIT
        restart: live 1/0 2/0 -> watch 1/0, signal 1/0 TTIN, signal 2/0 QUIT
        tick
        restart: live 1/0 2/0 -> watch 1/0, signal 1/0 TTIN, signal 2/0 QUIT   · the tick was of the same batch
        wake
        restart: live 1/0 2/0 -> watch 1/0
    """)


def test_a_mixed_park_leaves_the_old_alone() -> None:
    Story().running().with_plan(soak_s=30.0).tell("""
        begin 2              -> spawn 2/0
        spawned 2/0          -> confirm 2/0
        healthy 2/0          -> news 2 proven
        soak
        == 1 committed: 0 ready | 2 soaking: 0 ready | soaking 2
        +30                  -> news 2 soaked
        revert               -> signal 2/0 QUIT
        == 1 committed: 0 ready | 2 failed: 0 stopping
    """)


def test_surge_starts_so_many_at_a_time() -> None:
    Story().running().with_plan(instances=3, surge=1).tell("""
        begin 2              -> spawn 2/0
        spawned 2/0          -> confirm 2/0
        ready 2/0
        healthy 2/0          -> spawn 2/1
        spawned 2/1          -> confirm 2/1
        healthy 2/1          -> spawn 2/2
        spawned 2/2          -> confirm 2/2
        healthy 2/2          -> news 2 proven
    """)


def test_min_healthy_must_last() -> None:
    Story().running().with_plan(min_healthy_s=5.0).tell("""
        begin 2              -> spawn 2/0
        spawned 2/0          -> confirm 2/0
        healthy 2/0
        +4
        wake                 -> news 2 proven
    """)


def test_nothing_wakes_a_service_for_a_deadline_that_cannot_move_it() -> None:
    """One instance is healthy, the other is not: a wake-up in the past would be a busy loop."""
    story = Story().running().with_plan(instances=2)
    story.after("begin 2; spawned 2/0; spawned 2/1; healthy 2/0")
    woken = wake_s(story.service)
    assert woken is not None and woken > story.now_s


def test_a_generation_whose_profile_has_no_check_is_proven_by_readiness() -> None:
    Story().running().with_plan(confirm=False).tell("""
        begin 2              -> spawn 2/0
        spawned 2/0          -> watch 2/0
        ready 2/0            -> news 2 proven
    """)


def test_a_time_out_is_extended_by_the_service_itself() -> None:
    Story().running().tell("""
        begin 2              -> spawn 2/0
        spawned 2/0          -> confirm 2/0
        +50
        extended 2/0 100
        +60
        +39
        +1                   -> news 2 failed, signal 2/0 QUIT
    """)


def test_at_most_max_draining_old_generations_then_the_oldest_is_stopped() -> None:
    story = Story().with_plan(max_draining=2, drain_timeout_s=7200.0).running().running(2).running(3)
    story.tell("== 1 draining: 0 stopping | 2 draining: 0 stopping | 3 committed: 0 ready")
    story.after("begin 4; spawned 4/0; healthy 4/0; soak")
    story.tell("""
        commit               -> signal 3/0 QUIT
        tick                 -> signal 1/0 TERM
        +10                  -> kill 1/0
        killed 1/0           -> sweep 1/0, retired 1
        == 2 draining: 0 stopping | 3 draining: 0 stopping | 4 committed: 0 ready
    """)


def test_max_draining_zero_stops_the_old_at_once() -> None:
    story = Story().with_plan(max_draining=0).running()
    story.after("begin 2; spawned 2/0; healthy 2/0; soak")
    story.tell("""
        commit               -> signal 1/0 QUIT
        tick                 -> signal 1/0 TERM
    """)


def test_a_drain_that_takes_too_long_is_cut_and_then_killed() -> None:
    Story().running().running(2).tell("""
        +50                  -> signal 1/0 TERM
        +10                  -> kill 1/0
        wake                 -> kill 1/0
        killed 1/0           -> sweep 1/0, retired 1
    """)


def test_a_removed_service_drains_and_nothing_follows() -> None:
    Story().running().tell("""
        remove               -> signal 1/0 QUIT
        == 1 draining: 0 stopping
        exit 1/0 0           -> sweep 1/0, retired 1
        ==
    """)


def test_a_hold_does_not_stop_a_handover() -> None:
    Story().running().tell("""
        hold 100
        begin 2              -> spawn 2/0
        spawned 2/0          -> confirm 2/0
        healthy 2/0          -> news 2 proven
    """)


def test_a_deploy_starts_what_was_stopped_and_a_failed_one_leaves_it_stopped() -> None:
    Story().running().tell("""
        down                 -> signal 1/0 TERM
        exit 1/0 0           -> sweep 1/0
        begin 2              -> spawn 2/0
        exit 2/0 1           -> sweep 2/0, news 2 failed, retired 2
        == 1 committed: 0 ended
        begin 3              -> spawn 3/0
        spawned 3/0          -> confirm 3/0
        healthy 3/0          -> news 3 proven
        soak                 -> news 3 soaked
        commit               -> retired 1
        killed 3/0           -> sweep 3/0, spawn 3/0#1
    """)


def test_a_check_of_an_instance_that_is_being_stopped_proves_nothing() -> None:
    """The throw-away instance is told to stop while its check is still out."""
    Story().running().with_plan(throwaway=True).tell("""
        begin 2              -> spawn 2/900
        spawned 2/900        -> confirm 2/900
        healthy 2/900        -> signal 2/900 TERM, spawn 2/0
        refuted 2/900
        unhealthy 2/900
        == 1 committed: 0 ready | 2 prepared: 0 starting, 900 stopping | starting 2
    """)


def test_readiness_may_be_heard_before_the_keeper_has_answered() -> None:
    Story().running().tell("""
        begin 2              -> spawn 2/0
        ready 2/0            -> confirm 2/0
        spawned 2/0
        healthy 2/0          -> news 2 proven
    """)


def test_a_failed_generation_answers_what_it_accepted_even_when_two_time_out_at_once() -> None:
    Story().running().with_plan(instances=2).tell("""
        begin 2              -> spawn 2/0, spawn 2/1
        spawned 2/0          -> confirm 2/0
        spawned 2/1          -> confirm 2/1
        ready 2/0
        ready 2/1
        +35                  -> news 2 failed, signal 2/0 QUIT, signal 2/1 QUIT
    """)
