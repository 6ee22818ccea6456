"""Two batch hosts with their own Sidekiq, a Redis on the deployer's side of their network, jobs without end, and a real Monit.

A Sidekiq writes a line when it boots, and at the begin and the end of each job, to one file a host that outlives all releases.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from article_counts import Line
from fleet import HERE, Fleet, FleetHost, new_fleet
from machine import wait_for

from midstream.errors import HostError
from midstream.steps.redis_wire import Redis, parse_url

NAMES = ["batch1", "batch2"]
DEPLOY_TO = "/srv/shop"
JOBS_LOG = "/home/deploy/jobs.log"
REDIS_URL = f"redis://{HERE}:6379/0"
SIDEKIQ = "sidekiq -r ./jobs.rb -c 3 -t 5"
CYCLE_S = 3
MONITRC = "/etc/monit/shop.rc"
SHORT_S, LONG_S, LONGEST_S = 0.02, 3.0, 7.0  # the longest is begun again when it is stopped: -t is 5

# The start of the process is the kernel's word; a boot takes a second before Ruby gets here.
JOBS_RB = """
require "etc"
LOG = File.open(ENV.fetch("JOBS_LOG"), "a")
LOG.sync = true
HERE = File.realpath(__dir__)
RELEASE = File.basename(HERE)
REVISION = File.exist?("#{HERE}/REVISION") ? File.read("#{HERE}/REVISION").strip : "-"
def tell(what, id, at = Time.now.to_f)
  LOG.syswrite("#{what} #{id} #{RELEASE} #{REVISION} #{'%.6f' % at} #{Process.pid}\\n")
end
started = File.read("/proc/self/stat").rpartition(")")[2].split[19].to_f / Etc.sysconf(Etc::SC_CLK_TCK)
tell("boot", "-", Time.now.to_f - Process.clock_gettime(Process::CLOCK_BOOTTIME) + started)
class Work
  include Sidekiq::Worker
  def perform(id, seconds)
    tell("begin", id)
    sleep seconds
    tell("end", id)
  end
end
"""

# What people write: nothing is started beside a running one; through `current`; the pid is noted.
_START = f"""#!/bin/sh
pid=$(cat /home/deploy/sidekiq.pid 2>/dev/null) && kill -0 "$pid" 2>/dev/null && exit 0
cd {DEPLOY_TO}/current || exit 1
export JOBS_LOG={JOBS_LOG} REDIS_URL={REDIS_URL} LANG=C.UTF-8 HOME=/home/deploy PATH=/usr/local/bin:/usr/bin:/bin
setsid {SIDEKIQ} </dev/null >>/home/deploy/sidekiq.out 2>&1 &
echo $! >/home/deploy/sidekiq.pid
"""
_STOP = """#!/bin/sh
pid=$(cat /home/deploy/sidekiq.pid) || exit 0
kill -TERM $pid
for i in $(seq 240); do kill -0 $pid 2>/dev/null || break; sleep 0.05; done
rm -f /home/deploy/sidekiq.pid
"""
_MONITRC = f"""set daemon {CYCLE_S}
set pidfile /run/monit.pid
set idfile /root/monit.id
set statefile /root/monit.state
set logfile /root/monit.log
set httpd unixsocket /run/monit.sock
  allow user:"pass word"
check process sidekiq with pidfile "/home/deploy/sidekiq.pid"
  start program = "/usr/local/bin/sidekiq-start" as uid "deploy" and gid "deploy" with timeout 20 seconds
  stop program = "/usr/local/bin/sidekiq-stop" as uid "deploy" and gid "deploy" with timeout 20 seconds
"""


@dataclass(frozen=True, slots=True)
class Process:
    """A Sidekiq that lives. pid: on this machine; inner: in its host. release: the folder that it runs in."""

    pid: int
    inner: int
    release: str
    is_quiet: bool


@dataclass
class Batch:
    """One batch host."""

    host: FleetHost

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def log(self) -> Path:
        return self.host.root / JOBS_LOG.strip("/")

    def lines(self) -> Iterator[Line]:
        text = self.log.read_text() if self.log.exists() else ""
        for words in (line.split() for line in text.splitlines()):
            if len(words) == 6:
                what, job, release, revision, at_s, pid = words
                yield Line(self.name, what, job, release, revision, float(at_s), int(pid))

    def sidekiqs(self) -> list[Process]:
        """All that live on this host, whoever started them."""
        space = os.readlink(f"/proc/{self.host.box.pid}/ns/pid")
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    if process := _sidekiq(int(name), space):
                        found.append(process)
        return found

    def current(self) -> str:
        return os.path.basename(os.readlink(self.host.root / DEPLOY_TO.strip("/") / "current"))

    # ------------------------------------------------------------------ Monit

    def give_monit(self) -> None:
        """Its control file and its programs; `start_monit` starts it."""
        for word, text in (("start", _START), ("stop", _STOP)):
            path = self.host.root / f"usr_local/bin/sidekiq-{word}"
            self.host.box.run("tee", f"/usr/local/bin/{path.name}", text=text)
            self.host.box.run("chmod", "755", f"/usr/local/bin/{path.name}")
        self.host.box.sh("mkdir -p /etc/monit")
        self.host.box.run("tee", MONITRC, text=_MONITRC)
        self.host.box.run("chmod", "600", MONITRC)

    def start_monit(self) -> None:
        self.host.box.popen("monit", "-I", "-c", MONITRC)
        wait_for("Monit to answer", lambda: "sidekiq" in self.monit("status"))

    def monit(self, *words: str) -> str:
        return self.host.box.run("monit", "-B", "-c", MONITRC, *words, check=False)

    def is_watched(self) -> bool:
        said = dict(re.findall(r"^  (\w[\w ]*?) {2,}(.*?)\s*$", self.monit("status", "sidekiq"), re.MULTILINE))
        return said.get("monitoring status") == "Monitored" and said.get("status") == "OK"


def _sidekiq(pid: int, space: str) -> Process | None:
    if not os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("ruby"):
        return None
    if os.readlink(f"/proc/{pid}/ns/pid") != space:
        return None
    title = Path(f"/proc/{pid}/cmdline").read_text()
    if "sidekiq" not in title:
        return None
    inner = int(re.findall(r"^NSpid:.*?(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0])
    return Process(pid, inner, os.path.basename(os.readlink(f"/proc/{pid}/cwd")), "stopping" in title)


@dataclass
class Queue:
    """Jobs go in from a thread of its own. pushed: job -> when."""

    redis_socket: Path
    pushed: dict[str, float] = field(default_factory=dict)

    def ask(self, *words: str) -> object:
        with Redis(parse_url(f"unix://{self.redis_socket}")) as client:
            return client.ask(*words)

    def push(self, seconds: float) -> None:
        name = f"j{len(self.pushed) + 1}"
        now_s = time.time()
        job = {
            "class": "Work",
            "args": [name, seconds],
            "retry": True,
            "queue": "default",
            "jid": secrets.token_hex(12),
        }
        self.pushed[name] = now_s
        text = json.dumps(job | {"created_at": now_s, "enqueued_at": now_s})
        for _ in range(100):
            with contextlib.suppress(
                HostError
            ):  # a Redis that is late: it may have taken the job, which is begun twice then
                self.ask("SADD", "queues", "default")
                self.ask("LPUSH", "queue:default", text)
                return
        raise HostError(f"Redis took no job for minutes: {name}", remedy="see why it does not answer")

    def left(self) -> int:
        """Jobs that wait in the queue, or to be tried again."""
        sizes = [self.ask("LLEN", "queue:default"), self.ask("ZCARD", "retry"), self.ask("ZCARD", "schedule")]
        return sum(int(str(size)) for size in sizes)

    @contextlib.contextmanager
    def stream(self, pause_s: float = 0.1) -> Iterator[None]:
        """Ten a second: most end at once, one in 30 takes 3 s, one in 90 takes 7."""
        over = threading.Event()

        def push() -> None:
            number = 0
            while not over.wait(pause_s):
                number += 1
                self.push(LONGEST_S if number % 90 == 0 else LONG_S if number % 30 == 0 else SHORT_S)

        thread = threading.Thread(target=push, daemon=True)
        thread.start()
        try:
            yield
            if not thread.is_alive():
                raise HostError("no jobs came any more: the thread that gives them died", remedy="see its error above")
        finally:
            over.set()
            thread.join(30.0)


@dataclass
class Yard:
    """Two hosts, the repository of the app, the queue."""

    fleet: Fleet
    folder: Path  # neither below /tmp nor below another folder that the hosts have of their own
    queue: Queue
    batches: list[Batch]
    commits: int = 0

    @property
    def repository(self) -> Path:
        return self.folder / "app"

    def git(self, *words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(self.repository), *words], check=True, capture_output=True, text=True, env=self.fleet.env
        )
        return done.stdout.strip()

    def commit(self, config: str = "") -> None:
        """Each is another release."""
        self.commits += 1
        if config:
            (self.repository / "midstream.toml").write_text(config)
        (self.repository / "changed.txt").write_text(f"{self.commits}\n")
        self.git("add", ".")
        self.git("commit", "-q", "-m", f"change {self.commits}")

    def lines(self) -> list[Line]:
        return [line for batch in self.batches for line in batch.lines()]

    def drain(self, timeout_s: float = 90.0) -> None:
        """Until no job waits and none that was begun by a Sidekiq that still lives has yet to end."""

        def is_empty() -> bool:
            living = {(batch.name, process.inner) for batch in self.batches for process in batch.sidekiqs()}
            in_hand: dict[str, tuple[str, int]] = {}
            for line in sorted(self.lines(), key=lambda line: line.at_s):
                if line.what == "begin":
                    in_hand[line.job] = (line.host, line.pid)
                elif line.what == "end":
                    in_hand.pop(line.job, None)
            return not self.queue.left() and not any(where in living for where in in_hand.values())

        wait_for("the queue to be empty", is_empty, timeout_s)


@contextlib.contextmanager
def yard(*, agents: bool) -> Iterator[Yard]:
    with contextlib.ExitStack() as stack:
        fleet = stack.enter_context(new_fleet(names=NAMES, agents=agents))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="msa", dir="/var/tmp")))
        folder.chmod(0o755)
        here = Yard(fleet, folder, Queue(fleet.root / "redis.sock"), [Batch(host) for host in fleet.hosts.values()])
        stack.enter_context(_redis(here))
        here.repository.mkdir()
        here.git("init", "-q", "-b", "main", ".")
        (here.repository / "jobs.rb").write_text(JOBS_RB)
        yield here


@contextlib.contextmanager
def _redis(here: Yard) -> Iterator[None]:
    """In memory only, for the hosts by their network, for this side by a socket."""
    where = ("--bind", HERE, "--protected-mode", "no", "--unixsocket", str(here.queue.redis_socket))
    argv = here.fleet.switch.on_the_network(
        "redis-server", *where, "--save", "", "--appendonly", "no", "--dir", str(here.folder)
    )
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for("Redis to answer", lambda: _answers(here.queue))
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20.0)


def _answers(queue: Queue) -> bool:
    try:
        return bool(queue.ask("PING"))
    except Exception:
        return False
