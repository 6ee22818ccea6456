"""Each step is killed (kill -9) at some instant and run again with the same request: the end is the same as without the
kill, and in between nothing half-made passes for whole. MIDSTREAM_CRASH_ALL=1 kills more often.

Half of the kills take the step alone, so that its git goes on without it; the others take both. The instants are drawn
from the second half of the step's own duration, where its work is; the seed is fixed, the machine's timing is not.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from step_programs import Repository, Steps, git

from midstream.core.releases import deployed_line

ALL = bool(os.environ.get("MIDSTREAM_CRASH_ALL"))
ROUNDS = 14 if ALL else 5
KEEP = 2


class Killer:
    """Runs a step, kills it at a drawn instant, looks, and runs it again to its end."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.random = random.Random(5)
        self.usual_s: dict[str, float] = {}
        self.killed = 0

    def run(self, step: str, look: Any = lambda: None, *, pack: Path | None = None, **request: Any) -> dict[str, Any]:
        begun = time.monotonic()
        process = self.steps.start(step, pack=pack, **request)
        if step in self.usual_s:
            try:
                process.wait(timeout=self.random.uniform(0.4, 1.0) * self.usual_s[step])
            except subprocess.TimeoutExpired:
                self._kill(process)
        if process.wait() == -signal.SIGKILL:
            assert process.stdout is not None
            process.stdout.close()
            look()
            begun = time.monotonic()
            ok = self.steps.run(step, pack=pack, **request)
        else:
            ok = self.steps.finish(process)
        self.usual_s[step] = time.monotonic() - begun
        return ok

    def _kill(self, process: subprocess.Popen[str]) -> None:
        if self.random.random() < 0.5:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        self.killed += 1


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.mark.slow
def test_a_story_of_deploys_with_a_kill_in_each_step(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "origin")
    repository.commit({f"lib/{n % 20}/file{n}.py": f"{n}\n" * 50 for n in range(400)} | {"log/.keep": ""})
    steps = Steps(tmp_path / "shop")
    killer = Killer(steps)
    root = steps.deploy_to
    have: list[str] = []
    lines: list[str] = []
    made: list[str] = []
    whole: dict[str, dict[str, bytes]] = {}

    def current_is_whole() -> None:
        if made:
            name = os.readlink(root / "current").rsplit("/", 1)[1]
            assert name in made[-2:]
            assert (root / "releases" / name / "REVISION").exists()

    def what_is_in_releases_is_whole() -> None:
        for name in os.listdir(root / "releases"):
            assert files_of(root / "releases" / name) == whole[name], f"half of {name} is left"

    for turn in range(ROUNDS):
        sha = repository.commit({f"lib/1/file{turn}.py": f"turn {turn}\n", f"static/{turn}.css": f"{turn}\n" * 2000})
        tree = repository.tree()
        killer.run("prepare", current_is_whole, linked_dirs=["log", "tmp/pids"])
        pack = repository.pack(sha, have, tmp_path / "pack")
        assert killer.run("receive", current_is_whole, pack=pack, revision=sha, tree=tree)["tree"] == tree
        have = steps.run("inspect")["have"]
        assert sha in have
        release = f"202601010{turn:03}00"
        request: dict[str, Any] = {
            "deploy_id": f"d{turn}",
            "release": release,
            "revision": sha,
            "tree": tree,
            "revision_time": 1.0,
        }
        answer = killer.run("make_release", current_is_whole, linked_dirs=["log", "tmp/pids"], **request)
        assert answer["release"] == release
        folder = root / "releases" / release
        expected = files_of(repository.path)
        expected = {name: data for name, data in expected.items() if not name.startswith((".git/", "log/"))}
        expected |= {"REVISION": f"{sha}\n".encode(), "REVISION_TIME": b"1\n"}
        assert files_of(folder) == expected
        assert os.readlink(folder / "log") == f"{root}/shared/log"
        whole[release] = expected
        killer.run("store_spec", current_is_whole, release=release, spec={"turn": turn, "filler": "x" * 50_000})
        assert steps.run("read_spec", release=release)["spec"]["turn"] == turn
        killer.run("publish_assets", current_is_whole, release=release, dirs=["static"])
        for n in range(turn + 1):
            assert (root / f"shared/assets/static/{n}.css").read_text() == f"{n}\n" * 2000
        made.append(release)
        if turn == 0:
            steps.run("switch", release=release)
        killer.run("switch", current_is_whole, release=release)
        assert os.readlink(root / "current") == str(folder)
        lines.append(deployed_line("main", sha, release, "ann"))
        killer.run("log_revision", current_is_whole, line=lines[-1])
        assert (root / "revisions.log").read_text().splitlines() == lines
        killer.run("cleanup", what_is_in_releases_is_whole, keep=KEEP, committed=release, current=release)
        assert sorted(os.listdir(root / "releases")) == made[-KEEP:]
        assert sorted(os.listdir(root / ".midstream/specs")) == [f"{name}.json" for name in made[-KEEP:]]
        killer.run("empty_trash", what_is_in_releases_is_whole)
        assert os.listdir(root / ".midstream/trash") == []
    assert git("fsck", "--full", cwd=root / "repo") == ""
    assert sorted(path.name for path in root.iterdir()) == [
        ".midstream", "current", "releases", "repo", "revisions.log", "shared",
    ]  # fmt: skip
    assert killer.killed > ROUNDS, "hardly anything was killed: the instants are drawn wrongly"


@pytest.mark.slow
def test_the_first_fetch_and_the_making_of_the_mirror(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "origin")
    for turn in range(5):
        sha = repository.commit({f"{turn}/{n}": os.urandom(2000) for n in range(50)})
    steps = Steps(tmp_path / "shop")
    killer = Killer(steps)
    request: dict[str, Any] = {"repository": str(repository.path), "branch": "main", "revision": sha}
    for _ in range(25 if ALL else 8):
        shutil.rmtree(steps.deploy_to, ignore_errors=True)
        steps.run("prepare")
        killer.run("fetch", tree=repository.tree(), **request)
        assert git("rev-parse", "refs/heads/main", f"refs/midstream/{sha}", cwd=steps.deploy_to / "repo").split() == [
            sha,
            sha,
        ]
        assert git("config", "--get-all", "remote.origin.fetch", cwd=steps.deploy_to / "repo").split() == [
            "+refs/*:refs/*",
            "^refs/midstream/*",
        ]
    assert git("fsck", "--full", cwd=steps.deploy_to / "repo") == ""
    assert killer.killed > (8 if ALL else 2)


def test_a_git_that_outlives_its_step_keeps_the_next_step_waiting(tmp_path: Path) -> None:
    """The lock is the open file's, and git has it open too."""
    repository = Repository(tmp_path / "origin")
    sha = repository.commit({"file": "x"})
    steps = Steps(tmp_path / "shop")
    steps.run("prepare")
    fifo = tmp_path / "pack"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)  # git reads its pack from here and waits for it
    pack = repository.pack(sha, [], tmp_path / "whole").read_bytes()
    os.write(writer, pack[:100])
    step = steps.start("receive", pack=fifo, revision=sha)
    child = _wait_for_child(step.pid, "index-pack")
    step.kill()
    step.wait()
    after = steps.start("prepare")
    assert after.stdout is not None and "waiting for another step" in after.stdout.readline()
    assert after.poll() is None
    os.write(writer, pack[100:])
    os.close(writer)
    answer = steps.finish(after)
    assert not command_line(child)
    assert answer["have"] == []  # its objects came, but nothing names them yet
    assert step.stdout is not None
    step.stdout.close()
    steps.run("receive", revision=sha)
    assert steps.run("prepare")["have"] == [sha]


def command_line(pid: int) -> list[str]:
    """Empty when it has ended, reaped or not."""
    try:
        return [arg for arg in Path(f"/proc/{pid}/cmdline").read_text().split("\0") if arg]
    except OSError:
        return []


def _wait_for_child(parent: int, word: str) -> int:
    """The pid of the git command of that name below the step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if word in command_line(int(pid)):
                return int(pid)
        time.sleep(0.01)
    raise AssertionError(f"no {word} began")
