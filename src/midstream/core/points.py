"""The points of a deploy that a hook or a hold may name, and where in a run each of them lies.

Pure, standard library only. Capistrano writes its phases `deploy:updated`; both forms are taken, so that
`after "deploy:updated"` ports as it is (DESIGN 6). `DEPLOY` and `ROLLBACK` are the whole order of a run: parts of the
work, and between them the gaps with the points that lie there. Tasks that are one step on a host (`git:create_release`
claims the folder, checks out and links before anybody sees it) have no gap between them: before one of them is before
the step, after one is after it.
"""

from __future__ import annotations

import enum

PHASES = (
    "starting",
    "check",
    "started",
    "updating",
    "updated",
    "publishing",
    "published",
    "finishing",
    "finished",
    "reverting",
    "reverted",
    "failed",
)
TASKS = (
    "deploy:set_previous_revision",
    "git:update",
    "deploy:new_release_path",
    "git:create_release",
    "deploy:set_current_revision",
    "deploy:symlink:shared",
    "deploy:build",
    "deploy:assets",
    "deploy:migrate",
    "deploy:symlink:release",
    "deploy:verify",
    "deploy:cleanup",
    "deploy:revert_release",
    "deploy:log_revision",
)
HANDOVER = "handover"  # of each host: before its new generation is started, after it is proven
POINTS = (*PHASES, *TASKS, HANDOVER)


class Part(enum.Enum):
    """What is done between two gaps. The values of those that a call can stop before are its `until`."""

    LOCK = "lock"
    CHECK = "check"
    SELECT = "select"
    FETCH = "git:update"
    RELEASE = "git:create_release"
    BUILD = "deploy:build"
    ASSETS = "deploy:assets"
    MIGRATE = "deploy:migrate"
    PUBLISH = "publish"
    COMMIT = "commit"
    VERIFY = "deploy:verify"
    CLEANUP = "deploy:cleanup"
    LOG = "deploy:log_revision"
    CLOSE = "close"


Gap = tuple[str, ...]

_BEGIN: tuple[Part | Gap, ...] = (
    Part.LOCK,
    ("before starting", "after starting", "before check"),  # no command runs on a host without its lock
    Part.CHECK,
)
_STARTED: Gap = (
    "after check",
    "before started",
    "before deploy:set_previous_revision",
    "after deploy:set_previous_revision",
    "after started",
)
_END: tuple[Part | Gap, ...] = (
    Part.PUBLISH,
    ("before deploy:symlink:release",),
    Part.COMMIT,
    (
        "after deploy:symlink:release",
        "after publishing",
        "before published",
        "after published",
        "before finishing",
        "before deploy:verify",
    ),
    Part.VERIFY,
    ("after deploy:verify", "before deploy:cleanup"),
    Part.CLEANUP,
    ("after deploy:cleanup", "after finishing", "before finished", "before deploy:log_revision"),
    Part.LOG,
    ("after deploy:log_revision", "after finished"),
    Part.CLOSE,
)

DEPLOY: tuple[Part | Gap, ...] = (
    *_BEGIN,
    (*_STARTED, "before updating", "before git:update"),
    Part.FETCH,
    (
        "after git:update",
        "before deploy:new_release_path",
        "before git:create_release",
        "before deploy:set_current_revision",
        "before deploy:symlink:shared",
    ),
    Part.RELEASE,
    (
        "after deploy:new_release_path",
        "after git:create_release",
        "after deploy:set_current_revision",
        "after deploy:symlink:shared",
        "after updating",
        "before updated",
        "before deploy:build",
    ),
    Part.BUILD,
    ("after deploy:build", "before deploy:assets"),
    Part.ASSETS,
    ("after deploy:assets", "before deploy:migrate"),
    Part.MIGRATE,
    ("after deploy:migrate", "after updated", "before publishing"),
    *_END,
)

ROLLBACK: tuple[Part | Gap, ...] = (
    *_BEGIN,
    (*_STARTED, "before reverting", "before deploy:revert_release"),
    Part.SELECT,
    ("after deploy:revert_release", "after reverting", "before reverted", "after reverted", "before publishing"),
    *_END,
)

# On the way back of a run that failed: before the hosts put back what was begun, and after.
BACK_BEFORE: Gap = ("before reverting",)
BACK_AFTER: Gap = ("after reverting", "before reverted", "after reverted", "before failed", "after failed")
ROLLBACK_BACK_AFTER: Gap = ("before failed", "after failed")

# The one table of phases: the plan is made with it, and what a run tells of a task is put under the plan's phase.
_PHASE_OF_TASK = {
    "deploy:starting": "starting",
    "deploy:check": "check",
    "deploy:set_previous_revision": "started",
    "git:update": "updating",
    "deploy:new_release_path": "updating",
    "git:create_release": "updating",
    "deploy:set_current_revision": "updating",
    "deploy:symlink:shared": "updating",
    "deploy:build": "updated",
    "deploy:carry": "updated",
    "deploy:assets": "updated",
    "deploy:store_spec": "updated",
    "deploy:migrate": "updated",
    "deploy:handover": "publishing",
    "external:current": "publishing",
    "external:quiet": "publishing",
    "deploy:symlink:release": "publishing",
    "deploy:verify": "finishing",
    "deploy:cleanup": "finishing",
    "deploy:revert_release": "reverting",
    "deploy:log_revision": "finished",
    "deploy:unlock": "finished",
    HANDOVER: "publishing",
}

# An agent's journalled step -> the task that it is told as. "": it is told task by task (a service, a build step).
_TASK_OF_STEP = {
    "deploy:publish_assets": "deploy:assets",
    "handover": "",
    "build": "",
    "external:restart": "",
}


_HANDOVERS = (f"before {HANDOVER}", f"after {HANDOVER}")


def place_of(moment: str, order: tuple[Part | Gap, ...]) -> int | None:
    """Where a moment ("after check") lies in a run: the numbers of two moments compare as the moments do. None: it does
    not come in it."""
    number = 0
    for item in order:
        number += 1
        if item is Part.PUBLISH and moment in _HANDOVERS:
            return number + _HANDOVERS.index(moment)
        number += 2 if item is Part.PUBLISH else 0
        if isinstance(item, tuple):
            if moment in item:
                return number + item.index(moment)
            number += len(item)
    return None


def span_of(start: str, end: str, order: tuple[Part | Gap, ...]) -> tuple[str, str] | None:
    """A span of the deploy in another order, that of a rollback: a beginning that it does not have (it builds nothing)
    becomes the last one before the handover. None: the span lies in what the order leaves out."""
    first, last = place_of(start, order), place_of(end, order)
    if last is None:
        return None
    if first is None:
        start = "before publishing"
        first = place_of(start, order)
    return (start, end) if first is not None and first < last else None


def point_of(text: str) -> str | None:
    """The one name of the point that `text` means; None when there is no such point."""
    short = text.removeprefix("deploy:")
    if short in PHASES:
        return short
    return text if text in POINTS else None


def phase_of(point: str) -> str:
    """The phase that a point or a task ("deploy:build:css") belongs to; a phase belongs to itself."""
    task = ":".join(point.split(":")[:2])
    return _PHASE_OF_TASK.get(point) or _PHASE_OF_TASK.get(task, point)


def task_of(step: str) -> str:
    """What an agent's journalled step is told as; "" where its tasks are told one by one instead. Steps keep their name in
    the journal, which an agent of another version may have to read."""
    words = ":".join(step.partition(" ")[0].split(":")[:2])
    return _TASK_OF_STEP.get(words, step)


def handover_task(service: str) -> str:
    """The task that a service's handover is, in the plan and in what is told; of another supervisor: `monit:NAME`."""
    return f"deploy:handover:{service}"


def build_task(name: str) -> str:
    """The task that a build step is; name: the step's, "" for none."""
    return f"deploy:build:{name}" if name else "deploy:build"
