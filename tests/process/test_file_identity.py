"""Opening files with another user's rights: never what only this process could have reached."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from midstream.linux.file_identity import FileUser, open_as

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user's rights")

NOBODY = FileUser(65534, 65534)


@pytest.fixture
def held(tmp_path: Path) -> list[int]:
    """What a process holds open: a memory file, a readable file in a folder of root's, a file that was deleted."""
    memory = os.memfd_create("request", os.MFD_CLOEXEC)
    os.write(memory, b"of another app")
    (tmp_path / "readable").write_text("in a closed folder")
    (tmp_path / "deleted").write_text("gone")
    tmp_path.chmod(0o700)
    fds = [memory, *(os.open(tmp_path / name, os.O_RDONLY | os.O_CLOEXEC) for name in ("readable", "deleted"))]
    (tmp_path / "deleted").unlink()
    return fds


@pytest.mark.parametrize("through", ["self", "thread-self", "link"])
def test_what_the_process_holds_is_not_opened_for_a_user(held: list[int], open_folder: Path, through: str) -> None:
    for fd in held:
        path = f"/proc/{'self' if through == 'link' else through}/fd/{fd}"
        if through == "link":
            link = open_folder / f"link{fd}"
            link.symlink_to(path)
            path = str(link)
        with pytest.raises(OSError):
            open_as(NOBODY, path, os.O_RDONLY | os.O_CLOEXEC)
        os.close(open_as(None, path, os.O_RDONLY | os.O_CLOEXEC))  # it would have been there


@pytest.fixture
def open_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that anybody may look into; pytest's own are root's alone."""
    folder = Path(f"/tmp/midstream-identity-{os.getpid()}-{tmp_path_factory.mktemp('n').name}")
    folder.mkdir(mode=0o755)
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_his_own_files_are_opened_by_whatever_name(open_folder: Path) -> None:
    (open_folder / "plain").write_text("his")
    (open_folder / "link").symlink_to("plain")
    for name in ("plain", "link", "../" + open_folder.name + "/plain"):
        fd = open_as(NOBODY, str(open_folder / name), os.O_RDONLY | os.O_CLOEXEC)
        assert os.read(fd, 10) == b"his"
        os.close(fd)
    with pytest.raises(FileNotFoundError):
        open_as(NOBODY, str(open_folder / "none"), os.O_RDONLY)
