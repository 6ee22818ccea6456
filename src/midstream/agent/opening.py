"""The beginning of a deploy on this host: who may, whose lock it is, and all that can be checked before anything is done.

Runs in the agent's loop. Only the app's folder is made here; the rest is the step `prepare`'s, under the app's user.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from midstream.agent import accounts
from midstream.agent.accounts import Peer
from midstream.agent.host import Host
from midstream.agent.locks import lock_of
from midstream.agent.params import OF_THE_CLIENT
from midstream.agent.selecting import proven_here
from midstream.agent.store import AppRecord, aside_name
from midstream.agent.work import Progress, Work
from midstream.core import steps
from midstream.core.lease import lease_of
from midstream.core.spec import AppSpec
from midstream.errors import HostError, LockedError, OperatorError
from midstream.linux.file_identity import FileUser, files_as
from midstream.linux.root_owned import require_root_owned


def lease_s() -> float:
    """From the loss of the last connection of a deploy to its going back."""
    return lease_of(os.environ).lease_s


@dataclass(frozen=True, slots=True)
class Opening:
    """The parameters of `deploy.open`."""

    deploy_id: str
    spec: dict[str, Any]
    kind: str = "deploy"
    user: str = ""
    wait: bool = False
    until: str = ""  # "check": takes the lock and answers; the same call without it goes on


def authorise(host: Host, peer: Peer, spec: AppSpec) -> int:
    record = host.apps.get(spec.app)
    if record is None:
        owner_uid = accounts.owner_for_new_app(peer, spec, host.uid)
        _refuse_shared_folder(host, spec)
    else:
        owner_uid = record.owner_uid
        accounts.require_owner(peer, owner_uid, host.uid, spec.app)
        if record.deploy_to != spec.deploy_to:
            raise OperatorError(
                f"app {spec.app!r} lives in {record.deploy_to} on this host, not in {spec.deploy_to}",
                where="deploy_to",
                serving=f"release {record.release or 'none'}",
                remedy=f"keep deploy_to, or take the old one away first: midstream app remove {spec.app}",
            )
    accounts.check_spec(spec, owner_uid, peer, host.uid)
    return owner_uid


def refuse_used_id(host: Host, deploy_id: str, app: str) -> None:
    """An id names one app's deploy for ever: with another's, his record would be replaced and his journal shown."""
    if len(deploy_id) > 100 or not deploy_id.isascii() or not deploy_id.isprintable():
        raise OperatorError("not an id for a deploy", where="deploy_id", remedy=OF_THE_CLIENT)
    intent = host.store.intent(deploy_id)
    if intent is not None and intent.app != app:
        raise OperatorError("this deploy_id was used already", where="deploy_id", remedy="begin again")


def _refuse_shared_folder(host: Host, spec: AppSpec) -> None:
    for other in host.apps.values():
        if other.deploy_to == spec.deploy_to:
            raise OperatorError(
                f"{spec.deploy_to} belongs to app {other.app!r}", where="deploy_to", remedy="choose another folder"
            )


def refuse_manual_lock(host: Host, app: str, peer: Peer) -> None:
    record = host.apps.get(app)
    lock = lock_of(record) if record is not None else None
    if record is not None and lock is not None:
        raise LockedError(
            f"app {app!r} is locked by {record.lock_owner} since {_clock(record.lock_since_wall_s)}"
            + (f": {record.lock_reason}" if record.lock_reason else "")
            + (f" (for another {lock['expires_in_s']:.0f} s)" if "expires_in_s" in lock else ""),
            serving=f"release {record.release or 'none'}",
            remedy="midstream unlock",
        )


def locked(work: Work) -> LockedError:
    intent = work.intent
    return LockedError(
        f"{intent.user or 'somebody'} has been running a {intent.kind} of {intent.app!r} since"
        f" {_clock(intent.started_wall_s)} ({intent.state.value})",
        where=intent.where,
        serving=work.serving(),
        remedy="wait for it (--wait), or end it: midstream abort",
    )


def new_app(host: Host, spec: AppSpec, owner_uid: int) -> AppRecord:
    """Its numbers go on where those of an app that had the name ended. When that was another user's, what was recorded
    and logged under the name is not for the new owner's eyes."""
    record = AppRecord(spec.app, spec.deploy_to, owner_uid, spec.stage)
    former = host.store.former(spec.app)
    if former is None:
        return record
    former_uid, generation, token = former
    if former_uid != owner_uid:
        host.store.drop_events(spec.app)
        host.logs.set_aside(spec.app, aside_name(*former))
    return replace(record, generation=generation, token=token)


def lock_facts(work: Work) -> dict[str, Any]:
    return {"token": work.intent.token, "lease_s": lease_s(), "committed": committed_of(work.app), "warnings": []}


def facts_of_over(work: Work) -> dict[str, Any]:
    """What `open` answers for it: its revision is here, nothing has to be sent."""
    return {
        "token": work.intent.token,
        "lease_s": lease_s(),
        "committed": committed_of(work.app),
        "releases": [work.intent.release],
        "have": [work.intent.revision],
        "free_bytes": 0,
        "current": None,
        "over": "committed",
        "warnings": [f"this deploy was finished here before: release {work.intent.release} is committed"],
    }


def committed_of(app: AppRecord) -> dict[str, str] | None:
    return {"release": app.release, "revision": app.revision, "branch": app.branch} if app.release else None


async def facts(peer: Peer, work: Work, tell: Callable[[Progress], None]) -> dict[str, Any]:
    """What the deployer has to know. For a deploy the folders are made and checked on the way."""
    spec = work.spec
    work.listeners.append(tell)
    try:
        work.phase = "starting"
        with work.step("deploy:check"):
            if work.intent.kind == "deploy":
                request: object = steps.Prepare(
                    spec.deploy_to, spec.linked_dirs, spec.linked_files, spec.min_free_bytes
                )
                _make_folder(peer, work)
                facts = await work.run_step("prepare", request, label="deploy:check")
                await _try_ports(work)
            else:
                facts = await work.run_step("inspect", steps.Inspect(spec.deploy_to, False), label="deploy:check")
                work.looked = facts
                facts["proven"] = await proven_here(work, facts["releases"])
    finally:
        work.listeners.remove(tell)
    return {
        "token": work.intent.token,
        "lease_s": lease_s(),
        "committed": committed_of(work.app),
        "releases": facts.get("releases", []),
        "have": facts.get("have", []),
        "free_bytes": facts.get("free_bytes", 0),
        "current": facts.get("current"),
        "warnings": work.warnings,
        **({"proven": facts["proven"]} if "proven" in facts else {}),
    }


def _make_folder(peer: Peer, work: Work) -> None:
    """deploy_to itself: the one folder that the agent makes, when the owner cannot. Where he can, it is made with his
    rights; with root's only where root named the path and nobody else can change where it leads."""
    path, owner = work.spec.deploy_to, accounts.account_of_uid(work.app.owner_uid)
    if work.host.uid != 0 or owner.uid == 0:
        return
    try:
        with files_as(FileUser(owner.uid, owner.gid)):
            os.makedirs(path, exist_ok=True)
        return
    except PermissionError as error:
        if not accounts.may_make_as_root(peer, work.spec, owner):
            raise HostError(
                f"{path} cannot be made: {error.strerror}",
                where="deploy_to",
                remedy="as root: midstream setup STAGE makes it; or give its parent folder to the app's user",
            ) from error
    except OSError:
        return  # the step that prepares it will say what is wrong there
    try:
        require_root_owned(os.path.dirname(path))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mkdir(path, 0o755)
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
    except FileExistsError:
        return
    except OSError as error:
        raise HostError(
            f"{path} cannot be made: {error.strerror}",
            where="deploy_to",
            detail=str(error.filename or ""),
            remedy=f"as root: install -d -o {owner.name} {path}",
        ) from error


async def _try_ports(work: Work) -> None:
    """A port that is taken is found before the build, not after it. What nothing refers to yet is let go again."""
    try:
        for service in work.spec.services.values():
            await work.host.listeners.open_service(work.spec, service, work.app.owner_uid)
    finally:
        await work.host.drop_unused_listeners()


def _clock(wall_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(wall_s))
