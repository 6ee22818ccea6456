"""The deployer's runner against the control protocol: the order of calls, each way of failing, lost agents, ^C."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from midstream.core.plan import deploy_plan, rollback_plan
from midstream.core.spec import AppSpec, CommandStep, HealthSpec, ListenSpec, MigrateSpec, ServiceSpec, Source
from midstream.deploy import host_run
from midstream.deploy.client import AgentClient
from midstream.deploy.events import Event, EventKind, Outcome
from midstream.deploy.runner import Deployment, Order, Pack, Target
from midstream.deploy.transport import LocalHost
from midstream.errors import AppError, HostError, LockedError, MidstreamError, OperatorError
from midstream.testing.fake_agent import Answer, Fail, FakeAgent, HangUp, Say, Wait, fleet

R1, R2 = "20261121190501", "20261121190502"
SHA1, SHA2 = "1" * 40, "2" * 40
WEB = ServiceSpec(
    "web",
    ("serve",),
    listen=(ListenSpec("tcp://127.0.0.1:8000", "web"),),
    roles=("web",),
    health=HealthSpec(http="/up"),
)
JOBS = ServiceSpec("jobs", ("work",), roles=("batch",))


def app_spec(*roles: str, reversible: bool | None = None, source: Source = Source.PUSH) -> AppSpec:
    services = {s.name: s for s in (WEB, JOBS) if not roles or set(s.roles) & set(roles)}
    migrate = None if reversible is None else MigrateSpec((CommandStep(("migrate",)),), reversible=reversible)
    return AppSpec(
        "shop", "/srv/shop", "/repo", "production", services=services, roles=roles, migrate=migrate, source=source
    )


class Run:
    """One deploy or rollback over fake hosts, with what it reported."""

    def __init__(self, agents: dict[str, FakeAgent], specs: dict[str, AppSpec], **order: Any) -> None:
        self.events: list[Event] = []
        self.agents = agents
        self.clients = {
            name: AgentClient(LocalHost(name, agent.socket_path), give_up_s=order.pop("give_up_s", 10.0))
            for name, agent in agents.items()
        }
        self.order = {
            "deploy_id": "d1",
            "plan": deploy_plan(specs),
            "specs": specs,
            "user": "anna",
            "pick_release": lambda taken: R1 if R1 not in taken else R2,
            "target": Target(SHA2 if any(a.apps for a in agents.values()) else SHA1, "t" * 40, 1_795_287_901, "main"),
        } | order
        self.deployment = Deployment(Order(**self.order), self.clients, self.events.append)

    async def __call__(self) -> Outcome:
        for client in self.clients.values():
            await client.start()
        try:
            return await asyncio.wait_for(self.deployment.run(), 60)
        finally:
            for client in self.clients.values():
                await client.close()

    def texts(self) -> str:
        return "\n".join(event.text for event in self.events)


async def deploy(agents: dict[str, FakeAgent], specs: dict[str, AppSpec], **order: Any) -> Outcome:
    return await Run(agents, specs, **order)()


def on_fleet(folder: Path, *names: str) -> Callable[[Callable[[dict[str, FakeAgent]], Awaitable[None]]], None]:
    def run(story: Callable[[dict[str, FakeAgent]], Awaitable[None]]) -> None:
        async def main() -> None:
            async with fleet(str(folder), *names) as agents:
                await story(agents)

        asyncio.run(main())

    return run


def assert_nothing_left(agents: dict[str, FakeAgent]) -> None:
    """No host stays locked or in a deploy, and each runs what it has committed."""
    for agent in agents.values():
        for app in agent.apps.values():
            assert app.deploy is None, f"{agent.host} is still in a deploy"
            assert app.running == app.committed


# ---------------------------------------------------------------------- the way forward


def test_a_deploy_takes_at_most_five_round_trips_when_nothing_is_to_be_sent(tmp_path: Path) -> None:
    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        outcome = await deploy(agents, {"here": app_spec()})
        assert outcome.exit_code == 0
        assert outcome.release == R1
        assert agents["here"].methods() == [
            "deploy.open",
            "deploy.update",
            "deploy.publish",
            "deploy.commit",
            "deploy.finish",
        ]
        assert agents["here"].apps["shop"].committed == R1
        assert outcome.hosts[0].generation == 1
        assert outcome.hosts[0].draining == 1
        assert_nothing_left(agents)


def test_the_decision_and_the_end_are_one_call_to_an_agent_that_takes_them(tmp_path: Path) -> None:
    """Not where other hosts have to follow first, nor where the end is not answered with it. What is repeated for a lost
    agent is answered as before."""

    @on_fleet(tmp_path, "here", "there")
    async def story(agents: dict[str, FakeAgent]) -> None:
        here, alone = agents["here"], {"here": agents["here"]}
        for agent in agents.values():
            agent.features = [host_run.FINISH_ALONG]
        here.script("deploy.commit", HangUp())
        first = await deploy(alone, {"here": app_spec()})
        assert (first.exit_code, first.hosts[0].draining) == (0, 1)
        assert (
            here.methods()[-3:] == ["deploy.commit", "deploy.status", "deploy.commit"]
            and here.params_of("deploy.commit")["then"]
        )
        assert_nothing_left(alone)
        here.calls.clear()
        await deploy(agents, {"here": app_spec(), "there": app_spec()}, deploy_id="d2")
        assert "then" not in here.params_of("deploy.commit") and here.methods()[-1] == "deploy.finish"
        here.calls.clear()
        here.script("deploy.commit", Answer({"generation": 9, "release": R1}))  # it could not finish
        await deploy(alone, {"here": app_spec()}, deploy_id="d3")
        assert here.methods()[-2:] == ["deploy.commit", "deploy.finish"]


def test_a_pack_upon_what_is_committed_is_made_while_the_host_checks(tmp_path: Path) -> None:
    """Used when it fits: the host has all that it leaves out, and it is small. Else another one is made."""
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"few objects")
    large.write_bytes(b"x" * (host_run.ALONG_BYTES + 1))
    made: list[str] = []

    def pack(sha: str, have: list[str]) -> Pack:
        made.append("asked")
        return Pack(str(small), small.stat().st_size)

    def upon(path: Path) -> Callable[[str, str], Pack | None]:
        def make(sha: str, revision: str) -> Pack | None:
            made.append(revision)
            if path == tmp_path:
                raise HostError("the disk is full")
            return Pack(str(path), path.stat().st_size)

        return make

    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        here, specs = agents["here"], {"here": app_spec()}
        here.features = [host_run.ALONG]
        expected = [["asked"], [SHA1], [SHA2, "asked"], [SHA2, "asked"]]  # nothing is committed before the first
        for number, path in enumerate((small, small, large, tmp_path)):
            made.clear()
            outcome = await deploy(agents, specs, pack=pack, pack_upon=upon(path), deploy_id=f"d{number}")
            assert (outcome.exit_code, made) == (0, expected[number])
            assert here.apps["shop"].uploads[-1] == b"few objects"


def test_only_what_the_host_lacks_is_sent_in_pieces_and_the_update_says_so(tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    pack.write_bytes(bytes(range(256)) * 4096 * 2 + b"end")
    asked: list[tuple[str, list[str]]] = []

    def make(sha: str, have: list[str]) -> Pack | None:
        asked.append((sha, have))
        return None if sha in have else Pack(str(pack), pack.stat().st_size)

    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, {"here": app_spec()}, pack=make)
        second = await deploy(agents, {"here": app_spec()}, pack=make, deploy_id="d2")
        again = await deploy(agents, {"here": app_spec()}, pack=make, deploy_id="d3")
        assert (second.exit_code, again.exit_code) == (0, 0)
        assert agents["here"].apps["shop"].uploads == [pack.read_bytes()] * 2
        assert asked == [(SHA1, []), (SHA2, [SHA1]), (SHA2, [SHA1, SHA2])]
        assert agents["here"].params_of("deploy.update")["pack"] is False


def test_few_objects_go_with_the_update_to_an_agent_that_takes_them(tmp_path: Path) -> None:
    """One round trip less; what is repeated for a lost agent has them, too."""
    pack = tmp_path / "pack"
    pack.write_bytes(b"few objects")

    @on_fleet(tmp_path, "here", "old")
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["here"].features = [host_run.ALONG]
        agents["here"].script("deploy.update", HangUp())
        specs = {"here": app_spec(), "old": app_spec()}
        outcome = await deploy(agents, specs, pack=lambda sha, have: Pack(str(pack), pack.stat().st_size))
        assert outcome.exit_code == 0
        assert "deploy.upload" not in agents["here"].methods() and "deploy.upload" in agents["old"].methods()
        for agent in agents.values():
            assert agent.apps["shop"].uploads == [b"few objects"]
            assert agent.params_of("deploy.update")["pack"] is True


def test_objects_that_do_not_get_through_end_the_deploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_run, "PIECE_S", 0.1)
    pack = tmp_path / "pack"
    pack.write_bytes(b"x" * 10)

    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["here"].script("deploy.upload", Wait())
        outcome = await deploy(agents, {"here": app_spec()}, pack=lambda sha, have: Pack(str(pack), 10))
        assert isinstance(outcome.error, HostError)
        assert "0 of 10 bytes were taken, and then none for 0.1 s" in outcome.error.what
        assert "deploy.update" not in agents["here"].methods()
        assert_nothing_left(agents)


def test_a_host_that_fetches_is_sent_nothing(tmp_path: Path) -> None:
    def make(sha: str, have: list[str]) -> Pack | None:
        raise AssertionError("no pack is to be made")

    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        outcome = await deploy(agents, {"here": app_spec(source=Source.FETCH)}, pack=make)
        assert outcome.exit_code == 0


def test_all_hosts_get_one_release_id_that_is_free_on_each(tmp_path: Path) -> None:
    specs = {"web1": app_spec("web"), "batch1": app_spec("batch")}

    @on_fleet(tmp_path, "web1", "batch1")
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy({"web1": agents["web1"]}, {"web1": specs["web1"]})
        outcome = await deploy(agents, specs, deploy_id="d2")
        assert outcome.exit_code == 0
        assert {agent.apps["shop"].committed for agent in agents.values()} == {R2}


def test_workers_are_published_before_web_and_the_coordinator_commits_first(tmp_path: Path) -> None:
    specs = {"web1": app_spec("web"), "batch1": app_spec("batch")}

    @on_fleet(tmp_path, "web1", "batch1")
    async def story(agents: dict[str, FakeAgent]) -> None:
        run = Run(agents, specs)
        await run()
        calls = [(e.host, e.step) for e in run.events if e.kind is EventKind.CALL]
        assert calls.index(("batch1", "deploy.publish")) < calls.index(("web1", "deploy.publish"))
        assert calls.index(("web1", "deploy.commit")) < calls.index(("batch1", "deploy.commit"))


def test_the_migration_is_asked_of_the_primary_alone(tmp_path: Path) -> None:
    specs = {"web1": app_spec("web", reversible=True), "db1": app_spec("db", reversible=True)}

    @on_fleet(tmp_path, "web1", "db1")
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, specs)
        asked = {name: agent.params_of("deploy.update")["migrate"] for name, agent in agents.items()}
        assert asked == {"web1": False, "db1": True}


def test_progress_of_the_agent_reaches_the_report(tmp_path: Path) -> None:
    line = {"deploy_id": "d1", "phase": "updated", "step": "deploy:build", "state": "line", "line": "compiling"}
    other = {**line, "deploy_id": "somebody else's", "line": "not ours"}

    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["here"].script("deploy.update", Say((("progress", line), ("progress", other))))
        run = Run(agents, {"here": app_spec()})
        await run()
        assert Event(EventKind.LINE, "here", "updated", "deploy:build", text="compiling") in run.events
        assert "not ours" not in run.texts()


# ---------------------------------------------------------------------- failures

BROKEN = AppError(
    "web did not answer its health check", where="web, generation 2", serving=f"release {R1}", remedy="see the log"
)
FAILURES = [
    ("deploy.open", LockedError("locked by berta since 19:04"), 4),
    ("deploy.open", OperatorError("linked file .env is missing"), 2),
    ("deploy.open", HostError("disk full"), 1),
    ("deploy.upload", HostError("disk full"), 1),
    ("deploy.update", AppError("the build failed"), 1),
    ("deploy.publish", BROKEN, 1),
    ("deploy.commit", HostError("the journal cannot be written"), 1),
    ("deploy.finish", HostError("cannot remove a release"), 5),
]


@pytest.mark.parametrize(("method", "error", "exit_code"), FAILURES, ids=lambda value: str(value)[:40])
def test_each_failing_call_has_its_exit_code_and_leaves_nothing_behind(
    tmp_path: Path, method: str, error: MidstreamError, exit_code: int
) -> None:
    """And the old release still serves; but for a failing finish, where the new one is committed."""
    pack = tmp_path / "pack"
    pack.write_bytes(b"objects")

    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, {"here": app_spec()}, deploy_id="d0")
        agents["here"].script(method, Fail(error))
        make = lambda sha, have: Pack(str(pack), 7)  # noqa: E731
        outcome = await deploy(agents, {"here": app_spec()}, pack=make)
        assert outcome.exit_code == exit_code
        assert outcome.error is not None
        text = str(outcome.error)
        assert error.what in text
        app = agents["here"].apps["shop"]
        if method == "deploy.finish":
            assert app.committed == R2
            assert "midstream status --check" in text
            return
        assert app.committed == app.running == R1
        assert "here" in text
        assert outcome.error.remedy
        assert_nothing_left(agents)
        if method not in ("deploy.open", "deploy.upload"):
            assert agents["here"].params_of("deploy.finish")["outcome"] == "failed"
            assert R1 in outcome.error.serving


def test_every_host_on_which_something_was_begun_is_put_back_and_all_are_freed(tmp_path: Path) -> None:
    specs = {"web1": app_spec("web"), "batch1": app_spec("batch"), "db1": app_spec("db")}

    @on_fleet(tmp_path, *specs)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, specs, deploy_id="d0")
        agents["web1"].script("deploy.publish", Fail(BROKEN))
        for agent in agents.values():
            agent.calls.clear()
        outcome = await deploy(agents, specs, plan=deploy_plan(specs, max_parallel=1))
        assert outcome.exit_code == 1
        assert all("deploy.revert" in agent.methods() for agent in agents.values())
        assert {agent.methods()[-1] for agent in agents.values()} == {"deploy.finish"}
        assert {agent.apps["shop"].running for agent in agents.values()} == {R1}
        assert_nothing_left(agents)


def test_a_host_that_cannot_be_put_back_is_said_loudly(tmp_path: Path) -> None:
    specs = {"web1": app_spec("web"), "batch1": app_spec("batch")}

    @on_fleet(tmp_path, *specs)
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["web1"].script("deploy.publish", Fail(BROKEN))
        agents["batch1"].script("deploy.revert", Fail(HostError("fork failed")))
        outcome = await deploy(agents, specs)
        assert outcome.exit_code == 5
        assert "batch1 was NOT put back: fork failed" in str(outcome.error)
        assert BROKEN.what in str(outcome.error)


@pytest.mark.parametrize(
    ("reversible", "words"),
    [
        (True, [f"schema: {R2}, code: {R1}"]),
        (
            False,
            [f"schema: {R2} (the migration says `reversible = false`), code: {R1}", "mend the new code at once"],
        ),
    ],
    ids=["reversible", "not reversible"],
)
def test_a_migration_that_stays_is_exit_5_and_names_schema_and_code(
    tmp_path: Path, reversible: bool, words: list[str]
) -> None:
    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["here"].migrates = True
        spec = {"here": app_spec(reversible=reversible)}
        await deploy(agents, spec, deploy_id="d0")
        agents["here"].script("deploy.publish", Fail(BROKEN))
        outcome = await deploy(agents, spec)
        assert outcome.exit_code == 5
        for word in words:
            assert word in str(outcome.error)


def test_no_way_back_over_a_migration_that_cannot_be_reversed(tmp_path: Path) -> None:
    """The proven host goes on with the new release: the old code cannot work with the new schema."""
    specs = {"db1": app_spec("db", "batch", reversible=False), "web1": app_spec("web", reversible=False)}

    @on_fleet(tmp_path, *specs)
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["db1"].migrates = True
        agents["web1"].script("deploy.publish", Fail(BROKEN))
        outcome = await deploy(agents, specs)
        assert outcome.exit_code == 5
        assert agents["db1"].apps["shop"].committed == R1
        assert "deploy.revert" not in agents["db1"].methods()
        assert "cannot be reversed" in str(outcome.error)


def test_a_handover_in_hand_is_not_cut_where_the_way_back_is_refused(tmp_path: Path) -> None:
    """It would put the old code back on a schema that it cannot work with."""
    specs = {"db1": app_spec("db", "web", reversible=False), "web1": app_spec("web", reversible=False)}

    @on_fleet(tmp_path, *specs)
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["db1"].migrates = True
        agents["db1"].script("deploy.publish", Wait())
        agents["web1"].script("deploy.publish", Fail(BROKEN))
        task = asyncio.create_task(Run(agents, specs)())
        await agents["web1"].wait_for("deploy.publish")
        with suppress(TimeoutError):  # what was cut would be put back at once
            await asyncio.wait_for(agents["db1"].wait_for("deploy.revert"), 0.5)
        agents["db1"].release()
        outcome = await task
        assert outcome.exit_code == 5
        assert agents["db1"].apps["shop"].committed == R1
        assert "deploy.revert" not in agents["db1"].methods()
        assert "cannot be reversed" in str(outcome.error)


def test_a_host_that_refuses_the_decision_after_the_coordinator_took_it_is_behind(tmp_path: Path) -> None:
    specs = {"web1": app_spec("web"), "batch1": app_spec("batch")}

    @on_fleet(tmp_path, *specs)
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["batch1"].script("deploy.commit", Fail(HostError("disk full")))
        outcome = await deploy(agents, specs)
        assert outcome.exit_code == 5
        assert "batch1" in str(outcome.error)
        assert "midstream resume production" in str(outcome.error)
        assert "deploy.revert" not in agents["web1"].methods()
        assert agents["web1"].apps["shop"].committed == R1


def test_running_processes_of_another_release_after_the_commit_are_exit_5(tmp_path: Path) -> None:
    drift = {"service": "web", "slot": 0, "pid": 7, "kind": "release", "expected": R1, "found": "20200101000000"}

    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["here"].script("deploy.finish", Answer({"removed": [], "drift": [drift], "draining": 0}))
        outcome = await deploy(agents, {"here": app_spec()})
        assert outcome.exit_code == 5
        assert "web/0 pid 7" in str(outcome.error)


def test_hosts_that_made_different_releases_fail_the_deploy(tmp_path: Path) -> None:
    specs = {"web1": app_spec("web"), "batch1": app_spec("batch")}

    @on_fleet(tmp_path, *specs)
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["batch1"].script("deploy.update", Answer({"release": R2, "seconds": 0.1, "migrated": False}))
        outcome = await deploy(agents, specs)
        assert outcome.exit_code == 1
        assert f"{R2} on batch1" in str(outcome.error)
        assert_nothing_left(agents)


# ---------------------------------------------------------------------- lost agents


@pytest.mark.parametrize("done", [False, True], ids=["before the work", "before the answer"])
@pytest.mark.parametrize("method", ["deploy.open", "deploy.update", "deploy.publish", "deploy.commit", "deploy.finish"])
def test_an_agent_that_is_killed_in_a_call_is_asked_again(tmp_path: Path, method: str, done: bool) -> None:
    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["here"].script(method, HangUp(done=done))
        run = Run(agents, {"here": app_spec()})
        outcome = await run()
        assert outcome.exit_code == 0, outcome.error
        assert agents["here"].apps["shop"].committed == R1
        assert agents["here"].methods().count(method) == 2
        assert "lost the agent" in run.texts()
        assert "the agent is back" in run.texts()


def test_after_reconnecting_the_deploy_is_attached_to_even_while_its_host_waits(tmp_path: Path) -> None:
    """Else its lease would run out while another host works."""
    specs = {"web1": app_spec("web"), "batch1": app_spec("batch")}

    @on_fleet(tmp_path, *specs)
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["web1"].script("deploy.publish", Wait())
        task = asyncio.create_task(Run(agents, specs)())
        await agents["web1"].wait_for("deploy.publish")
        await agents["batch1"].go_away()
        await agents["batch1"].come_back()
        await agents["batch1"].wait_for("deploy.status")
        agents["web1"].release()
        outcome = await task
        assert outcome.exit_code == 0
        assert agents["batch1"].params_of("deploy.status")["deploy_id"] == "d1"


def test_an_agent_that_stays_away_before_the_decision_fails_the_deploy(tmp_path: Path) -> None:
    specs = {"web1": app_spec("web"), "batch1": app_spec("batch")}

    @on_fleet(tmp_path, *specs)
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["web1"].script("deploy.publish", HangUp(stay_away=True))
        outcome = await deploy(agents, specs, give_up_s=0.3)
        assert outcome.exit_code == 5
        assert "web1 could not be told to go back" in str(outcome.error)
        assert "by itself within" in str(outcome.error)
        assert agents["batch1"].apps["shop"].running == ""
        assert agents["batch1"].apps["shop"].deploy is None


def test_a_host_that_is_lost_while_the_deploy_waits_for_another_fails_it_at_once(tmp_path: Path) -> None:
    """Workers come first: batch1 is proven and has nothing to do while web1's handover goes on."""
    specs = {"batch1": app_spec("batch"), "web1": app_spec("web")}

    @on_fleet(tmp_path, *specs)
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["web1"].script("deploy.publish", Wait())  # nobody releases it
        task = asyncio.create_task(Run(agents, specs, give_up_s=0.3)())
        await agents["web1"].wait_for("deploy.publish")
        await agents["batch1"].go_away()
        outcome = await task
        assert outcome.exit_code == 5
        assert "batch1" in str(outcome.error) and "by itself within" in str(outcome.error)
        assert "deploy.commit" not in agents["web1"].methods()
        assert agents["web1"].apps["shop"].running == "" and agents["web1"].apps["shop"].deploy is None


def test_a_coordinator_lost_in_the_decision_is_undecided_and_nobody_is_put_back(tmp_path: Path) -> None:
    specs = {"web1": app_spec("web"), "batch1": app_spec("batch")}

    @on_fleet(tmp_path, *specs)
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["web1"].script("deploy.commit", HangUp(done=True, stay_away=True))
        outcome = await deploy(agents, specs, give_up_s=0.3)
        assert outcome.exit_code == 5
        assert "undecided" in str(outcome.error)
        assert "midstream resume production" in str(outcome.error)
        assert "deploy.revert" not in agents["batch1"].methods()
        assert "deploy.finish" not in agents["batch1"].methods()


def test_an_agent_that_dies_at_each_attempt_is_not_asked_for_ever(tmp_path: Path) -> None:
    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["here"].script("deploy.publish", *[HangUp()] * 50)
        outcome = await deploy(agents, {"here": app_spec()})
        assert outcome.exit_code == 1
        assert "deploy.publish, 8 times" in str(outcome.error)
        assert_nothing_left(agents)


# ---------------------------------------------------------------------- ^C


def test_interrupting_once_puts_back_and_exits_130(tmp_path: Path) -> None:
    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, {"here": app_spec()}, deploy_id="d0")
        agents["here"].script("deploy.publish", Wait())
        run = Run(agents, {"here": app_spec()})
        task = asyncio.create_task(run())
        await agents["here"].wait_for("deploy.publish", times=2)
        run.deployment.interrupt()
        outcome = await task
        assert outcome.exit_code == 130
        assert f"release {R1}" in str(outcome.error)
        assert agents["here"].methods()[-2:] == ["deploy.revert", "deploy.finish"]
        assert agents["here"].params_of("deploy.finish")["outcome"] == "interrupted"
        assert_nothing_left(agents)


def test_interrupting_twice_leaves_at_once_and_says_who_puts_it_back(tmp_path: Path) -> None:
    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, {"here": app_spec()}, deploy_id="d0")
        agents["here"].script("deploy.publish", Wait())
        agents["here"].script("deploy.revert", Wait())
        run = Run(agents, {"here": app_spec()})
        task = asyncio.create_task(run())
        await agents["here"].wait_for("deploy.publish", times=2)
        run.deployment.interrupt()
        await agents["here"].wait_for("deploy.revert")
        run.deployment.interrupt()
        outcome = await task
        assert outcome.exit_code == 130
        assert "by themselves within 15 s" in str(outcome.error)
        assert "deploy.finish" not in agents["here"].methods()[5:]
        agents["here"].expire_leases()
        assert_nothing_left(agents)


def test_interrupting_after_the_decision_goes_on_to_the_end(tmp_path: Path) -> None:
    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["here"].script("deploy.commit", Wait())
        run = Run(agents, {"here": app_spec()})
        task = asyncio.create_task(run())
        await agents["here"].wait_for("deploy.commit")
        run.deployment.interrupt()
        agents["here"].release()
        outcome = await task
        assert outcome.exit_code == 0
        assert agents["here"].apps["shop"].committed == R1
        assert "the decision was made already" in run.texts()


def test_interrupting_while_waiting_for_the_lock(tmp_path: Path) -> None:
    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["here"].script("deploy.open", Wait())
        run = Run(agents, {"here": app_spec()}, wait=True)
        task = asyncio.create_task(run())
        await agents["here"].wait_for("deploy.open")
        run.deployment.interrupt()
        assert (await task).exit_code == 130
        assert agents["here"].params_of("deploy.open")["wait"] is True


# ---------------------------------------------------------------------- rollback, resume


async def two_releases(agents: dict[str, FakeAgent], specs: dict[str, AppSpec]) -> None:
    await deploy(agents, specs, deploy_id="d1")
    await deploy(agents, specs, deploy_id="d2")


def test_a_rollback_goes_to_the_last_proven_release_on_all_hosts(tmp_path: Path) -> None:
    specs = {"web1": app_spec("web"), "batch1": app_spec("batch")}

    @on_fleet(tmp_path, *specs)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await two_releases(agents, specs)
        outcome = await deploy(agents, specs, deploy_id="d3", plan=rollback_plan(specs), target=None)
        assert outcome.exit_code == 0
        assert (outcome.release, outcome.revision) == (R1, SHA1)
        assert agents["batch1"].params_of("deploy.select")["release"] == R1, "the others follow the coordinator"
        assert {agent.apps["shop"].committed for agent in agents.values()} == {R1}


@pytest.mark.parametrize("behind", ["web1", "batch1"])
def test_a_rollback_goes_to_a_release_that_all_hosts_have_and_says_so(tmp_path: Path, behind: str) -> None:
    """A host was left out of the second deploy: the first is what all can go back to."""
    specs = {"web1": app_spec("web"), "batch1": app_spec("batch")}

    @on_fleet(tmp_path, *specs)
    async def story(agents: dict[str, FakeAgent]) -> None:
        await two_releases(agents, specs)
        last = "20261121190503"
        await deploy(agents, specs, deploy_id="d3", pick_release=lambda taken: last)
        app = agents[behind].apps["shop"]
        app.releases = [row for row in app.releases if row["release"] != R2]
        run = Run(agents, specs, deploy_id="d4", plan=rollback_plan(specs), target=None)
        outcome = await run()
        assert outcome.exit_code == 0, outcome.error
        assert outcome.release == R1 and {agent.apps["shop"].committed for agent in agents.values()} == {R1}
        assert f"{R2} is not proven on {behind}" in run.texts()


def test_a_rollback_to_nowhere_changes_nothing(tmp_path: Path) -> None:
    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        spec = {"here": app_spec()}
        await deploy(agents, spec)
        outcome = await deploy(agents, spec, deploy_id="d2", plan=rollback_plan(spec), target=None)
        assert outcome.exit_code == 2
        assert agents["here"].apps["shop"].committed == R1
        assert_nothing_left(agents)


def test_the_same_order_again_carries_a_deploy_of_a_killed_deployer_to_its_end(tmp_path: Path) -> None:
    """That is what `midstream resume` does: every call is idempotent."""

    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["here"].script("deploy.publish", Wait())
        killed = asyncio.create_task(Run(agents, {"here": app_spec()})())
        await agents["here"].wait_for("deploy.publish")
        killed.cancel()
        await asyncio.gather(killed, return_exceptions=True)
        outcome = await deploy(agents, {"here": app_spec()}, release=R1)
        assert outcome.exit_code == 0, outcome.error
        assert agents["here"].apps["shop"].committed == R1
        assert len(agents["here"].apps["shop"].releases) == 1


def test_secrets_go_to_the_host_and_nowhere_else(tmp_path: Path) -> None:
    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        run = Run(agents, {"here": app_spec()}, secrets={"SECRET_KEY": "hunter2hunter2"})
        await run()
        assert agents["here"].apps["shop"].secrets == {"SECRET_KEY": "hunter2hunter2"}
        assert "hunter2" not in repr(run.events)


def test_hosts_that_were_only_opened_are_freed_and_nothing_is_put_back(tmp_path: Path) -> None:
    specs = {"web1": app_spec("web"), "batch1": app_spec("batch")}

    @on_fleet(tmp_path, *specs)
    async def story(agents: dict[str, FakeAgent]) -> None:
        agents["batch1"].script("deploy.open", Fail(LockedError("locked by berta")))
        run = Run(agents, specs)
        agents["web1"].script("deploy.open", Say(()))
        outcome = await run()
        assert outcome.exit_code == 4
        assert "deploy.revert" not in agents["web1"].methods()
        assert_nothing_left({"web1": agents["web1"]})


def test_a_deploy_that_somebody_aborted_is_not_reported_as_not_put_back(tmp_path: Path) -> None:
    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        await deploy(agents, {"here": app_spec()}, deploy_id="d0")
        agents["here"].script("deploy.publish", Wait())
        task = asyncio.create_task(Run(agents, {"here": app_spec()})())
        await agents["here"].wait_for("deploy.publish", times=2)
        agents["here"].expire_leases()
        agents["here"].release()
        outcome = await task
        assert outcome.exit_code == 4
        assert "is over" in str(outcome.error)
        assert "NOT put back" not in str(outcome.error)
        assert_nothing_left(agents)


def test_warnings_of_the_agent_are_told(tmp_path: Path) -> None:
    @on_fleet(tmp_path, "here")
    async def story(agents: dict[str, FakeAgent]) -> None:
        said = {"removed": [], "drift": [], "draining": 0, "warnings": ["cleanup: disk is slow"]}
        agents["here"].script("deploy.finish", Answer(said))
        run = Run(agents, {"here": app_spec()})
        assert (await run()).exit_code == 0
        assert "cleanup: disk is slow" in run.texts()
