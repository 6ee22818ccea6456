"""The step `make_release`: a release folder from a revision.

The folder is claimed by a mkdir that fails when taken, filled from `git archive` (so that export-ignore and
export-subst mean what they mean to Capistrano), and linked to what is shared.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import stat
import tarfile
import time
from typing import Any, BinaryIO, cast

from midstream.core.layout import check_linked, check_relative
from midstream.core.names import is_release
from midstream.core.releases import next_release_id
from midstream.core.steps import MakeRelease
from midstream.errors import AppError, HostError, LockedError, MidstreamError, OperatorError
from midstream.steps import git, submodules
from midstream.steps.claims import read_claim
from midstream.steps.folder import Folder
from midstream.steps.mirror import check_sha
from midstream.steps.place import Place, open_place, read_current
from midstream.steps.trash import delete_trash, to_trash

_TRIES = 60
_CHUNK_BYTES = 1 << 20


def make_release(request: MakeRelease) -> dict[str, Any]:
    """Run again for the same deploy it begins anew in the same folder: a build may have begun in it."""
    revision = check_sha(request.revision)
    check_linked(request.linked_dirs, request.linked_files)
    repo_tree = check_relative(request.repo_tree.strip("/"), "repo_tree") if request.repo_tree.strip("/") else ""
    with open_place(request.deploy_to) as place:
        _compare_tree(place, revision, request.tree)
        with place.root.make("releases") as releases:
            release = claim(place, releases, request)
            try:
                files = _fill(place, releases, release, request, repo_tree)
            except BaseException:
                # Half a release must not look like one to Capistrano; and on a full disk others need the room.
                with contextlib.suppress(OSError, MidstreamError):
                    to_trash(place, release)
                    delete_trash(place.root)
                raise
        return {"release": release, "path": place.layout.release(release), "files": files}


def _fill(place: Place, releases: Folder, release: str, request: MakeRelease, repo_tree: str) -> int:
    """Everything that is in a release before its build; the number of files of the revision."""
    print(f"extracting {request.revision[:12]} to {place.layout.release(release)}", flush=True)
    moment = int(request.revision_time)
    with releases.open(release) as folder:
        folder.empty()
        files = _extract(place, folder, request.revision, repo_tree, moment)
        if request.submodules:
            files += _extract_submodules(place, folder, request.revision, repo_tree, moment)
        link_shared(place, folder, request.linked_files, request.linked_dirs)
        folder.write("REVISION_TIME", f"{moment}\n".encode(), durable=False)
        folder.write("REVISION", f"{request.revision}\n".encode(), durable=False)
        os.utime(folder.fd)
    return files


def claim(place: Place, releases: Folder, request: MakeRelease) -> str:
    """The release id that is this deploy's: the one it claimed before, or the first free second from `release` on.

    The claim file is written before the folder is made, and completed with the folder's inode after it: a folder of
    that name that has another inode was made by somebody else in the same second.
    """
    served = read_current(place.layout, place.root).release  # whatever is asked, that one is not emptied
    with place.ours.make("claims") as claims:
        for name in claims.names():
            release = name.removesuffix(".json")
            record = read_claim(claims, name)
            if not is_release(release) or record.get("deploy_id") != request.deploy_id or release == served:
                continue
            if not record.get("inode"):
                # Killed between mkdir and the record: whose the folder is cannot be told, but empty it is nobody's.
                with contextlib.suppress(OSError):
                    os.rmdir(release, dir_fd=releases.fd)
            if _take(claims, releases, release, request):
                return release
        release = request.release
        for _ in range(_TRIES):
            if not read_claim(claims, f"{release}.json"):
                _write_claim(claims, release, request, inode=0)
                if _take(claims, releases, release, request):
                    return release
            release = _next(release)
    raise LockedError(
        f"{_TRIES} releases from {request.release} on are taken",
        where=releases.path,
        remedy="compare the clocks of the deployer and this host, then deploy again",
    )


def _next(release: str) -> str:
    try:
        return next_release_id(release)
    except ValueError:
        raise OperatorError(
            f"release {release} is no moment in time", remedy="a release id is YYYYMMDDHHMMSS in UTC"
        ) from None


def _take(claims: Folder, releases: Folder, release: str, request: MakeRelease) -> bool:
    """Whether the claimed release's folder is ours: as recorded, or made now. Else the claim is dropped."""
    recorded = read_claim(claims, f"{release}.json").get("inode")
    if recorded and releases.kind(release) == stat.S_IFDIR and releases.status(release).st_ino == recorded:
        return True
    try:
        releases.claim(release)
    except FileExistsError:
        claims.unlink(f"{release}.json")
        return False
    _write_claim(claims, release, request, inode=releases.status(release).st_ino)
    return True


def _write_claim(claims: Folder, release: str, request: MakeRelease, *, inode: int) -> None:
    record = {
        "deploy_id": request.deploy_id,
        "inode": inode,
        "revision": request.revision,
        "branch": request.branch,
        "time": int(time.time()),
    }
    claims.write(f"{release}.json", json.dumps(record).encode())


def _compare_tree(place: Place, revision: str, tree: str) -> None:
    try:
        found = git.run(place.layout.repo, "rev-parse", "--verify", f"{revision}^{{tree}}").strip()
    except git.GitFailed as error:
        raise git.failure(
            error, repository=place.layout.repo, wanted=f"revision {revision[:12]}", where=place.layout.repo
        ) from None
    if tree and found != tree:
        raise HostError(
            f"revision {revision[:12]} has tree {found[:12]} here and {tree[:12]} on the deployer",
            where=place.layout.repo,
            remedy=f"the mirror is damaged: move {place.layout.repo} away and deploy again",
        )


def _extract(place: Place, folder: Folder, revision: str, only: str, mtime_s: int, into: str = "") -> int:
    """Unpacks `git archive` of the revision (of its sub-folder `only`) into `folder`/`into`; the number of files."""
    args = ["--literal-pathspecs", "archive", "--format=tar", revision]
    if only:
        args += ["--", only]
    repo = place.layout.repo
    with open(os.memfd_create("stderr"), "w+b") as stderr:
        process = git.start(repo, *args, keep_fds=place.keep_fds, stderr=stderr)
        with process:
            assert process.stdout is not None
            try:
                strip = only.count("/") + 1 if only else 0
                count = _unpack(cast(BinaryIO, process.stdout), folder, strip, into, mtime_s)
            except tarfile.ReadError as error:
                process.stdout.read()
                # tarfile's words for an archive without a single member; any other is git's failure, or tells of one
                if process.wait() == 0 and str(error) != "end of file header":
                    raise
                count = 0
            except BaseException:
                process.kill()
                raise
            process.stdout.read()
        if process.returncode != 0:
            raise _archive_failed(place, revision, only, process.returncode, cast(BinaryIO, stderr))
    return count


def _archive_failed(place: Place, revision: str, only: str, status: int, stderr: BinaryIO) -> Exception:
    stderr.seek(0)
    text = stderr.read().decode(errors="replace")
    if only and "did not match any files" in text:
        return OperatorError(
            f"revision {revision[:12]} has no folder {only}", remedy="correct repo_tree in midstream.toml"
        )
    return git.failure(
        git.GitFailed(("archive", revision), status, text), repository=place.layout.repo, where=place.layout.repo
    )


def _unpack(stream: BinaryIO, folder: Folder, strip: int, into: str, mtime_s: int) -> int:
    """Files first, links last: so nothing can be written through a link of the tree, whatever the archive says.

    Files get the commit's time, as tar gives it to Capistrano's: the same on all hosts, so that ETags agree.
    """
    made = {""}
    links: list[tuple[str, str]] = []
    count = 0
    if into:
        _make_parents(folder, f"{into}/x", made)
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK_BYTES) as archive:
        for member in archive:
            path = _inside(member.name, strip, into)
            if not path:
                continue
            _make_parents(folder, path, made)
            if member.isdir():
                _make_parents(folder, f"{path}/x", made)
            elif member.issym():
                links.append((path, member.linkname))
            elif member.isreg():
                content = archive.extractfile(member)
                assert content is not None
                _write_file(folder, path, cast(BinaryIO, content), bool(member.mode & 0o100), mtime_s)
                count += 1
    for path, target in links:
        try:
            os.symlink(target, path, dir_fd=folder.fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"{folder.path}/{path}") from error
    return count + len(links)


def _inside(name: str, strip: int, into: str) -> str:
    """The member's path in the release; "" for the folders that are stripped off."""
    parts = name.rstrip("/").split("/")
    if name.startswith("/") or any(part in ("", ".", "..", ".git") for part in parts):
        raise AppError(
            f"the revision has a path that no folder may have: {name!r}",
            remedy="remove it from the repository; nothing of it was unpacked",
        )
    kept = parts[strip:]
    return posixpath.join(into, *kept) if kept else ""


def _make_parents(folder: Folder, path: str, made: set[str]) -> None:
    parent = posixpath.dirname(path)
    if parent in made:
        return
    _make_parents(folder, parent, made)
    try:
        os.mkdir(parent, dir_fd=folder.fd)
    except FileExistsError:
        pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{folder.path}/{parent}") from error
    made.add(parent)


def _write_file(folder: Folder, path: str, content: BinaryIO, executable: bool, mtime_s: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o777 if executable else 0o666, dir_fd=folder.fd)
        try:
            while data := content.read(_CHUNK_BYTES):
                while data:
                    data = data[os.write(fd, data) :]
            if mtime_s:
                os.utime(fd, (mtime_s, mtime_s))
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{folder.path}/{path}") from error


def _extract_submodules(place: Place, folder: Folder, revision: str, only: str, mtime_s: int) -> int:
    count = 0
    prefix = f"{only}/" if only else ""
    for path, module in submodules.walk(place.layout.repo, revision):
        if path.startswith(prefix):
            count += _extract(place, folder, module.sha, "", mtime_s, into=path.removeprefix(prefix))
    return count


def link_shared(place: Place, folder: Folder, files: tuple[str, ...], dirs: tuple[str, ...]) -> None:
    """Absolute links to what is shared, files first, then folders, as Capistrano's deploy:symlink:shared: a link that
    the tree has in that place stays; a file, or a folder for a folder, gives way."""
    for path, wanted in [(path, stat.S_IFREG) for path in files] + [(path, stat.S_IFDIR) for path in dirs]:
        parent, name = posixpath.split(path)
        with folder.make(parent) if parent else folder.open(".") as inside:
            found = inside.kind(name)
            if found == stat.S_IFLNK:
                print(f"{path}: the revision has a link of its own there, it stays")
                continue
            if found and found != wanted:
                noun = "file" if wanted == stat.S_IFREG else "folder"
                raise AppError(
                    f"{path} is to be linked to a shared {noun}, but in the revision it is none",
                    where=f"{folder.path}/{path}",
                    remedy=f"remove {path} from the repository or from linked_{noun.replace('folder', 'dir')}s",
                )
            inside.remove_tree(name)
            inside.link(name, f"{place.layout.shared}/{path}")
