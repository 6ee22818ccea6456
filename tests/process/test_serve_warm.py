"""What workers need is loaded before the fork: new ones boot while the former still serve."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.process.serving import make_release, point, running

ASGI = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"one"})
"""
HOOKS = """
import sys

had = set()

def before_fork(worker):
    had.update(sys.modules)

def worker_exit(worker):
    print("loaded late:", sorted(set(sys.modules) - had), flush=True)
"""


@pytest.mark.parametrize("app", [None, ASGI], ids=["wsgi", "asgi"])
def test_a_worker_loads_nothing_after_the_fork(tmp_path: Path, app: str | None) -> None:
    point(tmp_path, make_release(tmp_path, "one", app=app))
    hooks = tmp_path / "hooks.py"
    hooks.write_text(HOOKS)
    with running(tmp_path, "--hooks", str(hooks), "--workers", "1", "--access-log", str(tmp_path / "access")) as server:
        assert server.get().body.startswith("one")
        server.signal(signal.SIGTERM)
        server.line(r"loaded late: \[\]$")
