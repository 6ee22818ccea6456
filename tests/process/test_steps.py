"""Each step on a real disk with real git: what it does, what it answers, what it refuses, and that nothing is written
through a link."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from step_programs import Repository, Steps, git

from midstream.core.releases import deployed_line, rolled_back_line
from midstream.core.steps import read_part
from midstream.errors import (
    AppError,
    BugError,
    DriftError,
    HostError,
    LockedError,
    NotAllowedError,
    OperatorError,
)

R = [f"2026010100000{n}" for n in range(9)]
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run a step as another user")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return _made(tmp_path / "origin")


@pytest.fixture
def nobody() -> Iterator[tuple[Steps, Repository]]:
    """Steps that run as another user, on a deploy_to of his, with a repository he may read. Not below tmp_path, which
    pytest closes to others (anew at the beginning of each of its sessions)."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to run a step as another user")
    with tempfile.TemporaryDirectory(prefix="midstream-steps-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        repository = _made(folder / "origin")
        (folder / "home").mkdir()
        git("config", "--global", "safe.directory", "*", cwd="/", env={"HOME": str(folder / "home")})
        steps = Steps(folder / "shop", user=NOBODY, home=folder / "home")
        steps.deploy_to.mkdir()
        os.chown(steps.deploy_to, NOBODY, NOBODY)
        yield steps, repository


def _made(path: Path) -> Repository:
    repository = Repository(path)
    repository.commit(
        {
            "app.py": "print(1)\n",
            "bin/run": "#!/bin/sh\n",
            "log/.keep": "",
            "config/settings.yml": "x: 1\n",
            "link": "->app.py",
            "deep/er/est/file": "deep\n",
            "spaced name ü": "odd\n",
            "static/app.css": "one\n",
            "static/img/logo.svg": "<svg/>\n",
        },
        "First",
        modes={"bin/run": 0o755},
    )
    return repository


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path / "srv" / "shop")


def contents(folder: Path) -> dict[str, Any]:
    """{path: content, or ->target} of all files below."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = "->" + os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes().decode()
    return found


class TestPrepare:
    def test_it_makes_the_layout(self, steps: Steps) -> None:
        answer = steps.run("prepare", linked_dirs=["log", "tmp/pids"])
        assert (steps.deploy_to / "releases").is_dir()
        assert (steps.deploy_to / "shared/log").is_dir()
        assert (steps.deploy_to / "shared/tmp/pids").is_dir()
        assert answer["releases"] == [] and answer["current"] is None and answer["current_kind"] == "missing"
        assert answer["free_bytes"] > 0 and answer["have"] == [] and answer["strangers"] == []
        assert steps.run("prepare", linked_dirs=["log", "tmp/pids"]) == answer | {"free_bytes": pytest.approx(
            answer["free_bytes"], rel=0.1)}  # fmt: skip

    def test_nothing_of_ours_is_outside_of_dot_midstream(self, steps: Steps) -> None:
        steps.run("prepare")
        assert {path.name for path in steps.deploy_to.iterdir()} == {"releases", "shared", ".midstream"}

    def test_all_missing_linked_files_are_named_at_once_and_their_folders_made(self, steps: Steps) -> None:
        with pytest.raises(OperatorError) as raised:
            steps.run("prepare", linked_files=[".env", "config/master.key"])
        assert "2 linked files" in raised.value.what
        assert raised.value.detail.splitlines() == [
            f"{steps.deploy_to}/shared/.env",
            f"{steps.deploy_to}/shared/config/master.key",
        ]
        assert (steps.deploy_to / "shared/config").is_dir()
        (steps.deploy_to / "shared/.env").write_text("")
        (steps.deploy_to / "shared/config/master.key").write_text("")
        steps.run("prepare", linked_files=[".env", "config/master.key"])

    def test_too_little_space_is_said_before_anything_is_made(self, steps: Steps) -> None:
        with pytest.raises(HostError, match="free on the disk"):
            steps.run("prepare", min_free_bytes=1 << 60, linked_dirs=["log"])
        assert not (steps.deploy_to / "shared").exists()

    def test_a_stale_releases_current_of_an_interrupted_capistrano_is_swept(self, steps: Steps) -> None:
        steps.run("prepare")
        stale = steps.deploy_to / "releases/current"
        stale.symlink_to(steps.deploy_to / "releases" / R[0])
        assert steps.run("prepare")["swept"] == [str(stale)]
        assert not stale.is_symlink()

    def test_other_names_in_releases_are_told(self, steps: Steps) -> None:
        steps.run("prepare")
        for name in (R[0], "backup", "2020"):
            (steps.deploy_to / "releases" / name).mkdir()
        (steps.deploy_to / "releases" / R[1]).symlink_to(R[0])
        answer = steps.run("prepare")
        assert answer["releases"] == [R[0]]
        assert answer["strangers"] == ["2020", R[1], "backup"]

    @pytest.mark.parametrize(
        ("text", "kind"),
        [("releases/{}", "relative"), ("{root}/releases/{}/", "slash"), ("{other}/releases/{}", "other_path")],
    )
    def test_a_current_that_would_mislead_capistrano_is_made_absolute(
        self, steps: Steps, tmp_path: Path, text: str, kind: str
    ) -> None:
        """Capistrano's cleanup compares texts, and would delete the live release."""
        steps.run("prepare")
        (steps.deploy_to / "releases" / R[0]).mkdir()
        (tmp_path / "other").symlink_to(steps.deploy_to)
        current = steps.deploy_to / "current"
        current.symlink_to(text.format(R[0], root=steps.deploy_to, other=tmp_path / "other"))
        assert steps.run("inspect")["current_kind"] == kind
        assert os.readlink(current) != f"{steps.deploy_to}/releases/{R[0]}"
        answer = steps.run("prepare")
        assert (answer["current"], answer["current_kind"], answer["repaired"]) == (R[0], kind, True)
        assert os.readlink(current) == f"{steps.deploy_to}/releases/{R[0]}"
        answer = steps.run("prepare")
        assert (answer["current"], answer["current_kind"], answer["repaired"]) == (R[0], "ok", False)

    @pytest.mark.parametrize(("target", "kind"), [("/usr", "foreign"), ("/nowhere", "dangling")])
    def test_a_current_that_is_not_ours_is_left_alone(self, steps: Steps, target: str, kind: str) -> None:
        steps.run("prepare")
        (steps.deploy_to / "current").symlink_to(target)
        answer = steps.run("prepare")
        assert (answer["current"], answer["current_kind"], answer["repaired"]) == (target, kind, False)
        assert os.readlink(steps.deploy_to / "current") == target

    def test_a_current_that_is_a_folder_is_refused(self, steps: Steps) -> None:
        steps.run("prepare")
        (steps.deploy_to / "current").mkdir()
        with pytest.raises(OperatorError, match="is a folder"):
            steps.run("prepare")

    def test_inspect_changes_nothing(self, steps: Steps) -> None:
        steps.deploy_to.mkdir(parents=True)
        answer = steps.run("inspect")
        assert answer["releases"] == [] and list(steps.deploy_to.iterdir()) == []

    @needs_root
    def test_root_does_not_work_in_a_folder_that_another_user_owns(self, steps: Steps) -> None:
        """He could exchange any folder for a link to /etc while root works (DESIGN 4, Trust)."""
        steps.deploy_to.mkdir(parents=True)
        os.chown(steps.deploy_to, NOBODY, NOBODY)
        with pytest.raises(NotAllowedError, match="runs as root"):
            steps.run("prepare")
        assert list(steps.deploy_to.iterdir()) == []

    def test_a_folder_that_may_not_be_written_is_named_with_the_cure(self, nobody: tuple[Steps, Repository]) -> None:
        steps, _ = nobody
        os.chown(steps.deploy_to, 0, 0)
        with pytest.raises(HostError) as raised:
            steps.run("prepare")
        assert str(steps.deploy_to) in raised.value.what and "permission denied" in raised.value.what
        assert "chown" in raised.value.remedy

    def test_a_deploy_to_that_may_not_be_made_is_said_with_the_cure(self, nobody: tuple[Steps, Repository]) -> None:
        steps, _ = nobody
        steps.deploy_to.rmdir()
        with pytest.raises(HostError, match="may not make it") as raised:
            steps.run("prepare")
        assert f"install -d -o {NOBODY} -g {NOBODY} {steps.deploy_to}" in raised.value.remedy


class TestReceive:
    def test_a_pack_becomes_a_revision_in_a_new_mirror(
        self, steps: Steps, repository: Repository, tmp_path: Path
    ) -> None:
        sha, tree = repository.head(), repository.tree()
        steps.run("prepare")
        pack = repository.pack(sha, [], tmp_path / "pack")
        answer = steps.run("receive", pack=pack, revision=sha, tree=tree, repository="git@example.com:shop.git")
        assert answer == {"revision": sha, "tree": tree, "received_bytes": pack.stat().st_size}
        mirror = steps.deploy_to / "repo"
        assert git("rev-parse", f"refs/midstream/{sha}", cwd=mirror) == sha
        assert git("fsck", "--full", "--strict", cwd=mirror) == ""
        assert git("remote", "get-url", "origin", cwd=mirror) == "git@example.com:shop.git"
        assert steps.run("prepare")["have"] == [sha]

    def test_a_thin_pack_brings_only_what_is_new(self, steps: Steps, repository: Repository, tmp_path: Path) -> None:
        big = os.urandom(200_000)
        first = repository.commit({"big": big})
        steps.run("prepare")
        steps.run("receive", pack=repository.pack(first, [], tmp_path / "1"), revision=first)
        second = repository.commit({"big": big + b"more"})
        thin = repository.pack(second, [first], tmp_path / "2")
        assert thin.stat().st_size < 10_000
        steps.run("receive", pack=thin, revision=second, tree=repository.tree())
        assert sorted(steps.run("prepare")["have"]) == sorted([first, second])

    def test_no_pack_is_needed_for_what_the_mirror_has(
        self, steps: Steps, repository: Repository, tmp_path: Path
    ) -> None:
        sha = repository.head()
        steps.run("prepare")
        steps.run("receive", pack=repository.pack(sha, [], tmp_path / "1"), revision=sha)
        assert steps.run("receive", revision=sha, tree=repository.tree())["received_bytes"] == 0

    def test_a_revision_without_its_objects_is_refused_and_not_kept(
        self, steps: Steps, repository: Repository, tmp_path: Path
    ) -> None:
        first = repository.head()
        second = repository.commit({"app.py": "print(2)\n"})
        steps.run("prepare")
        with pytest.raises(OperatorError, match="no pack came"):
            steps.run("receive", revision=second)
        # A pack for a host that has `first`; this one has not.
        pack = repository.pack(second, [first], tmp_path / "thin")
        with pytest.raises((HostError, OperatorError)):
            steps.run("receive", pack=pack, revision=second)
        assert steps.run("prepare")["have"] == []
        steps.run("receive", pack=repository.pack(second, [], tmp_path / "all"), revision=second)

    def test_another_tree_than_the_deployers_is_refused(
        self, steps: Steps, repository: Repository, tmp_path: Path
    ) -> None:
        sha = repository.head()
        steps.run("prepare")
        with pytest.raises(HostError, match="has tree"):
            steps.run("receive", pack=repository.pack(sha, [], tmp_path / "1"), revision=sha, tree="0" * 40)

    @pytest.mark.parametrize("revision", ["main", "--upload-pack=x", "abc1234", "HEAD", ""])
    def test_only_full_revisions_are_taken(self, steps: Steps, revision: str) -> None:
        steps.run("prepare")
        with pytest.raises(OperatorError, match="full revision"):
            steps.run("receive", revision=revision)

    def test_a_password_in_the_address_is_not_written_to_the_mirror(
        self, steps: Steps, repository: Repository, tmp_path: Path
    ) -> None:
        sha = repository.head()
        steps.run("prepare")
        pack = repository.pack(sha, [], tmp_path / "1")
        steps.run("receive", pack=pack, revision=sha, repository="https://ann:hunter2@example.com/shop.git")
        assert "hunter2" not in (steps.deploy_to / "repo/config").read_text()
        assert git("remote", "get-url", "origin", cwd=steps.deploy_to / "repo") == "https://ann@example.com/shop.git"

    def test_a_shallow_mirror_of_capistrano_is_sent_everything(
        self, steps: Steps, repository: Repository, tmp_path: Path
    ) -> None:
        """What it has of a branch is not the branch's history; a thin pack against it could not be completed."""
        old = repository.head()
        middle = repository.commit({"app.py": "print(2)\n"})
        steps.run("prepare")
        clone = ("clone", "--quiet", "--mirror", "--depth=1", f"file://{repository.path}", steps.deploy_to / "repo")
        git(*clone, cwd=tmp_path)
        assert steps.run("prepare")["have"] == []
        steps.run("receive", pack=repository.pack(old, [], tmp_path / "1"), revision=old)
        new = repository.commit({"app.py": "print(3)\n"})
        steps.run("receive", pack=repository.pack(new, [], tmp_path / "2"), revision=new)
        for n, sha in enumerate((old, middle, new)):
            steps.run("receive", revision=sha)
            steps.run("make_release", deploy_id=sha, release=R[n], revision=sha)

    def test_a_repository_with_sha256_names(self, steps: Steps, tmp_path: Path) -> None:
        origin = tmp_path / "sha256"
        origin.mkdir()
        git("init", "--quiet", "--object-format=sha256", "--initial-branch=main", cwd=origin)
        git("commit", "--quiet", "--allow-empty", "-m", "First", cwd=origin)
        sha = git("rev-parse", "HEAD", cwd=origin)
        assert len(sha) == 64
        steps.run("prepare")
        steps.run("fetch", repository=str(origin), branch="main", revision=sha)
        steps.run("make_release", deploy_id="d", release=R[0], revision=sha)

    def test_a_damaged_pack_leaves_the_mirror_as_it_was(
        self, steps: Steps, repository: Repository, tmp_path: Path
    ) -> None:
        first = repository.head()
        steps.run("prepare")
        steps.run("receive", pack=repository.pack(first, [], tmp_path / "1"), revision=first)
        second = repository.commit({"new": os.urandom(50_000)})
        pack = repository.pack(second, [first], tmp_path / "2")
        whole = pack.read_bytes()
        pack.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(HostError):
            steps.run("receive", pack=pack, revision=second)
        assert steps.run("prepare")["have"] == steps.run("inspect")["have"] == [first]
        assert steps.run("inspect", have=False) == {**steps.run("inspect"), "have": [], "free_bytes": ANY}
        pack.write_bytes(whole)
        steps.run("receive", pack=pack, revision=second)

    def test_a_damaged_mirror_is_set_aside_and_the_next_deploy_begins_anew(
        self, steps: Steps, repository: Repository, tmp_path: Path
    ) -> None:
        first = repository.head()
        steps.run("prepare")
        everything = repository.pack(first, [], tmp_path / "1")
        steps.run("receive", pack=everything, revision=first)
        for file in (steps.deploy_to / "repo/objects/pack").iterdir():
            file.unlink()
        second = repository.commit({"app.py": "print(2)\n"})
        with pytest.raises(HostError, match="set aside"):
            steps.run("receive", pack=repository.pack(second, [first], tmp_path / "2"), revision=second)
        assert steps.run("prepare")["have"] == []
        steps.run("receive", pack=repository.pack(second, [], tmp_path / "3"), revision=second)

    def test_a_lock_file_of_a_killed_git_does_not_stop_it(
        self, steps: Steps, repository: Repository, tmp_path: Path
    ) -> None:
        sha = repository.head()
        steps.run("prepare")
        steps.run("receive", pack=repository.pack(sha, [], tmp_path / "1"), revision=sha)
        second = repository.commit({"app.py": "print(2)\n"})
        refs = steps.deploy_to / "repo/refs/midstream"
        refs.mkdir(exist_ok=True)
        (refs / f"{second}.lock").touch()
        steps.run("receive", pack=repository.pack(second, [sha], tmp_path / "2"), revision=second)
        assert any("left by a git that was killed" in line for line in steps.lines)

    def test_what_was_deployed_survives_a_gc(self, steps: Steps, repository: Repository, tmp_path: Path) -> None:
        sha = repository.head()
        steps.run("prepare")
        steps.run("receive", pack=repository.pack(sha, [], tmp_path / "1"), revision=sha)
        git("gc", "--quiet", "--prune=now", cwd=steps.deploy_to / "repo")
        assert git("fsck", "--full", cwd=steps.deploy_to / "repo") == ""
        steps.run("make_release", deploy_id="d", release=R[0], revision=sha)

    def test_a_folder_in_place_of_the_mirror_is_refused(self, steps: Steps, repository: Repository) -> None:
        steps.run("prepare")
        (steps.deploy_to / "repo").mkdir()
        with pytest.raises(OperatorError, match="no bare git repository"):
            steps.run("receive", revision=repository.head())


class TestFetch:
    def test_it_mirrors_branches_and_tags(self, steps: Steps, repository: Repository) -> None:
        git("tag", "v1", cwd=repository.path)
        sha = repository.head()
        steps.run("prepare")
        request: dict[str, Any] = {"repository": str(repository.path), "branch": "main", "revision": sha}
        assert steps.run("fetch", **request)["tree"] == repository.tree()
        mirror = steps.deploy_to / "repo"
        assert git("rev-parse", "refs/heads/main", "refs/tags/v1", cwd=mirror).split() == [sha, sha]
        assert steps.run("fetch", **request)["tree"] == repository.tree()

    def test_a_revision_that_no_branch_has_any_more_is_fetched_by_name(
        self, steps: Steps, repository: Repository
    ) -> None:
        old = repository.commit({"app.py": "print(2)\n"})
        git("reset", "--quiet", "--hard", "HEAD^", cwd=repository.path)
        git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=repository.path)
        steps.run("prepare")
        steps.run("fetch", repository=str(repository.path), branch="main", revision=old)
        steps.run("make_release", deploy_id="d", release=R[0], revision=old)

    def test_a_pushed_over_branch_is_followed(self, steps: Steps, repository: Repository) -> None:
        steps.run("prepare")
        request: dict[str, Any] = {"repository": str(repository.path), "branch": "main"}
        first = repository.commit({"app.py": "print(2)\n"})
        steps.run("fetch", revision=first, **request)
        git("reset", "--quiet", "--hard", "HEAD^", cwd=repository.path)
        second = repository.commit({"app.py": "print(3)\n"})
        steps.run("fetch", revision=second, **request)
        assert git("rev-parse", "refs/heads/main", cwd=steps.deploy_to / "repo") == second

    def test_an_unknown_revision_names_the_branch(self, steps: Steps, repository: Repository) -> None:
        steps.run("prepare")
        with pytest.raises(OperatorError, match="topic"):
            steps.run("fetch", repository=str(repository.path), branch="topic", revision="1" * 40)

    def test_an_address_that_is_no_repository(self, steps: Steps, tmp_path: Path) -> None:
        steps.run("prepare")
        (tmp_path / "empty").mkdir()
        with pytest.raises(OperatorError, match="not a git repository"):
            steps.run("fetch", repository=str(tmp_path / "empty"), branch="main", revision="1" * 40)

    def test_an_unreachable_repository(self, steps: Steps) -> None:
        steps.run("prepare")
        with pytest.raises(HostError, match="cannot be reached"):
            steps.run("fetch", repository="http://127.0.0.1:9/shop.git", branch="main", revision="1" * 40)

    def test_a_repository_named_like_an_option_is_none(self, steps: Steps, tmp_path: Path) -> None:
        steps.run("prepare")
        with pytest.raises((OperatorError, HostError)):
            steps.run("fetch", repository=f"--upload-pack=touch {tmp_path}/pwned", branch="main", revision="1" * 40)
        assert not (tmp_path / "pwned").exists()


class TestMakeRelease:
    def test_the_release_is_the_revision(self, steps: Steps, repository: Repository) -> None:
        release = steps.deploy(repository, R[0], switch=False)
        folder = steps.deploy_to / "releases" / release
        expected = {
            "app.py": "print(1)\n",
            "bin/run": "#!/bin/sh\n",
            "log/.keep": "",
            "config/settings.yml": "x: 1\n",
            "link": "->app.py",
            "deep/er/est/file": "deep\n",
            "spaced name ü": "odd\n",
            "static/app.css": "one\n",
            "static/img/logo.svg": "<svg/>\n",
            "REVISION": repository.head() + "\n",
            "REVISION_TIME": "1700000000\n",
        }
        assert contents(folder) == expected
        assert os.access(folder / "bin/run", os.X_OK) and not (folder / "app.py").stat().st_mode & 0o111
        assert (folder / "app.py").stat().st_mtime == 1_700_000_000

    def test_shared_paths_are_absolute_links_and_replace_what_the_tree_has(
        self, steps: Steps, repository: Repository
    ) -> None:
        (steps.deploy_to / "shared/config").mkdir(parents=True)
        for name in (".env", "config/settings.yml"):
            (steps.deploy_to / "shared" / name).write_text("shared")
        release = steps.deploy(
            repository, R[0], linked_dirs=["log", "tmp/pids", "media"], linked_files=[".env", "config/settings.yml"]
        )
        folder, shared = steps.deploy_to / "releases" / release, steps.deploy_to / "shared"
        for name in ("log", "tmp/pids", "media", ".env", "config/settings.yml"):
            assert os.readlink(folder / name) == str(shared / name)
        assert (folder / "config/settings.yml").read_text() == "shared"

    def test_a_link_that_the_tree_has_in_that_place_stays_as_with_capistrano(
        self, steps: Steps, repository: Repository
    ) -> None:
        repository.commit({"log/.keep": None, "log": "->app.py"})
        release = steps.deploy(repository, R[0], linked_dirs=["log"])
        assert os.readlink(steps.deploy_to / "releases" / release / "log") == "app.py"

    def test_a_file_where_a_folder_is_to_be_linked_is_the_apps_fault(
        self, steps: Steps, repository: Repository
    ) -> None:
        with pytest.raises(AppError, match="in the revision it is none"):
            steps.deploy(repository, R[0], linked_dirs=["app.py"])

    def test_a_taken_second_moves_on_to_the_next_free_one(self, steps: Steps, repository: Repository) -> None:
        """Also one that is taken by an empty folder: Capistrano may just have made it."""
        steps.run("prepare")
        (steps.deploy_to / "releases" / R[0]).mkdir()
        (steps.deploy_to / "releases" / R[1]).symlink_to("/nowhere")
        assert steps.deploy(repository, R[0]) == R[2]
        assert list((steps.deploy_to / "releases" / R[0]).iterdir()) == []

    def test_two_deploys_never_share_a_folder_and_one_run_again_gets_its_own(
        self, steps: Steps, repository: Repository
    ) -> None:
        steps.run("prepare")
        sha = repository.head()
        steps.run("fetch", repository=str(repository.path), branch="main", revision=sha)
        request: dict[str, Any] = {"release": R[0], "revision": sha}
        assert steps.run("make_release", deploy_id="a", **request)["release"] == R[0]
        assert steps.run("make_release", deploy_id="b", **request)["release"] == R[1]
        (steps.deploy_to / "releases" / R[1] / "half-built").touch()
        assert steps.run("make_release", deploy_id="b", **request)["release"] == R[1]
        assert not (steps.deploy_to / "releases" / R[1] / "half-built").exists()
        assert steps.run("make_release", deploy_id="a", **request)["release"] == R[0]
        assert sorted(os.listdir(steps.deploy_to / "releases")) == R[:2]

    def test_a_folder_that_somebody_else_made_in_its_place_is_not_emptied(
        self, steps: Steps, repository: Repository
    ) -> None:
        steps.deploy(repository, R[0], switch=False)
        mine = steps.deploy_to / "releases" / R[0]
        mine.rename(steps.deploy_to / "elsewhere")
        mine.mkdir()
        (mine / "theirs").touch()
        sha = repository.head()
        made = steps.run("make_release", deploy_id=f"deploy-{R[0]}", release=R[0], revision=sha)
        assert made["release"] == R[1] and (mine / "theirs").exists()

    def test_sixty_taken_seconds_are_enough(self, steps: Steps, repository: Repository) -> None:
        steps.run("prepare")
        for second in range(60):
            (steps.deploy_to / "releases" / f"202601010000{second:02}").mkdir()
        with pytest.raises(LockedError, match="are taken"):
            steps.deploy(repository, R[0])

    def test_export_ignore_and_export_subst_mean_what_they_mean_to_capistrano(
        self, steps: Steps, repository: Repository
    ) -> None:
        repository.commit(
            {
                ".gitattributes": "/spec export-ignore\nversion.txt export-subst\n",
                "spec/x": "x",
                "version.txt": "$Format:%H$\n",
            }
        )
        folder = steps.deploy_to / "releases" / steps.deploy(repository, R[0])
        assert not (folder / "spec").exists()
        assert (folder / "version.txt").read_text() == repository.head() + "\n"

    def test_releases_share_no_file(self, steps: Steps, repository: Repository) -> None:
        """Hard links would save room, and let a write in place in the new release change the old one."""
        first, second = (steps.deploy_to / "releases" / steps.deploy(repository, release) for release in R[:2])
        with open(second / "app.py", "r+") as file:
            file.write("XXXXX")
        assert (first / "app.py").read_text() == "print(1)\n"

    def test_line_ends_do_not_depend_on_the_hosts_git_configuration(
        self, steps: Steps, repository: Repository, tmp_path: Path
    ) -> None:
        (tmp_path / ".gitconfig").write_text("[core]\n\tautocrlf = true\n")
        steps.env["HOME"] = str(tmp_path)
        folder = steps.deploy_to / "releases" / steps.deploy(repository, R[0])
        assert (folder / "app.py").read_bytes() == b"print(1)\n"

    def test_names_that_are_not_utf_8_are_kept(self, steps: Steps, repository: Repository) -> None:
        name = os.fsdecode(b"static/caf\xe9.css")
        repository.commit({name: "latin\n", "static/out": "->/etc/" + os.fsdecode(b"\xe9")})
        release = steps.deploy(repository, R[0])
        assert (steps.deploy_to / "releases" / release / name).read_text() == "latin\n"
        assert steps.run("publish_assets", release=release, dirs=["static"])["skipped"] == ["static/out"]
        assert (steps.deploy_to / "shared/assets" / name).read_text() == "latin\n"

    def test_only_a_sub_folder_of_the_repository(self, steps: Steps, repository: Repository) -> None:
        repository.commit({"services/[api]/main.py": "api\n", "services/api/other": "no\n"})
        release = steps.deploy(repository, R[0], repo_tree="/services/[api]/")
        assert set(contents(steps.deploy_to / "releases" / release)) == {"main.py", "REVISION", "REVISION_TIME"}
        with pytest.raises(OperatorError, match="no folder services/nope"):
            steps.deploy(repository, R[1], repo_tree="services/nope")

    def test_another_tree_than_the_deployers_is_refused_before_a_folder_is_made(
        self, steps: Steps, repository: Repository
    ) -> None:
        with pytest.raises(HostError, match="has tree"):
            steps.deploy(repository, R[0], tree="0" * 40)
        assert os.listdir(steps.deploy_to / "releases") == []

    def test_paths_that_would_leave_the_release_are_refused(self, steps: Steps, repository: Repository) -> None:
        """git itself does not make such a tree; whoever can push can."""
        for name in ("..", ".git"):
            blob = git("rev-parse", "HEAD:app.py", cwd=repository.path)
            inner = _make_tree(repository, f"100644 blob {blob}\tevil\n")
            outer = _make_tree(repository, f"040000 tree {inner}\t{name}\n")
            sha = git("commit-tree", "-m", "evil", outer, cwd=repository.path)
            git("update-ref", "refs/heads/evil", sha, cwd=repository.path)
            steps.run("prepare")
            steps.run("fetch", repository=str(repository.path), branch="evil", revision=sha)
            with pytest.raises(AppError, match="path that no folder may have"):
                steps.run("make_release", deploy_id=name, release=R[0], revision=sha)
            assert os.listdir(steps.deploy_to / "releases") == []

    def test_a_link_in_the_tree_is_never_written_through(
        self, steps: Steps, repository: Repository, tmp_path: Path
    ) -> None:
        (tmp_path / "outside").mkdir()
        repository.commit({"config/settings.yml": None, "config": f"->{tmp_path}/outside"})
        steps.run("prepare")
        (steps.deploy_to / "shared/config").mkdir()
        (steps.deploy_to / "shared/config/key").write_text("")
        with pytest.raises(OperatorError, match="is a link"):
            steps.deploy(repository, R[0], linked_files=["config/key"])
        assert list((tmp_path / "outside").iterdir()) == []

    def test_submodules_are_unpacked_in_their_places(
        self, steps: Steps, repository: Repository, tmp_path: Path
    ) -> None:
        inner, library = Repository(tmp_path / "inner"), Repository(tmp_path / "library")
        inner.commit({"deepest": "inner\n"})
        library.commit({"code": "library\n"})
        git("submodule", "--quiet", "add", "../inner", "vendored/inner", cwd=library.path)
        library.commit({})
        git("submodule", "--quiet", "add", str(library.path), "lib", cwd=repository.path)
        sha = repository.commit({})
        steps.run("prepare")
        steps.run("fetch", repository=str(repository.path), branch="main", revision=sha, submodules=True)
        steps.run("make_release", deploy_id="d", release=R[0], revision=sha, submodules=True)
        found = contents(steps.deploy_to / "releases" / R[0])
        assert (found["lib/code"], found["lib/vendored/inner/deepest"]) == ("library\n", "inner\n")
        git("gc", "--quiet", "--prune=now", cwd=steps.deploy_to / "repo")
        steps.run("make_release", deploy_id="e", release=R[1], revision=sha, submodules=True)


def _make_tree(repository: Repository, text: str) -> str:
    from step_programs import _GIT_ENV

    # Not mktree, which refuses: the object is written as it is.
    body = b""
    for line in text.splitlines():
        head, name = line.split("\t")
        mode, _, sha = head.split()
        body += f"{mode.lstrip('0')} {name}".encode() + b"\0" + bytes.fromhex(sha)
    args = ["git", "hash-object", "-t", "tree", "-w", "--stdin", "--literally"]
    done = subprocess.run(args, cwd=repository.path, input=body, capture_output=True, check=True, env=_GIT_ENV)
    return done.stdout.decode().strip()


class TestSpecs:
    def test_a_spec_is_read_back_and_is_nobody_elses_to_read(self, steps: Steps, repository: Repository) -> None:
        release = steps.deploy(repository, R[0])
        spec = {"app": "shop", "services": {"web": {"command": ["ü"]}}}
        path = steps.run("store_spec", release=release, spec=spec)["path"]
        assert path == f"{steps.deploy_to}/.midstream/specs/{release}.json"
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        answer = steps.run("read_spec", release=release)
        assert answer == {"spec": spec, "revision": repository.head(), "revision_time": 1_700_000_000}

    def test_a_release_of_capistrano_has_none(self, steps: Steps) -> None:
        steps.run("prepare")
        (steps.deploy_to / "releases" / R[0]).mkdir()
        assert steps.run("read_spec", release=R[0]) == {"spec": None, "revision": "", "revision_time": None}

    def test_a_damaged_one_is_said(self, steps: Steps, repository: Repository) -> None:
        release = steps.deploy(repository, R[0])
        Path(steps.run("store_spec", release=release, spec={})["path"]).write_text("{")
        with pytest.raises(HostError, match="damaged"):
            steps.run("read_spec", release=release)

    def test_no_release_no_spec(self, steps: Steps) -> None:
        steps.run("prepare")
        for release in (R[0], "../../etc"):
            with pytest.raises(OperatorError):
                steps.run("store_spec", release=release, spec={})
            with pytest.raises(OperatorError):
                steps.run("read_spec", release=release)


class TestAssets:
    def test_they_are_added_and_those_of_the_old_release_stay(self, steps: Steps, repository: Repository) -> None:
        first = steps.deploy(repository, R[0])
        answer = steps.run("publish_assets", release=first, dirs=["static"])
        assert (answer["copied"], answer["replaced"]) == (2, [])
        repository.commit({"static/app.css": None, "static/app-2.css": "two\n"})
        second = steps.deploy(repository, R[1])
        answer = steps.run("publish_assets", release=second, dirs=["static"])
        assert (answer["copied"], answer["same"]) == (1, 1)
        assert contents(steps.deploy_to / "shared/assets") == {
            "static/app.css": "one\n",
            "static/app-2.css": "two\n",
            "static/img/logo.svg": "<svg/>\n",
        }

    def test_a_changed_file_is_replaced_whole_and_put_back_by_publishing_the_old_release(
        self, steps: Steps, repository: Repository
    ) -> None:
        first = steps.deploy(repository, R[0])
        steps.run("publish_assets", release=first, dirs=["static"])
        file = steps.deploy_to / "shared/assets/static/app.css"
        with open(file) as reader:  # who has the old file open goes on reading the old file
            repository.commit({"static/app.css": "2wo\n"})
            second = steps.deploy(repository, R[1])
            assert steps.run("publish_assets", release=second, dirs=["static"])["replaced"] == ["static/app.css"]
            assert reader.read() == "one\n"
        assert file.read_text() == "2wo\n"
        steps.run("publish_assets", release=first, dirs=["static"])
        assert file.read_text() == "one\n"

    def test_links_are_followed_only_inside_of_the_release(
        self, steps: Steps, repository: Repository, tmp_path: Path
    ) -> None:
        (tmp_path / "secret").write_text("secret")
        repository.commit({"static/in": "->../app.py", "static/out": f"->{tmp_path}/secret", "static/gone": "->nope"})
        release = steps.deploy(repository, R[0])
        answer = steps.run("publish_assets", release=release, dirs=["static"])
        assert sorted(answer["skipped"]) == ["static/gone", "static/out"]
        published = contents(steps.deploy_to / "shared/assets")
        assert published["static/in"] == "print(1)\n" and "static/out" not in published

    def test_shared_being_a_link_is_refused(self, steps: Steps, repository: Repository, tmp_path: Path) -> None:
        release = steps.deploy(repository, R[0])
        (tmp_path / "outside").mkdir()
        (steps.deploy_to / "shared").rename(tmp_path / "old")
        (steps.deploy_to / "shared").symlink_to(tmp_path / "outside")
        with pytest.raises(OperatorError, match="is a link"):
            steps.run("publish_assets", release=release, dirs=["static"])
        assert list((tmp_path / "outside").iterdir()) == []

    def test_linked_assets_have_nothing_to_be_published(self, steps: Steps, repository: Repository) -> None:
        release = steps.deploy(repository, R[0], linked_dirs=["static"])
        assert steps.run("publish_assets", release=release, dirs=["static"])["copied"] == 0

    def test_a_folder_that_the_build_did_not_make_is_said(self, steps: Steps, repository: Repository) -> None:
        release = steps.deploy(repository, R[0])
        with pytest.raises(AppError, match="no folder public"):
            steps.run("publish_assets", release=release, dirs=["public"])

    def test_they_go_with_the_last_release_that_published_them(self, steps: Steps, repository: Repository) -> None:
        names = []
        for n in range(3):
            repository.commit(
                {"static/app.css": None, f"static/v{n}/app.css": f"{n}\n", f"static/v{n - 1}/app.css": None}
            )
            names.append(steps.deploy(repository, R[n]))
            steps.run("publish_assets", release=names[-1], dirs=["static"])
        (steps.deploy_to / "shared/assets/uploaded-by-hand").write_text("stays")
        assert steps.run("cleanup", keep=2, committed=names[2])["removed"] == [names[0]]
        assert set(contents(steps.deploy_to / "shared/assets")) == {
            "static/v1/app.css",
            "static/v2/app.css",
            "static/img/logo.svg",
            "uploaded-by-hand",
        }
        assert not (steps.deploy_to / "shared/assets/static/v0").exists()


class TestSwitch:
    def test_current_is_an_absolute_link(self, steps: Steps, repository: Repository) -> None:
        first = steps.deploy(repository, R[0], switch=False)
        assert steps.run("switch", release=first) == {"previous": None, "changed": True}
        assert os.readlink(steps.deploy_to / "current") == f"{steps.deploy_to}/releases/{first}"
        assert steps.run("switch", release=first) == {"previous": first, "changed": False}
        second = steps.deploy(repository, R[1], switch=False)
        assert steps.run("switch", release=second, expected_previous=first) == {"previous": first, "changed": True}
        assert steps.run("switch", release=second, expected_previous=first)["changed"] is False

    def test_one_that_somebody_has_moved_is_not_moved_again(self, steps: Steps, repository: Repository) -> None:
        first, second, third = (steps.deploy(repository, release) for release in R[:3])
        with pytest.raises(DriftError) as raised:
            steps.run("switch", release=second, expected_previous=first)
        assert third in raised.value.what
        assert os.readlink(steps.deploy_to / "current").endswith(third)
        steps.run("switch", release=second, expected_previous=None)

    def test_there_is_never_a_moment_without_current(self, steps: Steps, repository: Repository) -> None:
        names = [steps.deploy(repository, release) for release in R[:2]]
        for turn in range(6):
            process = steps.start("switch", release=names[turn % 2])
            while process.poll() is None:
                assert os.readlink(steps.deploy_to / "current").rsplit("/", 1)[1] in names
            steps.finish(process)

    def test_a_release_that_is_not_there_is_not_switched_to(self, steps: Steps, repository: Repository) -> None:
        first = steps.deploy(repository, R[0])
        (steps.deploy_to / "releases" / R[1]).symlink_to(first)
        for release in (R[1], R[2], "current", "../x"):
            with pytest.raises(OperatorError):
                steps.run("switch", release=release)
        assert os.readlink(steps.deploy_to / "current").endswith(first)

    def test_by_mtime_the_release_is_first_and_the_rollback_target_second(
        self, steps: Steps, repository: Repository
    ) -> None:
        """Capistrano rolls back to the second of `ls -xt`, here with two failed releases made in between."""
        first = steps.deploy(repository, R[0])
        for failed in R[1:3]:
            steps.deploy(repository, failed, switch=False)
        last = steps.deploy(repository, R[3])
        assert _by_mtime(steps)[:2] == [last, first]
        steps.run("switch", release=first, rollback_target=None)
        assert _by_mtime(steps)[0] == first
        steps.run("switch", release=last, rollback_target=R[1])
        assert _by_mtime(steps)[:2] == [last, R[1]]

    def test_mtimes_are_right_after_the_clock_was_set_back(self, steps: Steps, repository: Repository) -> None:
        first = steps.deploy(repository, R[0])
        steps.deploy(repository, R[1], switch=False)
        os.utime(steps.deploy_to / "releases" / R[1], (4_000_000_000, 4_000_000_000))
        last = steps.deploy(repository, R[2])
        assert _by_mtime(steps) == [last, first, R[1]]

    def test_nothing_is_written_at_the_top_of_an_old_release(self, steps: Steps, repository: Repository) -> None:
        first = steps.deploy(repository, R[0])
        before = contents(steps.deploy_to / "releases" / first)
        steps.deploy(repository, R[1])
        steps.run("store_spec", release=R[1], spec={})
        assert contents(steps.deploy_to / "releases" / first) == before


def _by_mtime(steps: Steps) -> list[str]:
    done = subprocess.run(["ls", "-xt", steps.deploy_to / "releases"], capture_output=True, text=True, check=True)
    return done.stdout.split()


class TestRevisionsLog:
    def test_lines_are_appended_once(self, steps: Steps) -> None:
        steps.run("prepare")
        log = steps.deploy_to / "revisions.log"
        log.write_text("of Capistrano, without a newline")
        deployed, back = deployed_line("main", "a" * 40, R[0], "ann"), rolled_back_line("ann", R[0])
        again = deployed_line("main", "a" * 40, R[1], "ann")
        for line, appended in ((deployed, True), (deployed, False), (back, True), (back, False), (deployed, False),
                               (again, True), (back, True)):  # fmt: skip
            assert steps.run("log_revision", line=line) == {"appended": appended}
        assert log.read_text().splitlines() == ["of Capistrano, without a newline", deployed, back, again, back]
        assert log.read_text().endswith("\n")

    def test_no_other_line_is_written(self, steps: Steps) -> None:
        steps.run("prepare")
        for line in ("hello", f"ann rolled back to release {R[0]}\nroot::0:0"):
            with pytest.raises(BugError):
                steps.run("log_revision", line=line)
        assert not (steps.deploy_to / "revisions.log").exists()

    def test_it_is_not_written_through_a_link(self, steps: Steps, tmp_path: Path) -> None:
        steps.run("prepare")
        (tmp_path / "victim").write_text("")
        (steps.deploy_to / "revisions.log").symlink_to(tmp_path / "victim")
        with pytest.raises(HostError):
            steps.run("log_revision", line=rolled_back_line("ann", R[0]))
        assert (tmp_path / "victim").read_text() == ""


class TestCleanup:
    def test_old_releases_go_with_their_specs_claims_and_refs(self, steps: Steps, repository: Repository) -> None:
        shas = []
        for release in R[:4]:
            shas.append(repository.commit({"app.py": release}))
            steps.deploy(repository, release)
            steps.run("store_spec", release=release, spec={})
        answer = steps.run("cleanup", keep=2, committed=R[3], previous_good=R[2], current=R[3])
        assert answer == {"removed": R[:2], "left": [], "trash": False}
        ours = steps.deploy_to / ".midstream"
        assert sorted(os.listdir(steps.deploy_to / "releases")) == R[2:4]
        assert (
            sorted(os.listdir(ours / "specs")) == sorted(os.listdir(ours / "claims")) == [f"{r}.json" for r in R[2:4]]
        )
        assert os.listdir(ours / "trash") == []
        refs = git("for-each-ref", "--format=%(objectname)", "refs/midstream", cwd=steps.deploy_to / "repo").split()
        assert sorted(refs) == sorted(shas[2:])

    def test_what_current_points_to_stays_whatever_the_agent_believes(
        self, steps: Steps, repository: Repository
    ) -> None:
        for release in R[:3]:
            steps.deploy(repository, release)
        steps.run("switch", release=R[0])
        assert steps.run("cleanup", keep=1, committed=R[2], current=R[2])["removed"] == [R[1]]

    def test_a_release_with_a_live_process_stays(self, steps: Steps, repository: Repository) -> None:
        for release in R[:4]:
            steps.deploy(repository, release)
        answer = steps.run("cleanup", keep=1, live=[R[0]], committed=R[3], current=R[3], bad=[R[0]])
        assert answer["removed"] == R[1:3]
        assert contents(steps.deploy_to / "releases" / R[0])["app.py"] == "print(1)\n"

    def test_names_of_others_and_links_stay(self, steps: Steps, repository: Repository, tmp_path: Path) -> None:
        for release in R[3:5]:
            steps.deploy(repository, release)
        releases = steps.deploy_to / "releases"
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside/file").touch()
        (releases / R[0]).symlink_to(tmp_path / "outside")
        (releases / "backup").mkdir()
        (releases / R[1]).write_text("a file")
        assert steps.run("cleanup", keep=1, committed=R[4])["removed"] == [R[3]]
        assert sorted(os.listdir(releases)) == [R[0], R[1], R[4], "backup"]
        assert (tmp_path / "outside/file").exists()

    def test_links_inside_of_a_release_are_deleted_not_followed(
        self, steps: Steps, repository: Repository, tmp_path: Path
    ) -> None:
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious/data").touch()
        repository.commit({"data": f"->{tmp_path}/precious"})
        for release in R[:2]:
            steps.deploy(repository, release, linked_dirs=["log"])
        (steps.deploy_to / "shared/log/kept").touch()
        assert steps.run("cleanup", keep=1, committed=R[1])["removed"] == [R[0]]
        assert (tmp_path / "precious/data").exists() and (steps.deploy_to / "shared/log/kept").exists()

    def test_folders_without_write_permission_are_deleted_too(self, nobody: tuple[Steps, Repository]) -> None:
        """Go's module cache is such a folder; `rm -rf` by its owner fails on it."""
        steps, repository = nobody
        for release in R[:2]:
            steps.deploy(repository, release)
        locked = steps.deploy_to / "releases" / R[0] / "pkg/mod"
        locked.mkdir(parents=True)
        (locked / "file").touch()
        for path in (locked / "file", locked, locked.parent):
            os.chown(path, NOBODY, NOBODY)
        locked.chmod(0o555)
        assert steps.run("cleanup", keep=1, committed=R[1])["removed"] == [R[0]]
        assert steps.run("empty_trash") == {"left": []}
        assert os.listdir(steps.deploy_to / ".midstream/trash") == []

    def test_what_cannot_be_deleted_is_reported_and_the_rest_goes_on(self, nobody: tuple[Steps, Repository]) -> None:
        """Files that another user made in a release (a cache of www-data, a root cron job)."""
        steps, repository = nobody
        for release in R[:3]:
            steps.deploy(repository, release)
        cache = steps.deploy_to / "releases" / R[0] / "cache"
        cache.mkdir(mode=0o755)
        (cache / "of-root").touch()
        assert steps.run("cleanup", keep=1, committed=R[2])["removed"] == R[:2]
        answer = steps.run("empty_trash")
        assert len(answer["left"]) == 1 and "ermission" in answer["left"][0]["reason"]
        assert sorted(os.listdir(steps.deploy_to / "releases")) == [R[2]]
        (cache_left,) = (steps.deploy_to / ".midstream/trash").iterdir()
        os.chown(cache_left / "cache", NOBODY, NOBODY)
        assert steps.run("empty_trash")["left"] == []

    def test_large_releases_and_leftovers_of_a_killed_cleanup_are_deleted_by_another_step(self, steps: Steps) -> None:
        assert steps.run("prepare")["trash"] is False
        for release in R[:2]:
            (steps.deploy_to / ".midstream/trash" / f"{release}.0" / "x").mkdir(parents=True)
        for number in range(400):
            (steps.deploy_to / ".midstream/trash" / f"{R[0]}.0/x/{number}").touch()
        assert steps.run("cleanup", keep=1)["trash"] is True
        assert os.listdir(steps.deploy_to / ".midstream/trash") == [f"{R[0]}.0"], "the small one is gone already"
        assert steps.run("empty_trash") == {"left": []}
        assert os.listdir(steps.deploy_to / ".midstream/trash") == []

    def test_the_trash_is_emptied_beside_other_steps(self, steps: Steps) -> None:
        """A deploy does not wait for it, nor it for a deploy."""
        steps.run("prepare")
        (steps.deploy_to / ".midstream/trash" / f"{R[0]}.0").mkdir()
        with open(steps.deploy_to / ".midstream/lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert steps.run("empty_trash") == {"left": []}

    def test_two_that_empty_the_trash_do_not_get_in_each_others_way(self, steps: Steps) -> None:
        steps.run("prepare")
        for n in range(300):
            (steps.deploy_to / f".midstream/trash/{R[0]}.0/{n}/x/y").mkdir(parents=True)
        both = [steps.start("empty_trash") for _ in range(2)]
        for process in both:
            out, _ = process.communicate(timeout=60)
            assert process.returncode == 0 and '"left":[]' in out, out
        assert os.listdir(steps.deploy_to / ".midstream/trash") == []

    def test_releases_being_a_link_is_refused(self, steps: Steps, repository: Repository, tmp_path: Path) -> None:
        for release in R[:2]:
            steps.deploy(repository, release)
        (steps.deploy_to / "releases").rename(tmp_path / "moved")
        (steps.deploy_to / "releases").symlink_to(tmp_path / "moved")
        for name, request in (
            ("cleanup", {"keep": 1}),
            ("discard", {"release": R[0]}),
            ("make_release", {"deploy_id": "x", "release": R[5], "revision": repository.head()}),
            ("switch", {"release": R[0]}),
            ("prepare", {}),
        ):
            with pytest.raises(OperatorError, match="is a link"):
                steps.run(name, **request)
        assert sorted(os.listdir(tmp_path / "moved")) == R[:2]

    def test_discard_by_deploy_removes_what_that_deploy_claimed_and_nothing_else(
        self, steps: Steps, repository: Repository
    ) -> None:
        """The deployer of a make_release that was killed does not know which second it claimed."""
        for release in R[:2]:
            steps.deploy(repository, release)
        steps.deploy(repository, R[2], switch=False)
        assert steps.run("discard", deploy_id="never-was")["removed"] is False
        assert steps.run("discard", deploy_id=f"deploy-{R[2]}")["removed"] is True
        (steps.deploy_to / "releases" / R[0]).rename(steps.deploy_to / "elsewhere")
        (steps.deploy_to / "releases" / R[0] / "theirs").mkdir(parents=True)
        assert steps.run("discard", deploy_id=f"deploy-{R[0]}")["removed"] is False
        assert sorted(os.listdir(steps.deploy_to / "releases")) == R[:2]
        with pytest.raises(OperatorError):
            steps.run("discard")

    def test_discard_removes_one_but_not_the_current_one(self, steps: Steps, repository: Repository) -> None:
        for release in R[:2]:
            steps.deploy(repository, release)
        assert steps.run("discard", release=R[0])["removed"] is True
        assert steps.run("discard", release=R[0])["removed"] is False
        with pytest.raises(OperatorError, match="is what current points to"):
            steps.run("discard", release=R[1])
        assert os.listdir(steps.deploy_to / "releases") == [R[1]]


class TestDotMidstream:
    @pytest.mark.parametrize("name", ["", "/specs", "/claims", "/trash", "/tmp"])
    def test_being_a_link_is_refused(self, steps: Steps, repository: Repository, tmp_path: Path, name: str) -> None:
        steps.deploy(repository, R[0])
        ours = Path(f"{steps.deploy_to}/.midstream{name}")
        ours.rename(tmp_path / "moved")
        ours.symlink_to(tmp_path / "moved")
        before = sorted(os.listdir(tmp_path / "moved"))
        for step, request in (("prepare", {}), ("cleanup", {"keep": 1}), ("store_spec", {"release": R[0], "spec": {}})):
            with pytest.raises(OperatorError, match="is a link"):
                steps.run(step, **request)
        assert sorted(os.listdir(tmp_path / "moved")) == before


class TestDiff:
    def test_commits_both_ways(self, steps: Steps, repository: Repository) -> None:
        first = repository.head()
        second = repository.commit({"app.py": "2"}, "Second: ü \x1f odd")
        third = repository.commit({"app.py": "3"}, "Third")
        steps.deploy(repository, R[0])
        answer = steps.run("diff", from_revision=first, to_revision=third)
        assert [commit["sha"] for commit in answer["commits"]] == [third, second]
        assert answer["commits"][1]["subject"].startswith("Second: ü")
        assert answer["commits"][0]["author"] == "Ann Author" and answer["commits"][0]["time"] > 1_700_000_000
        assert answer["undone"] == []
        wire: dict[str, Any] = {"from": third, "to": first}
        back = steps.run("diff", **wire)
        assert (back["commits"], [commit["sha"] for commit in back["undone"]]) == ([], [third, second])

    def test_unknown_revisions_are_named(self, steps: Steps, repository: Repository) -> None:
        steps.deploy(repository, R[0])
        assert steps.run("diff", from_revision="1" * 40, to_revision=repository.head())["unknown"] == ["1" * 40]
        assert steps.run("diff", from_revision="--all", to_revision=repository.head())["unknown"] == ["--all"]


class TestProtocol:
    def test_several_steps_in_one_process(self, steps: Steps, repository: Repository) -> None:
        deploy_to, sha = str(steps.deploy_to), repository.head()
        steps.run("prepare")
        answer = steps.run(
            "several",
            steps=[
                {"step": "fetch", "request": {"deploy_to": deploy_to, "repository": str(repository.path),
                                              "branch": "main", "revision": sha}},
                {"step": "make_release", "request": {"deploy_to": deploy_to, "deploy_id": "d", "release": R[0],
                                                     "revision": sha}},
            ],
        )  # fmt: skip
        assert answer["results"][1]["release"] == R[0]
        with pytest.raises(BugError, match="no step"):
            steps.run("several", steps=[{"step": "several", "request": {}}])

    def test_several_say_what_each_has_done_before_the_next_begins(self, steps: Steps) -> None:
        deploy_to = str(steps.deploy_to)
        process = steps.start(
            "several",
            steps=[
                {"step": "prepare", "request": {"deploy_to": deploy_to}},
                {"step": "switch", "request": {"deploy_to": deploy_to, "release": R[0]}},
            ],
        )
        out, _ = process.communicate(timeout=60)
        parts = [part for line in out.splitlines() if (part := read_part(line)) is not None]
        assert [number for number, _ in parts] == [0] and parts[0][1]["releases"] == []

    def test_a_release_is_named_by_the_deploy_that_made_it(self, steps: Steps, repository: Repository) -> None:
        repository.commit({"static/x.css": "x"})
        release = steps.deploy(repository, R[0])
        steps.run("store_spec", deploy_id=f"deploy-{release}", spec={"app": "x"})
        assert steps.run("read_spec", release=release)["spec"] == {"app": "x"}
        steps.run("publish_assets", release="", deploy_id=f"deploy-{release}", dirs=["static"])
        assert (steps.deploy_to / "shared/assets/static/x.css").read_text() == "x"
        with pytest.raises(OperatorError, match="has made no release"):
            steps.run("store_spec", deploy_id="another", spec={})

    def test_a_deploy_that_is_made_anew_does_not_empty_what_current_points_to(
        self, steps: Steps, repository: Repository
    ) -> None:
        release = steps.deploy(repository, R[0])
        again = steps.deploy(repository, R[0], switch=False)
        assert again != release
        assert contents(steps.deploy_to / "releases" / release) == contents(steps.deploy_to / "releases" / again)

    def test_the_first_error_of_several_is_the_answer(self, steps: Steps) -> None:
        deploy_to = str(steps.deploy_to)
        with pytest.raises(OperatorError, match="is not on this host"):
            steps.run(
                "several",
                steps=[
                    {"step": "prepare", "request": {"deploy_to": deploy_to}},
                    {"step": "switch", "request": {"deploy_to": deploy_to, "release": R[0]}},
                    {"step": "prepare", "request": {"deploy_to": deploy_to, "linked_dirs": ["log"]}},
                ],
            )
        assert not (steps.deploy_to / "shared/log").exists()

    @pytest.mark.parametrize("extra", [{"unknown": 1}, {"keep": "three"}])
    def test_a_request_that_does_not_fit_is_our_bug(self, steps: Steps, extra: dict[str, Any]) -> None:
        with pytest.raises(BugError, match="does not fit"):
            steps.run("cleanup", **({"keep": 1} | extra))

    @pytest.mark.parametrize("deploy_to", ["/", "relative/path", "/srv/../etc", "/srv/x/"])
    def test_a_deploy_to_that_is_not_plain_is_refused(self, deploy_to: str) -> None:
        with pytest.raises(OperatorError, match="plain absolute path"):
            Steps(Path("/")).run("prepare", deploy_to=deploy_to)

    def test_a_second_step_waits_for_the_first(self, steps: Steps) -> None:
        steps.run("prepare")
        with open(steps.deploy_to / ".midstream/lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = steps.start("prepare")
            assert process.stdout is not None
            assert "waiting for another step" in process.stdout.readline()
        assert steps.finish(process)["releases"] == []

    def test_git_missing_is_said(self, steps: Steps, repository: Repository, tmp_path: Path) -> None:
        steps.run("prepare")
        steps.env["PATH"] = str(tmp_path)
        with pytest.raises(HostError, match="git is not installed"):
            steps.run("fetch", repository=str(repository.path), branch="main", revision=repository.head())


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    mine = [pid for pid in os.listdir("/proc") if pid.isdecimal() and _parent_of(pid) == os.getpid()]
    assert not [pid for pid in mine if "midstream.steps" in _command_of(pid)]


def _parent_of(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def _command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_results_are_json(steps: Steps) -> None:
    assert json.loads(json.dumps(steps.run("prepare")))["releases"] == []
