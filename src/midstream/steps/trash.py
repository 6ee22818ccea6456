"""How releases are deleted: renamed into `.midstream/trash` first, then deleted there.

Whoever lists `releases` in between sees whole releases only, and what a kill left in the trash is deleted by the next
step that empties it.
"""

from __future__ import annotations

import stat

from midstream.errors import MidstreamError
from midstream.steps.place import Place


def to_trash(place: Place, release: str) -> bool:
    """Renames the release into the trash; whether it was there. A link of that name is not a release and stays."""
    try:
        with place.root.open("releases") as releases, place.ours.make("trash") as trash:
            if releases.kind(release) != stat.S_IFDIR:
                return False
            name = next(f"{release}.{n}" for n in range(10_000) if not trash.kind(f"{release}.{n}"))
            releases.rename(release, trash, name)
            return True
    except FileNotFoundError:
        return False


def empty_trash(place: Place) -> list[dict[str, str]]:
    """Deletes what lies in the trash; what could not be, as {path, reason}."""
    left = []
    with place.ours.make("trash") as trash:
        for name in trash.names():
            try:
                trash.remove_tree(name)
            except (OSError, MidstreamError) as error:
                path = str(getattr(error, "filename", None) or f"{trash.path}/{name}")
                left.append({"path": path, "reason": getattr(error, "strerror", None) or str(error)})
    return left
