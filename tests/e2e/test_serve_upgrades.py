"""Upgrade after upgrade of a standalone `midstream serve` under load: code and virtualenv change, the pid does not.

MIDSTREAM_SERVE_UPGRADES says how many (4). MIDSTREAM_OTHER_VENV names a virtualenv of another Python version with
`midstream[serve]` in it; the releases then alternate between the two versions.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.process.serving import Server, point, running
from traffic import Clients, traffic

UPGRADES = int(os.environ.get("MIDSTREAM_SERVE_UPGRADES", "4"))
OTHER = os.environ.get("MIDSTREAM_OTHER_VENV", "")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 10 * UPGRADES)]

APP = """
import os, sys, time
RELEASE = {release!r}
def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.2)
    body = environ["wsgi.input"].read() if environ["REQUEST_METHOD"] == "POST" else RELEASE.encode()
    python = "%d.%d" % sys.version_info[:2]
    start_response("200 OK", [("Content-Length", str(len(body))), ("X-Prefix", sys.prefix), ("X-Python", python)])
    return [body]
"""


def release(folder: Path, name: str, virtualenv: str = "") -> Path:
    """A release with a virtualenv of its own, which borrows the packages of ours."""
    made = folder / "releases" / name
    made.mkdir(parents=True)
    (made / "app.py").write_text(APP.format(release=name))
    if virtualenv:
        (made / ".venv").symlink_to(virtualenv)
        return made
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made / ".venv")], check=True)
    import midstream

    packages = [str(Path(str(module.__file__)).parents[1]) for module in (midstream, pytest)]
    (next((made / ".venv/lib").iterdir()) / "site-packages/ours.pth").write_text("\n".join(packages) + "\n")
    return made


def one_upgrade(server: Server, folder: Path, to: Path) -> None:
    point(folder, to)
    answer = server.reload()
    assert answer.ok, answer.text
    reply = server.get()
    assert reply.body == to.name
    assert Path(reply.headers["X-Prefix"]) == (to / ".venv").resolve()


def test_upgrades_lose_nothing_and_keep_the_pid(tmp_path: Path) -> None:
    releases = [release(tmp_path, "one"), release(tmp_path, "two", OTHER)]
    point(tmp_path, releases[0])
    unix = tmp_path / "web.sock"
    with running(tmp_path, "--bind", f"unix:{unix}", "--linger", "2") as server:
        addresses = (f"tcp://127.0.0.1:{server.port}", f"unix://{unix}")
        kinds = {"keep_alive": 3, "closing": 2}
        clients = [
            one
            for name, address in zip(("tcp", "unix"), addresses, strict=True)
            for one in (
                Clients(f"{name} pages", address, **kinds),
                Clients(f"{name} slow", address, path="/slow", timed=False, **kinds),
                Clients(
                    f"{name} uploads", address, method="POST", body_bytes=50_000, upload_s=0.05, timed=False, **kinds
                ),
            )
        ]
        pid, seen_prefixes = server.pid, {server.get().headers["X-Python"]}
        with traffic(tmp_path, *clients) as load:
            for number in range(1, UPGRADES + 1):
                with load.handover():
                    one_upgrade(server, tmp_path, releases[number % 2])
                    seen_prefixes.add(server.get().headers["X-Python"])
            seen = load.stop()
        assert load.failed == 0, load.failures
        assert server.pid == pid and server.process.poll() is None
        assert server.serving()["number"] == UPGRADES + 1
        assert all(one.requests > UPGRADES for one in seen.values())
        assert len(seen_prefixes) == (2 if OTHER else 1)
        server.signal(signal.SIGTERM)
        assert server.ends() == 0
        assert server.left() == []
