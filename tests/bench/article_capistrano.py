"""The case as it was: real Capistrano stops Sidekiq, links, starts it, while real Monit looks every 3 seconds."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field

from article_counts import Counts, History, Turn, count
from article_hosts import DEPLOY_TO, Batch, Yard, yard
from machine import wait_for

# As capistrano-sidekiq hooks its tasks.
_DEPLOY_RB = """set :application, "shop"
set :repo_url, "{mirror}"
set :deploy_to, "{deploy_to}"
set :branch, "main"
set :keep_releases, 5
namespace :sidekiq do
  task(:stop) {{ on(roles(:batch)) {{ execute "/usr/local/bin/sidekiq-stop" }} }}
  task(:start) {{ on(roles(:batch)) {{ execute "/usr/local/bin/sidekiq-start" }} }}
end
after "deploy:updated", "sidekiq:stop"
after "deploy:published", "sidekiq:start"
"""


@dataclass
class Capistrano:
    """What came of the deploys."""

    deploys: int = 0
    failed: int = 0
    stale_hosts: int = 0
    stale_deploys: int = 0
    different: int = 0
    counts: Counts | None = None
    seconds: list[float] = field(default_factory=list)


def replay(deploys: int) -> Capistrano:
    found = Capistrano()
    with yard(agents=False) as here:
        _set_up(here)
        histories = {batch.name: History() for batch in here.batches}
        _deploy(here, found, histories)
        for batch in here.batches:
            batch.start_monit()
        wait_for("Sidekiq to run", lambda: all(batch.is_watched() for batch in here.batches), 90.0)
        found = Capistrano()
        with here.queue.stream():
            for _ in range(deploys):
                _deploy(here, found, histories)
                _look(here, found)
        here.drain()
        found.counts = count(here.lines(), histories, [], here.queue.pushed)
    return found


def _set_up(here: Yard) -> None:
    mirror, cap = here.folder / "mirror.git", here.folder / "cap"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(mirror)], check=True, env=here.fleet.env)
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-m", "PEM", "-N", "", "-f", here.folder / "rsa"], check=True)
    (cap / "config/deploy").mkdir(parents=True)
    (cap / "Capfile").write_text(
        'require "capistrano/setup"\nrequire "capistrano/deploy"\nrequire "capistrano/scm/git"\n'
        "install_plugin Capistrano::SCM::Git\n"
    )
    (cap / "config/deploy.rb").write_text(_DEPLOY_RB.format(mirror=mirror, deploy_to=DEPLOY_TO))
    servers = []
    for batch in here.batches:
        with (batch.host.root / "root/keys/deploy").open("a") as keys:
            keys.write((here.folder / "rsa.pub").read_text())
        batch.give_monit()
        servers.append(
            f'server "{batch.host.address}", user: "deploy", roles: %w[app batch], ssh_options: {{'
            f' keys: ["{here.folder}/rsa"], keys_only: true, config: false, verify_host_key: :never,'
            ' auth_methods: ["publickey"] }\n'
        )
    (cap / "config/deploy/production.rb").write_text("".join(servers))


def _push(here: Yard) -> None:
    """git serves nobody a repository that is not his own."""
    mirror = here.folder / "mirror.git"
    for owner in ("0:0", "4001:4001"):
        subprocess.run(["chown", "-R", owner, str(mirror)], check=True)
        if owner == "0:0":
            here.git("push", "-q", str(mirror), "main")


def _deploy(here: Yard, found: Capistrano, histories: dict[str, History]) -> None:
    here.commit()
    _push(here)
    began_s = time.time()
    done = subprocess.run(
        here.fleet.switch.on_the_network("cap", "production", "deploy"),
        cwd=here.folder / "cap",
        env=here.fleet.env | {"LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    found.deploys += 1
    found.failed += done.returncode != 0
    found.seconds.append(time.time() - began_s)
    for batch in here.batches:
        link = batch.host.root / DEPLOY_TO.strip("/") / "current"
        switched_s = link.lstat().st_mtime
        histories[batch.name].turns.append(Turn(batch.current(), switched_s, switched_s, True))
    if found.deploys == 1 and done.returncode != 0:
        raise RuntimeError(f"cap deploy: exit {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")


def _look(here: Yard, found: Capistrano) -> None:
    """Which code each host runs now that the command has ended."""
    running = {batch.name: _revisions(batch) for batch in here.batches}
    stale = [batch for batch in here.batches if running[batch.name] != {batch.current()}]
    found.stale_hosts += len(stale)
    found.stale_deploys += bool(stale)
    found.different += len(Counter(frozenset(seen) for seen in running.values())) > 1


def _revisions(batch: Batch) -> set[str]:
    wait_for(f"a Sidekiq on {batch.name}", batch.sidekiqs)
    return {process.release for process in batch.sidekiqs()}


def missing(*but: str) -> str:
    """Which programs are not installed, `but` for these; "" when all are."""
    gone = [name for name in ("cap", "monit", "sidekiq", "redis-server") if name not in but and not shutil.which(name)]
    return f"not installed: {', '.join(gone)}" if gone else ""
