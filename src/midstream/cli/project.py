"""From the project's file and repository to what is deployed: the revision, its configuration, one spec for each host.

The revision is resolved once, here (DESIGN 6). Blocks: git and files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from midstream.cli.aim import find_config
from midstream.cli.hosts import ALL, HERE, Only, choose, reach
from midstream.core.config import Config, Stage
from midstream.core.spec import AppSpec, HostSpec
from midstream.deploy.config_file import ProjectFile, open_project
from midstream.deploy.order import Target
from midstream.deploy.source import Source
from midstream.deploy.transport import Host
from midstream.errors import OperatorError
from midstream.profiles import GENERIC, SERVERS
from midstream.profiles.supervisors import SUPPORTED


@dataclass(frozen=True, slots=True)
class Project:
    """A stage ready to be deployed. `target` None: of the working copy alone (rollback). `specs`: host -> spec, in the
    stage's order, of the hosts that are meant; `reach`: how to reach each; `left_out`: the stage's other hosts. `notes`:
    sentences for the operator. `source` is to be closed."""

    file: ProjectFile
    config: Config
    stage: Stage
    specs: Mapping[str, AppSpec]
    reach: Mapping[str, Host]
    notes: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    target: Target | None = None
    source: Source | None = None

    @property
    def app(self) -> str:
        return self.stage.app.app

    def close(self) -> None:
        if self.source is not None:
            self.source.close()


def profile_names() -> tuple[str, ...]:
    """What `profile` may be."""
    return tuple(sorted({profile.name for profile in (*SERVERS, GENERIC)}))


def open_file(config_path: str) -> ProjectFile:
    """The project's file, read. Raises OperatorError when there is none."""
    path = find_config(config_path)
    if path is None:
        return open_project()  # which says that there is none
    near = os.path.relpath(path)
    return open_project(path if near.startswith("..") else near)


def of_revision(
    config_path: str,
    stage: str | None,
    *,
    branch: str = "",
    socket: str = "",
    only: Only = ALL,
    revision: str = "",
) -> Project:
    """The stage as it is at a revision: `revision` (a full one, known already), else what `branch` or the stage's own
    branch is now. Raises OperatorError with every mistake, HostError when the repository cannot be reached."""
    file = open_file(config_path)
    where = file.destination(stage)
    source = Source(where.repository)
    try:
        target = source.resolve(revision or branch or where.branch)
        text = source.show(target.sha, where.config_path)
        config = file.load(text, revision=target.sha[:12], profiles=profile_names())
        return _project(file, config, where.stage, socket, only, target, source)
    except BaseException:
        source.close()
        raise


def of_working_copy(config_path: str, stage: str | None, *, socket: str = "", only: Only = ALL) -> Project:
    """The stage as the working copy has it, without asking the repository: an outage of it blocks no rollback."""
    file = open_file(config_path)
    config = file.load(profiles=profile_names())
    return _project(file, config, stage, socket, only)


def _project(
    file: ProjectFile,
    config: Config,
    stage_name: str | None,
    socket: str,
    only: Only,
    target: Target | None = None,
    source: Source | None = None,
) -> Project:
    stage = config.stage(stage_name)
    hosts = choose(stage.hosts, only, stage.name)
    ways = reach([host.address for host in hosts], socket, of_several=len(stage.hosts) > 1)
    specs = {host.address or HERE: config.resolve(stage.name, host) for host in hosts}
    _refuse_what_would_not_happen(file, specs)
    left = tuple(host for host in stage.hosts if host not in hosts)
    notes = (
        *config.notes,
        *stage.warnings,
        *(source.notes if source else ()),
        *(_passed_over(stage, hosts) if target else ()),
    )
    left_out = tuple(host.address or HERE for host in left)
    return Project(file, config, stage, specs, ways, notes, left_out, target, source)


def _passed_over(stage: Stage, hosts: Sequence[HostSpec]) -> tuple[str, ...]:
    """What the choice of hosts takes out of a deploy. A migration is not run on a host that has not its role."""
    migrate = stage.app.migrate
    if migrate is None or any(migrate.role in host.roles for host in hosts):
        return ()
    held = ", ".join(host.address for host in stage.hosts if migrate.role in host.roles)
    return (f'a deploy of these hosts runs no migration: role "{migrate.role}" is that of {held}, left out',)


def _refuse_what_would_not_happen(file: ProjectFile, specs: Mapping[str, AppSpec]) -> None:
    """Holds of some supervisors are part of the file's language already, but nothing makes them yet: a deploy that passed
    over them in silence would be worse than none."""
    others = {hold.supervisor for spec in specs.values() for hold in spec.holds} - set(SUPPORTED)
    if others:
        raise OperatorError(
            f"this version holds services of {' and '.join(SUPPORTED)} only, not of {', '.join(sorted(others))}",
            where=f"{file.name}: holds",
            serving="unchanged: nothing was done yet",
            remedy="take those [[holds]] out, or let Midstream run the service itself ([services.NAME])",
        )
