"""The steps `cleanup` and `discard`: deleting releases.

A release is first renamed into `.midstream/trash`, then deleted there: whoever lists `releases` in between sees whole
releases only, and what a kill left in the trash is deleted by the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from typing import Any

from midstream.core.layout import CurrentKind
from midstream.core.names import is_release
from midstream.core.releases import removable
from midstream.core.steps import Cleanup, Discard
from midstream.errors import MidstreamError, OperatorError
from midstream.steps import assets, git, mirror, submodules
from midstream.steps.place import Place, open_place, read_current, read_revision, release_names


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
        removed = [release for release in chosen if _to_trash(place, release, left)]
        _forget_gone(place)
        _empty_trash(place, left)
        _tidy_mirror(place, left)
        for release in removed:
            print(f"removed release {release}")
        for item in left:
            print(f"could not remove {item['path']}: {item['reason']}")
        return {"removed": removed, "left": left}


def discard(request: Discard) -> dict[str, Any]:
    if not is_release(request.release):
        raise OperatorError(f"{request.release!r} is not a release id", remedy="midstream releases lists them")
    with open_place(request.deploy_to) as place:
        now = read_current(place.layout, place.root)
        if now.release == request.release and now.kind is not CurrentKind.DANGLING:
            raise OperatorError(
                f"release {request.release} is what current points to; it is not removed",
                where=place.layout.current,
                serving=f"release {request.release} by the link",
                remedy="switch to another release first: midstream rollback",
            )
        left: list[dict[str, str]] = []
        removed = _to_trash(place, request.release, left)
        _forget_gone(place)
        _empty_trash(place, left)
        return {"removed": removed, "left": left}


def _to_trash(place: Place, release: str, left: list[dict[str, str]]) -> bool:
    """Renames the release into the trash; whether it was there. A link of that name is not a release and stays."""
    path = place.layout.release(release)
    try:
        with place.root.open("releases") as releases, place.ours.make("trash") as trash:
            if releases.kind(release) != stat.S_IFDIR:
                return False
            name = next(f"{release}.{n}" for n in range(10_000) if not trash.kind(f"{release}.{n}"))
            releases.rename(release, trash, name)
            return True
    except FileNotFoundError:
        return False
    except OSError as error:
        left.append({"path": path, "reason": error.strerror or str(error)})
        return False


def _empty_trash(place: Place, left: list[dict[str, str]]) -> None:
    with place.ours.make("trash") as trash:
        for name in trash.names():
            try:
                trash.remove_tree(name)
            except (OSError, MidstreamError) as error:
                path = str(getattr(error, "filename", None) or f"{trash.path}/{name}")
                left.append({"path": path, "reason": getattr(error, "strerror", None) or str(error)})


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
    wanted = {read_revision(place.root, release) for release in releases} - {""}
    if not os.path.isdir(place.layout.repo):
        return
    try:
        for revision in sorted(wanted):
            with contextlib.suppress(git.GitFailed, MidstreamError):
                wanted.update(submodules.commits(place.layout.repo, revision))
        mirror.drop_refs(place, wanted)
    except git.GitFailed as error:
        left.append({"path": place.layout.repo, "reason": error.stderr.strip()})


def trash_names(place: Place) -> str:
    """What lies in the trash, as JSON, for messages and tests."""
    with place.ours.make("trash") as trash:
        return json.dumps(trash.names())
