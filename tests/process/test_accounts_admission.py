"""Configurations from clients that are not ours: what would be raised when a process is started is refused before."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midstream.agent.admission import read_spec
from midstream.core.spec import AppSpec, CommandStep, EnvSpec, HealthSpec, ListenSpec, MigrateSpec, ServiceSpec
from midstream.errors import OperatorError

GOOD = AppSpec(
    "shop",
    "/srv/shop",
    "git@example.com:shop.git",
    env=EnvSpec(path=(".venv/bin",), variables={"ROOT": "{release}"}, secrets=("KEY",)),
    build=(CommandStep(("make",)),),
    migrate=MigrateSpec((CommandStep(("python", "migrate.py")),)),
    services={
        "web": ServiceSpec(
            "web",
            ("python", "server.py", "--fd", "{fd}"),
            listen=(ListenSpec("tcp://127.0.0.1:8000"), ListenSpec("unix://{shared}/web.sock", name="local")),
            health=HealthSpec(http="/up?deep=1", host="shop.example.com", headers={"X-Forwarded-Proto": "https"}),
            stop_signal="QUIT",
        ),
        "jobs": ServiceSpec("jobs", ("celery", "worker"), depends_on=("web",)),
    },
)


def _body() -> dict[str, Any]:
    """With every key, the default ones too."""
    return dict(json.loads(json.dumps(dataclasses.asdict(GOOD), default=lambda item: item.value)))


def _set(body: dict[str, Any], path: str, value: Any) -> None:
    *folders, last = path.split("/")
    here: Any = body
    for name in folders:
        here = here[int(name)] if isinstance(here, list) else here[name]
    here[int(last) if isinstance(here, list) else last] = value


def test_good_one_is_read() -> None:
    assert read_spec(_body()) == GOOD


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("app", "../shop"),
        ("app", "shop/../../etc"),
        ("deploy_to", "srv/shop"),
        ("deploy_to", "/srv/../etc"),
        ("deploy_to", "//srv/shop"),
        ("deploy_to", "/"),
        ("deploy_to", "/srv/\ud800"),
        ("deploy_to", "/srv/sh\0op"),
        ("deploy_to", "/" + "x" * 5000),
        ("keep_releases", 0),
        ("services/web/name", "../../../../etc/cron.d"),
        ("services/web/name", "jobs"),
        ("services/web/instances", -1),
        ("services/web/instances", 10**9),
        ("services/web/instances", 10**400),
        ("services/web/command", []),
        ("services/web/command", [""]),
        ("services/web/command", ["x", "{nothing}"]),
        ("services/web/command", ["x", "a\0b"]),
        ("services/web/command", ["x", "\ud800"]),
        ("services/web/command", ["x", "y" * 100_000]),
        ("services/web/command", ["x"] * 5000),
        ("services/jobs/command", ["x", "{fd}"]),
        ("services/web/profile", "nosuchprofile"),
        ("services/web/stop_signal", "NOPE"),
        ("services/web/stop_signal", "_BLOCK"),
        ("services/web/reload_signal", "9"),
        ("services/web/restart_on", "sometimes"),
        ("services/web/depends_on", ["nosuchservice"]),
        ("services/web/user", "nosuchuser"),
        ("services/web/drain_timeout_s", math.nan),
        ("services/web/drain_timeout_s", math.inf),
        ("services/web/drain_timeout_s", -1.0),
        ("services/web/drain_timeout_s", 1e300),
        ("services/web/backoff/factor", 1e300),
        ("services/web/backoff/jitter", 7.0),
        ("services/web/limits/umask", 0o10000),
        ("services/web/limits/nice", -100),
        ("services/web/limits/rlimits", {"nofile": [10, 5]}),
        ("services/web/limits/rlimits", {"nofile": [-2, -2]}),
        ("services/web/env/variables", {"A": "{nothing}"}),
        ("services/web/env/variables", {"A=B": "x"}),
        ("services/web/env/variables", {"": "x"}),
        ("env/variables", {"A": "{run}{fd}"}),
        ("services/web/listen/0/address", "tcp://localhost:http"),
        ("services/web/listen/0/address", "tcp://127.0.0.1:99999"),
        ("services/web/listen/0/address", "private"),
        ("services/web/listen/0/address", "unix://relative"),
        ("services/web/listen/0/address", "unix://{nothing}/x"),
        ("services/web/listen/0/address", "unix:///" + "x" * 200),
        ("services/web/listen/0/backlog", 0),
        ("services/web/listen/0/mode", 0o4777),
        ("services/web/listen/0/name", "local"),
        ("services/web/listen/0/name", "a:b"),
        ("services/web/health/http", "/up HTTP/1.1\r\nHost: x\r\n\r\nGET /"),
        ("services/web/health/http", '/\n{"jsonrpc":"2.0","id":1,"method":"agent.stop"}\n'),
        ("services/web/health/http", "up"),
        ("services/web/health/method", "GET /\n"),
        ("services/web/health/host", "a\r\nb"),
        ("services/web/health/headers", {"X\n": "y"}),
        ("services/web/health/headers", {"X": "y\nz"}),
        ("services/web/health/failures", 0),
        ("build/0/run", []),
        ("build/0/run", ["x", "{run}{slot}"]),
        ("build/0/env", {"A": "{nothing}"}),
        ("migrate/run/0/timeout_s", math.nan),
    ],
)
def test_bad_value_is_the_operators_mistake(path: str, value: Any) -> None:
    body = _body()
    _set(body, path, value)
    with pytest.raises(OperatorError):
        read_spec(body)


@pytest.mark.skipif(os.geteuid() != 0, reason="groups are looked up by an agent that is root")
def test_group_that_there_is_not() -> None:
    body = _body()
    _set(body, "services/web/groups", ["nosuchgroup"])
    with pytest.raises(OperatorError):
        read_spec(body)


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _paths(value: Any, at: str = "") -> list[str]:
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        found += _paths(inner, f"{at}/{name}" if at else str(name))
    return found


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(_paths(_body())), _JUNK)
def test_any_value_anywhere_is_read_or_refused(path: str, value: Any) -> None:
    body = _body()
    _set(body, path, value)
    try:
        read_spec(body)
    except OperatorError:
        pass
