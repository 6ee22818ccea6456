"""The steps `receive`, `fetch` and `diff`: the bare mirror `repo`, shared with Capistrano.

Objects come in as a pack from the deployer or by a fetch; every revision that was deployed is kept by a ref
`refs/midstream/SHA`, so that no gc drops it while a release may need it. Capistrano's `git remote update --prune` would
delete these refs, being none of the origin's; a negative refspec in the mirror's configuration keeps them.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from typing import Any

from midstream.core.git_errors import without_password
from midstream.core.layout import Layout
from midstream.core.steps import Diff, Fetch, Receive
from midstream.errors import HostError, MidstreamError, OperatorError
from midstream.steps import git, submodules
from midstream.steps.folder import Folder
from midstream.steps.git_locks import free_stale_locks
from midstream.steps.place import Place, open_place, open_root

REFS = "refs/midstream"
_KEEP_REFSPEC = f"^{REFS}/*"
_HAVE_MAX = 64
_LOOSE_MAX = 6700  # git's own default of gc.auto
_PACKS_MANY = 20  # of gc.autoPackLimit, 50, which a host may have set lower
_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")


def receive(request: Receive, pack_fd: int | None) -> dict[str, Any]:
    """Run again with the same pack it finds the objects there; git ignores what it has."""
    revision = check_sha(request.revision)
    with open_place(request.deploy_to) as place:
        ensure_mirror(place, revision, request.repository)
        size = 0
        if pack_fd is not None:
            size = _take_pack(place, pack_fd, revision)
        elif not git.has_commit(place.layout.repo, revision):
            raise OperatorError(
                f"revision {revision[:12]} is not in {place.layout.repo} and no pack came with it",
                where=place.layout.repo,
                remedy='deploy again; with source = "fetch" the host must be able to read the repository',
            )
        tree = keep(place, revision, request.tree, submodules_too=request.submodules)
        return {"revision": revision, "tree": tree, "received_bytes": size}


def fetch(request: Fetch) -> dict[str, Any]:
    """All branches and tags, as Capistrano's mirror has them; then the revision itself, should no branch have it (it
    was pushed over since the deployer looked)."""
    revision = check_sha(request.revision)
    with open_place(request.deploy_to) as place:
        ensure_mirror(place, revision, request.repository)
        repo = place.layout.repo
        try:
            _writing(
                place,
                *("fetch", "--quiet", "--prune", "--force", "--no-write-fetch-head", "--no-tags", "--"),
                request.repository,
                *("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"),
                network=True,
            )
            if not git.has_commit(repo, revision):
                print(f"no branch has {revision[:12]}; asking for it by its name")
                _writing(
                    place,
                    *("fetch", "--quiet", "--no-write-fetch-head", "--no-tags", "--"),
                    request.repository,
                    f"{revision}:{REFS}/{revision}",
                    network=True,
                )
        except git.GitFailed as error:
            wanted = f"{request.branch} (revision {revision[:12]})"
            raise git.failure(error, repository=request.repository, wanted=wanted, where=repo) from None
        if request.submodules:
            submodules.fetch(place, revision, request.repository)
        tree = keep(place, revision, request.tree, submodules_too=request.submodules)
        return {"revision": revision, "tree": tree}


def diff(request: Diff) -> dict[str, Any]:
    """Commits between two revisions, as `midstream diff` shows them."""
    with open_root(request.deploy_to):
        repo = Layout(request.deploy_to).repo
        ends = (request.from_revision, request.to_revision)
        unknown = [end for end in ends if not _exists(repo, end)]
        if unknown:
            return {"commits": [], "undone": [], "unknown": unknown}
        first, last = ends
        return {
            "commits": _log(repo, first, last, request.limit),
            "undone": _log(repo, last, first, request.limit),
            "unknown": [],
        }


def have(root: Folder, layout: Layout) -> list[str]:
    """Revisions of which the mirror has the whole history, newest first: what a pack need not bring again.

    Only what refs name: an object that nothing names may have lost what it reaches to a gc.
    """
    if root.kind("repo") != stat.S_IFDIR or root.kind("repo/shallow"):
        return []  # a shallow mirror (Capistrano's git_shallow_clone) has no whole history
    count, refs = f"--count={_HAVE_MAX}", ("refs/heads", REFS)
    with contextlib.suppress(git.GitFailed, HostError):
        out = git.run(layout.repo, "for-each-ref", "--sort=-creatordate", count, "--format=%(objectname)", *refs)
        return list(dict.fromkeys(out.split()))
    return []


def ensure_mirror(place: Place, revision: str, repository: str = "") -> None:
    """Makes `repo` when missing, by rename, so that there is never half a mirror; gives it the origin and the refspecs
    with which Capistrano's `remote set-url` and `remote update --prune` work and leave our refs alone."""
    repository = without_password(repository)
    if place.root.kind("repo") == 0:
        _make_mirror(place, revision, repository)
    if place.root.kind("repo/HEAD") != stat.S_IFREG:
        raise OperatorError(
            f"{place.layout.repo} is no bare git repository",
            where=place.layout.repo,
            remedy="move it away; it is made anew by the next deploy",
        )
    with place.root.open("repo") as repo:
        config = (repo.read("config") or b"").decode(errors="replace")
    if _KEEP_REFSPEC not in config:
        _writing(place, "config", "--add", "remote.origin.fetch", _KEEP_REFSPEC)
    if repository and f"url = {repository}\n" not in config:
        _writing(place, "config", "remote.origin.url", repository)


def _make_mirror(place: Place, revision: str, repository: str) -> None:
    name = f"repo-{os.getpid()}"
    with place.ours.make("tmp") as temporary:
        temporary.remove_tree(name)
        path = f"{temporary.path}/{name}"
        try:
            names = "sha256" if len(revision) == 64 else "sha1"
            init = ("init", "--quiet", "--bare", f"--object-format={names}", name)
            git.run(temporary.path, *init, keep_fds=place.keep_fds)
            for key, value in (
                ("remote.origin.url", repository or place.layout.repo),
                ("remote.origin.fetch", "+refs/*:refs/*"),
                ("remote.origin.fetch", _KEEP_REFSPEC),
                ("remote.origin.mirror", "true"),
                ("gc.autoDetach", "false"),
            ):
                git.run(path, "config", "--add", key, value, keep_fds=place.keep_fds)
        except git.GitFailed as error:
            raise git.failure(error, repository=place.layout.repo, where=place.layout.repo) from None
        temporary.rename(name, place.root, "repo")
    place.root.sync()


def _take_pack(place: Place, pack_fd: int, revision: str) -> int:
    status = os.fstat(pack_fd)
    if stat.S_ISREG(status.st_mode):
        os.lseek(pack_fd, 0, os.SEEK_SET)
    _sweep_half_packs(place.layout.repo)
    try:
        # --fix-thin: the pack leaves out what we said we have. Objects are named by their content, so nothing in it
        # can pose as something else; that nothing is missing is checked from the revision (`keep`). Not --strict: it
        # refuses old repositories for sins like zero-padded modes that git itself has long lived with.
        git.run(place.layout.repo, "index-pack", "--stdin", "--fix-thin", stdin=pack_fd, keep_fds=place.keep_fds)
    except git.GitFailed as error:
        raise _damage(place, error, f"the pack for {revision[:12]}") from None
    return status.st_size


def _sweep_half_packs(repo: str) -> None:
    """Killed runs leave `tmp_pack_…` behind, as large as the pack. Younger than an hour may be a live one of
    Capistrano's."""
    folder = f"{repo}/objects/pack"
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("tmp_") and time.time() - entry.stat(follow_symlinks=False).st_mtime > 3600:
                os.unlink(entry.path)


def keep(place: Place, revision: str, tree: str, *, submodules_too: bool) -> str:
    """Checks that the revision is whole and has `tree`, and keeps it by a ref; its tree id."""
    repo = place.layout.repo
    try:
        git.run(repo, "rev-list", "--objects", "--quiet", revision, "--not", "--all")
        found = git.run(repo, "rev-parse", "--verify", f"{revision}^{{tree}}").strip()
        if tree and found != tree:
            raise HostError(
                f"revision {revision[:12]} has tree {found[:12]} here and {tree[:12]} on the deployer",
                where=repo,
                remedy="the mirror is damaged: move it away and deploy again",
            )
        _writing(place, "update-ref", f"{REFS}/{revision}", revision)
        if submodules_too:
            for sha in submodules.commits(repo, revision):
                git.run(repo, "rev-list", "--objects", "--quiet", sha, "--not", "--all")
                _writing(place, "update-ref", f"{REFS}/{sha}", sha)
    except git.GitFailed as error:
        raise _damage(place, error, f"revision {revision[:12]}") from None
    return found


def _damage(place: Place, error: git.GitFailed, wanted: str) -> MidstreamError:
    """What a failure to take or find objects means. A mirror whose own refs are not whole is set aside, so that the
    next deploy begins with a new one instead of failing for ever."""
    cause = git.failure(error, repository=place.layout.repo, wanted=wanted, where=place.layout.repo)
    if "no space" in cause.what or _is_whole(place.layout.repo):
        return cause
    with place.ours.make("trash") as trash:
        place.root.rename("repo", trash, f"repo-{time.time_ns()}")
    return HostError(
        f"the mirror {place.layout.repo} was damaged and has been set aside",
        where=place.layout.repo,
        detail=error.stderr,
        serving="what was serving before",
        remedy="deploy again: a new mirror is made",
    )


def _is_whole(repo: str) -> bool:
    try:
        git.run(repo, "rev-list", "--objects", "--quiet", "--all")
    except git.GitFailed:
        return False
    return True


def _writing(place: Place, *args: str, network: bool = False) -> str:
    """git on the mirror, where it writes. A lock file that a killed git left is removed, and it is tried once more."""
    try:
        return git.run(place.layout.repo, *args, network=network, keep_fds=place.keep_fds)
    except git.GitFailed as error:
        if ".lock" not in error.stderr or not free_stale_locks(place.layout.repo):
            raise
    return git.run(place.layout.repo, *args, network=network, keep_fds=place.keep_fds)


def drop_refs(place: Place, revisions: set[str]) -> None:
    """Forgets the refs of what none of these revisions of releases needs any more, their submodules included, and lets git
    repack when there is much to do."""
    repo = place.layout.repo
    if place.root.kind("repo") != stat.S_IFDIR:
        return
    gone = set(git.run(repo, "for-each-ref", "--format=%(refname:lstrip=2)", REFS).split()) - revisions
    if gone:
        for revision in submodules.having_some(repo, sorted(revisions)):
            with contextlib.suppress(git.GitFailed, MidstreamError):
                gone.difference_update(submodules.commits(repo, revision))
    for sha in sorted(gone):
        _writing(place, "update-ref", "-d", f"{REFS}/{sha}")
    if _may_be_packed(repo):
        git.run(
            repo,
            *("-c", f"gc.auto={_LOOSE_MAX}", "-c", "gc.autoDetach=false", "gc", "--auto", "--quiet"),
            keep_fds=place.keep_fds,
        )


def _may_be_packed(repo: str) -> bool:
    """Whether `git gc --auto` may find enough to do, by its own estimate (git-gc(1)): it looks into one of the 256 folders of
    loose objects, and counts packs. Not to ask saves a process at almost each deploy."""
    loose, packs = 0, 0
    with contextlib.suppress(FileNotFoundError):
        loose = len(os.listdir(f"{repo}/objects/17"))
    with contextlib.suppress(FileNotFoundError):
        packs = sum(name.endswith(".pack") for name in os.listdir(f"{repo}/objects/pack"))
    return loose > _LOOSE_MAX // 256 or packs > _PACKS_MANY


def is_sha(text: str) -> bool:
    """Whether it is a full object name."""
    return bool(_SHA.match(text))


def check_sha(revision: str) -> str:
    """A full object name. Anything else is refused, so that nothing can pass for an option or a ref."""
    if not _SHA.match(revision):
        raise OperatorError(f"{revision!r} is not a full revision (40 hexadecimal digits)", remedy="resolve it first")
    return revision


def _exists(repo: str, revision: str) -> bool:
    return bool(_SHA.match(revision)) and os.path.isdir(repo) and git.has_commit(repo, revision)


def _log(repo: str, first: str, last: str, limit: int) -> list[dict[str, Any]]:
    out = git.run(repo, "log", "-z", f"--max-count={limit}", "--format=%H%x1f%an%x1f%at%x1f%s", f"{first}..{last}")
    commits = []
    for record in out.split("\0"):
        if record:
            sha, author, moment, subject = record.split("\x1f", 3)
            commits.append({"sha": sha, "author": author, "time": int(moment), "subject": subject})
    return commits
