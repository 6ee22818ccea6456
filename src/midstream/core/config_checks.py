"""What must hold between the keys of one resolved configuration: ports, names, roles, placeholders, cycles.

Pure. Each function takes specs whose single values were read already and yields `Misfit`s with paths as in the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from midstream.core import placeholders, points
from midstream.core.config_lines import Path
from midstream.core.config_mistakes import Misfit, nearest
from midstream.core.spec import AppSpec, EnvSpec, HostSpec, ListenSpec, Readiness, ServiceSpec

_UNIX_PATH_MAX = 107  # sun_path in unix(7), less its NUL


def check(spec: AppSpec, hosts: Sequence[HostSpec], profiles: Collection[str]) -> Iterator[Misfit]:
    """All that does not fit in a stage. spec: with all services of the stage. hosts: with their roles filled in.
    profiles: the known names; empty: not checked."""
    yield from _linked(spec)
    yield from _env(spec.env, ("env",))
    for service in spec.services.values():
        yield from _service(service, spec, profiles)
    yield from _cycles(spec.services)
    yield from _addresses_taken_twice(spec, hosts)
    yield from _carried(spec)
    yield from _steps(spec)
    yield from _migration(spec, hosts)
    yield from _holds(spec)
    yield from _deploy_to(spec, hosts)


def _holds(spec: AppSpec) -> Iterator[Misfit]:
    """A span begins before it ends, in the deploy's own order: on the way back nothing is left to be held."""
    for index, hold in enumerate(spec.holds):
        places = {
            key: points.place_of(moment, points.DEPLOY) for key, moment in (("from", hold.start), ("to", hold.end))
        }
        for key, moment in (("from", hold.start), ("to", hold.end)):
            if places[key] is None:
                yield Misfit(f'"{moment}" does not come in a deploy that goes well', ("holds", index, key))
        first, last = places["from"], places["to"]
        if first is not None and last is not None and first >= last:
            yield Misfit(f'"{hold.end}" does not come after "{hold.start}"', ("holds", index, "to"))
        if hold.control and not hold.control.startswith("/"):
            yield Misfit("expected an absolute path", ("holds", index, "control"))
    names = [(hold.supervisor, hold.service) for hold in spec.holds]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Misfit(f"{name[1]!r} of {name[0]} is held twice", ("holds", index, "service"))


def roles_of(spec: AppSpec) -> tuple[str, ...]:
    """Every role that something in the configuration asks for."""
    used = {role for service in spec.services.values() for role in service.roles}
    used |= {role for step in spec.build for role in step.roles}
    used |= {role for hook in spec.hooks for role in hook.step.roles}
    used |= {role for hold in spec.holds for role in hold.roles}
    used |= {spec.migrate.role} if spec.migrate else set()
    return tuple(sorted(used))


def concerns(roles: Collection[str], host_roles: Collection[str]) -> bool:
    """Whether what is for `roles` (none: for all) concerns a host with `host_roles`."""
    return not roles or not set(roles).isdisjoint(host_roles)


def warnings(spec: AppSpec, hosts: Sequence[HostSpec]) -> tuple[str, ...]:
    """What is allowed and was probably not meant."""
    held = {role for host in hosts for role in host.roles}
    used = set(roles_of(spec))
    found = [f'role "{role}" is asked for, and no host of stage {spec.stage} has it' for role in sorted(used - held)]
    for service in spec.services.values():
        if not concerns(service.roles, held):
            found.append(f"service {service.name} runs on no host of stage {spec.stage}")
    for role in sorted(held - used):
        near = nearest(role, used)
        found.append(f'role "{role}" of a host is asked for by nothing' + (f'; did you mean "{near}"?' if near else ""))
    return tuple(found)


# one service


def _service(service: ServiceSpec, spec: AppSpec, profiles: Collection[str]) -> Iterator[Misfit]:
    path: Path = ("services", service.name)
    if profiles and service.profile and service.profile not in profiles:
        near = nearest(service.profile, profiles)
        hint = f'did you mean "{near}"?' if near else f"known are {', '.join(sorted(profiles))}"
        yield Misfit(f'unknown profile "{service.profile}"; {hint}', (*path, "profile"))
    yield from _listeners(service, spec, path)
    yield from _health(service, path)
    yield from _readiness(service, path)
    yield from _env(service.env, (*path, "env"))
    yield from _placeholders_of(service, path)
    if service.backoff.max_s < max(service.backoff.first_s, service.backoff.second_s):
        yield Misfit('"max" is shorter than "first" or "second"', (*path, "backoff"))
    for index, other in enumerate(service.depends_on):
        if other not in spec.services:
            near = nearest(other, spec.services)
            hint = f'; did you mean "{near}"?' if near else ""
            yield Misfit(f'there is no service "{other}"{hint}', (*path, "depends_on", index))


def _listeners(service: ServiceSpec, spec: AppSpec, path: Path) -> Iterator[Misfit]:
    names: set[str] = set()
    for index, listener in enumerate(service.listen):
        here: Path = (*path, "listen", index)
        if listener.name in names:
            yield Misfit(f'two listeners of this service are called "{listener.name}"', here)
        names.add(listener.name)
        yield from _unknown(listener.address, placeholders.IN_ADDRESS, here)
        if listener.address.startswith("unix://"):
            if len(_expand(listener.address, spec).encode()) - len("unix://") > _UNIX_PATH_MAX:
                yield Misfit(f"the path of a unix socket has at most {_UNIX_PATH_MAX} bytes", here)
        elif listener.mode is not None or listener.owner:
            yield Misfit('"mode" and "owner" are for unix sockets', here)


def _health(service: ServiceSpec, path: Path) -> Iterator[Misfit]:
    health = service.health
    if health is None:
        return
    here: Path = (*path, "health")
    for word in health.command:
        yield from _unknown(word, placeholders.IN_ENV, (*here, "command"))
    if not health.command and not service.listen:
        yield Misfit("there is nobody to ask: the service has no listener; give it one, or check by command", here)
    names = [listener.name for listener in service.listen]
    if health.listener and health.listener not in names:
        yield Misfit(f'no listener is called "{health.listener}"; there is {_quoted(names)}', (*here, "listener"))


def _readiness(service: ServiceSpec, path: Path) -> Iterator[Misfit]:
    here: Path = (*path, "ready")
    if service.ready is Readiness.HEALTH and service.health is None:
        yield Misfit('"health" needs a health check, and the service has none', here)
    if service.ready is Readiness.LISTENING and not service.listen:
        yield Misfit('"listening" needs a listener, and the service has none', here)
    if service.ready is Readiness.FD and not any("{ready_fd}" in word for word in service.command):
        yield Misfit('"fd" needs {ready_fd} in the command', here)
    elif service.ready is not Readiness.FD and any("{ready_fd}" in word for word in service.command):
        yield Misfit('the command has {ready_fd}; expected ready = "fd"', (*path, "command"))


def _placeholders_of(service: ServiceSpec, path: Path) -> Iterator[Misfit]:
    names = {listener.name for listener in service.listen}
    for word in service.command:
        yield from _unknown(word, placeholders.IN_SERVICE, (*path, "command"))
        for one in placeholders.find(word):
            if one.word == "fd" and not names:
                yield Misfit(f"{one} stands for a listener, and the service has none", (*path, "command"))
            elif one.word == "fd" and one.name and one.name not in names:
                yield Misfit(
                    f'{one}: no listener is called "{one.name}"; there is {_quoted(names)}', (*path, "command")
                )
    yield from _unknown(service.log.path, placeholders.IN_ADDRESS, (*path, "log", "path"))


def _env(env: EnvSpec, path: Path) -> Iterator[Misfit]:
    for name, value in env.variables.items():
        yield from _unknown(value, placeholders.IN_ENV, (*path, name))
    for index, entry in enumerate(env.path):
        yield from _unknown(entry, placeholders.IN_ENV, (*path, "path", index))


def _unknown(text: str, allowed: Collection[str], path: Path) -> Iterator[Misfit]:
    for one in placeholders.find(text):
        if one.word in allowed and (not one.name or one.word == "fd"):
            continue
        escaped = f"write {{{one!s}}} if {one} is meant as it stands"
        if one.word in placeholders.MEANINGS:
            yield Misfit(f"{one} cannot be used here; {escaped}", path)
        else:
            near = nearest(one.word, allowed)
            known = f'did you mean "{{{near}}}"?' if near else f"known are {_braced(allowed)};"
            yield Misfit(f"unknown placeholder {one}; {known} {escaped}", path)


# between services and hosts


def _cycles(services: Mapping[str, ServiceSpec]) -> Iterator[Misfit]:
    reported: set[frozenset[str]] = set()
    for start in services:
        cycle = _cycle_from(start, services)
        if cycle and frozenset(cycle) not in reported:
            reported.add(frozenset(cycle))
            yield Misfit(f"goes in a circle: {' -> '.join((*cycle, start))}", ("services", start, "depends_on"))


def _cycle_from(start: str, services: Mapping[str, ServiceSpec]) -> tuple[str, ...]:
    """A way along depends_on from `start` back to it; () when there is none."""
    ways: list[tuple[str, ...]] = [(start,)]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        for other in services[way[-1]].depends_on:
            if other == start:
                return way
            if other in services and other not in seen:
                seen.add(other)
                ways.append((*way, other))
    return ()


def _addresses_taken_twice(spec: AppSpec, hosts: Sequence[HostSpec]) -> Iterator[Misfit]:
    taken = [(service, index) for service in spec.services.values() for index in range(len(service.listen))]
    for (one, first), (other, second) in combinations(taken, 2):
        together = any(concerns(one.roles, host.roles) and concerns(other.roles, host.roles) for host in hosts)
        if together and _collide(one.listen[first], other.listen[second]):
            yield Misfit(
                f"{other.listen[second].address} is taken by services.{one.name}.listen[{first}] on the same host",
                ("services", other.name, "listen", second),
            )


def _collide(one: ListenSpec, other: ListenSpec) -> bool:
    if one.address == other.address:
        return not one.address.endswith(":0")
    if not (one.address.startswith("tcp://") and other.address.startswith("tcp://")):
        return False
    (host, _, port), (other_host, _, other_port) = (a.address[6:].rpartition(":") for a in (one, other))
    if port != other_port or port == "0":
        return False
    # 0.0.0.0 and a single address of IPv4 cannot both listen, nor [::] (which takes IPv4 too) and anything
    same_family = host.startswith("[") == other_host.startswith("[")
    return "[::]" in (host, other_host) or (same_family and "0.0.0.0" in (host, other_host))


# the rest


def _linked(spec: AppSpec) -> Iterator[Misfit]:
    seen: dict[str, str] = {}
    for key, paths in (("linked_dirs", spec.linked_dirs), ("linked_files", spec.linked_files)):
        for index, path in enumerate(paths):
            outer = next((other for other in seen if path == other or path.startswith(other + "/")), None)
            inner = next((other for other in seen if other.startswith(path + "/")), None)
            if outer == path:
                yield Misfit(f'"{path}" is linked twice (also in {seen[path]})', (key, index))
            elif outer or inner:
                yield Misfit(f'"{path}" and "{outer or inner}" are linked one inside the other', (key, index))
            seen[path] = key


def _carried(spec: AppSpec) -> Iterator[Misfit]:
    """What is carried into a release must not end up in what all releases share."""
    for step in spec.build:
        for path in step.files:
            for linked in (*spec.linked_dirs, *spec.linked_files):
                if path == linked or path.startswith(f"{linked}/") or linked.startswith(f"{path}/"):
                    yield Misfit(
                        f'"{path}" of a build\'s files and the linked "{linked}" lie in each other', ("build",)
                    )


def _steps(spec: AppSpec) -> Iterator[Misfit]:
    commands: list[tuple[Path, Iterable[str], Mapping[str, str]]] = []
    commands += [(("build",), step.run, step.env) for step in spec.build]
    commands += [(("migrate", "run"), step.run, step.env) for step in (spec.migrate.run if spec.migrate else ())]
    for hook in spec.hooks:
        commands.append((("hooks",), hook.step.run, hook.step.env))
        commands.append((("hooks",), hook.undo.run if hook.undo else (), {}))
    for path, words, env in commands:
        for word in (*words, *env.values()):
            yield from _unknown(word, placeholders.IN_STEP, path)


def _migration(spec: AppSpec, hosts: Sequence[HostSpec]) -> Iterator[Misfit]:
    if spec.migrate and not any(spec.migrate.role in host.roles for host in hosts):
        held = sorted({role for host in hosts for role in host.roles})
        yield Misfit(
            f'the migration runs on the first host with role "{spec.migrate.role}", and no host of stage {spec.stage} '
            f"has it; give a host that role, or set migrate.role to one of {_quoted(held)}",
            ("migrate",),
        )


def _deploy_to(spec: AppSpec, hosts: Sequence[HostSpec]) -> Iterator[Misfit]:
    remote = next((host.address for host in hosts if host.address), None)
    if remote and spec.deploy_to.startswith("~"):
        yield Misfit(f'"~" is not known on {remote}; expected an absolute path', ("deploy_to",))


def _expand(text: str, spec: AppSpec) -> str:
    return text.replace("{shared}", f"{spec.deploy_to}/shared").replace("{deploy_to}", spec.deploy_to)


def _quoted(words: Iterable[str]) -> str:
    return ", ".join(f'"{word}"' for word in sorted(words)) or "none"


def _braced(words: Iterable[str]) -> str:
    return ", ".join(f"{{{word}}}" for word in sorted(words))
