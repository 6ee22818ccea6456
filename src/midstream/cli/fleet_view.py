"""`midstream status` of several hosts: one table with the host in front, and what differs between hosts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from midstream.cli.output import moment, span, table
from midstream.cli.status_view import HEADER, app_head, app_notes, app_rows, drift_lines

Seen = Mapping[str, Mapping[str, Any]]  # host -> answer to `status`
CLOCK_OFF_S = 60.0
Unfinished = Callable[[str, str], bool]  # (app, stage) -> whether `midstream resume` has a deploy to carry on, here


def _nothing(app: str, stage: str) -> bool:
    return False


def fleet_text(
    seen: Seen, failed: Mapping[str, str], unfinished: Unfinished = _nothing, clocks: Sequence[str] = ()
) -> str:
    """All apps over all hosts as text. failed: host -> why it could not be asked. clocks: `clock_lines`."""
    names = dict.fromkeys(app["app"] for answer in seen.values() for app in answer["apps"])
    parts = [_app_text(name, seen, failed, unfinished) for name in names]
    if not parts:
        parts = ["no app yet: `midstream deploy` brings one"] if seen else ["no host could be asked"]
    return "\n\n".join(
        [*parts, "\n".join([*_hosts(seen), *clocks, *(f"{host}: NOT REACHED: {why}" for host, why in failed.items())])]
    )


def clock_lines(seen: Seen, asked_s: float, told_s: float) -> list[str]:
    """The hosts whose clocks differ from the one here. asked_s, told_s: what this one said before they were asked, and after
    the last one had answered (epoch seconds)."""
    lines = []
    for host, answer in seen.items():
        time_s = float(answer.get("time") or asked_s)
        off_s = min(time_s - asked_s, 0.0) or max(time_s - told_s, 0.0)
        if abs(off_s) >= CLOCK_OFF_S:
            words = f"{span(round(abs(off_s) / 60) * 60)} {'ahead of' if off_s > 0 else 'behind'}"
            lines.append(f"{host}: its clock is {words} this one's; the times that it tells are its own")
    return lines


def _app_text(name: str, seen: Seen, failed: Mapping[str, str], unfinished: Unfinished) -> str:
    apps = {host: app for host, answer in seen.items() for app in answer["apps"] if app["app"] == name}
    heads: dict[str, list[str]] = {}
    for host, app in apps.items():
        heads.setdefault(app_head(app), []).append(host)
    if len(heads) == 1 and len(apps) == len(seen):
        lines = list(heads)
    else:
        lines = [f"{head}  on {', '.join(hosts)}" for head, hosts in heads.items()]
        lines += [f"{name}: not deployed on {host}" for host in seen if host not in apps]
    lines += [f"  {host}:{note}" for host, app in apps.items() for note in app_notes(app)]
    lines += [f"  {text}" for text in _differences(name, seen, unfinished)]
    rows = [(host, *row) for host, app in apps.items() for row in app_rows(app)]
    rows += [(host, "-", "-", "-", "not reached", "?", "?", "-", "-", "-", "") for host in failed]
    if rows:
        lines.append(table(("HOST", *HEADER), rows))
    lines += [f"  {host}: {text}" for host, app in apps.items() for text in drift_lines(app)]
    return "\n".join(lines)


def _hosts(seen: Seen) -> Iterator[str]:
    for host, answer in seen.items():
        agent, keeper = answer["agent"], answer["keeper"]
        words = f"agent pid {agent['pid']}, up {span(agent.get('uptime_s'))}; keeper pid {keeper['pid']}"
        if not keeper.get("attached", True):
            words += " (NOT attached: it restarts what crashes, the agent decides nothing now)"
        yield f"{host}: {words}"


def fleet_problems(seen: Seen, unfinished: Unfinished = _nothing) -> list[str]:
    """What is wrong between the hosts, though each may be in order by itself."""
    names = dict.fromkeys(app["app"] for answer in seen.values() for app in answer["apps"])
    return [text for name in names for text in _differences(name, seen, unfinished)]


def _differences(name: str, seen: Seen, unfinished: Unfinished) -> list[str]:
    hosts_of: dict[str, list[str]] = {}
    rows = [(host, app) for host, answer in seen.items() for app in answer["apps"] if app["app"] == name]
    for host, app in rows:
        hosts_of.setdefault(str(app.get("release") or "nothing"), []).append(host)
    found = []
    if len(hosts_of) > 1:
        shown = "; ".join(f"{release} on {', '.join(hosts)}" for release, hosts in sorted(hosts_of.items()))
        stage = str(rows[0][1].get("stage") or "")
        ends = f"`midstream deploy {stage}` ends that"
        if unfinished(name, stage):  # after auto_revert = false, or --roles, there is nothing to resume
            ends = f"`midstream resume {stage}` carries the unfinished deploy to its end; else {ends}"
        found.append(f"NOT ON ONE RELEASE: {shown} ({ends})")
    committed = {host: str(app.get("release") or "") for host, app in rows}
    told = sorted(
        (row for _, app in rows for row in app.get("behind", ())), key=lambda row: float(row.get("since") or 0.0)
    )
    behind = {str(row["host"]): row for row in told}  # the last word about each
    for host, row in behind.items():
        if committed.get(host) != row.get("release"):
            found.append(
                f"BEHIND: {host} was left out of release {row.get('release')} "
                f"({moment(row.get('since'))}, {row.get('user')}); the next deploy takes it along"
            )
    return found
