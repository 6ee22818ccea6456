"""Of which services nothing is asked but to live for a moment: those are watched by a timer, all others by a task."""

from __future__ import annotations

import pytest

from midstream.agent.watching import needs_only_time
from midstream.core.spec import HealthSpec, Readiness, ServiceSpec

ALIVE = {"name": "jobs", "command": ("/bin/sleep", "1")}


@pytest.mark.parametrize(
    ("more", "readiness", "confirm", "expected"),
    [
        ({}, Readiness.ALIVE, False, True),
        ({"min_uptime_s": 59.8}, Readiness.ALIVE, False, True),
        ({"min_uptime_s": 60.0}, Readiness.ALIVE, False, False),  # will not be ready in time: somebody has to say so
        ({"health": HealthSpec(http="/")}, Readiness.ALIVE, False, True),  # asked in a handover only
        ({"health": HealthSpec(http="/")}, Readiness.ALIVE, True, False),
        ({"health": HealthSpec(http="/", interval_s=5.0)}, Readiness.ALIVE, False, False),
        *(({}, readiness, False, False) for readiness in Readiness if readiness is not Readiness.ALIVE),
    ],
)
def test_a_timer_is_enough_where_there_is_nothing_to_ask(more, readiness, confirm, expected):
    assert needs_only_time(ServiceSpec(**ALIVE | more), readiness, confirm=confirm) is expected
