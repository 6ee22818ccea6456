"""Submodules: which commits a revision needs of other repositories, and how they come into the mirror.

The mirror is one bag of objects: a submodule's commits lie in it beside the app's own, kept by refs of the same kind.
The deployer's pack brings them (`source = "push"`), or they are fetched from the address in .gitmodules.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator

from midstream.core.git_errors import redact_url
from midstream.core.submodules import Submodule, absolute_url, links, urls
from midstream.errors import AppError
from midstream.steps import git
from midstream.steps.place import Place

_DEPTH_MAX = 10


def of(repo: str, revision: str) -> list[Submodule]:
    """The submodules that this revision itself names."""
    found = links(git.run(repo, "ls-tree", "-r", "-z", "--full-tree", revision))
    if not found:
        return []
    try:
        addresses = urls(git.run(repo, "config", "-z", "--blob", f"{revision}:.gitmodules", "--list"))
    except git.GitFailed:  # no .gitmodules
        addresses = {}
    return [Submodule(path, sha, addresses.get(path, "")) for path, sha in found]


def having_some(repo: str, revisions: list[str]) -> list[str]:
    """Those of the revisions that have submodules, or may: one question for all. A deploy takes none along of a revision
    without .gitmodules."""
    with open(os.memfd_create("revisions"), "w+b") as asked:
        asked.write("".join(f"{revision}:.gitmodules\n" for revision in revisions).encode())
        asked.flush()
        asked.seek(0)
        told = git.run(repo, "cat-file", "--batch-check=%(objecttype)", stdin=asked.fileno()).splitlines()
    return [revision for revision, said in zip(revisions, told, strict=True) if said == "blob"]


def commits(repo: str, revision: str) -> list[str]:
    """The commits of all submodules, those of submodules too. Raises AppError for one that the mirror lacks."""
    return [module.sha for _, module in walk(repo, revision)]


def walk(repo: str, revision: str, inside: str = "", depth: int = 0) -> Iterator[tuple[str, Submodule]]:
    """(path from the top, submodule), outer ones first."""
    if depth > _DEPTH_MAX:
        raise AppError(
            f"submodules lie more than {_DEPTH_MAX} deep in each other",
            where=inside,
            remedy="look for a repository that contains itself in .gitmodules",
        )
    for module in of(repo, revision):
        path = posixpath.join(inside, module.path)
        if not git.has_commit(repo, module.sha):
            raise AppError(
                f"submodule {path} needs {module.sha[:12]}, which the mirror does not have",
                where=redact_url(module.url),
                remedy="push the submodule's commit to its repository, then deploy again",
            )
        yield path, module
        yield from walk(repo, module.sha, path, depth + 1)


def fetch(place: Place, revision: str, repository: str, depth: int = 0) -> None:
    """Fetches the commits that are missing, each by its name, with its history, from its own repository."""
    repo = place.layout.repo
    for module in of(repo, revision):
        if not module.url:
            raise AppError(
                f"submodule {module.path} has no address in .gitmodules", remedy="commit .gitmodules with its url"
            )
        url = absolute_url(repository, module.url)
        if not git.has_commit(repo, module.sha):
            ref = f"{module.sha}:refs/midstream/{module.sha}"
            args = ("fetch", "--quiet", "--no-write-fetch-head", "--no-tags", "--")
            try:
                git.run(repo, *args, url, ref, network=True)
            except git.GitFailed as error:
                wanted = f"submodule {module.path} at {module.sha[:12]}"
                raise git.failure(error, repository=url, wanted=wanted, where=repo) from None
        if depth < _DEPTH_MAX:
            fetch(place, module.sha, url, depth + 1)
