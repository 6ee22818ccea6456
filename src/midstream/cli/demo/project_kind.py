"""What the demo has to know of a project that it deploys: its commits in order, and the requests to send to it.

Values only. Runs in the demo.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Prospect(enum.Enum):
    """What a release is made to do."""

    GOOD = "good"
    DOES_NOT_BOOT = "does not boot"
    ANSWERS_500 = "answers 500"


@dataclass(frozen=True, slots=True)
class Change:
    """One commit. files: path -> whole text; `${repository}`, `${deploy_to}`, `${port}`, `${python}`, `${pip}` and
    `${key_file}` are filled in in midstream.toml."""

    subject: str
    prospect: Prospect
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Paths that clients ask for. order: where orders are posted, "" where the project has none."""

    host: str
    page: str
    slow_page: str
    order: str


@dataclass(frozen=True, slots=True)
class ProjectKind:
    """wheels: requirements to fetch from the package index before the first deploy, "" for none. database: where, in
    `shared`, the orders are kept (SQLite), "" for none."""

    name: str
    wheels: str
    changes: tuple[Change, ...]
    traffic: Traffic
    database: str
