"""How a plan is made: the parts of the work, cut into calls where a hook or a task of `deploy.py` lies between them.

Pure. A call that nothing lies inside of is made whole, so a deploy without hooks is five round trips to a host. A point
inside a call cuts it in two (`Move.until`): everything up to the point has then ended on all hosts before the hook runs,
and nothing after it has begun.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from midstream.core import points
from midstream.core.builds import HERE, Carry, carries, steps_here, stretch
from midstream.core.plan import Attached, Call, Hook, Kind, Move, Phase, Plan, Task, primary_of, waves_of
from midstream.core.points import HANDOVER, Gap, Part, build_task, handover_task, phase_of
from midstream.core.spec import AppSpec, CommandStep, HandoverPolicy, HoldSpec, HookSpec, ServiceSpec, Source

_CALL_OF = {
    Part.LOCK: Call.OPEN,
    Part.CHECK: Call.OPEN,
    Part.SELECT: Call.SELECT,
    Part.FETCH: Call.UPDATE,
    Part.RELEASE: Call.UPDATE,
    Part.BUILD: Call.UPDATE,
    Part.ASSETS: Call.UPDATE,
    Part.MIGRATE: Call.UPDATE,
    Part.PUBLISH: Call.PUBLISH,
    Part.COMMIT: Call.COMMIT,
    Part.VERIFY: Call.FINISH,
    Part.CLEANUP: Call.FINISH,
    Part.LOG: Call.FINISH,
    Part.CLOSE: Call.FINISH,
}
_POLICY_WORDS = {
    HandoverPolicy.OVERLAP: "new proven, then old drained",
    HandoverPolicy.DRAIN: "old quiet, new fetches, old finishes its jobs",
    HandoverPolicy.REPLACE: "old stopped, then new started",
    None: "as its profile says",
}
_ORDER_OF = {Kind.DEPLOY: points.DEPLOY, Kind.ROLLBACK: points.ROLLBACK}
_BACK_OF: dict[Kind, Gap] = {
    Kind.DEPLOY: (*points.BACK_BEFORE, *points.BACK_AFTER),
    Kind.ROLLBACK: points.ROLLBACK_BACK_AFTER,
}


@dataclass(frozen=True, slots=True)
class _Extra:
    """What lies at a point: a hook or a task, on some hosts."""

    point: str  # "after check"
    hosts: tuple[str, ...]
    note: str
    hook: HookSpec | None = None
    task: str = ""
    hold: HoldSpec | None = None
    begins: bool = False  # the hold


@dataclass(frozen=True, slots=True)
class Weave:
    """Makes one plan. specs: host -> resolved spec, in the stage's order. Raises ValueError when there are none."""

    kind: Kind
    specs: Mapping[str, AppSpec]
    max_parallel: int | None = None
    attached: tuple[Attached, ...] = ()
    release: str = ""

    def plan(self) -> Plan:
        if not self.specs:
            raise ValueError("a plan needs at least one host")
        first, extras = self._first, self._extras()
        back = [self._extra_move(extra, "current") for extra in self._at(_BACK_OF[self.kind], extras)]
        moves = tuple(self._moves(extras))
        return Plan(first.app, first.stage, self.kind, self._hosts, self._hosts[0], moves, tuple(back))

    @property
    def _hosts(self) -> tuple[str, ...]:
        return tuple(self.specs)

    @property
    def _first(self) -> AppSpec:
        return next(iter(self.specs.values()))

    # -- cutting ---------------------------------------------------------------------------------------------------

    def _moves(self, extras: list[_Extra]) -> Iterator[Move]:
        segment: list[Part] = []
        has_release = False
        order = [item for item in _ORDER_OF[self.kind] if not isinstance(item, Part) or self._has_work(item)]
        for index, item in enumerate(order):
            if isinstance(item, Part):
                if segment and _CALL_OF[segment[-1]] is not _CALL_OF[item]:
                    yield from self._segment(segment, None, extras)
                    segment = []
                segment.append(item)
                has_release = has_release or item in (Part.RELEASE, Part.SELECT)
                continue
            here = self._at(item, extras)
            if not here:
                continue
            yield from self._segment(segment, _next_part(order, index), extras)
            segment = []
            for extra in here:
                yield self._extra_move(extra, "release" if has_release else "current")
        yield from self._segment(segment, None, extras)

    def _has_work(self, part: Part) -> bool:
        """A call is not cut in two, or made, for a part that does nothing in this app."""
        match part:
            case Part.BUILD:
                return any(spec.build for spec in self.specs.values())
            case Part.ASSETS:
                return any(spec.assets for spec in self.specs.values())
            case Part.MIGRATE:
                migrate = self._first.migrate
                return migrate is not None and any(
                    not spec.roles or migrate.role in spec.roles for spec in self.specs.values()
                )
        return True

    def _segment(self, parts: list[Part], following: Part | None, extras: list[_Extra]) -> Iterator[Move]:
        """The moves of parts that belong to one call; it stops before `following` where that belongs to it too."""
        if not parts:
            return
        call = _CALL_OF[parts[0]]
        until = following if following is not None and _CALL_OF[following] is call else None
        match call:
            case Call.OPEN:
                yield Move(call, self._hosts, tuple(_open_tasks(parts)), until="check" if until else "")
            case Call.SELECT:
                yield self._select()
            case Call.UPDATE:
                yield from self._updates(parts, until)
            case Call.PUBLISH:
                yield from self._publishes(extras)
            case Call.COMMIT:
                yield self._commit()
            case _:
                yield Move(call, self._hosts, tuple(self._finish_tasks(parts)), until=until.value if until else "")

    def _updates(self, parts: list[Part], until: Part | None) -> Iterator[Move]:
        """The migration is a call of its own, once every host has built: no schema changes while a build can still fail
        elsewhere. A single host does all in one."""
        if Part.BUILD in parts and (carried := carries(self.specs)):
            at = parts.index(Part.BUILD)
            yield from self._carried(parts[:at], carried)
            parts = parts[at:]
        migrates = Part.MIGRATE in parts
        spec = self._first
        stop = until.value if until not in (None, Part.MIGRATE) else ""
        others = [part for part in parts if part is not Part.MIGRATE]
        migrate: tuple[Task, ...] = ()
        if migrates and spec.migrate is not None:
            shown = "; ".join(_command(step.run) for step in spec.migrate.run)
            migrate = (_task("deploy:migrate", f"once, here: {shown}"),)
        # With the call that does not stop before the rest of the work; where it is cut before the migration, with the first.
        stored = (_task("deploy:store_spec", "the configuration, beside the release"),) if others and not stop else ()
        if migrates and len(self.specs) == 1:
            yield Move(Call.UPDATE, self._hosts, (*self._update_tasks(others), *stored, *migrate), migrate=True)
            return
        if others:
            yield Move(Call.UPDATE, self._hosts, (*self._update_tasks(others), *stored), until=stop)
        if migrates and spec.migrate is not None:
            yield Move(Call.UPDATE, (primary_of(spec.migrate.role, self.specs),), migrate, migrate=True)

    def _carried(self, before: list[Part], carried: tuple[Carry, ...]) -> Iterator[Move]:
        """Builds up to the last carried step: on all hosts what comes before it in the file, then its files' journey."""
        tasks = list(self._update_tasks(before))
        hosts = self._hosts
        for number, carry in enumerate(carried):
            builds = self._builds(carry)
            if number:
                hosts = tuple(host for host, steps in builds.items() if steps)
            if hosts:
                made = (*tasks, *_build_tasks(builds))
                yield Move(Call.UPDATE, hosts, made, until=Part.ASSETS.value, carry=carry)
            tasks = []
            yield Move(Call.CARRY, carry.hosts, tuple(self._journey(carry)), carry=carry)

    def _builds(self, before: Carry | None) -> dict[str, tuple[CommandStep, ...]]:
        return {
            host: tuple(spec.build[index] for index in stretch(self.specs, host, before))
            for host, spec in self.specs.items()
        }

    def _journey(self, carry: Carry) -> Iterator[Task]:
        label = f":{carry.name}" if carry.name else ""
        if carry.builder == HERE:
            for step in steps_here(self.specs, carry):
                note = f"in a clean checkout: {_command(step.run)}"
                yield _task(build_task(carry.name), note, ("the deployer",))
        made_on = carry.builder or "the deployer"
        yield _task(f"deploy:carry{label}", f"{', '.join(carry.files)}, from {made_on}")

    # -- hooks and tasks -------------------------------------------------------------------------------------------

    def _extras(self) -> list[_Extra]:
        """Hooks in the order of their file, then the tasks of deploy.py in the order of theirs; holds begin before what
        lies at the same point, and end after it."""
        hooks: dict[int, list[tuple[str, HookSpec]]] = {}
        for host, spec in self.specs.items():
            for hook in spec.hooks:
                hooks.setdefault(hook.number, []).append((host, hook))
        found = []
        for _, where in sorted(hooks.items()):
            hook = where[0][1]
            hosts = tuple(host for host, _ in where)
            hosts = hosts[:1] if hook.step.on == "primary" else hosts
            note = _command(hook.step.run) + (f"; if it fails: {_command(hook.undo.run)}" if hook.undo else "")
            found.append(_Extra(f"{hook.when} {hook.point}", hosts, note, hook))
        for task in self.attached:
            hosts = tuple(host for host, spec in self.specs.items() if not task.roles or {*task.roles} & {*spec.roles})
            hosts = hosts[:1] if task.once else hosts
            if hosts:
                found.append(_Extra(f"{task.when} {task.point}", hosts, task.description, None, task.task))
        begun, ended = self._holds()
        return [*begun, *found, *ended]

    def _holds(self) -> tuple[list[_Extra], list[_Extra]]:
        """-> what begins and what ends the spans. Those that end last are begun first."""
        hosts: dict[HoldSpec, list[str]] = {}
        for host, spec in self.specs.items():
            for hold in spec.holds:
                hosts.setdefault(hold, []).append(host)
        begun, ended = [], []
        for hold, names in hosts.items():
            span = points.span_of(hold.start, hold.end, _ORDER_OF[self.kind])
            if span is None:
                continue
            begun.append(
                _Extra(span[0], tuple(names), f"until {span[1]}, at most {hold.ttl_s:g} s", hold=hold, begins=True)
            )
            ended.append(_Extra(span[1], tuple(names), "watched again", hold=hold))
        return begun, ended

    def _at(self, gap: Gap, extras: list[_Extra]) -> list[_Extra]:
        return [extra for place in gap for extra in extras if extra.point == place]

    def _extra_move(self, extra: _Extra, where: str, hosts: tuple[str, ...] | None = None) -> Move:
        hosts = extra.hosts if hosts is None else hosts
        phase = Phase(phase_of(extra.point.partition(" ")[2]))
        if extra.hold is not None:
            call = Call.HOLD if extra.begins else Call.UNHOLD
            words = "hold" if extra.begins else "unhold"
            line = Task(phase, f"{words}:{extra.hold.supervisor}:{extra.hold.service}", f"{extra.point}: {extra.note}")
            return Move(call, hosts, (line,), point=extra.point, hold=extra.hold)
        if extra.hook is None:
            line = Task(phase, extra.task, f"{extra.point}: {extra.note}".removesuffix(": "))
            return Move(Call.TASK, hosts, (line,), point=extra.point, task=extra.task)
        spec = extra.hook
        hook = Hook(f"hook {spec.number + 1} {spec.step.name}".strip(), spec.step, spec.undo, where)
        line = Task(phase, hook.name, f"{extra.point}: {extra.note}")
        return Move(Call.COMMAND, hosts, (line,), point=extra.point, hook=hook)

    # -- the parts in words ----------------------------------------------------------------------------------------

    def _select(self) -> Move:
        note = f"to {self.release}" if self.release else "to the last proven release before the committed one"
        task = _task("deploy:revert_release", note)
        return Move(Call.SELECT, self._hosts, (task,), in_order=len(self.specs) > 1)

    def _update_tasks(self, parts: Sequence[Part]) -> Iterator[Task]:
        spec = self._first
        if Part.FETCH in parts:
            fetched = f"fetched by the host from {spec.repository}"
            pushed = "objects pushed from here, only what the host lacks"
            yield _task("git:update", fetched if spec.source is Source.FETCH else pushed)
        if Part.RELEASE in parts:
            yield _task("git:create_release", _release_note(spec))
        if Part.BUILD in parts:
            yield from _build_tasks(self._builds(None))
        if Part.ASSETS in parts:
            yield _task("deploy:assets", ", ".join(spec.assets))

    def _publishes(self, extras: list[_Extra]) -> Iterator[Move]:
        limit = self._first.max_parallel if self.max_parallel is None else self.max_parallel
        for number, wave in enumerate(waves_of(self.specs, limit), start=1):
            around = []
            for extra in self._at((f"before {HANDOVER}", f"after {HANDOVER}"), extras):
                here = tuple(host for host in wave if host in extra.hosts)
                if here:
                    around.append(self._extra_move(extra, "release", here))
            tasks = (*_handovers(wave, self.specs), *self._restarts(wave))
            yield Move(Call.PUBLISH, wave, tasks, wave=number, around=tuple(around))

    def _restarts(self, wave: tuple[str, ...]) -> Iterator[Task]:
        """Services of other supervisors that are brought to the release at this handover: those that are held then."""
        held: dict[str, list[str]] = {}
        quieted: dict[str, list[str]] = {}
        order = _ORDER_OF[self.kind]
        handover = points.place_of(f"after {HANDOVER}", order) or 0
        for host in wave:
            for hold in self.specs[host].holds:
                span = points.span_of(hold.start, hold.end, order)
                first, last = (points.place_of(moment, order) for moment in span) if span else (None, None)
                if hold.restart and first is not None and last is not None and first < handover <= last:
                    held.setdefault(f"{hold.supervisor}:{hold.service}", []).append(host)
                    if hold.quiet:
                        quieted.setdefault(hold.service, []).append(host)

        def where_of(hosts: Sequence[str]) -> tuple[str, ...]:
            return () if len(hosts) == len(wave) else tuple(hosts)

        for service, hosts in quieted.items():
            yield _task(f"external:quiet:{service}", "told to begin no further job", where_of(hosts))
        if held:
            here = [host for host in wave if any(host in hosts for hosts in held.values())]
            yield _task("external:current", "`current` moves before the others are restarted", where_of(here))
        for label, hosts in held.items():
            where = where_of(hosts)
            note = "restarted by its supervisor, read from /proc; all back if it fails"
            yield _task(handover_task(label), note, where)

    def _commit(self) -> Move:
        note = "the decision, durable on the coordinator first; `current` switched"
        task = _task("deploy:symlink:release", note)
        return Move(Call.COMMIT, self._hosts, (task,), in_order=len(self.specs) > 1)

    def _finish_tasks(self, parts: list[Part]) -> Iterator[Task]:
        if Part.VERIFY in parts:
            yield _task("deploy:verify", "every running process is of this release")
        if Part.CLEANUP in parts:
            note = f"keeps {self._first.keep_releases}, never a running one"
            yield _task("deploy:cleanup", note)
        if Part.LOG in parts:
            yield _task("deploy:log_revision")
        if Part.CLOSE in parts:
            yield _task("deploy:unlock")


def _task(name: str, note: str = "", hosts: tuple[str, ...] = ()) -> Task:
    """A task that is built in: its phase is the table's (`core/points.py`)."""
    return Task(Phase(phase_of(name)), name, note, hosts)


def _release_note(spec: AppSpec) -> str:
    """One step on a host, by the names that Capistrano has for its parts."""
    parts = ["deploy:new_release_path", "deploy:set_current_revision"]
    linked = [*spec.linked_files, *spec.linked_dirs]
    parts += [f"deploy:symlink:shared {', '.join(linked)}"] if linked else []
    return "; ".join(([f"only {spec.repo_tree}"] if spec.repo_tree else []) + [f"with {', '.join(parts)}"])


def _next_part(order: list[Part | Gap], index: int) -> Part | None:
    return next((item for item in order[index + 1 :] if isinstance(item, Part)), None)


def _open_tasks(parts: list[Part]) -> Iterator[Task]:
    if Part.LOCK in parts:
        yield _task("deploy:starting", "take the lock, settle an undecided earlier deploy")
    if Part.CHECK in parts:
        yield _task("deploy:check", "folders, linked files, free space, ports, grants")


def _build_tasks(builds: Mapping[str, tuple[CommandStep, ...]]) -> Iterator[Task]:
    """Each step once, with the hosts that have it where not all do."""
    seen: list[CommandStep] = []
    for steps in builds.values():
        seen += [step for step in steps if step not in seen]
    for step in seen:
        hosts = tuple(host for host, steps in builds.items() if step in steps)
        yield _task(build_task(step.name), _command(step.run), () if len(hosts) == len(builds) else hosts)


def _handovers(wave: tuple[str, ...], specs: Mapping[str, AppSpec]) -> tuple[Task, ...]:
    on: dict[str, list[str]] = {}
    for host in wave:
        for name in (one.name for one in specs[host].services.values() if one.autostart):
            on.setdefault(name, []).append(host)
    tasks = []
    for name, hosts in on.items():
        where = () if len(hosts) == len(wave) else tuple(hosts)
        note = _handover_note(specs[hosts[0]].services[name])
        tasks.append(_task(handover_task(name), note, where))
    return tuple(tasks)


def _handover_note(service: ServiceSpec) -> str:
    parts = [_POLICY_WORDS[service.handover]]
    if service.instances != 1:
        parts.append(f"{service.instances} instances")
    if service.soak_s:
        parts.append(f"soaks {service.soak_s:g} s")
    return ", ".join(parts)


def _command(argv: tuple[str, ...]) -> str:
    return " ".join(argv)
