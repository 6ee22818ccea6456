"""What is decided about a hold on another supervisor's service; where its span lies in a plan; what Monit's text means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from midstream.core import points
from midstream.core.external import ExternalHold, HoldState, heirs, inherited, left_s, taken, to_give_back
from midstream.core.plan import Call, Move, deploy_plan, plan_lines, rollback_plan, waves_of
from midstream.core.points import place_of, span_of
from midstream.core.spec import AppSpec, CommandStep, HoldSpec, HookSpec, ListenSpec, MigrateSpec, ServiceSpec
from midstream.profiles.supervisors import is_idle, read_control, read_status

HOLD = ExternalHold(1, "shop", "monit", "jobs", "d1", "me", 0, "", 60.0, 160.0, "boot", 1000.0)
SPEC = HoldSpec("monit", "jobs", "after check", "after finishing")
WEB = ServiceSpec("web", ("serve",), listen=(ListenSpec("tcp://127.0.0.1:8000"),), roles=("web",))


def held(
    hold: ExternalHold = HOLD, before: tuple[str, ...] = ("dash", "jobs", "mail"), now: tuple[str, ...] = ("mail",)
) -> ExternalHold:
    return taken(replace(hold, watched_before=before), now)


# -- what is given back


def test_what_was_let_go_along_is_given_back_with_it() -> None:
    hold = held()
    assert hold.state is HoldState.HELD and hold.along == ("dash",)
    assert to_give_back(hold, [hold]) == ("jobs", "dash")


def test_what_was_not_watched_before_is_not_watched_afterwards() -> None:
    assert to_give_back(held(before=("dash", "mail")), []) == ("dash",)
    assert to_give_back(held(before=("mail",)), []) == ()


def test_a_hold_that_follows_one_not_given_back_knows_what_that_found() -> None:
    """Its own look sees a service that is not watched: that is the other hold's doing."""
    old = held()
    new = inherited(replace(HOLD, number=2, watched_before=("mail",)), old)
    assert to_give_back(taken(new, ("mail",)), []) == ("jobs", "dash")
    released = replace(old, state=HoldState.RELEASED)
    assert to_give_back(inherited(replace(HOLD, number=2, watched_before=("mail",)), released), []) == ()


def test_what_another_hold_keeps_is_given_back_by_that_one() -> None:
    """`dash` depends on `jobs`; both are held, by deploys of two apps."""
    first = held()
    second = taken(replace(HOLD, number=2, app="other", service="dash", watched_before=("mail",)), ("mail",))
    assert to_give_back(first, [first, second]) == ("jobs",)
    (heir,) = heirs(first, [first, second])
    assert heir.number == 2
    assert to_give_back(heir, [heir]) == ("dash",)
    assert heirs(second, [first, second]) == []


def test_another_monit_is_another_matter() -> None:
    second = taken(replace(HOLD, number=2, app="other", service="dash", control="/other"), ())
    assert to_give_back(held(), [second]) == ("jobs", "dash")


def test_a_ttl_counts_in_boot_time_and_after_a_reboot_by_the_wall_clock_but_never_longer() -> None:
    assert left_s(HOLD, 130.0, "boot", 0.0) == 30.0
    assert left_s(HOLD, 5.0, "next", 1050.0) == 10.0
    assert left_s(HOLD, 5.0, "next", 2000.0) < 0
    assert left_s(HOLD, 5.0, "next", 10.0) == 60.0, "a clock that was set back does not prolong it"


# -- the plan


def specs(**more: object) -> dict[str, AppSpec]:
    spec = AppSpec("shop", "/srv/shop", "/repo", services={"web": WEB}, roles=("web",), holds=(SPEC,))
    return {"a": replace(spec, **more), "b": replace(spec, **more)}  # type: ignore[arg-type]


def calls(moves: tuple[Move, ...]) -> list[str]:
    return [move.call.name.lower() for move in moves]


def test_a_hold_is_two_calls_more_at_its_points() -> None:
    plan = deploy_plan(specs())
    assert calls(plan.moves) == ["open", "hold", "update", "publish", "commit", "finish", "unhold", "finish"]
    assert plan.moves[1].hosts == ("a", "b") and plan.moves[1].hold == SPEC
    text = "\n".join(plan_lines(plan))
    assert "hold:monit:jobs" in text and "deploy:handover:monit:jobs" in text and "unhold:monit:jobs" in text


def test_a_hold_concerns_the_hosts_that_have_it() -> None:
    both = specs()
    plan = deploy_plan({"a": both["a"], "b": replace(both["b"], holds=())})
    assert [move.hosts for move in plan.moves if move.call in (Call.HOLD, Call.UNHOLD)] == [("a",), ("a",)]


def test_a_hold_surrounds_what_lies_at_its_points() -> None:
    hooks = (
        HookSpec("after", "check", CommandStep(("x",)), number=0),
        HookSpec("after", "finishing", CommandStep(("y",)), number=1),
    )
    plan = deploy_plan(specs(hooks=hooks))
    assert calls(plan.moves)[1:3] == ["hold", "command"]
    assert calls(plan.moves)[-3:] == ["command", "unhold", "finish"]


def test_a_hold_around_the_handover_is_made_host_by_host() -> None:
    hold = replace(SPEC, start="before handover", end="after handover")
    plan = deploy_plan(specs(holds=(hold,)))
    assert calls(plan.moves) == ["open", "update", "publish", "commit", "finish"]
    assert calls(plan.moves[2].around) == ["hold", "unhold"]
    assert "deploy:handover:monit:jobs" in "\n".join(plan_lines(plan))


def test_only_what_is_held_then_is_restarted_at_the_handover() -> None:
    for hold in (
        replace(SPEC, end="before publishing"),
        replace(SPEC, restart=False),
        replace(SPEC, start="after publishing"),
    ):
        assert "handover:monit" not in "\n".join(plan_lines(deploy_plan(specs(holds=(hold,)))))


def test_a_rollback_holds_although_it_does_not_build() -> None:
    hold = replace(SPEC, start="after updated", end="after published")
    assert calls(rollback_plan(specs(holds=(hold,))).moves) == [
        *("open", "select", "hold", "publish", "commit", "unhold", "finish"),
    ]
    building = replace(SPEC, start="before deploy:build", end="after deploy:migrate")
    more = {"holds": (building,), "migrate": MigrateSpec((CommandStep(("m",)),)), "build": (CommandStep(("b",)),)}
    assert "hold" in calls(deploy_plan(specs(**more)).moves)
    assert "hold" not in calls(rollback_plan(specs(**more)).moves)


def test_a_host_with_nothing_but_a_held_worker_goes_before_the_web_hosts() -> None:
    both = specs()
    worker = replace(both["a"], services={}, roles=("batch",))
    assert waves_of({"web1": both["b"], "batch1": worker}) == (("batch1",), ("web1",))


def test_places_follow_the_order_of_the_run() -> None:
    flat = [
        moment
        for item in points.DEPLOY
        for moment in (
            ("before handover", "after handover")
            if item is points.Part.PUBLISH
            else item
            if isinstance(item, tuple)
            else ()
        )
    ]
    places = [place_of(moment, points.DEPLOY) for moment in flat]
    assert None not in places
    assert places == sorted(set(places), key=lambda place: place or 0)
    assert place_of("after failed", points.DEPLOY) is None
    assert span_of("after check", "after failed", points.DEPLOY) is None
    assert span_of("after finishing", "after check", points.DEPLOY) is None


# -- Monit's words

STATUS = """Monit 5.33.0 uptime: 4m

Process 'my jobs'
  status                       OK - restart pending
  monitoring status            Monitored
  pid                          12754
  parent pid                   1

Program 'report'
  status                       Not monitored
  monitoring status            Not monitored
  last output                  status                       OK

System 'host'
  status                       Running
  monitoring status            Initializing
"""

CONTROL = """Runtime constants:
 Control file       = /etc/monit/monitrc
 Pid file           = /run/monit.pid
 Limits             = {
                    =   stopTimeout:       30 s
                    = }

The service list contains the following entries:

Process Name          = my jobs
 Pid file             = /srv/jobs.pid
 Start program        = '/usr/bin/run --timeout 9 s' timeout 2 m
 Stop program         = '/bin/kill' timeout 20 s
 Depends on Service   = database
 Depends on Service   = disk

Process Name          = other
 Match                = worker
"""


def test_a_status_is_read_with_what_is_pending() -> None:
    found = read_status(STATUS)
    assert set(found) == {"my jobs", "report", "host"}
    jobs = found["my jobs"]
    assert (jobs.is_watched, jobs.pending, jobs.status, jobs.pid) == (True, "restart", "OK", 12754)
    assert (found["report"].is_watched, found["report"].pid, found["report"].status) == (False, 0, "Not monitored")
    assert found["host"].is_watched


def test_a_control_file_is_read_for_pid_files_and_time_outs() -> None:
    found = read_control(CONTROL)
    assert found.daemon_pid_file == "/run/monit.pid"
    jobs = found.services["my jobs"]
    assert (jobs.pid_file, jobs.start_timeout_s, jobs.stop_timeout_s) == ("/srv/jobs.pid", 120.0, 20.0)
    assert jobs.depends_on == ("database", "disk") and jobs.has_start and jobs.has_stop
    other = found.services["other"]
    assert (other.pid_file, other.has_start, other.start_timeout_s) == ("", False, 30.0)


@pytest.mark.parametrize(
    ("title", "idle"),
    [
        ("sidekiq 6.4.1 shop [0 of 10 busy] stopping", True),
        ("sidekiq 6.4.1 shop [2 of 10 busy] stopping", False),
        ("sidekiq 6.4.1 shop [0 of 10 busy]", False),  # not quiet yet: it may take one any moment
        ("python worker.py", None),
    ],
)
def test_a_title_tells_whether_a_quiet_worker_is_idle(title: str, idle: bool | None) -> None:
    assert is_idle(title) is idle
