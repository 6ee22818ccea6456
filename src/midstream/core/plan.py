"""The plan of a deploy as data: phases, tasks, calls to hosts, waves.

Pure. `midstream plan` prints this value and `deploy/runner.py` walks through it, so what is printed is what is run.
A `Move` is one call of the control protocol on some hosts; moves happen one after the other (each is a barrier),
the hosts within a move at the same time unless `in_order`. Phases and built-in tasks carry Capistrano's names
(DESIGN 6), so that hooks port as they are. What a move does on a host is the agent's business, not this module's.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from midstream.core.spec import AppSpec, HandoverPolicy, ServiceSpec, Source


class Kind(enum.Enum):
    """What a run is for; the words of `deploy.open`."""

    DEPLOY = "deploy"
    ROLLBACK = "rollback"


class Phase(enum.Enum):
    """Capistrano's phases, in their order; the last three only happen on the way back."""

    STARTING = "starting"
    CHECK = "check"
    STARTED = "started"
    UPDATING = "updating"
    UPDATED = "updated"
    PUBLISHING = "publishing"
    PUBLISHED = "published"
    FINISHING = "finishing"
    FINISHED = "finished"
    REVERTING = "reverting"
    REVERTED = "reverted"
    FAILED = "failed"


class Call(enum.Enum):
    """The calls of docs/control-protocol.md that a deploy is made of."""

    OPEN = "deploy.open"
    SELECT = "deploy.select"
    UPDATE = "deploy.update"  # with the uploads before it that the host needs
    PUBLISH = "deploy.publish"
    COMMIT = "deploy.commit"
    REVERT = "deploy.revert"
    FINISH = "deploy.finish"


@dataclass(frozen=True, slots=True)
class Task:
    """One line of the plan: what is done in a move. `hosts` empty: on all hosts of the move."""

    phase: Phase
    name: str
    note: str = ""
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Move:
    """One call on some hosts. `in_order`: one host after the other, in this order. `migrate`: the hosts of this
    `deploy.update` run the migration too. `wave` counts the publishing moves from 1."""

    call: Call
    hosts: tuple[str, ...]
    tasks: tuple[Task, ...]
    in_order: bool = False
    migrate: bool = False
    wave: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """All of a run, in order. `coordinator` is the host on which the decision is made durable first."""

    app: str
    stage: str
    kind: Kind
    hosts: tuple[str, ...]
    coordinator: str
    moves: tuple[Move, ...]

    @property
    def waves(self) -> tuple[tuple[str, ...], ...]:
        return tuple(move.hosts for move in self.moves if move.call is Call.PUBLISH)


def primary_of(role: str, specs: Mapping[str, AppSpec]) -> str:
    """The first host with that role; where no host has it, the first host (a stage that is just this machine).

    specs: host name -> resolved spec, in the stage's order, at least one.
    """
    return next((host for host, spec in specs.items() if role in spec.roles), next(iter(specs)))


def waves_of(specs: Mapping[str, AppSpec], max_parallel: int = 0) -> tuple[tuple[str, ...], ...]:
    """The hosts in the order of their handover: one wave per role, workers first, a host once, in its last role.

    Workers first, because new web code may enqueue jobs that old workers do not know; and a host that has both waits
    for its last role, so that no new web code runs before the other hosts' workers are new.
    max_parallel: at most so many hosts at a time, 0 for no limit.
    """
    rank = {role: index for index, role in enumerate(_roles_workers_first(specs))}
    groups: dict[int, list[str]] = {}
    for host, spec in specs.items():
        ranks = [rank[role] for role in _roles_with_services(spec)]
        groups.setdefault(max(ranks, default=_rank_without_role(spec, len(rank))), []).append(host)
    waves: list[tuple[str, ...]] = []
    for _, hosts in sorted(groups.items()):
        size = max_parallel if max_parallel > 0 else len(hosts)
        waves += [tuple(hosts[start : start + size]) for start in range(0, len(hosts), size)]
    return tuple(waves)


def _rank_without_role(spec: AppSpec, last: int) -> int:
    """Hosts whose services name no role: all-worker hosts in front of everybody, others behind."""
    return -1 if spec.services and not any(s.listen for s in spec.services.values()) else last


def _roles_with_services(spec: AppSpec) -> list[str]:
    return [role for role in spec.roles if any(role in service.roles for service in spec.services.values())]


def _roles_workers_first(specs: Mapping[str, AppSpec]) -> list[str]:
    listens: dict[str, bool] = {}
    for spec in specs.values():
        for role in _roles_with_services(spec):
            here = any(service.listen for service in spec.services.values() if role in service.roles)
            listens[role] = listens.get(role, False) or here
    return sorted(listens, key=lambda role: listens[role])


def deploy_plan(specs: Mapping[str, AppSpec], *, max_parallel: int = 0) -> Plan:
    """The plan of a deploy. specs: host name -> resolved spec, in the stage's order; raises ValueError when empty."""
    hosts, first = _hosts_and_first(specs)
    publishes = _publishes(specs, max_parallel)
    moves = [_open(hosts), *_updates(hosts, specs), *publishes, _commit(hosts), _finish(hosts, first)]
    return Plan(first.app, first.stage, Kind.DEPLOY, hosts, hosts[0], tuple(moves))


def rollback_plan(specs: Mapping[str, AppSpec], *, release: str = "", max_parallel: int = 0) -> Plan:
    """The plan of a rollback, to `release` or to the last proven one before the committed one."""
    hosts, first = _hosts_and_first(specs)
    note = f"to {release}" if release else "to the last proven release before the committed one"
    select = Move(Call.SELECT, hosts, (Task(Phase.REVERTING, "deploy:revert_release", note),), in_order=len(hosts) > 1)
    moves = [_open(hosts), select, *_publishes(specs, max_parallel), _commit(hosts), _finish(hosts, first)]
    return Plan(first.app, first.stage, Kind.ROLLBACK, hosts, hosts[0], tuple(moves))


def _hosts_and_first(specs: Mapping[str, AppSpec]) -> tuple[tuple[str, ...], AppSpec]:
    if not specs:
        raise ValueError("a plan needs at least one host")
    return tuple(specs), next(iter(specs.values()))


def _open(hosts: tuple[str, ...]) -> Move:
    return Move(
        Call.OPEN,
        hosts,
        (
            Task(Phase.STARTING, "deploy:starting", "take the lock, settle an undecided earlier deploy"),
            Task(Phase.CHECK, "deploy:check", "folders, linked files, free space, ports, grants"),
            Task(Phase.STARTED, "deploy:set_previous_revision"),
        ),
    )


def _updates(hosts: tuple[str, ...], specs: Mapping[str, AppSpec]) -> list[Move]:
    """The hosts that do not migrate first, so that no schema changes while a build can still fail elsewhere."""
    spec = next(iter(specs.values()))
    if spec.migrate is None:
        return [Move(Call.UPDATE, hosts, _update_tasks(hosts, specs))]
    primary = primary_of(spec.migrate.role, specs)
    others = tuple(host for host in hosts if host != primary)
    moves = [Move(Call.UPDATE, others, _update_tasks(others, specs))] if others else []
    shown = "; ".join(_command(step.run) for step in spec.migrate.run)
    migrate = Task(Phase.UPDATED, "deploy:migrate", f"once, here: {shown}")
    tasks = (*_update_tasks((primary,), specs), migrate)
    return [*moves, Move(Call.UPDATE, (primary,), tasks, migrate=True)]


def _update_tasks(hosts: tuple[str, ...], specs: Mapping[str, AppSpec]) -> tuple[Task, ...]:
    spec = specs[hosts[0]]
    fetched = f"fetched by the host from {spec.repository}"
    pushed = "objects pushed from here, only what the host lacks"
    tasks = [
        Task(Phase.UPDATING, "git:update", fetched if spec.source is Source.FETCH else pushed),
        Task(Phase.UPDATING, "deploy:new_release_path"),
        Task(Phase.UPDATING, "git:create_release", spec.repo_tree and f"only {spec.repo_tree}"),
        Task(Phase.UPDATING, "deploy:set_current_revision"),
    ]
    linked = [*spec.linked_files, *spec.linked_dirs]
    if linked:
        tasks.append(Task(Phase.UPDATING, "deploy:symlink:shared", ", ".join(linked)))
    for step in spec.build:
        name = f"deploy:build:{step.name}" if step.name else "deploy:build"
        tasks.append(Task(Phase.UPDATED, name, _command(step.run)))
    if spec.assets:
        tasks.append(Task(Phase.UPDATED, "deploy:assets", ", ".join(spec.assets)))
    return tuple(tasks)


def _publishes(specs: Mapping[str, AppSpec], max_parallel: int) -> list[Move]:
    waves = waves_of(specs, max_parallel)
    return [
        Move(Call.PUBLISH, wave, _handovers(wave, specs), wave=number) for number, wave in enumerate(waves, start=1)
    ]


def _handovers(wave: tuple[str, ...], specs: Mapping[str, AppSpec]) -> tuple[Task, ...]:
    on: dict[str, list[str]] = {}
    for host in wave:
        for name in specs[host].services:
            on.setdefault(name, []).append(host)
    tasks = []
    for name, hosts in on.items():
        where = () if len(hosts) == len(wave) else tuple(hosts)
        note = _handover_note(specs[hosts[0]].services[name])
        tasks.append(Task(Phase.PUBLISHING, f"deploy:handover:{name}", note, where))
    return tuple(tasks)


_POLICY_WORDS = {
    HandoverPolicy.OVERLAP: "new proven, then old drained",
    HandoverPolicy.DRAIN: "old quiet, new fetches, old finishes its jobs",
    HandoverPolicy.REPLACE: "old stopped, then new started",
    None: "as its profile says",
}


def _handover_note(service: ServiceSpec) -> str:
    parts = [_POLICY_WORDS[service.handover]]
    if service.instances != 1:
        parts.append(f"{service.instances} instances")
    if service.soak_s:
        parts.append(f"soaks {service.soak_s:g} s")
    return ", ".join(parts)


def _commit(hosts: tuple[str, ...]) -> Move:
    note = "the decision, durable on the coordinator first; `current` switched"
    return Move(Call.COMMIT, hosts, (Task(Phase.PUBLISHING, "deploy:symlink:release", note),), in_order=len(hosts) > 1)


def _finish(hosts: tuple[str, ...], spec: AppSpec) -> Move:
    return Move(
        Call.FINISH,
        hosts,
        (
            Task(Phase.FINISHING, "deploy:verify", "every running process is of this release"),
            Task(Phase.FINISHING, "deploy:cleanup", f"keeps {spec.keep_releases}, never a running one"),
            Task(Phase.FINISHED, "deploy:log_revision"),
        ),
    )


def _command(argv: tuple[str, ...]) -> str:
    return " ".join(argv)


def plan_lines(plan: Plan) -> list[str]:
    """The plan as text, a line an element, in the order in which it happens."""
    lines = []
    phase: Phase | None = None
    for move in plan.moves:
        if move.call is Call.PUBLISH and len(plan.waves) > 1:
            lines.append(f"{Phase.PUBLISHING.value}  wave {move.wave} of {len(plan.waves)}")
            phase = Phase.PUBLISHING
        for task in move.tasks:
            if task.phase is not phase:
                phase = task.phase
                lines.append(phase.value)
            where = ", ".join(task.hosts or move.hosts)
            lines.append(f"  {task.name:<30} {where:<16} {task.note}".rstrip())
    return lines
