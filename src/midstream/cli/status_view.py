"""`midstream status`: rows and verdict from the agent's answer. Pure.

The verdict speaks from the running processes (`release_running`, which the agent reads from /proc), never from
symlinks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from midstream.cli.output import clean, coloured, moment, short, size, span, table

HEADER = ("SERVICE", "PID", "GEN", "STATE", "COMMITTED", "RUNS", "UPTIME", "RESTARTS", "MEMORY", "NOTE")


def status_text(status: dict[str, Any]) -> str:
    """The whole answer as text."""
    parts = [_app_text(app) for app in status["apps"]]
    if not parts:
        parts = ["no app yet: `midstream deploy` brings one"]
    agent, keeper = status["agent"], status["keeper"]
    words = f"agent pid {agent['pid']}, up {span(agent.get('uptime_s'))}; keeper pid {keeper['pid']}"
    if not keeper.get("attached", True):
        words += " (NOT attached: it restarts what crashes, the agent decides nothing now)"
    return "\n\n".join([*parts, f"{status['host']}: {words}"])


def _app_text(app: dict[str, Any]) -> str:
    lines = [app_head(app), *app_notes(app)]
    rows = app_rows(app)
    if rows:
        lines.append(table(HEADER, rows))
    lines += [_external(app, row) for row in app.get("external", ())]
    lines += [f"  {text}" for text in drift_lines(app)]
    return "\n".join(lines)


def app_rows(app: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the table, as `HEADER` has it."""
    return [row for service in app["services"] for row in _rows(app, service)]


def app_head(app: dict[str, Any]) -> str:
    release = app.get("release")
    if not release:
        return f"{app['app']} ({app['stage']}): nothing committed yet"
    return f"{app['app']} ({app['stage']}): release {release}, {app.get('branch') or '?'} at {short(app['revision'])}"


def lock_words(lock: Mapping[str, Any]) -> str:
    """Who holds a lock that was taken by hand, since when, for how long yet, and why."""
    left = f", for another {span(lock['expires_in_s'])}" if lock.get("expires_in_s") else ""
    return f"locked by {clean(str(lock['owner']))} since {moment(lock['since'])}{left}: {clean(str(lock['reason']))}"


def app_notes(app: dict[str, Any]) -> Iterator[str]:
    if deploy := app.get("deploy"):
        yield f"  {deploy['kind']} by {deploy['user']} in phase {deploy['phase']}, since {moment(deploy.get('since'))}"
    if lock := app.get("lock"):
        since = moment(lock.get("since"))
        yield f"  locked by {lock.get('owner')} since {since}: {clean(str(lock.get('reason', '')))}"
    current = app.get("current")
    if current and app.get("release") and current != app["release"]:
        yield f"  `current` points to {current}, which is not the committed release"


def _rows(app: dict[str, Any], service: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    shown = False
    for generation in service["generations"]:
        for instance in generation["instances"]:
            shown = True
            yield _row(app, service, generation, instance)
    if not shown:
        note = _service_note(service)
        committed = app.get("release") or "-"
        yield (service["service"], "-", "-", coloured(service["state"]), committed, "-", "-", "-", "-", note)


def _row(
    app: dict[str, Any], service: dict[str, Any], generation: dict[str, Any], instance: dict[str, Any]
) -> tuple[str, ...]:
    expected = generation.get("release") or ""
    runs = instance.get("release_running") or "?"
    state = str(generation["state"])
    if generation.get("parked"):
        state += ", parked"
    if instance["state"] not in ("running", "ready"):
        state += f", {instance['state']}"
    words = (
        instance.get("status_text"),
        _work_words(instance.get("work")),
        generation.get("note"),
        _service_note(service),
    )
    notes = [clean(str(text)) for text in words if text]
    if runs != expected and instance.get("pid"):
        notes.insert(0, f"DRIFT: should run {expected}")
    return (
        f"{service['service']}/{instance['slot']}",
        str(instance.get("pid") or "-"),
        str(generation["generation"]),
        _state_cell(service, state),
        app.get("release") or "-",
        runs,
        span(instance.get("uptime_s")),
        str(instance.get("restarts", 0)),
        size(instance.get("memory_bytes")),
        "; ".join(notes),
    )


def _work_words(work: dict[str, Any] | None) -> str:
    """`quiet, 2 jobs: Report 12s, Mail 1s`: what a worker has in hand, the oldest first."""
    if work is None:
        return ""
    if work.get("trouble"):
        return str(work["trouble"])
    jobs = sorted(work.get("jobs", ()), key=lambda job: -(job.get("age_s") or 0.0))
    named = ", ".join(f"{job['name'][:40]} {span(job.get('age_s'))}" for job in jobs[:3])
    more = f" and {len(jobs) - 3} more" if len(jobs) > 3 else ""
    count = f"{len(jobs)} job{'s' * (len(jobs) != 1)}: {named}{more}" if jobs else ""
    return ", ".join(word for word in ("quiet" if work.get("quiet") else "", count) if word)


def _external(app: dict[str, Any], row: dict[str, Any]) -> str:
    """A service that another supervisor owns."""
    watched = {True: "watched", False: "not watched", None: "not known"}[row.get("watched")]
    words = [f"pid {row['pid']}" if row.get("pid") else "no process", watched]
    if row.get("release_running"):
        words.insert(1, f"runs {row['release_running']}")
    if hold := row.get("hold"):
        along = f" with {', '.join(hold['along'])}" if hold.get("along") else ""
        left = span(float(hold["expires_in_s"])) + " left"
        words.append("being given back" if hold["state"] == "releasing" else f"held by {hold['owner']}{along}, {left}")
    if row.get("note"):
        words.append(clean(str(row["note"])))
    return f"  {row['supervisor']}:{row['service']}: {', '.join(words)}"


def _state_cell(service: dict[str, Any], state: str) -> str:
    """The generation's state, with the service's in front where that says more."""
    head = service["state"]
    first, comma, rest = state.partition(",")
    cell = coloured(first) + comma + rest
    return cell if head in ("running", "handover") else f"{coloured(head)}: {cell}"


def _service_note(service: dict[str, Any]) -> str:
    hold = service.get("hold")
    if isinstance(hold, dict):
        left = hold.get("expires_in_s")
        reason = f" ({hold['reason']})" if hold.get("reason") else ""
        return f"held by {hold.get('owner')}{reason}" + (f", {span(float(left))} left" if left is not None else "")
    quiet = service.get("quiet")
    if isinstance(quiet, dict) and quiet.get("expires_in_s") is not None:
        reason = f" ({quiet['reason']})" if quiet.get("reason") else ""
        return f"quieted by {quiet.get('owner')}{reason}, {span(float(quiet['expires_in_s']))} left"
    return "stopped by hand" if service.get("want") == "down" else ""


def drift_lines(app: dict[str, Any]) -> list[str]:
    """What the agent found to differ, in words."""
    return [_drift(row) for row in app.get("drift", ())]


def _drift(row: dict[str, Any]) -> str:
    slot = row.get("slot")
    place = f"{row['service']}/{slot}" if row.get("service") and slot != -1 else row.get("service") or "the app"
    pid = f" (pid {row['pid']})" if row.get("pid") else ""
    expected, found = row.get("expected"), row.get("found")
    match row.get("kind"):
        case "release":
            return f"DRIFT: {place}{pid} runs release {found}, committed is {expected}"
        case "down":
            return f"DOWN: {place} should run release {expected}, and does not"
        case "current":
            return f"DRIFT: `current` was moved by hand to {found}; committed is {expected}"
        case "unwatched":
            return f"UNWATCHED: {place}{pid} is not watched by its supervisor: {found}"
        case "deleted":
            return f"DRIFT: {place}{pid} runs files that were deleted ({found})"
        case kind:
            return f"DRIFT: {place}{pid}: {kind}, expected {expected}, found {found}"


def problems(status: dict[str, Any]) -> list[str]:
    """Why `status --check` should not be content: what does not run (also when it was stopped by hand, as LSB's status
    has it), and all drift. A held service is judged by its processes alone."""
    found = []
    for app in status["apps"]:
        lines = drift_lines(app)
        found += [f"{app['app']}: {line}" for line in lines]
        for service in app["services"]:
            found += [f"{app['app']}: {text}" for text in _service_problems(app, service)]
    return found


def _service_problems(app: dict[str, Any], service: dict[str, Any]) -> Iterator[str]:
    if service.get("want") == "down":
        yield f"{service['service']} was stopped by hand"
        return
    if service["state"] in ("stopped", "failed", "backoff", "degraded"):
        yield f"{service['service']} is {service['state']}"
    known = {(row.get("service"), row.get("slot")) for row in app.get("drift", ())}
    for generation in service["generations"]:
        for instance in generation["instances"]:
            runs = instance.get("release_running")
            place = (service["service"], instance["slot"])
            if runs and runs != generation.get("release") and place not in known:
                expected = f"generation {generation['generation']} is {generation['release']}"
                yield f"{place[0]}/{place[1]} runs {runs}, {expected}"
