"""Handover after handover under load, of a server that drains properly: nobody loses a request.

Keep-alive and closing clients, slow pages and uploads, over TCP and a unix socket, asked directly and through nginx and
HAProxy that keep connections alive and try nothing again. MIDSTREAM_HANDOVERS says how many handovers (4).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine, Project, wait_for
from nginx_haproxy import IDLE_S, proxy
from traffic import Clients, Traffic, record, traffic

HANDOVERS = int(os.environ.get("MIDSTREAM_HANDOVERS", "4"))
LINGER_S = 3 * IDLE_S
STEADY_S = 2.0
ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240 + 20 * HANDOVERS)]


@contextlib.contextmanager
def fronted(front: str, folder: Path, services: dict[str, str]) -> Iterator[dict[str, str]]:
    if front == "direct":
        yield services
    else:
        with proxy(front, folder / front, services) as addresses:
            yield addresses


def clients_of(addresses: dict[str, str]) -> Iterator[Clients]:
    for name, address in addresses.items():
        yield Clients(f"{name} pages", address, keep_alive=4, closing=2)
        yield Clients(f"{name} slow", address, keep_alive=2, closing=1, path="/slow?ms=300", timed=False)
        yield Clients(
            f"{name} uploads",
            address,
            keep_alive=2,
            closing=1,
            path="/echo",
            method="POST",
            body_bytes=100_000,
            upload_s=0.05,
            timed=False,
        )
        yield Clients(f"{name} posts", address, keep_alive=2, path="/echo", method="POST", body_bytes=10)


def replace_code(project: Project, machine: Machine, running: Traffic, number: int) -> str:
    """One handover, and its old generation gone: every fourth a deploy of a new release, the others a restart of the
    same, which is the same handover. Returns the release that is committed then."""
    with running.handover():
        if number % 4 == 3:
            project.commit(f"handover {number}")
            release = project.deployed()
        else:
            machine.call("restart", app=project.app, services=["web"], wait=True)
            release = str(machine.app(project.app)["release"])
        wait_for("the old generation to be gone", lambda: machine.settled(project.app))
    return release


@pytest.mark.parametrize(
    "front",
    [
        "direct",
        pytest.param("nginx", marks=pytest.mark.server("nginx")),
        pytest.param("haproxy", marks=pytest.mark.server("haproxy")),
    ],
)
def test_no_client_loses_a_request(front: str, project: Project, machine: Machine) -> None:
    unix = f"unix://{project.deploy_to}/shared/web.sock"
    listen = f'listen = ["{project.address}", "{unix}"]'
    project.commit(
        "both listeners",
        config=project.config(project.web(listen=listen, instances=2), tail=f'[env]\nLINGER_S = "{LINGER_S}"\n'),
    )
    releases = {project.deployed()}
    generations = {g["generation"] for g in machine.service()["generations"]}
    pids = {tuple(machine.pids())}
    with (
        fronted(front, machine.root, {"tcp": project.address, "unix": unix}) as addresses,
        traffic(machine.root, *clients_of(addresses)) as running,
    ):
        time.sleep(STEADY_S)  # what is compared with the handovers, not waited for
        for number in range(HANDOVERS):
            releases.add(replace_code(project, machine, running, number))
            generations |= {g["generation"] for g in machine.service()["generations"]}
            pids.add(tuple(machine.pids()))
        seen = running.stop()
    record(f"draining server, {front}", running.figures())
    assert running.failed == 0, running.failures
    assert len(generations) == len(pids) == HANDOVERS + 1, "something was asked for and not replaced"
    for name, one in seen.items():
        assert one.requests > HANDOVERS, f"{name} hardly asked"
        assert set(one.releases) == releases, f"{name} did not see every release"


def test_uvicorn_loses_nothing_with_the_draining_protocol(project: Project, machine: Machine) -> None:
    """The recipe in docs/recipes, copied into an app. uvicorn alone resets connections that it has not read from yet."""
    shutil.copy(ROOT / "docs/recipes/uvicorn_draining.py", project.folder)
    shutil.copy(ROOT / "tests/process/server_apps/asgi_app.py", project.folder)
    command = f"{sys.executable} -m uvicorn asgi_app:application --fd {{fd}} --http uvicorn_draining:Protocol"
    service = f'command = "{command}"\nlisten = "{project.address}"\nhealth = "/"\ninstances = 2\n'
    project.commit("uvicorn", config=project.config(f"[services.web]\n{service}"))
    release = project.deployed()
    clients = (
        Clients("pages", project.address, keep_alive=8, closing=8),
        Clients("slow", project.address, keep_alive=2, closing=1, path="/slow?ms=300", timed=False),
    )
    with traffic(machine.root, *clients) as running:
        time.sleep(STEADY_S)
        for _ in range(HANDOVERS):
            with running.handover():
                machine.call("restart", app=project.app, services=["web"], wait=True)
                wait_for("the old generation to be gone", lambda: machine.settled(project.app))
        seen = running.stop()
    record("uvicorn, draining", running.figures())
    assert running.failed == 0, running.failures
    assert [set(one.releases) for one in seen.values()] == [{release}, {release}]
