"""Running the `git` command for a step: its environment, its lock, and what its failures mean.

The only module of the steps that starts a process. Each call blocks until git is done.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from typing import IO

from midstream.core.git_errors import explain
from midstream.errors import HostError, MidstreamError

# What would make git work on another repository than the one it is told. The rest (ssh agent, proxies, HOME with its
# credential helpers) is the operator's and stays.
_DROPPED = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
)
# No gc behind our back: it would outlive the step. Line ends and attributes must not depend on a host's ~/.gitconfig,
# or two hosts would serve different files from one tree.
_OPTIONS = (
    "-c",
    "gc.auto=0",
    "-c",
    "maintenance.auto=false",
    "-c",
    "core.autocrlf=false",
    "-c",
    "core.attributesFile=/dev/null",
    "-c",
    "core.hooksPath=/dev/null",
)


class GitFailed(Exception):
    """git said no. `stderr` is its own text, `status` its exit status."""

    def __init__(self, args: Sequence[str], status: int, stderr: str) -> None:
        super().__init__(f"git {' '.join(args)}: exit {status}: {stderr.strip()}")
        self.status = status
        self.stderr = stderr


def environment(*, network: bool = False) -> dict[str, str]:
    """The environment git gets: never asks on a terminal, speaks English."""
    env = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    env["LC_ALL"] = "C"
    env["GIT_TERMINAL_PROMPT"] = "0"
    env["GIT_OPTIONAL_LOCKS"] = "0"
    if network and "GIT_SSH" not in env:
        # BatchMode: an unknown host key or a missing key is an error at once, not a question nobody answers.
        env["GIT_SSH_COMMAND"] = f"{env.get('GIT_SSH_COMMAND') or _ssh_command()} -o BatchMode=yes"
    return env


def _ssh_command() -> str:
    """What the user's git configuration says, which GIT_SSH_COMMAND would hide."""
    asked = subprocess.run(["git", "config", "--get", "core.sshCommand"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "ssh"


def run(repo: str, *args: str, stdin: int | None = None, network: bool = False, keep_fds: Sequence[int] = ()) -> str:
    """git's stdout. Raises GitFailed; HostError when there is no git.

    `keep_fds` are inherited: the step's lock, so that a git that outlives a killed step keeps the next step waiting.
    The network commands do not get it, a credential daemon they start would hold it for ever.
    """
    try:
        done = subprocess.run(
            ["git", *_OPTIONS, *args],
            cwd=repo,
            env=environment(network=network),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            capture_output=True,
            pass_fds=() if network else tuple(keep_fds),
            check=False,
        )
    except FileNotFoundError as error:
        raise missing(repo) from error
    if done.returncode != 0:
        raise GitFailed(args, done.returncode, done.stderr.decode(errors="replace"))
    return done.stdout.decode(errors="surrogateescape")


def start(repo: str, *args: str, keep_fds: Sequence[int] = (), stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    """git with its stdout on a pipe, for streams. The caller reads it to its end and waits."""
    try:
        return subprocess.Popen(
            ["git", *_OPTIONS, *args],
            cwd=repo,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            pass_fds=tuple(keep_fds),
        )
    except FileNotFoundError as error:
        raise missing(repo) from error


def missing(repo: str) -> HostError:
    """What a FileNotFoundError of starting git means: no git, or no such folder."""
    if not os.path.isdir(repo):
        return HostError(f"{repo} is gone", where=repo, remedy="deploy again: it is made anew")
    return HostError("git is not installed", remedy="install git on this host (apt-get install git)")


def failure(error: GitFailed, *, repository: str, wanted: str = "the revision", where: str = "") -> MidstreamError:
    """The MidstreamError for a GitFailed."""
    return explain(error.stderr or str(error), repository=repository, wanted=wanted, where=where)


def has_commit(repo: str, revision: str) -> bool:
    """Whether the commit object is there (not: all that it reaches)."""
    with contextlib.suppress(GitFailed):
        run(repo, "cat-file", "-e", f"{revision}^{{commit}}")
        return True
    return False
