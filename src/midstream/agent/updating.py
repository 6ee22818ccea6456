"""Making a release on this host: objects, folder, environment files, builds, assets, migrations. Nothing is switched.

Every step is journalled and can be begun again: after a crash of the agent the deployer repeats its call, and what was done
is passed over. A build whose end is unknown is thrown away with its folder; a migration whose end is unknown stops the
deploy unless `rerun = true`. Runs in the agent's loop; the work itself runs as one-shots under the app's user.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, replace

from midstream.agent.apart import read_apart
from midstream.agent.oneshots import Outcome
from midstream.agent.spawning import account_for
from midstream.agent.store import GenerationRecord, ReleaseRecord
from midstream.agent.work import Part, Work
from midstream.core import steps
from midstream.core.intent import IntentEvent
from midstream.core.layout import Layout
from midstream.core.points import build_task
from midstream.core.spec import AppSpec, EnvSpec, Source
from midstream.core.wire import to_wire
from midstream.errors import AttentionError, HostError, OperatorError
from midstream.linux.file_identity import FileUser, open_as

_ENV_FILE_MAX_BYTES = 64 * 1024  # one process gets it all, and its message to the keeper has 160 KiB


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """What `deploy.update` is called with, beside the ids. revision, tree: full object names. release: 14 digits."""

    revision: str
    tree: str
    revision_time: float
    branch: str
    release: str
    migrate: bool = False
    pack: bool = False
    until: str = ""  # the step that it stops before; the same call without it goes on
    build: tuple[int, ...] | None = None  # the build steps of this call; None: all that are not the deployer's


async def update(work: Work, request: UpdateRequest) -> None:
    """All of it, or as far as `until`. Raises AppError (build, migration), HostError (disk, network), AttentionError
    (unknown migration)."""
    spec = work.spec
    work.phase = "updating"
    work.move(IntentEvent.UPDATE, relaxed=True, revision=request.revision, branch=request.branch)
    _mark_begun_before(work)
    if request.until != "git:create_release":
        _distrust_build(work)
    await _make(work, request)
    if request.until in ("git:create_release", "deploy:build"):
        return
    record = GenerationRecord(0, work.intent.release, spec, work.secrets)
    work.phase = "updated"
    files = await read_env_files(spec, work.intent.release, work.app.owner_uid, work.host.uid)
    record = replace(record, env_files=files)
    chosen = _chosen_builds(spec, request)
    label = "build" if request.build is None else f"build {','.join(map(str, chosen))}"
    if chosen and not work.done(label):
        with work.step(label):
            await _build(work, record, chosen, label)
    if request.until == "deploy:assets":
        return
    await work.run_parts(_last_parts(work))
    if spec.migrate is not None and request.migrate and not work.done("deploy:migrate"):
        await _migrate(work, record)
    work.move(IntentEvent.UPDATE_DONE)


def _distrust_build(work: Work) -> None:
    """A build that an earlier agent began, and whose end is unknown: what it left is not to be trusted."""
    begun = [name for name, state in work.intent.steps.items() if state == "begun-before"]
    if not any(name.partition(" ")[0] == "build" for name in begun):
        return
    if work.intent.commands or "build" not in begun:
        raise HostError(
            "the end of the build is unknown, and others had worked in the release before: it cannot be made anew",
            where=f"release {work.intent.release} in {work.spec.deploy_to}",
            serving=work.serving(),
            remedy="deploy again",
        )
    work.forget("git:create_release", "build")


async def _make(work: Work, request: UpdateRequest) -> None:
    """Objects and release folder, as far as `until`; where nothing is built, what else there is to do, too."""
    parts = [] if work.done("git:update") else [_objects(work, request)]
    if request.until != "git:create_release" and not work.done("git:create_release"):
        parts.append(_release(work, request))
        if not work.spec.build and not request.until:
            parts += _last_parts(work)
    fds: tuple[int, ...] = ()
    if request.pack and work.spec.source is not Source.FETCH and not work.done("git:update"):
        try:
            fds = (os.open(work.pack_path, os.O_RDONLY | os.O_CLOEXEC),)
        except OSError as error:
            raise HostError(f"the pack that was sent is not here: {error.strerror}", remedy="deploy again") from error
    try:
        await work.run_parts(parts, fds)
    finally:
        for fd in fds:
            os.close(fd)


def _last_parts(work: Work) -> list[Part]:
    """Assets, and the configuration beside the release. The release is named by the deploy: its id may not be known yet."""
    spec, deploy_id = work.spec, work.intent.id
    parts = []
    if spec.assets and not work.done("deploy:publish_assets"):
        publish = steps.PublishAssets(spec.deploy_to, "", spec.assets, deploy_id)
        parts.append(Part("deploy:publish_assets", "publish_assets", publish, phase="updated"))
    if not work.done("deploy:store_spec"):
        store = steps.StoreSpec(spec.deploy_to, "", _public_spec(spec), deploy_id)
        parts.append(Part("deploy:store_spec", "store_spec", store, phase="updated"))
    return parts


def _mark_begun_before(work: Work) -> None:
    """Steps that an earlier agent began and did not finish."""
    marked = {name: "begun-before" if state == "begun" else state for name, state in work.intent.steps.items()}
    if marked != work.intent.steps:
        work.save(steps=marked)


def _public_spec(spec: AppSpec) -> dict[str, object]:
    body: dict[str, object] = to_wire(spec)
    return body


def _objects(work: Work, request: UpdateRequest) -> Part:
    spec = work.spec
    if spec.source is Source.FETCH:
        fetch = steps.Fetch(
            spec.deploy_to, spec.repository, request.branch, request.revision, request.tree, spec.submodules
        )
        return Part("git:update", "fetch", fetch)
    receive = steps.Receive(
        spec.deploy_to, request.revision, request.tree, spec.repository, spec.submodules, request.pack
    )
    return Part("git:update", "receive", receive)


def _release(work: Work, request: UpdateRequest) -> Part:
    spec = work.spec
    make = steps.MakeRelease(
        spec.deploy_to,
        work.intent.id,
        request.release,
        request.revision,
        request.tree,
        request.revision_time,
        request.branch,
        spec.repo_tree,
        spec.submodules,
        spec.linked_dirs,
        spec.linked_files,
    )

    def made(answer: dict[str, object]) -> None:
        release = str(answer["release"])
        record = ReleaseRecord(release, request.revision, request.branch, made_wall_s=work.intent.started_wall_s)
        with work.host.store.transaction(relaxed=True):  # that it was begun is on the disk, and enough to discard it
            work.save(release=release, made_release=True)
            work.host.store.put_release(spec.app, record)

    return Part("git:create_release", "make_release", make, made)


def _chosen_builds(spec: AppSpec, request: UpdateRequest) -> tuple[int, ...]:
    """Raises OperatorError for a step that there is not."""
    if request.build is None:
        return tuple(index for index, step in enumerate(spec.build) if step.on != "deployer")
    if any(not 0 <= index < len(spec.build) for index in request.build):
        raise OperatorError(
            f"there is no build step {next(index for index in request.build if not 0 <= index < len(spec.build))}: "
            f"the configuration has {len(spec.build)}",
            where="build",
            remedy="the deployer and midstream.toml have come apart: begin again, midstream deploy",
        )
    return request.build


async def _build(work: Work, record: GenerationRecord, chosen: tuple[int, ...], label: str) -> None:
    for index in chosen:
        step = work.spec.build[index]
        with work.telling(build_task(step.name)):
            work.tell(build_task(step.name), "line", line=f"$ {step.name or ' '.join(step.run)[:60]}")
            outcome = await work.run_command(record, step, "+build", index, label, may_rerun=True)
            if not outcome.ok:
                raise work.command_failed(f"build step {index + 1}", step, outcome)


async def _migrate(work: Work, record: GenerationRecord) -> None:
    """Once, as journalled one-shots. What a migration did is never undone."""
    migrate = work.spec.migrate
    assert migrate is not None
    with work.step("deploy:migrate"):
        for index, step in enumerate(migrate.run):
            label = f"migrate.{index}"
            if work.done(label):
                continue
            if work.intent.steps.get(label) == "begun":
                work.save(steps={**work.intent.steps, label: "begun-before"})
            begun_before = work.intent.steps.get(label) == "begun-before"
            if not begun_before:
                work.save(steps={**work.intent.steps, label: "begun"}, migrated=True)

            def ended(outcome: Outcome, label: str = label) -> None:
                if outcome.ok:
                    work.save(steps={**work.intent.steps, label: "done"})

            outcome = await work.run_command(
                record, step, "+migrate", index, label, may_rerun=migrate.rerun, on_end=ended
            )
            if outcome.lost:
                raise AttentionError(
                    f"the end of the migration `{' '.join(step.run)}` is unknown: its process was lost",
                    where=f"release {work.intent.release} in {work.spec.deploy_to}",
                    serving=work.serving(),
                    remedy="look at the database; then deploy again. `[migrate] rerun = true` runs such a one again",
                )
            if not outcome.ok:
                raise work.command_failed("the migration", step, outcome)
    releases = work.host.store.releases(work.spec.app)
    made = releases.get(work.intent.release)
    if made is not None:
        work.host.store.put_release(work.spec.app, replace(made, migrated=True, reversible=migrate.reversible))
    app = replace(work.app, schema_release=work.intent.release)
    work.host.store.put_app(app)
    work.host.apps[app.app] = app


async def read_env_files(spec: AppSpec, release: str, owner_uid: int, agent_uid: int) -> dict[str, dict[str, str]]:
    """The variables of `env.files`, per service ("" is the app's own), read with the app user's rights: an agent that is
    root must not read for a user what he could not read himself. Raises OperatorError naming file and line, HostError when
    their file system does not answer."""
    account = account_for(spec, owner_uid, agent_uid)
    user = FileUser(account.uid, account.gid) if agent_uid == 0 else None
    folder = Layout(spec.deploy_to).release(release)
    layers: list[tuple[str, EnvSpec]] = [("", spec.env)]
    layers += [(name, service.env) for name, service in spec.services.items()]
    paths = {name: [os.path.join(folder, file) for file in layer.files] for name, layer in layers if layer.files}
    if not paths:
        return {}
    return await read_apart(owner_uid, folder, _read_env_layers, paths, user)


def _read_env_layers(paths: dict[str, list[str]], user: FileUser | None) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name, files in paths.items():
        for path in files:
            found.setdefault(name, {}).update(_read_env_file(path, user))
    return found


def _read_env_file(path: str, user: FileUser | None) -> dict[str, str]:
    try:
        fd = open_as(user, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is no plain file", path)
            if found.st_size > _ENV_FILE_MAX_BYTES:
                raise OSError(errno.EFBIG, f"it has more than {_ENV_FILE_MAX_BYTES} bytes", path)
            text = file.read(_ENV_FILE_MAX_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise OperatorError(
            f"the env file cannot be read: {error.strerror}",
            where=path,
            remedy="put it there (linked_files keeps it in shared/), or take it out of env files",
        ) from error
    variables: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip().removeprefix("export ").strip()
        if not line or line.startswith("#"):
            continue
        name, separator, value = line.partition("=")
        if not separator or not name.strip().replace("_", "a").isalnum():
            raise OperatorError(
                "not a line of the form NAME=value",
                where=f"{path}:{number}",
                remedy="correct it; names have letters, digits and _, and comments begin with #",
            )
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        variables[name.strip()] = value
    return variables
