"""The plan says which calls happen on which hosts in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core import points
from midstream.core.plan import (
    Call,
    Kind,
    Phase,
    deploy_plan,
    plan_lines,
    primary_of,
    rollback_plan,
    waves_of,
)
from midstream.core.points import Part, phase_of, point_of
from midstream.core.spec import AppSpec, CommandStep, HookSpec, ListenSpec, MigrateSpec, ServiceSpec, Source
from midstream.core.wire import from_wire, to_wire

WEB = ServiceSpec("web", ("serve",), listen=(ListenSpec("tcp://127.0.0.1:8000"),), roles=("web",))
JOBS = ServiceSpec("jobs", ("work",), roles=("batch",))
MIGRATE = MigrateSpec((CommandStep(("manage.py", "migrate")),))


def spec(*roles: str, migrate: MigrateSpec | None = None, **more: object) -> AppSpec:
    services = {s.name: s for s in (WEB, JOBS) if not roles or set(s.roles) & set(roles)}
    return AppSpec("shop", "/srv/shop", "/repo", services=services, roles=roles, migrate=migrate, **more)  # type: ignore[arg-type]


def test_a_deploy_on_one_host_is_five_calls() -> None:
    plan = deploy_plan({"here": spec("web", "batch", "db", migrate=MIGRATE)})
    assert [move.call for move in plan.moves] == [Call.OPEN, Call.UPDATE, Call.PUBLISH, Call.COMMIT, Call.FINISH]
    assert all(move.hosts == ("here",) for move in plan.moves)
    assert plan.moves[1].migrate


def test_workers_are_handed_over_before_web_hosts() -> None:
    specs = {"web1": spec("web", "db"), "web2": spec("web"), "batch1": spec("batch")}
    assert waves_of(specs) == (("batch1",), ("web1", "web2"))


def test_a_host_with_web_and_workers_goes_with_the_web_hosts() -> None:
    specs = {"both": spec("web", "batch"), "web1": spec("web"), "batch1": spec("batch")}
    assert waves_of(specs) == (("batch1",), ("both", "web1"))


def test_hosts_without_roles_are_ordered_by_what_they_run() -> None:
    worker = AppSpec("shop", "/srv/shop", "/repo", services={"jobs": ServiceSpec("jobs", ("work",))})
    web = AppSpec("shop", "/srv/shop", "/repo", services={"web": ServiceSpec("web", ("s",), listen=WEB.listen)})
    assert waves_of({"a": web, "b": worker}) == (("b",), ("a",))


def test_max_parallel_splits_a_wave_and_keeps_the_order() -> None:
    specs = {f"web{n}": spec("web") for n in range(5)}
    assert waves_of(specs, 2) == (("web0", "web1"), ("web2", "web3"), ("web4",))


def test_the_migration_runs_once_and_after_everybody_else_has_built() -> None:
    specs = {name: spec(*roles, migrate=MIGRATE) for name, roles in (("db1", ("db",)), ("web1", ("web",)))}
    updates = [move for move in deploy_plan(specs).moves if move.call is Call.UPDATE]
    assert [(move.hosts, move.migrate) for move in updates] == [(("db1", "web1"), False), (("db1",), True)]
    assert [task.name for move in updates for task in move.tasks].count("deploy:migrate") == 1


def test_a_migration_is_not_run_on_a_host_without_its_role() -> None:
    """`--hosts web1` must not move it to the first of what is left."""
    for names in (("web1",), ("web1", "web2")):
        plan = deploy_plan({name: spec("web", migrate=MIGRATE) for name in names})
        assert not any(move.migrate for move in plan.moves)
        assert not any("migrate" in line for line in plan_lines(plan))


def test_the_primary_is_the_first_host_of_the_role_or_the_first_host() -> None:
    specs = {"a": spec("web"), "b": spec("db"), "c": spec("db")}
    assert primary_of("db", specs) == "b"
    assert primary_of("cron", specs) == "a"


def test_the_decision_is_made_on_the_coordinator_first() -> None:
    plan = deploy_plan({"web1": spec("web"), "batch1": spec("batch")})
    commit = next(move for move in plan.moves if move.call is Call.COMMIT)
    assert plan.coordinator == commit.hosts[0] == "web1"
    assert commit.in_order


def test_a_rollback_touches_no_repository_and_builds_nothing() -> None:
    plan = rollback_plan({"here": spec(migrate=MIGRATE)}, release="20261121190501")
    assert plan.kind is Kind.ROLLBACK
    assert [move.call for move in plan.moves] == [Call.OPEN, Call.SELECT, Call.PUBLISH, Call.COMMIT, Call.FINISH]
    assert not any(task.name.startswith(("git:", "deploy:migrate")) for move in plan.moves for task in move.tasks)


def test_every_task_is_a_point_to_which_a_hook_can_be_tied() -> None:
    """Otherwise the plan would print names that `[[hooks]]` refuses. But for those that Capistrano does not have."""
    specs = {"here": spec("web", "db", migrate=MIGRATE, build=(CommandStep(("make",)),), assets=("public",))}
    names = {task.name for plan in (deploy_plan(specs), rollback_plan(specs)) for m in plan.moves for task in m.tasks}
    unknown = {name for name in names if point_of(name) is None}
    assert {name.split(":")[1] for name in unknown} == {"handover", "store_spec", "unlock"}


def test_the_printed_plan_names_every_task_with_its_hosts_in_order() -> None:
    specs = {
        "web1": spec("web", "db", migrate=MIGRATE, linked_files=(".env",), build=(CommandStep(("make", "all")),)),
        "batch1": spec("batch", migrate=MIGRATE),
    }
    lines = plan_lines(deploy_plan(specs))
    text = "\n".join(lines)
    shown = [line for line in lines if not line.startswith(" ")]
    assert shown == [
        "starting",
        "check",
        "updating",
        "updated",
        "publishing  wave 1 of 2",
        "publishing  wave 2 of 2",
        "finishing",
        "finished",
    ]
    for part in ("deploy:build", "make all", "manage.py migrate", ".env", "deploy:handover:jobs", "deploy:cleanup"):
        assert part in text


def test_fetching_hosts_are_told_the_repository() -> None:
    lines = plan_lines(deploy_plan({"here": spec(source=Source.FETCH)}))
    assert any("git:update" in line and "/repo" in line for line in lines)


def test_a_plan_crosses_the_wire() -> None:
    plan = deploy_plan({"web1": spec("web", migrate=MIGRATE), "batch1": spec("batch")})
    assert from_wire(type(plan), to_wire(plan)) == plan


def test_phases_of_the_way_forward_never_go_backwards() -> None:
    order = list(Phase)
    phases = [
        order.index(task.phase) for move in deploy_plan({"h": spec(migrate=MIGRATE)}).moves for task in move.tasks
    ]
    assert phases == sorted(phases)


def test_no_hosts_no_plan() -> None:
    with pytest.raises(ValueError, match="at least one host"):
        deploy_plan({})


@given(
    roles=st.lists(st.sets(st.sampled_from(["web", "batch", "db"])), min_size=1, max_size=8),
    max_parallel=st.integers(0, 3),
)
def test_each_host_is_in_exactly_one_wave(roles: list[set[str]], max_parallel: int) -> None:
    specs = {f"h{n}": spec(*sorted(some)) for n, some in enumerate(roles)}
    waves = waves_of(specs, max_parallel)
    assert sorted(host for wave in waves for host in wave) == sorted(specs)
    assert all(wave for wave in waves)
    assert max_parallel == 0 or all(len(wave) <= max_parallel for wave in waves)


# ---------------------------------------------------------------------- hooks and tasks


def hooked(*at: str, roles: tuple[str, ...] = ("web",), **more: object) -> AppSpec:
    hooks = tuple(HookSpec(*one.split(" "), CommandStep((one,)), number=number) for number, one in enumerate(at))
    return spec(*roles, hooks=hooks, **more)


EVERY_MOMENT = [f"{when} {point}" for point in points.POINTS for when in ("before", "after")]
NOT_IN_A_DEPLOY = {"before deploy:revert_release", "after deploy:revert_release"}


@pytest.mark.parametrize("moment", EVERY_MOMENT)
def test_a_hook_at_any_point_is_in_the_plan_exactly_once(moment: str) -> None:
    """Before or after anything that there is: never passed over in silence, but for what a deploy does not have."""
    plan = deploy_plan({"here": hooked(moment)})
    places = [*plan.moves, *plan.back, *(one for move in plan.moves for one in move.around)]
    found = [move for move in places if move.point == moment]
    assert len(found) == (0 if moment in NOT_IN_A_DEPLOY else 1)
    rollback = rollback_plan({"here": hooked(moment)})
    found = [move for move in (*rollback.moves, *rollback.back, *rollback.moves[-4].around) if move.point == moment]
    assert len(found) <= 1


@given(st.lists(st.sampled_from(EVERY_MOMENT), max_size=8, unique=True))
def test_hooks_lie_in_the_order_of_the_run_and_lose_no_part_of_it(moments: list[str]) -> None:
    whole = AppSpec("shop", "/srv/shop", "/repo", build=(CommandStep(("make",)),), assets=("public",), migrate=MIGRATE)
    import dataclasses

    plain = deploy_plan({"a": whole, "b": whole})
    with_hooks = dataclasses.replace(whole, hooks=hooked(*moments).hooks)
    plan = deploy_plan({"a": with_hooks, "b": with_hooks})
    flat = [one for gap in points.DEPLOY if not isinstance(gap, Part) for one in gap]
    own = [move.point for move in plan.moves if move.hook is not None]
    assert own == sorted(own, key=flat.index)
    tasks = [task.name for move in plan.moves if move.hook is None for task in move.tasks]
    assert tasks == [t.name for move in plain.moves for t in move.tasks]
    assert from_wire(type(plan), to_wire(plan)) == plan


def test_calls_are_cut_only_where_something_lies_inside() -> None:
    calls = [move.call for move in deploy_plan({"here": hooked("after updated")}).moves]
    assert calls == [Call.OPEN, Call.UPDATE, Call.COMMAND, Call.PUBLISH, Call.COMMIT, Call.FINISH]
    cut = deploy_plan({"here": hooked("before deploy:build", build=(CommandStep(("make",)),))}).moves
    updates = [(move.until, [task.name for task in move.tasks][-1]) for move in cut if move.call is Call.UPDATE]
    assert updates == [("deploy:build", "git:create_release"), ("", "deploy:store_spec")]
    nothing_to_build = deploy_plan({"here": hooked("before deploy:build")}).moves
    assert [move.until for move in nothing_to_build if move.call is Call.UPDATE] == [""]


def test_a_hook_runs_in_the_new_release_once_there_is_one() -> None:
    moves = deploy_plan({"here": hooked("after check", "before git:create_release", "after updating")}).moves
    assert [move.hook.where for move in moves if move.hook] == ["current", "current", "release"]
    back = deploy_plan({"here": hooked("after failed")}).back
    assert [move.hook.where for move in back if move.hook] == ["current"]


def test_on_primary_is_the_first_host_that_has_the_hook() -> None:
    import dataclasses

    one = hooked("after published")
    primary = dataclasses.replace(
        one, hooks=(dataclasses.replace(one.hooks[0], step=CommandStep(("x",), on="primary")),)
    )
    moves = deploy_plan({"db": spec("db"), "web1": primary, "web2": primary}).moves
    assert [move.hosts for move in moves if move.hook] == [("web1",)]


def test_the_stage_says_how_many_hosts_at_a_time() -> None:
    specs = {f"web{n}": spec("web", max_parallel=2) for n in range(3)}
    assert deploy_plan(specs).waves == (("web0", "web1"), ("web2",))
    assert deploy_plan(specs, max_parallel=1).waves == (("web0",), ("web1",), ("web2",))


def test_every_point_has_a_phase_of_the_plan() -> None:
    for point in points.POINTS:
        assert Phase(phase_of(point))


def test_every_task_that_is_built_in_has_its_phase_from_the_one_table() -> None:
    whole = spec("web", "batch", "db", migrate=MIGRATE, build=(CommandStep(("make",), name="js"),), assets=("public",))
    for plan in (deploy_plan({"a": whole, "b": whole}), rollback_plan({"a": whole, "b": whole})):
        assert {task.name: task.phase for task in plan.tasks} == {t.name: Phase(phase_of(t.name)) for t in plan.tasks}


def test_a_service_that_is_not_started_is_not_handed_over() -> None:
    import dataclasses

    by_hand = dataclasses.replace(JOBS, autostart=False)
    app = dataclasses.replace(spec(), services={"web": WEB, "jobs": by_hand})
    names = [task.name for task in deploy_plan({"here": app}).tasks]
    assert "deploy:handover:web" in names and "deploy:handover:jobs" not in names


@pytest.mark.parametrize("moment", EVERY_MOMENT)
def test_the_configuration_is_stored_once_in_a_call_that_goes_to_the_end(moment: str) -> None:
    """The agent does it in the first `deploy.update` that does not stop before something, and passes over it later."""
    for hosts in ("a", "ab"):
        for more in ({}, {"build": (CommandStep(("make",)),), "assets": ("public",), "migrate": MIGRATE}):
            app = hooked(moment, roles=("web", "db"), **more)
            plan = deploy_plan(dict.fromkeys(hosts, app))
            updates = [move for move in plan.moves if move.call is Call.UPDATE]
            stored = [n for n, m in enumerate(updates) if any(t.name == "deploy:store_spec" for t in m.tasks)]
            assert stored == [next(n for n, move in enumerate(updates) if not move.until)]
