"""Workers in a handover: quiet, proven quiet, then the commit; and back by a fresh generation. Stories of `core.turn`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from turn_story import PLAN, Story

from midstream.core.events import Begin, Commit, Observed, Quieten, Waken
from midstream.core.generation import Generation, GenerationPlan, GenerationState, IllegalTransition, Park
from midstream.core.service import standing_orders
from midstream.core.turn import restore, step

SIDEKIQ = replace(
    PLAN, policy="drain", quiet_signal="TSTP", drain_signal="TSTP", quiet_timeout_s=30.0, confirm=False, soak_s=0.0
)
RQ = replace(SIDEKIQ, quiet_signal="TERM", drain_signal="TERM", quiet_once=True, leaves_when_idle=True)


def proven(plan: GenerationPlan = SIDEKIQ) -> Story:
    """Generation 1 is committed, 2 is proven, 3 is reserved for going back."""
    story = Story(plan).running(1)
    story.take(Begin(Generation(2, "release2", GenerationState.PREPARED, plan), spare=3))
    return story.after("spawned 2/0; ready 2/0; healthy 2/0")


def quieting(plan: GenerationPlan = SIDEKIQ) -> Story:
    story = proven(plan)
    story.play("soak")
    story.take(Observed(1, 0, 0))
    return story


def test_nobody_is_told_before_the_library_knows_him() -> None:
    story = proven()
    assert story.play("soak") == ["look 1/0"]
    assert story.picture().endswith("quieting 2")
    assert "signal 1/0 TSTP" in story.take(Observed(1, 0, 0))


def test_the_commit_waits_for_the_proof() -> None:
    story = quieting()
    with pytest.raises(IllegalTransition):
        step(story.service, Commit(), story.now_s)
    story.take(Observed(1, 0, 0, quiet=True))
    assert "soaked 2" in story.picture()
    story.play("commit")
    assert story.picture() == "1 draining: 0 stopping | 2 committed: 0 ready"


def test_a_proven_handover_of_workers_cannot_be_committed_unquieted() -> None:
    story = proven()
    with pytest.raises(IllegalTransition):
        step(story.service, Commit(), story.now_s)


def test_the_drain_tells_nobody_twice_and_stops_who_is_idle() -> None:
    story = quieting()
    story.take(Observed(1, 0, 0, quiet=True))
    assert not [word for word in story.play("commit") if word.startswith("signal 1/0")]
    assert story.take(Observed(1, 0, 0, quiet=True)) == []
    assert story.take(Observed(1, 0, 0, quiet=True, idle=True)) == ["signal 1/0 TERM"]


def test_a_quiet_worker_that_ends_is_not_started_again_neither_here_nor_by_the_keeper() -> None:
    story = quieting()
    assert not standing_orders(story.service)
    assert "spawn 1/0#1" not in story.play("killed 1/0")
    story.play("commit")
    assert story.picture() == "2 committed: 0 ready"


def test_going_back_from_quiet_is_a_fresh_generation_of_the_old_release() -> None:
    story = quieting()
    story.play("revert")
    assert story.picture().startswith("1 draining: 0 stopping | 2 failed: 0 stopping | 3 committed: 0 starting")
    fresh = story.service.committed
    assert fresh is not None and (fresh.release, fresh.copy_of, fresh.quieted) == ("release1", 1, ())


def test_going_back_before_anybody_was_told_touches_nobody() -> None:
    story = proven()
    story.play("soak")
    story.play("revert")
    assert story.service.quiet is None
    assert story.picture().startswith("1 committed: 0 ready | 2 failed")


def test_without_proof_the_handover_fails_and_says_why() -> None:
    story = proven()
    story.play("soak")
    story.take(Observed(1, 0, 0, trouble="redis at localhost:6379/0: Connection refused"))
    effects = story.play("+30")
    assert "news 2 failed" in effects
    assert story.picture().startswith("1 committed: 0 ready | 2 failed")


@pytest.mark.parametrize("arrived", [True, False])
def test_an_agent_that_comes_back_tells_again_only_who_did_not_hear_it(arrived: bool) -> None:
    story = quieting(RQ)
    from midstream.core.events import Spawned

    stored = replace(story.service, instances=())
    service, _ = restore(stored, (Spawned(1, 0, 0, 11), Spawned(2, 0, 0, 12)), (), story.now_s)
    _, effects = step(service, Observed(1, 0, 0, quiet=arrived), story.now_s + 3.0)
    told = [effect for effect in effects if type(effect).__name__ == "Signal"]
    assert len(told) == (0 if arrived else 1)


def test_a_stop_does_not_tell_rq_a_second_time() -> None:
    story = Story(RQ).running(1)
    story.take(Quieten(2, story.now_s + 60.0))
    assert "signal 1/0 TERM" in story.take(Observed(1, 0, 0))
    story.take(Observed(1, 0, 0, quiet=True))
    assert not [word for word in story.play("down") if word.startswith("signal")]


def test_a_quiet_by_hand_ends_at_its_deadline() -> None:
    story = Story(SIDEKIQ).running(1)
    story.take(Quieten(2, story.now_s + 60.0))
    story.take(Observed(1, 0, 0))
    story.take(Observed(1, 0, 0, quiet=True))
    story.play("wake")
    assert story.picture() == "1 draining: 0 stopping | 2 committed: 0 starting"


def test_a_quiet_by_hand_can_be_ended_and_a_service_that_is_no_worker_has_none() -> None:
    story = Story(SIDEKIQ).running(1)
    story.take(Quieten(2, story.now_s + 60.0))
    story.take(Observed(1, 0, 0))
    assert "spawn 2/0" in story.take(Waken())
    with pytest.raises(IllegalTransition):
        step(Story(PLAN).running(1).service, Quieten(2, 9e9), 1000.0)


def test_a_worker_that_still_boots_is_stopped_not_quieted() -> None:
    """The default action of TSTP would suspend it."""
    story = Story(SIDEKIQ).running(1)
    story.take(Begin(Generation(2, "release2", GenerationState.PREPARED, SIDEKIQ), spare=3))
    story.play("spawned 2/0")
    assert "signal 2/0 TERM" in story.play("revert")


COLD = replace(PLAN, park=Park.COLD, soak_s=30.0)


def test_cold_drains_the_old_one_as_the_soak_begins() -> None:
    story = Story(COLD).running(1)
    story.take(Begin(Generation(2, "release2", GenerationState.PREPARED, COLD), spare=3))
    story.after("spawned 2/0; ready 2/0; healthy 2/0")
    assert story.play("soak") == ["signal 1/0 QUIT"]
    assert "spawn 1/0#1" not in story.play("exit 1/0 0")
    story.play("revert")
    assert story.picture() == "2 failed: 0 stopping | 3 committed: 0 starting"


def test_cold_is_told_to_drain_once() -> None:
    story = Story(COLD).running(1)
    story.take(Begin(Generation(2, "release2", GenerationState.PREPARED, COLD), spare=3))
    story.after("spawned 2/0; ready 2/0; healthy 2/0; soak; +30")
    assert not [word for word in story.play("commit") if word.startswith("signal")]
    assert story.picture() == "1 draining: 0 stopping | 2 committed: 0 ready"


def test_a_signal_that_was_lost_is_sent_again_where_that_does_no_harm() -> None:
    story = quieting()
    assert story.take(Observed(1, 0, 0)) == []
    story.now_s += 15.0
    assert story.take(Observed(1, 0, 0)) == ["signal 1/0 TSTP"]
    rq = quieting(RQ)
    rq.now_s += 15.0
    assert rq.take(Observed(1, 0, 0)) == []
