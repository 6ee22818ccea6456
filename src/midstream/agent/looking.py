"""What the job libraries say of the workers that run here, asked through the step `workers` under the app's uid.

What lives here: who is asked about, for how long, and the latest answers. What must not: what follows from them (the core:
`Observed`), the libraries' records (`steps/workers.py`). Nobody is asked about unless somebody waits for the answer: a start,
a handover, a drain, or `status`. Runs in the agent's loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from midstream.agent.oneshots import Outcome
from midstream.agent.plans import profile_of
from midstream.agent.spawning import account_for, environment, one_shot, step_argv
from midstream.agent.step_requests import request_file
from midstream.core import steps
from midstream.core.events import Look, Observed
from midstream.core.instance import SERVING, InstanceState
from midstream.core.layout import Layout
from midstream.core.messages import SpawnSpec
from midstream.core.names import SpawnKey
from midstream.core.placeholders import fill
from midstream.errors import MidstreamError
from midstream.linux import clock
from midstream.profiles.workers import redis_url

if TYPE_CHECKING:
    from midstream.agent.host import Host
    from midstream.agent.processes import Name, Place3

_FEED_S = 60.0  # a step that nobody stops ends by itself
_PAUSES_S = ((30.0, 0.25), (300.0, 1.0), (float("inf"), 3.0))  # how often is asked, by how long that has gone on
_SETTLED_S = 0.5  # a thread that was just about to begin a job when the flag was set has begun it by then
_IDLE_BEATS_S = 2.0  # an idle worker says so in two heartbeats as far apart: its counts lag behind (PEERS 4)
_LOOK_ONCE_S = 3.0
_FRESH_S = 1.0

Group = tuple[str, str, int]  # app, service, generation


@dataclass(slots=True)
class Seen:
    """The latest answer about one worker. Times are epoch seconds, and that clock may be set at any moment; `..._s`:
    monotonic. quiet_beat: of the first heartbeat that said quiet, quiet_s: when that was seen."""

    listed: bool = False
    quiet: bool = False
    busy: int = 0
    beat: float = 0.0
    jobs: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""
    quiet_beat: float = 0.0
    quiet_s: float = 0.0
    at_s: float = 0.0

    @property
    def is_quiet(self) -> bool:
        return self.listed and self.quiet and not self.trouble and time.monotonic() >= self.quiet_s + _SETTLED_S

    @property
    def is_idle(self) -> bool:
        return self.is_quiet and self.busy == 0 and self.beat >= self.quiet_beat + _IDLE_BEATS_S


@dataclass(slots=True)
class _Feed:
    """One step that is asked about the workers of one generation."""

    wanted: set[tuple[int, int]] = field(default_factory=set)  # slot, attempt
    running: str = ""
    asked: frozenset[tuple[int, int]] = frozenset()
    since_s: float = field(default_factory=time.monotonic)


class Looks:
    """All that is asked and known."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._feeds: dict[Group, _Feed] = {}
        self._seen: dict[tuple[str, str, int, int, int], Seen] = {}
        self._changed = asyncio.Condition()
        self._starting: set[tuple[str, str, int, int, int]] = set()
        self._last = 0

    def look(self, name: Name, effect: Look) -> None:
        """Asks about this worker from now on, for as long as it lives; the core is told."""
        self._want((*name, effect.generation), effect.slot, effect.attempt)

    def _is_needed(self, group: Group, slot: int, attempt: int) -> bool:
        """Whether anybody still waits: for its start, or (`looked`) the core."""
        service = self._host.services.get(group[:2])
        if service is None or self._host.processes.get(group[:2], (group[2], slot, attempt)) is None:
            return False
        if (*group, slot, attempt) in self._starting:
            return True
        mine = [item for item in service.of(group[2]) if (item.slot, item.attempt) == (slot, attempt)]
        return any(item.looked for item in mine)

    async def until_listed(self, name: Name, place: Place3, trouble: list[str]) -> None:
        """Returns when the job library lists the worker. trouble[0] says meanwhile why it does not."""
        key = (*name, *place)
        self._starting.add(key)
        self._want((*name, place[0]), *place[1:])
        try:
            async with self._changed:
                while True:
                    seen = self._seen.get(key)
                    if seen is not None and seen.listed:
                        return
                    trouble[0] = (
                        seen.trouble if seen is not None and seen.trouble else "its job library does not list it"
                    )
                    await self._changed.wait()
        finally:
            self._starting.discard(key)
            self._forget_unneeded((*name, place[0]))

    def seen(self, name: Name, place: Place3) -> Seen | None:
        return self._seen.get((*name, *place))

    def gone(self, name: Name, place: Place3) -> None:
        """The process has ended."""
        self._seen.pop((*name, *place), None)
        self._forget_unneeded((*name, place[0]))

    def _forget_unneeded(self, group: Group) -> None:
        feed = self._feeds.get(group)
        if feed is not None:
            feed.wanted = {item for item in feed.wanted if self._is_needed(group, *item)}
            if not feed.wanted:
                self._stop(feed)

    async def refresh(self, apps: list[str]) -> None:
        """Asks once about workers that nothing is known of just now; waits for the answers, not for long."""
        groups: dict[Group, frozenset[tuple[int, int]]] = {}
        for (app, service_name), service in self._host.services.items():
            for generation in service.generations if app in apps else ():
                group = (app, service_name, generation.number)
                if generation.plan.quiet_signal and group not in self._feeds:
                    alive = [
                        item
                        for item in service.of(generation.number)
                        if item.state in SERVING | {InstanceState.STOPPING}
                    ]
                    stale = [item for item in alive if not self._is_fresh((*group, item.slot, item.attempt))]
                    if stale:
                        groups[group] = frozenset((item.slot, item.attempt) for item in alive)
        asked = [asyncio.ensure_future(self._ask(group, wanted, 0.0, 0.0, _Feed())) for group, wanted in groups.items()]
        if asked:
            await asyncio.wait(asked, timeout=_LOOK_ONCE_S)

    def _is_fresh(self, key: tuple[str, str, int, int, int]) -> bool:
        seen = self._seen.get(key)
        return seen is not None and time.monotonic() < seen.at_s + _FRESH_S

    # -- asking ------------------------------------------------------------------------------------------------------

    def _want(self, group: Group, slot: int, attempt: int) -> None:
        feed = self._feeds.get(group)
        if feed is None:
            feed = self._feeds[group] = _Feed()
            self._host.keep(asyncio.get_running_loop().create_task(self._follow(group, feed)))
        if (slot, attempt) not in feed.wanted:
            feed.wanted.add((slot, attempt))
            self._stop(feed)  # the next one is asked about all

    def _stop(self, feed: _Feed) -> None:
        if feed.running:
            key, feed.running = feed.running, ""
            self._host.keep(asyncio.get_running_loop().create_task(self._stop_step(key)))

    async def _stop_step(self, key: str) -> None:
        try:
            await self._host.one_shots.stop(key)
        except (MidstreamError, OSError):
            pass  # it has ended, or its keeper has

    async def _follow(self, group: Group, feed: _Feed) -> None:
        """Until none of them is left."""
        pause_s = 0.2
        while feed.wanted:
            gone_s = time.monotonic() - feed.since_s
            every_s = next(every for until_s, every in _PAUSES_S if gone_s < until_s)
            wanted = frozenset(feed.wanted)
            trouble = await self._ask(group, wanted, every_s, _FEED_S, feed)
            self._forget_unneeded(group)
            if not trouble:
                pause_s = 0.2
                continue
            for slot, attempt in wanted & feed.wanted:
                self._take(group, slot, attempt, Seen(trouble=trouble))
            await self._tell()
            await asyncio.sleep(pause_s)
            pause_s = min(5.0, pause_s * 2)
        if self._feeds.get(group) is feed:
            del self._feeds[group]

    async def _ask(
        self, group: Group, wanted: frozenset[tuple[int, int]], every_s: float, for_s: float, feed: _Feed
    ) -> str:
        """Runs the step once; "" or why it told nothing."""
        try:
            spec, request = self._request(group, wanted, every_s, for_s)
        except MidstreamError as error:
            return error.what
        if request is None:
            feed.wanted -= wanted  # none of them lives
            return ""
        try:
            with request_file("workers", request) as body:
                feed.running, feed.asked = spec.key, wanted
                outcome = await self._host.one_shots.run(
                    spec, fds=(body,), timeout_s=for_s + 30.0, on_line=lambda line: self._line(group, line)
                )
        except MidstreamError as error:
            return error.what
        was_stopped = feed.running != spec.key
        feed.running = ""
        return "" if was_stopped or outcome.ok else _why(outcome)

    def _request(
        self, group: Group, wanted: frozenset[tuple[int, int]], every_s: float, for_s: float
    ) -> tuple[SpawnSpec, steps.Workers | None]:
        app, name, number = group
        record = self._host.record(app, number)
        service = record.spec.services.get(name) if record is not None else None
        life = profile_of(service).worker if service is not None else None
        if record is None or service is None or life is None:
            raise MidstreamError("no job library is known that tells of it")
        place = self._host.place(app, name, number)
        account = account_for(record.spec, place.owner_uid, self._host.uid, service)
        layout = Layout(record.spec.deploy_to)
        words = {
            "deploy_to": layout.deploy_to,
            "shared": layout.shared,
            "release": layout.release(record.release),
            "run": place.run,
        }
        env = environment(record, account, place, service, {})
        url = fill(redis_url(profile_of(service), service.command, service.shell, service.redis, env), words)
        asked = []
        for slot, attempt in sorted(wanted):
            live = self._host.processes.get((app, name), (number, slot, attempt))
            if live is not None:
                asked.append(steps.Worker(slot, attempt, live.entry.pid, live.entry.start_ticks))
        self._last = max(self._last + 1, int(clock.boottime_s() * 1000))
        key = SpawnKey(app, "+look", self._last, 0, 0)
        step_env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": account.home, "LANG": "C.UTF-8"}
        spec = one_shot(key, step_argv("workers"), step_env, "/", account, self._host.uid, passed_fds=1)
        request = steps.Workers(life.library, url, tuple(asked), every_s, for_s)
        return spec, request if asked else None

    # -- answers -----------------------------------------------------------------------------------------------------

    def _line(self, group: Group, line: str) -> None:
        if not line.startswith(steps.WORKERS_MARK):
            return
        try:
            items = json.loads(line[len(steps.WORKERS_MARK) :])
            found = [(int(item["slot"]), int(item["attempt"]), _read(item)) for item in items]
        except (ValueError, KeyError, TypeError):
            return
        for slot, attempt, seen in found:
            self._take(group, slot, attempt, seen)
        self._forget_unneeded(group)
        self._host.keep(asyncio.get_running_loop().create_task(self._tell()))

    def _take(self, group: Group, slot: int, attempt: int, seen: Seen) -> None:
        place = (group[2], slot, attempt)
        name = group[:2]
        if self._host.processes.get(name, place) is None:
            return
        before = self._seen.get((*name, *place))
        seen.at_s = time.monotonic()
        if seen.quiet:
            known = before is not None and before.quiet_beat
            seen.quiet_s = before.quiet_s if before is not None and known else seen.at_s
            # Of two heartbeats the later one has the earlier time where the clock was set back.
            seen.quiet_beat = min(before.quiet_beat, seen.beat) if before is not None and known else seen.beat
        self._seen[(*name, *place)] = seen
        feed = self._feeds.get(group)
        if feed is None or (slot, attempt) not in feed.wanted:
            return
        self._host.post(name, Observed(*place, seen.is_quiet, seen.is_idle, seen.trouble))
        if seen.quiet and not seen.is_quiet:  # nothing may change until the next heartbeat
            asyncio.get_running_loop().call_later(_SETTLED_S, self._settled, name, place)

    def _settled(self, name: Name, place: Place3) -> None:
        seen = self._seen.get((*name, *place))
        if seen is not None:
            self._host.post(name, Observed(*place, seen.is_quiet, seen.is_idle, seen.trouble))

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _read(item: dict[str, Any]) -> Seen:
    jobs = [
        {"id": str(job["id"]), "name": str(job["name"]), "queue": str(job["queue"]), "since": float(job["since"])}
        for job in item["jobs"]
    ]
    return Seen(
        item["listed"] is True,
        item["quiet"] is True,
        int(item["busy"]),
        float(item["beat"]),
        jobs,
        str(item["trouble"])[:300],
    )


def _why(outcome: Outcome) -> str:
    if outcome.result:
        try:
            steps.read_result(outcome.result)
        except MidstreamError as error:
            return error.what
        except ValueError:
            pass
    return f"the job library could not be asked: {outcome.text} {' / '.join(outcome.tail[-2:])}".strip()
