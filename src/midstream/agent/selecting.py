"""Which release a rollback goes to, and with which configuration. Runs in the agent's loop."""

from __future__ import annotations

import os
from typing import Any

from midstream.agent import accounts
from midstream.agent.accounts import Peer
from midstream.agent.admission import read_spec
from midstream.agent.apart import read_apart
from midstream.agent.store import ReleaseRecord
from midstream.agent.work import Work
from midstream.core import releases, steps
from midstream.core.intent import IntentState
from midstream.core.layout import Layout
from midstream.errors import OperatorError
from midstream.linux.file_identity import FileUser, open_as

_REVISIONS_LOG_MAX_BYTES = 4 << 20


async def select(work: Work, named: str, force: bool = False) -> dict[str, Any]:
    """For a rollback: which release, and with which configuration it was deployed."""
    if work.intent.state is not IntentState.OPEN:
        record = work.host.store.releases(work.intent.app).get(work.intent.release)
        return {"release": work.intent.release, "revision": record.revision if record else ""}
    deploy_to = work.spec.deploy_to
    inspected = work.looked
    if inspected is None or work.intent.commands:  # hooks may have changed what was there when we looked
        inspected = await work.run_step("inspect", steps.Inspect(deploy_to, False))
    known = work.host.store.releases(work.intent.app)
    bad = {release for release, record in known.items() if record.state == "bad"}
    target = releases.rollback_target(
        inspected["releases"],
        committed=work.app.release or None,
        proven=await _proven(work, known),
        bad=() if force else bad,
        named=named,
    )
    warning = _check_schema(work, known, target, force)
    stored = await work.run_step("read_spec", steps.ReadSpec(deploy_to, target))
    body = stored.get("spec")
    spec = read_spec(body) if body else work.spec
    if body is None:
        work.warnings.append(f"release {target} has no stored configuration (another tool made it): using today's")
    # It lay in a folder of the owner's: whoever asks for the rollback, these are the owner's words.
    accounts.check_spec(spec, work.app.owner_uid, Peer(0, work.app.owner_uid, 0), work.host.uid)
    if spec.deploy_to != deploy_to or spec.app != work.intent.app:
        raise OperatorError(
            "the stored configuration belongs to another app",
            where=target,
            remedy="choose another release: midstream releases",
        )
    work.spec = spec
    revision = str(stored.get("revision") or inspected.get("revisions", {}).get(target, ""))
    branch = known[target].branch if target in known else ""
    work.save(release=target, revision=revision, branch=branch)
    if target not in known:
        work.host.store.put_release(work.intent.app, ReleaseRecord(target, revision, branch))
    return {"release": target, "revision": revision, "branch": branch, "schema_warning": warning}


async def proven_here(work: Work, on_disk: list[str]) -> list[str]:
    """The releases that a rollback may go to, oldest first: the deployer chooses one that all its hosts have."""
    known = work.host.store.releases(work.intent.app)
    bad = {release for release, record in known.items() if record.state == "bad"}
    return sorted((await _proven(work, known) - bad) & set(on_disk))


async def _proven(work: Work, known: dict[str, ReleaseRecord]) -> set[str]:
    """Those that were committed here once, and those of other tools."""
    good = {release for release, record in known.items() if record.state == "good"}
    log = await read_apart(work.app.owner_uid, work.spec.deploy_to, _revisions_log, work)
    return good | (set(releases.deployed_releases(log)) - set(known))


def _revisions_log(work: Work) -> str:
    """What other tools deployed here; read with the rights of the app's user. Blocks."""
    account = accounts.account_of_uid(work.app.owner_uid)
    user = FileUser(account.uid, account.gid) if work.host.uid == 0 else None
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        fd = open_as(user, Layout(work.spec.deploy_to).revisions_log, flags)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        return file.read(_REVISIONS_LOG_MAX_BYTES).decode("utf-8", "replace")


def _check_schema(work: Work, known: dict[str, ReleaseRecord], target: str, force: bool) -> str:
    """Whether the old code may run on the schema that newer migrations left (DESIGN 6.5)."""
    newer = [record for release, record in known.items() if release > target and record.migrated]
    if not newer:
        return ""
    last = max(newer, key=lambda record: record.release)
    final = [record for record in newer if not record.reversible]
    if final and not force:
        raise OperatorError(
            f"release {final[-1].release} migrated the database and says `reversible = false`: no way back to {target}",
            where="[migrate] reversible",
            serving=work.serving(),
            remedy="deploy a release that goes forward; or, knowing better, midstream rollback --force",
        )
    return f"schema: {last.release}, code: {target}"
