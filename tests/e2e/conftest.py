"""Fixtures of the end-to-end tests: a private machine, and a project on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from machine import Machine, Project, new_machine, new_project


@pytest.fixture
def machine() -> Iterator[Machine]:
    with new_machine() as started:
        yield started


@pytest.fixture
def project(machine: Machine) -> Project:
    return new_project(machine)
