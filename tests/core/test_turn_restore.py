"""Histories with a death of the agent in them: `restore` from the store and the keeper's table, in every phase."""

from __future__ import annotations

import pytest
from turn_story import Story

from midstream.core.generation import Park
from midstream.core.service import Service, durable, wake_s
from midstream.core.wire import from_wire, to_wire


def test_a_live_committed_process_is_left_alone() -> None:
    Story().running().tell("""
        restart: live 1/0    -> watch 1/0
        ready 1/0
        == 1 committed: 0 ready
    """)


def test_a_committed_process_is_not_killed_because_its_word_was_said_to_a_dead_agent() -> None:
    """READY=1 comes once. Nothing is known of how long it has been up; a restart without cause is worse."""
    story = Story().running()
    story.tell("""
        restart: live 1/0    -> watch 1/0
        +1000
        == 1 committed: 0 running
    """)
    assert wake_s(story.service) is None


def test_a_committed_process_that_died_meanwhile_is_started_again() -> None:
    Story().running().tell("restart: ended 1/0=1 -> sweep 1/0, spawn 1/0#1")


def test_what_the_keeper_started_meanwhile_is_taken_on_and_the_dead_ones_are_swept() -> None:
    Story().running().tell("""
        restart: live 1/0#2 ended 1/0#0=1 1/0#1=1 -> watch 1/0#2, sweep 1/0, sweep 1/0#1
        killed 1/0           -> sweep 1/0#2, spawn 1/0#3
    """)


def test_a_slot_of_which_the_keeper_knows_nothing_is_filled() -> None:
    Story().running().tell("restart: -> spawn 1/0")


def test_a_process_that_nothing_accounts_for_is_killed() -> None:
    Story().running().tell("restart: live 1/0 7/0 -> watch 1/0, kill 7/0")


def test_an_earlier_attempt_beside_a_later_one_is_killed() -> None:
    Story().running().tell("restart: live 1/0#0 1/0#1 -> kill 1/0, watch 1/0#1")


def test_a_stopped_service_stays_stopped() -> None:
    story = Story().running()
    story.play("down")
    story.tell("""
        restart: live 1/0    -> signal 1/0 TERM
        restart: ended 1/0=0 -> sweep 1/0
        restart:
        +1000
        == 1 committed
    """)


def test_a_queued_handover_waits_on() -> None:
    story = Story().running().with_plan(policy="replace")
    story.play("begin 2 queued")
    story.tell("""
        restart: live 1/0    -> watch 1/0
        == 1 committed: 0 running | 2 prepared | queued 2
    """)


def test_trying_goes_on() -> None:
    story = Story().running().with_plan(throwaway=True)
    story.play("begin 2")
    story.tell("""
        restart: live 1/0             -> watch 1/0, spawn 2/900
        restart: live 1/0 2/900       -> watch 1/0, confirm 2/900
        healthy 2/900                 -> signal 2/900 TERM, spawn 2/0
        restart: live 1/0 2/900       -> watch 1/0, confirm 2/900, signal 2/900 TERM, spawn 2/0
        restart: live 1/0 2/0 ended 2/900=0 -> watch 1/0, confirm 2/0, sweep 2/900
        == 1 committed: 0 running | 2 prepared: 0 running | starting 2
        restart: live 1/0 2/0         -> watch 1/0, confirm 2/0
        healthy 2/0                   -> news 2 proven
    """)


def test_a_throwaway_that_failed_while_nobody_looked_fails_the_handover() -> None:
    story = Story().running().with_plan(throwaway=True)
    story.play("begin 2")
    story.tell("""
        restart: live 1/0 ended 2/900=1 -> watch 1/0, sweep 2/900, news 2 failed, retired 2
    """)


def test_clearing_goes_on() -> None:
    story = Story().running().with_plan(policy="replace")
    story.play("begin 2")
    story.tell("""
        restart: live 1/0             -> signal 1/0 TERM
        restart: ended 1/0=0          -> sweep 1/0, spawn 2/0
        restart: live 2/0             -> confirm 2/0
        healthy 2/0                   -> news 2 proven
    """)


def test_a_start_that_a_full_disk_forgot_leaves_its_name_taken() -> None:
    """The keeper may still know the first 2/0 when the second is asked for, and would take one for the other."""
    Story().running().with_plan(throwaway=True).after("begin 2; spawned 2/900").tell("""
        restart: live 1/0 2/900 2/0   -> watch 1/0, confirm 2/900, confirm 2/0, signal 2/0 TERM
        exit 2/0 0                    -> sweep 2/0
        ready 2/900
        healthy 2/900                 -> signal 2/900 TERM, spawn 2/0#1
    """)


def test_a_failed_replace_still_keeps_the_old_one_waiting_after_a_restart() -> None:
    story = Story().running().with_plan(policy="replace")
    story.after("begin 2; exit 1/0 0; spawned 2/0; refuted 2/0")
    story.tell("""
        restart: live 2/0             -> signal 2/0 TERM
        exit 2/0 0                    -> sweep 2/0, spawn 1/0#1, retired 2
    """)


def test_replace_goes_back_a_step_when_the_old_one_runs_after_all() -> None:
    """The way back was not stored (the disk was full), and the agent died: the old one had been started again."""
    story = Story().running().with_plan(policy="replace")
    story.after("begin 2; exit 1/0 0")
    story.tell("""
        restart: live 1/0#1           -> watch 1/0#1, signal 1/0#1 TERM
        == 1 committed: 0 stopping#1 | 2 prepared | clearing 2
        exit 1/0 0                    -> sweep 1/0#1, spawn 2/0
    """)


def test_replace_is_given_up_when_both_run_after_all() -> None:
    story = Story().running().with_plan(policy="replace")
    story.after("begin 2; exit 1/0 0; spawned 2/0")
    story.tell("""
        restart: live 1/0#1 2/0       -> watch 1/0#1, confirm 2/0, news 2 failed, signal 1/0#1 TERM, signal 2/0 TERM
        exit 1/0 0                    -> sweep 1/0#1
        exit 2/0 0                    -> sweep 2/0, spawn 1/0#2, retired 2
    """)


def test_starting_goes_on_and_what_the_agent_had_not_started_is_started() -> None:
    story = Story().running().with_plan(instances=2)
    story.play("begin 2")
    story.tell("""
        restart: live 1/0 2/1         -> watch 1/0, confirm 2/1, spawn 2/0
        spawned 2/0                   -> confirm 2/0
        healthy 2/0
        healthy 2/1                   -> news 2 proven
    """)


def test_a_surge_does_not_stop_what_it_had_started() -> None:
    """After a restart nothing is known to be healthy: that is no reason to start over."""
    story = Story().running().with_plan(instances=3, surge=1)
    story.after("begin 2; spawned 2/0; healthy 2/0; spawned 2/1")
    story.tell("""
        restart: live 1/0 2/0 2/1     -> watch 1/0, confirm 2/0, confirm 2/1
        healthy 2/0
        healthy 2/1                   -> spawn 2/2
    """)


def test_a_candidate_that_never_gets_ready_still_times_out_after_a_restart() -> None:
    story = Story().running()
    story.play("begin 2")
    story.tell("""
        restart: live 1/0 2/0         -> watch 1/0, confirm 2/0
        +60                           -> news 2 failed, signal 2/0 QUIT
    """)


def test_a_candidate_that_died_while_nobody_looked_fails_the_handover() -> None:
    story = Story().running().with_plan(instances=2)
    story.play("begin 2")
    story.tell("""
        restart: live 1/0 2/1 ended 2/0=1 -> watch 1/0, confirm 2/1, sweep 2/0, news 2 failed, signal 2/1 QUIT
        == 1 committed: 0 running | 2 failed: 1 stopping
    """)


@pytest.mark.parametrize(("more", "phase"), [("", "proven"), ("; soak", "soaking"), ("; soak; +30", "soaked")])
def test_what_was_proven_is_proven_still(more: str, phase: str) -> None:
    """It was stored: a word said to the dead agent (READY=1) need not be said again."""
    story = Story().running().with_plan(soak_s=30.0)
    story.after(f"begin 2; spawned 2/0; ready 2/0; healthy 2/0{more}")
    state = "soaking" if more else "proven"
    story.tell(f"""
        restart: live 1/0 2/0         -> watch 1/0, watch 2/0
        == 1 committed: 0 running | 2 {state}: 0 ready | {phase} 2
        +10
        == 1 committed: 0 running | 2 {state}: 0 ready | {phase} 2
        commit                        -> signal 1/0 QUIT
        == 1 draining: 0 stopping | 2 committed: 0 ready
    """)


@pytest.mark.parametrize("more", ["", "; soak", "; soak; +30"])
def test_a_proven_generation_with_a_process_missing_is_not_filled_up_unproven(more: str) -> None:
    """The keeper knows nothing of the process (the host was rebooted, say): the proof died with it."""
    story = Story().running().with_plan(soak_s=30.0, instances=2)
    story.after(f"begin 2; spawned 2/0; spawned 2/1; healthy 2/0; healthy 2/1{more}")
    story.tell("""
        restart: live 2/0             -> watch 2/0, news 2 failed, signal 2/0 QUIT, spawn 1/0
        == 1 committed: 0 starting | 2 failed: 0 stopping
    """)


def test_a_soak_ends_on_time() -> None:
    story = Story().running().with_plan(soak_s=30.0)
    story.after("begin 2; spawned 2/0; healthy 2/0; soak; +20")
    story.tell("""
        restart: live 1/0 2/0         -> watch 1/0, watch 2/0
        +9
        wake                          -> news 2 soaked
    """)


def test_a_soak_that_ended_meanwhile_is_over_at_once() -> None:
    story = Story().running().with_plan(soak_s=30.0)
    story.after("begin 2; spawned 2/0; healthy 2/0; soak")
    story.now_s += 100.0
    story.tell("restart: live 1/0 2/0 -> watch 1/0, watch 2/0, news 2 soaked")


def test_a_parked_one_stays_parked_over_a_restart_and_is_woken_by_a_revert() -> None:
    story = Story().with_plan(park=Park.PAUSE).running().with_plan(soak_s=30.0)
    story.after("begin 2; spawned 2/0; healthy 2/0; soak")
    story.tell("""
        restart: live 1/0 2/0         -> watch 1/0, watch 2/0
        revert                        -> signal 1/0 TTIN, signal 2/0 QUIT
    """)


def test_a_parked_one_is_woken_when_the_new_one_died_with_the_agent() -> None:
    story = Story().with_plan(park=Park.PAUSE).running().with_plan(soak_s=30.0)
    story.after("begin 2; spawned 2/0; healthy 2/0; soak")
    story.tell("restart: live 1/0 ended 2/0=1 -> watch 1/0, sweep 2/0, news 2 failed, signal 1/0 TTIN, retired 2")


def test_a_draining_one_goes_on_draining_until_its_stored_deadline() -> None:
    Story().running().running(2).tell("""
        +20
        restart: live 1/0 2/0         -> watch 2/0
        == 1 draining: 0 stopping | 2 committed: 0 running
        +30                           -> signal 1/0 TERM
        restart: live 1/0 2/0         -> watch 2/0
        tick                          -> signal 1/0 TERM
        +10                           -> kill 1/0
        restart: live 2/0 ended 1/0   -> watch 2/0, sweep 1/0, retired 1
    """)


def test_a_drain_signal_is_sent_again_only_when_it_may_not_have_been_sent() -> None:
    """For some workers a second TERM kills the job (RQ): it is stored that it was sent, once it was."""
    story = Story().running().after("begin 2; spawned 2/0; healthy 2/0; soak")
    story.tell("""
        commit                        -> signal 1/0 QUIT
        restart: live 1/0 2/0         -> watch 2/0, signal 1/0 QUIT     · nobody knows
        wake
        restart: live 1/0 2/0         -> watch 2/0
    """)


def test_a_drain_without_time_is_remembered_too() -> None:
    """The drain's deadline comes with the drain: the stop signal follows at the same time."""
    story = Story().with_plan(drain_timeout_s=0.0).running().after("begin 2; spawned 2/0; healthy 2/0; soak")
    story.tell("""
        commit                        -> signal 1/0 QUIT
        tick                          -> signal 1/0 TERM
        wake
        restart: live 1/0 2/0         -> watch 2/0
    """)


def test_a_signal_is_not_taken_as_sent_by_the_batch_that_sends_it() -> None:
    """The shell decides on several events before it acts; they share one time."""
    story = Story().running().after("begin 2; spawned 2/0; healthy 2/0; soak; commit; tick; tick")
    story.tell("restart: live 1/0 2/0 -> watch 2/0, signal 1/0 QUIT")


def test_a_draining_one_whose_process_is_gone_is_retired() -> None:
    Story().running().running(2).tell("restart: live 2/0 -> watch 2/0, retired 1")


def test_a_failed_one_is_taken_away_still() -> None:
    story = Story().running()
    story.after("begin 2; spawned 2/0; refuted 2/0")
    story.tell("""
        restart: live 1/0 2/0         -> watch 1/0, signal 2/0 QUIT
        wake
        restart: live 1/0 2/0         -> watch 1/0
        restart: live 1/0             -> watch 1/0, retired 2
    """)


def test_what_is_stored_survives_the_wire() -> None:
    """The store keeps JSON: everything durable, and nothing else, comes back."""
    story = Story().with_plan(park=Park.PAUSE).running().with_plan(soak_s=30.0)
    story.after("hold 600; begin 2; spawned 2/0; healthy 2/0; soak")
    stored = durable(story.service)
    assert from_wire(Service, to_wire(stored)) == stored
    assert stored.instances == () and stored.handover is not None and stored.hold is not None
