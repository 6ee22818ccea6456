"""What to say when a deploy did not end well: one error with its exit code, from what is known of all hosts.

Pure. The worst thing decides: a host that could not be put back or is undecided, or a migration that stays, needs
somebody's attention (exit 5); an interrupt that was undone is 130; else the error's own code, and the old state stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from midstream.errors import AttentionError, InterruptedDeploy, LockedError, MidstreamError


@dataclass(frozen=True, slots=True)
class Facts:
    """All maps: host -> text or error. `before`: the release that was committed when the deploy began, "" for none.
    `migrated_release`: whose migrations ran, "" for none; `irreversible`: they say `reversible = false`.
    `put_back_failed`: hosts that took no way back. `not_closed`: hosts whose lock could not be freed by us.
    `undecided`: hosts of which the decision is not known. `lost`: hosts that cannot be reached any more.
    `over`: hosts that had committed it before this command, which was to bring the others there.
    `went_on`: hosts that stay on the new release, and why. `not_undone`: what hooks did and their undo did not take back."""

    error: MidstreamError
    host: str
    stage: str
    kind: str
    before: Mapping[str, str] = field(default_factory=dict)
    serving: Mapping[str, str] = field(default_factory=dict)
    migrated_release: str = ""
    irreversible: bool = False
    put_back_failed: Mapping[str, MidstreamError] = field(default_factory=dict)
    not_closed: Mapping[str, MidstreamError] = field(default_factory=dict)
    undecided: tuple[str, ...] = ()
    went_on: tuple[str, ...] = ()
    went_on_why: str = "its migrations cannot be reversed"
    not_undone: Mapping[str, str] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    lease_s: float = 15.0


def judge(facts: Facts) -> MidstreamError:
    """The one error to show and to exit with."""
    error = facts.error
    kind: type[MidstreamError] = type(error)
    if facts.put_back_failed or facts.undecided or facts.migrated_release or facts.went_on or facts.not_undone:
        kind = AttentionError
    if facts.over and not isinstance(error, LockedError):  # the fleet is not on one release
        kind = AttentionError
    verdict = kind(
        error.what,
        where=_where(facts),
        serving=_serving(facts),
        remedy=_remedy(facts),
        detail="\n".join([*error.detail.splitlines(), *_additions(facts)]),
    )
    if kind is type(error):
        verdict.exit_code = error.exit_code
    return verdict


def _where(facts: Facts) -> str:
    where = facts.error.where
    if not facts.host or facts.host in where:
        return where
    return f"{facts.host}: {where}" if where else facts.host


def _serving(facts: Facts) -> str:
    parts = []
    if facts.migrated_release:
        code = sorted({release for release in facts.before.values() if release}) or ["none"]
        final = " (the migration says `reversible = false`)" if facts.irreversible else ""
        parts.append(f"schema: {facts.migrated_release}{final}, code: {', '.join(code)}")
    if facts.undecided:
        return "; ".join([*parts, *(_of_undecided(host, facts) for host in facts.before)])
    if facts.serving:
        parts += [f"{host}: {text}" for host, text in facts.serving.items()]
        parts += [
            f"{host}: {_release(facts.before.get(host, ''))}, once its agent has put it back"
            for host in facts.lost
            if host in facts.put_back_failed
        ]
    elif facts.error.serving:
        parts.append(facts.error.serving)
    elif any(facts.before.values()):
        parts.append("the old release, untouched: " + _by_host(facts.before))
    elif facts.before:
        parts.append("nothing yet: no release was committed before")
    if facts.went_on:
        parts.append(f"the new release on {', '.join(facts.went_on)} ({facts.went_on_why})")
    return "; ".join(parts)


def _of_undecided(host: str, facts: Facts) -> str:
    before = _release(facts.before[host])
    if host in facts.undecided:
        return f"{host}: {before}, or the new one; that is not known"
    return f"{host}: {before}, which it goes back to by itself within {facts.lease_s:g} s"


def _release(release: str) -> str:
    return f"release {release}" if release else "nothing"


def _by_host(releases: Mapping[str, str]) -> str:
    if len(set(releases.values())) == 1:
        return next(iter(releases.values()))
    return ", ".join(f"{release or 'nothing'} on {host}" for host, release in releases.items())


def _remedy(facts: Facts) -> str:
    error = facts.error
    command = f"midstream {facts.kind} {facts.stage}"
    if facts.undecided:
        return (
            f"`midstream resume {facts.stage}` settles {', '.join(facts.undecided)} once it can be reached; "
            f"`midstream status {facts.stage}` tells what runs now"
        )
    if facts.put_back_failed:
        return f"look at {', '.join(facts.put_back_failed)} with `midstream status`, then `{command}` again"
    if facts.not_undone:
        return f"undo by hand what {', '.join(facts.not_undone)} could not; then `{command}`"
    if facts.over and not isinstance(error, LockedError):
        return (
            f"`midstream resume {facts.stage}` when that is mended; on the new release already: {', '.join(facts.over)}"
        )
    if facts.migrated_release and facts.irreversible:
        return f"the old code cannot work with the new schema: mend the new code at once, then `{command}`"
    if error.remedy:
        return error.remedy
    if isinstance(error, InterruptedDeploy):
        return f"nothing is left locked or held; `{command}` begins anew"
    if isinstance(error, LockedError):
        return f"wait for it, or `{command} --wait`"
    if facts.migrated_release:
        return f"check that the old code can work with the new schema; mend the new code, then `{command}`"
    return f"mend it and run `{command}` again; nothing is left locked or held"


def _additions(facts: Facts) -> list[str]:
    lines = [
        f"{host} could not be told to go back ({error.what}); its agent does so by itself within {facts.lease_s:g} s of "
        "hearing nothing"
        if host in facts.lost
        else f"{host} was NOT put back: {error.what}"
        for host, error in facts.put_back_failed.items()
    ]
    lines += [f"{host}: {text}" for host, text in facts.not_undone.items()]
    lines += [f"{host} is undecided: its agent could not be asked" for host in facts.undecided]
    lines += [
        f"{host}: could not be told that the deploy has ended ({error.what}); its agent frees the lock by itself "
        f"within {facts.lease_s:g} s"
        for host, error in facts.not_closed.items()
        if host not in facts.put_back_failed and host not in facts.undecided
    ]
    return lines
