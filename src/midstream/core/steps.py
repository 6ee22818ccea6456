"""What agent and step programs say to each other: one frozen request per step, and what each step answers.

Pure; shared by `agent/` (which writes requests) and `steps/` (which reads them). A step is one process:
`python -I -m midstream.steps NAME`, run by the keeper as a one-shot under the app's uid. The request is JSON on
descriptor 3 (read to its end; a seekable one is read from its start), `receive` takes its pack on descriptor 4. Lines
for people go to stdout and stderr; the last line of stdout is `RESULT_MARK` + `{"ok": {...}}` or
`{"error": MidstreamError.to_wire()}`; the exit code is 0 or the error's. Each step may be killed at any instant and run
again with the same request. `deploy_to` is absolute, without a trailing slash.

`session` is no step but a process for many: descriptor 3 is then one end of a SOCK_SEQPACKET pair. Each message is the
name of a step, with the descriptors that the step has as 3 and, where there is one, 4. They are run in their order, each
with its result line; the process ends when the other end is closed.
"""

from __future__ import annotations

import json
from dataclasses import field
from typing import Any

from midstream import errors
from midstream.core.values import dataclass

RESULT_MARK = "\x1e"
PART_MARK = "\x1f"
WORKERS_MARK = "\x1d"
REQUEST_FD = 3
PACK_FD = 4
SESSION = "session"


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make what is missing of the layout, sweep what an interrupted deploy left, check linked files and free space.

    -> {free_bytes, releases: [14-digit ids, oldest first], revisions: {release: sha}, current: release id, raw target
    or null, current_kind: see `core.layout.CurrentKind`, repaired: bool, strangers: [other names in releases/],
    have: [shas whose history the mirror has whole], swept: [paths], trash: whether there is any}
    """

    deploy_to: str
    linked_dirs: tuple[str, ...] = ()
    linked_files: tuple[str, ...] = ()
    min_free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Inspect:
    """The answer of `prepare` without changing anything (`repaired` false, `swept` empty). `have` False: the mirror is not
    asked, and `have` is empty."""

    deploy_to: str
    have: bool = True


@dataclass(frozen=True, slots=True)
class Receive:
    """Put the pack on descriptor 4, if there is one, into the mirror; check that `revision` is there with all that it
    reaches and that it has `tree`. `pack` None: look whether descriptor 4 is a file that is not empty.

    -> {revision, tree, received_bytes}
    """

    deploy_to: str
    revision: str
    tree: str = ""
    repository: str = ""  # becomes the mirror's origin, so that Capistrano can go on with it
    submodules: bool = False
    pack: bool | None = None


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring the mirror up to date from `repository` (URL or path); check `revision` and `tree` as `receive` does.

    -> {revision, tree}
    """

    deploy_to: str
    repository: str
    branch: str
    revision: str
    tree: str = ""
    submodules: bool = False


@dataclass(frozen=True, slots=True)
class MakeRelease:
    """Claim `releases/RELEASE` (the next free second when taken), extract the revision, link the shared paths.

    The same `deploy_id` gets the same folder again, emptied first. When it fails, the folder is removed; after a kill
    `discard` with the deploy_id does it. -> {release, path, files}
    """

    deploy_to: str
    deploy_id: str
    release: str
    revision: str
    tree: str = ""
    revision_time: float = 0.0  # epoch seconds of the commit
    branch: str = ""
    repo_tree: str = ""
    submodules: bool = False
    linked_dirs: tuple[str, ...] = ()
    linked_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreSpec:
    """Keep the resolved configuration of a release, or, by `deploy_id`, of the one that `make_release` claimed for that
    deploy. Ask for it after the build: it first brings the whole release to the disk (syncfs), so that what is committed
    later survives a power cut. -> {path}"""

    deploy_to: str
    release: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    deploy_id: str = ""


@dataclass(frozen=True, slots=True)
class ReadSpec:
    """-> {spec: {...} or null, revision, revision_time}"""

    deploy_to: str
    release: str


@dataclass(frozen=True, slots=True)
class PublishAssets:
    """Copy `dirs` of the release to `shared/assets/DIR`, adding only: a file whose content differs is replaced by
    rename, never written in place. For a release that was published before, this puts its files back. `deploy_id`: as
    for `store_spec`.

    -> {copied, same, replaced: [paths], skipped: [paths], bytes}
    """

    deploy_to: str
    release: str
    dirs: tuple[str, ...]
    deploy_id: str = ""


@dataclass(frozen=True, slots=True)
class Switch:
    """Point `current` to the release, by rename(2). `expected_previous`: release id or raw target that `current` must
    have now, where there is one (null: whatever it has); else DriftError and nothing is changed. `rollback_target`: the
    release to which a rollback would go afterwards, so that Capistrano's rollback, which goes by mtime, picks it too.

    -> {previous: release id, raw target or null, changed: bool}
    """

    deploy_to: str
    release: str
    expected_previous: str | None = None
    rollback_target: str | None = None


@dataclass(frozen=True, slots=True)
class LogRevision:
    """Append one line of `core.releases.deployed_line` or `rolled_back_line` to revisions.log. -> {appended: bool}"""

    deploy_to: str
    line: str


@dataclass(frozen=True, slots=True)
class Cleanup:
    """Remove old releases by `core.releases.removable`, into the trash. `live`: releases with a process or an unfinished
    job, and one that is being deployed. -> {removed: [ids], left: [{path, reason}], trash: whether there is any}"""

    deploy_to: str
    keep: int
    live: tuple[str, ...] = ()
    committed: str | None = None
    previous_good: str | None = None
    current: str | None = None
    bad: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Discard:
    """Remove one release that will not be used, or, by `deploy_id`, the one that `make_release` claimed for that deploy
    (its answer may never have come). Refused for the one that `current` points to.

    -> {removed: bool, left: [{path, reason}], trash: whether there is any}
    """

    deploy_to: str
    release: str = ""
    deploy_id: str = ""


@dataclass(frozen=True, slots=True)
class EmptyTrash:
    """Delete what other steps moved to the trash. It may take minutes, and runs beside other steps.
    -> {left: [{path, reason}]}"""

    deploy_to: str


@dataclass(frozen=True, slots=True)
class PackFiles:
    """Write an archive (`linux/archive.py`) of these paths of the release, which must be made of `tree`, to descriptor 4.
    -> {files, size_bytes}"""

    deploy_to: str
    release: str
    tree: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnpackFiles:
    """Put the archive on descriptor 4 into the release, which must be made of `tree`: each path takes the place of what
    is there, once all of the archive was found in order. -> {files}"""

    deploy_to: str
    release: str
    tree: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diff:
    """On the wire `from` and `to`: revisions. -> {commits: [{sha, author, time, subject}] newest first, in `to` and not
    in `from`; undone: the same the other way round; unknown: [revisions the mirror does not have]}"""

    deploy_to: str
    from_revision: str
    to_revision: str
    limit: int = 200


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker process: its slot and attempt, the pid of the instance and when that began (clock ticks since the boot,
    as /proc tells)."""

    slot: int
    attempt: int
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Workers:
    """Ask a job library's own records about its workers on this host, every `pause_s`, for `for_s` seconds (0: once).

    Lines: `WORKERS_MARK` + JSON, a list of {slot, attempt, listed, quiet, busy, beat, jobs: [{id, name, queue, since}],
    trouble}; `beat` and `since` are epoch seconds. Written when something changed, and every five seconds.
    -> {}
    """

    library: str  # sidekiq, rq
    url: str
    workers: tuple[Worker, ...]
    pause_s: float = 0.25
    for_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Several:
    """Run steps one after the other in one process; the first error ends it and is the answer. After each one a line:
    `PART_MARK` + JSON, [its number from 0, its `ok`].

    Each item is {"step": NAME, "request": {...}}; none of them may be `several` itself.
    -> {results: [the `ok` of each]}
    """

    steps: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Unswitch:
    """Remove `current` if it points to the release: on the way back, where there was none before. -> {changed: bool}"""

    deploy_to: str
    release: str


@dataclass(frozen=True, slots=True)
class MonitLook:
    """One service as Monit has it, changing nothing. `control`: Monit's control file, "" for the one it finds itself.

    -> {is_watched, pending: action or "", status: Monit's words, pid, start_ticks (0: no process), title: its command
    line, watched: [all services that are monitored]}
    """

    control: str
    service: str


@dataclass(frozen=True, slots=True)
class MonitHold:
    """Unmonitor the service and wait until that is applied and nothing that Monit began for it is under way.
    -> as `MonitLook`"""

    control: str
    service: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class MonitRelease:
    """Monitor these services again and wait until they are. -> {watched, unknown: [names that Monit does not know]}"""

    control: str
    services: tuple[str, ...]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class MonitQuiet:
    """Send the service's process the signal after which it fetches no more jobs, and wait until it says that it is idle,
    at most `timeout_s`. -> {pid, idle: bool, title}"""

    control: str
    service: str
    signal: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class MonitRestart:
    """Stop and start the service through Monit's own programs; with `start`, only start it if it is down. `along`: what
    depends on it and was monitored. `hold`: leave it unmonitored. `timeout_s` 0: Monit's own limits, and some seconds.
    -> as `MonitLook`"""

    control: str
    service: str
    along: tuple[str, ...] = ()
    start: bool = False
    hold: bool = True
    min_uptime_s: float = 3.0
    timeout_s: float = 0.0


REQUESTS: dict[str, type] = {
    "prepare": Prepare,
    "inspect": Inspect,
    "receive": Receive,
    "fetch": Fetch,
    "make_release": MakeRelease,
    "store_spec": StoreSpec,
    "read_spec": ReadSpec,
    "publish_assets": PublishAssets,
    "switch": Switch,
    "log_revision": LogRevision,
    "cleanup": Cleanup,
    "discard": Discard,
    "empty_trash": EmptyTrash,
    "pack_files": PackFiles,
    "unpack_files": UnpackFiles,
    "diff": Diff,
    "workers": Workers,
    "unswitch": Unswitch,
    "monit_look": MonitLook,
    "monit_hold": MonitHold,
    "monit_release": MonitRelease,
    "monit_quiet": MonitQuiet,
    "monit_restart": MonitRestart,
    "several": Several,
}

ALIASES = {"from": "from_revision", "to": "to_revision"}


def result_line(ok: dict[str, Any] | None, error: errors.MidstreamError | None = None) -> str:
    """The last line of a step's stdout, without its newline."""
    body = {"ok": ok} if error is None else {"error": error.to_wire()}
    return RESULT_MARK + json.dumps(body, separators=(",", ":"))


def part_line(number: int, ok: dict[str, Any]) -> str:
    """What `several` says after step `number`, without its newline."""
    return PART_MARK + json.dumps([number, ok], separators=(",", ":"))


def read_part(line: str) -> tuple[int, dict[str, Any]] | None:
    """The number and the `ok` of a line of `several`; None for any other line."""
    if not line.startswith(PART_MARK):
        return None
    try:
        number, ok = json.loads(line[len(PART_MARK) :])
    except (ValueError, TypeError):
        return None
    return (number, ok) if isinstance(number, int) and isinstance(ok, dict) else None


def read_result(line: str) -> dict[str, Any]:
    """The `ok` of a result line. Raises the error that the step reported; ValueError when it is no result line."""
    if not line.startswith(RESULT_MARK):
        raise ValueError("not a step's result line")
    body = json.loads(line[len(RESULT_MARK) :])
    if "error" in body:
        raise errors.from_wire(body["error"])
    ok: dict[str, Any] = body["ok"]
    return ok
