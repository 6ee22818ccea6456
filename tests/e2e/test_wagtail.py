"""Real input: a Wagtail site, a virtualenv for each release, under gunicorn and under uvicorn.

Closing clients lose nothing. What keep-alive clients lose is what the server loses at its own graceful stop: uvicorn
closes idle connections at once, so a request that is sent in that moment is lost; `tests/bench/wagtail.py` counts them
for docs/servers.md. MIDSTREAM_HANDOVERS says how many handovers (3).
"""

from __future__ import annotations

import os

import pytest
from machine import Machine
from traffic import record
from wagtail_site import Kit, make_kit, replace_under_load

HANDOVERS = int(os.environ.get("MIDSTREAM_HANDOVERS", "3"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 120 * HANDOVERS)]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return make_kit(tmp_path_factory.mktemp("wagtail"))


@pytest.mark.parametrize("server", ["gunicorn", "uvicorn"])
def test_wagtail_is_replaced_under_load(server: str, kit: Kit, machine: Machine) -> None:
    running = replace_under_load(machine, kit, server, HANDOVERS, pause_s=0.5)
    record(f"wagtail, {server}", running.figures())
    seen = running.stop()
    assert seen["closing"].failed == seen["admin"].failed == 0, running.failures
    if server == "gunicorn":  # its worker closes each connection after its answer, so there is none to lose
        assert seen["keep-alive"].failed == 0, running.failures
