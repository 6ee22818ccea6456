"""Real input: a Wagtail site, a virtualenv for each release, under real servers: nobody loses a request.

MIDSTREAM_HANDOVERS says how many handovers (1); where it is set, there are more servers as well. uvicorn is given the draining
protocol of docs/recipes (which test_handovers.py tests too): by itself it resets connections at its own graceful stop, which
`tests/bench/wagtail.py` counts for docs/servers.md.
"""

from __future__ import annotations

import os

import pytest
from machine import Machine
from traffic import record
from wagtail_site import Kit, replace_under_load, shared_kit

HANDOVERS = int(os.environ.get("MIDSTREAM_HANDOVERS", "1"))
FEW = ["gunicorn", "midstream serve"]
ALL = [*FEW, "gunicorn gthread", "uvicorn draining", "midstream serve, ASGI"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 120 * HANDOVERS)]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return shared_kit(tmp_path_factory)


@pytest.mark.parametrize("server", ALL if "MIDSTREAM_HANDOVERS" in os.environ else FEW)
def test_wagtail_is_replaced_under_load(server: str, kit: Kit, machine: Machine) -> None:
    running = replace_under_load(machine, kit, server, HANDOVERS, pause_s=0.5)
    record(f"wagtail, {server}", running.figures())
    assert running.failed == 0, running.failures
