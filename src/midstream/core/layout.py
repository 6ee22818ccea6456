"""Where things are inside `deploy_to`: Capistrano's layout, as pure path arithmetic (DESIGN 5)."""

from __future__ import annotations

import enum
import itertools
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from midstream.core.names import is_release
from midstream.errors import OperatorError


class CurrentKind(enum.Enum):
    """What `current` is. RELATIVE, SLASH (a trailing or doubled one) and OTHER_PATH (reached through another path) do
    point to one of our releases, but Capistrano's cleanup compares text with text and would delete that release."""

    OK = "ok"
    RELATIVE = "relative"
    SLASH = "slash"
    OTHER_PATH = "other_path"
    FOREIGN = "foreign"
    DANGLING = "dangling"
    FOLDER = "folder"
    MISSING = "missing"


REPAIRABLE = frozenset({CurrentKind.RELATIVE, CurrentKind.SLASH, CurrentKind.OTHER_PATH})


@dataclass(frozen=True, slots=True)
class Layout:
    """All paths are absolute strings below `deploy_to`, which is absolute and has no trailing slash."""

    deploy_to: str

    @property
    def current(self) -> str:
        return f"{self.deploy_to}/current"

    @property
    def releases(self) -> str:
        return f"{self.deploy_to}/releases"

    @property
    def stale_link(self) -> str:
        """What an interrupted Capistrano publish leaves behind; it would trap Capistrano's next `ln -s`."""
        return f"{self.deploy_to}/releases/current"

    @property
    def repo(self) -> str:
        return f"{self.deploy_to}/repo"

    @property
    def shared(self) -> str:
        return f"{self.deploy_to}/shared"

    @property
    def shared_assets(self) -> str:
        """Where assets are published to, each folder under its own path: `shared/assets/public/static`."""
        return f"{self.deploy_to}/shared/assets"

    @property
    def revisions_log(self) -> str:
        return f"{self.deploy_to}/revisions.log"

    @property
    def ours(self) -> str:
        """The one folder in deploy_to that is Midstream's own."""
        return f"{self.deploy_to}/.midstream"

    def release(self, release: str) -> str:
        return f"{self.deploy_to}/releases/{release}"

    def spec(self, release: str) -> str:
        """The resolved configuration a release was deployed with."""
        return f"{self.ours}/specs/{release}.json"

    def claim(self, release: str) -> str:
        """Which deploy made a release folder, so that the same deploy, run again, finds its own."""
        return f"{self.ours}/claims/{release}.json"

    def asset_list(self, release: str) -> str:
        """Which files of `shared/assets` a release published."""
        return f"{self.ours}/assets/{release}.json"

    @property
    def trash(self) -> str:
        """What is being deleted; moved here first, so that a half-deleted release never looks like a whole one."""
        return f"{self.ours}/trash"


OUR_FOLDERS = ("specs", "claims", "assets", "trash", "tmp")


def classify_current(layout: Layout, target: str | None, resolved_release: str | None, exists: bool) -> CurrentKind:
    """The kind of a link whose text is `target` (None: there is no link).

    `resolved_release`: the name of the release of ours at which it arrives in the end, None if it is no release of
    ours; `exists`: whether anything is there. Real folders are CurrentKind.FOLDER before this is asked.
    """
    if target is None:
        return CurrentKind.MISSING
    if not exists:
        return CurrentKind.DANGLING
    if resolved_release is None or not is_release(resolved_release):
        return CurrentKind.FOREIGN
    if target == layout.release(resolved_release):
        return CurrentKind.OK
    if not target.startswith("/"):
        return CurrentKind.RELATIVE
    if posixpath.normpath(target) == layout.release(resolved_release):
        return CurrentKind.SLASH
    return CurrentKind.OTHER_PATH


def release_of(layout: Layout, target: str) -> str | None:
    """The release id in a `current` target by its text alone (relative or not, trailing slash or not), else None."""
    path = posixpath.normpath(posixpath.join(layout.deploy_to, target))
    parent, _, name = path.rpartition("/")
    return name if parent == layout.releases and is_release(name) else None


def check_deploy_to(deploy_to: str) -> str:
    """`deploy_to` when it is an absolute path without dots, doubled or trailing slashes, and not `/`. Else raises."""
    plain = deploy_to.startswith("/") and not deploy_to.startswith("//") and "\0" not in deploy_to
    if not plain or posixpath.normpath(deploy_to) != deploy_to or deploy_to == "/":
        raise OperatorError(
            f"deploy_to must be a plain absolute path, not {deploy_to!r}",
            remedy="write it in full in midstream.toml, without . or .. and without a slash at its end",
        )
    return deploy_to


def check_relative(path: str, key: str) -> str:
    """`path` when it stays inside the folder it is relative to. `key`: the setting it comes from, for the message."""
    if not path or path.startswith("/") or "\0" in path or posixpath.normpath(path) != path or path == ".":
        raise OperatorError(f"{key}: {path!r} is not a plain relative path", remedy=f"correct {key}")
    if path.split("/")[0] == "..":
        raise OperatorError(f"{key}: {path!r} leads out of the release", remedy=f"correct {key}")
    return path


def check_linked(dirs: Sequence[str], files: Sequence[str]) -> None:
    """Refuses linked paths of which one lies in another: linking the inner one would write into shared (and
    Capistrano's `rm -rf` of it would delete the shared folder itself), and paths given twice."""
    paths = sorted(
        [check_relative(path, "linked_dirs") for path in dirs]
        + [check_relative(path, "linked_files") for path in files]
    )
    for first, second in itertools.pairwise(paths):
        if first == second:
            raise OperatorError(f"{first!r} is linked twice", remedy="name it once in linked_dirs or linked_files")
    chosen = set(paths)
    for path in paths:
        parent = posixpath.dirname(path)
        while parent:
            if parent in chosen:
                raise OperatorError(
                    f"linked path {path!r} lies inside linked path {parent!r}",
                    remedy=f"drop {path!r}: it is shared already",
                )
            parent = posixpath.dirname(parent)
