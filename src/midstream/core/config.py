"""`midstream.toml`, read: text in, one resolved `AppSpec` for each host out, or every mistake at once with its line.

Pure; runs in the deployer and in the command line tool, never on a host: an agent is sent the resolved spec. Files,
environment and secrets are read by `deploy/config_file.py`. Single keys are `core/config_schema.py`, what must hold
between them `core/config_checks.py`.

A configuration belongs to two places (DESIGN 6). What the app is (services, build, env, hooks, …) comes from the file
in the revision that is deployed; where it goes (`WORKING_KEYS`) from the file in the working copy.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any

from midstream.core import config_schema as schema
from midstream.core.config_checks import check, concerns, roles_of, warnings
from midstream.core.config_documents import WORKING_KEYS, Blame, Document, parse, read_both
from midstream.core.config_lines import Path, line_of
from midstream.core.config_mistakes import ConfigError, Misfit, Misfits, Mistake, nearest, show_path
from midstream.core.config_tables import NotifyTable, SecretSource, StageTable
from midstream.core.config_values import Reader
from midstream.core.names import is_name
from midstream.core.spec import AppSpec, EnvSpec, HostSpec, ServiceSpec
from midstream.core.values import dataclass
from midstream.errors import OperatorError

DEFAULT_STAGE = "production"

_NO_REPOSITORY = (
    "missing: the default is the git repository around this file, and it is in none; run `git init` and commit, "
    "or write a URL or a path"
)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|[A-Za-z0-9_.-]+@[^/:]+:|[A-Za-z0-9_.-]+:(?!//)[^\\]", re.ASCII)
_ASKING = ("http", "tcp", "command")
_OF_STAGES = ("secrets", "notify")  # at the top of the file they count for all stages


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What defaults are made from, looked up by the caller. Absolute paths; "" is unknown.

    folder: where `midstream.toml` is. repository: the top of the git repository around it. repo_tree: the folder's path
    inside that. branch: the default of that repository. apps_folder: where this user's apps are put on this machine.
    home: the user's home folder.
    """

    folder: str = ""
    repository: str = ""
    repo_tree: str = ""
    branch: str = ""
    apps_folder: str = "/srv"
    home: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. hosts: at least one, with their roles filled in; address "" is this machine. app: as it would be on a
    host that does everything. deploy_to_given: not a default. warnings: sentences, nothing that stops a deploy."""

    name: str
    hosts: tuple[HostSpec, ...]
    app: AppSpec
    deploy_to_given: bool
    secrets: Mapping[str, SecretSource] = field(default_factory=dict)
    notify: NotifyTable = field(default_factory=NotifyTable)
    warnings: tuple[str, ...] = ()

    def primary(self, role: str) -> HostSpec | None:
        """The first host that has the role."""
        return next((host for host in self.hosts if role in host.roles), None)


@dataclass(frozen=True, slots=True)
class Destination:
    """What must be known before a revision can be looked up. config_path: of the file inside the repository."""

    stage: str
    app: str
    repository: str
    branch: str
    config_path: str


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration without mistakes. stages: in the order of the file, never empty."""

    file: str
    stages: Mapping[str, Stage]
    around: Surroundings
    notes: tuple[str, ...] = ()

    def stage(self, name: str | None = None) -> Stage:
        """The stage called `name`, or the only one. OperatorError: no such stage, or several to choose from."""
        return self.stages[_choose(name, self.stages, self.file)]

    def resolve(self, stage: str | None = None, host: HostSpec | str | None = None) -> AppSpec:
        """The app on one host, with nothing left to look up but secrets. host: one of the stage's, by value or address;
        None where the stage has only one. OperatorError: no such stage or host."""
        chosen = self.stage(stage)
        return _on_host(chosen, _find_host(chosen, host), self.around)


def load(
    revision_text: str | None,
    working_text: str | None = None,
    *,
    file: str = "midstream.toml",
    revision: str = "",
    around: Surroundings = Surroundings(),
    profiles: Collection[str] = (),
) -> Config:
    """Read a configuration.

    revision_text: the file in the revision; None: the revision has none, the working copy's stands for it.
    working_text: the file in the working copy; None: there is no working copy, the revision's file counts for all.
    file: what messages call the working copy's file; the other is called `FILE in REVISION`. profiles: known names;
    empty: any. Raises ConfigError with all mistakes of all stages; ValueError when both texts are None.
    """
    working, of_revision, notes = read_both(revision_text, working_text, file, revision)
    base = {key: value for key, value in of_revision.table.items() if key not in WORKING_KEYS}
    base |= {key: value for key, value in working.table.items() if key in WORKING_KEYS}
    mistakes = _below_stages(base, Blame(working, of_revision, None, {}), around)
    stages: dict[str, Stage] = {}
    for name, override in _stage_tables(working, mistakes):
        blame = Blame(working, of_revision, name, override)
        try:
            stages[name or DEFAULT_STAGE] = _read_stage(name, base, override, around, profiles)
        except Misfits as error:
            mistakes += [blame.mistake(problem) for problem in error.problems]
    if mistakes:
        raise ConfigError(mistakes)
    return Config(file, stages, around, notes)


def destination(
    working_text: str,
    stage: str | None = None,
    *,
    file: str = "midstream.toml",
    around: Surroundings = Surroundings(),
) -> Destination:
    """Where the working copy says that a stage's code comes from. Looks only at `WORKING_KEYS`, so that what is half
    written elsewhere in the working copy does not stop the deploy of a revision that is in order."""
    document = parse(working_text, file)
    mistakes: list[Mistake] = []
    tables = {name or DEFAULT_STAGE: (name, table) for name, table in _stage_tables(document, mistakes)}
    if mistakes:
        raise ConfigError(mistakes)
    name, override = tables[_choose(stage, tables, file)]
    wanted = WORKING_KEYS - {"stages", *_OF_STAGES}
    merged = {key: value for key, value in (document.table | override).items() if key in wanted}
    try:
        app: AppSpec = schema.app(_with_defaults(merged, around))
    except Misfits as error:
        blame = Blame(document, document, name, override)
        raise ConfigError(blame.mistake(problem) for problem in error.problems) from None
    folder = f"{app.repo_tree}/" if app.repo_tree else ""
    base_name = file.rpartition("/")[2]
    return Destination(
        name or DEFAULT_STAGE, app.app, _repository(app.repository, around), app.branch, folder + base_name
    )


def app_name(folder: str) -> str:
    """The name an app gets from its folder: "My_Shop 2" -> "my_shop-2"; "app" where nothing is left."""
    return re.sub(r"[^a-z0-9_]+", "-", folder.lower()).lstrip("-_0123456789").rstrip("-")[:48].rstrip("-") or "app"


# stages


def _stage_tables(working: Document, mistakes: list[Mistake]) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Each stage with its own table; one without name where there are none. Adds to `mistakes`."""
    raw = working.table.get("stages", {})

    def refuse(path: Path, what: str) -> None:
        mistakes.append(Mistake(working.name, line_of(working.lines, path) or 0, show_path(path), what))

    if not isinstance(raw, dict):
        refuse(("stages",), "expected a table of stages such as [stages.production]")
        return
    if not raw:
        yield None, {}
    for name, table in raw.items():
        if not is_name(name):
            refuse(("stages", name), "expected a name (lower-case letters, digits, - and _, a letter first)")
        elif not isinstance(table, dict):
            refuse(("stages", name), f"expected a table; write [stages.{name}]")
        elif "stages" in table:
            refuse(("stages", name, "stages"), "a stage cannot contain stages")
        else:
            yield name, table


def _below_stages(base: Mapping[str, Any], blame: Blame, around: Surroundings) -> list[Mistake]:
    """What does not fit at the top of the file even where every stage overrides it. What is missing there is no
    mistake: the stages may bring it."""
    problems: list[Misfit] = []
    _tried(schema.stage, {key: base[key] for key in _OF_STAGES if key in base}, problems)
    plain = {key: value for key, value in base.items() if key not in ("stages", *_OF_STAGES)}
    _tried(schema.app, _with_defaults(plain, around), problems)
    return [blame.mistake(problem) for problem in problems if not problem.missing]


def _read_stage(
    name: str | None,
    base: Mapping[str, Any],
    override: Mapping[str, Any],
    around: Surroundings,
    profiles: Collection[str],
) -> Stage:
    """Raises Misfits with paths as if all keys stood at the top of the file."""
    own = {"hosts": override.get("hosts", [])}
    own |= {key: _merge(base.get(key, {}), override.get(key, {})) for key in _OF_STAGES}
    merged = _merge(
        {key: value for key, value in base.items() if key not in ("stages", *_OF_STAGES)},
        {key: value for key, value in override.items() if key not in own},
    )
    problems: list[Misfit] = []
    table = _tried(schema.stage, own, problems)
    deploy_to_given = "deploy_to" in merged
    merged = _with_defaults(merged, around)
    if "repository" not in merged:
        problems.append(Misfit(_NO_REPOSITORY, ("repository",), missing=True))
        merged["repository"] = "unknown"
    app: AppSpec | None = _tried(schema.app, merged, problems)
    # what can be read is checked even so: the operator is told everything at once
    table = table or StageTable()
    app = app or schema.app(_without(merged, problems))
    app = dataclasses.replace(app, stage=name or DEFAULT_STAGE)
    roles = roles_of(app)
    hosts = tuple(
        dataclasses.replace(host, roles=host.roles or roles) for host in table.hosts or (HostSpec(address=""),)
    )
    problems += _twice(hosts)
    problems += check(app, hosts, profiles)
    if problems:
        raise Misfits(problems)
    app = _with_secrets(app, table.secrets)
    return Stage(app.stage, hosts, app, deploy_to_given, table.secrets, table.notify, warnings(app, hosts))


def _without(merged: Mapping[str, Any], problems: Iterable[Misfit]) -> dict[str, Any]:
    """`merged` less the keys that do not fit. Services among them become empty ones, so that their names stay known."""
    out = dict(merged)
    fallback = {"app": "app", "repository": "unknown", "deploy_to": "/srv/app"}
    services = dict(out.get("services", {})) if isinstance(out.get("services"), dict) else {}
    for problem in problems:
        top, *rest = problem.path
        if top == "services" and rest:
            services.pop(rest[0], None)
            if is_name(str(rest[0])):
                services[str(rest[0])] = {"command": ["true"]}
        elif top in fallback:
            out[str(top)] = fallback[str(top)]
        else:
            out.pop(str(top), None)
    return out | {"services": services}


def _tried(reader: Reader, raw: Mapping[str, Any], problems: list[Misfit]) -> Any:
    try:
        return reader(raw)
    except Misfits as error:
        problems.extend(error.problems)
    except Misfit as problem:
        problems.append(problem)
    return None


def _twice(hosts: Iterable[HostSpec]) -> Iterator[Misfit]:
    seen: set[str] = set()
    for index, host in enumerate(hosts):
        if host.address in seen:
            yield Misfit(f'host "{host.address or "localhost"}" is listed twice', ("hosts", index))
        seen.add(host.address)


def _with_defaults(merged: Mapping[str, Any], around: Surroundings) -> dict[str, Any]:
    """What needs the place of the file to be known. The deploy_to put in here is the one of a host; this machine's is
    chosen in `_on_host`."""
    out = dict(merged)
    folder = around.folder.rstrip("/").rpartition("/")[2]
    if "app" not in out and folder:
        out["app"] = app_name(folder)
    if "repository" not in out and around.repository:
        out["repository"] = around.repository
        for key, value in (("repo_tree", around.repo_tree), ("branch", around.branch)):
            if value:
                out.setdefault(key, value)
    name = out.get("app")
    out.setdefault("deploy_to", f"/srv/{name}" if isinstance(name, str) and is_name(name) else "/srv/app")
    return out


def _merge(base: Any, override: Any) -> Any:
    """`override` laid over `base`: tables are merged key by key, everything else is replaced."""
    if not (isinstance(base, Mapping) and isinstance(override, Mapping)):
        return override
    out = dict(base)
    for key, value in override.items():
        if key not in base:
            out[key] = value
        elif key in ("health", "migrate"):
            out[key] = _merge_short(key, base[key], value)
        else:
            out[key] = _merge(base[key], value)
    return out


def _merge_short(key: str, base: Any, override: Any) -> Any:
    """`health` and `migrate` have short forms, which count as tables; another kind of check replaces the first."""
    below, above = (
        ({"http" if key == "health" else "run": value} if isinstance(value, str) else value)
        for value in (base, override)
    )
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return override
    if any(one in above for one in _ASKING):
        below = {one: value for one, value in below.items() if one not in _ASKING}
    return _merge(below, above)


def _with_secrets(app: AppSpec, secrets: Mapping[str, SecretSource]) -> AppSpec:
    """Secrets take the place of variables of the same name."""
    kept = {name: value for name, value in app.env.variables.items() if name not in secrets}
    return dataclasses.replace(app, env=dataclasses.replace(app.env, variables=kept, secrets=tuple(sorted(secrets))))


def _choose(name: str | None, known: Mapping[str, Any], file: str) -> str:
    if name is None:
        if len(known) == 1:
            return next(iter(known))
        raise OperatorError(
            f"which stage? There are {len(known)}: {', '.join(known)}", where=file, remedy="name one in the command"
        )
    if name not in known:
        near = nearest(name, known)
        raise OperatorError(
            f'there is no stage "{name}"',
            where=file,
            remedy=f'did you mean "{near}"?' if near else f"choose from {', '.join(known)}",
        )
    return name


# hosts


def _find_host(stage: Stage, host: HostSpec | str | None) -> HostSpec:
    address = host.address if isinstance(host, HostSpec) else host
    if address is None and len(stage.hosts) == 1:
        return stage.hosts[0]
    known = {one.address or "localhost": one for one in stage.hosts}
    found = known.get(address or "localhost")
    if address is None or found is None:
        raise OperatorError(
            f'stage {stage.name} has no host "{address}"' if address else f"which host of stage {stage.name}?",
            remedy=f"choose from {', '.join(known)}",
        )
    return found


def _on_host(stage: Stage, host: HostSpec, around: Surroundings) -> AppSpec:
    app = stage.app
    here = {name: one for name, one in app.services.items() if concerns(one.roles, host.roles)}
    return dataclasses.replace(
        app,
        deploy_to=_deploy_to(stage, host, around),
        repository=_repository(app.repository, around),
        env=_host_env(app.env, host.env, add=True),
        build=tuple(step for step in app.build if concerns(step.roles, host.roles)),
        assets=tuple(path for path in app.assets if _has_assets(path, app, host)),
        hooks=tuple(hook for hook in app.hooks if concerns(hook.step.roles, host.roles)),
        holds=tuple(hold for hold in app.holds if concerns(hold.roles, host.roles)),
        services={name: _service_here(one, host, here) for name, one in here.items()},
        roles=host.roles,
    )


def _has_assets(path: str, app: AppSpec, host: HostSpec) -> bool:
    """Not where they are carried to other hosts only."""
    making = [step for step in app.build if any(_overlap(path, file) for file in step.files)]
    return not making or any(concerns(step.roles, host.roles) for step in making)


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _service_here(service: ServiceSpec, host: HostSpec, here: Collection[str]) -> ServiceSpec:
    return dataclasses.replace(
        service,
        env=_host_env(service.env, host.env, add=False),
        depends_on=tuple(other for other in service.depends_on if other in here),
    )


def _host_env(env: EnvSpec, variables: Mapping[str, str], *, add: bool) -> EnvSpec:
    """What is said of one host wins over what is said of all, also inside a service."""
    changed = {name: value for name, value in variables.items() if add or name in env.variables}
    kept = {name: value for name, value in changed.items() if name not in env.secrets}
    return dataclasses.replace(env, variables={**env.variables, **kept})


def _deploy_to(stage: Stage, host: HostSpec, around: Surroundings) -> str:
    if host.address:
        return stage.app.deploy_to
    if not stage.deploy_to_given:
        return f"{around.apps_folder.rstrip('/')}/{stage.app.app}"
    path = stage.app.deploy_to
    return around.home + path[1:] if path.startswith("~/") else path


def _repository(repository: str, around: Surroundings) -> str:
    """A relative path begins at the file's folder, `~/` is the home folder; URLs stay."""
    if repository.startswith("/") or (_URL.match(repository) and not repository.startswith(("./", "../"))):
        return repository
    if repository.startswith("~/") and around.home:
        return around.home + repository[1:]
    parts = around.folder.split("/") if around.folder else []
    for part in repository.split("/"):
        if part == ".." and len(parts) > 1:
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts) or repository
