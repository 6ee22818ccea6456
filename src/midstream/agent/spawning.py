"""From a generation's stored configuration to the exact process: argv, environment, user, limits, descriptors.

Nothing here is looked up through `current`: paths are those of the release. No effect but reading the user database.
Runs in the agent.
"""

from __future__ import annotations

import json
import os
import re
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from midstream.agent.accounts import Account, account_named, account_of_uid, gid_named
from midstream.agent.plans import profile_of, readiness_of
from midstream.agent.store import GenerationRecord
from midstream.core.instance import THROWAWAY_SLOT
from midstream.core.layout import Layout
from midstream.core.messages import MESSAGE_MAX_BYTES, FdPlacement, ProcessKind, SpawnSpec
from midstream.core.names import SpawnKey
from midstream.core.placeholders import fill
from midstream.core.spec import AppSpec, CommandStep, EnvSpec, ListenSpec, Readiness, ServiceSpec
from midstream.errors import OperatorError
from midstream.profiles.profile import place_listeners

FIRST_FD = 3  # sd_listen_fds(3)
_SPAWN_MAX_BYTES = MESSAGE_MAX_BYTES - 16 * 1024  # the rest of the message: descriptors, limits, groups
_BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a generation lives on this host. run: its private folder. owner_uid: the app's owner."""

    run: str
    owner_uid: int
    path: str = _BASE_PATH  # of the agent: what PATH is where the app says nothing
    extra: dict[str, str] = field(default_factory=dict)


def listen_names(service: ServiceSpec) -> dict[str, ListenSpec]:
    """The service's listeners by their LISTEN_FDNAMES name."""
    named: dict[str, ListenSpec] = {}
    for index, listen in enumerate(service.listen):
        named[listen.name or ("web" if index == 0 else f"listen{index}")] = listen
    return named


def address_of(spec: AppSpec, listen: ListenSpec) -> str:
    """The listener's address with its placeholders filled in."""
    layout = Layout(spec.deploy_to)
    return fill(listen.address, {"deploy_to": spec.deploy_to, "shared": layout.shared})


def listener_key(app: str, service: str, address: str) -> str:
    """The keeper's name for a listener: it goes with the address, so that a changed one is a new socket."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", address)[:60]
    return f"{app}/{service}/{readable}-{zlib.crc32(address.encode()):08x}"


def channel_of(key: SpawnKey) -> str:
    """The keeper's name for the output FIFO (and the notify socket) of a slot of a generation."""
    return f"{key.app}/{key.service}/{key.generation}/{key.slot}"


def account_for(spec: AppSpec, owner_uid: int, agent_uid: int, service: ServiceSpec | None = None) -> Account:
    """Who runs it: the service's user, the app's, else the owner. Without root always the agent's own user."""
    if agent_uid != 0:
        return account_of_uid(agent_uid)
    if service is not None and service.user:
        return account_named(service.user, f"services.{service.name}.user")
    if spec.user:
        return account_named(spec.user, "user")
    return account_of_uid(owner_uid)


def environment(
    record: GenerationRecord, account: Account, place: Place, service: ServiceSpec | None, more: Mapping[str, str]
) -> dict[str, str]:
    """The whole environment of a process: base, app, service, secrets, and our stamps, later ones winning."""
    spec = record.spec
    layout = Layout(spec.deploy_to)
    release = layout.release(record.release)
    words = {"deploy_to": spec.deploy_to, "shared": layout.shared, "release": release, "run": place.run}
    env = {
        "PATH": place.path,
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": account.shell or "/bin/sh",
        "LANG": os.environ.get("LANG", "C.UTF-8"),
    }
    layers: list[tuple[EnvSpec, str]] = [(spec.env, "")]
    if service is not None:
        layers.append((service.env, service.name))
    for layer, name in layers:
        env.update(record.env_files.get(name, {}))
        env.update({key: fill(value, words) for key, value in layer.variables.items()})
        env.update({key: record.secrets[key] for key in layer.secrets if key in record.secrets})
        front = [os.path.join(release, fill(entry, words)) for entry in layer.path]
        if front:
            env["PATH"] = ":".join([*front, env["PATH"]])
    env.update(place.extra)
    env.update(
        {
            "MIDSTREAM_APP": spec.app,
            "MIDSTREAM_STAGE": spec.stage,
            "MIDSTREAM_RELEASE": record.release,
            "MIDSTREAM_RELEASE_PATH": release,
        }
    )
    if service is not None:
        env.update({"MIDSTREAM_SERVICE": service.name, "MIDSTREAM_GENERATION": str(record.number)})
    env.update(more)
    return env


# Where an instance may ask its own agent: `midstream serve` passes HUP and USR2 on. The agent puts it into its environment.
SOCKET_VARIABLE = "MIDSTREAM_AGENT_SOCKET"


@dataclass(frozen=True, slots=True)
class Listeners:
    """What an instance is given. shared: name -> the keeper's name of the listener. private: likewise, for a second
    listener beside them, or None."""

    shared: dict[str, str]
    private: str | None = None


def instance_spec(
    record: GenerationRecord,
    service: ServiceSpec,
    key: SpawnKey,
    listeners: Listeners,
    place: Place,
    agent_uid: int,
) -> SpawnSpec:
    """The process of one slot. Raises OperatorError for a user, a placeholder or a program that there is not."""
    spec = record.spec
    account = account_for(spec, place.owner_uid, agent_uid, service)
    layout = Layout(spec.deploy_to)
    release = layout.release(record.release)
    profile = profile_of(service)
    numbers = {name: FIRST_FD + index for index, name in enumerate(listeners.shared)}
    fds = [FdPlacement(numbers[name], f"listener:{source}") for name, source in listeners.shared.items()]
    following = FIRST_FD + len(fds)
    private = None
    names = list(listeners.shared)
    if listeners.private is not None:
        private = following
        fds.append(FdPlacement(following, f"listener:{listeners.private}"))
        names.append("private")
        following += 1
    words = {
        "deploy_to": spec.deploy_to,
        "shared": layout.shared,
        "release": release,
        "run": place.run,
        "slot": str(key.slot),
    }
    channel = channel_of(key)
    if readiness_of(service, profile) is Readiness.FD:
        fds.append(FdPlacement(following, f"channel:{channel}/ready"))
        words["ready_fd"] = str(following)
    argv = place_listeners(profile, service.command, numbers, private=private, shell=service.shell)
    where = f"services.{service.name}.command"
    argv = tuple(_filled(arg, words, where) for arg in argv)
    if service.shell:
        argv = ("/bin/sh", "-c", " ".join(argv))
    fds += [FdPlacement(1, f"channel:{channel}"), FdPlacement(2, f"channel:{channel}")]
    more = {"MIDSTREAM_SLOT": str(key.slot), "PYTHONUNBUFFERED": "1"}
    if SOCKET_VARIABLE in os.environ:
        more[SOCKET_VARIABLE] = os.environ[SOCKET_VARIABLE]
    if numbers:
        more |= {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
    if service.watchdog_s:
        more["WATCHDOG_USEC"] = str(int(service.watchdog_s * 1_000_000))
    if key.slot >= THROWAWAY_SLOT:
        more["MIDSTREAM_TRYING"] = "1"
    limits = service.limits
    return _fitting(
        SpawnSpec(
            key=str(key),
            argv=argv,
            env=environment(record, account, place, service, more),
            cwd=os.path.join(release, service.cwd) if service.cwd else release,
            uid=account.uid if agent_uid == 0 else None,
            gid=_gid(service, account) if agent_uid == 0 else None,
            groups=_groups(service, account) if agent_uid == 0 else (),
            umask=limits.umask,
            nice=limits.nice,
            rlimits=limits.rlimits,
            no_new_privileges=limits.no_new_privileges,
            cgroup=cgroup_of(key),
            fds=tuple(fds),
            listen_pid=bool(numbers),
            notify=channel,
        )
    )


def _fitting(spec: SpawnSpec) -> SpawnSpec:
    """One that is too large for a message to the keeper would end the connection to it, again at each try."""
    size_bytes = len(json.dumps([spec.argv, spec.env]))
    if size_bytes > _SPAWN_MAX_BYTES:
        raise OperatorError(
            f"command and environment of {spec.key} have {size_bytes} bytes; at most {_SPAWN_MAX_BYTES} can be passed on",
            where="env",
            remedy="put large values into files",
        )
    return spec


def _filled(text: str, words: Mapping[str, str], where: str) -> str:
    try:
        return fill(text, words)
    except KeyError as error:
        raise OperatorError(
            f"the command uses {error.args[0]}, which this service has not",
            where=where,
            remedy='`{fd}` needs `listen`, `{ready_fd}` needs `ready = "fd"`',
        ) from None


def _gid(service: ServiceSpec, account: Account) -> int:
    return gid_named(service.group, f"services.{service.name}.group") if service.group else account.gid


def _groups(service: ServiceSpec, account: Account) -> tuple[int, ...]:
    extra = tuple(gid_named(name, f"services.{service.name}.groups") for name in service.groups)
    return tuple(dict.fromkeys((_gid(service, account), *account.groups, *extra)))


def cgroup_of(key: SpawnKey) -> str:
    """The cgroup folder of a slot; the keeper adds `.ATTEMPT` for each process."""
    return f"{key.app}.{key.service.replace('+', '_')}.{key.generation}.{key.slot}"


def command_spec(
    record: GenerationRecord, step: CommandStep, key: SpawnKey, place: Place, agent_uid: int, cwd: str = ""
) -> SpawnSpec:
    """A build step, migration, hook, check or `run`: a one-shot in the release under the app's user."""
    spec = record.spec
    account = account_for(spec, place.owner_uid, agent_uid)
    layout = Layout(spec.deploy_to)
    release = layout.release(record.release)
    words = {"deploy_to": spec.deploy_to, "shared": layout.shared, "release": release, "run": place.run}
    argv = tuple(_filled(arg, words, "run") for arg in step.run)
    if step.shell:
        argv = ("/bin/sh", "-c", " ".join(argv))
    more = {name: fill(value, words) for name, value in step.env.items()} | {"PYTHONUNBUFFERED": "1"}
    return one_shot(key, argv, environment(record, account, place, None, more), cwd or release, account, agent_uid)


def one_shot(
    key: SpawnKey,
    argv: tuple[str, ...],
    env: dict[str, str],
    cwd: str,
    account: Account,
    agent_uid: int,
    passed_fds: int = 0,
) -> SpawnSpec:
    """A one-shot whose output goes to its own channel; `passed_fds` descriptors of the message become 3, 4, …."""
    channel = channel_of(key)
    placed = tuple(FdPlacement(FIRST_FD + index, f"passed:{index}") for index in range(passed_fds))
    return _fitting(
        SpawnSpec(
            key=str(key),
            argv=argv,
            env=env,
            cwd=cwd,
            kind=ProcessKind.ONE_SHOT,
            uid=account.uid if agent_uid == 0 else None,
            gid=account.gid if agent_uid == 0 else None,
            groups=account.groups if agent_uid == 0 else (),
            cgroup=cgroup_of(key),
            fds=(*placed, FdPlacement(1, f"channel:{channel}"), FdPlacement(2, f"channel:{channel}")),
        )
    )


def step_argv(name: str) -> tuple[str, ...]:
    """How this copy of Midstream runs its step programs: the zipapp or package folder that the agent was started from, which
    needs nothing of what is installed (-S)."""
    copy = os.path.abspath(sys.argv[0])
    if os.path.isfile(os.path.join(copy, "__main__.py")) or copy.endswith(".pyz"):
        return (sys.executable, "-I", "-S", copy, "steps", name)
    return (sys.executable, "-I", "-m", "midstream.steps", name)
