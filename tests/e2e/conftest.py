"""Fixtures of the end-to-end tests: a private machine and a project on it; a fleet of hosts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import crash_points
import pytest
from fleet import Fleet, new_fleet, why_no_fleet
from machine import Machine, Project, new_machine, new_project


def pytest_report_header() -> str:
    return crash_points.said()


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Its parameter, where it has one: MIDSTREAM_LEASE_S."""
    with new_machine(**({"MIDSTREAM_LEASE_S": request.param} if hasattr(request, "param") else {})) as started:
        yield started


@pytest.fixture
def project(machine: Machine) -> Project:
    return new_project(machine)


@pytest.fixture
def fleet_of() -> Iterator[Callable[..., Fleet]]:
    """`fleet_of(2)`: a fleet of two hosts, gone when the test ends. See fleet.py for more."""
    if reason := why_no_fleet():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(new_fleet(*args, **kwargs))
