"""`midstream serve` as a service of the real agent: recognised, proven, handed over under load, parked, restarted."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import urllib.request
from pathlib import Path

import pytest
from machine import Machine, Project, free_port, wait_for
from traffic import Clients, traffic

pytestmark = [pytest.mark.timeout(240)]

APP = """
import os, time
RELEASE = os.environ["MIDSTREAM_RELEASE"]
def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.3)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [RELEASE.encode()]
"""


@pytest.fixture
def served(project: Project) -> Project:
    """The project, deployed with `midstream serve` as its web service."""
    project.commit("serve", config=config(project), **{"app.py": APP})
    project.deployed()
    return project


def config(project: Project, more: str = "", options: str = "") -> str:
    command = f"{sys.executable} -m midstream serve app:app --workers 2 --linger 2 {options}"
    service = f'command = "{command}"\nlisten = "{project.address}"\nhealth = "/"\n{more}'
    return project.config(f"[services.web]\n{service}")


def test_deploys_under_load_lose_nothing(served: Project, machine: Machine) -> None:
    first = served.get()[1]
    releases = {first}
    clients = (
        Clients("pages", served.address, keep_alive=4, closing=4),
        Clients("slow", served.address, keep_alive=1, closing=1, path="/slow", timed=False),
    )
    with traffic(machine.root, *clients) as running:
        for number in range(2):
            with running.handover():
                served.commit(f"change {number}")
                releases.add(served.deployed())
                wait_for("the old generation to be gone", lambda: machine.settled(served.app))
        seen = running.stop()
    assert running.failed == 0, running.failures
    assert all(set(one.releases) == releases for one in seen.values())


def test_the_story_of_one_instance(served: Project, machine: Machine) -> None:
    """Recognised; a release that does not boot changes nothing; USR2 is a handover; a killed zygote comes back."""
    pid = machine.pids()[0]
    assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"midstream serve: zygote [app:app] ")
    assert len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()) == 2
    assert "2 workers accept" in served.cli("logs", "web").text

    before, release = machine.pids(), served.get()[1]
    served.commit("broken", **{"app.py": "import no_such_module_at_all"})
    assert served.deploy().code == 1
    assert (machine.pids(), served.get()[1]) == (before, release)

    app = Path(f"/proc/{before[0]}/cwd").resolve() / "app.py"  # of what serves, broken where it lies
    text = app.read_text()
    app.write_text("import no_such_module_at_all")
    reloaded = served.cli("reload", "web")
    assert reloaded.code == 1 and "no_such_module_at_all" in reloaded.text, reloaded.text
    assert (machine.pids(), served.get()[1]) == (before, release)
    app.write_text(text)

    os.kill(before[0], signal.SIGUSR2)
    wait_for("new processes", lambda: machine.settled(served.app) and machine.pids() and machine.pids() != before)
    assert served.get() == (200, release)

    before = machine.pids()
    os.kill(before[0], signal.SIGKILL)
    wait_for("another zygote", lambda: machine.pids() and machine.pids() != before and served.get()[0] == 200)


def test_metrics_are_of_those_who_accept_and_a_zygote_that_hangs_is_replaced(
    project: Project, machine: Machine
) -> None:
    """The address of the metrics passes from generation to generation; SIGSTOP is noticed without a `watchdog` in the
    configuration."""
    metrics = free_port()
    options = f"--timeout 3 --metrics 127.0.0.1:{metrics}"
    more = 'drain_timeout = "1s"\nstop_timeout = "1s"\n'
    project.commit("serve", config=config(project, more, options), **{"app.py": APP})
    first = project.deployed()
    for _ in range(3):
        project.get()
    wait_for("what was answered", lambda: answered(metrics, first) >= 3)
    project.commit("next")
    second = project.deployed()
    wait_for("the next generation at the address", lambda: answered(metrics, second) >= 0)
    counted = answered(metrics, second)
    project.get()
    wait_for("one answer more", lambda: answered(metrics, second) == counted + 1)
    wait_for("the old one to be gone", lambda: machine.settled(project.app))
    assert answered(metrics, first) == -1

    before = machine.pids()
    os.kill(before[0], signal.SIGSTOP)
    wait_for("another zygote", lambda: machine.replaced(before) and project.get()[0] == 200)
    assert "WATCHDOG=1 did not come within 3 s" in project.cli("why", "web").text
    wait_for("its metrics", lambda: answered(metrics, second) >= 0)


def answered(port: int, release: str) -> int:
    """How many requests that release has answered with 2xx, by the page of metrics; -1: it says nothing of it."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        pattern = rf'requests_total{{release="{release}",generation="\d+",code="2xx"}} (\d+)'
        if found := re.search(pattern, page.read().decode()):
            return int(found[1])
    return -1
