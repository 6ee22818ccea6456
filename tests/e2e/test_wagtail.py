"""Real input: a Wagtail site, a virtualenv for each release, under gunicorn and under uvicorn.

Closing clients lose nothing. What keep-alive clients lose is what the server loses at its own graceful stop (uvicorn
closes idle connections at once): it is counted, and told in docs/servers.md. MIDSTREAM_HANDOVERS says how many (3).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from machine import Machine, wait_for
from traffic import Clients, record, traffic
from wagtail_site import HOST, Kit, make_kit, new_site

HANDOVERS = int(os.environ.get("MIDSTREAM_HANDOVERS", "3"))
STEADY_S = 5.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 90 * HANDOVERS)]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return make_kit(tmp_path_factory.mktemp("wagtail"))


# instances, and whether a kept-alive connection may be closed in the very moment in which it is used
SERVERS = {
    "gunicorn mysite.wsgi:application --workers 2 --control-socket {run}/gunicorn.ctl": (1, False),
    "gunicorn mysite.wsgi:application --workers 2 --threads 4 --control-socket {run}/gunicorn.ctl": (1, False),
    "uvicorn mysite.asgi:application --fd {fd}": (2, True),
}


@pytest.mark.parametrize("command", SERVERS, ids=["gunicorn", "gunicorn-gthread", "uvicorn"])
def test_wagtail_is_replaced_under_load(command: str, kit: Kit, machine: Machine) -> None:
    instances, closes_idle = SERVERS[command]
    site = new_site(machine, kit, command, instances)
    shared = site.deploy_to / "shared"
    releases = [site.deployed()]
    assert os.path.realpath(site.deploy_to / "current" / "db.sqlite3") == str(shared / "db.sqlite3")
    took = []
    clients = (
        Clients("closing", site.address, closing=3, host=HOST, pause_s=0.5),
        Clients("keep-alive", site.address, keep_alive=4, host=HOST, pause_s=0.5),
        Clients("admin", site.address, closing=1, path="/admin/login/", host=HOST, pause_s=0.5),
    )
    with traffic(machine.root, *clients) as running:
        time.sleep(STEADY_S)  # what is compared with the handovers, not waited for
        for number in range(HANDOVERS):
            site.commit(f"release {number + 2}")
            begun = time.monotonic()
            with running.handover():
                releases.append(site.deployed())
                wait_for("the old generation to be gone", lambda: machine.settled("site"))
            took.append(time.monotonic() - begun)
            assert _virtualenvs(machine) == {str(site.deploy_to / "releases" / releases[-1] / ".venv")}
        seen = running.stop()
    record(f"wagtail, {command.split(' mysite')[0]}, {command}", running.figures())
    for name, one in seen.items():
        assert set(one.releases) == set(releases), f"{name}: answers of {one.releases}, released {releases}"
    assert seen["closing"].failed == seen["admin"].failed == 0, running.failures
    if not closes_idle:
        assert running.failed == 0, running.failures
    assert seen["keep-alive"].failed <= 4 * instances * HANDOVERS, "more than one a client and connection closed"


def _virtualenvs(machine: Machine) -> set[str]:
    """Where the committed processes have their interpreter from, as the kernel tells it."""
    found = set()
    for pid in machine.pids("web", "site"):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        found.add(str(Path(words[0].decode()).parents[1]))
    return found
