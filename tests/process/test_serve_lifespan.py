"""The app's start-up and shutdown: what fails fails the worker, what knows none is served."""

from __future__ import annotations

import json

import pytest
from serve_asgi_run import Running


def failed(**more: object) -> str:
    server = Running(**more)  # type: ignore[arg-type]
    try:
        return str(server.first.get("failed", ""))
    finally:
        server.__exit__()


@pytest.mark.parametrize("how", ["refuses", "raises"])
@pytest.mark.parametrize("lifespan", ["auto", "on"])
def test_a_start_up_that_fails_is_told_with_its_reason(how: str, lifespan: str) -> None:
    assert "no database" in failed(env={"LIFESPAN": how}, lifespan=lifespan)


def test_the_state_reaches_requests_and_shutdown_comes_after_the_drain() -> None:
    with Running() as server, server.connect() as client:
        assert json.loads(client.ask("/tell").body)["state"] == {"greeting": "from the lifespan"}
        client.send("/wait")
        server.until("traffic.in_flight", 1)
        server.ask("drain", 20, 0)
        assert "shutdown" not in server.ask("tell")["seen"]
        server.ask("set", "go")
        assert client.answer().body == b"waited" and client.rest() == b""
        server.until_drained()
        assert server.ask("stop")["seen"] == ["waits", "shutdown"]


def test_off_means_that_the_app_is_not_asked() -> None:
    with Running(env={"LIFESPAN": "refuses"}, lifespan="off") as server, server.connect() as client:
        assert json.loads(client.ask("/tell").body)["state"] == {}
        assert server.ask("stop")["seen"] == []


@pytest.mark.parametrize("app", ["without_lifespan", "careless"])
def test_an_app_without_lifespan_is_served_unless_it_is_asked_for(app: str) -> None:
    with Running(app) as server, server.connect() as client:
        assert client.ask().body == b"hello"
        assert "startup failed" not in server.errors()
    assert "lifespan" in failed(app=app, lifespan="on")


def test_an_app_in_two_steps_is_served() -> None:
    with Running("Twice") as server, server.connect() as client:
        assert json.loads(client.ask("/tell").body)["state"] == {"greeting": "from the lifespan"}


def test_a_shutdown_that_hangs_is_cut() -> None:
    with Running(env={"LIFESPAN": "hangs"}, graceful_timeout_s=1.0) as server:
        assert server.ask("stop")["seen"] == ["shutdown"]
