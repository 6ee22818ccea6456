"""The points of a deploy that a hook or a hold may name: phases, built-in tasks, `handover`.

Pure, standard library only. Capistrano writes its phases `deploy:updated`; both forms are taken, so that
`after "deploy:updated"` ports as it is (DESIGN 6).
"""

from __future__ import annotations

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
HANDOVER = "handover"  # of each host: before its old generation is touched, after the new one is committed
POINTS = (*PHASES, *TASKS, HANDOVER)


def point_of(text: str) -> str | None:
    """The one name of the point that `text` means; None when there is no such point."""
    short = text.removeprefix("deploy:")
    if short in PHASES:
        return short
    return text if text in POINTS else None
