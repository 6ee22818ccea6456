"""The case with Midstream, under a storm of kills: Sidekiq as a service of the agent, or owned by Monit and held.

Whether all went well is not asked of Midstream alone: it is told by what the Sidekiqs wrote, by /proc, by Monit and by Redis.
Of the agents' databases the times of the commits are read, on the clock that the Sidekiqs write by.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from article_counts import Counts, History, Strike, Turn, count
from article_hosts import DEPLOY_TO, JOBS_LOG, MONITRC, REDIS_URL, SIDEKIQ, Batch, Yard, yard
from fleet import kill_session
from machine import wait_for

from midstream.errors import EXIT_ATTENTION

PATIENCE_S = 90.0
_DATABASE = "var/lib/midstream/agent.db"
_HOSTS = """[stages.production]
hosts = [{ address = "batch1", roles = ["batch"] }, { address = "batch2", roles = ["batch"] }]
"""
_TOP = f'app = "shop"\nrepository = "."\ndeploy_to = "{DEPLOY_TO}"\n'
AGENT = f"""{_TOP}
[services.jobs]
command = "{SIDEKIQ}"
roles = ["batch"]
drain_timeout = "30s"
start_timeout = "60s"
stop_timeout = "10s"
[env]
JOBS_LOG = "{JOBS_LOG}"
REDIS_URL = "{REDIS_URL}"
LANG = "C.UTF-8"
{_HOSTS}"""
MONIT = f"""{_TOP}
[[holds]]
supervisor = "monit"
service = "sidekiq"
from = "after check"
to = "after finishing"
control = "{MONITRC}"
quiet = "TSTP"
quiet_timeout = "20s"
min_uptime = "4s"
roles = ["batch"]
{_HOSTS}"""


@dataclass
class Storm:
    """What came of the deploys. exits: of `deploy`, -9 for a deployer that was killed. trouble: what must not be, in words."""

    deploys: int = 0
    exits: Counter[int] = field(default_factory=Counter)
    resumed: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    strikes: list[Strike] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    counts: Counts | None = None
    seconds: list[float] = field(default_factory=list)
    commits: int = 0

    def faults(self) -> dict[str, int]:
        """Each of these has to be 0."""
        assert self.counts is not None
        return {
            "processes started on uncommitted code": len(self.counts.strays),
            "jobs begun on old code after the switch": len(self.counts.late),
            "jobs lost": len(self.counts.lost),
            "services left down, quiet, unwatched or on other code": len(self.unsettled),
            "hosts left different": len(self.different),
            "unexpected exits": len(self.unexpected),
        }


@dataclass
class Run:
    here: Yard
    owner: str  # agent, monit
    chance: random.Random
    found: Storm = field(default_factory=Storm)
    histories: dict[str, dict[str, list[Turn]]] = field(default_factory=dict)  # host -> intent -> turns
    usual_s: float = 6.0
    number: int = 0
    tell: Callable[[str], None] = print

    @property
    def is_monit(self) -> bool:
        return self.owner == "monit"

    # ------------------------------------------------------------------ deploying

    def deploy(self, storm: bool) -> int:
        """One commit deployed, with strikes meanwhile; its exit code."""
        self.here.commit()
        self.number += 1
        said = self.here.folder / f"deploy{self.number}.out"
        began_s = time.monotonic()
        with said.open("w") as out:
            process = subprocess.Popen(
                self.here.fleet.argv("deploy", "--wait", "--json"),
                cwd=self.here.repository,
                env=self.here.fleet.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        over = threading.Event()
        striking = threading.Thread(target=self._strike_all, args=(process, said, over))
        if storm:
            striking.start()
        try:
            code = process.wait(300.0)
        except subprocess.TimeoutExpired:
            kill_session(process)
            code = 124
        if code != -signal.SIGKILL:  # what a killed deployer has left is struck, too
            over.set()
        if storm:
            striking.join()
        self._note(code, said.read_text(errors="replace"), time.monotonic() - began_s)
        return code

    def _note(self, code: int, text: str, seconds: float) -> None:
        self.tell(f"deploy {self.number}: exit {code} after {seconds:.1f} s")
        self.found.deploys += 1
        self.found.exits[code] += 1
        if code == 0:
            self.found.seconds.append(seconds)
            self.usual_s = seconds
        elif code != -signal.SIGKILL:
            self.found.reasons[_reason(text)] += 1
        if code not in (0, 1, EXIT_ATTENTION, -signal.SIGKILL):
            self.found.unexpected.append(f"deploy {self.number}: exit {code}: {text[-1500:]}")

    def last(self) -> None:
        """One without a storm, which settles what a killed deployer has left. It is not counted among the deploys."""
        self.here.commit()
        done = self.here.fleet.cli("deploy", "--wait", cwd=self.here.repository)
        if done.code != 0:
            self.found.unexpected.append(f"the last deploy, without a storm: exit {done.code}: {done.text[-1500:]}")

    def afterwards(self, code: int) -> None:
        """A deployer that was killed, or told that something needs attention, is followed by `resume`, or by the next
        deploy; what ended with 0 or 1 has to have left both hosts alike, and well."""
        if code == EXIT_ATTENTION or (code == -signal.SIGKILL and self.chance.random() < 0.5):
            done = self.here.fleet.cli("resume", cwd=self.here.repository)
            self.tell(f"resume: exit {done.code}")
            self.found.resumed[done.code] += 1
            if done.code not in (0, 1, 2, 4):  # 2: nothing to resume; 4: an earlier dead deployer has its lock for 15 s
                self.found.unexpected.append(
                    f"resume after deploy {self.number}: exit {done.code}: {done.text[-1500:]}"
                )
                return
            code = 0 if done.code == 0 else code
        if code in (0, 1):
            self.check(f"after deploy {self.number}, exit {code}")

    # ------------------------------------------------------------------ the storm

    def _strike_all(self, process: subprocess.Popen[Any], said: Path, over: threading.Event) -> None:
        """One to three strikes, spread over the time that a deploy takes."""
        wanted = self.chance.choices(list(_STRIKES), list(_STRIKES.values()), k=self.chance.randint(1, 3))
        times = sorted((self.chance.uniform(0.0, self.usual_s), what) for what in wanted)
        began_s = time.monotonic()
        for at_s, what in times:
            if over.wait(max(0.0, began_s + at_s - time.monotonic())):
                return
            with contextlib.suppress(Exception):  # the victim may be gone by now
                self._strike(what, process, _phase(said) if process.poll() is None else "deployer gone")

    def _strike(self, what: str, process: subprocess.Popen[Any], phase: str) -> None:
        victim, word = what.split()
        batch = self.chance.choice(self.here.batches)
        pid = 0
        if victim == "deployer":
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        elif victim == "agent":
            batch.host.box.run("kill", "-9", str(batch.host.status()["agent"]["pid"]))
        else:
            chosen = self.chance.choice(batch.sidekiqs())
            pid = chosen.inner
            os.kill(chosen.pid, signal.Signals[f"SIG{word}"])
        where = "deployer" if victim == "deployer" else batch.name
        self.found.strikes.append(Strike(where, victim, word, pid, time.time(), phase))

    # ------------------------------------------------------------------ looking

    def check(self, where: str) -> None:
        """Both hosts on one release, by the agent's word and the symlink, and soon by the processes; all is well."""
        seen = {batch.name: (self._release(batch), batch.current()) for batch in self.here.batches}
        if len({release for both in seen.values() for release in both}) != 1:
            self.found.different.append(f"{where}: {seen}")
        for batch in self.here.batches:
            try:
                self._wait_until_well(batch)
            except AssertionError:
                self.found.unsettled.append(f"{where}: {batch.name}: {self._trouble(batch)}")

    def _wait_until_well(self, batch: Batch) -> None:
        wait_for(f"{batch.name} to be well", lambda: self._trouble(batch) == "", PATIENCE_S)

    def _release(self, batch: Batch) -> str:
        def ask() -> str:
            try:
                return batch.host.release()
            except Exception:  # an agent that was just killed
                return ""

        return str(wait_for(f"the agent of {batch.name}", ask))

    def _trouble(self, batch: Batch) -> str:
        """What is not well on a host; "" when all is. Sidekiqs that drain may still be there, quiet."""
        try:
            app = batch.host.app()
        except Exception as error:
            return f"the agent does not answer: {error}"
        serving = [process for process in batch.sidekiqs() if not process.is_quiet]
        if app["deploy"] or app["lock"] or app["drift"]:
            return f"deploy {app['deploy']}, lock {app['lock']}, drift {app['drift']}"
        if [process.release for process in serving] != [app["release"]] or batch.current() != app["release"]:
            return f"{app['release']} is committed, {batch.current()} current; there are {batch.sidekiqs()}"
        if any(row["hold"] for row in (*app["services"], *app["external"])):
            return "it is held"
        if self.is_monit:
            return "" if batch.is_watched() else f"unwatched: {batch.monit('status', 'sidekiq')}"
        service = app["services"][0]
        return "" if service["state"] == "running" and not service["quiet"] else str(service)

    def collect(self) -> None:
        """The turns that the agents have noted by now; old ones go with their releases."""
        for batch in self.here.batches:
            self.histories.setdefault(batch.name, {}).update(turns_of(batch.host.root / _DATABASE))

    def well(self) -> bool:
        return all(self._trouble(batch) == "" for batch in self.here.batches)


_STRIKES = {"sidekiq KILL": 3, "sidekiq TERM": 3, "agent KILL": 3, "deployer KILL": 2}  # how often, relatively


def _phase(said: Path) -> str:
    """Where the deploy is, by its last words."""
    phase = "before"
    for line in said.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            phase = event.get("phase") or (event.get("text") if event.get("type") == "state" else None) or phase
    return str(phase)


def _reason(text: str) -> str:
    """Why a deploy failed, in a line."""
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError):
            error = json.loads(line).get("error")
            if error:
                what = str(error.get("what", error) if isinstance(error, dict) else error)
                return re.sub(r"\d{8}T\d{6}-\w+|\d{14}", "…", what)[:160]
    return text[-160:].strip()


def turns_of(database: Path) -> dict[str, list[Turn]]:
    """Of each intent in an agent's database, which is only read: one that was put back and resumed has several."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20.0)) as db:
        rows = db.execute("SELECT id, body FROM intent").fetchall()
        committed = dict(db.execute("SELECT release, json_extract(body, '$.committed_wall_s') FROM release").fetchall())
        begun = _times(db, "SELECT intent, time FROM journal WHERE step = 'handover' AND what = 'begin' ORDER BY id")
        reverted = _times(db, "SELECT intent, time FROM event WHERE kind = 'revert' ORDER BY id")
    found = {}
    for intent, body in rows:
        seen = json.loads(body)
        release, at_s = seen.get("release", ""), 0.0
        if seen.get("ended") == "committed" or seen["state"] == "committed":
            at_s = committed.get(release, 0.0)
            if not at_s:
                continue  # its release is cleaned up; it was collected before
        end_s = at_s or (0.0 if seen["state"] == "closed" else float("inf"))
        found[intent] = list(lives(release, begun.get(intent, []), reverted.get(intent, []), end_s, bool(at_s)))
    return found


def lives(release: str, begun: list[float], reverted: list[float], end_s: float, committed: bool) -> Iterator[Turn]:
    """Each begin of a handover to its way back; the last one to end_s (0: there is no further one)."""
    last_s = 0.0
    for back_s in reverted:
        start_s = next((at_s for at_s in begun if at_s > last_s), back_s)
        yield Turn(release, min(start_s, back_s), back_s, False)
        last_s = back_s
    if end_s:
        yield Turn(release, next((at_s for at_s in begun if at_s > last_s), end_s), end_s, committed)


def named(histories: Mapping[str, Mapping[str, list[Turn]]]) -> dict[str, dict[str, list[Turn]]]:
    """host -> intent -> turns, each with its release. A resume that was refused before it had a release wrote over that of
    the deploy's first life, in that host's agent only: the other host still has it."""
    names = {
        intent: turn.release
        for intents in histories.values()
        for intent, turns in intents.items()
        for turn in turns
        if turn.release
    }
    return {
        host: {
            intent: [replace(turn, release=turn.release or names.get(intent, "")) for turn in turns]
            for intent, turns in intents.items()
        }
        for host, intents in histories.items()
    }


def _times(db: sqlite3.Connection, query: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for intent, at_s in db.execute(query):
        found.setdefault(intent, []).append(at_s)
    return found


@contextlib.contextmanager
def _begun(owner: str, seed: int) -> Iterator[Run]:
    """The first release runs everywhere."""
    with yard(agents=True) as here:
        run = Run(here, owner, random.Random(seed))
        if run.is_monit:
            for batch in here.batches:
                batch.give_monit()
                batch.host.box.run(
                    *("/opt/midstream/bin/midstream", "agent", "allow"),
                    f"deploy:shop:{DEPLOY_TO}:monit=sidekiq@{MONITRC}",
                )
                batch.start_monit()
        here.commit(MONIT if run.is_monit else AGENT)
        first = here.fleet.cli("deploy", cwd=here.repository)
        if first.code != 0:
            raise RuntimeError(f"the first deploy: exit {first.code}: {first.text[-2000:]}")
        wait_for("all to be well", run.well, PATIENCE_S)
        yield run


def replay(
    owner: str,
    deploys: int,
    *,
    storm: bool,
    seed: int,
    until_s: float = float("inf"),
    keep: Path | None = None,
    tell: Callable[[str], None] = print,
) -> Storm:
    """owner: agent or monit. until_s: no further deploy is begun then (monotonic). keep: a folder for the records of a run
    in which something was wrong. tell: gets a line for each deploy."""
    with _begun(owner, seed) as run:
        run.tell = tell
        try:
            _all_deploys(run, deploys, storm, until_s)
        except BaseException:
            if keep:
                _keep(run, keep)
            raise
        histories = {
            name: History([turn for turns in intents.values() for turn in turns])
            for name, intents in named(run.histories).items()
        }
        found = run.found
        found.commits = sum(turn.committed for turn in histories[run.here.batches[0].name].turns)
        found.counts = count(run.here.lines(), histories, found.strikes, run.here.queue.pushed)
        if keep and any(found.faults().values()):
            _keep(run, keep)
    return found


def _all_deploys(run: Run, deploys: int, storm: bool, until_s: float) -> None:
    with run.here.queue.stream():
        while run.found.deploys < deploys and time.monotonic() < until_s:
            run.afterwards(run.deploy(storm))
            run.collect()
        run.last()
        run.check("at the end")
    run.here.drain()
    run.check("when all jobs were done")
    run.collect()


def _keep(run: Run, folder: Path) -> None:
    """All that tells what happened."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*run.here.folder.glob("*.out"), *(run.here.fleet.root / "home").rglob("*.log")):
        shutil.copy(path, folder)
    for batch in run.here.batches:
        for path in (
            batch.log,
            *(batch.host.root / "var/lib/midstream").glob("agent.db*"),
            batch.host.root / "root/monit.log",
        ):
            if path.exists():
                shutil.copy(path, folder / f"{batch.name}-{path.name}")
    words = [str(strike) for strike in run.found.strikes]
    words += [f"{name} {turn}" for name, intents in run.histories.items() for turn in intents.values()]
    words += [f"{job} {at_s}" for job, at_s in run.here.queue.pushed.items()]
    (folder / "strikes-turns-jobs").write_text("\n".join(words))
