"""Archives of built files: what goes in comes out, and nothing else; hostile and broken ones leave nothing behind."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from midstream.linux.archive import LABEL, BadArchive, CannotPack, Label, pack, unpack

TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


def made(folder: Path, *files: str) -> bytes:
    out = io.BytesIO()
    pack(str(folder), Label(TREE, files), out)
    return out.getvalue()


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    (folder / "public/assets/deep").mkdir(parents=True)
    (folder / "public/assets/app.js").write_text("x" * 100_000)
    (folder / "public/assets/deep/run.sh").write_text("#!/bin/sh\n")
    (folder / "public/assets/deep/run.sh").chmod(0o4777)
    (folder / "public/assets/empty").mkdir()
    os.link(folder / "public/assets/app.js", folder / "public/assets/same.js")
    (folder / os.fsdecode(b"public/assets/\xff name\n")).write_text("odd")
    (folder / "one").write_text("1")
    (folder / "not-asked-for").write_text("no")
    return folder


def test_what_is_packed_comes_out_with_sane_modes(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    files = ("public/assets", "one")
    assert unpack(io.BytesIO(made(built, *files)), Label(TREE, files), str(out)) == 5
    assert (out / "public/assets/app.js").read_text() == "x" * 100_000
    assert (out / "public/assets/same.js").stat().st_nlink == 1
    assert (out / "public/assets/deep/run.sh").stat().st_mode & 0o7777 == 0o755
    assert (out / "public/assets/app.js").stat().st_mode & 0o7777 == 0o644
    assert (out / "public/assets/empty").is_dir()
    assert (out / os.fsdecode(b"public/assets/\xff name\n")).read_text() == "odd"
    assert not (out / "not-asked-for").exists()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: os.symlink("/etc/passwd", folder / "public/assets/l"), "is a link"),
        (lambda folder: os.mkfifo(folder / "public/assets/p"), "no plain file"),
        (
            lambda folder: (folder / "public").rename(folder / "p") and os.symlink("p", folder / "public"),
            "behind the link",
        ),
        (lambda folder: (folder / "public/assets").rename(folder / "elsewhere"), "did not make public/assets"),
    ],
)
def test_what_is_not_packed(built: Path, spoil: Callable[[Path], object], words: str) -> None:
    spoil(built)
    with pytest.raises(CannotPack, match=words):
        made(built, "public/assets")


def tar_of(*members: tuple[tarfile.TarInfo, bytes], label: object = None) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb") as zipped, tarfile.open(fileobj=zipped, mode="w|") as tar:
        text = json.dumps(label or {"tree": TREE, "files": ["a"]}).encode()
        head = tarfile.TarInfo(LABEL)
        head.size = len(text)
        tar.addfile(head, io.BytesIO(text))
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


DAMAGED = [
    tar_of((member("/etc/evil"), b"x")),
    tar_of((member("../evil"), b"x")),
    tar_of((member("a/../../evil"), b"x")),
    tar_of((member("b"), b"x")),
    tar_of((member("ab"), b"x")),
    tar_of((member("a", tarfile.SYMTYPE, "/etc"), b"")),
    tar_of((member("a", tarfile.SYMTYPE, ".."), b""), (member("a/evil"), b"x")),
    tar_of((member("a/x"), b"x"), (member("a/y", tarfile.LNKTYPE, "a/x"), b"")),
    tar_of((member("a", tarfile.CHRTYPE), b"")),
    tar_of((member("a", tarfile.FIFOTYPE), b"")),
    tar_of((member("a/x"), b"x"), (member("a/x"), b"y")),
    tar_of((member("a"), b"x"), (member("a/x"), b"y")),
    tar_of((member("a/x/y"), b"x"), (member("a/x"), b"y")),
    tar_of((member("a/./x"), b"x")),
    tar_of((member("a//x"), b"x")),
    tar_of(),
    tar_of((member("a"), b"x"), label={"tree": "0" * 40, "files": ["a"]}),
    tar_of((member("a"), b"x"), label={"tree": TREE, "files": ["a", "b"]}),
    tar_of((member("a"), b"x"), label=["nonsense"]),
    tar_of((member("a"), b"x" * 5000))[:-40],
    tar_of((member("a"), os.urandom(5000)))[:2000],
    b"not an archive at all",
    b"",
    gzip.compress(b"x" * 3000),
    gzip.compress(b""),
]


@pytest.mark.parametrize("data", DAMAGED, ids=[str(number) for number in range(len(DAMAGED))])
def test_whatever_is_in_it_nothing_lands_outside_and_it_is_refused(data: bytes, tmp_path: Path) -> None:
    out = tmp_path / "deep/out"
    out.mkdir(parents=True)
    with pytest.raises(BadArchive):
        unpack(io.BytesIO(data), Label(TREE, ("a",)), str(out))
    outside = [path for path in tmp_path.rglob("*") if out not in (path, *path.parents) and path != out.parent]
    assert outside == []


def test_every_damaged_byte_is_found_or_harmless(built: Path, tmp_path: Path) -> None:
    good = made(built, "one")
    for place in range(0, len(good), 3):
        out = tmp_path / f"out-{place}"
        out.mkdir()
        data = good[:place] + bytes((good[place] ^ 0x5A,)) + good[place + 1 :]
        with contextlib.suppress(BadArchive):
            unpack(io.BytesIO(data), Label(TREE, ("one",)), str(out))
            assert (out / "one").read_text() == "1"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]).returncode:
        pytest.skip("needs root, and to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_of_the_disk(built: Path, small_disk: Path) -> None:
    data = made(built, "public/assets")
    with pytest.raises(OSError, match="No space left"):
        unpack(io.BytesIO(data), Label(TREE, ("public/assets",)), str(small_disk))
    with pytest.raises(OSError, match="No space left"), (small_disk / "a.tar.gz").open("wb") as out:
        (built / "big").write_bytes(os.urandom(200_000))
        pack(str(built), Label(TREE, ("big",)), out)
