"""Running step programs as the keeper does: a process of their own, the request on descriptor 3, a pack on 4.

Also a real git repository to deploy from. Used by the tests of steps, here and in tests/e2e.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from midstream.core.steps import read_result
from midstream.errors import MidstreamError

SOURCE = Path(__file__).resolve().parents[2] / "src"
_MAIN = (
    f"import sys; sys.path.insert(0, {str(SOURCE)!r}); "
    "from midstream.steps.program import main; sys.exit(main(sys.argv[1:]))"
)
_GIT_ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ann Author",
    "GIT_AUTHOR_EMAIL": "ann@example.com",
    "GIT_COMMITTER_NAME": "Ann Author",
    "GIT_COMMITTER_EMAIL": "ann@example.com",
    "LC_ALL": "C",
}


def git(*args: str | Path, cwd: str | Path, env: dict[str, str] | None = None) -> str:
    command = ["git", "-c", "protocol.file.allow=always", *(str(arg) for arg in args)]
    done = subprocess.run(command, cwd=cwd, env=_GIT_ENV | (env or {}), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def python_for_all() -> str:
    """A Python that any user may run: the tests' own is often in somebody's home folder. Skips the test without one."""
    for python in ("/usr/bin/python3", "/usr/local/bin/python3"):
        check = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        if os.path.exists(python) and subprocess.run(check, check=False).returncode == 0:
            return python
    pytest.skip("no Python 3.11 that another user may run")


class Repository:
    """A git repository with a working copy. `commit` takes {path: content}: bytes, text, `->target`, None (deleted)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        git("init", "--quiet", "--initial-branch=main", cwd=path)
        self._moment = 1_700_000_000

    def commit(
        self,
        files: Mapping[str, str | bytes | None],
        subject: str = "Change",
        *,
        modes: Mapping[str, int] = MappingProxyType({}),
    ) -> str:
        for name, content in files.items():
            file = self.path / name
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            file.unlink(missing_ok=True)
            if content is None:
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str) and content.startswith("->"):
                file.symlink_to(content[2:])
            else:
                file.write_bytes(content.encode() if isinstance(content, str) else content)
                file.chmod(modes.get(name, 0o644))
        git("add", "--all", cwd=self.path)
        self._moment += 60
        date = f"{self._moment} +0000"
        dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
        git("commit", "--quiet", "--allow-empty", "-m", subject, cwd=self.path, env=dates)
        return self.head()

    def head(self) -> str:
        return git("rev-parse", "HEAD", cwd=self.path)

    def tree(self, revision: str = "HEAD") -> str:
        return git("rev-parse", f"{revision}^{{tree}}", cwd=self.path)

    def pack(self, revision: str, have: list[str], to: Path) -> Path:
        text = "\n".join([revision, *(f"^{base}" for base in have), ""])
        with open(to, "wb") as file:
            args = ["git", "pack-objects", "--revs", "--thin", "--stdout", "-q"]
            subprocess.run(args, cwd=self.path, input=text.encode(), stdout=file, check=True, env=_GIT_ENV)
        return to


class Steps:
    """The steps on one deploy_to. `user`: uid and gid to run them under (needs root)."""

    def __init__(self, deploy_to: Path, *, user: int | None = None, home: Path | None = None) -> None:
        self.deploy_to = deploy_to
        self.user = user
        self.lines: list[str] = []
        self.env = {"PATH": os.environ["PATH"], "HOME": str(home or "/nonexistent")}

    def start(
        self, step: str, *, pack: Path | None = None, wrap: Callable[[], None] | None = None, **request: Any
    ) -> subprocess.Popen[str]:
        fd = os.memfd_create("request")
        os.write(
            fd, json.dumps({"deploy_to": str(self.deploy_to), **request} if step != "several" else request).encode()
        )
        pack_fd = os.open(pack, os.O_RDONLY) if pack else -1

        def place() -> None:
            high = os.dup(fd), os.dup(pack_fd) if pack else -1
            moved = [os.dup2(end, 100 + i) if end >= 0 else -1 for i, end in enumerate(high)]
            os.closerange(3, 100)
            os.dup2(moved[0], 3)
            if pack:
                os.dup2(moved[1], 4)
            os.closerange(5, 120)
            if self.user is not None:
                os.setgroups([])
                os.setgid(self.user)
                os.setuid(self.user)
            os.setpgid(0, 0)
            if wrap:
                wrap()

        try:
            return subprocess.Popen(
                [sys.executable if self.user is None else python_for_all(), "-I", "-c", _MAIN, step],
                preexec_fn=place,
                close_fds=False,
                cwd="/",
                env=self.env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        finally:
            os.close(fd)
            if pack_fd >= 0:
                os.close(pack_fd)

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """The `ok` of the step's result line; raises the error it reported. The other lines are in `lines`."""
        out, _ = process.communicate(timeout=120)
        self.lines = out.rstrip("\n").split("\n")  # not splitlines: RESULT_MARK ends a line for it
        *self.lines, last = self.lines
        try:
            ok = read_result(last)
        except MidstreamError as error:
            assert process.returncode == error.exit_code
            raise
        except ValueError:
            raise AssertionError(f"no result line: {out}") from None
        assert process.returncode == 0
        return ok

    def run(self, step: str, *, pack: Path | None = None, **request: Any) -> dict[str, Any]:
        return self.finish(self.start(step, pack=pack, **request))

    def deploy(self, repository: Repository, release: str, *, switch: bool = True, **request: Any) -> str:
        """A whole deploy of the repository's head by fetch; the release id."""
        sha = repository.head()
        linked = {key: request.pop(key) for key in ("linked_dirs", "linked_files") if key in request}
        self.run("prepare", **linked)
        self.run("fetch", repository=str(repository.path), branch="main", revision=sha)
        made = self.run(
            "make_release", deploy_id=f"deploy-{release}", release=release, revision=sha,
            revision_time=1_700_000_000, **linked, **request,
        )  # fmt: skip
        if switch:
            self.run("switch", release=made["release"])
        found: str = made["release"]
        return found
