"""Which deploy made which release folder: the records in `.midstream/claims`. Written by `checkout`."""

from __future__ import annotations

import json
import stat
from typing import Any

from midstream.core.names import is_release
from midstream.errors import OperatorError
from midstream.steps.folder import Folder
from midstream.steps.place import Place


def claimed_by(claims: Folder, releases: Folder, release: str, deploy_id: str) -> bool:
    """Whether the folder of that release was made by that deploy; an empty one counts when the claim says so."""
    record = read_claim(claims, f"{release}.json")
    if record.get("deploy_id") != deploy_id or releases.kind(release) != stat.S_IFDIR:
        return False
    if record.get("inode"):
        return bool(releases.status(release).st_ino == record["inode"])
    with releases.open(release) as folder:
        return not folder.names()


def claimed_release(place: Place, deploy_id: str) -> str:
    """The release that `make_release` made for that deploy. OperatorError when there is none."""
    with place.ours.make("claims") as claims, place.root.make("releases") as releases:
        for name in claims.names():
            release = name.removesuffix(".json")
            if is_release(release) and claimed_by(claims, releases, release, deploy_id):
                return release
    raise OperatorError(
        f"deploy {deploy_id} has made no release here",
        where=place.layout.releases,
        remedy="begin again: midstream deploy",
    )


def read_claim(claims: Folder, name: str) -> dict[str, Any]:
    try:
        record = json.loads(claims.read(name) or b"{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
