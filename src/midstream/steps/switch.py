"""The steps `switch` and `log_revision`: what the world sees of a release, `current` and revisions.log."""

from __future__ import annotations

import fcntl
import os
import time
from typing import Any

from midstream.core.layout import CurrentKind
from midstream.core.names import is_release
from midstream.core.releases import is_revision_line
from midstream.core.steps import LogRevision, Switch, Unswitch
from midstream.errors import BugError, DriftError, OperatorError
from midstream.steps.place import Place, open_place, open_release, read_current

_MS = 1_000_000
_TAIL_BYTES = 64 * 1024


def switch(request: Switch) -> dict[str, Any]:
    """Run again after a kill it finds the link in place, and finishes the mtimes."""
    with open_place(request.deploy_to) as place:
        open_release(place.root, place.layout, request.release).__exit__(None, None, None)
        found = read_current(place.layout, place.root)
        if found.kind is CurrentKind.FOLDER:
            raise OperatorError(
                f"{place.layout.current} is a folder, not a link",
                where=place.layout.current,
                remedy="move it away, then run midstream deploy again",
            )
        _refuse_moved(request, place, found.release, found.target)
        target = request.rollback_target or found.release
        order_by_mtime(place, request.release, target if target != request.release else None)
        changed = point_current(place, request.release)
        return {"previous": found.named, "changed": changed}


def unswitch(request: Unswitch) -> dict[str, Any]:
    """Another release's link, or somebody else's, is left alone."""
    with open_place(request.deploy_to) as place:
        changed = place.root.link_text("current") == place.layout.release(request.release)
        if changed:
            place.root.unlink("current")
            place.root.sync()
        return {"changed": changed}


def point_current(place: Place, release: str) -> bool:
    """Makes `current` the absolute link to the release; whether it was another before. One rename(2): there is no
    moment without a `current`."""
    wanted = place.layout.release(release)
    if place.root.link_text("current") == wanted:
        return False
    temporary = f"current.tmp-{os.getpid()}"
    place.ours.unlink(temporary)
    place.ours.link(temporary, wanted)
    place.ours.rename(temporary, place.root, "current")
    place.root.sync()
    return True


def _refuse_moved(request: Switch, place: Place, release: str | None, target: str | None) -> None:
    expected = request.expected_previous
    if release is None and target is None:
        return  # nothing is there that somebody could want
    if expected is None or expected in (release, target) or release == request.release:
        return
    raise DriftError(
        f"current points to {release or target or 'nothing'}, not to {expected}: somebody else has moved it",
        where=place.layout.current,
        serving=f"{release or target or 'unknown'} by the link; see midstream status for the processes",
        remedy="find out who deploys here besides Midstream (revisions.log tells), then deploy again",
    )


def order_by_mtime(place: Place, release: str, rollback_target: str | None, *, touch: bool = True) -> None:
    """Makes the release the newest by mtime and the rollback target the second newest.

    Capistrano's rollback takes the second entry of `ls -xt releases`, and afterwards deletes the first one. A failed
    release in between, made later than the rollback target, would be chosen instead; or, made after the current one,
    have it go "back" to the current one. `touch` False: nothing is changed where the order is right.
    """
    wanted = [name for name in (release, rollback_target) if name is not None and is_release(name)]
    with place.root.open("releases") as folder:
        mtimes_ns = {name: folder.status(name).st_mtime_ns for name in folder.names()}
        wanted = [name for name in wanted if name in mtimes_ns]
        if sorted(mtimes_ns, key=lambda name: (-mtimes_ns[name], name))[: len(wanted)] == wanted and not touch:
            return
        others = [mtime_ns for name, mtime_ns in mtimes_ns.items() if name not in wanted]
        newest_ns = max([time.time_ns(), *(other + 2 * _MS for other in others)])
        # The one that must be right also after a kill in between, the release itself, first.
        for age, name in enumerate(wanted):
            mtime_ns = newest_ns - age * _MS
            os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=folder.fd, follow_symlinks=False)


def log_revision(request: LogRevision) -> dict[str, Any]:
    """Appends in one write. A line that a killed run has written already is not written twice."""
    if not is_revision_line(request.line):
        raise BugError(f"not a line of revisions.log: {request.line!r}")
    with open_place(request.deploy_to) as place:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open("revisions.log", flags, 0o666, dir_fd=place.root.fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, place.layout.revisions_log) from error
        with open(fd, "rb+", buffering=0):
            fcntl.flock(fd, fcntl.LOCK_EX)
            return {"appended": _append(fd, request.line, place.layout.revisions_log)}


def _append(fd: int, line: str, path: str) -> bool:
    size = os.fstat(fd).st_size
    tail = os.pread(fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
    lines = tail.decode(errors="replace").splitlines()
    deployed = " deployed as release " in line  # a release is deployed once; rolled back to it may be often
    if (deployed and line in lines) or (lines and lines[-1] == line and tail.endswith(b"\n")):
        return False
    data = line.encode() + b"\n"
    if tail and not tail.endswith(b"\n"):
        data = b"\n" + data
    try:
        written = os.write(fd, data)
        if written != len(data):
            written += os.write(fd, data[written:])
        os.fsync(fd)
    except OSError as error:
        os.ftruncate(fd, size)
        raise OSError(error.errno, error.strerror, path) from error
    return True
