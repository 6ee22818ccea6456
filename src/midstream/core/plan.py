"""The plan of a deploy as data: phases, tasks, calls to hosts, waves, and what hooks and `deploy.py` add to them.

Pure. `midstream plan` prints this value and `deploy/runner.py` walks through it, so what is printed is what is run.
A `Move` is one call of the control protocol on some hosts; moves happen one after the other (each is a barrier),
the hosts within a move at the same time unless `in_order`. Phases and built-in tasks carry Capistrano's names
(DESIGN 6), so that hooks port as they are; `core/points.py` has their order, `core/plan_weave.py` makes the moves.
What a move does on a host is the agent's business, not this module's.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from midstream.core.builds import Carry
from midstream.core.spec import AppSpec, CommandStep, HoldSpec
from midstream.core.values import dataclass


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
    """The calls of docs/control-protocol.md that a deploy is made of; TASK is none: it runs on the deployer."""

    OPEN = "deploy.open"
    SELECT = "deploy.select"
    UPDATE = "deploy.update"  # with the uploads before it that the host needs
    CARRY = "deploy.artifact"  # what a build made in one place, to the others
    PUBLISH = "deploy.publish"
    COMMIT = "deploy.commit"
    REVERT = "deploy.revert"
    FINISH = "deploy.finish"
    COMMAND = "deploy.command"  # a hook
    HOLD = "deploy.hold"  # another supervisor leaves its service alone, until UNHOLD
    UNHOLD = "deploy.unhold"
    TASK = "task"  # a function of deploy.py


@dataclass(frozen=True, slots=True)
class Task:
    """One line of the plan: what is done in a move. `hosts` empty: on all hosts of the move."""

    phase: Phase
    name: str
    note: str = ""
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hook:
    """One command of `[[hooks]]` in this run. name: unique in the plan, the same in every run of the same file. where:
    the folder it runs in: `release` (the new one), or `current` (the committed one) as long as there is no new one."""

    name: str
    step: CommandStep
    undo: CommandStep | None = None
    where: str = "current"


@dataclass(frozen=True, slots=True)
class Attached:
    """A task of `deploy.py` at a point of the deploy. hosts: those it names by its roles; empty: all."""

    when: str
    point: str
    task: str
    description: str = ""
    roles: tuple[str, ...] = ()
    once: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """One call on some hosts. `in_order`: one host after the other, in this order. `migrate`: the hosts of this
    `deploy.update` run the migration too. `wave` counts the publishing moves from 1. `until`: the part of the work that
    the call stops before (`core.points.Part`); "" goes to its end. `point`: of a COMMAND, TASK, HOLD or UNHOLD, as in
    "after check". `carry`: of CARRY; of UPDATE: it runs the build steps before that one's files are carried.
    `around`: of PUBLISH: what is done on each host just before and after its handover."""

    call: Call
    hosts: tuple[str, ...]
    tasks: tuple[Task, ...]
    in_order: bool = False
    migrate: bool = False
    wave: int = 0
    until: str = ""
    point: str = ""
    hook: Hook | None = None
    task: str = ""
    hold: HoldSpec | None = None
    around: tuple[Move, ...] = ()
    carry: Carry | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All of a run, in order. `coordinator` is the host on which the decision is made durable first. `back`: hooks and
    tasks of the way back, which are run when the run fails."""

    app: str
    stage: str
    kind: Kind
    hosts: tuple[str, ...]
    coordinator: str
    moves: tuple[Move, ...]
    back: tuple[Move, ...] = ()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All of them, in the order in which they happen, the way back behind them."""
        return tuple(task for move in (*self.moves, *self.back) for one in _in_time(move) for task in one.tasks)

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
    """Hosts whose services name no role: all-worker hosts in front of everybody, others behind. One without any service
    of its own, but with one that is held for it, is a worker host."""
    if not spec.services and spec.holds:
        return -1
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


def lock_order(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """The order in which locks are taken: the same in every run, whatever the order in the file, so that two runs with
    hosts in common meet at the first of these, and neither waits for what the other has. By address, the user apart."""
    return tuple(sorted(hosts, key=lambda host: (host.rpartition("@")[2], host)))


def deploy_plan(
    specs: Mapping[str, AppSpec], *, max_parallel: int | None = None, attached: tuple[Attached, ...] = ()
) -> Plan:
    """The plan of a deploy. specs: host name -> resolved spec, in the stage's order; raises ValueError when empty.
    max_parallel: None takes the spec's. attached: the tasks of `deploy.py`."""
    from midstream.core.plan_weave import Weave

    return Weave(Kind.DEPLOY, specs, max_parallel, attached).plan()


def rollback_plan(
    specs: Mapping[str, AppSpec],
    *,
    release: str = "",
    max_parallel: int | None = None,
    attached: tuple[Attached, ...] = (),
) -> Plan:
    """The plan of a rollback, to `release` or to the last proven one before the committed one."""
    from midstream.core.plan_weave import Weave

    return Weave(Kind.ROLLBACK, specs, max_parallel, attached, release).plan()


def plan_lines(plan: Plan) -> list[str]:
    """The plan as text, a line an element, in the order in which it happens."""
    lines = []
    phase: Phase | None = None
    for move in plan.moves:
        if move.call is Call.PUBLISH and len(plan.waves) > 1:
            lines.append(f"{Phase.PUBLISHING.value}  wave {move.wave} of {len(plan.waves)}")
            phase = Phase.PUBLISHING
        for one in _in_time(move):
            for task in one.tasks:
                if task.phase is not phase:
                    phase = task.phase
                    lines.append(phase.value)
                lines.append(_line(one, task))
    if plan.back:
        lines.append("if it fails")
        lines += [_line(move, task) for move in plan.back for task in move.tasks]
    return lines


def _in_time(move: Move) -> list[Move]:
    """The move, with what goes around its handovers at its place."""
    before = [one for one in move.around if one.point.startswith("before")]
    after = [one for one in move.around if one.point.startswith("after")]
    return [*before, move, *after]


def _line(move: Move, task: Task) -> str:
    where = ", ".join(task.hosts or move.hosts)
    return f"  {task.name:<30} {where:<16} {task.note}".rstrip()
