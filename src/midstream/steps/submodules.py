"""Submodules: which commits a revision needs of other repositories, and how they come into the mirror.

The mirror is one bag of objects: a submodule's commits lie in it beside the app's own, kept by refs of the same kind.
The deployer's pack brings them (`source = "push"`), or they are fetched from the address in .gitmodules.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from midstream.core.git_errors import redact_url
from midstream.errors import AppError
from midstream.steps import git
from midstream.steps.place import Place

_DEPTH_MAX = 10


@dataclass(frozen=True, slots=True)
class Submodule:
    """`path` in the tree of the revision that names it; `url` as .gitmodules says it, "" when it does not."""

    path: str
    sha: str
    url: str


def of(repo: str, revision: str) -> list[Submodule]:
    """The submodules that this revision itself names."""
    links = []
    for record in git.run(repo, "ls-tree", "-r", "-z", "--full-tree", revision).split("\0"):
        if record.startswith("160000 "):
            head, path = record.split("\t", 1)
            links.append((path, head.split(" ")[2]))
    if not links:
        return []
    urls = _urls(repo, revision)
    return [Submodule(path, sha, urls.get(path, "")) for path, sha in links]


def commits(repo: str, revision: str) -> list[str]:
    """The commits of all submodules, those of submodules too. Raises AppError for one that the mirror lacks."""
    return [module.sha for _, module in walk(repo, revision)]


def walk(repo: str, revision: str, inside: str = "", depth: int = 0) -> Iterator[tuple[str, Submodule]]:
    """(path from the top, submodule), outer ones first."""
    if depth > _DEPTH_MAX:
        raise AppError(f"submodules lie more than {_DEPTH_MAX} deep in each other", where=inside)
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


def absolute_url(repository: str, url: str) -> str:
    """A submodule's address: `./x` and `../x` are relative to the repository that names it (gitmodules(5))."""
    base = repository.rstrip("/")
    if not url.startswith(("./", "../")):
        return url
    while True:
        if url.startswith("./"):
            url = url[2:]
        elif url.startswith("../"):
            url = url[3:]
            cut = max(base.rfind("/"), base.rfind(":"))
            base = base[:cut] if cut > 0 else base
        else:
            break
    return f"{base}/{url}"


def _urls(repo: str, revision: str) -> dict[str, str]:
    try:
        out = git.run(repo, "config", "-z", "--blob", f"{revision}:.gitmodules", "--list")
    except git.GitFailed:
        return {}
    settings: dict[str, dict[str, str]] = {}
    for record in out.split("\0"):
        key, _, value = record.partition("\n")
        if key.startswith("submodule."):
            name, _, setting = key.removeprefix("submodule.").rpartition(".")
            settings.setdefault(name, {})[setting] = value
    return {entry["path"]: entry["url"] for entry in settings.values() if "path" in entry and "url" in entry}
