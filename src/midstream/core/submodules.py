"""What a revision says about its submodules: parsing of `git ls-tree` and `.gitmodules`, and where one is fetched from.

Pure; used by the step programs on hosts and by the deployer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Submodule:
    """`path` in the tree of the revision that names it; `url` as .gitmodules says it, "" when it does not."""

    path: str
    sha: str
    url: str


def links(ls_tree: str) -> list[tuple[str, str]]:
    """(path, commit) of the submodules in the output of `git ls-tree -r -z REVISION`."""
    found = []
    for record in ls_tree.split("\0"):
        if record.startswith("160000 "):
            head, path = record.split("\t", 1)
            found.append((path, head.split(" ")[2]))
    return found


def urls(config: str) -> dict[str, str]:
    """path -> url from the output of `git config -z --blob REVISION:.gitmodules --list`."""
    settings: dict[str, dict[str, str]] = {}
    for record in config.split("\0"):
        key, _, value = record.partition("\n")
        if key.startswith("submodule."):
            name, _, setting = key.removeprefix("submodule.").rpartition(".")
            settings.setdefault(name, {})[setting] = value
    return {entry["path"]: entry["url"] for entry in settings.values() if "path" in entry and "url" in entry}


def absolute_url(repository: str, url: str) -> str:
    """A submodule's address: `./x` and `../x` are relative to the repository that names it (gitmodules(5))."""
    if not url.startswith(("./", "../")):
        return url
    base = repository.rstrip("/")
    while True:
        if url.startswith("./"):
            url = url[2:]
        elif url.startswith("../"):
            url = url[3:]
            base = _parent(base)
        else:
            return f"{base}{'' if base.endswith(':') else '/'}{url}"


def _parent(address: str) -> str:
    """The address without its last part: `host:a/b` -> `host:a`, `host:a` -> `host:`."""
    slash, colon = address.rfind("/"), address.rfind(":")
    if slash > colon:
        return address[:slash]
    return address[: colon + 1] if colon >= 0 else address
