"""What the runner is asked to do: values, made by the command line.

No I/O. The runner is `runner.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field

from midstream.core.plan import Plan
from midstream.core.spec import AppSpec
from midstream.core.values import dataclass
from midstream.deploy.tasks.book import TaskBook


@dataclass(frozen=True, slots=True)
class Target:
    """The revision that is deployed, resolved once. `time_s`: of the commit, unix seconds."""

    sha: str
    tree: str
    time_s: int
    branch: str
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Pack:
    """A git pack on the deployer's disk."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run. `target`: of a deploy; `release`: of a rollback, "" for the last proven one, and of a resumed
    deploy the one it began with. `pick_release` is given the ids taken on the hosts. `pack` is given the revision and
    what a host has of it, blocks (git runs; called in a thread), and answers None when the host lacks nothing.
    `pack_upon` is given one revision that a host has, and answers None as well when that is not known here."""

    deploy_id: str
    plan: Plan
    specs: Mapping[str, AppSpec]
    user: str
    pick_release: Callable[[list[str]], str]
    target: Target | None = None
    release: str = ""
    pack: Callable[[str, list[str]], Pack | None] = lambda sha, have: None
    pack_upon: Callable[[str, str], Pack | None] = lambda sha, revision: None
    checkout: Callable[[Target, str], None] | None = None  # makes a clean one in a new folder; blocks
    secrets: Mapping[str, str] = field(default_factory=dict)
    wait: bool = False
    tasks: TaskBook = field(default_factory=TaskBook)  # of deploy.py, which the plan names
    left_out: tuple[str, ...] | None = None  # the stage's other hosts; None: the stage has one host
    force: bool = False  # of a rollback: also over a migration that cannot be reversed, also to a bad release
