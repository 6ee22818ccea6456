"""Variables and secrets that are sent without a release: kept until the next restart, start, deploy or rollback takes them.

A crash brings a process back with the environment that it was proven with, so what is sent is not taken by processes that
run, nor by their successors after a crash, but by the next handover: `midstream restart`, which proves it first. Values
are in the agent's database (0600) alone; nothing here prints or notes one. Runs in the agent's loop.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from midstream.agent import accounts
from midstream.agent.admission import read_spec
from midstream.agent.control import Connection, Method
from midstream.agent.host import Host
from midstream.agent.params import refused
from midstream.agent.store import AppRecord, GenerationRecord, PushedEnvironment
from midstream.core.instance import ALIVE
from midstream.core.spec import AppSpec, EnvSpec
from midstream.core.wire import WireError, from_wire, to_wire
from midstream.errors import LockedError, OperatorError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z", re.ASCII)

AppOf = Callable[[Connection, dict[str, Any]], AppRecord]
IsBusy = Callable[[str, str], bool]
DeployOf = Callable[[Connection, dict[str, Any]], str]


class Environments:
    """`app_of` checks who asks. is_busy: whether a deploy of the app is under way (other than the one of that id); it brings
    values of its own. deploy_of: the id of the deploy whose token is shown."""

    def __init__(self, host: Host, app_of: AppOf, is_busy: IsBusy, deploy_of: DeployOf) -> None:
        self.host = host
        self._app_of = app_of
        self._is_busy = is_busy
        self._deploy_of = deploy_of

    def table(self) -> dict[str, Method]:
        return {"env.push": self.push, "env.list": self.list}

    async def push(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """Keeps them for the next handover, in place of what was pushed before. `{release, changed: [names]}`."""
        record = self._app_of(connection, params)
        if self._is_busy(record.app, self._deploy_of(connection, params) if "token" in params else ""):
            raise LockedError(
                f"a deploy of {record.app!r} is under way; it brings values of its own",
                remedy="wait for it, or end it: midstream abort",
            )
        stored = self._committed(record)
        try:
            variables = from_wire(dict[str, dict[str, str]], params.get("variables", {}), "variables")
            secrets = from_wire(dict[str, str], params.get("secrets", {}), "secrets")
        except WireError as error:
            raise refused(f"env.push: {error}") from error
        pushed = PushedEnvironment(variables, secrets, connection.peer.name, time.time())
        _refuse_strange_names(pushed, stored.spec)
        after = with_pushed(stored, pushed)
        accounts.check_spec(after.spec, record.owner_uid, connection.peer, self.host.uid)
        changed = _changed(stored, after)
        self.host.store.put_pushed(record.app, pushed)
        names = ", ".join(changed) or "nothing that differs"
        self.host.note(record.app, "", "env", f"sent: {names}"[:500], who=connection.peer.name)
        return {"release": record.release, "changed": changed}

    async def list(self, connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
        """Names alone: what the committed release has, and what waits. `services`: those with variables of their own."""
        record = self._app_of(connection, params)
        stored = self._committed(record)
        pushed = self.host.store.pushed(record.app)
        answer = {"release": record.release, **_names(stored), "pending": None}
        if pushed is not None:
            after = with_pushed(stored, pushed)
            answer["pending"] = {"changed": _changed(stored, after), "who": pushed.who, "since": pushed.since_wall_s}
        return answer

    def _committed(self, record: AppRecord) -> GenerationRecord:
        stored = self.host.record(record.app, record.committed_generation)
        if stored is None:
            raise OperatorError(f"nothing of {record.app!r} is deployed here", remedy="midstream deploy")
        return stored

    def take_where_stopped(self, app: str) -> None:
        """Before a start: where no process of the app is alive, what it is started from may change without a proof."""
        pushed = self.host.store.pushed(app)
        mine = [service for (owner, _), service in self.host.services.items() if owner == app]
        if pushed is None or self._is_busy(app, ""):
            return
        if any(item.state in ALIVE for service in mine for item in service.instances):
            return
        numbers = {service.committed.number for service in mine if service.committed is not None}
        numbers.add(self.host.apps[app].committed_generation)
        found = [record for number in sorted(numbers) if (record := self.host.record(app, number)) is not None]
        after = [with_pushed(record, pushed) for record in found]
        with self.host.store.transaction():
            for record in after:
                self.host.store.put_generation(app, record)
            self.host.store.drop_pushed(app)
        for record in after:
            self.host.generations[app, record.number] = record


def with_pushed(record: GenerationRecord, pushed: PushedEnvironment | None) -> GenerationRecord:
    """The same generation with the environment that was sent. Raises OperatorError when no process could be started so."""
    if pushed is None:
        return record
    spec = record.spec
    own = _env(spec.env, pushed.variables.get(""), pushed.secrets)
    services = {
        name: replace(service, env=_env(service.env, pushed.variables.get(name), None))
        for name, service in spec.services.items()
    }
    after = read_spec(to_wire(replace(spec, env=own, services=services)))
    return replace(record, spec=after, secrets=dict(pushed.secrets))


def _env(before: EnvSpec, variables: dict[str, str] | None, secrets: dict[str, str] | None) -> EnvSpec:
    names = before.secrets if secrets is None else tuple(sorted(secrets))
    chosen = before.variables if variables is None else variables
    return replace(before, variables={name: chosen[name] for name in chosen if name not in names}, secrets=names)


def _refuse_strange_names(pushed: PushedEnvironment, spec: AppSpec) -> None:
    unknown = [name for name in pushed.variables if name and name not in spec.services]
    if unknown:
        raise OperatorError(
            f"the release that runs has no service {unknown[0]!r} here",
            where="variables",
            remedy="deploy the release that has it; that brings its variables, too",
        )
    names = [*pushed.secrets, *(name for layer in pushed.variables.values() for name in layer)]
    bad = next((name for name in names if not _NAME.match(name)), None)
    if bad is not None:
        raise OperatorError(
            f"{bad[:100]!r} is no name of a variable",
            where="variables",
            remedy="letters, digits and _, no digit first: correct [env] or secrets in midstream.toml",
        )
    if any("\0" in value for value in pushed.secrets.values()):
        raise OperatorError(
            "a NUL byte cannot be passed to a process", where="secrets", remedy="encode the value, as base64 say"
        )


def _names(record: GenerationRecord) -> dict[str, Any]:
    spec = record.spec
    return {
        "variables": sorted(spec.env.variables),
        "secrets": sorted(spec.env.secrets),
        "from_files": sorted({name for found in record.env_files.values() for name in found}),
        "services": {
            name: sorted(service.env.variables) for name, service in spec.services.items() if service.env.variables
        },
    }


def _changed(before: GenerationRecord, after: GenerationRecord) -> list[str]:
    """The names that come, go or have another value; those of a service as SERVICE.NAME."""
    found = {name for name in {*before.secrets, *after.secrets} if before.secrets.get(name) != after.secrets.get(name)}
    layers = [("", before.spec.env, after.spec.env)]
    layers += [(f"{name}.", one.env, after.spec.services[name].env) for name, one in before.spec.services.items()]
    for head, old, new in layers:
        names = {*old.variables, *new.variables}
        found |= {head + name for name in names if old.variables.get(name) != new.variables.get(name)}
    return sorted(found)
