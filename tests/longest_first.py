"""The order of a run with several workers: files with long tests come first, so that no run ends with one of them alone.

Used by conftest.py. pytest-xdist (--dist worksteal) gives each worker one stretch of the list, and who has nothing left to do
takes from the end of another's; so the long files are dealt out to the beginnings of the stretches. Tests of one file stay
together, for what they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

# By the length of their longest test, the longest first.
LONG = (
    "test_wagtail", "test_article", "test_workers", "test_fleet_upgrade", "test_external", "test_demo",
    "test_external_sidekiq", "test_capistrano_turns", "test_fleet_crash", "test_serve_apps", "test_serve_upgrades",
    "test_fleet_faults", "test_crash_everywhere", "test_builds", "test_serve_fuzz", "test_fleet_cut", "test_profiles_real",
    "test_fleet_deploy", "test_fleet_clock", "test_fleet_four", "test_handovers", "test_capistrano_layout",
    "test_faults_host", "test_serve_supervised", "test_steps_killed", "test_hooks", "test_trust_leaks", "test_fleet_setup",
    "test_locks", "test_steps_monit",
)  # fmt: skip


class Item(Protocol):
    @property
    def nodeid(self) -> str: ...


I = TypeVar("I", bound=Item)  # noqa: E741


def dealt(items: Sequence[I], workers: int) -> list[I]:
    """The same items, each once, in an order that is the same in all workers."""
    if workers < 2:
        return list(items)
    long: dict[str, list[I]] = {name: [] for name in LONG}
    rest: list[I] = []
    for item in items:
        long.get(_file(item), rest).append(item)
    fronts: list[list[I]] = [[] for _ in range(workers)]
    for number, name in enumerate(LONG):
        fronts[number % workers] += long[name]
    order: list[I] = []
    for number, front in enumerate(fronts):
        size = (len(items) - len(order)) // (workers - number)  # as the scheduler cuts its list
        rest = front[size:] + rest  # where a run is small
        order += front[:size]
        room = size - len(front[:size])
        order += rest[:room]
        rest = rest[room:]
    return order


def _file(item: Item) -> str:
    return item.nodeid.partition("::")[0].rpartition("/")[2].removesuffix(".py")
