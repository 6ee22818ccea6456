"""The steps `prepare` and `inspect`: make the layout, or look at it."""

from __future__ import annotations

import os
import posixpath
import stat
from typing import Any

from midstream.core.layout import REPAIRABLE, CurrentKind, Layout, check_deploy_to, check_linked
from midstream.core.steps import Inspect, Prepare
from midstream.errors import HostError, OperatorError
from midstream.steps.folder import Folder
from midstream.steps.place import (
    Place,
    free_bytes,
    open_place,
    open_root,
    read_current,
    read_revision,
    refuse_full_disk,
    release_names,
)
from midstream.steps.switch import point_current
from midstream.steps.trash import delete_trash, has_trash

_TIGHT_BYTES = 1 << 30  # with less free than this a build may well need what lies in the trash


def prepare(request: Prepare) -> dict[str, Any]:
    """Rules: Capistrano's deploy:check, plus the sweeping and repairing of what would harm its next run (DESIGN 5)."""
    check_deploy_to(request.deploy_to)
    check_linked(request.linked_dirs, request.linked_files)
    _make_root(request.deploy_to)
    with open_place(request.deploy_to) as place:
        if free_bytes(place.root) < max(request.min_free_bytes, _TIGHT_BYTES):
            delete_trash(place.root)  # it would be, later; what it takes up is needed now
        refuse_full_disk(place.root, request.min_free_bytes)
        for name in ("releases", "shared"):
            place.root.make(name).__exit__(None, None, None)
        _make_linked(place, request)
        swept = _sweep(place)
        found = read_current(place.layout, place.root)
        if found.kind is CurrentKind.FOLDER:
            raise OperatorError(
                f"{place.layout.current} is a folder, not a link",
                where=place.layout.current,
                serving="whatever runs from it",
                remedy=f"move it to {place.layout.release('YYYYMMDDHHMMSS')} (14 digits), or away",
            )
        repaired = False
        if found.kind in REPAIRABLE and found.release:
            repaired = point_current(place, found.release)
            print(f"current said {found.target}; it is now the absolute path of release {found.release}")
        answer = _look(place.root, place.layout)
        answer.update(current=found.named, current_kind=found.kind.value, repaired=repaired, swept=swept)
        answer["trash"] = has_trash(place.root)
        return answer


def _make_root(deploy_to: str) -> None:
    try:
        os.makedirs(deploy_to, exist_ok=True)
    except PermissionError as error:
        raise HostError(
            f"{deploy_to} does not exist, and uid {os.geteuid()} may not make it: permission denied",
            where=str(error.filename),
            remedy=f"as root: install -d -o {os.geteuid()} -g {os.getegid()} {deploy_to}",
        ) from None


def inspect(request: Inspect) -> dict[str, Any]:
    with open_root(request.deploy_to) as root:
        layout = Layout(request.deploy_to)
        found = read_current(layout, root)
        answer = _look(root, layout, have=request.have)
        answer.update(current=found.named, current_kind=found.kind.value, repaired=False, swept=[])
        return answer


def _look(root: Folder, layout: Layout, *, have: bool = True) -> dict[str, Any]:
    known: list[str] = []
    if have:
        from midstream.steps import mirror  # with git and subprocess: not for who goes back

        known = mirror.have(root, layout)
    releases, strangers = release_names(root)
    return {
        "free_bytes": free_bytes(root),
        "releases": releases,
        "revisions": {release: read_revision(root, release) for release in releases},
        "strangers": strangers,
        "have": known,
    }


def _make_linked(place: Place, request: Prepare) -> None:
    parents = [posixpath.dirname(path) for path in request.linked_files]
    for path in [*request.linked_dirs, *(parent for parent in parents if parent)]:
        # A folder that exists through a link (a media folder on a network disk) is fine: nothing has to be written.
        if not os.path.isdir(f"{place.layout.shared}/{path}"):
            place.root.make(f"shared/{path}").__exit__(None, None, None)
    absent = [path for path in request.linked_files if not os.path.isfile(f"{place.layout.shared}/{path}")]
    if absent:
        raise OperatorError(
            f"{len(absent)} linked file{'s are' if len(absent) > 1 else ' is'} missing in {place.layout.shared}",
            where=place.layout.shared,
            detail="\n".join(f"{place.layout.shared}/{path}" for path in absent),
            serving="what was serving before; nothing was changed",
            remedy="put them there (they are kept between releases), or take them out of linked_files",
        )


def _sweep(place: Place) -> list[str]:
    """Removes leftovers of killed deploys: Capistrano's `releases/current`, our own temporary files."""
    swept: list[str] = []
    with place.root.open("releases") as releases:
        if releases.kind("current") == stat.S_IFLNK and releases.unlink("current"):
            swept.append(place.layout.stale_link)
            print(f"removed {place.layout.stale_link}, left by an interrupted Capistrano deploy")
    with place.ours.open("tmp") as temporary:
        for name in temporary.names():
            temporary.remove_tree(name)
    for name in place.ours.names():
        if name.startswith("current.tmp-"):
            place.ours.unlink(name)
    return swept
