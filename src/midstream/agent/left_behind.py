"""Which hosts of a stage a deploy left out: what the deployer said when it committed. Runs in the agent.

Each host that took part keeps the list, so that `status` tells of a host that cannot be asked itself. It is a note for
people: nothing is decided by it, the next deploy over all hosts replaces it.
"""

from __future__ import annotations

import json
from typing import Any

from midstream.agent.params import refused
from midstream.agent.store import AppRecord, Store

_HOSTS_MAX = 10_000
_NAME_MAX = 1_000


def names(value: Any) -> list[str]:
    """The parameter `behind` of `deploy.commit`. Raises OperatorError."""
    if not isinstance(value, list) or len(value) > _HOSTS_MAX:
        raise refused("deploy.commit: behind: expected a list of hosts", "behind")
    if not all(isinstance(name, str) and 0 < len(name) <= _NAME_MAX for name in value):
        raise refused("deploy.commit: behind: expected names of hosts", "behind")
    return list(value)


def note(store: Store, record: AppRecord, user: str, hosts: list[str], now_wall_s: float) -> None:
    """`record` as it is after the commit. The list replaces the one before; an empty one is forgotten."""
    rows = [{"host": host, "release": record.release, "user": user, "since": now_wall_s} for host in hosts]
    body = {"owner": record.owner_uid, "deploy_to": record.deploy_to, "rows": rows}
    text = json.dumps(body) if rows else ""
    if text or store.meta(_key(record)):
        store.set_meta(_key(record), text)


def of(store: Store, record: AppRecord) -> list[dict[str, Any]]:
    """`[{host, release, user, since}]`. What was noted for another app of the same name is not told."""
    text = store.meta(_key(record))
    if not text:
        return []
    body = json.loads(text)
    if (body["owner"], body["deploy_to"]) != (record.owner_uid, record.deploy_to):
        return []
    return list(body["rows"])


def _key(record: AppRecord) -> str:
    return f"behind.{record.app}"
