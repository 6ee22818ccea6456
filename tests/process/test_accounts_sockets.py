"""Unix sockets that root binds for a user: his rights on the way, root's only where the way is root's alone."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from midstream.linux import listen
from midstream.linux.file_identity import FileUser
from midstream.linux.root_owned import is_root_owned, require_root_owned

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="acts for other users, which needs root")


def _user(name: str) -> FileUser:
    entry = pwd.getpwnam(name)
    return FileUser(entry.pw_uid, entry.pw_gid)


@pytest.fixture
def nobody() -> FileUser:
    return _user("nobody")


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ms-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def his(folder: Path, nobody: FileUser) -> Path:
    made = folder / "his"
    made.mkdir()
    os.chown(made, nobody.uid, nobody.gid)
    return made


@pytest.fixture
def roots(folder: Path) -> Path:
    made = folder / "roots"
    made.mkdir(mode=0o755)
    return made


def _bind(path: Path, actor: FileUser | None, **owner: int) -> socket.socket:
    return listen.bind_listener(listen.parse(f"unix://{path}"), 16, 0o660, **owner, actor=actor)


def test_socket_in_the_users_folder_is_his(his: Path, nobody: FileUser) -> None:
    with _bind(his / "web.sock", nobody, uid=nobody.uid, gid=nobody.gid):
        found = (his / "web.sock").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (nobody.uid, nobody.gid, 0o660)


def test_socket_may_be_given_to_another_user(his: Path, nobody: FileUser) -> None:
    games = _user("games")
    with _bind(his / "web.sock", nobody, uid=games.uid, gid=games.gid):
        assert (his / "web.sock").stat().st_uid == games.uid


def test_link_into_roots_folder_makes_nothing_there(his: Path, roots: Path, nobody: FileUser) -> None:
    """`shared -> /etc`: root would have made the file there, and given it away."""
    (his / "shared").symlink_to(roots)
    with pytest.raises(PermissionError):
        _bind(his / "shared" / "web.sock", nobody, uid=nobody.uid, gid=nobody.gid)
    assert list(roots.iterdir()) == []


def test_dead_socket_of_root_behind_a_link_is_not_removed(his: Path, roots: Path, nobody: FileUser) -> None:
    with _bind(roots / "docker.sock", None):
        pass
    (his / "shared").symlink_to(roots)
    with pytest.raises(OSError):
        _bind(his / "shared" / "docker.sock", nobody)
    assert (roots / "docker.sock").is_socket()


def test_removing_follows_no_exchanged_folder(his: Path, roots: Path, nobody: FileUser) -> None:
    """Bound in a folder that is then exchanged for a link: what is there now stays."""
    shared = his / "shared"
    shared.mkdir()
    os.chown(shared, nobody.uid, nobody.gid)
    (roots / "passwd").write_text("root:x:0:0")
    with _bind(roots / "live.sock", None), _bind(shared / "live.sock", nobody):
        shutil.rmtree(shared)
        shared.symlink_to(roots)
        for name in ("passwd", "live.sock"):
            listen.remove_path(str(shared / name), nobody)
            listen.remove_path(str(shared / name), None)  # whose it was is forgotten: then root does nothing here
            assert (roots / name).exists()


def test_removing_takes_the_users_own_socket(his: Path, nobody: FileUser) -> None:
    with _bind(his / "web.sock", nobody):
        listen.remove_path(str(his / "web.sock"), nobody)
    assert list(his.iterdir()) == []


def test_removing_takes_no_plain_file(his: Path, nobody: FileUser) -> None:
    (his / "web.sock").write_text("precious")
    listen.remove_path(str(his / "web.sock"), nobody)
    listen.remove_path(str(his / "web.sock"), None)
    assert (his / "web.sock").read_text() == "precious"


def test_folder_that_root_keeps_for_itself_is_used_with_roots_rights(roots: Path, nobody: FileUser) -> None:
    """/run/shop, allowed by a grant, root:root 0755."""
    with _bind(roots / "web.sock", nobody, uid=nobody.uid, gid=nobody.gid):
        assert (roots / "web.sock").stat().st_uid == nobody.uid
        listen.remove_path(str(roots / "web.sock"), nobody)
    assert list(roots.iterdir()) == []


def test_live_socket_of_somebody_else_is_never_replaced(his: Path, nobody: FileUser) -> None:
    with _bind(his / "web.sock", nobody), pytest.raises(OSError, match="in use"):
        _bind(his / "web.sock", nobody)


def test_what_is_root_owned(folder: Path, roots: Path, his: Path) -> None:
    """Only where nobody else can change what a path leads to."""
    require_root_owned(str(roots))
    require_root_owned(str(roots / "not" / "yet"))
    (roots / "link").symlink_to(folder)
    require_root_owned(str(roots / "link" / "roots"))
    (his / "link").symlink_to(roots)
    os.lchown(his / "link", 0, 0)  # root's link, but in a folder that another may rearrange
    assert not is_root_owned(str(his / "link"))
    (roots / "away").symlink_to(his)
    assert not is_root_owned(str(roots / "away" / "x"))
    assert not is_root_owned(str(his))
    roots.chmod(0o777)
    assert not is_root_owned(str(roots / "x"))
    roots.chmod(0o1777)
    assert is_root_owned(str(roots / "x"))
    (roots / "loop").symlink_to("loop")
    assert not is_root_owned(str(roots / "loop"))
