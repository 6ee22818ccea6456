"""Hooks, tasks of deploy.py and the order of locks, as the runner carries them out over agents that speak the protocol."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from test_control_runner import Run, app_spec, assert_nothing_left, on_fleet

from midstream.core.plan import Call, deploy_plan, plan_lines
from midstream.core.spec import AppSpec, CommandStep, HookSpec
from midstream.deploy.events import EventKind
from midstream.deploy.tasks import Registry, TaskRun, named, roles
from midstream.deploy.tasks.book import TaskBook
from midstream.deploy.tasks.loading import load_tasks
from midstream.errors import AppError, InterruptedDeploy, LockedError, MidstreamError, OperatorError
from midstream.testing.fake_agent import Fail, FakeAgent, Wait


def with_hooks(spec: AppSpec, *hooks: tuple[str, str, str]) -> AppSpec:
    """hooks: (when point, command, undo)."""
    import dataclasses

    made = tuple(
        HookSpec(*at.split(" "), CommandStep(tuple(run.split())), CommandStep((undo,)) if undo else None, number)
        for number, (at, run, undo) in enumerate(hooks)
    )
    return dataclasses.replace(spec, hooks=made)


def task_run(agents: dict[str, FakeAgent], specs: dict[str, AppSpec], registry: Registry, **more: Any) -> Run:
    book = TaskBook(registry, more.pop("given", {}))
    return Run(agents, specs, plan=deploy_plan(specs, attached=registry.attached()), tasks=book, **more)


def commands(agent: FakeAgent) -> list[str]:
    return [" ".join(params["argv"]) for method, params in agent.calls if method == "deploy.command"]


# ---------------------------------------------------------------------- hooks


def test_a_hook_inside_a_call_cuts_it_and_runs_once_all_hosts_are_there(tmp_path: Path) -> None:
    specs = {name: with_hooks(app_spec("web"), ("after updating", "purge", "")) for name in ("web1", "web2")}

    @on_fleet(tmp_path, "web1", "web2")
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["web2"].script("deploy.update", Wait())
        run = Run(agents, specs)
        going = asyncio.ensure_future(run())
        await agents["web2"].wait_for("deploy.update")
        await agents["web1"].wait_for("deploy.update")
        assert commands(agents["web1"]) == []
        agents["web2"].release()
        outcome = await going
        assert outcome.exit_code == 0, outcome.error
        assert commands(agents["web1"]) == commands(agents["web2"]) == ["purge"]


def test_the_plan_that_is_printed_is_the_one_that_is_run(tmp_path: Path) -> None:
    points = ("after finished", "before starting", "before deploy:cleanup", "after updated", "before handover")
    specs = {"here": with_hooks(app_spec(), *((at, at.replace(" ", "-"), "") for at in points))}

    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        run = Run(agents, specs)
        assert (await run()).exit_code == 0
        plan = run.order["plan"]
        shown = [line.split(": ")[-1] for line in plan_lines(plan) if line.strip().startswith("hook")]
        assert shown == commands(agents["here"])
        assert [command.replace("-", " ") for command in shown] == [
            "before starting",
            "after updated",
            "before handover",
            "before deploy:cleanup",
            "after finished",
        ]


def test_a_handover_hook_goes_around_each_host_of_a_wave(tmp_path: Path) -> None:
    spec = with_hooks(app_spec("web"), ("before handover", "out", "in"), ("after handover", "in", ""))
    specs = {"web1": spec, "web2": spec}

    @on_fleet(tmp_path, "web1", "web2")
    async def story(agents: dict[str, FakeAgent]) -> None:
        assert (await Run(agents, specs)()).exit_code == 0
        for agent in agents.values():
            kept = ("deploy.command", "deploy.publish", "deploy.commit")
            order = [method for method in agent.methods() if method in kept]
            assert order == ["deploy.command", "deploy.publish", "deploy.command", "deploy.commit"]


def test_undo_on_every_host_that_began_and_on_no_other(tmp_path: Path) -> None:
    specs = {name: with_hooks(app_spec("web"), ("after check", "touch", "untouch")) for name in ("web1", "web2")}

    @on_fleet(tmp_path, "web1", "web2")
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["web2"].fails.add("touch")
        outcome = await Run(agents, specs)()
        assert isinstance(outcome.error, AppError) and outcome.exit_code == 1
        assert agents["web2"].undone == ["hook 1"]
        assert agents["web1"].undone in ([], ["hook 1"])  # the other's failure may have come before it began
        assert len(agents["web1"].undone) == commands(agents["web1"]).count("touch")
        assert_nothing_left(agents)


def test_auto_revert_false_leaves_proven_hosts_on_the_new_release_and_says_so(tmp_path: Path) -> None:
    import dataclasses

    specs = {name: dataclasses.replace(app_spec("web"), auto_revert=False, max_parallel=1) for name in ("web1", "web2")}

    @on_fleet(tmp_path, "web1", "web2")
    async def story(agents: dict[str, FakeAgent]) -> None:
        await Run(agents, specs)()
        before = agents["web2"].apps["shop"].committed
        agents["web2"].script("deploy.publish", Fail(AppError("web did not come up")))
        outcome = await Run(agents, specs, deploy_id="d2")()
        assert outcome.exit_code == 5
        assert "auto_revert" in str(outcome.error) and "web1" in str(outcome.error)
        assert agents["web2"].apps["shop"].committed == before != agents["web1"].apps["shop"].committed
        assert_nothing_left(agents)


# ---------------------------------------------------------------------- locks


def test_locks_are_taken_in_one_order_whatever_the_order_in_the_file(tmp_path: Path) -> None:
    @on_fleet(tmp_path, "a", "b", "c")
    async def story(agents: dict[str, FakeAgent]) -> None:
        specs = {name: app_spec("web") for name in ("c", "a", "b")}
        agents["a"].script("deploy.open", Wait())
        going = asyncio.ensure_future(Run({name: agents[name] for name in specs}, specs)())
        await agents["a"].wait_for("deploy.open")
        assert agents["b"].methods() == agents["c"].methods() == []
        agents["a"].release()
        assert (await going).exit_code == 0


def test_the_next_lock_is_asked_for_while_the_host_before_still_checks(tmp_path: Path) -> None:
    """The agent says that it has the lock before it answers: locks cost no round trip of their own."""

    @on_fleet(tmp_path, "a", "b")
    async def story(agents: dict[str, FakeAgent]) -> None:
        specs = {name: app_spec("web") for name in ("a", "b")}
        agents["b"].script("deploy.open", Wait())
        agents["a"].script("deploy.open", Wait((("locked", {"token": "x"}),)))
        going = asyncio.ensure_future(Run(agents, specs)())
        await agents["b"].wait_for("deploy.open")
        agents["a"].release()
        agents["b"].release()
        assert (await going).exit_code == 0


def test_a_host_that_is_refused_ends_it_before_the_next_is_asked(tmp_path: Path) -> None:
    @on_fleet(tmp_path, "a", "b", "c")
    async def story(agents: dict[str, FakeAgent]) -> None:
        specs = {name: app_spec("web") for name in ("a", "b", "c")}
        agents["b"].script("deploy.open", Fail(LockedError("bert has been running a deploy since 12:00")))
        outcome = await Run(agents, specs)()
        assert outcome.exit_code == 4
        assert "bert" in str(outcome.error)
        assert agents["c"].methods() == []
        assert_nothing_left(agents)


@pytest.mark.parametrize("sets", [(("a", "b"), ("a", "b")), (("a", "b"), ("b", "a")), (("a", "b"), ("b", "c"))])
def test_of_two_deploys_at_once_one_wins_and_none_deadlocks(tmp_path: Path, sets: tuple[tuple[str, ...], ...]) -> None:
    @on_fleet(tmp_path, "a", "b", "c")
    async def story(agents: dict[str, FakeAgent]) -> None:
        for turn in range(25):
            runs = []
            for who, names in enumerate(sets):
                specs = {name: app_spec("web") for name in names}
                mine = {name: agents[name] for name in names}
                runs.append(Run(mine, specs, deploy_id=f"d{turn}-{who}", pick_release=_later))
            outcomes = await asyncio.gather(*(run() for run in runs))
            codes = sorted(outcome.exit_code for outcome in outcomes)
            assert codes in ([0, 4], [0, 0]), [str(outcome.error) for outcome in outcomes]
            assert_nothing_left(agents)


def _later(taken: list[str]) -> str:
    return f"{int(max(taken, default='20261121190501')) + 1:014d}"


# ---------------------------------------------------------------------- tasks


def test_a_task_runs_where_it_is_attached_on_the_hosts_of_its_role(tmp_path: Path) -> None:
    registry = Registry()
    monit = registry.namespace("sidekiq:monit")

    @monit.task("unmonitor")
    def unmonitor(run: TaskRun) -> None:
        for host in run.on(roles("batch")):
            host.run("monit unmonitor sidekiq", undo="monit monitor sidekiq")

    registry.after("check", unmonitor)
    specs = {"web1": app_spec("web"), "batch1": app_spec("batch")}

    @on_fleet(tmp_path, "web1", "batch1")
    async def story(agents: dict[str, FakeAgent]) -> None:
        run = task_run(agents, specs, registry)
        assert [move.task for move in run.order["plan"].moves if move.call is Call.TASK] == ["sidekiq:monit:unmonitor"]
        assert (await run()).exit_code == 0
        assert commands(agents["web1"]) == []
        methods = agents["batch1"].methods()
        assert methods.index("deploy.open") < methods.index("deploy.command") < methods.index("deploy.update")
        assert agents["batch1"].undone == []
        assert any(e.kind is EventKind.END and e.step == "sidekiq:monit:unmonitor" for e in run.events)


def test_a_task_for_hosts_that_there_are_not_says_so(tmp_path: Path) -> None:
    registry = Registry()

    @registry.task("warm")
    def warm(run: TaskRun) -> None:
        run.on(roles("wbe")).run("true")

    registry.after("check", warm)

    @on_fleet(tmp_path, "web1")
    async def story(agents: dict[str, FakeAgent]) -> None:
        run = task_run(agents, {"web1": app_spec("web")}, registry)
        assert (await run()).exit_code == 0
        assert commands(agents["web1"]) == []
        assert [e.text for e in run.events if e.kind is EventKind.NOTE] == [
            "warm: no host here is wbe: nothing is done there"
        ]


def test_what_a_task_did_is_undone_when_the_deploy_fails(tmp_path: Path) -> None:
    registry = Registry()
    told: list[str] = []

    @registry.task("off")
    def off(run: TaskRun) -> None:
        told.append("off")

    @registry.task("on", undo=off)
    def on(run: TaskRun) -> None:
        run.on().run("lb out", undo="lb in")

    registry.before("publishing", on)

    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["here"].script("deploy.publish", Fail(AppError("web did not come up")))
        outcome = await task_run(agents, {"here": app_spec()}, registry)()
        assert outcome.exit_code == 1
        assert told == ["off"]
        assert agents["here"].undone == ["task on 1"]
        assert_nothing_left(agents)


def test_an_error_in_a_task_names_file_and_line_and_fails_the_deploy(tmp_path: Path) -> None:
    (tmp_path / "deploy.py").write_text(
        "from midstream.deploy.tasks import Registry\nregistry = Registry()\n"
        "@registry.task('broken')\ndef broken(run):\n    x = {}\n    x['missing']\nregistry.after('check', broken)\n"
    )
    registry, _ = load_tasks(str(tmp_path))

    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        outcome = await task_run(agents, {"here": app_spec()}, registry)()
        assert outcome.exit_code == 1
        assert "deploy.py:6" in str(outcome.error) and "task broken" in str(outcome.error)
        assert_nothing_left(agents)


def test_an_interrupt_ends_what_a_task_waits_for(tmp_path: Path) -> None:
    registry = Registry()
    ended = threading.Event()

    @registry.task("slow")
    def slow(run: TaskRun) -> None:
        try:
            run.on().run("sleep")
        except InterruptedDeploy:
            ended.set()
            raise

    registry.after("check", slow)

    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["here"].script("deploy.command", Wait())
        run = task_run(agents, {"here": app_spec()}, registry)
        going = asyncio.ensure_future(run())
        await agents["here"].wait_for("deploy.command")
        run.deployment.interrupt()
        outcome = await going
        assert outcome.exit_code == 130
        assert await asyncio.to_thread(ended.wait, 10)
        assert_nothing_left(agents)


def test_settings_are_computed_asked_or_given_once(tmp_path: Path) -> None:
    registry = Registry()
    asked: list[str] = []
    seen: list[Any] = []
    registry.set("pages", lambda: seen.append("computed") or 100)
    registry.ask("ticket", "Which ticket?")
    registry.ask("password", echo=False)
    registry.ask("token", echo=False, default="kept-token")

    @registry.task("show")
    def show(run: TaskRun) -> None:
        run.fetch("token")
        seen.append(
            [run.fetch("pages"), run.fetch("pages"), run.fetch("ticket"), run.fetch("password"), run.fetch("x", 1)]
        )
        with pytest.raises(OperatorError, match="no setting 'unknown'"):
            run.fetch("unknown")

    registry.after("check", show)

    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        run = task_run(agents, {"here": app_spec()}, registry, given={"ticket": "T-1"})
        secrets: dict[str, str] = {}
        book = run.order["tasks"]
        book.ask = lambda question, echo: asked.append(f"{question} {echo}") or "hunter2"
        book.keep_secret = secrets.__setitem__
        assert (await run()).exit_code == 0
        assert seen == ["computed", [100, 100, "T-1", "hunter2", 1]]
        assert asked == ["token False", "password False"], "the default of a secret is not shown either"
        assert secrets == {"token": "hunter2", "password": "hunter2"}


def test_hosts_at_the_same_time_in_groups_and_files_there_and_back(tmp_path: Path) -> None:
    registry = Registry()
    most: list[int] = []

    @registry.task("all")
    def everywhere(run: TaskRun) -> None:
        now: set[str] = set()
        lock = threading.Lock()
        together = threading.Barrier(2, timeout=20)

        def work(host: Any) -> None:
            with lock:
                now.add(host.name)
                most.append(len(now))
            together.wait()  # passes only if two are at it
            with lock:
                now.discard(host.name)

        run.on(named("a", "b", "c", "d")).in_groups(2).each(work)
        big = bytes(range(256)) * 10_000
        run.on(named("a")).upload(big, "shared/x", mode=0o600)
        [host] = run.on(named("a"))
        assert host.download("shared/x") == big
        assert host.capture("echo", "a b") == "echo a b"
        assert host.test("false") is False and host.test("true") is True
        with pytest.raises(AppError, match="exit 1 on a"):
            host.run("false")
        with pytest.raises(OperatorError, match="no new release"):
            _ = host.release_path

    registry.after("check", everywhere)

    @on_fleet(tmp_path, "a", "b", "c", "d")
    async def story(agents: dict[str, FakeAgent]) -> None:
        outcome = await task_run(agents, {name: app_spec("web") for name in "abcd"}, registry)()
        assert outcome.exit_code == 0, outcome.error
        assert max(most) == 2


def test_tasks_around_tasks_and_invoke_once() -> None:
    registry = Registry()
    told: list[str] = []
    for name in ("one", "two", "three"):
        registry.task(name)(lambda run, name=name: told.append(name))  # type: ignore[misc]

    @registry.task("all")
    def everything(run: TaskRun) -> None:
        run.invoke("one")
        run.invoke("one")
        run.invoke("two")
        run.invoke("two", again=True)

    registry.before("two", "three")
    asyncio.run(_perform(registry, "all"))
    assert told == ["one", "three", "two", "three", "two"]


async def _perform(registry: Registry, task: str) -> None:
    from midstream.deploy.tasks.performance import Performance
    from midstream.deploy.tasks.seat import Seat

    class Nobody:
        async def call(self, method: str, /, *, idempotent: bool = True, **params: Any) -> dict[str, Any]:
            raise AssertionError(method)

    seats = [Seat("here", app_spec(), Nobody())]
    await Performance(TaskBook(registry), seats, lambda *told: None).perform(task, "")


MISTAKES = [
    ("from midstream.deploy.tasks import Registry\n", "makes no Registry", "deploy.py"),
    (
        "from midstream.deploy.tasks import Registry\nr = Registry()\nr.after('check', 'nobody')\n",
        "no task 'nobody'",
        ":3",
    ),
    (
        "from midstream.deploy.tasks import Registry\nr = Registry()\n\n@r.task('x')\ndef x(run):\n    pass\n"
        "r.after('chekc', x)\n",
        "no such phase",
        ":4",
    ),
    ("from midstream.deploy.tasks import Registry\nr = Registry()\n1 / 0\n", "ZeroDivisionError", ":3"),
    ("from midstream.deploy.tasks import Registry\nr = Registry(\n", "no valid Python", ":2"),
    (
        "from midstream.deploy.tasks import Registry\nr = Registry()\n@r.task('deploy:migrate')\ndef x(run): pass\n",
        "of Midstream itself",
        ":3",
    ),
    (
        "from midstream.deploy.tasks import Registry\nr = Registry()\n@r.task('x')\nasync def x(run): pass\n",
        "plain function",
        ":3",
    ),
]


@pytest.mark.parametrize(("text", "what", "where"), MISTAKES, ids=[what for _, what, _ in MISTAKES])
def test_a_mistake_in_deploy_py_names_its_line(tmp_path: Path, text: str, what: str, where: str) -> None:
    (tmp_path / "deploy.py").write_text(text)
    with pytest.raises(MidstreamError) as caught:
        load_tasks(str(tmp_path))
    assert what in str(caught.value)
    assert where in caught.value.where


def test_a_deploy_py_of_another_tool_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "deploy.py").write_text("import fabric\nraise SystemExit('ran')\n")
    registry, note = load_tasks(str(tmp_path))
    assert registry.tasks == {} and "does not import midstream" in note
    assert not (tmp_path / "__pycache__").exists()
