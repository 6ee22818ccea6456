"""Choices about releases: ids, which one a rollback goes to, which ones are cleaned up, the lines of revisions.log.

Pure: nothing here looks at a disk or a clock. The rules are DESIGN 5; where Capistrano is known to choose wrongly the
docstring says how.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta

from midstream.core.names import is_release
from midstream.errors import OperatorError

_FORMAT = "%Y%m%d%H%M%S"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_DEPLOYED = re.compile(
    r"Branch (?P<branch>.*) \(at (?P<sha>[0-9a-fA-F]*)\) deployed as release (?P<release>[0-9]{14}) by (?P<user>.*)"
)
_ROLLED_BACK = re.compile(r"(?P<user>.*) rolled back to release (?P<release>[0-9]{14})")


def release_id(epoch_s: float) -> str:
    """The release id for a moment: 14 UTC digits."""
    return datetime.fromtimestamp(int(epoch_s), UTC).strftime(_FORMAT)


def next_release_id(release: str) -> str:
    """The id one second later. Raises ValueError when `release` is not a moment (`20261399…`)."""
    moment = datetime.strptime(release, _FORMAT).replace(tzinfo=UTC)
    return (moment + timedelta(seconds=1)).strftime(_FORMAT)


def rollback_target(
    on_disk: Collection[str],
    *,
    committed: str | None,
    proven: Collection[str],
    bad: Collection[str] = (),
    named: str = "",
) -> str:
    """The release a rollback goes to: the newest proven one older than the committed one, never a bad one.

    `proven`: releases that were committed once, and those of other tools that `deployed_releases` finds in
    revisions.log. Capistrano takes the second newest folder by mtime, which may be a failed deploy, or, after a failed
    deploy, the release that is current already. Raises OperatorError that lists what there is to choose from.
    """
    choices = sorted(release for release in on_disk if is_release(release) and release not in bad)
    if named:
        return _named_target(named, on_disk, bad, choices)
    older = [release for release in choices if release in proven and (committed is None or release < committed)]
    if older:
        return older[-1]
    raise OperatorError(
        f"there is no proven release before {committed}" if committed else "there is no proven release",
        detail="on disk: " + (", ".join(sorted(on_disk)) or "none"),
        serving=f"release {committed}" if committed else "nothing of this app",
        remedy="name one: midstream rollback --to RELEASE, or deploy an older revision: midstream deploy --branch SHA",
    )


def common_target(
    proven: Mapping[str, Collection[str]], committed: Mapping[str, str]
) -> tuple[str, dict[str, list[str]]]:
    """The release a rollback of several hosts goes to: the newest that is proven on each, and older than the newest
    committed one. `proven`, `committed`: by host, "" for none. Also the newer ones that were passed over, newest first,
    with the hosts that lack them: a host that a deploy left out. Raises OperatorError when they have none in common."""
    newest = max(committed.values(), default="")
    older = sorted({release for found in proven.values() for release in found if not newest or release < newest})
    passed: dict[str, list[str]] = {}
    for release in reversed(older):
        without = [host for host, found in proven.items() if release not in found]
        if not without:
            return release, passed
        passed[release] = without
    what = f"before {newest}" if newest else "yet"
    raise OperatorError(
        f"there is no proven release {what} that all hosts have" if older else f"there is no proven release {what}",
        detail="\n".join(f"{release} is not on {', '.join(hosts)}" for release, hosts in passed.items()),
        serving="; ".join(f"{release or 'nothing'} on {host}" for host, release in committed.items()),
        remedy="leave out the hosts that lack it: midstream rollback --without HOST; or deploy an older revision to all: "
        "midstream deploy --branch SHA",
    )


def _named_target(named: str, on_disk: Collection[str], bad: Collection[str], choices: list[str]) -> str:
    if named not in on_disk or not is_release(named):
        raise OperatorError(
            f"there is no release {named}",
            detail="on disk: " + (", ".join(choices) or "none"),
            remedy="choose one of these: midstream releases lists them",
        )
    if named in bad:
        raise OperatorError(
            f"release {named} is marked bad",
            remedy="deploy its revision again instead, which makes and proves a new release",
        )
    return named


def removable(
    on_disk: Iterable[str],
    *,
    keep: int,
    live: Collection[str] = (),
    committed: str | None = None,
    previous_good: str | None = None,
    current: str | None = None,
    bad: Collection[str] = (),
) -> list[str]:
    """The releases that cleanup removes, oldest first.

    Never one that lives (`live`), is committed, is the rollback target (`previous_good`) or what `current` points to;
    never a name that is not 14 digits. Of the others the newest `keep` good ones stay (those that are protected count
    if they are among the newest). Bad ones use up nothing of `keep`; only the newest bad one stays, and only while it
    is newer than the committed one, for whoever looks into the failure.
    """
    releases = sorted({release for release in on_disk if is_release(release)})
    protected = set(live) | {release for release in (committed, previous_good, current) if release}
    good = [release for release in releases if release not in bad]
    staying = protected | set(good[-keep:] if keep > 0 else [])
    failed = [release for release in releases if release in bad]
    if failed and committed is not None and failed[-1] > committed:
        staying.add(failed[-1])
    return [release for release in releases if release not in staying]


def deployed_line(branch: str, revision: str, release: str, user: str) -> str:
    """Capistrano's line for a deploy, without newline. `user` may be empty, as its `local_user` may."""
    return f"Branch {_one_line(branch)} (at {revision}) deployed as release {release} by {_one_line(user)}"


def rolled_back_line(user: str, release: str) -> str:
    """Capistrano's line for a rollback, without newline."""
    return f"{_one_line(user)} rolled back to release {release}"


def is_revision_line(line: str) -> bool:
    """Whether `line` is one of the two forms, to the letter."""
    return not _CONTROL.search(line) and bool(_DEPLOYED.fullmatch(line) or _ROLLED_BACK.fullmatch(line))


def deployed_releases(log: str) -> dict[str, tuple[str, str]]:
    """What revisions.log says was deployed in the end: release -> (branch, revision). Other lines are passed over."""
    found: dict[str, tuple[str, str]] = {}
    for line in log.splitlines():
        match = _DEPLOYED.fullmatch(line)
        if match:
            found[match["release"]] = (match["branch"], match["sha"])
    return found


def _one_line(text: str) -> str:
    return _CONTROL.sub(" ", text)
