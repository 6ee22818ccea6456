"""Projects whose service is a real worker (Sidekiq, RQ), a private Redis for them, and the record of what the jobs did.

A job writes lines to one file that outlives all releases: `begin ID RELEASE TIME PID` and `end …`. That file, and what is
left in Redis, is all that the tests believe. A job that is to be in hand while something else happens is held (`Jobs.hold`)
until the test lets it go: no number of seconds is right on every machine.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import Machine, Project, free_port, wait_for

SIDEKIQ_JOBS = """
$stdout.sync = true
LOG = File.open(ENV.fetch("JOBS_LOG"), "a")
LOG.sync = true
def tell(what, id)
  LOG.syswrite("#{what} #{id} #{ENV['MIDSTREAM_RELEASE']} #{Time.now.to_f} #{Process.pid}\\n")
end
class Work
  include Sidekiq::Worker
  def perform(id, seconds)
    tell("begin", id)
    sleep seconds
    sleep 0.05 while File.exist?("#{ENV['JOBS_LOG']}.hold-#{id}")
    tell("end", id)
  end
end
raise "does not boot" if File.read(File.join(__dir__, "misbehave")).include?("boot")
"""

RQ_JOBS = """
import os, time
def tell(what, id):
    line = f"{what} {id} {os.environ['MIDSTREAM_RELEASE']} {time.time()} {os.getpid()}\\n"
    fd = os.open(os.environ["JOBS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line.encode())
    os.close(fd)
def work(id, seconds):
    tell("begin", id)
    time.sleep(seconds)
    while os.path.exists(os.environ["JOBS_LOG"] + ".hold-" + id):
        time.sleep(0.05)
    tell("end", id)
"""


@dataclass
class Redis:
    """A private redis-server without persistence."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def ask(self, *words: str) -> Any:
        from midstream.steps.redis_wire import Redis as Client
        from midstream.steps.redis_wire import parse_url

        with Client(parse_url(self.url)) as client:
            return client.ask(*words)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10.0)


def start_redis(folder: Path, port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [
            "redis-server",
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            str(folder),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return True
        return False

    wait_for("redis", answers)
    return process


@contextlib.contextmanager
def private_redis(folder: Path) -> Iterator[Redis]:
    port = free_port()
    redis = Redis(port, start_redis(folder, port))
    try:
        yield redis
    finally:
        redis.stop()


@dataclass(frozen=True)
class Line:
    what: str
    job: str
    release: str
    at_s: float
    pid: int


@dataclass
class Jobs:
    """What was put into the queue, and what became of it."""

    redis: Redis
    library: str
    log: Path
    number: int = 0

    def push(self, seconds: float, count: int = 1) -> list[str]:
        names = []
        for _ in range(count):
            self.number += 1
            name = f"j{self.number}"
            names.append(name)
            (self._sidekiq if self.library == "sidekiq" else self._rq)(name, seconds)
        return names

    def hold(self) -> str:
        """One job that goes on until `let_go` of its name."""
        self._held(f"j{self.number + 1}").touch()
        [name] = self.push(0.0)
        return name

    def let_go(self, name: str) -> None:
        self._held(name).unlink()

    def _held(self, name: str) -> Path:
        return Path(f"{self.log}.hold-{name}")

    def _sidekiq(self, name: str, seconds: float) -> None:
        job = {
            "class": "Work",
            "args": [name, seconds],
            "retry": True,
            "queue": "default",
            "jid": secrets.token_hex(12),
            "created_at": time.time(),
            "enqueued_at": time.time(),
        }
        self.redis.ask("SADD", "queues", "default")
        self.redis.ask("LPUSH", "queue:default", json.dumps(job))

    def _rq(self, name: str, seconds: float) -> None:
        from redis import Redis as Client
        from rq import Queue, Retry

        queue = Queue(connection=Client(port=self.redis.port))
        queue.enqueue("jobs.work", name, seconds, job_timeout=600, retry=Retry(max=3))

    def lines(self) -> list[Line]:
        try:
            text = self.log.read_text()
        except FileNotFoundError:
            return []
        words = [line.split() for line in text.splitlines()]
        return [Line(w[0], w[1], w[2], float(w[3]), int(w[4])) for w in words if len(w) == 5]

    def begun(self) -> set[str]:
        return {line.job for line in self.lines() if line.what == "begin"}

    def ended(self) -> set[str]:
        return {line.job for line in self.lines() if line.what == "end"}


@contextlib.contextmanager
def stream(
    jobs: Jobs, pause_s: float = 0.05, seconds: float = 0.02, long_every: int = 40, long_s: float = 3.0
) -> Iterator[None]:
    """Jobs without end, short ones and now and then a long one, from a thread of its own."""
    over = threading.Event()

    def push() -> None:
        number = 0
        while not over.wait(pause_s):
            number += 1
            jobs.push(long_s if number % long_every == 0 else seconds)

    thread = threading.Thread(target=push)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30.0)


@dataclass
class WorkerProject:
    project: Project
    jobs: Jobs
    redis: Redis
    machine: Machine

    def deploy(self, *args: str) -> str:
        return self.project.deployed(*args)


def sidekiq_config(project: Project, redis: Redis, log: Path, more: str = "", command: str = "") -> str:
    command = command or "sidekiq -r ./jobs.rb -c 3 -t 2"
    services = f"""
[services.jobs]
command = "{command}"
drain_timeout = "120s"
stop_timeout = "3s"
start_timeout = "30s"
{more}
[env]
JOBS_LOG = "{log}"
REDIS_URL = "{redis.url}"
"""
    return project.config(services)


def rq_config(project: Project, redis: Redis, log: Path, more: str = "") -> str:
    services = f"""
[services.jobs]
command = "{Path(sys.executable).parent / "rq"} worker --worker-ttl 30 default"
drain_timeout = "120s"
stop_timeout = "3s"
start_timeout = "30s"
{more}
[env]
JOBS_LOG = "{log}"
REDIS_URL = "{redis.url}"
RQ_REDIS_URL = "{redis.url}"
PYTHONPATH = "."
"""
    return project.config(services)


def worker_project(machine: Machine, redis: Redis, library: str, more: str = "") -> WorkerProject:
    """A project with one worker service, committed but not deployed."""
    folder = machine.root / "workers"
    folder.mkdir()
    project = Project(folder, machine, free_port())
    log = machine.root / "jobs.log"
    project.git("init", "-q", "-b", "main", ".")
    config = (sidekiq_config if library == "sidekiq" else rq_config)(project, redis, log, more)
    source = {"jobs.rb": SIDEKIQ_JOBS, "jobs.py": RQ_JOBS}
    for name, text in source.items():
        (folder / name).write_text(text)
    project.commit("first", config=config, misbehave="no")
    return WorkerProject(project, Jobs(redis, library, log), redis, machine)
