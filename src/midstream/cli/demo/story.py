"""The story of the demo, scene by scene: prepare, deploy, disturb, fail, go back, and look at the evidence.

Here: the order of things and what is expected of each. How each is done is in the modules beside it. Runs in the
demo's event loop; whatever happens, the processes it started end with it.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from midstream.cli.demo import commands, wheels
from midstream.cli.demo.board import Board, Handover, Scene, SceneState
from midstream.cli.demo.clients import Clients, Sample, Seen
from midstream.cli.demo.evidence import Fact, Reign, Verdict, judge, read_log, reigns
from midstream.cli.demo.orders import OrderBook, read_orders
from midstream.cli.demo.place import Place, free_port, python
from midstream.cli.demo.project_kind import Change, ProjectKind, Prospect
from midstream.cli.demo.repository import Repository
from midstream.cli.demo.saboteur import Saboteur
from midstream.cli.demo.traffic import Group
from midstream.cli.demo.watch import Watch
from midstream.errors import EXIT_ATTENTION, EXIT_FAILED, EXIT_OK, HostError

DRAIN_TIMEOUT_S = 30.0
# What a deploy of a bad release may end with: 1, or 5 when migrations of the new release have been run before.
REFUSED = (EXIT_FAILED, EXIT_ATTENTION)
CALM_S = 1.5  # traffic before the first handover and after the last one, for comparison


@dataclass(frozen=True, slots=True)
class Ending:
    """All that the report is made from. reigns: what was committed when. drift: complaints of `status --check`."""

    board: Board
    seen: tuple[Seen, ...]
    verdict: Verdict
    reigns: tuple[Reign, ...]
    orders: OrderBook | None
    drift: str

    @property
    def requests(self) -> int:
        return sum(len(seen.samples) for seen in self.seen)

    @property
    def failed(self) -> int:
        return sum(seen.failed for seen in self.seen)

    @property
    def good(self) -> bool:
        """Nothing failed, nothing stale, and each deploy ended as it was meant to."""
        orders = self.orders is None or not self.orders.lost
        story = all(handover.as_meant for handover in self.board.handovers)
        stale = self.verdict.stale or self.verdict.stale_jobs or self.drift
        return bool(self.requests) and not self.failed and not stale and orders and story

    def during(self, handover: Handover) -> list[Sample]:
        """The requests that were in hand at some moment of the handover, its drain included."""
        end = max(handover.decided, handover.drained)
        return [
            sample
            for seen in self.seen
            for sample in seen.samples
            if handover.begin and sample.start < end and sample.start + sample.seconds > handover.begin
        ]


class Story:
    """`luck` decides when the saboteur strikes."""

    def __init__(self, kind: ProjectKind, place: Place, board: Board, luck: random.Random) -> None:
        self._kind = kind
        self._place = place
        self._board = board
        self._port = free_port()
        self._facts: list[Fact] = []
        self._watch = Watch(place.places.socket, board, self._facts.append)
        self._saboteur = Saboteur(board, self._watch, luck)
        self._clients = Clients(
            f"tcp://127.0.0.1:{self._port}", kind.traffic.host, groups_of(kind), place.folder, board
        )
        self._repository: Repository | None = None

    async def tell(self) -> Ending:
        """From the empty folder to the evidence. Raises MidstreamError where the demo itself cannot go on."""
        titles = _titles(self._kind)
        self._board.scenes = [Scene(title) for title in titles]
        scenes = iter(self._board.scenes)
        try:
            async with self._scene(next(scenes)):
                await self._prepare()
            await self._deploy(next(scenes), self._kind.changes[0], "release 1")
            self._insist(self._board.handovers[0])
            await self._clients.start()
            self._board.say("clients begin: keep-alive and closing ones; from here on each answer counts", "cyan")
            self._saboteur.start()
            await asyncio.sleep(CALM_S)
            for number, change in enumerate(self._kind.changes[1:], start=2):
                kill_agent = number == 3
                await self._deploy(next(scenes), change, f"release {number}", kill_agent=kill_agent)
            await self._rollback(next(scenes))
            async with self._scene(next(scenes)):
                return await self._end()
        finally:
            await self._saboteur.end()
            await self._clients.end()
            await self._watch.end()

    @asynccontextmanager
    async def _scene(self, scene: Scene) -> AsyncIterator[Scene]:
        scene.state, scene.began = SceneState.RUNNING, time.monotonic()
        try:
            yield scene
        except BaseException:
            scene.state, scene.ended = SceneState.FAILED, time.monotonic()
            raise
        scene.ended = time.monotonic()
        if scene.state is SceneState.RUNNING:
            scene.state = SceneState.DONE

    async def _prepare(self) -> None:
        place, board = self._place, self._board
        board.say(f"everything is in {place.folder}")
        pip: list[str] = []
        if self._kind.wheels:
            began = time.monotonic()
            pip = await wheels.installer(place.folder / "pip", board.say)
            names = await wheels.fetch(pip, self._kind.wheels, place.deploy_to / "shared" / "wheels")
            board.say(f"{len(names)} wheels from the package index in {time.monotonic() - began:.1f} s")
        key = place.folder / "secret-key"
        key.write_text(secrets.token_urlsafe(32), encoding="ascii")
        key.chmod(0o600)
        words = {
            "repository": str(place.project),
            "deploy_to": str(place.deploy_to),
            "port": str(self._port),
            "python": python(),
            "pip": " ".join(pip),
            "key_file": str(key),
        }
        self._repository = Repository(place.project, words)
        await self._repository.make()
        client = await place.start()
        board.say(f"a private agent runs: pid {client.hello['pid']}, its keeper {client.hello['keeper']['pid']}")
        await client.close()
        self._watch.start()

    async def _deploy(self, scene: Scene, change: Change, label: str, *, kill_agent: bool = False) -> None:
        assert self._repository is not None
        async with self._scene(scene):
            revision = await self._repository.commit(change)
            self._board.say(f"git commit: {revision[:10]} “{change.subject}”")
            handover = Handover(label, "deploy", change.prospect)
            await self._run(scene, handover, kill_agent=kill_agent)

    @staticmethod
    def _insist(first: Handover) -> None:
        """Without release 1 there is nothing to show."""
        if not first.committed:
            raise HostError(
                "release 1 of the demo could not be deployed",
                detail=first.reason,
                remedy="`midstream demo --keep` leaves the folder, and the agent's log in it, for a look",
            )

    async def _rollback(self, scene: Scene) -> None:
        async with self._scene(scene):
            await self._run(scene, Handover("back to release 2", "rollback", Prospect.GOOD), kill_agent=False)

    async def _run(self, scene: Scene, handover: Handover, *, kill_agent: bool) -> None:
        """One `midstream deploy` or `rollback`, disturbed, with what came of it."""
        board, place = self._board, self._place
        board.handovers.append(handover)
        board.say(f"$ midstream {handover.command}", "bold")
        began = time.monotonic()

        def on_row(row: dict[str, Any]) -> None:
            self._heed(row, handover, kill_agent)

        done = await commands.run(
            [handover.command, "--json"], folder=place.project, env=place.environment, on_row=on_row
        )
        handover.whole_s = time.monotonic() - began
        summary = done.summary
        handover.committed = done.code == 0
        if not handover.decided:
            handover.decided = time.monotonic()
        error = summary.get("error") or next((row for row in done.rows if row.get("type") == "error"), None) or {}
        told = "\n".join(str(error[name]) for name in ("what", "detail") if error.get(name))
        handover.reason = told or ("" if done.code == 0 else done.stderr.strip())
        handover.as_meant = done.code in ((EXIT_OK,) if handover.prospect is Prospect.GOOD else REFUSED)
        self._conclude(scene, handover, summary)

    def _heed(self, row: dict[str, Any], handover: Handover, kill_agent: bool) -> None:
        """Each row of the deploy as it comes: the handover's moments, and what the screen says."""
        kind, text = row.get("type"), str(row.get("text", ""))
        if kind == "plan":
            handover.deploy_id = row["deploy_id"]
        if row.get("release") and not handover.release:
            handover.release = row["release"]
            self._board.labels.setdefault(handover.release, handover.label)
        step = row.get("step")
        if kind == "begin" and _is_handover(row) and not handover.begin:
            handover.begin = time.monotonic()
            if handover.label != "release 1":
                self._saboteur.handover_began()
            if kill_agent:
                self._saboteur.kill_agent_soon()
        elif _is_decision(row):
            handover.decided = time.monotonic()
        if kind == "note":
            self._board.say(f"  {text.partition(chr(10))[0]}", "bright_black")
        elif kind == "end" and row.get("seconds", 0) >= 0.05:
            self._board.say(f"  {row.get('phase')}: {step} {row['seconds']:.1f} s", "bright_black")

    def _conclude(self, scene: Scene, handover: Handover, summary: dict[str, Any]) -> None:
        board = self._board
        first = handover.reason.partition("\n")[0]
        if handover.committed:
            board.say(f"{handover.label} is committed, the handover took {handover.took_s:.1f} s", "green")
        else:
            board.say(f"put back: {first}", "yellow" if handover.as_meant else "red")
        if not handover.as_meant:
            scene.state = SceneState.FAILED
            meant = "go through" if handover.prospect is Prospect.GOOD else f"be refused ({handover.prospect.value})"
            board.say(f"this deploy was to {meant}\n{handover.reason}", "red")

    async def _end(self) -> Ending:
        board, place = self._board, self._place
        await asyncio.sleep(CALM_S)
        await self._saboteur.end()
        await self._drained()
        seen = await self._clients.stop()
        board.requests = sum(len(one.samples) for one in seen)
        board.failed = sum(one.failed for one in seen)
        orders = None
        if self._kind.database:
            orders = await read_orders(place.deploy_to / "shared" / self._kind.database)
        check = await commands.run(["status", "--check", "--json"], folder=place.project, env=place.environment)
        drift = "" if check.code == 0 else check.stderr.strip() or f"midstream status --check: exit code {check.code}"
        facts = await self._watch.facts()
        released = {handover.deploy_id: handover.release for handover in board.handovers if handover.release}
        agent_killed = [board.wall_offset_s + kill.time for kill in board.kills if kill.what == "agent"]
        spans = reigns(facts, released, agent_killed)
        log = place.deploy_to / "shared" / "log" / "processes.jsonl"
        began, jobs = read_log(log.read_text(encoding="utf-8").splitlines())
        self._mark_drains(facts)
        return Ending(board, tuple(seen), judge(began, jobs, spans), tuple(spans), orders, drift)

    async def _drained(self) -> None:
        """Until only committed generations have processes: the end of the last handover."""
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        while any(one.state != "committed" for one in self._board.processes) or not self._board.processes:
            if time.monotonic() > deadline:
                raise HostError(
                    f"an old generation still drains after {DRAIN_TIMEOUT_S:g} s",
                    where="the demo's agent",
                    remedy="midstream demo again, on a machine with less to do",
                )
            await asyncio.sleep(0.2)

    def _mark_drains(self, facts: list[Fact]) -> None:
        """When the old web generation of each handover was gone."""
        offset = self._board.wall_offset_s
        retired = [fact.time - offset for fact in facts if fact.service == "web" and fact.text == "draining -> retired"]
        for handover in self._board.handovers[1:]:  # the first replaced nothing
            if handover.committed:
                handover.drained = next((moment for moment in retired if moment > handover.begin), 0.0)


def _is_decision(row: dict[str, Any]) -> bool:
    """Whether this row of a deploy says that its handover is over: committed, or put back."""
    if row.get("type") == "state":
        return row.get("text") in ("committed", "reverted")
    return row.get("type") == "end" and _is_handover(row) and row.get("ok") is False


def _is_handover(row: dict[str, Any]) -> bool:
    return str(row.get("step", "")).startswith("deploy:handover:")


def groups_of(kind: ProjectKind) -> tuple[Group, ...]:
    """The clients that are sent to the project: fast pages, a slow page so that a request is always in hand, orders."""
    traffic = kind.traffic
    groups = [
        Group("page", traffic.page, keep_alive=4, closing=4, pause_s=0.12),
        Group("slow page", traffic.slow_page, keep_alive=1, closing=1, pause_s=0.1, slow=True),
    ]
    if traffic.order:
        groups.append(Group("order", traffic.order, keep_alive=1, closing=1, pause_s=0.8, method="POST"))
    return tuple(groups)


def _titles(kind: ProjectKind) -> list[str]:
    deploys = [
        f"Deploy release {number}" + ("" if change.prospect is Prospect.GOOD else f", which {_which(change.prospect)}")
        for number, change in enumerate(kind.changes, start=1)
    ]
    deploys[1] += ", worker killed meanwhile"
    deploys[2] += ", agent killed meanwhile"
    return ["Make the project and an agent", *deploys, "Roll back", "Look at the evidence"]


def _which(prospect: Prospect) -> str:
    return prospect.value
