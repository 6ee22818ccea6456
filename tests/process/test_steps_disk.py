"""Steps on a disk that is full: each says so with the path and the cure, leaves what was there as it was, and succeeds
when there is room again. On a small tmpfs; skipped where one cannot be mounted."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from step_programs import Repository, Steps

from midstream.core.releases import rolled_back_line
from midstream.errors import HostError

A, B = "20260101000000", "20260102000000"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=4k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "origin")
    repository.commit({"app.py": "one\n", "static/app.css": "one\n"})
    return repository


def fill(disk: Path) -> Path:
    """Takes all the room that is left."""
    filler = disk / "filler"
    with open(filler, "ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return filler


def snapshot(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith(("repo/", ".midstream/tmp", ".midstream/claims")):
            continue
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture
def steps(disk: Path, repository: Repository) -> Steps:
    steps = Steps(disk / "shop")
    steps.deploy(repository, A)
    steps.run("publish_assets", release=A, dirs=["static"])
    return steps


def refused(steps: Steps, disk: Path, step: str, **request: Any) -> HostError:
    """Runs the step on the full disk; nothing has changed, and with room it succeeds."""
    before = snapshot(steps.deploy_to)
    filler = fill(disk)
    with pytest.raises(HostError) as raised:
        steps.run(step, **request)
    assert "no space" in raised.value.what and str(steps.deploy_to) in str(raised.value)
    assert "free some space" in raised.value.remedy
    assert snapshot(steps.deploy_to) == before
    filler.unlink()
    steps.run(step, **request)
    return raised.value


def test_receive(steps: Steps, disk: Path, repository: Repository, tmp_path: Path) -> None:
    first = repository.head()
    sha = repository.commit({"big": os.urandom(500_000)})
    pack = repository.pack(sha, [first], tmp_path / "pack")
    refused(steps, disk, "receive", pack=pack, revision=sha)
    assert os.path.isdir(steps.deploy_to / "repo")


def test_fetch(steps: Steps, disk: Path, repository: Repository) -> None:
    sha = repository.commit({"big": os.urandom(500_000)})
    refused(steps, disk, "fetch", repository=str(repository.path), branch="main", revision=sha)


def test_make_release_leaves_no_half_release(steps: Steps, disk: Path, repository: Repository) -> None:
    sha = repository.commit({f"files/{n}": os.urandom(4000) for n in range(50)})
    steps.run("fetch", repository=str(repository.path), branch="main", revision=sha)
    before = snapshot(steps.deploy_to)
    filler = fill(disk)
    with open(filler, "rb+") as file:  # room for about half of it
        file.truncate(filler.stat().st_size - 100_000)
    request: dict[str, Any] = {"deploy_id": "b", "release": B, "revision": sha}
    with pytest.raises(HostError, match="no space") as raised:
        steps.run("make_release", **request)
    assert f"releases/{B}/" in raised.value.where
    assert snapshot(steps.deploy_to) == before
    filler.unlink()
    assert steps.run("make_release", **request)["release"] == B


def test_store_spec(steps: Steps, disk: Path) -> None:
    refused(steps, disk, "store_spec", release=A, spec={"filler": "x" * 10_000})


def test_publish_assets(steps: Steps, disk: Path, repository: Repository) -> None:
    repository.commit({"static/app.css": "two\n" * 5000})
    steps.deploy(repository, B, switch=False)
    before = (steps.deploy_to / "shared/assets/static/app.css").read_text()
    filler = fill(disk)
    with pytest.raises(HostError, match="no space"):
        steps.run("publish_assets", release=B, dirs=["static"])
    assert (steps.deploy_to / "shared/assets/static/app.css").read_text() == before
    filler.unlink()
    assert steps.run("publish_assets", release=B, dirs=["static"])["replaced"] == ["static/app.css"]


def test_log_revision_writes_no_half_line(steps: Steps, disk: Path) -> None:
    log = steps.deploy_to / "revisions.log"
    line = rolled_back_line("ann", A)
    log.write_text("x" * 4090 + "\n")  # the page has room for five bytes
    filler = fill(disk)
    with pytest.raises(HostError, match=r"no space.*revisions\.log"):
        steps.run("log_revision", line=line)
    assert log.read_text() == "x" * 4090 + "\n"
    filler.unlink()
    assert steps.run("log_revision", line=line) == {"appended": True}
    assert log.read_text().splitlines()[1] == line


def test_a_full_disk_stops_neither_going_back_nor_cleaning_up(steps: Steps, disk: Path, repository: Repository) -> None:
    steps.deploy(repository, B)
    fill(disk)
    assert steps.run("switch", release=A)["changed"] is True
    assert os.readlink(steps.deploy_to / "current").endswith(A)
    assert steps.run("discard", release=B)["removed"] is True
    assert steps.run("cleanup", keep=1, committed=A)["left"] == []
    steps.run("empty_trash")
    assert os.listdir(steps.deploy_to / "releases") == [A]


def test_the_room_that_is_asked_for_is_checked_first(steps: Steps, disk: Path) -> None:
    fill(disk)
    with pytest.raises(HostError, match="only 0 MiB are free"):
        steps.run("prepare", min_free_bytes=1024 * 1024)


def test_what_lies_in_the_trash_is_room_for_the_next_deploy(steps: Steps, disk: Path) -> None:
    steps.run("prepare")
    old = steps.deploy_to / ".midstream/trash" / f"{A}.0"
    old.mkdir()
    (old / "wheel").write_bytes(b"x" * 2 * 1024 * 1024)
    fill(disk)
    assert steps.run("prepare", min_free_bytes=1024 * 1024)["trash"] is False


def test_a_disk_mounted_read_only_is_said(steps: Steps, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        with pytest.raises(HostError, match="read-only"):
            steps.run("store_spec", release=A, spec={})
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
