"""What a configuration must be like before the agent works with it, whoever sent it, by whatever client.

Lives here: decoding and checking of specs. Not here: who may ask for what (`accounts`). A client of ours checks much more,
with better words; but any user may write his own, and one app's bad value must never stop the agent that serves all of
them. So everything that would raise later, when a process is started, is raised here. Pure but for the user database;
runs in the agent.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import re
import signal
from typing import Any

from midstream.agent.accounts import account_of_uid
from midstream.agent.params import OF_THE_CLIENT
from midstream.agent.plans import plan_of, profile_of
from midstream.agent.spawning import (
    Listeners,
    Place,
    address_of,
    command_spec,
    environment,
    instance_spec,
    listen_names,
)
from midstream.agent.store import GenerationRecord
from midstream.core.external import HOLD_MAX_S
from midstream.core.instance import THROWAWAY_SLOT
from midstream.core.names import SpawnKey, is_name
from midstream.core.spec import AppSpec, CommandStep, HealthSpec, HoldSpec, ServiceSpec
from midstream.core.wire import WireError, from_wire
from midstream.errors import MidstreamError, OperatorError
from midstream.linux import listen
from midstream.profiles.supervisors import SUPPORTED

_NUMBER_MAX = 1e12  # of seconds, bytes, anything: beyond it, sums and products end in infinity
_TEXT_MAX_CHARS = 64 * 1024
_ITEMS_MAX = 2000
_SOME_RELEASE = "20000101000000"
_METHOD = re.compile(r"[A-Z]{1,20}\Z")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_IN_REQUEST_LINE = re.compile(r"/[!-~]*\Z")
_IN_HEADER = re.compile(r"[ -~\t]*\Z")
_RANGES: dict[str, tuple[float, float]] = {
    "instances": (0, THROWAWAY_SLOT),
    "surge": (0, THROWAWAY_SLOT),
    "max_draining": (0, 100),
    "keep_releases": (1, 10_000),
    "backlog": (1, 65_535),
    "mode": (0, 0o777),
    "umask": (0, 0o777),
    "nice": (-20, 19),
    "failures": (1, 10_000),
    "factor": (1, 1000),
    "jitter": (0, 1),
    "keep": (0, 10_000),
}


def read_spec(body: Any) -> AppSpec:
    """The configuration in a message. Raises OperatorError naming what does not fit."""
    try:
        spec = from_wire(AppSpec, body, "spec")
    except (WireError, OverflowError, RecursionError) as error:
        raise OperatorError(
            f"the configuration that was sent does not fit this agent: {error}", remedy=OF_THE_CLIENT
        ) from error
    _check_names(spec)
    _check_values(spec, "")
    for service in spec.services.values():
        _check_service(spec, service)
    for index, hold in enumerate(spec.holds):
        check_hold(hold, f"holds[{index}]")
    for step in _steps(spec):
        _check_step(spec, step)
    _check_environment(spec)
    return spec


def _check_names(spec: AppSpec) -> None:
    names = [spec.app, *spec.services]
    bad = next((name for name in names if not is_name(name)), None)
    if bad is not None:
        raise OperatorError(
            f"{bad!r} is no name: lower case, digits, - and _, a letter first",
            where="app",
            remedy="rename it in midstream.toml",
        )
    for name, service in spec.services.items():
        if service.name != name:
            raise OperatorError(
                f"service {name!r} calls itself {service.name!r}", where=f"services.{name}", remedy=OF_THE_CLIENT
            )
    path = spec.deploy_to
    if not path.startswith("/") or os.path.normpath(path) != path or path == "/" or path.startswith("//"):
        raise OperatorError(
            f"{path!r} is not an absolute, plain path",
            where="deploy_to",
            remedy="write it in full, without .. and //: /srv/shop",
        )
    _require(len(path) <= 1024, "deploy_to", "has more than 1024 characters")


def _check_values(value: Any, where: str) -> None:
    """Every number is finite and within its range, every text can be stored and passed on."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            place = f"{where}.{field.name}" if where else field.name
            inner = getattr(value, field.name)
            if isinstance(inner, int | float) and not isinstance(inner, bool):
                low, high = _RANGES.get(field.name, (0, _NUMBER_MAX))
                _require(low <= inner <= high, place, f"must be between {low:g} and {high:g}")
            else:
                _check_values(inner, place)
    elif isinstance(value, dict):
        _require(len(value) <= _ITEMS_MAX, where, f"has more than {_ITEMS_MAX} entries")
        for key, inner in value.items():
            _check_values(key, where)
            _check_values(inner, f"{where}.{key}")
    elif isinstance(value, tuple):
        _require(len(value) <= _ITEMS_MAX, where, f"has more than {_ITEMS_MAX} entries")
        for index, inner in enumerate(value):
            _check_values(inner, f"{where}[{index}]")
    elif isinstance(value, str):
        _require(len(value) <= _TEXT_MAX_CHARS, where, f"has more than {_TEXT_MAX_CHARS} characters")
        _require(_is_text(value), where, "has characters that are no text")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _require(-1 <= value <= 2**63, where, "is no number that makes sense")  # rlimits: -1 is unlimited
    elif not (value is None or isinstance(value, bool | enum.Enum)):
        raise OperatorError(f"is a {type(value).__name__}", where=where, remedy=OF_THE_CLIENT)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise OperatorError(f"{where or 'the configuration'} {what}", where=where, remedy=OF_THE_CLIENT)


def _check_service(spec: AppSpec, service: ServiceSpec) -> None:
    where = f"services.{service.name}"
    _require(bool(service.command) and bool(service.command[0]), f"{where}.command", "is empty")
    _require(service.restart_on in ("always", "failure", "never"), f"{where}.restart_on", "is no such word")
    for name in ("stop_signal", "reload_signal"):
        word = getattr(service, name).removeprefix("SIG")
        _require(not word or f"SIG{word}" in signal.Signals.__members__, f"{where}.{name}", "is no signal")
    for name, (soft, hard) in service.limits.rlimits.items():
        _require(hard == -1 or 0 <= soft <= hard, f"{where}.limits.{name}", "has a soft limit above the hard one")
    _require(
        set(service.depends_on) <= spec.services.keys(), f"{where}.depends_on", "names services that there are not"
    )
    names = listen_names(service)
    _require(len(names) == len(service.listen), f"{where}.listen", "has two listeners of one name")
    for index, item in enumerate(service.listen):
        place = f"{where}.listen[{index}]"
        try:
            listen.parse(address_of(spec, item))
        except (ValueError, KeyError) as error:
            raise OperatorError(
                f"{item.address!r} is no address: {error}",
                where=place,
                remedy="tcp://HOST:PORT, unix:///PATH, or unix://{run}/NAME",
            ) from None
        _require(
            not item.name or re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,47}", item.name) is not None, place, "has no good name"
        )
    if service.health is not None:
        _check_health(service.health, f"{where}.health")
    try:
        profile_of(service)
        plan_of(service)
        _dry_run(spec, service, names)
    except MidstreamError:
        raise
    except Exception as error:  # whatever it is: later it would be raised in the agent's own loop
        raise OperatorError(
            f"{where} cannot be started: {type(error).__name__}: {error}",
            where=where,
            remedy="mend this service in midstream.toml: midstream check tells what of it is wrong",
        ) from error


def check_hold(hold: HoldSpec, where: str) -> None:
    """Its words become arguments of the supervisor's program, one of which must not be taken for an option."""
    if hold.supervisor not in SUPPORTED:
        raise OperatorError(
            f"this version holds services of {' and '.join(SUPPORTED)} only, not of {hold.supervisor}",
            where=f"{where}.supervisor",
            remedy="take the hold out, or let Midstream run the service itself ([services.NAME])",
        )
    plain = hold.service.isprintable() and not hold.service.startswith("-") and 0 < len(hold.service) <= 200
    _require(plain and hold.service != "all", f"{where}.service", "is no name of a service")
    path = hold.control
    is_plain = path.startswith("/") and os.path.normpath(path) == path and path.isprintable()
    _require(not path or is_plain, f"{where}.control", "is not an absolute, plain path")
    _require(not hold.quiet or f"SIG{hold.quiet}" in signal.Signals.__members__, f"{where}.quiet", "is no signal")
    _require(0 < hold.ttl_s <= HOLD_MAX_S, f"{where}.ttl", f"must be above 0 and at most {HOLD_MAX_S:g} s")


def _check_health(health: HealthSpec, where: str) -> None:
    """The agent itself says these words to whoever listens: one request, and nothing smuggled behind it."""
    _require(_METHOD.match(health.method) is not None, f"{where}.method", "is no method")
    _require(not health.http or _IN_REQUEST_LINE.match(health.http) is not None, f"{where}.http", "is no path")
    _require(_IN_HEADER.match(health.host) is not None, f"{where}.host", "is no host name")
    for name, value in health.headers.items():
        _require(_HEADER_NAME.match(name) is not None, f"{where}.headers", f"has {name!r}, which is no header")
        _require(_IN_HEADER.match(value) is not None, f"{where}.headers.{name}", "is no header's value")


def _dry_run(spec: AppSpec, service: ServiceSpec, names: dict[str, Any]) -> None:
    record = GenerationRecord(1, _SOME_RELEASE, spec)
    listeners = Listeners({name: name for name in names}, "second" if names else None)
    place = Place("/run", os.getuid())
    key = SpawnKey(spec.app, service.name, 1, 0, 0)
    instance_spec(record, service, key, listeners, place, agent_uid=os.getuid())


def _steps(spec: AppSpec) -> list[CommandStep]:
    steps = [*spec.build, *(spec.migrate.run if spec.migrate else ())]
    for hook in spec.hooks:
        steps += [hook.step, *([hook.undo] if hook.undo else [])]
    return steps


def _check_step(spec: AppSpec, step: CommandStep) -> None:
    where = step.name or " ".join(step.run)[:40]
    _require(bool(step.run) and bool(step.run[0]), where, "is an empty command")
    record = GenerationRecord(1, _SOME_RELEASE, spec)
    try:
        command_spec(record, step, SpawnKey(spec.app, "+build", 1, 0, 0), Place("/run", os.getuid()), os.getuid())
    except KeyError as error:
        raise OperatorError(
            f"{where}: {error.args[0]} is nothing that is known there",
            where="run",
            remedy="docs/configuration.md has a list of the placeholders; a brace of its own is written twice",
        ) from None


def _check_environment(spec: AppSpec) -> None:
    for layer in (spec.env, *(service.env for service in spec.services.values())):
        for name in (*layer.variables, *layer.secrets):
            _require(bool(name) and "=" not in name, f"env.{name}", "is no name of a variable")
    try:
        account = account_of_uid(os.getuid())
        environment(GenerationRecord(1, _SOME_RELEASE, spec), account, Place("/run", account.uid), None, {})
    except KeyError as error:
        raise OperatorError(
            f"env uses {error.args[0]}, which is nothing that is known there",
            where="env",
            remedy="docs/configuration.md has a list of the placeholders; a brace of its own is written twice",
        ) from None
