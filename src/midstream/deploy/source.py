"""The repository, as the deployer sees it: which revision a branch is, what is in it, and packs of it for hosts.

A repository at a URL is kept as a bare cache below `~/.cache/midstream/repos`; one at a local path is read in place and
never written to. Runs in the deployer; every call blocks on git (`asyncio.to_thread` from the event loop), and may be
made from several threads.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from midstream.core.git_errors import explain, redact_url
from midstream.core.submodules import Submodule, absolute_url, links, urls
from midstream.deploy.order import Pack, Target
from midstream.deploy.scratch import Scratch
from midstream.errors import HostError, MidstreamError, OperatorError

_HEX = re.compile(r"[0-9a-f]{4,64}\Z")
_FULL = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_ALL_REFS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
PACK_S = 3600.0  # to find and compress what a host lacks
_FETCH = ("fetch", "--quiet", "--force", "--no-write-fetch-head", "--no-tags")
_DROPPED = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")
_DEPTH_MAX = 10


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit, as `midstream diff` shows it. `time_s`: of the commit's author, unix seconds."""

    sha: str
    author: str
    time_s: int
    subject: str


class _GitFailed(Exception):
    def __init__(self, stderr: str) -> None:
        super().__init__(stderr)
        self.stderr = stderr


class Source:
    """One repository. `notes` are things the operator should hear, filled by `resolve`. Close it when done: it owns the
    folder in which its packs lie."""

    def __init__(self, repository: str, *, cache_dir: str = "") -> None:
        self.repository = repository
        self.notes: list[str] = []
        local = _local_path(repository)
        self._cache_dir = cache_dir or _default_cache()
        key = hashlib.sha256(repository.encode()).hexdigest()[:32]
        self.path = local or f"{self._cache_dir}/{key}.git"
        self._is_local = bool(local)
        self._packs: dict[tuple[str, frozenset[str], bool], Pack | None] = {}
        self._packing = threading.Lock()
        self._folder: Scratch | None = None
        self._ready = False

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Deletes the packs."""
        if self._folder is not None:
            self._folder.close()
            self._folder = None
            self._packs.clear()

    def resolve(self, branch: str) -> Target:
        """The revision that `branch` (branch, tag, revision or the beginning of one) is at this moment.

        Asks the repository unless `branch` is a full revision that the cache has. Raises OperatorError for an unknown
        name (with the nearest known ones) or a path that is no repository, HostError when it cannot be reached.
        """
        self._open()
        if not self._is_local:
            self._update(branch)
        sha = self._find(branch)
        if sha is None:
            raise self._unknown(branch)
        if self._is_local:
            self._note_uncommitted(sha)
        out = self._git("show", "-s", "--no-show-signature", "--format=%H%x00%T%x00%ct%x00%s", sha)
        sha, tree, moment, subject = out.rstrip("\n").split("\0", 3)
        return Target(sha=sha, tree=tree, time_s=int(moment), branch=branch, subject=subject)

    def show(self, sha: str, path: str) -> bytes | None:
        """The file `path` of a revision; None when it has none, or a folder there."""
        self._open()
        try:
            return self._run(("cat-file", "blob", f"{sha}:{path}"))
        except _GitFailed as error:
            # git says that the path does not exist also when it is the revision that does not.
            if self._has(sha) and re.search(r"does not exist in|exists on disk|bad file", error.stderr):
                return None
            raise explain(error.stderr, repository=self.repository, wanted=f"revision {sha[:12]}") from None

    def pack(self, sha: str, have: Sequence[str], *, submodules: bool = False) -> Pack | None:
        """A thin pack of what `sha` needs beyond `have` (revisions whose history the host has whole); None when the
        host has everything. It lies in a temporary folder until `close`. The same question gets the same pack.
        """
        self._open()
        key = (sha, frozenset(have), submodules)
        with self._packing:
            if key not in self._packs:
                self._packs[key] = self._make_pack(sha, have, submodules)
            return self._packs[key]

    def pack_upon(self, sha: str, revision: str) -> Pack | None:
        """`pack` for a host that has `revision`; None also where that is not known here: it would be all of the history."""
        self._open()
        return self.pack(sha, [revision]) if _FULL.match(revision) and self._has(revision) else None

    def checkout(self, target: Target, folder: str, *, submodules: bool = False) -> None:
        """A clean checkout of the revision in the new folder `folder`, for a build here. The repository itself is only
        read. Raises HostError when what is there then is not the tree that is deployed."""
        self._open()
        try:
            _call(("clone", "--quiet", "--shared", "--no-checkout", "--", os.path.abspath(self.path), folder), cwd="/")
            _call(("checkout", "--quiet", "--detach", target.sha), cwd=folder)
            if submodules:
                if not self._is_local:
                    _call(("remote", "set-url", "origin", self.repository), cwd=folder)
                _call(("submodule", "--quiet", "update", "--init", "--recursive"), cwd=folder, network=True)
            tree = _call(("rev-parse", "HEAD^{tree}"), cwd=folder).decode().strip()
        except _GitFailed as error:
            raise explain(error.stderr, repository=self.repository, wanted=f"revision {target.sha[:12]}") from None
        if tree != target.tree:
            raise HostError(f"the checkout is tree {tree}, not {target.tree}", where=folder, remedy="deploy again")

    def log(self, base: str, head: str, *, limit: int = 200) -> list[Commit]:
        """The commits in `head` that are not in `base`, newest first; none when the repository knows not both."""
        self._open()
        if not (self._has(base) and self._has(head)):
            return []
        span = f"{base}..{head}"
        out = self._git("log", "-z", f"--max-count={limit}", "--format=%H%x1f%an%x1f%at%x1f%s", span)
        fields = [record.split("\x1f", 3) for record in out.split("\0") if record]
        return [Commit(sha, author, int(moment), subject) for sha, author, moment, subject in fields]

    # Opening and fetching

    def _open(self) -> None:
        if self._ready:
            return
        if self._is_local:
            self._check_local()
        else:
            self._make_cache()
        self._ready = True

    def _check_local(self) -> None:
        if not os.path.isdir(self.path):
            raise OperatorError(
                f"there is no folder {self.path}", where=self.repository, remedy="correct repository in midstream.toml"
            )
        try:
            out = self._run(("rev-parse", "--is-shallow-repository")).decode().strip()
        except _GitFailed as error:
            raise explain(error.stderr, repository=self.path) from None
        if out == "true":
            raise OperatorError(
                f"{self.path} is a shallow clone: the history that hosts need is not in it",
                where=self.path,
                remedy="git fetch --unshallow there, or give the repository's URL (in GitHub Actions: fetch-depth: 0)",
            )

    def _make_cache(self) -> None:
        if os.path.isfile(f"{self.path}/HEAD"):
            return
        try:
            os.makedirs(self._cache_dir, mode=0o700, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=self._cache_dir) as folder:
                _call(("init", "--quiet", "--bare", f"{folder}/repo"), cwd=folder)
                with contextlib.suppress(FileExistsError):  # two deploys at the same time: one cache will do
                    _rename_new(f"{folder}/repo", self.path)
        except OSError as error:
            raise HostError(
                f"the cache {self._cache_dir} cannot be written: {error.strerror}",
                where="the machine that deploys",
                remedy="make it writable, or set XDG_CACHE_HOME to a folder that is",
            ) from None
        except _GitFailed as error:
            raise explain(error.stderr, repository=self._cache_dir) from None

    def _update(self, branch: str) -> None:
        """Fetches what `branch` may be: the one branch first, which is most often enough, else all of them."""
        if _FULL.match(branch) and self._has(branch):
            return
        address = ("--", self.repository)
        with self._locked():
            try:
                if not _FULL.match(branch):
                    try:
                        ref = f"refs/heads/{branch}"
                        self._run((*_FETCH, *address, f"+{ref}:{ref}"), network=True)
                        return
                    except _GitFailed as error:
                        if not re.search(r"couldn't find remote ref|cannot lock ref|invalid refspec", error.stderr):
                            raise
                self._run((*_FETCH, "--prune", *address, *_ALL_REFS), network=True)
            except _GitFailed as error:
                raise explain(error.stderr, repository=self.repository, wanted=branch) from None
            if (_FULL.match(branch) or branch.startswith("refs/")) and not self._has(branch):
                # On no branch (a pull request, a branch pushed over): many servers give it when asked by name.
                kept = f"+{branch}:refs/midstream/{branch.removeprefix('refs/')}"
                with contextlib.suppress(_GitFailed):
                    self._run((*_FETCH, *address, kept), network=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One fetch at a time in a cache; the kernel frees the lock when its holder is gone."""
        fd = os.open(f"{self.path}/midstream.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # Finding

    def _find(self, branch: str) -> str | None:
        """Branch before tag before revision. (Capistrano's `git rev-list NAME` takes a tag before a branch.)"""
        names = [f"refs/heads/{branch}", f"refs/tags/{branch}"]
        if branch == "HEAD" and self._is_local:
            names.append("HEAD")
        if branch.startswith("refs/"):
            names += [branch, f"refs/midstream/{branch.removeprefix('refs/')}"]
        for name in names:
            with contextlib.suppress(_GitFailed):
                return self._run(("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")).decode().strip()
        if not _HEX.match(branch):
            return None
        try:
            return self._run(("rev-parse", "--verify", f"{branch}^{{commit}}")).decode().strip()
        except _GitFailed as error:
            if "ambiguous" in error.stderr:
                raise OperatorError(
                    f"{branch} is the beginning of several revisions",
                    where=redact_url(self.repository),
                    detail=error.stderr,
                    remedy="give more of its digits",
                ) from None
            return None

    def _unknown(self, branch: str) -> MidstreamError:
        where = redact_url(self.repository)
        out = self._git("for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads", "refs/tags")
        known = out.split("\n")[:-1]
        if not known:
            return OperatorError(f"the repository {where} has no branch yet", remedy="commit and push something first")
        short = branch.removeprefix("origin/").removeprefix("refs/heads/")
        near = difflib.get_close_matches(short, known, n=3, cutoff=0.5) or known[:5]
        return OperatorError(
            f"the repository {where} has no branch, tag or revision {branch!r}",
            where=where,
            detail="nearest: " + ", ".join(near),
            remedy="push it, or choose another: --branch " + near[0],
        )

    def _note_uncommitted(self, sha: str) -> None:
        with contextlib.suppress(_GitFailed):  # a bare repository has no files to be changed
            out = self._run(("status", "--porcelain", "-z")).decode(errors="replace")
            paths = [record[3:] for record in out.split("\0") if record]
            if paths:
                files = "1 file" if len(paths) == 1 else f"{len(paths)} files"
                self.notes.append(
                    f"{files} in {self.path} changed but not committed: not deployed; what is deployed is {sha[:12]}"
                )
            if any(path.rpartition("/")[2] == "midstream.toml" for path in paths):
                self.notes.append(
                    "midstream.toml is changed but not committed: its services, builds and hooks count, and are "
                    "checked, once they are; its stages count now"
                )

    def _has(self, revision: str) -> bool:
        if not revision or revision.startswith("-"):
            return False
        with contextlib.suppress(_GitFailed):
            self._run(("cat-file", "-e", f"{revision}^{{commit}}"))
            return True
        return False

    # Packing

    def _make_pack(self, sha: str, have: Sequence[str], submodules: bool) -> Pack | None:
        wanted, alternates = [sha], list[str]()
        if submodules:
            for shas, objects in self._gather_submodules(sha, 0):
                wanted.extend(shas)
                alternates.append(objects)
        if set(wanted) <= set(have):
            return None
        env = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": ":".join(f'"{path}"' for path in dict.fromkeys(alternates))}
        if self._folder is None:
            self._folder = self._scratch()
        path = f"{self._folder.path}/{len(self._packs)}.pack"
        args = ("pack-objects", "--revs", "--thin", "--delta-base-offset", "--stdout", "-q")
        try:
            bases = self._known_of(have, env)
            revisions = "".join(f"{wish}\n" for wish in wanted) + "".join(f"^{base}\n" for base in bases)
            with open(path, "wb") as file:
                _call(args, cwd=self.path, stdin=revisions.encode(), stdout=file.fileno(), env=env, timeout_s=PACK_S)
            with open(path, "rb") as file:
                count = int.from_bytes(file.read(12)[8:], "big")
        except _GitFailed as error:
            raise explain(error.stderr, repository=self.repository, wanted=sha[:12]) from None
        except OSError as error:
            raise HostError(
                f"the pack {path} cannot be written: {error.strerror}",
                where="the machine that deploys",
                remedy="free some space there, or set TMPDIR to a folder with more",
            ) from None
        if count == 0:
            os.unlink(path)
            return None
        return Pack(path=path, size_bytes=os.path.getsize(path))

    def _scratch(self) -> Scratch:
        try:
            return Scratch("midstream-packs-")
        except OSError as error:
            raise HostError(
                f"no temporary folder can be made: {error.strerror}",
                where="the machine that deploys",
                remedy="free some space there, or set TMPDIR to a folder with more",
            ) from None

    def _known_of(self, have: Sequence[str], env: dict[str, str]) -> list[str]:
        """Those of `have` that are commits here: git cannot leave out what it does not know."""
        shas = [sha for sha in dict.fromkeys(have) if _FULL.match(sha)]
        if not shas:
            return []
        names = "".join(f"{sha}\n" for sha in shas).encode()
        out = _call(("cat-file", "--batch-check=%(objectname) %(objecttype)"), cwd=self.path, stdin=names, env=env)
        return [line.split()[0] for line in out.decode().splitlines() if line.endswith(" commit")]

    def _gather_submodules(self, sha: str, depth: int) -> Iterator[tuple[list[str], str]]:
        """(commits, objects folder) of each submodule, from a cache of its own."""
        if depth > _DEPTH_MAX:
            raise OperatorError(
                f"submodules lie more than {_DEPTH_MAX} deep in each other",
                where=self.repository,
                remedy="look for a repository that contains itself in .gitmodules",
            )
        for module in self._submodules(sha):
            if not module.url:
                raise OperatorError(
                    f"submodule {module.path} has no address in .gitmodules",
                    where=redact_url(self.repository),
                    remedy="commit .gitmodules with its url",
                )
            base = os.path.abspath(self.path) if self._is_local else self.repository
            inner = Source(absolute_url(base, module.url), cache_dir=self._cache_dir)
            inner.resolve(module.sha)
            yield [module.sha], inner._objects()
            yield from inner._gather_submodules(module.sha, depth + 1)

    def _submodules(self, sha: str) -> list[Submodule]:
        found = links(self._git("ls-tree", "-r", "-z", "--full-tree", sha))
        if not found:
            return []
        try:
            config = self._run(("config", "-z", "--blob", f"{sha}:.gitmodules", "--list")).decode(errors="replace")
        except _GitFailed:
            config = ""
        addresses = urls(config)
        return [Submodule(path, commit, addresses.get(path, "")) for path, commit in found]

    def _objects(self) -> str:
        return os.path.join(self.path, self._git("rev-parse", "--git-path", "objects").strip())

    # git

    def _git(self, *args: str) -> str:
        try:
            return self._run(args).decode(errors="replace")
        except _GitFailed as error:
            raise explain(error.stderr, repository=self.repository) from None

    def _run(self, args: Sequence[str], *, network: bool = False) -> bytes:
        return _call(args, cwd=self.path, network=network)


def _call(
    args: Sequence[str],
    *,
    cwd: str,
    stdin: bytes = b"",
    stdout: int = subprocess.PIPE,
    network: bool = False,
    env: dict[str, str] | None = None,
    timeout_s: float | None = None,
) -> bytes:
    """git's stdout. Somebody at a terminal may be asked for a passphrase (git asks on /dev/tty); nobody else is."""
    try:
        done = subprocess.run(
            ["git", "-c", "gc.autoDetach=false", *args],
            cwd=cwd,
            env=_environment(network) | (env or {}),
            input=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise HostError(
            f"git {args[0]} did not end within {timeout_s:g} s",
            where=f"{cwd} on the machine that deploys",
            remedy='look at the disk it is on; hosts can fetch so large a repository themselves: source = "fetch"',
        ) from None
    except FileNotFoundError:
        raise HostError(
            "git is not installed", where="the machine that deploys", remedy="install git (apt-get install git)"
        ) from None
    if done.returncode != 0:
        raise _GitFailed(done.stderr.decode(errors="replace") or f"git {args[0]}: exit {done.returncode}")
    return done.stdout or b""


def _environment(network: bool) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    env["LC_ALL"] = "C"
    env["GIT_OPTIONAL_LOCKS"] = "0"  # `git status` in somebody's working copy must not write its index
    if not sys.stdin or not sys.stdin.isatty():
        env["GIT_TERMINAL_PROMPT"] = "0"
        if network and "GIT_SSH" not in env:
            env["GIT_SSH_COMMAND"] = env.get("GIT_SSH_COMMAND", "ssh") + " -o BatchMode=yes"
    return env


def _local_path(repository: str) -> str:
    """The absolute path when `repository` is one (`file://` too), "" when it is an address."""
    if repository.startswith("file://"):
        return os.path.abspath(repository.removeprefix("file://"))
    if repository.startswith(("/", "./", "../", "~")) or repository in (".", ".."):
        return os.path.abspath(os.path.expanduser(repository))
    is_address = "://" in repository or re.match(r"[^/]+:", repository)
    return "" if is_address else os.path.abspath(repository)


def _default_cache() -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return f"{cache}/midstream/repos"


def _rename_new(old: str, new: str) -> None:
    """rename(2) that fails with FileExistsError when a repository is there already."""
    try:
        os.rename(old, new)
    except OSError as error:
        if os.path.isfile(f"{new}/HEAD"):
            raise FileExistsError(new) from error
        raise
