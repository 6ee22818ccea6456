"""The steps `cleanup` and `discard`: deleting releases.

What goes is decided by `core.releases`; how it goes is in `trash`.
"""

from __future__ import annotations

import os
from typing import Any

from midstream.core.layout import CurrentKind
from midstream.core.names import is_release
from midstream.core.releases import removable
from midstream.core.steps import Cleanup, Discard
from midstream.errors import OperatorError
from midstream.steps import assets, git, mirror
from midstream.steps.claims import claimed_by
from midstream.steps.place import Place, open_place, read_current, read_revision, release_names
from midstream.steps.switch import order_by_mtime
from midstream.steps.trash import delete_small, has_trash, to_trash


def cleanup(request: Cleanup) -> dict[str, Any]:
    """What cannot be deleted is reported in `left`, it is no reason for a deploy to fail."""
    with open_place(request.deploy_to) as place:
        releases, _ = release_names(place.root)
        # The link may have been moved since the agent looked; both are kept.
        now = read_current(place.layout, place.root)
        chosen = removable(
            releases,
            keep=request.keep,
            live=(*request.live, *([now.release] if now.release else [])),
            committed=request.committed,
            previous_good=request.previous_good,
            current=request.current,
            bad=request.bad,
        )
        left: list[dict[str, str]] = []
        removed = [release for release in chosen if _set_aside(place, release, left)]
        if now.release:
            order_by_mtime(place, now.release, request.previous_good, touch=False)
        _forget_gone(place)
        _tidy_mirror(place, left)
        delete_small(place.root)
        for release in removed:
            print(f"removed release {release}")
        for item in left:
            print(f"could not remove {item['path']}: {item['reason']}")
        return {"removed": removed, "left": left, "trash": has_trash(place.root)}


def discard(request: Discard) -> dict[str, Any]:
    with open_place(request.deploy_to) as place:
        left: list[dict[str, str]] = []
        removed = False
        for release in _meant(place, request):
            now = read_current(place.layout, place.root)
            if now.release == release and now.kind is not CurrentKind.DANGLING:
                raise OperatorError(
                    f"release {release} is what current points to; it is not removed",
                    where=place.layout.current,
                    serving=f"release {release} by the link",
                    remedy="switch to another release first: midstream rollback",
                )
            removed |= _set_aside(place, release, left)
        _forget_gone(place)
        return {"removed": removed, "left": left, "trash": has_trash(place.root)}


def _meant(place: Place, request: Discard) -> list[str]:
    """The releases that a discard names, or that its deploy claimed."""
    if request.release:
        if not is_release(request.release):
            raise OperatorError(f"{request.release!r} is not a release id", remedy="midstream releases lists them")
        return [request.release]
    if not request.deploy_id:
        raise OperatorError("discard needs a release or a deploy", remedy="name one")
    with place.ours.make("claims") as claims, place.root.make("releases") as releases:
        return [
            release
            for release in (name.removesuffix(".json") for name in claims.names())
            if is_release(release) and claimed_by(claims, releases, release, request.deploy_id)
        ]


def _set_aside(place: Place, release: str, left: list[dict[str, str]]) -> bool:
    try:
        return to_trash(place, release)
    except OSError as error:
        left.append({"path": place.layout.release(release), "reason": error.strerror or str(error)})
        return False


def _forget_gone(place: Place) -> None:
    """Drops specs, claims and shared assets of releases that are no more. From what is there, not from what was
    removed just now: a kill between the two, or another tool's cleanup, must not leave them for ever."""
    releases, _ = release_names(place.root)
    assets.forget(place, releases)
    for folder in ("specs", "claims"):
        with place.ours.make(folder) as inside:
            for name in inside.names():
                release = name.removesuffix(".json")
                if release not in releases and (is_release(release) or name.endswith(".new")):
                    inside.unlink(name)


def _tidy_mirror(place: Place, left: list[dict[str, str]]) -> None:
    releases, _ = release_names(place.root)
    revisions = {read_revision(place.root, release) for release in releases}
    if not os.path.isdir(place.layout.repo):
        return
    try:
        mirror.drop_refs(place, {revision for revision in revisions if mirror.is_sha(revision)})
    except git.GitFailed as error:
        left.append({"path": place.layout.repo, "reason": error.stderr.strip()})
